//! More tokens than decode steps take, on Hopper's warpgroups.

use half::bf16;
use swiglu_conformance::inputs::Numbers;
use swiglu_core::{E4M3, HostWeight, ScaleFormat, WeightFormat};
use swiglu_cuda::Route;

use crate::common::open;
use crate::common::sums::{compare, fp8, matmul};
use crate::weights::{FORMATS, exact, has_steps, random};

/// Of one group a stream, and of k that gives blocks of a cluster nothing, one unit, or more than their rings hold.
const SMALL: [[usize; 2]; 5] = [[16, 64], [160, 1088], [16, 4160], [2128, 64], [384, 320]];

/// Of four, five, six and seven groups a stream on 132 multiprocessors.
const LARGE: [[usize; 2]; 4] = [[4224, 192], [5280, 128], [6288, 64], [7392, 64]];

/// On both sides of what a block, and then a kernel, takes.
const TOKENS: [usize; 10] = [17, 32, 33, 63, 64, 65, 127, 128, 129, 256];

/// Up to so many tokens there is a kernel for any streams.
const MOST: usize = 256;

#[test]
fn sums_of_every_number_of_tokens() {
    let Some((backend, _turn)) = open("warpgroups") else {
        return;
    };
    if !has_steps(&backend) {
        return;
    }
    let way = (&backend, Route::Warpgroups);
    for (i, shape) in SMALL.into_iter().chain(LARGE).enumerate() {
        let [_, k] = shape;
        let tokens = if i < SMALL.len() {
            &TOKENS[..]
        } else {
            &[17, 33, 65, 129, 250]
        };
        for &t in tokens {
            for (format, seed) in [(FORMATS[0], 1), (FORMATS[2], 2)] {
                let mut numbers = Numbers::new(t as u64);
                let small: Vec<bf16> = (0..t * k)
                    .map(|_| bf16::from_f32(numbers.below(17) as f32 - 8.0))
                    .collect();
                let x = Numbers::new(3).values::<bf16>(t * k, 4.0);
                let took = [
                    compare(way, &small, &exact(shape, format, seed), 0.0),
                    compare(way, &x, &random(shape, format, seed), 1.0),
                ];
                assert_eq!(took, [true; 2], "{t} by {shape:?}");
            }
        }
    }
    // Of several tiles of tokens: of streams of four groups, on devices of fewer multiprocessors so many that a block has
    // two, and of five to seven.
    for (shape, t) in [
        (LARGE[0], 257),
        (LARGE[0], 300),
        (LARGE[0], 600),
        (LARGE[0], 1024),
        (LARGE[1], 300),
        (LARGE[2], 500),
        (LARGE[2], 1000),
        (LARGE[3], 261),
        (LARGE[3], 1000),
        ([6288, 1216], 1000),
    ] {
        let x = Numbers::new(5).values::<bf16>(t * shape[1], 4.0);
        assert!(compare(way, &x, &random(shape, FORMATS[0], 3), 1.0));
    }
    // Scales in f32 that are powers of two.
    let x = Numbers::new(6).values::<bf16>(40 * 192, 4.0);
    assert!(compare(way, &x, &exact(LARGE[0], FORMATS[1], 3), 1.0));
}

/// Rows of one in turn, so that outputs are the weight's elements: every code by scales from one end to the other.
#[test]
fn every_code_is_itself() {
    let Some((backend, _turn)) = open("warpgroups") else {
        return;
    };
    if !has_steps(&backend) {
        return;
    }
    let (n, k) = (304, 256);
    let identity: Vec<bf16> = (0..k * k)
        .map(|i| bf16::from_f32(f32::from(i % k == i / k)))
        .collect();
    let codes: Vec<u8> = (0..n * k)
        .map(|i| (i % 251 + i / k) as u8)
        .map(|code| if code & 0x7f == 0x7f { 0x80 } else { code })
        .collect();
    let format = fp8(ScaleFormat::E8M0, [32, 32]);
    let [rows, columns] = format.scale_grid([n, k]).unwrap();
    let exponents: Vec<i32> = (0..rows * columns)
        .map(|i| 7 - (i as i32 * 5) % 98)
        .collect();
    let scales = exponents.iter().map(|e| (e + 127) as u8).collect();
    let weight = HostWeight::owned([n, k], format, codes.clone(), scales).unwrap();
    let got = matmul((&backend, Route::Warpgroups), &identity, &weight, 0).unwrap();
    for (at, got) in got.iter().enumerate() {
        let (column, row) = (at / n, at % n);
        let scale = 2f32.powi(exponents[row / 32 * columns + column / 32]);
        let want = E4M3(codes[row * k + column]).to_f32() * scale;
        assert_eq!(*got, want, "[{row}, {column}]");
    }
}

/// Weights that are no such products take another way.
#[test]
fn other_weights_are_refused() {
    let Some((backend, _turn)) = open("warpgroups") else {
        return;
    };
    if !has_steps(&backend) {
        return;
    }
    let (n, k) = (64, 128);
    let x = Numbers::new(1).values::<bf16>(40 * k, 4.0);
    let takes = |scale: u8, code: u8| {
        let mut codes = vec![0x38; n * k];
        codes[5 * k + 3] = code;
        let format = WeightFormat::DEEPSEEK_V4;
        let weight = HostWeight::owned([n, k], format, codes, vec![scale]).unwrap();
        matmul((&backend, Route::Warpgroups), &x, &weight, 0).is_some()
    };
    assert!(takes(127 + 7, 0x38) && takes(127 - 90, 0xf8));
    assert!(!takes(127 + 8, 0x38) && !takes(255, 0x38));
    assert!(!takes(127, 0x7f) && !takes(127, 0xff));
    // Scales of any mantissa, and too few tokens or too many.
    let way = (&backend, Route::Warpgroups);
    assert!(!compare(way, &x, &random([n, k], FORMATS[1], 1), 1.0));
    for t in [1, 16, MOST + 1] {
        let x = Numbers::new(2).values::<bf16>(t * k, 4.0);
        assert!(!compare(way, &x, &exact([n, k], FORMATS[0], 1), 1.0), "{t}");
    }
}
