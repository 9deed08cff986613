//! Quantization as dispatches: one for each group of rows.

use swiglu_core::{
    Error, Float, GatedActivation, Quantization, ScaleFormat, ScaleLayout, ScaleOrder,
};

use super::plan::{FusedInput, PER_WORKGROUP, QuantizePlan, rows_per_dispatch};
use crate::activation::{ActivationSpans, InputColumns};
use crate::device::{BindingLimits, Device};
use crate::launch::{
    CodesAndScales, Columns, Halves, Matrix, Op, Quant, QuantizeCall, Window, bind, check_apart,
    dispatch, float_code, in_workgroups, whole_view,
};
use crate::pipelines::{Pipelines, QuantizePipelines, WORKGROUP};
use crate::{Result, View};

/// The shaders' number for an offset where there is nothing.
const NONE: u32 = u32::MAX;

/// Where a quantization is recorded for, and with what.
type On<'a> = (&'a Device, &'a Pipelines, &'a QuantizePipelines);

fn int(n: usize) -> Result<u32> {
    let too_many = |_| Error::argument("input", "fewer than 2^32 rows and groups", n);
    Ok(u32::try_from(n).map_err(too_many)?)
}

/// The scales, all of them in one binding, counted in their own size.
fn scales_window<'a>(pipelines: &Pipelines, matrix: &CodesAndScales<'a>) -> Result<Window<'a>> {
    let layout = &matrix.scale_layout;
    let (limits, bytes) = (&pipelines.facts.bindings, layout.bytes()?);
    whole_view("scales", limits, matrix.scales, layout.format.size(), bytes)
}

/// The first `count` values of four bytes in a view, if there is one.
fn values<'a>(
    argument: &'static str,
    limits: &BindingLimits,
    view: Option<View<'a>>,
    count: usize,
) -> Result<Option<Window<'a>>> {
    view.map(|view| whole_view(argument, limits, view, 4, 4 * count))
        .transpose()
}

/// How elements share scales.
fn quant(
    quant: &Quantization,
    layout: &ScaleLayout,
    scales: &Window<'_>,
    rounded_to: Float,
) -> Result<Quant> {
    Ok(Quant {
        group: int(quant.group())?,
        groups: int(layout.groups)?,
        format: match layout.format {
            ScaleFormat::F32 => 0,
            ScaleFormat::E8M0 => 1,
        },
        order: match layout.order {
            ScaleOrder::RowMajor => 0,
            ScaleOrder::ColumnMajor => 1,
            ScaleOrder::Packed => 2,
        },
        scale_offset: scales.offset,
        scale_stride: u32::try_from(layout.stride).unwrap_or(u32::MAX),
        floor: quant.floor(),
        rounded_to: float_code(rounded_to),
        route_offset: NONE,
        hits_offset: NONE,
        ..Quant::default()
    })
}

/// What a fused quantization does besides.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FusedOptions<'a> {
    pub(crate) route: Option<View<'a>>,
    /// Rows of a batch, and how many of each are in use.
    pub(crate) batch: Option<(usize, View<'a>)>,
    pub(crate) hits: Option<View<'a>>,
}

/// What the dispatches of a quantization have in common.
struct Quantizing<'a> {
    plan: QuantizePlan,
    /// As for the first dispatch.
    call: QuantizeCall,
    gate: Columns<'a>,
    up: Columns<'a>,
    codes: Columns<'a>,
    scales: Window<'a>,
    route: Option<Window<'a>>,
    counts: Option<Window<'a>>,
    hits: Option<Window<'a>>,
    all_rows: usize,
}

impl Quantizing<'_> {
    fn record(
        mut self,
        (device, pipelines, kernels): On<'_>,
        pass: &mut wgpu::ComputePass<'_>,
    ) -> Result<()> {
        let limits = &pipelines.facts.bindings;
        let pipeline = kernels.get(self.plan.kernel)?;
        let call = &mut self.call;
        for row in (0..self.all_rows).step_by(self.plan.rows) {
            let rows = self.plan.rows.min(self.all_rows - row);
            let gate = self.gate.window(limits, row, rows)?;
            let up = self.up.window(limits, row, rows)?;
            let codes = self.codes.window(limits, row, rows)?;
            call.rows = int(rows)?;
            (call.gate_offset, call.up_offset) = (gate.offset, up.offset);
            call.out_offset = codes.offset;
            call.quant.first_row = int(row)?;
            let unused = kernels.unused.as_entire_buffer_binding();
            let bindings = [
                gate.binding(),
                up.binding(),
                self.route.unwrap_or(gate).binding(),
                self.counts.unwrap_or(gate).binding(),
                codes.binding(),
                self.scales.binding(),
                self.hits.map_or(unused, |hits| hits.binding()),
            ];
            let bind_group = bind(device, &kernels.bindings, bindings)?;
            // The plan takes so few rows that this is below 2^32.
            let [x, y] = in_workgroups(limits, call.rows * call.row_units);
            dispatch(pass, pipeline, &bind_group, call, [x, y, 1]);
        }
        Ok(())
    }
}

/// Refuses what is written where it meets anything else of the call.
fn check_outputs<const N: usize>(
    pipelines: &Pipelines,
    read: [Option<View<'_>>; N],
    output: &CodesAndScales<'_>,
    hits: Option<View<'_>>,
) -> Result<()> {
    let facts = &pipelines.facts;
    let written = [
        Some(("codes", output.codes)),
        Some(("scales", output.scales)),
        hits.map(|hits| ("hits", hits)),
    ];
    for (i, one) in written.iter().enumerate() {
        let Some(one) = *one else { continue };
        for other in read.iter().flatten() {
            check_apart(facts, one, *other)?;
        }
        for (_, other) in written[..i].iter().flatten() {
            check_apart(facts, one, *other)?;
        }
    }
    Ok(())
}

/// Records `output = quant(op(input))`.
pub(crate) fn fused(
    (device, pipelines, kernels): On<'_>,
    pass: &mut wgpu::ComputePass<'_>,
    (op, quantization): (&GatedActivation, &Quantization),
    (input, output): (&Halves<'_>, &CodesAndScales<'_>),
    options: &FusedOptions<'_>,
) -> Result<()> {
    let (all_rows, d) = (output.layout.rows, output.layout.cols);
    let (float, facts) = (input.float(), &pipelines.facts);
    let FusedOptions { route, batch, hits } = *options;
    let [gates, ups] = input.views().map(Some);
    let read = [gates, ups, route, batch.map(|(_, counts)| counts)];
    check_outputs(pipelines, read, output, hits)?;
    if all_rows == 0 {
        return Ok(());
    }
    let columns = InputColumns::of(op, input, d)?;
    let codes = output.columns()?;
    let op_call = Op::of(op, float)?;
    let spans = ActivationSpans {
        gate: columns.gate.rows,
        up: columns.up.rows,
        step: columns.step,
        layout: op.layout(),
        output: codes.rows,
    };
    let fused = FusedInput {
        op: &op_call,
        float,
        layout: op.layout(),
        vectors: spans.halves_are_vectors(),
    };
    let windows = [spans.gate, spans.up, spans.output];
    let plan = QuantizePlan::new(facts, Some(fused), &windows, [all_rows, d]);
    let limits = &facts.bindings;
    let route = values("route", limits, route, all_rows)?;
    let hits = values("hits", limits, hits, 3)?;
    let (batch_rows, counts) = batch.unzip();
    let batches = all_rows / batch_rows.unwrap_or(1);
    let counts = values("counts", limits, counts, batches)?;
    let scales = scales_window(pipelines, output)?;
    let rounded_to = if quantization.materialize() {
        float
    } else {
        Float::F32
    };
    let offset = |window: Option<Window<'_>>| window.map_or(NONE, |window| window.offset);
    let call = QuantizeCall {
        row_units: int(d.div_ceil(PER_WORKGROUP))?,
        d: int(d)?,
        gate_stride: columns.gate.rows.stride(),
        up_stride: columns.up.rows.stride(),
        in_step: int(columns.step)?,
        out_stride: codes.rows.stride(),
        op: op_call,
        quant: Quant {
            batch_rows: int(batch_rows.unwrap_or(0))?,
            counts_offset: counts.map_or(0, |window| window.offset),
            route_offset: offset(route),
            hits_offset: offset(hits),
            path: plan.path.code(),
            ..quant(quantization, &output.scale_layout, &scales, rounded_to)?
        },
        ..QuantizeCall::default()
    };
    Quantizing {
        plan,
        call,
        gate: columns.gate,
        up: columns.up,
        codes,
        scales,
        route,
        counts,
        hits,
        all_rows,
    }
    .record((device, pipelines, kernels), pass)
}

/// Records `output = quant(input)`.
pub(crate) fn quantize(
    (device, pipelines, kernels): On<'_>,
    pass: &mut wgpu::ComputePass<'_>,
    quantization: &Quantization,
    (input, output): (&Matrix<'_>, &CodesAndScales<'_>),
) -> Result<()> {
    let (all_rows, d) = (output.layout.rows, output.layout.cols);
    check_outputs(pipelines, [Some(input.view)], output, None)?;
    if all_rows == 0 {
        return Ok(());
    }
    let (matrix, codes) = (input.columns()?, output.columns()?);
    let spans = [matrix.rows, codes.rows];
    let scales = scales_window(pipelines, output)?;
    let call = QuantizeCall {
        row_units: int(d.div_ceil(PER_WORKGROUP))?,
        d: int(d)?,
        gate_stride: matrix.rows.stride(),
        out_stride: codes.rows.stride(),
        quant: quant(quantization, &output.scale_layout, &scales, input.float)?,
        ..QuantizeCall::default()
    };
    Quantizing {
        plan: QuantizePlan::new(&pipelines.facts, None, &spans, [all_rows, d]),
        call,
        gate: matrix,
        up: matrix,
        codes,
        scales,
        route: None,
        counts: None,
        hits: None,
        all_rows,
    }
    .record((device, pipelines, kernels), pass)
}

/// Records `output = code · scale`.
pub(crate) fn dequantize(
    (device, pipelines, kernels): On<'_>,
    pass: &mut wgpu::ComputePass<'_>,
    quantization: &Quantization,
    (input, output): (&CodesAndScales<'_>, &Matrix<'_>),
) -> Result<()> {
    let facts = &pipelines.facts;
    for read in [input.codes, input.scales] {
        check_apart(facts, (output.name, output.view), read)?;
    }
    let (all_rows, d) = (input.layout.rows, input.layout.cols);
    if all_rows == 0 {
        return Ok(());
    }
    let (codes, to) = (input.columns()?, output.columns()?);
    let scales = scales_window(pipelines, input)?;
    let row_units = d.div_ceil(2);
    let mut call = QuantizeCall {
        row_units: int(row_units)?,
        d: int(d)?,
        gate_stride: codes.rows.stride(),
        out_stride: to.rows.stride(),
        quant: quant(quantization, &input.scale_layout, &scales, output.float)?,
        ..QuantizeCall::default()
    };
    let pipeline = kernels.back()?;
    let per_dispatch = rows_per_dispatch(facts, &[codes.rows, to.rows], row_units);
    let limits = &facts.bindings;
    for row in (0..all_rows).step_by(per_dispatch) {
        let rows = per_dispatch.min(all_rows - row);
        let from = codes.window(limits, row, rows)?;
        let to = to.window(limits, row, rows)?;
        call.rows = int(rows)?;
        call.gate_offset = from.offset;
        call.out_offset = to.offset;
        call.quant.first_row = int(row)?;
        let bindings = [from.binding(), scales.binding(), to.binding()];
        let bind_group = bind(device, &kernels.back_bindings, bindings)?;
        let units = call.rows * call.row_units;
        let [x, y] = in_workgroups(limits, units.div_ceil(WORKGROUP));
        dispatch(pass, pipeline, &bind_group, &call, [x, y, 1]);
    }
    Ok(())
}
