use super::refusal;
use crate::{
    ActAndMul, Backend, Float, GatedActivation, HostWeight, Quantization, Quantize, Quantized,
    QuantizedMut, Request, Result, Tensor, TensorMut, WeightFormat, check,
};

/// The weight of a backend that does not multiply: there is none.
#[derive(Clone, Copy, Debug)]
pub enum NoWeight {}

/// A backend that multiplies by a weight. By default it refuses.
pub trait Matmul: Backend {
    /// A weight in the form that the backend multiplies with; [`NoWeight`] where it does not.
    type Weight: Send + Sync + 'static;

    /// Brings a weight to the device, in the form that matmuls want. `parts` are stacked: the
    /// rows of the first come first. This allocates and may take long.
    ///
    /// # Errors
    /// No parts, parts of different width or format, a format that the backend does not support,
    /// or a failure of the device.
    fn load_weight(&self, parts: &[HostWeight<'_>]) -> Result<Self::Weight> {
        HostWeight::check_parts(parts)?;
        let format = parts.first().map(HostWeight::format);
        Err(refusal(self, &matmul_request(format)))
    }

    /// Brings the gate and up weights, each [I, H], to the device as one of [2I, H], gate rows
    /// first, in the form that [`Self::matmul_act_and_mul`] wants.
    ///
    /// # Errors
    /// As [`Self::load_weight`].
    fn load_gate_up(&self, gate: HostWeight<'_>, up: HostWeight<'_>) -> Result<Self::Weight> {
        self.load_weight(&[gate, up])
    }

    /// The outputs and inputs of a weight, [N, K]; [0, 0] where there is none.
    fn weight_shape(&self, weight: &Self::Weight) -> [usize; 2] {
        let _ = weight;
        [0, 0]
    }

    /// The bytes that a matmul reads for this weight.
    fn weight_bytes(&self, weight: &Self::Weight) -> usize {
        let _ = weight;
        0
    }

    /// Enqueues `y = x · wᵀ`, accumulated in f32 and rounded once: x \[T, K\], w \[N, K\], y \[T, N\].
    ///
    /// # Errors
    /// As [`check::matmul`], [`crate::Error::Unsupported`] where [`Backend::supports`] says no, or
    /// a failure of the device.
    fn matmul(
        &self,
        x: Tensor<'_, Self>,
        weight: &Self::Weight,
        y: TensorMut<'_, Self>,
    ) -> Result<()> {
        let _ = (x, weight, y);
        Err(refusal(self, &matmul_request(None)))
    }

    /// Enqueues `gate_up = R(x · wᵀ)`, then `act = op(gate_up)`: x \[T, H\], gate_up \[T, 2I\],
    /// act \[T, I\], R the rounding to gate_up's type. A backend that fuses the two applies R all
    /// the same and may leave `gate_up` unwritten.
    ///
    /// # Errors
    /// As [`Self::matmul`] and [`ActAndMul::act_and_mul`].
    fn matmul_act_and_mul(
        &self,
        op: &GatedActivation,
        x: Tensor<'_, Self>,
        weight: &Self::Weight,
        mut gate_up: TensorMut<'_, Self>,
        act: TensorMut<'_, Self>,
    ) -> Result<()>
    where
        Self: ActAndMul,
    {
        self.matmul(x, weight, gate_up.reborrow())?;
        self.act_and_mul(op, gate_up.as_tensor().into(), act)
    }

    /// Enqueues `y = (code · scale) · wᵀ`, accumulated in f32 and rounded once: x \[T, K\],
    /// w \[N, K\], y \[T, N\]. `scratch` has the bytes that [`Backend::scratch`] asks for; what it
    /// holds afterwards is unspecified. By default codes are widened into it as bf16, which is
    /// exact where scales are powers of two.
    ///
    /// # Errors
    /// As [`Quantize::dequantize`] and [`Self::matmul`].
    fn matmul_quantized(
        &self,
        quant: &Quantization,
        x: Quantized<'_, Self>,
        weight: &Self::Weight,
        scratch: Self::ViewMut<'_>,
        y: TensorMut<'_, Self>,
    ) -> Result<()>
    where
        Self: Quantize,
    {
        let (rows, cols) = (x.layout.rows, x.layout.cols);
        let mut widened = TensorMut::contiguous(scratch, Float::BF16, rows, cols);
        check::matmul::<Self>(&widened.as_tensor(), self.weight_shape(weight), &y)?;
        self.dequantize(quant, x, widened.reborrow())?;
        self.matmul(widened.as_tensor(), weight, y)
    }

    /// Enqueues `act = op(R(c · wᵀ))`, c being x as `quant` leaves it and R the rounding to act's type, if
    /// the backend has kernels that quantize on the way; whether it has. By default it has none.
    /// Results are those of [`Quantize::quantize`], [`Self::matmul_quantized`] and
    /// [`ActAndMul::act_and_mul`], codes in no memory of the caller's. `scratch` is
    /// [`Self::matmul_quantized`]'s.
    ///
    /// # Errors
    /// As of these three. Nothing has been enqueued then, or where it is false.
    fn quantizing_matmul_act_and_mul(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        x: Tensor<'_, Self>,
        weight: &Self::Weight,
        scratch: Self::ViewMut<'_>,
        act: TensorMut<'_, Self>,
    ) -> Result<bool>
    where
        Self: Quantize,
    {
        let _ = (op, quant, x, weight, scratch, act);
        Ok(false)
    }

    /// As [`Self::quantizing_matmul_act_and_mul`], and `act` is quantized too: results are those of
    /// [`Quantize::quantize`], [`Self::matmul_quantized`] and [`Quantize::act_and_mul_quant`], R being the rounding to
    /// bf16.
    ///
    /// # Errors
    /// As of these three. Nothing has been enqueued then, or where it is false.
    fn quantizing_matmul_act_and_mul_quant(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        x: Tensor<'_, Self>,
        weight: &Self::Weight,
        scratch: Self::ViewMut<'_>,
        act: QuantizedMut<'_, Self>,
    ) -> Result<bool>
    where
        Self: Quantize,
    {
        let _ = (op, quant, x, weight, scratch, act);
        Ok(false)
    }

    /// Enqueues `y = c · wᵀ` as [`Self::quantizing_matmul_act_and_mul`] does, with the results of
    /// [`Quantize::quantize`] and [`Self::matmul_quantized`], if the backend has kernels for it; whether it has.
    ///
    /// # Errors
    /// As of these two.
    fn quantizing_matmul(
        &self,
        quant: &Quantization,
        x: Tensor<'_, Self>,
        weight: &Self::Weight,
        scratch: Self::ViewMut<'_>,
        y: TensorMut<'_, Self>,
    ) -> Result<bool>
    where
        Self: Quantize,
    {
        let _ = (quant, x, weight, scratch, y);
        Ok(false)
    }
}

fn matmul_request(weight: Option<WeightFormat>) -> Request {
    Request::Matmul {
        x: Float::BF16,
        weight: weight.unwrap_or(WeightFormat::Float(Float::BF16)),
        y: Float::BF16,
    }
}
