//! The operations on CUDA tensors, which lie where narrowing leaves them, on both kinds of devices
//! that candle has: on each thread's own stream, and on one stream.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use candle_core::{DType, Device, Module, Tensor, Var};
use candle_nn::VarBuilder;
use swiglu_candle::{DeepseekV4Mlp, GatedActivation, Rounding, act_and_mul, act_and_mul_split};

mod common;
use common::mlp::{H, composition, dequantized, error, matrices, synthetic, written, x};
use common::{FLOATS, assert_close, composed, halves, random, refusal, values};

/// Both kinds of devices, or a skip by the name of the test.
fn devices(test: &str) -> Vec<Device> {
    let both = Device::new_cuda(0).and_then(|own| Ok(vec![own, Device::new_cuda_with_stream(0)?]));
    both.unwrap_or_else(|reason| {
        swiglu_conformance::may_skip("cuda", &reason.to_string(), test);
        Vec::new()
    })
}

fn home(x: &Tensor) -> Tensor {
    x.to_device(&Device::Cpu).unwrap()
}

#[test]
fn activations_run_where_the_rows_lie() {
    for device in devices("activations_run_where_the_rows_lie") {
        for dtype in FLOATS {
            let whole = random(&[3, 5, 48], dtype, 1);
            for op in [
                GatedActivation::deepseek_v4(),
                GatedActivation::gpt_oss().with_rounding(Rounding::Eager),
                GatedActivation::kimi_k3(),
                GatedActivation::mul_and_silu(),
            ] {
                for (dim, start, len) in [(0, 0, 3), (2, 7, 30), (1, 4, 1), (0, 0, 0)] {
                    let cut = |t: &Tensor| t.narrow(dim, start, len).unwrap();
                    let part = cut(&whole);
                    let there = cut(&whole.to_device(&device).unwrap());
                    let [gate, up] = halves(&op, &part).unwrap();
                    let expected = composed(&op, &gate, &up).unwrap();
                    let what = format!("{op} {dtype:?} {:?}", part.dims());
                    let got = act_and_mul(&op, &there).unwrap();
                    assert_close(&home(&got), &expected, &what);
                    let [gate, up] = halves(&op, &there).unwrap();
                    let got = act_and_mul_split(
                        &op,
                        &gate.contiguous().unwrap(),
                        &up.contiguous().unwrap(),
                    );
                    assert_close(&home(&got.unwrap()), &expected, &what);
                }
            }
        }
    }
}

#[test]
fn the_mlp_is_what_candle_composes() {
    for device in devices("the_mlp_is_what_candle_composes") {
        let (fp8, plain) = (written(&synthetic()), dequantized());
        let weights = matrices(&plain);
        let mlp = DeepseekV4Mlp::load(&fp8.config, &fp8.checkpoint(), &device).unwrap();
        let vb = VarBuilder::from_tensors(plain.tensors(), DType::F32, &device);
        let f32s = DeepseekV4Mlp::builder(&plain.config)
            .stages(DType::F32)
            .build(vb)
            .unwrap();
        for dtype in FLOATS {
            let x = x(&[2, 5, H], dtype);
            let there = x.to_device(&device).unwrap();
            let expected = composition(&fp8.config, &weights, &x, DType::BF16);
            let off = error(&home(&mlp.forward(&there).unwrap()), &expected);
            assert!(off < 2e-3, "{dtype:?}: {off}");
            let expected = composition(&plain.config, &weights, &x, DType::F32);
            let off = error(&home(&f32s.forward(&there).unwrap()), &expected);
            let most = if dtype == DType::F32 { 1e-5 } else { 1e-3 };
            assert!(off < most, "f32 stages, {dtype:?}: {off}");
        }
        let error = refusal(mlp.forward(&x(&[2, H], DType::BF16)));
        assert!(error.starts_with("x: expected a tensor on CUDA"), "{error}");
        let variable = x(&[2, H], DType::F32).to_device(&device).unwrap();
        let variable = Var::from_tensor(&variable).unwrap();
        let y = mlp.forward(&variable).unwrap().sum_all().unwrap();
        let error = refusal(y.backward());
        assert!(error.starts_with("deepseek_v4_mlp: no gradient"), "{error}");
    }
}

#[test]
fn threads_share_one_module() {
    for device in devices("threads_share_one_module") {
        let fp8 = written(&synthetic());
        let mlp = DeepseekV4Mlp::load(&fp8.config, &fp8.checkpoint(), &device).unwrap();
        let inputs = [1, 3, 70, 300].map(|t| x(&[t, H], DType::BF16));
        let run = |x: &Tensor| {
            let y = mlp.forward(&x.to_device(&device).unwrap()).unwrap();
            values(&home(&y))
        };
        let expected = inputs.each_ref().map(run);
        std::thread::scope(|scope| {
            for (x, expected) in inputs.iter().zip(&expected) {
                let run = &run;
                scope.spawn(move || (0..50).for_each(|_| assert_eq!(run(x), *expected)));
            }
        });
    }
}
