//! The call of matmuls whose both sides are codes.

use cudarc::driver::sys;
use swiglu_core::{Quantization, ScaleFormat, ScaleLayout, ScaleOrder};

use super::{
    super::{
        codes::{CodesPlan, CodesProblem},
        library::{LibraryShape, alignment},
    },
    Matmuls,
};
use crate::{
    error::Result,
    quant::{Quantizers, RawQuantized},
    view::RawMatrix,
    weight::{CudaWeight, WeightType},
};

impl Matmuls {
    /// Enqueues y = (code · scale) · wᵀ on FP8 tensor cores, where these can; else false, and
    /// `scratch` may hold anything. Which calls these are is [`CodesPlan`]'s.
    ///
    /// # Safety
    /// As [`Self::matmul`]; `scratch` is \[T, K\] of 16 bits without gaps.
    #[allow(clippy::too_many_arguments)]
    pub(crate) unsafe fn matmul_codes(
        &self,
        stream: sys::CUstream,
        quantizers: &Quantizers,
        quant: &Quantization,
        x: &RawQuantized,
        weight: &CudaWeight,
        scratch: &RawMatrix,
        y: &RawMatrix,
    ) -> Result<bool> {
        self.check_weight(weight)?;
        let Some(blocks) = weight.block_scales() else {
            return Ok(false);
        };
        let (t, y_stride) = (x.codes_layout.rows, y.layout.stride * y.float.size());
        let starts = x.first() | y.first() | (x.codes_layout.stride | y_stride) as u64;
        let problem = CodesProblem {
            t,
            n: weight.rows,
            k: weight.cols,
            group: quant.group(),
            w_in_blocks: true,
            aligned: starts.is_multiple_of(16),
            scales_in_columns: x.scales_layout == columns(t, x.scales_layout.groups)
                && x.scales.is_multiple_of(16),
            scratch_aligned: scratch.first().is_multiple_of(16),
        };
        let Some(plan) = CodesPlan::new(&problem, &self.facts) else {
            return Ok(false);
        };
        x.check_places()?;
        self.bind()?;
        let own = (weight, blocks.address());
        let scales = match (plan, &self.loaded.codes) {
            (CodesPlan::Own(step), Some(kernels)) => {
                // SAFETY: by this function's contract; the plan is of this call.
                unsafe { kernels.multiply(stream, step, x, own, y) }?;
                return Ok(true);
            }
            (CodesPlan::Tiles(step), Some(kernels)) => {
                // SAFETY: as above.
                unsafe { kernels.multiply_tiles(stream, step, x, own, y) }?;
                return Ok(true);
            }
            (CodesPlan::Own(_) | CodesPlan::Tiles(_), None) => return Ok(false),
            (CodesPlan::ScalesInPlace, _) => x.scales,
            (CodesPlan::ScalesInScratch, _) => {
                // SAFETY: by this function's contract; T · K / 128 floats are less than T · K
                // halves.
                if !unsafe { quantizers.scales_to_columns(stream, quant, x, scratch)? } {
                    return Ok(false);
                }
                scratch.first()
            }
        };
        let (Ok(library), Some(workspace)) = (&self.loaded.library, &self.workspace) else {
            return Ok(false);
        };
        let addresses = [weight.data.address(), x.first(), y.first()];
        let shape = LibraryShape {
            t,
            n: weight.rows,
            k: weight.cols,
            input: WeightType::E4m3,
            output: y.float,
            x_stride: x.codes_layout.stride,
            y_stride: y.layout.stride,
            alignments: addresses.map(alignment),
        };
        let scales = Some([blocks.address(), scales]);
        // SAFETY: by this function's contract.
        unsafe { library.matmul(shape, addresses, scales, workspace, stream) }
    }
}

/// Scales as cublasLt reads them.
const fn columns(rows: usize, groups: usize) -> ScaleLayout {
    ScaleLayout::contiguous(ScaleFormat::F32, ScaleOrder::ColumnMajor, rows, groups)
}
