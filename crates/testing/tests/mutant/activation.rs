//! The activation with a fault.

use swiglu_core::{
    Clamp, Element, Function, GatedActivation, HostBuffer, Layout, Operator, Order, Rounding,
    Tensor, TensorMut, reference,
};

use super::Fault;

/// silu(alpha; gate) · (up + beta) with a limit beyond all values.
fn silu(alpha: f32, beta: f32, limit: f32, rounding: Rounding) -> GatedActivation {
    GatedActivation::silu_and_mul_with_clamp(limit, alpha, beta)
        .unwrap()
        .with_rounding(rounding)
}

/// The operation without its limit.
pub fn unclamped(op: &GatedActivation) -> GatedActivation {
    match (op.operator(), op.function()) {
        (Operator::SwigluOaiAndMul, Function::Silu { alpha }) => {
            GatedActivation::swigluoai_and_mul(f32::MAX, alpha)
                .unwrap()
                .with_rounding(op.rounding())
        }
        (_, Function::Silu { alpha }) if op.clamp() != Clamp::None => {
            silu(alpha, op.up_offset(), f32::MAX, op.rounding())
        }
        _ => *op,
    }
}

fn with_order(order: Order, layout: Layout) -> GatedActivation {
    match (order, layout) {
        (Order::UpFirst, _) => GatedActivation::mul_and_silu(),
        (Order::GateFirst, Layout::Interleaved) => GatedActivation::gpt_oss(),
        (Order::GateFirst, Layout::Concatenated) => GatedActivation::silu_and_mul(),
    }
}

/// One output with the fault, where the fault is in the arithmetic.
fn gated<T: Element>(fault: Fault, op: &GatedActivation, gate: T, up: T) -> T {
    let right = |gate, up| reference::gated(op, gate, up);
    let (alpha, limit) = match (op.function(), op.clamp()) {
        (Function::Silu { alpha }, Clamp::Before(limit)) => (alpha, limit.get()),
        _ => (f32::NAN, f32::NAN),
    };
    let clamped_op = !limit.is_nan();
    let raw = |gate, up| reference::gated(&unclamped(op), gate, up);
    let floor = T::from_f32(-limit);
    match fault {
        Fault::NoClamp if clamped_op => raw(gate, up),
        Fault::ClampAfter if clamped_op && alpha == 1.0 && op.up_offset() == 0.0 => {
            let step = GatedActivation::swiglustep_and_mul(limit).unwrap();
            reference::gated(&step.with_rounding(op.rounding()), gate, up)
        }
        Fault::GateClampedOnBothSides if clamped_op && gate.to_f32() < -limit => right(floor, up),
        Fault::UpClampedAboveOnly if clamped_op && up.to_f32() < -limit => {
            let gate = if gate.to_f32() > limit {
                T::from_f32(limit)
            } else {
                gate
            };
            raw(gate, up)
        }
        Fault::NanSwallowed if clamped_op => {
            let swallow = |x: T| if x.is_nan() { T::from_f32(limit) } else { x };
            right(swallow(gate), swallow(up))
        }
        Fault::OneRoundingTooMany => reference::gated(&op.with_rounding(Rounding::Eager), gate, up),
        Fault::OneRoundingTooFew => {
            reference::gated(&op.with_rounding(Rounding::Official), gate, up)
        }
        Fault::BetaIgnored if clamped_op => {
            reference::gated(&silu(alpha, 0.0, limit, op.rounding()), gate, up)
        }
        Fault::AlphaIgnored if clamped_op => {
            reference::gated(&silu(1.0, op.up_offset(), limit, op.rounding()), gate, up)
        }
        Fault::SubnormalsFlushed => {
            let y = right(gate, up);
            if y.to_f32().abs() < f32::MIN_POSITIVE {
                T::default()
            } else {
                y
            }
        }
        Fault::ZeroLosesItsSign => {
            let y = right(gate, up);
            if y.to_f32() == 0.0 { T::default() } else { y }
        }
        _ => right(gate, up),
    }
}

/// Rounds f32 values into the rows of an output.
pub fn store<T: Element>(values: &[f32], output: TensorMut<'_, HostBuffer>) {
    let layout = output.layout;
    let data = output.buffer.typed_mut::<T>();
    for (t, row) in values.chunks_exact(layout.cols).enumerate() {
        for (y, x) in data[layout.row(t)].iter_mut().zip(row) {
            *y = T::from_f32(*x);
        }
    }
}

/// The call with the fault, where the fault is in the places.
pub fn run<T: Element>(
    fault: Fault,
    op: &GatedActivation,
    input: &Tensor<'_, HostBuffer>,
    output: TensorMut<'_, HostBuffer>,
) {
    let (mut from, mut to) = (input.layout, output.layout);
    match fault {
        Fault::InputStrideIgnored => from.stride = from.cols,
        Fault::OutputStrideIgnored => to.stride = to.cols,
        Fault::InputOffsetIgnored => from.offset = 0,
        Fault::OutputOffsetIgnored => to.offset = 0,
        _ => {}
    }
    let d = to.cols;
    let places = match (fault, op.order(), op.layout()) {
        (Fault::LayoutsMixedUp, order, Layout::Interleaved) => {
            with_order(order, Layout::Concatenated)
        }
        (Fault::LayoutsMixedUp, order, Layout::Concatenated) => {
            with_order(order, Layout::Interleaved)
        }
        _ => *op,
    };
    let (x, y) = (input.buffer.typed::<T>(), output.buffer.typed_mut::<T>());
    if fault == Fault::WritesForNoRows
        && to.rows == 0
        && let Some(first) = y.first_mut()
    {
        *first = T::default();
    }
    for t in 0..to.rows {
        for j in 0..d {
            if fault == Fault::TailNotWritten && d % 2 == 1 && j == d - 1 {
                continue;
            }
            let (mut gate, mut up) = places.positions(d, j);
            if fault == Fault::HalvesSwapped {
                (gate, up) = (up, gate);
            }
            let start = match fault {
                Fault::IndexWraps => from.row(t).start & 0xffff,
                _ => from.row(t).start,
            };
            y[to.row(t).start + j] = gated(fault, op, x[start + gate], x[start + up]);
        }
        if fault == Fault::WritesPastTheRow
            && let Some(beyond) = y.get_mut(to.row(t).end)
        {
            *beyond = T::default();
        }
    }
}
