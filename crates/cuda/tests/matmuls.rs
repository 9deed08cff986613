//! Every way that a matmul may go, against sums in f64, and ordered sums against their definition.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

use half::{bf16, f16};
use swiglu_conformance::inputs::Numbers;
use swiglu_core::{
    Accumulation, Backend, Element, Float, HostWeight, Matmul, ScaleFormat, Tensor, TensorMut,
    WeightFormat,
};
use swiglu_cuda::{CudaBackend, CudaBuffer, Route};

mod common;
use common::sums::{compare, fp8, matmul, new_weight};
use common::{bytes, filled, open, open_with};

const FORMATS: [WeightFormat; 9] = [
    WeightFormat::Float(Float::F32),
    WeightFormat::Float(Float::F16),
    WeightFormat::Float(Float::BF16),
    fp8(ScaleFormat::E8M0, [128, 128]),
    fp8(ScaleFormat::F32, [128, 128]),
    fp8(ScaleFormat::E8M0, [32, 32]),
    fp8(ScaleFormat::F32, [1, 96]),
    fp8(ScaleFormat::F32, [48, 64]),
    fp8(ScaleFormat::F32, [200, 2000]),
];

const ROWS: [usize; 9] = [1, 2, 8, 9, 17, 33, 64, 65, 130];

/// Whole numbers, whose sums are exact in any order, and numbers of any mantissa: which of the
/// matmuls of each pair of types the route took, out of all.
fn sweep<X: Element>(way: (&CudaBackend, Route)) -> (usize, usize) {
    let (mut taken, mut all) = (0, 0);
    for (i, format) in FORMATS.into_iter().enumerate() {
        for (n, k) in [(200, 448), (16, 1040), (130, 64)] {
            let mut small = Numbers::new(i as u64);
            let mut powers = Numbers::new(99);
            let exact = new_weight(
                [n, k],
                format,
                || small.below(7) as f32 - 3.0,
                || 2f32.powi(powers.below(4) as i32 - 2),
            );
            let (mut any, mut scales) = (Numbers::new(7 + i as u64), Numbers::new(98));
            let random = new_weight(
                [n, k],
                format,
                || any.within(2.0),
                || match format.scaling() {
                    Some((ScaleFormat::F32, _)) => 0.01 * (1.0 + scales.within(0.9)),
                    Some((ScaleFormat::E8M0, _)) | None => 2f32.powi(scales.below(9) as i32 - 6),
                },
            );
            for t in ROWS {
                let mut numbers = Numbers::new(t as u64);
                let x: Vec<X> = (0..t * k)
                    .map(|_| X::from_f32(numbers.below(17) as f32 - 8.0))
                    .collect();
                let took = compare(way, &x, &exact, 0.0);
                let x: Vec<X> = numbers.values(t * k, 4.0);
                let took = [took, compare(way, &x, &random, 1.0)];
                taken += took.into_iter().filter(|took| *took).count();
                all += 2;
            }
        }
    }
    (taken, all)
}

#[test]
fn few_rows_of_every_pair_of_types() {
    let Some((backend, _turn)) = open("matmuls") else {
        return;
    };
    for (taken, all) in [
        sweep::<bf16>((&backend, Route::Rows)),
        sweep::<f16>((&backend, Route::Rows)),
        sweep::<f32>((&backend, Route::Rows)),
    ] {
        assert_eq!(taken, all);
    }
}

#[test]
fn tiles_of_every_pair_of_types() {
    let Some((backend, _turn)) = open("matmuls") else {
        return;
    };
    for (taken, all) in [
        sweep::<bf16>((&backend, Route::Tiles)),
        sweep::<f16>((&backend, Route::Tiles)),
        sweep::<f32>((&backend, Route::Tiles)),
    ] {
        assert_eq!(taken, all);
    }
}

#[test]
fn the_kernel_for_any_alignment() {
    let Some((backend, _turn)) = open("matmuls") else {
        return;
    };
    let (taken, all) = sweep::<bf16>((&backend, Route::Ordered));
    assert_eq!(taken, all);
    // An odd number of columns, and blocks that no step fits into.
    let mut numbers = Numbers::new(1);
    let format = fp8(ScaleFormat::F32, [5, 7]);
    let weight = new_weight([33, 101], format, || numbers.within(2.0), || 0.75);
    let x: Vec<f16> = Numbers::new(2).values(19 * 101, 4.0);
    assert!(compare((&backend, Route::Ordered), &x, &weight, 1.0));
}

/// Weights decoded first: as exact, since it is done for powers of two alone.
#[test]
fn decoded_weights() {
    let Some((backend, _turn)) = open("matmuls") else {
        return;
    };
    let (taken, all) = sweep::<bf16>((&backend, Route::Decode));
    // Of FP8, those whose scales are powers of two, as they are in all of the first kind.
    assert_eq!(taken, (6 + 2) * all / 18);
}

/// Ordered sums are one chain of fused multiply-adds in f32 over k, whatever the shape and types; an
/// FP8 weight is its code times its scale in f32.
#[test]
fn ordered_sums_are_their_definition_bit_for_bit() {
    fn sweep<X: Element>(backend: &CudaBackend) {
        for (i, format) in FORMATS.into_iter().enumerate() {
            for (t, n, k) in [(1, 40, 1040), (5, 70, 129), (70, 65, 256)] {
                let mut numbers = Numbers::new(i as u64);
                let mut scales = Numbers::new(17);
                let weight = new_weight(
                    [n, k],
                    format,
                    || numbers.within(2.0),
                    || 0.01 * (1.0 + scales.within(0.9)),
                );
                let x: Vec<X> = Numbers::new(t as u64).values(t * k, 4.0);
                let y = filled(backend, &vec![0xa5; 4 * t * n]);
                let got = ordered(backend, &x, &weight, y);
                for (at, got) in got.iter().enumerate() {
                    let (row, j) = (at / n, at % n);
                    let want = (0..k).fold(0.0_f32, |sum, at| {
                        let w = weight.element(j, at) * weight.scale(j, at);
                        x[row * k + at].to_f32().mul_add(w, sum)
                    });
                    assert_eq!(got.to_bits(), want.to_bits(), "{} by {format}", X::FLOAT);
                }
            }
        }
    }
    let Some((backend, _turn)) = open_with("matmuls", Accumulation::Ordered) else {
        return;
    };
    assert_eq!(backend.accuracy().accumulation, Accumulation::Ordered);
    sweep::<f32>(&backend);
    sweep::<f16>(&backend);
    sweep::<bf16>(&backend);
}

/// y in f32 as a backend chooses.
fn ordered<X: Element>(
    backend: &CudaBackend,
    x: &[X],
    weight: &HostWeight<'_>,
    mut y: CudaBuffer,
) -> Vec<f32> {
    let [n, k] = [weight.rows(), weight.cols()];
    let t = x.len() / k;
    let x = filled(backend, bytemuck::cast_slice(x));
    let loaded = backend.load_weight(std::slice::from_ref(weight)).unwrap();
    let from = Tensor::contiguous(CudaBackend::view(&x), X::FLOAT, t, k);
    let to = TensorMut::contiguous(CudaBackend::view_mut(&mut y), Float::F32, t, n);
    backend.matmul(from, &loaded, to).unwrap();
    let y = bytes(backend, &y);
    y.chunks_exact(4)
        .map(bytemuck::pod_read_unaligned)
        .collect()
}

/// A NaN stays in its row of w, or of x.
#[test]
fn a_nan_stays_in_its_row() {
    for route in [Route::Rows, Route::Tiles, Route::Ordered] {
        let Some((backend, _turn)) = open("matmuls") else {
            return;
        };
        for format in FORMATS {
            let (n, k, mut at) = (40, 192, 0);
            let nan = 17 * k + 100;
            let value = || {
                at += 1;
                if at == nan + 1 { f32::NAN } else { 0.5 }
            };
            let weight = new_weight([n, k], format, value, || 2.0);
            for t in [1, 12, 70] {
                let mut x = vec![bf16::from_f32(1.0); t * k];
                x[(t - 1) * k + 3] = bf16::NAN;
                let y = matmul((&backend, route), &x, &weight, 0).unwrap();
                for (at, y) in y.iter().enumerate() {
                    let want = at % n == 17 || at / n == t - 1;
                    assert_eq!(y.is_nan(), want, "{route:?} {format} {at}");
                }
            }
        }
    }
}
