//! Whole layers, read from every form and computed token by token.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use std::sync::Arc;

use safetensors::Dtype;
use swiglu_core::reference::{Reference, gated_routed, quantize_row};
use swiglu_core::{E4M3, HostRoutes, Quantization, RowLayout, Tensor, TensorMut, Tokens, bf16};
use swiglu_mlp::synthetic::{Names, synthetic_input, write_moe_checkpoint};
use swiglu_mlp::{
    ActivationQuant, Checkpoint, DeepseekV4Moe, ExpertDtype, MoeConfig, MoeStages, MoeWeights,
    MoeWorkspace, OpenMode, SharedExpert,
};

mod common;
use common::moe::{config, plain, small, tensors};
use common::{Tensors, save};

const TOKENS: usize = 5;

/// What a layer gave.
struct Outcome {
    y: Vec<bf16>,
    routes: HostRoutes,
}

fn run(config: &MoeConfig, weights: &MoeWeights<'_>, x: &[bf16], ids: &[i32]) -> Outcome {
    let layer = DeepseekV4Moe::load(Arc::new(Reference), config, weights).unwrap();
    let rows = RowLayout::contiguous(ids.len(), config.shared.hidden_size);
    let mut y = vec![bf16::ZERO; x.len()];
    let tokens = || Tokens {
        ids: Some(bytemuck::cast_slice(ids)),
        ..Tokens::default()
    };
    let mut workspace = MoeWorkspace::new();
    let from = Tensor::from_slice(x, rows);
    let to = TensorMut::from_slice(&mut y, rows);
    layer.forward(from, tokens(), to, &mut workspace).unwrap();
    let (mut again, mut routed, mut shared) = (y.clone(), vec![0.0_f32; x.len()], y.clone());
    let stages = MoeStages {
        routed: TensorMut::from_slice(&mut routed, rows),
        shared: TensorMut::from_slice(&mut shared, rows),
    };
    let to = TensorMut::from_slice(&mut again, rows);
    let routes = layer
        .forward_stages(from, tokens(), stages, to, &mut workspace)
        .unwrap();
    assert_eq!(y, again);
    let differ = |(at, y): (usize, &bf16)| {
        let sum = routed[at] + shared[at].to_f32();
        *y != bf16::from_f32(sum)
    };
    assert!(y.iter().enumerate().filter(|&p| differ(p)).count() * 100 < y.len());
    Outcome { y, routes }
}

/// What an expert gives for a row, from its weights alone.
fn expert(
    weights: &SharedExpert<'_>,
    config: &MoeConfig,
    quant: Option<&Quantization>,
    x: &[bf16],
    w: f32,
) -> Vec<bf16> {
    let op = config.activation().unwrap();
    let read = |x: &[bf16]| {
        let mut x: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
        if let Some(quant) = quant {
            let (mut codes, mut scales) = (vec![0; x.len()], Vec::new());
            quantize_row(quant, &x, &mut codes, |_, s| scales.push(s));
            for (j, code) in codes.iter().enumerate() {
                x[j] = E4M3(*code).to_f32() * scales[j / quant.group()];
            }
        }
        x
    };
    let times = |weight: &swiglu_core::HostWeight<'_>, x: &[f32]| -> Vec<bf16> {
        let sum = |r| {
            (0..x.len())
                .map(|k| weight.get(r, k) * f64::from(x[k]))
                .sum()
        };
        (0..weight.rows()).map(|r| bf16::from_f64(sum(r))).collect()
    };
    let input = read(x);
    let (gates, ups) = (times(weights.gate(), &input), times(weights.up(), &input));
    let act = gates.iter().zip(&ups);
    let act: Vec<bf16> = act.map(|(&g, &u)| gated_routed(&op, g, u, w)).collect();
    times(weights.down(), &read(&act))
}

#[test]
fn layers_of_every_form_are_computed_token_by_token() {
    for dtype in ExpertDtype::ALL {
        for names in [Names::DeepSeek, Names::HuggingFace] {
            for vocabulary in [None, Some(11)] {
                let form = small(dtype, names, vocabulary);
                let folder = tempfile::tempdir().unwrap();
                write_moe_checkpoint(folder.path(), &form).unwrap();
                let mut config = config(folder.path(), &form);
                assert_eq!(config.hashes, Some(vocabulary.is_some()));
                let x = synthetic_input(TOKENS, 64, 7);
                let ids = [3, 10, 0, -1, 11];
                let mut modes = vec![ActivationQuant::None];
                if dtype != ExpertDtype::Bf16 {
                    modes.push(ActivationQuant::Fp8Block);
                }
                for mode in modes {
                    config.shared.activation_quant = mode;
                    let quant = config.quantization().unwrap();
                    let mapped = Checkpoint::open(folder.path()).unwrap();
                    let weights = MoeWeights::load(&mapped, &config).unwrap();
                    let got = run(&config, &weights, &x, &ids);
                    let mut same = 0;
                    for (t, x) in x.chunks_exact(64).enumerate() {
                        let own = t * 2..t * 2 + 2;
                        let chosen = got.routes.ids[own.clone()].iter();
                        let mut routes: Vec<_> = chosen.zip(&got.routes.weights[own]).collect();
                        routes.sort_by_key(|(id, _)| **id);
                        let lost = vocabulary.is_some() && t > 2;
                        assert!(routes.iter().all(|(id, _)| (**id < 0) == lost));
                        let mut sum = vec![0.0_f64; 64];
                        let shared = expert(weights.shared(), &config, quant.as_ref(), x, 1.0);
                        let routed = routes.into_iter().filter(|(id, _)| **id >= 0);
                        let routed = routed.map(|(&id, &w)| {
                            let weights = weights.expert(id as usize).unwrap();
                            expert(&weights, &config, quant.as_ref(), x, w)
                        });
                        for o in routed.chain([shared]) {
                            sum.iter_mut()
                                .zip(o)
                                .for_each(|(s, o)| *s += f64::from(o.to_f32()));
                        }
                        let y = &got.y[t * 64..][..64];
                        let want: Vec<_> = sum.iter().map(|&s| bf16::from_f64(s)).collect();
                        same += y.iter().zip(&want).filter(|(a, b)| a == b).count();
                        let error = swiglu_relative(y, &want);
                        assert!(error < 1.5e-3, "{form:?} {mode:?} token {t}: {error}");
                    }
                    assert!(same * 100 > 99 * got.y.len(), "{same}");
                    let read = Checkpoint::open_with(folder.path(), OpenMode::Read).unwrap();
                    let weights = MoeWeights::load(&read, &config).unwrap();
                    assert_eq!(run(&config, &weights, &x, &ids).y, got.y);
                }
            }
        }
    }
}

fn swiglu_relative(got: &[bf16], want: &[bf16]) -> f64 {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
    let wide = |x: &bf16| f64::from(x.to_f32());
    let mut off = got.iter().zip(want).map(|(a, b)| wide(a) - wide(b));
    norm(&mut off) / norm(&mut want.iter().map(wide))
}

#[test]
fn stacked_experts_are_the_same_layer() {
    let form = small(ExpertDtype::Bf16, Names::HuggingFace, None);
    let (config, apart) = tensors(&form);
    let prefix = form.prefix();
    let mut stacked = apart.clone();
    stacked.retain(|n, _| !n.contains(".experts."));
    let bytes = |e: usize, m: &str| apart[&format!("{prefix}.experts.{e}.{m}.weight")].2.clone();
    let both = (0..5).flat_map(|e| [bytes(e, "gate_proj"), bytes(e, "up_proj")].concat());
    let down = (0..5).flat_map(|e| bytes(e, "down_proj"));
    let (both, down) = (both.collect::<Vec<u8>>(), down.collect::<Vec<u8>>());
    let mut put = |name: &str, shape: &[usize], bytes: Vec<u8>| {
        let name = format!("{prefix}.experts.{name}");
        stacked.insert(name, (Dtype::BF16, shape.to_vec(), bytes));
    };
    put("gate_up_proj", &[5, 64, 64], both);
    put("down_proj", &[5, 64, 32], down);
    let x = synthetic_input(TOKENS, 64, 7);
    let run_tensors = |tensors: &Tensors, mode| {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), "model.safetensors", tensors);
        let checkpoint = Checkpoint::open_with(folder.path(), mode).unwrap();
        let weights = MoeWeights::load(&checkpoint, &config).unwrap();
        run(&config, &weights, &x, &[0; TOKENS]).y
    };
    let want = run_tensors(&apart, OpenMode::Map);
    for mode in [OpenMode::Map, OpenMode::Read] {
        assert_eq!(run_tensors(&stacked, mode), want);
    }
    let folder = tempfile::tempdir().unwrap();
    let error = |tensors: &Tensors| {
        save(folder.path(), "model.safetensors", tensors);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        MoeWeights::load(&checkpoint, &config)
            .unwrap_err()
            .to_string()
    };
    let mut short = stacked.clone();
    short.remove(&format!("{prefix}.experts.down_proj"));
    assert!(
        error(&short).contains("experts.down_proj"),
        "{}",
        error(&short)
    );
    let mut turned = stacked.clone();
    turned
        .get_mut(&format!("{prefix}.experts.down_proj"))
        .unwrap()
        .1 = vec![5, 32, 64];
    assert!(error(&turned).contains("expected shape [5, 64, 32]"));
    let mut beside = stacked;
    beside.extend(apart);
    assert!(error(&beside).contains("beside experts that are all in one"));
}

#[test]
fn weights_that_the_caller_holds_are_the_same_layer() {
    let form = plain();
    let folder = tempfile::tempdir().unwrap();
    write_moe_checkpoint(folder.path(), &form).unwrap();
    let config = config(folder.path(), &form);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let weights = MoeWeights::load(&checkpoint, &config).unwrap();
    let experts: Vec<_> = (0..5).map(|e| weights.expert(e).unwrap()).collect();
    let given = |experts| {
        let (gate, shared) = (weights.gate().clone(), weights.shared().clone());
        MoeWeights::new(gate, experts, shared)
    };
    let x = synthetic_input(TOKENS, 64, 7);
    let want = run(&config, &weights, &x, &[0; TOKENS]).y;
    let held = given(experts.clone()).unwrap();
    assert_eq!(run(&config, &held, &x, &[0; TOKENS]).y, want);
    assert!(given(experts[..4].to_vec()).is_err() && given(Vec::new()).is_err());
    assert!(weights.expert(5).is_err());
}
