use swiglu_core::{
    ActShape, Float, GatedActivation, Matmul, Quantization, QuantizedMut, Tensor, TensorMut, check,
};

use super::{matrix, quantized};
use crate::{
    matmul::{CodesCall, QuantizingCall, QuantizingPlan, codes_in},
    open::CudaBackend,
    view::DeviceViewMut,
    weight::CudaWeight,
};

impl CudaBackend {
    /// y = c · wᵀ or op of it, c being x as `quant` leaves it; false where there are no kernels for it.
    pub(super) fn multiply_quantizing(
        &self,
        quant: &Quantization,
        op: Option<&GatedActivation>,
        (x, weight, y): (&Tensor<'_, Self>, &CudaWeight, &TensorMut<'_, Self>),
        scratch: DeviceViewMut<'_>,
    ) -> swiglu_core::Result<bool> {
        let [rows, cols] = self.weight_shape(weight);
        let outputs = if op.is_some() { rows / 2 } else { rows };
        check::matmul(x, [outputs, cols], y)?;
        let widened = TensorMut::<Self>::contiguous(scratch, Float::BF16, x.layout.rows, cols);
        widened.as_tensor().check("scratch")?;
        let (x, y, widened) = (
            matrix(x),
            matrix(&y.as_tensor()),
            matrix(&widened.as_tensor()),
        );
        let call = QuantizingCall {
            quant,
            op,
            x: &x,
            weight,
            y: &y,
        };
        let (stream, matmuls) = (self.stream.cu_stream(), &self.matmuls);
        // SAFETY: the call has been checked against the views, whose memory lives until the stream
        // has run it; the plan is the call's.
        let done = unsafe {
            match matmuls.quantizing_plan(&call) {
                None => false,
                Some(QuantizingPlan::Step(step)) => matmuls.quantizing_step(stream, step, &call)?,
                Some(QuantizingPlan::Widened { in_vectors, matmul }) => {
                    x.check_aligned("x")?;
                    y.check_aligned("y")?;
                    if !in_vectors || !matmuls.widen(stream, &call, &widened)? {
                        self.moe.widen_rows(stream, quant, &x, &widened)?;
                    }
                    let call = QuantizingCall {
                        x: &widened,
                        ..call
                    };
                    matmuls.widened(stream, matmul, &call)?
                }
            }
        };
        Ok(done)
    }

    /// act = quantized op(c · wᵀ), c being x as `quant` leaves it; false where there is no kernel for it.
    pub(super) fn activate_codes(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        (x, weight, act): (&Tensor<'_, Self>, &CudaWeight, &QuantizedMut<'_, Self>),
        scratch: DeviceViewMut<'_>,
    ) -> swiglu_core::Result<bool> {
        let [both, cols] = self.weight_shape(weight);
        let rows = x.layout.rows;
        let room = TensorMut::<Self>::contiguous(scratch, Float::BF16, rows, cols);
        room.as_tensor().check("scratch")?;
        check::matmul(x, [cols, cols], &room)?;
        let act = act.as_quantized();
        check::quantized(quant, ActShape { rows, d: both / 2 }, &act)?;
        let (x, act) = (matrix(x), quantized(&act));
        let codes = codes_in(&matrix(&room.as_tensor()), quant);
        let call = CodesCall {
            op,
            quant,
            x: &codes,
            weight,
            act: &act,
        };
        let Some(plan) = self.matmuls.codes_plan(&call)? else {
            return Ok(false);
        };
        let (stream, options) = (self.stream.cu_stream(), self.quantizing());
        // SAFETY: the call has been checked against the views, whose memory lives until the stream has run it, and
        // codes and scales are less than `scratch`, two bytes a number; the plan is the call's.
        unsafe {
            self.quantizers
                .enqueue_quantize(stream, quant, &x, &codes, options)?;
            self.matmuls.activate_codes(stream, &plan)?;
        }
        Ok(true)
    }
}
