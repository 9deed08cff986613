//! The calls that bring rows together, or widen what a quantization leaves of them.

use cudarc::driver::sys;
use swiglu_core::{Error as CoreError, Experts, Quantization, Routes, ScaleFormat};

use super::{
    call::{MOST_BLOCKS, Moe, side},
    plan::{Half, THREADS},
};
use crate::{
    buffer::CudaBuffer,
    error::Result,
    launch::params::{Divisor, ExpertsParams, GatherParams, WidenParams},
    matmul::y_type,
    view::RawMatrix,
    weight::{CudaWeight, stack::not_stacked},
};

impl Moe {
    /// Enqueues the gathering of a half's rows.
    pub(super) unsafe fn gather(
        &self,
        stream: sys::CUstream,
        half: Half,
        from: &RawMatrix,
        to: &RawMatrix,
        of: &ExpertsParams,
    ) -> Result<()> {
        let kernel = self.kernels.gather.ok_or_else(not_stacked)?;
        let params = GatherParams {
            from: from.first(),
            to: to.first(),
            offsets: of.offsets,
            sorted: if half == Half::Gated { of.sorted } else { 0 },
            from_stride: from.layout.stride as u64,
            columns: of.k,
            first: of.first,
            experts: of.experts,
            top_k: of.top_k,
        };
        let blocks = [to.layout.rows.clamp(1, MOST_BLOCKS) as u32, 1];
        // SAFETY: by the callers' contracts.
        unsafe { self.launch(stream, kernel, (blocks, THREADS, 0), &params) }
    }

    /// Enqueues rows as a quantization leaves them, as bf16.
    ///
    /// # Safety
    /// As [`swiglu_core::Quantize::quantize`] has it of views: both matrices lie at their addresses, of one shape.
    pub(crate) unsafe fn widen_rows(
        &self,
        stream: sys::CUstream,
        quant: &Quantization,
        from: &RawMatrix,
        to: &RawMatrix,
    ) -> Result<()> {
        self.bind()?;
        // SAFETY: by this function's contract.
        unsafe { self.widen(stream, quant, from, to, from.layout.rows, None) }
    }

    /// Enqueues rows as a quantization leaves them, as bf16: all, or those of some experts.
    pub(super) unsafe fn widen(
        &self,
        stream: sys::CUstream,
        quant: &Quantization,
        from: &RawMatrix,
        to: &RawMatrix,
        rows: usize,
        own: Option<(&Experts<CudaWeight>, &Routes<CudaBuffer>)>,
    ) -> Result<()> {
        let columns = from.layout.cols;
        let groups = quant.groups(columns);
        let all = rows.checked_mul(groups).filter(|&n| n < 1 << 31);
        let all = all.ok_or_else(|| {
            let expected = "fewer than 2^31 groups";
            CoreError::argument("x", expected, format!("{rows} rows of {groups}"))
        })?;
        let range = own.map(|(experts, _)| experts.shape().range.clone());
        let params = WidenParams {
            from: from.first(),
            to: to.first(),
            offsets: own.map_or(0, |(_, routes)| routes.offsets.address()),
            from_stride: from.layout.stride as u64,
            to_stride: to.layout.stride as u64,
            rows: side("x", rows)?,
            columns: side("x", columns)?,
            groups: groups as u32,
            by_groups: Divisor::new(groups as u32),
            group: quant.group() as u32,
            first: range.as_ref().map_or(0, |r| r.start as u32),
            experts: range.as_ref().map_or(0, |r| r.len() as u32),
            power_of_two: u32::from(quant.format() == ScaleFormat::E8M0),
            from_type: y_type(from.float),
            floor: quant.floor(),
        };
        let warps = THREADS as usize / 32;
        let blocks = [all.div_ceil(warps).min(MOST_BLOCKS) as u32, 1];
        // SAFETY: by the callers' contracts; a group is read before it is written.
        unsafe { self.launch(stream, self.kernels.widen, (blocks, THREADS, 0), &params) }
    }
}
