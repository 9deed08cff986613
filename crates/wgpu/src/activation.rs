//! A gated activation as dispatches: which kernel, with what constants, on which windows.

use bytemuck::{Pod, Zeroable};
use swiglu_core::{
    ActShape, Clamp, DType, Error, Function, GatedActivation, Layout, Order, Rounding, Tensor,
    TensorMut,
};

use crate::device::{Device, INVOCATIONS};
use crate::kernels::Kernels;
use crate::shaders::{ActivationKind, VECTOR_WORKGROUP};
use crate::window::{Columns, bind, stride, workgroups};
use crate::{Buffer, Result};

/// The struct of the same name in activation.wgsl, field by field.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Call {
    pub(crate) units: u32,
    pub(crate) columns_log2: u32,
    pub(crate) row_units: u32,
    pub(crate) rows: u32,
    pub(crate) d: u32,
    pub(crate) gate_offset: u32,
    pub(crate) up_offset: u32,
    pub(crate) in_stride: u32,
    pub(crate) in_step: u32,
    pub(crate) out_offset: u32,
    pub(crate) out_stride: u32,
    pub(crate) op: Op,
    pub(crate) quant: Quant,
}

/// The struct of the same name in op.wgsl, field by field.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Op {
    function: u32,
    clamp_place: u32,
    eager: u32,
    limit: f32,
    parameter: f32,
    up_bound: f32,
    up_add: f32,
    gate_guard: u32,
}

/// The struct of the same name in activation.wgsl, field by field.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Quant {
    pub(crate) group: u32,
    pub(crate) groups: u32,
    pub(crate) format: u32,
    pub(crate) order: u32,
    pub(crate) scale_stride: u32,
    pub(crate) floor: f32,
    pub(crate) rounded_to: u32,
    pub(crate) first_row: u32,
    pub(crate) batch_rows: u32,
    pub(crate) has_route: u32,
    pub(crate) has_hits: u32,
    pub(crate) path: u32,
}

/// The shaders' number for silu.
const SILU: u32 = 0;

/// The slopes that the native kernels take: their product with a gate must not leave f32.
const NATIVE_ALPHAS: std::ops::RangeInclusive<f32> = 1e-4..=1e4;

/// The largest |alpha · gate| for which exp(-|alpha · gate|) is far from subnormal.
const QUICK_RANGE: f32 = 80.0;

/// What, added to a gate's magnitude, sets the bit above it where the gate is NaN or too large
/// for the quick path; for both elements of a pair at once.
fn gate_guard(alpha: f32, dtype: DType) -> u32 {
    let largest = QUICK_RANGE / alpha;
    let pair = |bits: u32| (0x7fff - bits) * 0x1_0001;
    match dtype {
        // alpha · gate must be exact in two parts: with 24 bits of gate only where alpha is 1.
        DType::F32 if alpha != 1.0 => 0,
        DType::F32 => 0x7fff_ffff - largest.to_bits(),
        DType::F16 => {
            let largest = swiglu_core::f16::from_f32(largest.min(65504.0));
            pair(u32::from(largest.to_bits().min(0x7bff)))
        }
        DType::BF16 => {
            let largest = swiglu_core::bf16::from_f32(largest.min(1e38));
            pair(u32::from(largest.to_bits().min(0x7f7f)))
        }
        DType::F8E4M3 | DType::E8M0 => 0,
    }
}

impl Op {
    pub(crate) fn of(op: &GatedActivation, dtype: DType) -> Self {
        let (clamp_place, limit) = match op.clamp() {
            Clamp::None => (0, f32::MAX),
            Clamp::Before(limit) => (1, limit.get()),
            Clamp::After(limit) => (2, limit.get()),
        };
        let (function, parameter, up_bound) = match op.function() {
            Function::Silu { alpha } => (SILU, alpha, 0.0),
            Function::Gelu => (1, 0.0, 0.0),
            Function::GeluTanh => (2, 0.0, 0.0),
            Function::FatRelu { threshold } => (3, threshold, 0.0),
            Function::Situ { beta, up_bound } => match up_bound {
                None => (4, beta, 0.0),
                Some(bound) => (5, beta, bound),
            },
        };
        Self {
            function,
            clamp_place,
            eager: u32::from(op.rounding() == Rounding::Eager),
            limit,
            parameter,
            up_bound,
            up_add: op.up_offset(),
            gate_guard: match op.function() {
                Function::Silu { alpha } => gate_guard(alpha, dtype),
                _ => 0,
            },
        }
    }
}

impl Call {
    /// What the operation sets.
    pub(crate) fn of(op: &GatedActivation, dtype: DType) -> Self {
        Self {
            in_step: match op.layout() {
                Layout::Concatenated => 1,
                Layout::Interleaved => 2,
            },
            op: Op::of(op, dtype),
            ..Self::default()
        }
    }

    /// Whether the native kernels compute this.
    pub(crate) fn is_native(&self, dtype: DType) -> bool {
        dtype.size() == 2
            && self.in_step == 1
            && self.op.function == SILU
            && self.op.clamp_place != 2
            && self.op.eager == 0
            && NATIVE_ALPHAS.contains(&self.op.parameter)
    }
}

/// How a workgroup's invocations are laid over rows of so many vectors: the logarithm of those that
/// are side by side. At least 32 are, if there are as many, for whole lines of memory.
fn columns_log2(row_vectors: u32) -> u32 {
    let padded = |log2: &u32| row_vectors.next_multiple_of(1 << log2);
    let least = row_vectors.next_power_of_two().ilog2().min(5);
    let sizes = (least..=VECTOR_WORKGROUP.ilog2()).rev();
    sizes.min_by_key(padded).unwrap_or(0)
}

/// The three matrices of a call, in the part of each row that is being computed.
struct Part<'a> {
    gate: Columns<'a>,
    up: Columns<'a>,
    output: Columns<'a>,
}

impl<'a> Part<'a> {
    fn new(
        op: &GatedActivation,
        d: usize,
        (from, cols): (usize, usize),
        input: &Tensor<'a, Buffer>,
        output: &'a TensorMut<'_, Buffer>,
    ) -> Self {
        let (gate, up) = op.positions(d, from);
        let (last, _) = op.positions(d, from + cols - 1);
        let read = |first| Columns::new(input, first, last - gate + 1);
        Self {
            gate: read(gate),
            up: read(up),
            output: Columns::new(&output.as_ref(), from, cols),
        }
    }

    fn rows_per_window(&self, device: &Device) -> usize {
        [&self.gate, &self.up, &self.output]
            .map(|c| c.rows_per_window(device))
            .into_iter()
            .min()
            .unwrap_or(0)
    }
}

/// Elements of half a row that fit into a binding whatever their place.
fn columns_per_window(device: &Device, call: &Call, dtype: DType) -> usize {
    let bytes = device.binding_limit() - device.binding_alignment() - 32;
    let elements = bytes / (dtype.size() as u64 * u64::from(call.in_step));
    // Whole vectors, so that a part starts as aligned as the row does.
    usize::try_from(elements).unwrap_or(usize::MAX) & !7
}

/// Records the operation: as many dispatches as the device's limits ask for, usually one.
pub(crate) fn record(
    device: &Device,
    kernels: &Kernels,
    pass: &mut wgpu::ComputePass<'_>,
    op: &GatedActivation,
    input: &Tensor<'_, Buffer>,
    output: &TensorMut<'_, Buffer>,
    shape: ActShape,
) -> Result<()> {
    if input.buffer.raw() == output.buffer.raw() {
        let error = Error::argument("output", "another buffer than the input's", "the same");
        return Err(error.into());
    }
    let call = Call::of(op, input.dtype);
    let width = shape
        .d
        .min(columns_per_window(device, &call, input.dtype).max(8));
    for from in (0..shape.d).step_by(width) {
        let cols = width.min(shape.d - from);
        let part = Part::new(op, shape.d, (from, cols), input, output);
        let per_window = part.rows_per_window(device).max(1);
        for row in (0..shape.rows).step_by(per_window) {
            let rows = per_window.min(shape.rows - row);
            dispatch(device, kernels, pass, call, &part, (row, rows), op.order())?;
        }
    }
    Ok(())
}

fn dispatch(
    device: &Device,
    kernels: &Kernels,
    pass: &mut wgpu::ComputePass<'_>,
    mut call: Call,
    part: &Part<'_>,
    (row, rows): (usize, usize),
    order: Order,
) -> Result<()> {
    let gate = part.gate.window(device, row, rows)?;
    let up = part.up.window(device, row, rows)?;
    let output = part.output.window(device, row, rows)?;
    let dtype = part.output.dtype;
    let too_many = |n: u64| Error::argument("input", "fewer than 2^32 elements in a window", n);
    let int = |n: u64| u32::try_from(n).map_err(|_| too_many(n));
    call.rows = int(rows as u64)?;
    call.d = int(part.output.span as u64)?;
    (call.gate_offset, call.up_offset) = (gate.offset, up.offset);
    call.in_stride = stride(part.gate.layout.stride);
    call.out_offset = output.offset;
    call.out_stride = stride(part.output.layout.stride);
    let per_vector = 16 / dtype.size() as u32;
    let mut aligned = [
        call.d,
        call.gate_offset,
        call.in_stride,
        call.out_offset,
        call.out_stride,
    ]
    .iter()
    .all(|n| n.is_multiple_of(per_vector));
    aligned &= if call.in_step == 1 {
        call.up_offset.is_multiple_of(per_vector)
    } else {
        // The kernel finds the up half beside the gate.
        order == Order::GateFirst
    };
    call.row_units = match (aligned, dtype) {
        (true, _) => call.d / per_vector,
        (false, DType::F32) => call.d,
        // A row that starts or ends within a word takes that word too.
        (false, _) => call.d / 2 + 1,
    };
    call.units = int(u64::from(call.row_units) * u64::from(call.rows))?;
    let groups = if aligned {
        call.columns_log2 = columns_log2(call.row_units);
        let (x, per_group) = (
            1 << call.columns_log2,
            VECTOR_WORKGROUP >> call.columns_log2,
        );
        let (y, z) = workgroups(device, call.rows.div_ceil(per_group));
        [call.row_units.div_ceil(x), y, z]
    } else {
        let (x, y) = workgroups(device, call.units.div_ceil(INVOCATIONS));
        [x, y, 1]
    };
    let bindings = [gate.binding(), up.binding(), output.binding()];
    let bind_group = bind(device, &kernels.activation_layout, bindings)?;
    let from_starts = [call.gate_offset, call.up_offset, call.out_offset] == [0; 3];
    let one_row = call.rows == 1 && from_starts && call.row_units.is_multiple_of(VECTOR_WORKGROUP);
    let kind = match (aligned, call.op.function) {
        (false, _) => ActivationKind::Words,
        _ if kernels.native && call.is_native(dtype) => {
            if one_row {
                ActivationKind::NativeRow
            } else {
                ActivationKind::NativeSilu
            }
        }
        (true, SILU) => ActivationKind::SiluVectors,
        (true, _) => ActivationKind::Vectors,
    };
    pass.set_pipeline(kernels.activation(dtype, kind)?);
    pass.set_bind_group(0, &bind_group, &[]);
    pass.set_immediates(0, bytemuck::bytes_of(&call));
    pass.dispatch_workgroups(groups[0], groups[1], groups[2]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_fill_their_workgroups() {
        for (row_vectors, log2) in [(1, 0), (2, 1), (3, 2), (33, 6), (96, 5), (128, 7)] {
            assert_eq!(columns_log2(row_vectors), log2, "{row_vectors}");
        }
        // V4-Flash, V4.1-Flash and V4-Pro in 16 bits: no invocation is idle.
        for row_vectors in [256_u32, 288, 384] {
            assert!(row_vectors.is_multiple_of(1 << columns_log2(row_vectors)));
        }
    }
}
