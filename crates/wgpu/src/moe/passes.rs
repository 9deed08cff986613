//! What comes before the matmuls of experts and behind them: rows that are quantized, and the sums of tokens.

use std::ops::Range;

use swiglu_core::{Error, Float, Quantization, Routes, ScaleFormat};

use crate::device::Device;
use crate::launch::{
    Matrix, Quant, RequantizeCall, SumCall, bind, dispatch, float_code, in_workgroups,
};
use crate::pipelines::{MoeKernel, MoePipelines, Pipelines, WORKGROUP};
use crate::{Buffer, Result};

/// Where calls are recorded for, and with what.
pub(super) type On<'a> = (&'a Device, &'a Pipelines, &'a MoePipelines);

/// The shaders' number for what there is not.
pub(super) const NONE: u32 = u32::MAX;

pub(super) fn int(n: usize) -> Result<u32> {
    let too_many = |_| Error::argument("x", "fewer than 2^32 rows and columns", n);
    Ok(u32::try_from(n).map_err(too_many)?)
}

/// Elements of a row that a workgroup quantizes.
const PER_WORKGROUP: usize = 8 * WORKGROUP as usize;

/// The rows that a requantization takes: all, or those of a range of experts.
pub(super) type Own<'a> = Option<(&'a Range<usize>, &'a Buffer)>;

/// Records rows to FP8 and back to bf16, from another matrix or in place.
pub(super) fn requantize(
    (device, pipelines, moe): On<'_>,
    pass: &mut wgpu::ComputePass<'_>,
    quant: &Quantization,
    (from, to): (Option<&Matrix<'_>>, &Matrix<'_>),
    own: Own<'_>,
) -> Result<()> {
    let limits = &pipelines.facts.bindings;
    let (all_rows, d) = (to.layout.rows, to.layout.cols);
    if d == 0 {
        return Ok(());
    }
    let columns = to.columns()?;
    let source = from.map(Matrix::columns).transpose()?;
    let float = from.map_or(Float::BF16, |from| from.float);
    let mut call = RequantizeCall {
        row_units: int(d.div_ceil(PER_WORKGROUP))?,
        d: int(d)?,
        from_stride: source.as_ref().unwrap_or(&columns).rows.stride(),
        to_stride: columns.rows.stride(),
        first_expert: NONE,
        end_expert: NONE,
        quant: Quant {
            group: int(quant.group())?,
            groups: int(quant.groups(d))?,
            format: match quant.format() {
                ScaleFormat::F32 => 0,
                ScaleFormat::E8M0 => 1,
            },
            floor: quant.floor(),
            rounded_to: float_code(float),
            ..Quant::default()
        },
        ..RequantizeCall::default()
    };
    if let Some((experts, _)) = own {
        (call.first_expert, call.end_expert) = (int(experts.start)?, int(experts.end)?);
    }
    let in_place = from.is_none();
    let pipeline = moe.get(MoeKernel::Requantize { in_place })?;
    let of_source = source.map_or(usize::MAX, |s| s.rows.rows_per_window(limits));
    let per_dispatch = columns.rows.rows_per_window(limits).min(of_source).max(1);
    for row in (0..all_rows).step_by(per_dispatch) {
        let rows = per_dispatch.min(all_rows - row);
        let to = columns.window(limits, row, rows)?;
        let source = source.map(|s| s.window(limits, row, rows)).transpose()?;
        call.rows = int(rows)?;
        call.first_row = int(row)?;
        call.from_offset = source.map_or(to.offset, |source| source.offset);
        call.to_offset = to.offset;
        let unused = || moe.unused.as_entire_buffer_binding();
        let bindings = [
            source.map_or_else(unused, |source| source.binding()),
            own.map_or_else(unused, |(_, offsets)| {
                offsets.raw().as_entire_buffer_binding()
            }),
            to.binding(),
        ];
        let group = bind(device, &pipelines.activation_bindings, bindings)?;
        let [x, y] = in_workgroups(limits, call.rows.saturating_mul(call.row_units));
        dispatch(pass, pipeline, &group, &call, [x, y, 1]);
    }
    Ok(())
}

/// Records the sums of some columns.
pub(super) fn sum(
    (device, pipelines, moe): On<'_>,
    pass: &mut wgpu::ComputePass<'_>,
    (outputs, shared, y): (&Matrix<'_>, Option<&Matrix<'_>>, &Matrix<'_>),
    cols: Range<usize>,
    (range, routes): (&Range<usize>, &Routes<Buffer>),
) -> Result<()> {
    let limits = &pipelines.facts.bindings;
    let from = outputs.columns()?;
    let to = y.columns()?.part(cols.start, cols.len());
    let shared = match shared {
        None => None,
        Some(shared) => Some((
            shared.columns()?.part(cols.start, cols.len()),
            float_code(shared.float),
        )),
    };
    let outputs = from.window(limits, 0, outputs.layout.rows)?;
    let pairs = cols.len().div_ceil(2);
    let mut call = SumCall {
        pairs: int(pairs)?,
        cols: int(cols.len())?,
        top_k: int(routes.routing().top_k())?,
        first_expert: int(range.start)?,
        end_expert: int(range.end)?,
        stride: from.rows.stride(),
        outputs_offset: outputs.offset,
        shared_float: shared.map_or(NONE, |(_, float)| float),
        shared_stride: shared.map_or(0, |(columns, _)| columns.rows.stride()),
        y_float: float_code(y.float),
        y_stride: to.rows.stride(),
        ..SumCall::default()
    };
    let of_shared = shared.map_or(usize::MAX, |(s, _)| s.rows.rows_per_window(limits));
    // Fewer than 2^32 pairs.
    let countable = (u32::MAX as usize - WORKGROUP as usize) / pairs.max(1);
    let per_dispatch = to.rows.rows_per_window(limits).min(of_shared);
    let per_dispatch = per_dispatch.min(countable).max(1);
    let pipeline = moe.get(MoeKernel::Sum)?;
    for token in (0..y.layout.rows).step_by(per_dispatch) {
        let tokens = per_dispatch.min(y.layout.rows - token);
        let to = to.window(limits, token, tokens)?;
        let shared = match shared {
            None => None,
            Some((columns, _)) => Some(columns.window(limits, token, tokens)?),
        };
        call.tokens = int(tokens)?;
        call.first_token = int(token)?;
        call.y_offset = to.offset;
        call.shared_offset = shared.map_or(0, |shared| shared.offset);
        let unused = || moe.unused.as_entire_buffer_binding();
        let bindings = [
            outputs.binding(),
            routes.rows.raw().as_entire_buffer_binding(),
            routes.offsets.raw().as_entire_buffer_binding(),
            shared.map_or_else(unused, |shared| shared.binding()),
            to.binding(),
        ];
        let group = bind(device, &moe.sum, bindings)?;
        let units = call.tokens * call.pairs;
        let [x, y] = in_workgroups(limits, units.div_ceil(WORKGROUP));
        dispatch(pass, pipeline, &group, &call, [x, y, 1]);
    }
    Ok(())
}
