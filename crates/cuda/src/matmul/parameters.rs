//! Calls as the parameters that all our kernels of matmuls take.

use swiglu_core::Float;

use crate::{
    launch::params::{Divisor, MatmulParams},
    view::RawMatrix,
    weight::CudaWeight,
};

/// Threads of a block of each kernel.
pub(super) const THREADS: u32 = 256;

/// `YType` of `matmul.cuh`.
pub(crate) const fn y_type(float: Float) -> u32 {
    match float {
        Float::F32 => 0,
        Float::F16 => 1,
        Float::BF16 => 2,
    }
}

/// y = x · wᵀ, w as the weight has it.
pub(super) fn of_call(x: &RawMatrix, weight: &CudaWeight, y: &RawMatrix) -> MatmulParams {
    let scales = weight.scales.as_ref();
    MatmulParams {
        x: x.first(),
        w: weight.data.address(),
        y: y.first(),
        scales: scales.map_or(0, |s| s.values.address()),
        scale_rows: scales.map_or(0, |s| s.rows.address()),
        x_stride: x.layout.stride as u64,
        y_stride: y.layout.stride as u64,
        t: x.layout.rows as u32,
        n: weight.rows as u32,
        k: weight.cols as u32,
        scale_columns: scales.map_or(0, |s| s.columns as u32),
        by_block: Divisor::new(scales.map_or(1, |s| s.block_columns as u32)),
        y_type: y_type(y.float),
    }
}
