//! The MLP as a module: against candle's own composition of dequantized weights, and its options,
//! namings and sources against each other.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, IndexOp, Module, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use swiglu_candle::{
    ActivationQuant, Checkpoint, DeepseekV4Mlp, HiddenAct, Limit, MlpConfig, Rounding, Shard,
    SharedExpert,
};
use swiglu_core::{Float, RowLayout, TensorMut, bf16};
use swiglu_cpu::CpuBackend;
use swiglu_mlp::Workspace;
use swiglu_mlp::synthetic::{Names, SyntheticConfig};

mod common;
use common::mlp::{H, I, composition, dequantized, error, matrices, synthetic, written, x};
use common::{FLOATS, assert_same, refusal, values};

#[test]
fn the_mlp_is_what_candle_composes_of_dequantized_weights() {
    let (mut fp8, weights) = (written(&synthetic()), matrices(&dequantized()));
    for limit in [Some(1.0), Some(10.0), None] {
        fp8.config.limit = limit.map(|limit| Limit::new(limit).unwrap());
        for rounding in [Rounding::Official, Rounding::Eager] {
            fp8.config.rounding = rounding;
            let mlp = fp8.mlp();
            for dtype in FLOATS {
                let x = x(&[2, 5, H], dtype);
                let expected = composition(&fp8.config, &weights, &x, DType::BF16);
                let off = error(&mlp.forward(&x).unwrap(), &expected);
                assert!(off < 1e-3, "{limit:?} {rounding:?} {dtype:?}: {off}");
            }
        }
    }
    // The bound is far below what a lost clamp does.
    let x = x(&[2, 5, H], DType::BF16);
    let clamped = MlpConfig {
        limit: Some(Limit::new(10.0).unwrap()),
        ..fp8.config.clone()
    };
    let clamped = composition(&clamped, &weights, &x, DType::BF16);
    assert!(
        error(
            &composition(&fp8.config, &weights, &x, DType::BF16),
            &clamped
        ) > 0.05
    );
}

#[test]
fn f32_stages_are_f32_throughout() {
    let plain = dequantized();
    let weights = matrices(&plain);
    let x = x(&[7, H], DType::F32);
    let expected = composition(&plain.config, &weights, &x, DType::F32);
    let vb = VarBuilder::from_tensors(plain.tensors(), DType::F32, &Device::Cpu);
    let mlp = DeepseekV4Mlp::builder(&plain.config)
        .stages(DType::F32)
        .build(vb.clone())
        .unwrap();
    let off = error(&mlp.forward(&x).unwrap(), &expected);
    assert!(off < 2e-6, "{off}");
    // From a checkpoint as well; and bf16 is what there is without asking.
    let loaded = DeepseekV4Mlp::builder(&plain.config).stages(DType::F32);
    let loaded = loaded.load(&plain.checkpoint(), &Device::Cpu).unwrap();
    assert_same(
        &loaded.forward(&x).unwrap(),
        &mlp.forward(&x).unwrap(),
        "a checkpoint",
    );
    let default = DeepseekV4Mlp::new(&plain.config, vb).unwrap();
    let off = error(&default.forward(&x).unwrap(), &expected);
    assert!(off > 1e-4, "{off}");
    // f16 is a type of its own.
    let half = DeepseekV4Mlp::builder(&plain.config).stages(DType::F16);
    let half = half.load(&plain.checkpoint(), &Device::Cpu).unwrap();
    let expected = composition(&plain.config, &weights, &x, DType::F16);
    let off = error(&half.forward(&x).unwrap(), &expected);
    assert!(off < 1e-4, "{off}");
}

/// Whatever names, type and form the weights come in.
#[test]
fn each_source_of_the_weights_gives_the_same_bits() {
    let fp8 = written(&synthetic());
    let x = x(&[3, H], DType::BF16);
    let expected = fp8.mlp().forward(&x).unwrap();
    for names in [Names::DeepSeek, Names::HuggingFace] {
        for float in [Float::BF16, Float::F16, Float::F32] {
            let plain = written(&SyntheticConfig {
                names,
                weights: Some(float),
                ..synthetic()
            });
            let what = format!("{names:?} {float}");
            assert_same(&plain.mlp().forward(&x).unwrap(), &expected, &what);
            for dtype in FLOATS {
                let vb = VarBuilder::from_tensors(plain.tensors(), dtype, &Device::Cpu);
                let mlp = DeepseekV4Mlp::new(&plain.config, vb).unwrap();
                assert_same(&mlp.forward(&x).unwrap(), &expected, &what);
            }
        }
    }
    // Gate and up in one matrix, and a builder that is at the prefix already.
    let config = MlpConfig {
        prefix: String::new(),
        ..fp8.config.clone()
    };
    let [gate, up, down] = matrices(&dequantized());
    let gate_up = Tensor::cat(&[&gate, &up], 0).unwrap();
    let named = |name: &str, w: &Tensor| (format!("mlp.{name}_proj.weight"), w.clone());
    let merged = HashMap::from([named("gate_up", &gate_up), named("down", &down)]);
    let vb = VarBuilder::from_tensors(merged, DType::BF16, &Device::Cpu).pp("mlp");
    let mlp = DeepseekV4Mlp::new(&config, vb).unwrap();
    assert_same(&mlp.forward(&x).unwrap(), &expected, "merged");
    // Tensors that do not lie row by row are copied.
    let t = |w: &Tensor| w.t().unwrap().contiguous().unwrap().t().unwrap();
    let apart = HashMap::from([
        named("gate", &t(&gate)),
        named("up", &up),
        named("down", &t(&down)),
    ]);
    let vb = VarBuilder::from_tensors(apart, DType::F64, &Device::Cpu).set_dtype(DType::F32);
    let mlp = DeepseekV4Mlp::new(&config, vb.pp("mlp")).unwrap();
    assert_same(&mlp.forward(&x).unwrap(), &expected, "transposed");
}

/// y of the library's own MLP on slices.
fn direct(config: &MlpConfig, checkpoint: &Checkpoint, x: &Tensor) -> Vec<f64> {
    let expert = SharedExpert::load(checkpoint, config).unwrap();
    let mlp =
        swiglu_mlp::DeepseekV4Mlp::load(Arc::new(CpuBackend::new()), config, &expert).unwrap();
    let x: Vec<bf16> = x.flatten_all().unwrap().to_vec1().unwrap();
    let (mut y, rows) = (
        vec![bf16::ZERO; x.len()],
        RowLayout::contiguous(x.len() / H, H),
    );
    let from = swiglu_core::Tensor::from_slice(&x, rows);
    mlp.forward(
        from,
        TensorMut::from_slice(&mut y, rows),
        &mut Workspace::new(),
    )
    .unwrap();
    y.into_iter().map(f64::from).collect()
}

#[test]
fn no_option_is_lost_on_the_way() {
    let fp8 = written(&synthetic());
    let x = x(&[9, H], DType::BF16);
    let plain = values(&fp8.mlp().forward(&x).unwrap());
    let with = |change: fn(&mut MlpConfig)| {
        let mut config = fp8.config.clone();
        change(&mut config);
        config
    };
    let oai = |c: &mut MlpConfig| {
        c.hidden_act = HiddenAct::SwigluOai {
            alpha: 1.702,
            beta: 1.0,
        }
    };
    for config in [
        with(|c| c.limit = None),
        with(|c| c.limit = Some(Limit::new(7.0).unwrap())),
        with(|c| c.rounding = Rounding::Eager),
        with(oai),
        with(|c| c.hidden_act = HiddenAct::SwigluStep),
        with(|c| c.activation_quant = ActivationQuant::Fp8Block),
        with(|c| {
            c.shard = Shard {
                rank: 1,
                world: 2,
                disable_tp: false,
            };
            c.reduce_results = false;
        }),
    ] {
        let checkpoint = fp8.checkpoint();
        let mlp = DeepseekV4Mlp::load(&config, &checkpoint, &Device::Cpu).unwrap();
        let y = values(&mlp.forward(&x).unwrap());
        assert_eq!(y, direct(&config, &checkpoint, &x), "{config:?}");
        assert_ne!(y, plain, "{config:?}");
        assert_eq!(*mlp.activation(), config.activation().unwrap());
        assert_eq!(mlp.intermediate_size(), I / config.shard.world);
        assert_eq!(mlp.hidden_size(), H);
        assert!(mlp.device().is_cpu());
    }
}

#[test]
fn the_configuration_counts_with_a_builder_too() {
    let plain = dequantized();
    let x = x(&[4, H], DType::BF16);
    let mut config = plain.config.clone();
    config.limit = Some(Limit::new(0.5).unwrap());
    config.rounding = Rounding::Eager;
    let vb = VarBuilder::from_tensors(plain.tensors(), DType::F32, &Device::Cpu);
    let mlp = DeepseekV4Mlp::new(&config, vb).unwrap();
    let expected = direct(&config, &plain.checkpoint(), &x);
    assert_eq!(values(&mlp.forward(&x).unwrap()), expected);
}

#[test]
fn inputs_of_any_rank_are_read_where_they_lie() {
    let mlp = written(&synthetic()).mlp();
    for dtype in FLOATS {
        let whole = x(&[3, 4, H], dtype);
        // Sums may have another order for another number of rows.
        for (what, x) in [
            ("[T, H]", whole.i(1).unwrap()),
            ("[H]", whole.i((1, 2)).unwrap()),
            ("the last token", whole.i((.., 3, ..)).unwrap()),
            ("no rows", whole.narrow(0, 0, 0).unwrap()),
        ] {
            let alone = Tensor::from_vec(values(&x), x.dims(), &Device::Cpu).unwrap();
            let alone = alone.to_dtype(dtype).unwrap();
            assert_same(
                &mlp.forward(&x).unwrap(),
                &mlp.forward(&alone).unwrap(),
                what,
            );
        }
        let wide = Tensor::cat(&[&whole, &whole], 2)
            .unwrap()
            .narrow(2, H / 2, H)
            .unwrap();
        let copied = wide.contiguous().unwrap();
        assert_same(
            &mlp.forward(&wide).unwrap(),
            &mlp.forward(&copied).unwrap(),
            "a narrow",
        );
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let mlp = written(&synthetic()).mlp();
    let ones = |shape: &[usize], dtype| Tensor::ones(shape, dtype, &Device::Cpu).unwrap();
    for (x, start) in [
        (
            ones(&[2, H + 1], DType::F32),
            "x: expected shape [2, 96], got [2, 97]",
        ),
        (
            ones(&[2, H], DType::F64),
            "x: expected f32, f16 or bf16, got f64",
        ),
        (
            ones(&[H, 2], DType::F32).t().unwrap(),
            "x: expected rows at one distance",
        ),
        (ones(&[], DType::F32), "x: expected at least one dimension"),
    ] {
        let error = refusal(mlp.forward(&x));
        assert!(error.starts_with(start), "{error}");
    }
}

#[test]
fn weights_that_would_be_misread_are_refused() {
    let (fp8, plain) = (written(&synthetic()), dequantized());
    let prefix = &fp8.config.prefix;
    let build = |tensors: HashMap<String, Tensor>, dtype| {
        let vb = VarBuilder::from_tensors(tensors, dtype, &Device::Cpu);
        refusal(DeepseekV4Mlp::new(&fp8.config, vb))
    };
    let with = |name: &str| {
        let mut tensors = plain.tensors();
        let some = tensors[&format!("{prefix}.w1.weight")].clone();
        tensors.insert(format!("{prefix}.{name}"), some);
        tensors
    };
    for scale in ["w1.scale", "w2.weight_scale_inv", "w3.weight_scale"] {
        let error = build(with(scale), DType::BF16);
        assert!(
            error.starts_with("vb: expected weights without scales"),
            "{error}"
        );
        assert!(error.ends_with(&format!("{prefix}.{scale}")), "{error}");
    }
    let error = build(with("w2.bias"), DType::BF16);
    assert!(error.ends_with(&format!("got {prefix}.w2.bias")), "{error}");
    let error = build(with("gate_proj.weight"), DType::BF16);
    assert!(
        error.contains("one naming") && error.contains("w1.weight"),
        "{error}"
    );
    let error = build(HashMap::new(), DType::BF16);
    assert!(
        error.starts_with("vb: expected weights of w1, gate_proj or gate_up_proj"),
        "{error}"
    );
    let mut without = plain.tensors();
    without.remove(&format!("{prefix}.w3.weight"));
    let error = build(without, DType::BF16);
    assert!(error.contains(&format!("{prefix}.w3.weight")), "{error}");
    assert!(build(plain.tensors(), DType::F64).starts_with("vb: expected f32, f16 or bf16"));
    // Fewer columns than the configuration says.
    let config = MlpConfig {
        intermediate_size: I / 2,
        ..plain.config.clone()
    };
    let vb = VarBuilder::from_tensors(plain.tensors(), DType::BF16, &Device::Cpu);
    let error = refusal(DeepseekV4Mlp::new(&config, vb));
    assert!(error.contains("w1.weight"), "{error}");
    // FP8 activations go with FP8 weights, and with bf16 stages.
    let config = MlpConfig {
        activation_quant: ActivationQuant::Fp8Block,
        ..fp8.config.clone()
    };
    let vb = VarBuilder::from_tensors(plain.tensors(), DType::BF16, &Device::Cpu);
    assert!(refusal(DeepseekV4Mlp::new(&config, vb)).starts_with("activation_quant: expected"));
    let f32s = DeepseekV4Mlp::builder(&config).stages(DType::F32);
    let error = refusal(f32s.load(&fp8.checkpoint(), &Device::Cpu));
    assert!(error.starts_with("stages: expected bf16"), "{error}");
    let f64s = DeepseekV4Mlp::builder(&fp8.config).stages(DType::F64);
    let error = refusal(f64s.load(&fp8.checkpoint(), &Device::Cpu));
    assert_eq!(error, "stages: expected f32, f16 or bf16, got f64");
}

#[test]
fn a_backward_pass_is_refused() {
    let plain = dequantized();
    let x = x(&[2, H], DType::F32);
    let mlp = plain.mlp();
    let variable = Var::from_tensor(&x).unwrap();
    let error = refusal(
        mlp.forward(&variable)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward(),
    );
    assert!(error.starts_with("deepseek_v4_mlp: no gradient"), "{error}");
    // Nor is a weight that is trained taken for one without influence.
    for trained in ["w1", "w3", "w2"] {
        let mut tensors = plain.tensors();
        let name = format!("{}.{trained}.weight", plain.config.prefix);
        let weight = Var::from_tensor(&tensors[&name]).unwrap();
        tensors.insert(name, weight.as_tensor().clone());
        let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let trainable = DeepseekV4Mlp::new(&plain.config, vb).unwrap();
        let y = trainable.forward(&x).unwrap();
        assert_same(&y, &mlp.forward(&x).unwrap(), trained);
        let error = refusal(y.sum_all().unwrap().backward());
        assert!(error.starts_with("deepseek_v4_mlp: no gradient"), "{error}");
    }
}

#[test]
fn builders_that_make_their_tensors_up_work() {
    let config = written(&synthetic()).config;
    let x = x(&[2, H], DType::BF16);
    let zeros = VarBuilder::zeros(DType::BF16, &Device::Cpu);
    let y = DeepseekV4Mlp::new(&config, zeros)
        .unwrap()
        .forward(&x)
        .unwrap();
    assert!(values(&y).iter().all(|y| *y == 0.0));
    let variables = VarMap::new();
    let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
    let y = DeepseekV4Mlp::new(&config, vb)
        .unwrap()
        .forward(&x)
        .unwrap();
    assert!(values(&y).iter().any(|y| *y != 0.0));
    assert_eq!(variables.all_vars().len(), 3);
}

#[test]
fn threads_and_clones_share_one_module() {
    let mlp = written(&synthetic()).mlp();
    let inputs: Vec<Tensor> = (1..=6).map(|t| x(&[t, H], DType::BF16)).collect();
    let expected: Vec<_> = inputs
        .iter()
        .map(|x| values(&mlp.forward(x).unwrap()))
        .collect();
    std::thread::scope(|scope| {
        for (x, expected) in inputs.iter().zip(&expected) {
            let mlp = mlp.clone();
            scope.spawn(move || {
                for _ in 0..20 {
                    assert_eq!(values(&mlp.forward(x).unwrap()), *expected);
                }
            });
        }
    });
}
