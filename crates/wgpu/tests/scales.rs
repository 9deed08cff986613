//! Scales so small that a driver may take them for zero.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

mod common;

use common::open;
use swiglu_core::{
    Backend, E4M3, Float, HostWeight, Matmul, ScaleFormat, Tensor, TensorMut, WeightFormat,
};
use swiglu_wgpu::WgpuBackend;

const ROWS: usize = 40;

/// The bytes of scales of each format: the least ones, and some that are not small beside them.
fn scales(format: ScaleFormat, count: usize, mixed: bool) -> Vec<u8> {
    let one = |i: usize| match (format, mixed && i % 2 == 1) {
        (ScaleFormat::E8M0, false) => vec![0],
        (ScaleFormat::E8M0, true) => vec![110],
        (ScaleFormat::F32, false) => 1e-40_f32.to_le_bytes().to_vec(),
        (ScaleFormat::F32, true) => 3e-6_f32.to_le_bytes().to_vec(),
    };
    (0..count).flat_map(one).collect()
}

/// Sums that are normal numbers come out of weights that, or whose scales, are not: by each kernel
/// (few tokens, many, x of the usual type or not, whole vectors or not), and where a block's odd
/// width makes the weight be decoded when it is loaded.
#[test]
fn a_weight_of_the_least_scales_is_not_zero() {
    let Some(backend) = open(false) else {
        return;
    };
    for format in [ScaleFormat::E8M0, ScaleFormat::F32] {
        for (block, cols) in [([8, 32], 96), ([8, 20], 90), ([ROWS, 96], 96)] {
            for (tokens, x_float) in [
                (1, Float::BF16),
                (7, Float::BF16),
                (3, Float::F32),
                (40, Float::BF16),
                (40, Float::F32),
            ] {
                for mixed in [false, true] {
                    case(backend, (format, block, cols), (tokens, x_float), mixed);
                }
            }
        }
    }
}

fn case(
    backend: &WgpuBackend,
    (format, block, cols): (ScaleFormat, [usize; 2], usize),
    (tokens, x_float): (usize, Float),
    mixed: bool,
) {
    let blocks = ROWS.div_ceil(block[0]) * cols.div_ceil(block[1]);
    let stored = scales(format, blocks, mixed);
    // The least code too, 2^-9, in whole rows.
    let code = |i: usize| match i / cols % 5 {
        0 => 1,
        row => E4M3::from_f32_saturating((i * 5 % 7) as f32 - 3.0 + row as f32).0,
    };
    let codes: Vec<u8> = (0..ROWS * cols).map(code).collect();
    let weight_format = WeightFormat::Fp8 {
        scales: format,
        block,
    };
    let host = HostWeight::new([ROWS, cols], weight_format, &codes, &stored).unwrap();
    let weight = backend.load_weight(std::slice::from_ref(&host)).unwrap();
    let x: Vec<f32> = (0..tokens * cols)
        .map(|i| ((i * 3 % 11) as f32 - 4.0) * 2f32.powi(40))
        .collect();
    let bytes: Vec<u8> = match x_float {
        Float::F32 => bytemuck::cast_slice(&x).to_vec(),
        _ => x
            .iter()
            .flat_map(|x| half::bf16::from_f32(*x).to_le_bytes())
            .collect(),
    };
    let on_device = swiglu_conformance::filled(backend, &bytes).unwrap();
    let mut y = backend.alloc(tokens * ROWS * 4).unwrap();
    let from = Tensor::contiguous(WgpuBackend::view(&on_device), x_float, tokens, cols);
    let to = TensorMut::contiguous(WgpuBackend::view_mut(&mut y), Float::F32, tokens, ROWS);
    backend.matmul(from, &weight, to).unwrap();
    let got: Vec<u8> = swiglu_conformance::contents(backend, &y).unwrap();
    let got: &[f32] = bytemuck::cast_slice(&got);
    let mut line = vec![0.0; cols];
    for row in 0..ROWS {
        host.decode_row(row, &mut line);
        for token in 0..tokens {
            let terms = line
                .iter()
                .zip(&x[token * cols..])
                .map(|(w, x)| w * f64::from(*x));
            let (sum, size) = terms.fold((0.0, 0.0), |(s, a): (f64, f64), t| (s + t, a + t.abs()));
            let got = f64::from(got[token * ROWS + row]);
            // A few roundings of terms and sums in f32, and nothing of the size of a term.
            let bound = size * 2f64.powi(-22);
            assert!(
                (got - sum).abs() <= bound && size > 0.0,
                "{weight_format} {cols}, T = {tokens} in {x_float}, {mixed}: row {row} is {got:e}, \
                 not {sum:e}"
            );
        }
    }
}
