//! The two halves of a layer's experts as dispatches.
//!
//! ## Method
//! 1. Items are made of the rows of experts, into memory that all calls share.
//! 2. For each buffer of experts there is a dispatch for those with few rows and one for those with many, each as
//!    often as there are windows of x and of y. In the second half both are windows of the same rows. Rows that their
//!    routes find have several buffers in one dispatch, where a kernel binds as many.

use std::iter;
use std::ops::Range;

use swiglu_core::{Error, Experts, Float, GatedActivation, Quantization, Routes, RowLayout};

use super::experts::Stack;
use super::passes::{On, int, requantize, sum};
use super::plan::{GroupedOperands, GroupedPlan, columns_at_a_time};
use crate::device::BindingLimits;
use crate::launch::{
    Columns, GroupedCall, Matrix, Op, RowsCall, ScheduleCall, Scratch, Window, bind, check_apart,
    dispatch, float_code, in_workgroups,
};
use crate::matmul::record_halves;
use crate::pipelines::{GroupedKernel, GroupedKind, Half, MoeKernel, Pipelines, ROW_END, RowShare};
use crate::weight::Weight;
use crate::{Buffer, Result, View};

/// bf16 rows without gaps in scratch memory.
const fn in_scratch(view: View<'_>, rows: usize, cols: usize) -> Matrix<'_> {
    Matrix {
        name: "scratch",
        view,
        float: Float::BF16,
        layout: RowLayout::contiguous(rows, cols),
    }
}

/// Items in the memory that calls share, and where their lists begin. Where rows are found by their routes, these routes'
/// experts, and the first of those that are loaded.
struct Items {
    memory: wgpu::Buffer,
    bytes: u64,
    few: u32,
    tiles: u32,
}

/// Records what makes items of the rows of a range of experts.
fn record_items(
    (device, pipelines, moe): On<'_>,
    pass: &mut wgpu::ComputePass<'_>,
    plan: &GroupedPlan,
    (experts, routes): (&Range<usize>, &Routes<Buffer>),
) -> Result<Items> {
    if plan.few == GroupedKind::Row {
        let memory = routes.ids.raw().clone();
        return Ok(Items {
            bytes: memory.size(),
            memory,
            few: int(experts.start)?,
            tiles: 0,
        });
    }
    let count = experts.len();
    let few = count + 1;
    let tiles = few + plan.few_items(count);
    let bytes = 16 * (tiles + plan.tile_items(count)) as u64;
    if bytes > pipelines.facts.bindings.bytes {
        let expected = "items of rows that fit a binding";
        return Err(Error::argument("x", expected, format!("{bytes} bytes")).into());
    }
    let memory = moe.items.of(device, bytes)?;
    let call = ScheduleCall {
        first: int(experts.start)?,
        experts: int(count)?,
        few: int(plan.most_few)?,
        height: plan.few.height(),
        tile: plan.tiles.map_or(1, GroupedKind::height),
        few_items: int(few)?,
        tile_items: int(tiles)?,
        unused: 0,
    };
    let bindings = [
        routes.offsets.raw().as_entire_buffer_binding(),
        Window::first(&memory, bytes).binding(),
    ];
    let group = bind(device, &moe.schedule, bindings)?;
    let pipeline = moe.get(MoeKernel::Schedule)?;
    dispatch(pass, pipeline, &group, &call, [1, 1, 1]);
    Ok(Items {
        memory,
        bytes,
        few: call.few_items,
        tiles: call.tile_items,
    })
}

/// A half of a layer's experts.
struct GroupedHalf<'a> {
    half: Half,
    stack: Stack,
    buffers: &'a [Weight],
    range: &'a Range<usize>,
    routes: &'a Routes<Buffer>,
    x: Columns<'a>,
    x_float: Float,
    /// Tokens, or rows.
    x_rows: usize,
    y: Columns<'a>,
    /// Which columns are made, and where they go: the first column of y.
    cols: Range<usize>,
    op: Op,
}

impl GroupedHalf<'_> {
    fn plan(&self, pipelines: &Pipelines, tokens: usize) -> GroupedPlan {
        let vectors = self.x.rows.starts_vectors();
        let usual = self.stack.is_usual(self.x_float)
            && vectors
            && !self.buffers.iter().any(|buffer| buffer.has_nan_codes);
        GroupedPlan::new(
            &pipelines.facts,
            &GroupedOperands {
                tokens,
                rows: self.routes.count(),
                experts: self.routes.routing().experts(),
                ordinary: self.buffers.iter().all(Weight::has_ordinary_scales),
                exact_in_f16: self
                    .buffers
                    .iter()
                    .all(|buffer| buffer.top_scale().is_some()),
                usual,
            },
        )
    }

    fn record(
        &self,
        on: On<'_>,
        pass: &mut wgpu::ComputePass<'_>,
        plan: &GroupedPlan,
        items: &Items,
    ) -> Result<()> {
        let (_, pipelines, moe) = on;
        let limits = &pipelines.facts.bindings;
        let per_buffer = self.stack.per_buffer(limits.bytes)?;
        let rows = self.routes.count();
        let of_x = self.x.rows.rows_per_window(limits).max(1);
        let of_y = self.y.rows.rows_per_window(limits).max(1);
        let both = of_x.min(of_y);
        let few = Some((plan.few, items.few));
        let tiles = plan.tiles.map(|kind| (kind, items.tiles));
        for (kind, list) in [few, tiles].into_iter().flatten() {
            let at_once = moe.buffers_of(kind);
            for (number, buffers) in self.buffers.chunks(at_once).enumerate() {
                let first = number * at_once * per_buffer;
                let experts = first..self.range.len().min(first + buffers.len() * per_buffer);
                let count = if kind == plan.few {
                    plan.few_items(experts.len())
                } else {
                    plan.tile_items(experts.len())
                };
                if count == 0 {
                    continue;
                }
                let [of_x, both] = match kind {
                    GroupedKind::Cooperative(_) => {
                        [of_x, both].map(|rows| rows.min(rows_as_f16(&self.stack, limits)))
                    }
                    _ => [of_x, both],
                };
                let one = OneDispatch {
                    kernel: GroupedKernel {
                        half: self.half,
                        weight: self.stack.form.format,
                        kind,
                    },
                    buffers,
                    per_buffer,
                    experts: experts.clone(),
                    list,
                    count,
                };
                match self.half {
                    Half::GateUp => {
                        for row in (0..rows).step_by(of_y) {
                            for token in (0..self.x_rows).step_by(of_x) {
                                let x = token..self.x_rows.min(token + of_x);
                                let y = row..rows.min(row + of_y);
                                self.dispatch(on, pass, items, &one, [x, y])?;
                            }
                        }
                    }
                    Half::Down => {
                        for row in (0..rows).step_by(both) {
                            let own = row..rows.min(row + both);
                            self.dispatch(on, pass, items, &one, [own.clone(), own])?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Records one dispatch on windows of x and y.
    fn dispatch(
        &self,
        (device, pipelines, moe): On<'_>,
        pass: &mut wgpu::ComputePass<'_>,
        items: &Items,
        one: &OneDispatch<'_>,
        [x_rows, y_rows]: [Range<usize>; 2],
    ) -> Result<()> {
        let limits = &pipelines.facts.bindings;
        let Some((buffer, others)) = one.buffers.split_first() else {
            return Ok(());
        };
        let x = self.x.window(limits, x_rows.start, x_rows.len())?;
        let y = self.y.window(limits, y_rows.start, y_rows.len())?;
        let form = &self.stack.form;
        let mut call = GroupedCall {
            x_float: float_code(self.x_float),
            x_offset: x.offset,
            x_stride: self.x.rows.stride(),
            x_first: int(x_rows.start)?,
            x_rows: int(x_rows.len())?,
            k: int(form.cols)?,
            row_vectors: int(form.row_bytes() / 16)?,
            block_rows: 1,
            scale_shift: form.scale_shift().unwrap_or(0),
            result_scale: buffer.lift.undone(),
            part_rows: int(self.stack.part_rows)?,
            part_scale_rows: int(self.stack.scale_rows)?,
            first_expert: int(one.experts.start)?,
            end_expert: int(one.experts.end)?,
            top_k: int(self.routes.routing().top_k())?,
            first_row: int(y_rows.start)?,
            rows: int(y_rows.len())?,
            y_offset: y.offset,
            y_stride: self.y.rows.stride(),
            first_col: int(self.cols.start)?,
            cols: int(self.cols.len())?,
            items: one.list,
            op: self.op,
            ..GroupedCall::default()
        };
        if let Some(scales) = buffer.chunks.first().and_then(|c| c.scales.as_ref()) {
            [call.block_rows, call.block_cols] = scales.block;
            call.scale_cols = scales.cols;
        }
        let weight_rows = u64::from(call.cols) * self.stack.parts as u64;
        let one_row = RowShare::new(call.row_vectors, u64::from(call.rows) * weight_rows);
        if one.kernel.kind == GroupedKind::Row {
            [call.block_rows, call.block_cols] = [one_row.rows_of, int(one.per_buffer)?];
        }
        let halves;
        let x = if one.kernel.kind.is_cooperative() {
            let rows = RowsCall {
                rows: call.x_rows,
                k: call.k,
                offset: call.x_offset,
                stride: call.x_stride,
            };
            let (memory, bytes) = record_halves((device, pipelines), pass, (&rows, x))?;
            halves = memory;
            (call.x_offset, call.x_stride) = (0, call.k + ROW_END as u32);
            call.block_cols = buffer.top_scale().unwrap_or_default().into();
            Window::first(&halves, bytes)
        } else {
            x
        };
        let mut bindings = vec![x.binding()];
        bindings.extend(codes_and_scales(buffer));
        bindings.extend([
            Window::first(&items.memory, items.bytes).binding(),
            self.routes.sorted.raw().as_entire_buffer_binding(),
            self.routes.weights.raw().as_entire_buffer_binding(),
            y.binding(),
        ]);
        // What is bound and not there is never read.
        let missing = moe.buffers_of(one.kernel.kind) - one.buffers.len();
        let filling = iter::repeat_n(buffer, missing);
        bindings.extend(others.iter().chain(filling).flat_map(codes_and_scales));
        let group = bind(device, moe.grouped_bindings(one.kernel.kind), bindings)?;
        let outputs = one.kernel.outputs(one_row);
        let across = call.cols.div_ceil(outputs);
        if across > limits.workgroups {
            let most = limits.workgroups.saturating_mul(outputs);
            let expected = format!("at most {most} rows of a weight");
            return Err(Error::argument("experts", expected, call.cols).into());
        }
        let [down, deep] = in_workgroups(limits, int(one.count)?);
        let pipeline = moe.get(MoeKernel::Grouped(one.kernel))?;
        dispatch(pass, pipeline, &group, &call, [across, down, deep]);
        Ok(())
    }
}

/// Rows of x that scratch memory holds in f16.
fn rows_as_f16(stack: &Stack, limits: &BindingLimits) -> usize {
    let bytes = usize::try_from(limits.bytes.min(Scratch::MOST)).unwrap_or(usize::MAX);
    (bytes / (2 * (stack.form.cols + ROW_END))).max(1)
}

/// The bindings of a buffer of experts.
fn codes_and_scales(buffer: &Weight) -> impl Iterator<Item = wgpu::BufferBinding<'_>> {
    buffer.chunks.iter().take(1).flat_map(|chunk| {
        let scales = chunk.scales.as_ref().map_or(&chunk.data, |s| &s.data);
        [&chunk.data, scales].map(|buffer| buffer.raw().as_entire_buffer_binding())
    })
}

/// What a dispatch does, whatever its windows.
struct OneDispatch<'a> {
    kernel: GroupedKernel,
    buffers: &'a [Weight],
    per_buffer: usize,
    /// Counted from the first that is loaded.
    experts: Range<usize>,
    /// Where its items begin, and as many as there can be.
    list: u32,
    count: usize,
}

/// Records the first half, x \[T, H\] to act \[T · k, I\].
pub(crate) fn first_half(
    on: On<'_>,
    pass: &mut wgpu::ComputePass<'_>,
    (op, quant): (&GatedActivation, Option<&Quantization>),
    (x, act): (&Matrix<'_>, &Matrix<'_>),
    (experts, routes): (&Experts<Weight>, &Routes<Buffer>),
    scratch: View<'_>,
) -> Result<()> {
    let (_, pipelines, _) = on;
    let facts = &pipelines.facts;
    check_apart(facts, (act.name, act.view), x.view)?;
    let shape = experts.shape();
    let [stack, _] = Stack::of(shape)?;
    let tokens = x.layout.rows;
    if shape.range.is_empty() || shape.intermediate == 0 {
        return Ok(());
    }
    let widened = in_scratch(scratch, tokens, shape.hidden);
    let x = match quant {
        None => x,
        Some(quant) => {
            check_apart(facts, (widened.name, widened.view), x.view)?;
            check_apart(facts, (act.name, act.view), widened.view)?;
            requantize(on, pass, quant, (Some(x), &widened), None)?;
            &widened
        }
    };
    let half = GroupedHalf {
        half: Half::GateUp,
        stack,
        buffers: &experts.gate_up,
        range: &shape.range,
        routes,
        x: x.columns()?,
        x_float: x.float,
        x_rows: tokens,
        y: act.columns()?,
        cols: 0..shape.intermediate,
        op: Op::of(op, Float::BF16)?,
    };
    let plan = half.plan(pipelines, tokens);
    let items = record_items(on, pass, &plan, (&shape.range, routes))?;
    half.record(on, pass, &plan, &items)?;
    if let Some(quant) = quant {
        let own = Some((&shape.range, &routes.offsets));
        requantize(on, pass, quant, (None, act), own)?;
    }
    Ok(())
}

/// Records the second half and the sums, act \[T · k, I\] and shared \[T, H\] to y \[T, H\].
pub(crate) fn second_half(
    on: On<'_>,
    pass: &mut wgpu::ComputePass<'_>,
    (act, shared, y): (&Matrix<'_>, Option<&Matrix<'_>>, &Matrix<'_>),
    (experts, routes): (&Experts<Weight>, &Routes<Buffer>),
    scratch: View<'_>,
) -> Result<()> {
    let (_, pipelines, _) = on;
    let facts = &pipelines.facts;
    let read = [Some(act.view), shared.map(|s| s.view), Some(scratch)];
    for other in read.into_iter().flatten() {
        check_apart(facts, (y.name, y.view), other)?;
    }
    check_apart(facts, ("scratch", scratch), act.view)?;
    let shape = experts.shape();
    let [_, stack] = Stack::of(shape)?;
    let rows = routes.count();
    if shape.hidden == 0 {
        return Ok(());
    }
    let at_a_time = columns_at_a_time(facts, rows, shape.hidden);
    for first in (0..shape.hidden).step_by(at_a_time) {
        let cols = first..shape.hidden.min(first + at_a_time);
        let outputs = in_scratch(scratch, rows, cols.len());
        if !shape.range.is_empty() {
            let half = GroupedHalf {
                half: Half::Down,
                stack,
                buffers: &experts.down,
                range: &shape.range,
                routes,
                x: act.columns()?,
                x_float: act.float,
                x_rows: rows,
                y: outputs.columns()?,
                cols: cols.clone(),
                op: Op::default(),
            };
            let plan = half.plan(pipelines, routes.tokens());
            let items = record_items(on, pass, &plan, (&shape.range, routes))?;
            half.record(on, pass, &plan, &items)?;
        }
        sum(
            on,
            pass,
            (&outputs, shared, y),
            cols,
            (&shape.range, routes),
        )?;
    }
    Ok(())
}
