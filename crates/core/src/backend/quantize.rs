use super::refusal;
use crate::{
    Backend, GateUp, GatedActivation, Quantization, Quantized, QuantizedMut, Request, Result,
    Tensor, TensorMut,
};

/// Rows in batches of equal capacity, of which only the first few are in use.
pub struct Batch<'a, B: Backend> {
    /// Rows of each batch; T is a multiple.
    pub rows: usize,
    /// One i32 for each batch, on the device: its rows in use, taken as 0 below 0 and as
    /// [`Self::rows`] above it.
    pub counts: B::View<'a>,
}

/// What a fused activation and quantization does besides.
pub struct QuantOptions<'a, B: Backend> {
    /// One f32 for each row, T in all, that multiplies it before it is rounded.
    pub route: Option<B::View<'a>>,
    /// Which rows are in use. The others are neither read nor written, nor are their scales.
    pub batch: Option<Batch<'a, B>>,
    /// Three u32 that the call adds to, wrapping: how often gate > L, up > L and up < -L. With the
    /// clamp after the function it is f(gate) > L. NaN does not count, and without a clamp nothing
    /// does.
    pub hits: Option<B::ViewMut<'a>>,
}

impl<B: Backend> Default for QuantOptions<'_, B> {
    fn default() -> Self {
        Self {
            route: None,
            batch: None,
            hits: None,
        }
    }
}

/// A backend that quantizes rows to FP8 and back. By default it refuses.
pub trait Quantize: Backend {
    /// Enqueues `output = quant(op(input))` in one pass: the input as in
    /// [`crate::ActAndMul::act_and_mul`], codes \[T, d\] and scales \[T, G\]. With
    /// [`Quantization::materialize`], codes and scales are bit for bit those of the activation
    /// followed by [`Self::quantize`].
    ///
    /// # Errors
    /// As [`crate::check::act_quant`], [`crate::Error::Unsupported`] where [`Backend::supports`]
    /// says no, or a failure of the device.
    fn act_and_mul_quant(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        input: GateUp<'_, Self>,
        output: QuantizedMut<'_, Self>,
        options: QuantOptions<'_, Self>,
    ) -> Result<()> {
        let _ = (output, options);
        let request = Request::ActivationQuant {
            op: *op,
            quant: *quant,
            float: input.float(),
        };
        Err(refusal(self, &request))
    }

    /// Enqueues `output = quant(input)`: both \[T, d\].
    ///
    /// # Errors
    /// As [`crate::check::quantize`], [`crate::Error::Unsupported`] where [`Backend::supports`]
    /// says no, or a failure of the device.
    fn quantize(
        &self,
        quant: &Quantization,
        input: Tensor<'_, Self>,
        output: QuantizedMut<'_, Self>,
    ) -> Result<()> {
        let _ = output;
        let (quant, float) = (*quant, input.float);
        Err(refusal(self, &Request::Quantize { quant, float }))
    }

    /// Enqueues `output = code · scale`, rounded once to the output's type: both \[T, d\]. In f32,
    /// and in bf16 too, this is exact under [`crate::ScaleFormat::E8M0`].
    ///
    /// # Errors
    /// As [`crate::check::dequantize`], [`crate::Error::Unsupported`] where [`Backend::supports`]
    /// says no, or a failure of the device.
    fn dequantize(
        &self,
        quant: &Quantization,
        input: Quantized<'_, Self>,
        output: TensorMut<'_, Self>,
    ) -> Result<()> {
        let _ = input;
        let (quant, float) = (*quant, output.float);
        Err(refusal(self, &Request::Quantize { quant, float }))
    }
}
