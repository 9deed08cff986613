//! An activation as dispatches.

use swiglu_core::{ActShape, Error, GatedActivation};

use super::plan::{ActivationPlan, ActivationSpans, HalfPlaces};
use crate::Result;
use crate::device::Device;
use crate::launch::{ActivationCall, Columns, Halves, Matrix, Op, bind, check_apart, dispatch};
use crate::pipelines::Pipelines;

/// The gates and the ups of an input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InputColumns<'a> {
    pub(crate) gate: Columns<'a>,
    pub(crate) up: Columns<'a>,
    /// From one gate to the next.
    pub(crate) step: usize,
}

impl<'a> InputColumns<'a> {
    /// Those of rows of `d` gates and `d` ups.
    ///
    /// # Errors
    /// A view that starts between two elements.
    pub(crate) fn of(op: &GatedActivation, input: &Halves<'a>, d: usize) -> Result<Self> {
        match input {
            Halves::Merged(input) => {
                let HalfPlaces { gate, up, step } = HalfPlaces::of(op, d);
                let (row, span) = (input.columns()?, HalfPlaces::span(step, d));
                Ok(Self {
                    gate: row.part(gate, span),
                    up: row.part(up, span),
                    step,
                })
            }
            Halves::Split { gate, up } => Ok(Self {
                gate: gate.columns()?,
                up: up.columns()?,
                step: 1,
            }),
        }
    }

    /// The part of `cols` columns from `from` on.
    fn part(&self, from: usize, cols: usize) -> Self {
        let span = HalfPlaces::span(self.step, cols);
        Self {
            gate: self.gate.part(from * self.step, span),
            up: self.up.part(from * self.step, span),
            step: self.step,
        }
    }
}

/// Records the operation: as many dispatches as the device's limits ask for, usually one.
pub(crate) fn record(
    (device, pipelines): (&Device, &Pipelines),
    pass: &mut wgpu::ComputePass<'_>,
    op: &GatedActivation,
    (input, output): (&Halves<'_>, &Matrix<'_>),
    shape: ActShape,
) -> Result<()> {
    let ActShape { rows: all_rows, d } = shape;
    let facts = &pipelines.facts;
    for read in input.views() {
        check_apart(facts, (output.name, output.view), read)?;
    }
    let float = output.float;
    let op_call = Op::of(op, float)?;
    let columns = InputColumns::of(op, input, d)?;
    let to = output.columns()?;
    let spans = ActivationSpans {
        gate: columns.gate.rows,
        up: columns.up.rows,
        step: columns.step,
        layout: op.layout(),
        output: to.rows,
    };
    let plan = ActivationPlan::new(facts, (&op_call, float), &spans, [all_rows, d]);
    let pipeline = pipelines.activation(plan.kernel)?;
    let limits = &facts.bindings;
    let too_many = || Error::argument("input", "fewer than 2^32 elements in a window", shape.d);
    for from in (0..d).step_by(plan.cols) {
        let cols = plan.cols.min(d - from);
        let (input, output) = (columns.part(from, cols), to.part(from, cols));
        for row in (0..all_rows).step_by(plan.rows) {
            let rows = plan.rows.min(all_rows - row);
            let gate = input.gate.window(limits, row, rows)?;
            let up = input.up.window(limits, row, rows)?;
            let output_window = output.window(limits, row, rows)?;
            let int = |n: usize| u32::try_from(n).map_err(|_| too_many());
            let (rows, d) = (int(rows)?, int(cols)?);
            let units = plan.units(limits, rows, d).ok_or_else(too_many)?;
            let call = ActivationCall {
                units: units.units,
                columns_log2: units.columns_log2,
                row_units: units.row_units,
                rows,
                d,
                gate_offset: gate.offset,
                up_offset: up.offset,
                gate_stride: input.gate.rows.stride(),
                up_stride: input.up.rows.stride(),
                in_step: int(input.step)?,
                out_offset: output_window.offset,
                out_stride: output.rows.stride(),
                op: op_call,
            };
            let bindings = [gate.binding(), up.binding(), output_window.binding()];
            let bind_group = bind(device, &pipelines.activation_bindings, bindings)?;
            dispatch(pass, pipeline, &bind_group, &call, units.workgroups);
        }
    }
    Ok(())
}
