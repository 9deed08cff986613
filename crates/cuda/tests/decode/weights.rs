//! Weights that are packed.

use swiglu_conformance::inputs::Numbers;
use swiglu_core::{Backend, Float, HostWeight, Request, ScaleFormat, Shape, WeightFormat};
use swiglu_cuda::CudaBackend;

use crate::common::sums::{fp8, new_weight};

pub const FORMATS: [WeightFormat; 4] = [
    fp8(ScaleFormat::E8M0, [128, 128]),
    fp8(ScaleFormat::F32, [128, 128]),
    fp8(ScaleFormat::E8M0, [32, 32]),
    fp8(ScaleFormat::F32, [8, 96]),
];

/// Whether the device has decode steps; says so by name where it has none.
pub fn has_steps(backend: &CudaBackend) -> bool {
    let request = Request::Matmul {
        x: Float::BF16,
        weight: WeightFormat::DEEPSEEK_V4,
        y: Float::BF16,
    };
    let shape = Shape {
        rows: 1,
        cols: 4096,
        depth: 2048,
    };
    let plan = backend.plan(&request, &shape).unwrap();
    let there = plan.starts_with("decode_plain");
    if !there {
        swiglu_conformance::may_skip("cuda", "no kernels of packed weights", "decode steps");
    }
    there
}

/// Whole numbers times powers of two: every sum is exact in f32.
pub fn exact(shape: [usize; 2], format: WeightFormat, seed: u64) -> HostWeight<'static> {
    let (mut small, mut powers) = (Numbers::new(seed), Numbers::new(seed + 99));
    let value = || small.below(7) as f32 - 3.0;
    new_weight(shape, format, value, || {
        2f32.powi(powers.below(4) as i32 - 2)
    })
}

/// Numbers of any mantissa.
pub fn random(shape: [usize; 2], format: WeightFormat, seed: u64) -> HostWeight<'static> {
    let (mut any, mut scales) = (Numbers::new(seed), Numbers::new(seed + 98));
    let value = || any.within(2.0);
    new_weight(shape, format, value, || match format.scaling() {
        Some((ScaleFormat::F32, _)) => 0.01 * (1.0 + scales.within(0.9)),
        Some((ScaleFormat::E8M0, _)) | None => 2f32.powi(scales.below(9) as i32 - 6),
    })
}
