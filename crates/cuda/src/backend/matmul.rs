use swiglu_core::{
    Float, GatedActivation, HostWeight, Matmul, Quantization, Quantized, QuantizedMut, Tensor,
    TensorMut, check,
};

use super::{matrix, quantized};
use crate::{
    activation::{RawActCall, RawGateUp},
    open::CudaBackend,
    view::DeviceViewMut,
    weight::CudaWeight,
};

impl Matmul for CudaBackend {
    type Weight = CudaWeight;

    fn load_weight(&self, parts: &[HostWeight<'_>]) -> swiglu_core::Result<CudaWeight> {
        self.load(parts, false)
    }

    fn load_gate_up(
        &self,
        gate: HostWeight<'_>,
        up: HostWeight<'_>,
    ) -> swiglu_core::Result<CudaWeight> {
        self.load(&[gate, up], true)
    }

    fn weight_shape(&self, weight: &CudaWeight) -> [usize; 2] {
        [weight.rows, weight.cols]
    }

    fn weight_bytes(&self, weight: &CudaWeight) -> usize {
        weight.bytes()
    }

    fn matmul(
        &self,
        x: Tensor<'_, Self>,
        weight: &CudaWeight,
        y: TensorMut<'_, Self>,
    ) -> swiglu_core::Result<()> {
        self.matmul_by(None, &x, weight, &y)
    }

    /// One kernel for few tokens where there is one, which leaves `gate_up` unwritten. Else the
    /// matmul, then the activation on what it wrote: both are checked before either runs.
    fn matmul_act_and_mul(
        &self,
        op: &GatedActivation,
        x: Tensor<'_, Self>,
        weight: &CudaWeight,
        gate_up: TensorMut<'_, Self>,
        act: TensorMut<'_, Self>,
    ) -> swiglu_core::Result<()> {
        check::gated_matmul(&x, self.weight_shape(weight), &gate_up, &act)?;
        let (stream, options) = (self.stream.cu_stream(), self.options);
        let (x, gate_up) = (matrix(&x), matrix(&gate_up.as_tensor()));
        let call = RawActCall {
            input: RawGateUp::Merged(gate_up),
            output: matrix(&act.as_tensor()),
            batches: None,
        };
        // SAFETY: as `act_and_mul`; on one stream the activation follows the matmul.
        unsafe {
            let matmuls = &self.matmuls;
            if matmuls.gated_matmul(stream, op, &x, weight, &call.output)? {
                return Ok(());
            }
            matmuls.matmul(stream, &x, weight, &gate_up, None)?;
            self.activations.enqueue(stream, op, &call, options)?;
        }
        Ok(())
    }

    /// Multiplies what [`swiglu_core::Quantize::dequantize`] writes to `scratch` as bf16: sums are those of
    /// [`Matmul::matmul`].
    ///
    /// With [`swiglu_core::Accumulation::Fp8TensorCore`], on Hopper with cublasLt from 12.9 on,
    /// codes in groups of 128 are multiplied as they are by FP8 weights in blocks of 128 x 128,
    /// where T is a multiple of 4, N of 4 and K of 16 and rows begin at multiples of 16 bytes.
    /// Scales that are not f32 in columns without gaps are written to `scratch` as such first.
    fn matmul_quantized(
        &self,
        quant: &Quantization,
        x: Quantized<'_, Self>,
        weight: &CudaWeight,
        scratch: DeviceViewMut<'_>,
        y: TensorMut<'_, Self>,
    ) -> swiglu_core::Result<()> {
        let (rows, cols) = (x.layout.rows, x.layout.cols);
        let widened = TensorMut::<Self>::contiguous(scratch, Float::BF16, rows, cols);
        check::matmul(&widened.as_tensor(), self.weight_shape(weight), &y)?;
        check::dequantize(quant, &x, &widened)?;
        let (stream, options) = (self.stream.cu_stream(), self.quantizing());
        let (x, y) = (quantized(&x), matrix(&y.as_tensor()));
        let widened = matrix(&widened.as_tensor());
        let quantizers = &self.quantizers;
        // SAFETY: as `act_and_mul`.
        unsafe {
            let done = self
                .matmuls
                .matmul_codes(stream, quantizers, quant, &x, weight, &widened, &y)?;
            if !done {
                quantizers.enqueue_dequantize(stream, quant, &x, &widened, options)?;
                self.matmuls.matmul(stream, &widened, weight, &y, None)?;
            }
        }
        Ok(())
    }

    /// By a weight that is packed: one kernel for few tokens, or the matmuls of x as its codes are, widened
    /// to `scratch`.
    fn quantizing_matmul_act_and_mul(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        x: Tensor<'_, Self>,
        weight: &CudaWeight,
        scratch: DeviceViewMut<'_>,
        act: TensorMut<'_, Self>,
    ) -> swiglu_core::Result<bool> {
        self.multiply_quantizing(quant, Some(op), (&x, weight, &act), scratch)
    }

    /// On FP8 tensor cores ([`Self::matmul_quantized`]), of 129 to 512 tokens: x's codes are written to `scratch`.
    fn quantizing_matmul_act_and_mul_quant(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        x: Tensor<'_, Self>,
        weight: &CudaWeight,
        scratch: DeviceViewMut<'_>,
        act: QuantizedMut<'_, Self>,
    ) -> swiglu_core::Result<bool> {
        self.activate_codes(op, quant, (&x, weight, &act), scratch)
    }

    /// As [`Self::quantizing_matmul_act_and_mul`].
    fn quantizing_matmul(
        &self,
        quant: &Quantization,
        x: Tensor<'_, Self>,
        weight: &CudaWeight,
        scratch: DeviceViewMut<'_>,
        y: TensorMut<'_, Self>,
    ) -> swiglu_core::Result<bool> {
        self.multiply_quantizing(quant, None, (&x, weight, &y), scratch)
    }
}
