//! Some tokens by weights in bf16 as they are stored, which tensor maps copy on Hopper.

use half::bf16;
use swiglu_conformance::inputs::Numbers;
use swiglu_core::{Backend, Float, HostWeight, Matmul, RowLayout, Tensor, TensorMut, WeightFormat};
use swiglu_cuda::{CudaBackend, Route};

use crate::common::sums::{compare, matmul, new_weight};
use crate::common::{bytes, filled, open};
use crate::weights::{exact, has_steps, random};

pub const BF16: WeightFormat = WeightFormat::Float(Float::BF16);

/// Of one group and of several a tile, of tiles that the last group does not fill, of two to eight parts of k, and of k
/// that ends within a stage, and is more than all stages.
const SHAPES: [[usize; 2]; 9] = [
    [16, 72],
    [16, 1096],
    [160, 128],
    [512, 4096],
    [2128, 200],
    [4224, 192],
    [5120, 328],
    [7168, 128],
    [8448, 128],
];

/// On both sides of what each kernel takes, and in two tiles, the second of which is full or not.
const TOKENS: [usize; 18] = [
    1, 2, 3, 8, 9, 16, 17, 32, 33, 63, 64, 65, 127, 128, 129, 200, 255, 256,
];

#[test]
fn sums_of_every_number_of_tokens() {
    let Some((backend, _turn)) = open("mapped") else {
        return;
    };
    if !has_steps(&backend) {
        return;
    }
    let way = (&backend, Route::Mapped);
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        let [n, k] = shape;
        let tokens = match n {
            ..4000 => &TOKENS[..],
            4224 => &[1, 17, 64, 128, 256],
            // More tokens are cublasLt's.
            _ => &[1, 17, 64],
        };
        for &t in tokens {
            let mut numbers = Numbers::new(t as u64);
            let small: Vec<bf16> = (0..t * k)
                .map(|_| bf16::from_f32(numbers.below(17) as f32 - 8.0))
                .collect();
            let x = Numbers::new(3).values::<bf16>(t * k, 4.0);
            let took = [
                compare(way, &small, &exact(shape, BF16, seed as u64), 0.0),
                compare(way, &x, &random(shape, BF16, seed as u64), 1.0),
            ];
            assert_eq!(took, [true; 2], "{t} by {shape:?}");
        }
    }
}

/// Rows of one in turn, so that outputs are the weight's elements, each from its place.
#[test]
fn every_element_is_itself() {
    let Some((backend, _turn)) = open("mapped") else {
        return;
    };
    if !has_steps(&backend) {
        return;
    }
    let (n, k, t) = (304, 120, 60);
    let weight = random([n, k], BF16, 1);
    for first in [0, t] {
        let identity: Vec<bf16> = (0..t * k)
            .map(|i| bf16::from_f32(f32::from(i % k == first + i / k)))
            .collect();
        let got = matmul((&backend, Route::Mapped), &identity, &weight, 8).unwrap();
        for (at, got) in got.iter().enumerate() {
            let (column, row) = (first + at / n, at % n);
            assert_eq!(*got, weight.element(row, column), "[{row}, {column}]");
        }
    }
}

/// Rows that vectors can be stored to, and others.
#[test]
fn outputs_in_bf16_are_those_in_f32_rounded() {
    let Some((backend, _turn)) = open("mapped") else {
        return;
    };
    if !has_steps(&backend) {
        return;
    }
    let [n, k] = [208, 328];
    let weight = random([n, k], BF16, 2);
    let loaded = backend.load_weight(std::slice::from_ref(&weight)).unwrap();
    for t in TOKENS {
        let x = Numbers::new(t as u64).values::<bf16>(t * k, 4.0);
        let sums = matmul((&backend, Route::Mapped), &x, &weight, 0).unwrap();
        let x = filled(&backend, bytemuck::cast_slice(&x));
        for (gap, offset) in [(0, 0), (8, 8), (4, 4), (2, 2), (1, 1)] {
            let mut y = filled(&backend, &vec![0xa5; 2 * (t * (n + gap) + offset)]);
            let from = Tensor::contiguous(CudaBackend::view(&x), Float::BF16, t, k);
            let layout = RowLayout::contiguous(t, n)
                .with_stride(n + gap)
                .with_offset(offset);
            let to = TensorMut::new(CudaBackend::view_mut(&mut y), Float::BF16, layout);
            let way = Some(Route::Mapped);
            backend.matmul_by(way, &from, &loaded, &to).unwrap();
            let got = bytes(&backend, &y);
            let got: Vec<u16> = got
                .chunks_exact(2)
                .map(bytemuck::pod_read_unaligned)
                .collect();
            let mut want = vec![0xa5a5; got.len()];
            for row in 0..t {
                let rounded = sums[row * n..][..n]
                    .iter()
                    .map(|&sum| bf16::from_f32(sum).to_bits());
                want.splice(layout.row(row), rounded);
            }
            assert!(got == want, "{t} tokens, rows {gap} apart");
        }
    }
}

/// What no tensor map or no kernel is for, which goes to the library.
#[test]
fn other_calls_are_refused() {
    let Some((backend, _turn)) = open("mapped") else {
        return;
    };
    if !has_steps(&backend) {
        return;
    }
    let takes = |t: usize, shape: [usize; 2], format, gap| {
        let x = Numbers::new(1).values::<bf16>(t * shape[1], 4.0);
        let weight: HostWeight<'_> = new_weight(shape, format, || 0.5, || 1.0);
        matmul((&backend, Route::Mapped), &x, &weight, gap).is_some()
    };
    assert!(takes(4, [64, 128], BF16, 0) && takes(64, [64, 128], BF16, 8));
    assert!(takes(65, [64, 128], BF16, 0) && takes(256, [64, 128], BF16, 8));
    assert!(!takes(257, [64, 128], BF16, 0) && !takes(4, [64, 64], BF16, 0));
    // Rows of x and of the weight that do not begin at multiples of 16 bytes; but one row of x has no next.
    assert!(!takes(4, [64, 128], BF16, 4) && takes(1, [64, 128], BF16, 4));
    assert!(!takes(4, [64, 132], BF16, 0) && !takes(4, [72, 128], BF16, 0));
    let others = [
        WeightFormat::Float(Float::F16),
        WeightFormat::Float(Float::F32),
        WeightFormat::DEEPSEEK_V4,
    ];
    for format in others {
        assert!(!takes(4, [64, 128], format, 0), "{format}");
    }
}
