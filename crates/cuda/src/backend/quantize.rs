use swiglu_core::{
    GateUp, GatedActivation, QuantOptions, Quantization, Quantize, Quantized, QuantizedMut, Tensor,
    TensorMut, check,
};

use super::{gate_up, matrix, quantized};
use crate::{
    activation::Batches, launch::options::LaunchOptions, open::CudaBackend, quant::RawQuantCall,
};

impl CudaBackend {
    /// How quantizations are launched: between matmuls, which all may start early, they may too.
    pub(super) const fn quantizing(&self) -> LaunchOptions {
        LaunchOptions {
            programmatic: true,
            ..self.options
        }
    }
}

impl Quantize for CudaBackend {
    fn act_and_mul_quant(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        input: GateUp<'_, Self>,
        output: QuantizedMut<'_, Self>,
        extra: QuantOptions<'_, Self>,
    ) -> swiglu_core::Result<()> {
        check::act_quant(op, quant, &input, &output, &extra)?;
        let call = RawQuantCall {
            input: gate_up(&input),
            output: quantized(&output.as_quantized()),
            route: extra.route.map(|route| route.address()),
            batches: extra.batch.map(|batch| Batches {
                rows: batch.rows,
                counts: batch.counts.address(),
            }),
            hits: extra.hits.map(|hits| hits.address()),
        };
        let (stream, options) = (self.stream.cu_stream(), self.quantizing());
        // SAFETY: as `act_and_mul`.
        unsafe {
            self.quantizers
                .enqueue_fused(stream, op, quant, &call, options)
        }?;
        Ok(())
    }

    fn quantize(
        &self,
        quant: &Quantization,
        input: Tensor<'_, Self>,
        output: QuantizedMut<'_, Self>,
    ) -> swiglu_core::Result<()> {
        check::quantize(quant, &input, &output)?;
        let (stream, options) = (self.stream.cu_stream(), self.quantizing());
        let (input, output) = (matrix(&input), quantized(&output.as_quantized()));
        // SAFETY: as `act_and_mul`.
        unsafe {
            self.quantizers
                .enqueue_quantize(stream, quant, &input, &output, options)
        }?;
        Ok(())
    }

    fn dequantize(
        &self,
        quant: &Quantization,
        input: Quantized<'_, Self>,
        output: TensorMut<'_, Self>,
    ) -> swiglu_core::Result<()> {
        check::dequantize(quant, &input, &output)?;
        let (stream, options) = (self.stream.cu_stream(), self.quantizing());
        let (input, output) = (quantized(&input), matrix(&output.as_tensor()));
        // SAFETY: as `act_and_mul`.
        unsafe {
            self.quantizers
                .enqueue_dequantize(stream, quant, &input, &output, options)
        }?;
        Ok(())
    }
}
