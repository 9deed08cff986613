//! A matmul as dispatches: one for each buffer of the weight and group of tokens.

use swiglu_core::{Error, Float};

use super::plan::{MatmulOperands, MatmulPlan};
use crate::Result;
use crate::device::Device;
use crate::launch::{
    Columns, MatmulCall, Matrix, RowsCall, Window, Workgroups, bind, check_apart, dispatch,
    float_code, in_workgroups,
};
use crate::pipelines::{
    COOPERATIVE_DEPTH, CooperativeFormat, CooperativeKernel, CooperativeTile, Pipelines, ROW_END,
};
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
            exact_in_f16,
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
            exact_in_f16: *exact_in_f16,
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
            call.factors = scales.factors;
            call.exponents = scales.exponents;
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
    let tile = CooperativeTile::Wide;
    let full = |chunk: &Chunk| chunk.rows >= tile.shape().rows as usize;
    let k = u32::try_from(weight.form.cols).unwrap_or(0);
    if let Some(format) = CooperativeFormat::of(weight.form.format)
        && weight.exact_in_f16
        && pipelines.facts.cooperative_tile.is_none()
        && k.is_multiple_of(COOPERATIVE_DEPTH)
        && weight.chunks.iter().any(full)
    {
        let kernel = CooperativeKernel {
            weight: format,
            tile,
        };
        weight.dense = Some(pipelines.dense(device, kernel, k)?);
    }
    Ok(())
}

/// Records rows of x in f16, which end with their exponents, for the dispatch that follows: the scratch memory that
/// they begin, and their bytes.
pub(crate) fn record_halves(
    (device, pipelines): (&Device, &Pipelines),
    pass: &mut wgpu::ComputePass<'_>,
    (rows, x): (&RowsCall, Window<'_>),
) -> Result<(wgpu::Buffer, u64)> {
    let row = 2 * (u64::from(rows.k) + ROW_END as u64);
    let bytes = u64::from(rows.rows) * row;
    let scratch = pipelines.scratch.of(device, bytes)?;
    let bindings = [x, x, Window::first(&scratch, bytes)].map(|window| window.binding());
    let group = bind(device, &pipelines.activation_bindings, bindings)?;
    let [across, down] = in_workgroups(&pipelines.facts.bindings, rows.rows);
    let pipeline = pipelines.rows_as_f16()?;
    dispatch(pass, pipeline, &group, rows, [across, down, 1]);
    Ok((scratch, bytes))
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
            let (mut call, [x, y]) = matmul.call(pipelines, (token, tokens))?;
            let pipeline = pipelines.matmul(step.kernel, weight.dense.as_ref())?;
            let on = (device, pipelines);
            if step.kernel.takes_rows_as_f16() {
                let rows = RowsCall {
                    rows: call.tokens,
                    k: call.k,
                    offset: call.x_offset,
                    stride: call.x_stride,
                };
                let (scratch, bytes) = record_halves(on, pass, (&rows, x))?;
                call.x_offset = 0;
                call.x_stride = call.k + ROW_END as u32;
                let ends = [Window::first(&scratch, bytes), y];
                matmul.dispatch(on, pass, pipeline, (&call, ends), step.workgroups)?;
            } else {
                matmul.dispatch(on, pass, pipeline, (&call, [x, y]), step.workgroups)?;
            }
        }
    }
    Ok(())
}
