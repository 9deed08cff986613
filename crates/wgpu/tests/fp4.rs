//! FP4 weights: every byte under every scale, by each kernel.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

mod common;

use std::ops::Range;

use common::open;
use swiglu_core::{
    Backend, Element, Float, HostWeight, Matmul, Tensor, TensorMut, WeightFormat, bf16,
};
use swiglu_wgpu::WgpuBackend;

const TABLE: [f64; 16] = [
    0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
];

/// A row for each scale, which holds every byte.
fn all_bytes(scales: Range<usize>) -> HostWeight<'static> {
    let data = scales.clone().flat_map(|_| 0..=255_u8).collect();
    let stored = scales.clone().flat_map(|scale| [scale as u8; 16]);
    let shape = [scales.len(), 512];
    HostWeight::owned(shape, WeightFormat::Fp4, data, stored.collect()).unwrap()
}

fn multiplied<T: Element>(backend: &WgpuBackend, x: &[T], w: &HostWeight<'_>) -> Vec<f32> {
    let (tokens, rows) = (x.len() / w.cols(), w.rows());
    let weight = backend.load_weight(std::slice::from_ref(w)).unwrap();
    let on_device = swiglu_conformance::filled(backend, bytemuck::cast_slice(x)).unwrap();
    let mut y = backend.alloc(tokens * rows * 4).unwrap();
    let from = Tensor::contiguous(WgpuBackend::view(&on_device), T::FLOAT, tokens, w.cols());
    let to = TensorMut::contiguous(WgpuBackend::view_mut(&mut y), Float::F32, tokens, rows);
    backend.matmul(from, &weight, to).unwrap();
    let bytes: Vec<u8> = swiglu_conformance::contents(backend, &y).unwrap();
    bytemuck::cast_slice(&bytes).to_vec()
}

/// x is `power` at one column of each row and 0 elsewhere, so that y is the weight times that: exact
/// wherever it is a normal number.
fn rows_are_the_table<T: Element>(scales: Range<usize>, batch: usize, power: i32) {
    let Some(backend) = open(false) else { return };
    let w = all_bytes(scales.clone());
    // With every byte in the lower half, and in the upper one.
    for first in (0..512).step_by(batch) {
        let tokens = batch.min(512 - first);
        let mut x = vec![T::default(); tokens * 512];
        for t in 0..tokens {
            x[t * 512 + first + t] = T::from_f64(2f64.powi(power));
        }
        let y = multiplied(backend, &x, &w);
        for (at, &got) in y.iter().enumerate() {
            let (k, scale) = (first + at / scales.len(), scales.start + at % scales.len());
            let byte = k / 2;
            let code = if k % 2 == 0 { byte & 15 } else { byte >> 4 };
            if scale == 255 {
                assert!(got.is_nan(), "code {code} under NaN is {got:e}");
                continue;
            }
            let want = TABLE[code] * 2f64.powi(scale as i32 - 127 + power);
            let got = f64::from(got);
            // What is subnormal a driver may take for 0.
            let subnormal = want.abs() < f64::from(f32::MIN_POSITIVE);
            let same = got == f64::from(want as f32) || subnormal && got == 0.0;
            assert!(
                same,
                "{} tokens in {}: code {code} under {scale} is {got:e}, not {want:e}",
                tokens,
                T::FLOAT
            );
        }
    }
}

#[test]
fn every_byte_under_every_scale_is_what_the_table_says() {
    // GEMVs of one token, of eight and of any type, and tiles.
    rows_are_the_table::<bf16>(0..128, 64, 40);
    rows_are_the_table::<bf16>(128..256, 64, -40);
    rows_are_the_table::<bf16>(0..256, 8, -4);
    rows_are_the_table::<f32>(0..256, 4, -4);
}

#[test]
fn one_token_takes_every_scale() {
    let Some(backend) = open(false) else { return };
    // The largest code alone, which is at 32 columns, in both halves of bytes.
    let w = all_bytes(0..246);
    let x: Vec<bf16> = (0..512)
        .map(|k| {
            let byte = k / 2;
            let code = if k % 2 == 0 { byte & 15 } else { byte >> 4 };
            bf16::from_f64(if code == 7 { 1.0 } else { 0.0 })
        })
        .collect();
    let y = multiplied(backend, &x, &w);
    for (scale, &got) in y.iter().enumerate() {
        assert_eq!(f64::from(got), 32.0 * 6.0 * 2f64.powi(scale as i32 - 127));
    }
}
