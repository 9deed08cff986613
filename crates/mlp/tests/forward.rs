//! The whole MLP on the reference backend, against a plain computation.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use std::sync::Arc;

use swiglu_core::{
    Backend, Float, HostBuffer, Limit, RowLayout, ScaleFormat, Tensor, TensorMut, bf16,
    reference::Reference,
};
use swiglu_mlp::synthetic::{Names, SyntheticConfig, synthetic_input};
use swiglu_mlp::{ActivationQuant, DeepseekV4Mlp, MlpConfig, Shard, Workspace};

mod common;
use common::{error, forward, load, plainly, stages, tiny, with};

#[test]
fn every_form_of_checkpoint_gives_the_definition() {
    for names in [Names::DeepSeek, Names::HuggingFace] {
        for weights in [None, Some(Float::BF16), Some(Float::F16), Some(Float::F32)] {
            for scales in ScaleFormat::ALL {
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
        scales: ScaleFormat::F32,
        ..tiny()
    };
    shards_agree(ActivationQuant::None, &f32_scales, 3, 16);
    let plain = SyntheticConfig {
        weights: Some(Float::BF16),
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
    for (form, quant) in [
        (tiny(), ActivationQuant::None),
        (
            SyntheticConfig {
                block: 32,
                ..tiny()
            },
            ActivationQuant::Fp8Block,
        ),
    ] {
        with(&form, |config, expert| {
            let mlp = load(
                &MlpConfig {
                    activation_quant: quant,
                    ..config
                },
                &expert,
            );
            let x = HostBuffer::zeroed(2 * 40 * 2).unwrap();
            let mut y = HostBuffer::zeroed(2 * 40 * 2).unwrap();
            let mut call = |x_shape: (usize, usize), y_shape: (usize, usize), float| {
                let x = Reference::view(&x);
                let x = Tensor::contiguous(x, Float::BF16, x_shape.0, x_shape.1);
                let y = Reference::view_mut(&mut y);
                let y = TensorMut::contiguous(y, float, y_shape.0, y_shape.1);
                let result = mlp.forward(x, y, &mut Workspace::new());
                result.map_or_else(|e| e.to_string(), |()| "done".to_owned())
            };
            let bf16 = Float::BF16;
            for (x, y, float, expected) in [
                ((2, 40), (2, 40), bf16, "done"),
                ((1, 40), (1, 40), Float::F32, "done"),
                ((0, 40), (0, 40), bf16, "done"),
                ((0, 39), (0, 40), bf16, "x: expected shape [0, 40]"),
                ((2, 39), (2, 40), bf16, "x: expected shape [2, 40]"),
                ((2, 40), (1, 40), bf16, "y: expected shape [2, 40]"),
                ((2, 40), (2, 41), bf16, "y: expected shape [2, 40]"),
                ((3, 40), (3, 40), bf16, "y: expected at least 120"),
                ((2, 40), (2, 40), Float::F32, "y: expected at least 80"),
            ] {
                let got = call(x, y, float);
                assert!(got.starts_with(expected), "{x:?} {y:?}: {got}");
            }
            let mut y = vec![0.0_f32; 3 * 40];
            let rows = RowLayout::contiguous(3, 40);
            let short = mlp.forward(
                Tensor::new(Reference::view(&x), bf16, rows),
                TensorMut::from_slice(&mut y, rows),
                &mut Workspace::new(),
            );
            let error = short.unwrap_err().to_string();
            assert!(error.starts_with("x: expected at least 120"), "{error}");
        });
    }
}

#[test]
fn memory_for_the_stages_that_does_not_fit_is_refused_by_name() {
    with(&tiny(), |config, expert| {
        let mlp = load(&config, &expert);
        let x = synthetic_input(2, 40, 9);
        let call = |gate_up: (Float, usize), act: (Float, usize), short: usize| {
            let buffer = |n| HostBuffer::zeroed(n).unwrap();
            let (mut stage, mut result) = (buffer(2 * 54 * 2 - short), buffer(2 * 27 * 4));
            let mut y = vec![bf16::ONE; 2 * 40];
            let rows = RowLayout::contiguous(2, 40);
            let error = mlp.forward_stages(
                Tensor::from_slice(&x, rows),
                TensorMut::contiguous(Reference::view_mut(&mut stage), gate_up.0, 2, gate_up.1),
                TensorMut::contiguous(Reference::view_mut(&mut result), act.0, 2, act.1),
                TensorMut::from_slice(&mut y, rows),
                &mut Workspace::new(),
            );
            assert!(stage.bytes().iter().all(|&b| b == 0), "nothing has run");
            error.unwrap_err().to_string()
        };
        let (bf16, f32) = (Float::BF16, Float::F32);
        for (gate_up, act, short, expected) in [
            ((f32, 54), (bf16, 27), 0, "gate_up: expected bf16"),
            ((bf16, 53), (bf16, 27), 0, "gate_up: expected shape [2, 54]"),
            ((bf16, 54), (bf16, 27), 2, "gate_up: expected at least 108"),
            ((bf16, 54), (f32, 27), 0, "act: expected bf16"),
            ((bf16, 54), (bf16, 28), 0, "act: expected shape [2, 27]"),
        ] {
            let got = call(gate_up, act, short);
            assert!(got.starts_with(expected), "{got}");
        }
    });
}

/// For another stream of a device: the weights stay where they are, and outlive what loaded them.
#[test]
fn an_mlp_on_another_backend_gives_the_same_bits() {
    with(&tiny(), |config, expert| {
        let x = synthetic_input(3, tiny().hidden, 9);
        let first = load(&config, &expert);
        let want = forward(&first, &x);
        let other = first.on(Arc::new(Reference));
        drop(first);
        assert_eq!(forward(&other, &x), want);
        assert_eq!(other.intermediate_size(), tiny().intermediate);
    });
}
