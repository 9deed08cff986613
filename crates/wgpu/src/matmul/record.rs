//! A matmul as dispatches: one for each buffer of the weight and group of tokens.

use swiglu_core::{Error, Float};

use super::plan::{MatmulOperands, MatmulPlan};
use crate::Result;
use crate::device::Device;
use crate::launch::{
    Columns, MatmulCall, Matrix, Window, Workgroups, bind, check_apart, dispatch, float_code,
};
use crate::pipelines::{COOPERATIVE_DEPTH, COOPERATIVE_TILE, DeviceFormat, Pipelines};
use crate::weight::{Chunk, Weight};

/// x, a buffer of the weight, and the columns of y that its rows make.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkMatmul<'a> {
    x: Columns<'a>,
    x_float: Float,
    weight: &'a Weight,
    chunk: &'a Chunk,
    y: Columns<'a>,
    y_float: Float,
    tokens: usize,
}

impl<'a> ChunkMatmul<'a> {
    /// `y` is that of the whole matmul, or of what follows it.
    pub(super) fn new(
        x: &Matrix<'a>,
        (weight, chunk): (&'a Weight, &'a Chunk),
        y: &Matrix<'a>,
        (from, cols): (usize, usize),
    ) -> Result<Self> {
        Ok(Self {
            x: x.columns()?,
            x_float: x.float,
            weight,
            chunk,
            y: y.columns()?.part(from, cols),
            y_float: y.float,
            tokens: x.layout.rows,
        })
    }

    pub(super) fn operands(&self) -> MatmulOperands {
        let Weight {
            form,
            has_nan_codes,
            dense,
            ..
        } = self.weight;
        MatmulOperands {
            tokens: self.tokens,
            x: self.x.rows,
            x_float: self.x_float,
            y: self.y.rows,
            y_float: self.y_float,
            weight: form.format,
            k: form.cols,
            rows: self.chunk.rows,
            plain_codes: !has_nan_codes && form.scale_shift().is_some(),
            dense: dense.is_some(),
        }
    }

    /// The call on so many tokens from one on, and the windows of x and y.
    pub(super) fn call(
        &self,
        pipelines: &Pipelines,
        (token, tokens): (usize, usize),
    ) -> Result<(MatmulCall, [Window<'a>; 2])> {
        let limits = &pipelines.facts.bindings;
        let x = self.x.window(limits, token, tokens)?;
        let y = self.y.window(limits, token, tokens)?;
        let too_large = |n: usize| Error::argument("x", "fewer than 2^32 tokens and columns", n);
        let int = |n: usize| u32::try_from(n).map_err(|_| too_large(n));
        let form = &self.weight.form;
        let mut call = MatmulCall {
            tokens: int(tokens)?,
            rows: int(self.chunk.rows)?,
            k: int(form.cols)?,
            row_vectors: int(form.row_bytes() / 16)?,
            x_float: float_code(self.x_float),
            x_offset: x.offset,
            x_stride: self.x.rows.stride(),
            y_float: float_code(self.y_float),
            y_offset: y.offset,
            y_stride: self.y.rows.stride(),
            ..MatmulCall::default()
        };
        if let Some(scales) = &self.chunk.scales {
            [call.block_rows, call.block_cols] = scales.block;
            call.scale_cols = scales.cols;
            call.scale_skip = scales.skip;
            call.scale_shift = form.scale_shift().unwrap_or(0);
        }
        call.result_scale = self.weight.lift.undone();
        Ok((call, [x, y]))
    }

    /// Records one call, from the window of x to that of y.
    pub(super) fn dispatch(
        &self,
        (device, pipelines): (&Device, &Pipelines),
        pass: &mut wgpu::ComputePass<'_>,
        pipeline: &wgpu::ComputePipeline,
        (call, ends): (&MatmulCall, [Window<'_>; 2]),
        workgroups: Workgroups,
    ) -> Result<()> {
        let chunk = self.chunk;
        let scales = chunk.scales.as_ref().map_or(&chunk.data, |s| &s.data);
        let [x, y] = ends;
        let bind_group = chunk.bound.last_or(ends, || {
            let bindings = [
                x.binding(),
                chunk.data.raw().as_entire_buffer_binding(),
                scales.raw().as_entire_buffer_binding(),
                y.binding(),
            ];
            bind(device, pipelines.matmul_bindings()?, bindings)
        })?;
        dispatch(pass, pipeline, &bind_group, call, workgroups);
        Ok(())
    }
}

/// Builds what matmuls by this weight want beside the kernels that are there.
pub(crate) fn prepare(
    (device, pipelines): (&Device, &Pipelines),
    weight: &mut Weight,
) -> Result<()> {
    let full = |chunk: &Chunk| chunk.rows >= COOPERATIVE_TILE as usize;
    let k = u32::try_from(weight.form.cols).unwrap_or(0);
    if pipelines.facts.cooperative
        && weight.form.format == DeviceFormat::F16
        && k.is_multiple_of(COOPERATIVE_DEPTH)
        && weight.chunks.iter().any(full)
    {
        weight.dense = Some(pipelines.dense(device, k)?);
    }
    Ok(())
}

/// Records y = x · wᵀ.
pub(crate) fn record(
    (device, pipelines): (&Device, &Pipelines),
    pass: &mut wgpu::ComputePass<'_>,
    x: &Matrix<'_>,
    weight: &Weight,
    y: &Matrix<'_>,
) -> Result<()> {
    let facts = &pipelines.facts;
    check_apart(facts, (y.name, y.view), x.view)?;
    for chunk in &weight.chunks {
        let columns = (chunk.first_row, chunk.rows);
        let matmul = ChunkMatmul::new(x, (weight, chunk), y, columns)?;
        let plan = MatmulPlan::new(facts, &matmul.operands());
        for (token, tokens, step) in plan.dispatches() {
            let (call, ends) = matmul.call(pipelines, (token, tokens))?;
            let pipeline = pipelines.matmul(step.kernel, weight.dense.as_ref())?;
            let (on, call) = ((device, pipelines), (&call, ends));
            matmul.dispatch(on, pass, pipeline, call, step.workgroups)?;
        }
    }
    Ok(())
}
