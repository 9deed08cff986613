//! The gated half of an MLP in one dispatch: a product of few tokens, and the activation.

use swiglu_core::{GatedActivation, Tensor, TensorMut};

use crate::activation;
use crate::device::Device;
use crate::kernels::Kernels;
use crate::matmul::{Product, dispatch};
use crate::weight::Weight;
use crate::window::{Columns, workgroups};
use crate::{Buffer, Result};

/// Elements in a vector of 16 bytes.
const VECTOR: usize = 8;

/// Records act = op(R(x · wᵀ)) where one kernel makes what two would, bit for bit: whether it did.
///
/// `gate_up` is what the product alone would write to: its type and its place decide how the
/// activation alone would compute.
pub(crate) fn record(
    device: &Device,
    kernels: &Kernels,
    pass: &mut wgpu::ComputePass<'_>,
    op: &GatedActivation,
    (x, weight): (&Tensor<'_, Buffer>, &Weight),
    gate_up: &TensorMut<'_, Buffer>,
    act: &TensorMut<'_, Buffer>,
) -> Result<bool> {
    let product = Product::new(device, x, weight);
    let d = act.layout.cols;
    let whole = [
        d,
        gate_up.layout.offset,
        gate_up.layout.stride,
        act.layout.offset,
        act.layout.stride,
    ]
    .iter()
    .all(|n| n.is_multiple_of(VECTOR));
    let native = kernels.native && activation::Call::of(op, act.dtype).is_native(act.dtype);
    // Where buffers are shared, the stages have their say.
    let apart = [
        (x.buffer, &*act.buffer),
        (x.buffer, &*gate_up.buffer),
        (&*gate_up.buffer, &*act.buffer),
    ]
    .iter()
    .all(|(a, b)| a.raw() != b.raw());
    let [chunk] = weight.chunks.as_slice() else {
        return Ok(false);
    };
    let one_type = x.dtype == act.dtype;
    if !(product.is_for_usual_rows() && whole && native && apart && one_type) {
        return Ok(false);
    }
    let output = Columns::new(&act.as_ref(), 0, d);
    let (gate_row, up_row) = op.positions(d, 0);
    for part in product.windows(device, &output) {
        let Some(pipeline) = kernels.gated(weight.dtype, part.1) else {
            return Ok(false);
        };
        let (mut call, ends) = product.call(device, chunk, &output, part)?;
        // Both are below the weight's rows, which fit.
        (call.gate_row, call.up_row) = (gate_row as u32, up_row as u32);
        call.op = activation::Op::of(op, act.dtype);
        let groups = workgroups(device, (d / VECTOR) as u32);
        dispatch(
            device,
            kernels,
            pass,
            pipeline,
            (chunk, ends),
            &call,
            groups,
        )?;
    }
    Ok(true)
}
