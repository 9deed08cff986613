use swiglu_core::{
    Float, GateUp, GatedActivation, QuantOptions, Quantization, Quantize, Quantized, QuantizedMut,
    Result, Tensor, TensorMut, check, with_float,
};

use super::{CpuBackend, known, rows_mut};
use crate::activation::GateUpRows;
use crate::quant::{self, How, Options, Target};

impl CpuBackend {
    /// How a call of so many codes runs, and whether on the caller's thread.
    fn how(&self, shape: [usize; 2], float: Float) -> (How, bool) {
        let plan = self.activation_plan(shape, float);
        ((plan.set, plan.split), plan.split.inline)
    }
}

impl Quantize for CpuBackend {
    fn act_and_mul_quant(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        input: GateUp<'_, Self>,
        output: QuantizedMut<'_, Self>,
        options: QuantOptions<'_, Self>,
    ) -> Result<()> {
        let shape = check::act_quant(op, quant, &input, &output, &options)?;
        let activation = known(op)?;
        let (how, inline) = self.how([shape.rows, shape.d], input.float());
        with_float!(input.float(), T => {
            let input = GateUpRows::<T>::new(&input)?;
            let (target, options) = (Target::new(output), Options::new(options));
            self.run(inline, || {
                quant::act_quant(how, &activation, quant, &input, &target, options);
            });
        });
        Ok(())
    }

    fn quantize(
        &self,
        quant: &Quantization,
        input: Tensor<'_, Self>,
        output: QuantizedMut<'_, Self>,
    ) -> Result<()> {
        let shape = check::quantize(quant, &input, &output)?;
        let (how, inline) = self.how([shape.rows, shape.d], input.float);
        with_float!(input.float, T => {
            let rows = (input.typed::<T>("input")?, input.layout);
            let target = Target::new(output);
            self.run(inline, || quant::quantize(how, quant, rows, &target));
        });
        Ok(())
    }

    fn dequantize(
        &self,
        quant: &Quantization,
        input: Quantized<'_, Self>,
        output: TensorMut<'_, Self>,
    ) -> Result<()> {
        let shape = check::dequantize(quant, &input, &output)?;
        let (how, inline) = self.how([shape.rows, shape.d], output.float);
        with_float!(output.float, T => {
            let rows = rows_mut::<T>("output", output)?;
            self.run(inline, || quant::dequantize(how, quant, &input, rows));
        });
        Ok(())
    }
}
