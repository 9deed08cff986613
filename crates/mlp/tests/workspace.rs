//! A workspace's memory is reused: seen by a backend that counts what it is asked for.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use swiglu_core::reference::{Reference, ReferenceWeight};
use swiglu_core::{
    ActAndMul, ActAndMulQuant, Backend, DType, GatedActivation, GatedMatmul, HostBuffer,
    HostWeight, Matmul, QuantOptions, Quantization, Quantized, QuantizedMatmul, QuantizedMut,
    Result, Support, Tensor, TensorMut,
};
use swiglu_mlp::synthetic::SyntheticConfig;
use swiglu_mlp::{ActivationQuant, DeepseekV4Mlp, MlpConfig, Workspace};

mod common;
use common::{tiny, with};

/// The reference, counting; one that does not quantize on request.
#[derive(Default)]
struct Counting {
    allocations: AtomicUsize,
    quantizes: bool,
}

impl Backend for Counting {
    type Device = ();
    type Buffer = HostBuffer;
    fn platform(&self) -> &'static str {
        "counting"
    }
    fn description(&self) -> String {
        String::new()
    }
    fn device(&self) -> &() {
        &()
    }
    fn supports(&self, op: &GatedActivation, dtype: DType) -> Support {
        Reference.supports(op, dtype)
    }
    fn alloc(&self, bytes: usize) -> Result<HostBuffer> {
        self.allocations.fetch_add(1, Ordering::Relaxed);
        Reference.alloc(bytes)
    }
    fn len(&self, buffer: &HostBuffer) -> usize {
        buffer.len()
    }
    fn upload(&self, buffer: &mut HostBuffer, data: &[u8]) -> Result<()> {
        Reference.upload(buffer, data)
    }
    fn download(&self, buffer: &HostBuffer, data: &mut [u8]) -> Result<()> {
        Reference.download(buffer, data)
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

impl ActAndMul for Counting {
    fn act_and_mul(
        &self,
        op: &GatedActivation,
        input: Tensor<'_, HostBuffer>,
        output: TensorMut<'_, HostBuffer>,
    ) -> Result<()> {
        Reference.act_and_mul(op, input, output)
    }
}

impl Matmul for Counting {
    type Weight = ReferenceWeight;
    fn supports_weight(&self, dtype: DType) -> Support {
        Reference.supports_weight(dtype)
    }
    fn load_weight(&self, parts: &[HostWeight<'_>]) -> Result<ReferenceWeight> {
        Reference.load_weight(parts)
    }
    fn weight_shape(&self, weight: &ReferenceWeight) -> [usize; 2] {
        Reference.weight_shape(weight)
    }
    fn weight_bytes(&self, weight: &ReferenceWeight) -> usize {
        Reference.weight_bytes(weight)
    }
    fn matmul(
        &self,
        x: Tensor<'_, HostBuffer>,
        weight: &ReferenceWeight,
        y: TensorMut<'_, HostBuffer>,
    ) -> Result<()> {
        Reference.matmul(x, weight, y)
    }
}

impl ActAndMulQuant for Counting {
    fn supports_quant(&self, quant: &Quantization, dtype: DType) -> Support {
        if self.quantizes {
            return Reference.supports_quant(quant, dtype);
        }
        Support::No("it was asked not to".to_owned())
    }
    fn act_and_mul_quant(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        input: Tensor<'_, HostBuffer>,
        output: QuantizedMut<'_, HostBuffer>,
        options: QuantOptions<'_, HostBuffer>,
    ) -> Result<()> {
        Reference.act_and_mul_quant(op, quant, input, output, options)
    }
    fn quantize(
        &self,
        quant: &Quantization,
        input: Tensor<'_, HostBuffer>,
        output: QuantizedMut<'_, HostBuffer>,
    ) -> Result<()> {
        Reference.quantize(quant, input, output)
    }
    fn dequantize(
        &self,
        quant: &Quantization,
        input: Quantized<'_, HostBuffer>,
        output: TensorMut<'_, HostBuffer>,
    ) -> Result<()> {
        Reference.dequantize(quant, input, output)
    }
}

impl QuantizedMatmul for Counting {}

impl GatedMatmul for Counting {}

/// Runs passes of each number of tokens in turn and expects as many allocations in all.
fn count(form: &SyntheticConfig, quant: ActivationQuant, passes: &[(usize, usize)]) {
    with(form, |config, expert| {
        let config = MlpConfig {
            activation_quant: quant,
            ..config
        };
        let backend = Arc::new(Counting {
            quantizes: true,
            ..Counting::default()
        });
        let mlp = DeepseekV4Mlp::load(Arc::clone(&backend), &config, &expert).unwrap();
        let mut workspace = Workspace::new();
        let h = form.hidden;
        for &(tokens, allocations) in passes {
            let x = HostBuffer::zeroed(tokens * h * 2).unwrap();
            let mut y = HostBuffer::zeroed(tokens * h * 2).unwrap();
            mlp.forward(
                Tensor::contiguous(&x, DType::BF16, tokens, h),
                TensorMut::contiguous(&mut y, DType::BF16, tokens, h),
                &mut workspace,
            )
            .unwrap();
            let counted = backend.allocations.load(Ordering::Relaxed);
            assert_eq!(counted, allocations, "T = {tokens}");
        }
    });
}

#[test]
fn only_a_larger_pass_allocates() {
    with(&tiny(), |config, expert| {
        let mlp = DeepseekV4Mlp::load(Arc::new(Counting::default()), &config, &expert).unwrap();
        assert_eq!(mlp.weight_bytes(), 3 * (40 * 27 + 5 * 4));
    });
    let passes = [(0, 0), (3, 2), (3, 2), (1, 2), (0, 2), (4, 4), (3, 4)];
    count(&tiny(), ActivationQuant::None, &passes);
}

#[test]
fn only_a_larger_quantized_pass_allocates() {
    let form = |hidden, intermediate| SyntheticConfig {
        hidden,
        intermediate,
        block: 32,
        ..tiny()
    };
    // gate_up, codes, scales and the room to widen.
    let passes = [(0, 0), (3, 4), (3, 4), (1, 4), (0, 4), (4, 8), (3, 8)];
    count(&form(80, 70), ActivationQuant::Fp8Block, &passes);
    count(&form(70, 80), ActivationQuant::Fp8Block, &passes);
}

#[test]
fn a_backend_that_does_not_quantize_is_named() {
    let form = SyntheticConfig {
        block: 32,
        ..tiny()
    };
    with(&form, |config, expert| {
        let config = MlpConfig {
            activation_quant: ActivationQuant::Fp8Block,
            ..config
        };
        let mlp = DeepseekV4Mlp::load(Arc::new(Counting::default()), &config, &expert);
        assert_eq!(
            mlp.err().unwrap().to_string(),
            "counting does not support a product with fp8(group=32, scales=ue8m0) in f8_e4m3: \
             it was asked not to"
        );
    });
}
