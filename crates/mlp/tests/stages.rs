//! The type between the stages: what bf16 would round away is kept where f32 is asked for.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use std::sync::Arc;

use swiglu_core::reference::{Reference, gated};
use swiglu_core::{Element, GatedActivation};
use swiglu_core::{Float, HostWeight, RowLayout, Tensor, TensorMut, WeightFormat, bf16, f16};
use swiglu_mlp::{ActivationQuant, DeepseekV4Mlp, MlpConfig, ModelConfig, SharedExpert, Workspace};

mod common;
use common::{stages, tiny, with};

/// More digits than bf16 has, and a gate and an up of it beyond the limit of 10.
const X: [f32; 3] = [1.003_418, -2.007_324_2, 17.125_977];

fn one_by_one() -> MlpConfig {
    let json = r#"{"model_type": "deepseek_v4", "hidden_size": 1, "moe_intermediate_size": 1,
        "n_shared_experts": 1, "hidden_act": "silu", "swiglu_limit": 10.0}"#;
    ModelConfig::from_json(json)
        .unwrap()
        .mlp_config("")
        .unwrap()
}

/// y of an MLP whose weights are 1, with its stages in `T`, and what it should be.
fn y<T: Element>() -> [Vec<f32>; 2] {
    let config = one_by_one();
    let one = 1.0_f32.to_le_bytes();
    let weight = || HostWeight::new([1, 1], WeightFormat::Float(Float::F32), &one, &[]).unwrap();
    let weights = SharedExpert::new(weight(), weight(), weight());
    let mlp = DeepseekV4Mlp::load(Arc::new(Reference), &config, &weights).unwrap();
    let mlp = mlp.with_stages(T::FLOAT).unwrap();
    let (mut y, rows) = (vec![0.0_f32; 3], RowLayout::contiguous(3, 1));
    mlp.forward(
        Tensor::from_slice(&X, rows),
        TensorMut::from_slice(&mut y, rows),
        &mut Workspace::new(),
    )
    .unwrap();
    let act = |x: f32| {
        let stored = T::from_f32(x);
        gated(&GatedActivation::deepseek_v4(), stored, stored).to_f32()
    };
    [y, X.map(act).to_vec()]
}

#[test]
fn stages_are_in_the_type_that_is_asked_for() {
    let (single, half, brain) = (y::<f32>(), y::<f16>(), y::<bf16>());
    for [got, expected] in [&single, &half, &brain] {
        assert_eq!(got, expected);
    }
    assert_ne!(single, brain, "a type that is lost shows");
    assert_ne!(single, half);
    assert_ne!(half, brain);
}

#[test]
fn the_stages_memory_has_their_type() {
    with(&tiny(), |config, expert| {
        let mlp = DeepseekV4Mlp::load(Arc::new(Reference), &config, &expert).unwrap();
        let mlp = mlp.with_stages(Float::F32).unwrap();
        let (h, i) = (mlp.hidden_size(), mlp.intermediate_size());
        let x = vec![bf16::ONE; h];
        let row = |cols| RowLayout::contiguous(1, cols);
        let (mut gate_up, mut act) = (vec![0.0_f32; 2 * i], vec![0.0_f32; i]);
        let (mut narrow, mut y) = (vec![bf16::ZERO; i], vec![0.0_f32; h]);
        let mut workspace = Workspace::new();
        let x = Tensor::from_slice(&x, row(h));
        let gates = TensorMut::from_slice(&mut gate_up, row(2 * i));
        let acts = TensorMut::from_slice(&mut act, row(i));
        mlp.forward_stages(
            x,
            gates,
            acts,
            TensorMut::from_slice(&mut y, row(h)),
            &mut workspace,
        )
        .unwrap();
        assert!(act.iter().any(|a| *a != bf16::from_f32(*a).to_f32()));
        let gates = TensorMut::from_slice(&mut gate_up, row(2 * i));
        let acts = TensorMut::from_slice(&mut narrow, row(i));
        let error = mlp
            .forward_stages(
                x,
                gates,
                acts,
                TensorMut::from_slice(&mut y, row(h)),
                &mut workspace,
            )
            .unwrap_err();
        assert_eq!(error.to_string(), "act: expected f32, got bf16");
    });
}

#[test]
fn fp8_activations_have_stages_in_bf16_alone() {
    let synthetic = swiglu_mlp::synthetic::SyntheticConfig {
        hidden: 64,
        intermediate: 32,
        block: 32,
        ..tiny()
    };
    with(&synthetic, |mut config, expert| {
        config.activation_quant = ActivationQuant::Fp8Block;
        let load = || DeepseekV4Mlp::load(Arc::new(Reference), &config, &expert).unwrap();
        let same = load().with_stages(Float::BF16).unwrap();
        let x = vec![bf16::ONE; 64];
        assert_eq!(stages(&same, &x), stages(&load(), &x));
        let error = load().with_stages(Float::F32).unwrap_err().to_string();
        assert!(error.starts_with("stages: expected bf16"), "{error}");
    });
}
