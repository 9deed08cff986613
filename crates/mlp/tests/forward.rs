//! The whole MLP on the reference backend, against a plain computation.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use std::sync::Arc;

use swiglu_core::{DType, HostBuffer, Limit, Tensor, TensorMut, bf16, reference::Reference};
use swiglu_mlp::synthetic::{Names, SyntheticConfig, synthetic_input};
use swiglu_mlp::{ActivationQuant, DeepseekV4Mlp, MlpConfig, Shard, SharedExpert, Workspace};

mod common;
use common::{error, forward, load, product, rounded, stages, tiny, with};

/// The definition, in f64 between the roundings to bf16.
fn plainly(expert: &SharedExpert<'_>, limit: Option<f64>, x: &[bf16]) -> Vec<f64> {
    let x: Vec<f64> = x.iter().map(|v| v.to_f64()).collect();
    let gate = rounded(product(&x, expert.gate()));
    let up = rounded(product(&x, expert.up()));
    let act = gate.iter().zip(&up).map(|(&g, &u)| {
        let (g, u) = match limit {
            Some(l) => (g.min(l), u.clamp(-l, l)),
            None => (g, u),
        };
        g / (1.0 + (-g).exp()) * u
    });
    rounded(product(&rounded(act.collect()), expert.down()))
}

#[test]
fn every_form_of_checkpoint_gives_the_definition() {
    for names in [Names::DeepSeek, Names::HuggingFace] {
        for weights in [DType::F8E4M3, DType::BF16, DType::F16, DType::F32] {
            for scales in [DType::E8M0, DType::F32] {
                let form = SyntheticConfig {
                    names,
                    weights,
                    scales,
                    ..tiny()
                };
                with(&form, |config, expert| {
                    let x = synthetic_input(3, form.hidden, 9);
                    let y = forward(&load(&config, &expert), &x);
                    let off = error(&y, &plainly(&expert, Some(10.0), &x));
                    assert!(off < 1e-4, "{form:?}: {off}");
                });
            }
        }
    }
}

#[test]
fn inputs_reach_beyond_the_limit_and_the_limit_counts() {
    let form = SyntheticConfig {
        hidden: 256,
        intermediate: 128,
        ..tiny()
    };
    with(&form, |config, expert| {
        let x = synthetic_input(4, form.hidden, 9);
        let (gate_up, ..) = stages(&load(&config, &expert), &x);
        let beyond = gate_up.iter().filter(|v| v.to_f32().abs() > 10.0).count();
        assert!(
            beyond * 200 > gate_up.len(),
            "{beyond} of {}",
            gate_up.len()
        );
        assert!(beyond * 5 < gate_up.len(), "{beyond} of {}", gate_up.len());
        let clamped = forward(&load(&config, &expert), &x);
        let open = MlpConfig {
            limit: None,
            ..config.clone()
        };
        let y = forward(&load(&open, &expert), &x);
        assert!(error(&y, &plainly(&expert, None, &x)) < 1e-4);
        assert!(error(&y, &plainly(&expert, Some(10.0), &x)) > 1e-2);
        assert!(error(&clamped, &plainly(&expert, Some(10.0), &x)) < 1e-4);
        let low = MlpConfig {
            limit: Some(Limit::new(0.5).unwrap()),
            ..config
        };
        let y = forward(&load(&low, &expert), &x);
        assert!(error(&y, &plainly(&expert, Some(0.5), &x)) < 1e-4);
    });
}

/// Every rank's `act` side by side is the unsplit one, bit for bit; their sums are y.
fn shards_agree(quant: ActivationQuant, form: &SyntheticConfig, world: usize, width: usize) {
    with(form, |config, expert| {
        let config = MlpConfig {
            activation_quant: quant,
            ..config
        };
        let x = synthetic_input(2, form.hidden, 9);
        let (_, act, y) = stages(&load(&config, &expert), &x);
        let i = form.intermediate;
        let mut acts = vec![Vec::new(); 2];
        let mut sum = vec![0.0_f64; y.len()];
        for rank in 0..world {
            let shard = Shard {
                rank,
                world,
                disable_tp: false,
            };
            let config = MlpConfig {
                shard,
                reduce_results: false,
                ..config.clone()
            };
            let mlp = load(&config, &expert);
            assert_eq!(mlp.intermediate_size(), width);
            let (_, part, partial) = stages(&mlp, &x);
            for (row, part) in acts.iter_mut().zip(part.chunks(width)) {
                row.extend_from_slice(part);
            }
            for (sum, y) in sum.iter_mut().zip(partial) {
                *sum += f64::from(y);
            }
        }
        for (row, whole) in acts.iter().zip(act.chunks(i)) {
            assert_eq!(row[..i], *whole);
            assert!(row[i..].iter().all(|v| v.to_f32() == 0.0));
        }
        for (s, y) in sum.iter().zip(&y) {
            assert!((s - f64::from(*y)).abs() < 1e-4, "{s} {y}");
        }
    });
}

#[test]
fn shards_are_the_whole() {
    // 27 columns are 4 blocks of 8.
    shards_agree(ActivationQuant::None, &tiny(), 2, 16);
    shards_agree(ActivationQuant::None, &tiny(), 3, 16);
    shards_agree(ActivationQuant::None, &tiny(), 6, 8);
    let f32_scales = SyntheticConfig {
        scales: DType::F32,
        ..tiny()
    };
    shards_agree(ActivationQuant::None, &f32_scales, 3, 16);
    let plain = SyntheticConfig {
        weights: DType::BF16,
        ..tiny()
    };
    shards_agree(ActivationQuant::None, &plain, 4, 7);
}

#[test]
fn shards_of_quantized_activations_are_the_whole() {
    let narrow = SyntheticConfig {
        intermediate: 90,
        block: 32,
        ..tiny()
    };
    shards_agree(ActivationQuant::Fp8Block, &narrow, 2, 64);
    shards_agree(ActivationQuant::Fp8Block, &narrow, 5, 32);
    let wide = SyntheticConfig {
        hidden: 200,
        intermediate: 300,
        block: 128,
        ..tiny()
    };
    shards_agree(ActivationQuant::Fp8Block, &wide, 2, 256);
    shards_agree(ActivationQuant::Fp8Block, &wide, 4, 128);
}

#[test]
fn what_cannot_be_built_is_refused() {
    with(&tiny(), |config, expert| {
        let refused = |config: MlpConfig| {
            let mlp = DeepseekV4Mlp::load(Arc::new(Reference), &config, &expert);
            mlp.err().unwrap().to_string()
        };
        let split = |rank, disable_tp| Shard {
            rank,
            world: 2,
            disable_tp,
        };
        let with_shard = |shard| MlpConfig {
            shard,
            ..config.clone()
        };
        assert!(refused(with_shard(split(0, false))).starts_with("reduce_results: expected false"));
        assert!(refused(with_shard(split(2, true))).starts_with("shard: expected a rank below"));
        let hidden = MlpConfig {
            hidden_size: 41,
            ..config.clone()
        };
        assert!(refused(hidden).starts_with("gate: expected shape [27, 41]"));
        let x = synthetic_input(2, 40, 9);
        let replicated = load(&with_shard(split(1, true)), &expert);
        assert_eq!(
            forward(&replicated, &x),
            forward(&load(&config, &expert), &x)
        );
    });
}

#[test]
fn calls_that_do_not_fit_are_refused_and_no_rows_are_nothing() {
    with(&tiny(), |config, expert| {
        let mlp = load(&config, &expert);
        let x = HostBuffer::zeroed(2 * 40 * 2).unwrap();
        let mut y = HostBuffer::zeroed(2 * 40 * 2).unwrap();
        let mut call = |x_shape: (usize, usize), y_shape: (usize, usize), dtype| {
            let x = Tensor::contiguous(&x, DType::BF16, x_shape.0, x_shape.1);
            let y = TensorMut::contiguous(&mut y, dtype, y_shape.0, y_shape.1);
            let result = mlp.forward(x, y, &mut Workspace::new());
            result.map_err(|e| e.to_string())
        };
        let bf16 = DType::BF16;
        assert!(call((2, 40), (2, 40), bf16).is_ok());
        assert!(call((0, 40), (0, 40), bf16).is_ok());
        assert!(
            call((2, 39), (2, 40), bf16)
                .unwrap_err()
                .starts_with("x: expected shape")
        );
        assert!(
            call((2, 40), (1, 40), bf16)
                .unwrap_err()
                .starts_with("y: expected shape")
        );
        assert!(
            call((3, 40), (3, 40), bf16)
                .unwrap_err()
                .starts_with("x: expected at least")
        );
        assert!(
            call((2, 40), (2, 40), DType::F32)
                .unwrap_err()
                .starts_with("y: expected at")
        );
        assert!(
            call((1, 40), (1, 40), DType::E8M0)
                .unwrap_err()
                .starts_with("y: expected f32")
        );
    });
}
