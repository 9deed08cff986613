use std::sync::Arc;

use swiglu_core::{
    ActShape, DType, GatedActivation, GatedMatmul, QuantOptions, Quantization, QuantizedMut,
    Result, ScalesMut, Support, Tensor, TensorMut,
};
use swiglu_mlp::{DeepseekV4Mlp, MlpConfig, SharedExpert};

mod act;
mod mlp;

pub use act::AnyAct;
pub use mlp::AnyMlp;

/// A backend whose type is forgotten: what the registry holds. Every [`GatedMatmul`] is one, so
/// that a backend from outside the workspace registers itself as the built-in ones are.
///
/// These calls take host memory, copy and wait; they are for whole tensors, tools and tests.
pub trait AnyBackend: Send + Sync {
    /// The platform's name, such as `cpu`.
    fn platform(&self) -> &'static str;

    /// The device and what of it is used, on one line.
    fn description(&self) -> String;

    /// Whether this activation runs in this type.
    fn supports(&self, op: &GatedActivation, dtype: DType) -> Support;

    /// Whether products run with weights stored in this type.
    fn supports_weight(&self, dtype: DType) -> Support;

    /// Whether this quantization runs, fused with the activation of values of this type.
    fn supports_quant(&self, quant: &Quantization, dtype: DType) -> Support;

    /// Whether products of quantized rows run with weights stored in this type.
    fn supports_quantized(&self, quant: &Quantization, weight: DType) -> Support;

    /// Runs an activation over contiguous rows: input \[rows, 2d\], output \[rows, d\], both as
    /// bytes of `dtype`.
    ///
    /// # Errors
    /// As [`swiglu_core::ActAndMul::act_and_mul`].
    fn act_and_mul(
        &self,
        op: &GatedActivation,
        dtype: DType,
        shape: ActShape,
        input: &[u8],
        output: &mut [u8],
    ) -> Result<()>;

    /// Runs an activation and quantizes what it gives, over contiguous rows: input \[rows, 2d\] as
    /// bytes of `dtype`, codes \[rows, d\] of one byte each, scales \[rows, G\] row-major in the
    /// quantization's format.
    ///
    /// # Errors
    /// As [`swiglu_core::ActAndMulQuant::act_and_mul_quant`].
    #[allow(
        clippy::too_many_arguments,
        reason = "a matrix is a type, a shape and bytes here"
    )]
    fn act_and_mul_quant(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        dtype: DType,
        shape: ActShape,
        input: &[u8],
        codes: &mut [u8],
        scales: &mut [u8],
    ) -> Result<()>;

    /// Brings `copies` copies of an activation's input to the device, \[rows, 2d\] as bytes of
    /// `dtype`, and makes room for their outputs: to be timed. Passes take the copies in turn, so
    /// that with enough of them each finds its input in memory and not in a cache.
    ///
    /// # Errors
    /// No copies, sizes out of range, or a failure of the device.
    fn load_act(
        self: Arc<Self>,
        op: &GatedActivation,
        quant: Option<&Quantization>,
        dtype: DType,
        shape: ActShape,
        input: &[u8],
        copies: usize,
    ) -> Result<Box<dyn AnyAct>>;

    /// Brings an MLP's weights to the device.
    ///
    /// # Errors
    /// As [`DeepseekV4Mlp::load`].
    fn load_mlp(
        self: Arc<Self>,
        config: &MlpConfig,
        weights: &SharedExpert<'_>,
    ) -> Result<Box<dyn AnyMlp>, swiglu_mlp::Error>;
}

impl<B: GatedMatmul> AnyBackend for B {
    fn platform(&self) -> &'static str {
        swiglu_core::Backend::platform(self)
    }

    fn description(&self) -> String {
        swiglu_core::Backend::description(self)
    }

    fn supports(&self, op: &GatedActivation, dtype: DType) -> Support {
        swiglu_core::Backend::supports(self, op, dtype)
    }

    fn supports_weight(&self, dtype: DType) -> Support {
        swiglu_core::Matmul::supports_weight(self, dtype)
    }

    fn supports_quant(&self, quant: &Quantization, dtype: DType) -> Support {
        swiglu_core::ActAndMulQuant::supports_quant(self, quant, dtype)
    }

    fn supports_quantized(&self, quant: &Quantization, weight: DType) -> Support {
        swiglu_core::QuantizedMatmul::supports_quantized(self, quant, weight)
    }

    fn act_and_mul(
        &self,
        op: &GatedActivation,
        dtype: DType,
        shape: ActShape,
        input: &[u8],
        output: &mut [u8],
    ) -> Result<()> {
        let ActShape { rows, d } = shape;
        let mut device_input = self.alloc(input.len())?;
        let mut device_output = self.alloc(output.len())?;
        self.upload(&mut device_input, input)?;
        let input = Tensor::contiguous(&device_input, dtype, rows, 2 * d);
        let target = TensorMut::contiguous(&mut device_output, dtype, rows, d);
        swiglu_core::ActAndMul::act_and_mul(self, op, input, target)?;
        self.download(&device_output, output)
    }

    fn act_and_mul_quant(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        dtype: DType,
        shape: ActShape,
        input: &[u8],
        codes: &mut [u8],
        scales: &mut [u8],
    ) -> Result<()> {
        let ActShape { rows, d } = shape;
        let mut device_input = self.alloc(input.len())?;
        let mut device_codes = self.alloc(codes.len())?;
        let mut device_scales = self.alloc(scales.len())?;
        self.upload(&mut device_input, input)?;
        let input = Tensor::contiguous(&device_input, dtype, rows, 2 * d);
        let output = QuantizedMut {
            codes: TensorMut::contiguous(&mut device_codes, DType::F8E4M3, rows, d),
            scales: ScalesMut {
                buffer: &mut device_scales,
                layout: act::scales(quant, shape),
            },
        };
        let options = QuantOptions::default();
        swiglu_core::ActAndMulQuant::act_and_mul_quant(self, op, quant, input, output, options)?;
        self.download(&device_codes, codes)?;
        self.download(&device_scales, scales)
    }

    fn load_act(
        self: Arc<Self>,
        op: &GatedActivation,
        quant: Option<&Quantization>,
        dtype: DType,
        shape: ActShape,
        input: &[u8],
        copies: usize,
    ) -> Result<Box<dyn AnyAct>> {
        let act = act::Act::new(self, op, quant, dtype, shape, input, copies)?;
        Ok(Box::new(act))
    }

    fn load_mlp(
        self: Arc<Self>,
        config: &MlpConfig,
        weights: &SharedExpert<'_>,
    ) -> Result<Box<dyn AnyMlp>, swiglu_mlp::Error> {
        let mlp = DeepseekV4Mlp::load(self, config, weights)?;
        Ok(Box::new(mlp::HostFed::new(mlp)?))
    }
}
