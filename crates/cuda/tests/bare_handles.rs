//! The backend on handles that cudarc did not make, and on memory of another owner.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use swiglu_core::{
    ActAndMul, Backend, Float, GatedActivation, Matmul, QuantOptions, Quantization, Quantize,
    QuantizedMut, RowLayout, ScaleLayout, ScaleOrder, Tensor, TensorMut,
};
use swiglu_cuda::{CudaBackend, CudaBuffer};
use swiglu_mlp::synthetic::{SyntheticConfig, synthetic_input};
use swiglu_mlp::{DeepseekV4Mlp, ModelConfig, SharedExpert, Workspace};

#[allow(dead_code, reason = "its main is the example's")]
#[path = "../examples/bare_handles.rs"]
mod example;

mod common;
use common::{bytes, filled, open};
use example::engine::Engine;
use example::{Results, SIZES, host_weight};

/// What the example does, on memory and a stream of the backend's own.
fn ordinarily(cuda: CudaBackend) -> Results {
    let [t, h, i] = SIZES;
    let numbers = example::weights();
    let weight = |shape| host_weight(&numbers, shape).unwrap();
    let x = filled(&cuda, bytemuck::cast_slice(&synthetic_input(t, h, 7)));
    let zeros = |bytes: usize| filled(&cuda, &vec![0; bytes]);
    let (mut gate_up, mut act) = (zeros(4 * t * i), zeros(2 * t * i));
    let (mut codes, mut scales, mut y) = (zeros(t * i), zeros(t), zeros(2 * t * h));
    fn read(buffer: &CudaBuffer, cols: usize) -> Tensor<'_, CudaBackend> {
        Tensor::contiguous(buffer.into(), Float::BF16, SIZES[0], cols)
    }
    fn write(buffer: &mut CudaBuffer, cols: usize) -> TensorMut<'_, CudaBackend> {
        TensorMut::contiguous(buffer.into(), Float::BF16, SIZES[0], cols)
    }
    let loaded = cuda.load_weight(&[weight([2 * i, h])]).unwrap();
    cuda.matmul(read(&x, h), &loaded, write(&mut gate_up, 2 * i))
        .unwrap();
    let (op, quant) = (GatedActivation::deepseek_v4(), Quantization::deepseek_v4());
    cuda.act_and_mul(&op, read(&gate_up, 2 * i).into(), write(&mut act, i))
        .unwrap();
    let (format, order) = (quant.format(), ScaleOrder::RowMajor);
    let output = QuantizedMut {
        codes: (&mut codes).into(),
        layout: RowLayout::contiguous(t, i),
        scales: (&mut scales).into(),
        scale_layout: ScaleLayout::contiguous(format, order, t, quant.groups(i)),
    };
    let input = read(&gate_up, 2 * i).into();
    cuda.act_and_mul_quant(&op, &quant, input, output, QuantOptions::default())
        .unwrap();
    let form = SyntheticConfig {
        hidden: h,
        intermediate: i,
        ..SyntheticConfig::flash(1)
    };
    let config = ModelConfig::from_json(&form.config_json()).unwrap();
    let config = config.mlp_config(&form.prefix()).unwrap();
    let expert = SharedExpert::new(weight([i, h]), weight([i, h]), weight([h, i]));
    let [gate_up, act, codes] = [gate_up, act, codes].map(|buffer| bytes(&cuda, &buffer));
    let cuda = Arc::new(cuda);
    let mlp = DeepseekV4Mlp::load(cuda.clone(), &config, &expert).unwrap();
    mlp.forward(read(&x, h), write(&mut y, h), &mut Workspace::new())
        .unwrap();
    let y = bytes(&*cuda, &y);
    Results {
        gate_up,
        act,
        codes,
        y: [y.clone(), y],
    }
}

#[test]
fn bare_handles_give_the_bits_of_the_backends_own() {
    let Some((cuda, _turn)) = open("bare_handles") else {
        return;
    };
    let got = example::run().unwrap();
    assert!(got.y[0].iter().any(|&byte| byte != 0));
    assert_eq!(got, ordinarily(cuda));
}

/// A context that is no primary one stays its maker's: backends on it come and go.
#[test]
fn another_context_serves_and_its_streams_and_weights_are_told_apart() {
    let Some((cuda, _turn)) = open("bare_handles") else {
        return;
    };
    let [_, h, i] = SIZES;
    let engine = Engine::with_a_context_of_its_own().unwrap();
    let stream = engine.stream().unwrap();
    for _ in 0..2 {
        // SAFETY: the engine keeps both.
        let foreign = unsafe { CudaBackend::from_raw(engine.context(), stream) }.unwrap();
        let buffer = filled(&foreign, &[1, 2, 3]);
        assert_eq!(bytes(&foreign, &buffer), [1, 2, 3]);
        // SAFETY: as above.
        let error = unsafe { cuda.on_raw(stream) }.err().unwrap().to_string();
        assert!(error.starts_with("stream: expected"), "{error}");
        let codes = example::weights();
        let weight = foreign.load_weight(&[host_weight(&codes, [i, h]).unwrap()]);
        let weight = weight.unwrap();
        let x = filled(&cuda, &vec![0; 2 * h]);
        let mut y = cuda.alloc(2 * i).unwrap();
        let x = Tensor::contiguous(CudaBackend::view(&x), Float::BF16, 1, h);
        let y = TensorMut::contiguous(CudaBackend::view_mut(&mut y), Float::BF16, 1, i);
        let error = cuda.matmul(x, &weight, y).unwrap_err().to_string();
        assert!(error.starts_with("weight: expected"), "{error}");
    }
    // SAFETY: null is refused.
    let none = unsafe { CudaBackend::from_raw(std::ptr::null_mut(), std::ptr::null_mut()) };
    let error = none.err().unwrap().to_string();
    assert!(error.starts_with("context: expected"), "{error}");
}

/// The page shows the example's own text.
#[test]
fn the_page_shows_what_is_compiled() {
    let page = include_str!("../../../docs/another-cudarc.md");
    let example = include_str!("../examples/bare_handles.rs");
    let shown = example.split("// page: begin\n").nth(1).unwrap();
    let shown = shown.split("// page: end\n").next().unwrap();
    assert!(
        page.contains(shown),
        "docs/another-cudarc.md differs from the example"
    );
}
