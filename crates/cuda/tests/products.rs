//! Every way that a product may go, against sums in f64.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

use half::{bf16, f16};
use swiglu_core::{
    Backend, BlockScales, DType, E4M3, Element, HostWeight, Matmul, RowLayout, Tensor, TensorMut,
};
use swiglu_cuda::{CudaBackend, Route};
use swiglu_testing::inputs::Numbers;

mod common;
use common::open;

type Format = (DType, Option<(DType, [usize; 2])>);

const FORMATS: [Format; 9] = [
    (DType::F32, None),
    (DType::F16, None),
    (DType::BF16, None),
    (DType::F8E4M3, Some((DType::E8M0, [128, 128]))),
    (DType::F8E4M3, Some((DType::F32, [128, 128]))),
    (DType::F8E4M3, Some((DType::E8M0, [32, 32]))),
    (DType::F8E4M3, Some((DType::F32, [1, 96]))),
    (DType::F8E4M3, Some((DType::F32, [48, 64]))),
    (DType::F8E4M3, Some((DType::F32, [200, 2000]))),
];

struct Weight {
    shape: [usize; 2],
    format: Format,
    data: Vec<u8>,
    scales: Vec<u8>,
}

fn push(bytes: &mut Vec<u8>, dtype: DType, x: f32) {
    match dtype {
        DType::F32 => bytes.extend(x.to_le_bytes()),
        DType::F16 => bytes.extend(f16::from_f32(x).to_le_bytes()),
        DType::BF16 => bytes.extend(bf16::from_f32(x).to_le_bytes()),
        DType::F8E4M3 => bytes.push(E4M3::from_f32_saturating(x).0),
        DType::E8M0 => bytes.push((x.to_bits() >> 23) as u8),
    }
}

impl Weight {
    fn new(
        shape: [usize; 2],
        format: Format,
        mut value: impl FnMut() -> f32,
        mut scale: impl FnMut() -> f32,
    ) -> Self {
        let (mut data, mut scales) = (Vec::new(), Vec::new());
        (0..shape[0] * shape[1]).for_each(|_| push(&mut data, format.0, value()));
        if let Some((dtype, block)) = format.1 {
            let blocks = shape[0].div_ceil(block[0]) * shape[1].div_ceil(block[1]);
            (0..blocks).for_each(|_| push(&mut scales, dtype, scale()));
        }
        Self {
            shape,
            format,
            data,
            scales,
        }
    }

    fn view(&self) -> HostWeight<'_> {
        let scales = self.format.1.map(|(dtype, block)| BlockScales {
            data: &self.scales,
            dtype,
            block,
        });
        let [n, k] = self.shape;
        HostWeight::new(n, k, self.format.0, &self.data, scales).unwrap()
    }
}

/// y in f32 of rows of x that lie `gap` elements apart; `None` where the route does not take it.
fn product<X: Element>(
    (backend, route): (&CudaBackend, Route),
    x: &[X],
    weight: &Weight,
    gap: usize,
) -> Option<Vec<f32>> {
    let [n, k] = weight.shape;
    let t = x.len() / k;
    let mut spread = vec![X::from_f32(f32::NAN); t * (k + gap)];
    for (to, from) in spread.chunks_mut(k + gap).zip(x.chunks(k)) {
        to[..k].copy_from_slice(from);
    }
    let mut buffer = backend.alloc(spread.len() * size_of::<X>()).unwrap();
    let bytes: &[u8] = bytemuck::cast_slice(&spread);
    backend.upload(&mut buffer, bytes).unwrap();
    let stride = n + 3;
    let mut y = backend.alloc(t * stride * 4).unwrap();
    let poison = vec![0x7fa5_a5a5_u32; t * stride];
    backend
        .upload(&mut y, bytemuck::cast_slice(&poison))
        .unwrap();
    let loaded = backend.load_weight(&[weight.view()]).unwrap();
    let from = Tensor {
        buffer: &buffer,
        dtype: X::DTYPE,
        layout: RowLayout::contiguous(t, k).with_stride(k + gap),
    };
    let to = TensorMut {
        buffer: &mut y,
        dtype: DType::F32,
        layout: RowLayout::contiguous(t, n).with_stride(stride),
    };
    backend.matmul_by(Some(route), &from, &loaded, to).ok()?;
    let mut got = vec![0.0_f32; t * stride];
    backend
        .download(&y, bytemuck::cast_slice_mut(&mut got))
        .unwrap();
    for row in got.chunks(stride) {
        let untouched = row[n..].iter().all(|y| y.to_bits() == 0x7fa5_a5a5);
        assert!(untouched, "elements behind a row were written");
    }
    Some(got.chunks(stride).flat_map(|r| r[..n].to_vec()).collect())
}

/// Compares with sums in f64, give or take what k additions in f32 lose, times `slack`. Returns
/// whether the route took the product.
fn compare<X: Element>(way: (&CudaBackend, Route), x: &[X], weight: &Weight, slack: f64) -> bool {
    let [n, k] = weight.shape;
    let gap = 16;
    let Some(got) = product(way, x, weight, gap) else {
        return false;
    };
    let mut row = vec![0.0; k];
    for j in 0..n {
        weight.view().decode_row(j, &mut row);
        for (t, x) in x.chunks(k).enumerate() {
            let terms = x.iter().zip(&row).map(|(x, w)| f64::from(x.to_f32()) * w);
            let (sum, size) = terms.fold((0.0, 0.0), |(s, a), p: f64| (s + p, a + p.abs()));
            let lost = slack * (k as f64 + 4.0) * f64::from(f32::EPSILON) / 2.0 * size;
            let error = (f64::from(got[t * n + j]) - sum).abs();
            assert!(
                error <= lost,
                "{:?}, {} by {:?} of {:?}, y[{t}, {j}]: {} for {sum}",
                way.1,
                X::DTYPE,
                weight.format,
                weight.shape,
                got[t * n + j],
            );
        }
    }
    true
}

const ROWS: [usize; 9] = [1, 2, 8, 9, 17, 33, 64, 65, 130];

/// Whole numbers, whose sums are exact in any order, and numbers of any mantissa: which of the
/// products of each pair of types the route took, out of all.
fn sweep<X: Element>(way: (&CudaBackend, Route)) -> (usize, usize) {
    let (mut taken, mut all) = (0, 0);
    for (i, format) in FORMATS.into_iter().enumerate() {
        for (n, k) in [(200, 448), (16, 1040), (130, 64)] {
            let mut small = Numbers::new(i as u64);
            let mut powers = Numbers::new(99);
            let exact = Weight::new(
                [n, k],
                format,
                || small.below(7) as f32 - 3.0,
                || 2f32.powi(powers.below(4) as i32 - 2),
            );
            let (mut any, mut scales) = (Numbers::new(7 + i as u64), Numbers::new(98));
            let random = Weight::new(
                [n, k],
                format,
                || any.within(2.0),
                || match format.1 {
                    Some((DType::F32, _)) => 0.01 * (1.0 + scales.within(0.9)),
                    _ => 2f32.powi(scales.below(9) as i32 - 6),
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
    let Some((backend, _turn)) = open("products") else {
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
    let Some((backend, _turn)) = open("products") else {
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
fn the_way_without_tensor_cores() {
    let Some((backend, _turn)) = open("products") else {
        return;
    };
    let (taken, all) = sweep::<bf16>((&backend, Route::Any));
    assert_eq!(taken, all);
    // An odd number of columns, and blocks that no step fits into.
    let mut numbers = Numbers::new(1);
    let format = (DType::F8E4M3, Some((DType::F32, [5, 7])));
    let weight = Weight::new([33, 101], format, || numbers.within(2.0), || 0.75);
    let x: Vec<f16> = Numbers::new(2).values(19 * 101, 4.0);
    assert!(compare((&backend, Route::Any), &x, &weight, 1.0));
}

/// Weights decoded first: as exact, since it is done for powers of two alone.
#[test]
fn decoded_weights() {
    let Some((backend, _turn)) = open("products") else {
        return;
    };
    let (taken, all) = sweep::<bf16>((&backend, Route::Decode));
    // Of FP8, those whose scales are powers of two, as they are in all of the first kind.
    assert_eq!(taken, (6 + 2) * all / 18);
}

/// A NaN stays in its row of w, or of x.
#[test]
fn a_nan_stays_in_its_row() {
    for route in [Route::Rows, Route::Tiles, Route::Any] {
        let Some((backend, _turn)) = open("products") else {
            return;
        };
        for format in FORMATS {
            let (n, k, mut at) = (40, 192, 0);
            let nan = 17 * k + 100;
            let value = || {
                at += 1;
                if at == nan + 1 { f32::NAN } else { 0.5 }
            };
            let weight = Weight::new([n, k], format, value, || 2.0);
            for t in [1, 12, 70] {
                let mut x = vec![bf16::from_f32(1.0); t * k];
                x[(t - 1) * k + 3] = bf16::NAN;
                let y = product((&backend, route), &x, &weight, 0).unwrap();
                for (at, y) in y.iter().enumerate() {
                    let want = at % n == 17 || at / n == t - 1;
                    assert_eq!(y.is_nan(), want, "{route:?} {format:?} {at}");
                }
            }
        }
    }
}
