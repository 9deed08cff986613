//! Tests of a backend's kernels that take some of them away.

mod cooperative;
mod experts;

use std::sync::Arc;

use swiglu_core::{
    Backend, Float, HostWeight, Matmul, ScaleFormat, Tensor, TensorMut, WeightFormat, bf16, f16,
};

use crate::WgpuBackend;
use crate::device::Facts;
use crate::pipelines::{DeviceFormat, LaneSums, Pipelines, Tier};

const TOKENS: usize = 265;
const ROWS: usize = 259;

/// Whole numbers from -3 to 3 in any type.
fn numbers(float: Float, count: usize) -> Vec<u8> {
    let all = (0..count).map(|i| (i * 5 % 7) as f32 - 3.0);
    match float {
        Float::F32 => all.flat_map(f32::to_le_bytes).collect(),
        Float::F16 => all.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
        Float::BF16 => all.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
    }
}

/// A weight of such numbers, and its scales if it has codes.
fn weight(format: DeviceFormat, cols: usize) -> HostWeight<'static> {
    let shape = [ROWS, cols];
    let plain = |float: Float| {
        let data = numbers(float, ROWS * cols);
        HostWeight::owned(shape, WeightFormat::Float(float), data, Vec::new())
    };
    let made = match format {
        DeviceFormat::F32 | DeviceFormat::F16 | DeviceFormat::BF16 => plain(format.usual_x()),
        DeviceFormat::E4m3 => {
            let codes = (0..ROWS * cols).map(|i| (i * 5 % 7) as f32 - 3.0);
            let codes = codes.map(|x| swiglu_core::E4M3::from_f32_saturating(x).0);
            let blocks = ROWS.div_ceil(32) * cols.div_ceil(32);
            let scales = (0..blocks).map(|i| 126 + (i % 3) as u8).collect();
            let format = WeightFormat::Fp8 {
                scales: ScaleFormat::E8M0,
                block: [32, 32],
            };
            HostWeight::owned(shape, format, codes.collect(), scales)
        }
        DeviceFormat::Fp4 => {
            let byte = |i: usize| (i * 5 % 251) as u8;
            let scales = (0..ROWS * cols / 32).map(|i| 126 + (i % 3) as u8);
            let codes = (0..ROWS * cols / 2).map(byte).collect();
            HostWeight::owned(shape, WeightFormat::Fp4, codes, scales.collect())
        }
    };
    made.unwrap()
}

/// The bytes of a matmul in f32 of whole numbers, which is exact, with columns of the weight.
fn multiplied(backend: &WgpuBackend, (format, cols): (DeviceFormat, usize)) -> Vec<u8> {
    let float = format.usual_x();
    let loaded = backend.load_weight(&[weight(format, cols)]).unwrap();
    let x = numbers(float, TOKENS * cols);
    let on_device = swiglu_conformance::filled(backend, &x).unwrap();
    let mut y = backend.alloc(TOKENS * ROWS * 4).unwrap();
    let x = Tensor::contiguous(WgpuBackend::view(&on_device), float, TOKENS, cols);
    let to = TensorMut::contiguous(WgpuBackend::view_mut(&mut y), Float::F32, TOKENS, ROWS);
    backend.matmul(x, &loaded, to).unwrap();
    let got = swiglu_conformance::contents(backend, &y).unwrap();
    assert!(got.iter().any(|byte| *byte != 0), "{format}");
    got
}

/// Software takes small tiles with two buffers: here it is made to take others too.
#[test]
fn tiles_of_any_size_and_buffers_are_equal() {
    let mut backend = match WgpuBackend::builder().allow_software(true).open() {
        Ok(backend) => backend,
        Err(reason) => return swiglu_conformance::may_skip("wgpu", &reason.to_string(), "tiles"),
    };
    // Of large tiles' steps 80 columns are an even number, 72 an odd one.
    let cases: Vec<_> = DeviceFormat::ALL
        .into_iter()
        .flat_map(|format| match format {
            DeviceFormat::Fp4 => [64, 96].map(|cols| (format, cols)),
            _ => [80, 72].map(|cols| (format, cols)),
        })
        .collect();
    let expected: Vec<_> = cases
        .iter()
        .map(|case| multiplied(&backend, *case))
        .collect();
    for two_buffers in [true, false] {
        let tier = Tier {
            sums: LaneSums::Workgroup,
            e4m3_as_f16: false,
            two_buffers,
            expert_buffers: 1,
        };
        for least in [1, u32::MAX] {
            let mut facts = Facts::of(backend.device(), false);
            facts.least_large_tiles = least;
            let pipelines = Pipelines::new(backend.device(), tier, facts, &Arc::default(), None);
            backend.pipelines = Arc::new(pipelines.unwrap());
            for (case, expected) in cases.iter().zip(&expected) {
                let got = multiplied(&backend, *case);
                assert!(got == *expected, "{case:?}, {least}, {two_buffers}");
            }
        }
    }
}
