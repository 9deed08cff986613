//! Whole layers: read from every form, computed token by token, and refused by name.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;
use swiglu_core::reference::{Reference, gated_routed, quantize_row};
use swiglu_core::{
    E4M3, HostRoutes, Quantization, RowLayout, Tensor, TensorMut, Tokens, WeightFormat, bf16,
};
use swiglu_mlp::synthetic::{
    Names, SyntheticConfig, SyntheticMoe, synthetic_input, write_moe_checkpoint,
};
use swiglu_mlp::{
    ActivationQuant, Checkpoint, DeepseekV4Moe, ExpertDtype, ModelConfig, MoeConfig, MoeStages,
    MoeWeights, MoeWorkspace, OpenMode, SharedExpert,
};

mod common;
use common::{Tensors, save};

const TOKENS: usize = 5;

/// A small layer of five experts.
fn small(dtype: ExpertDtype, names: Names, vocabulary: Option<usize>) -> SyntheticMoe {
    SyntheticMoe {
        shared: SyntheticConfig {
            hidden: 64,
            intermediate: 32,
            block: 32,
            names,
            ..SyntheticConfig::flash(3)
        },
        top_k: 2,
        dtype,
        vocabulary,
        images: true,
        ..SyntheticMoe::flash(5, 3)
    }
}

fn plain() -> SyntheticMoe {
    small(ExpertDtype::Fp4, Names::DeepSeek, None)
}

fn config(folder: &Path, form: &SyntheticMoe) -> MoeConfig {
    let model = ModelConfig::from_file(&folder.join("config.json")).unwrap();
    model.moe_config(&form.prefix()).unwrap()
}

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

/// The small layer's tensors and configuration.
fn tensors(form: &SyntheticMoe) -> (MoeConfig, Tensors) {
    let folder = tempfile::tempdir().unwrap();
    write_moe_checkpoint(folder.path(), form).unwrap();
    let config = config(folder.path(), form);
    let bytes = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let own = |(n, t): (&str, safetensors::tensor::TensorView<'_>)| {
        let tensor = (t.dtype(), t.shape().to_vec(), t.data().to_vec());
        (n.to_owned(), tensor)
    };
    (config, read.iter().map(own).collect())
}

/// Loads the small layer after `change`, mapped and read.
fn load(
    form: &SyntheticMoe,
    change: impl FnOnce(&mut MoeConfig, &mut Tensors),
) -> Result<[WeightFormat; 2], String> {
    let (mut config, mut tensors) = tensors(form);
    change(&mut config, &mut tensors);
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), "model.safetensors", &tensors);
    let [mapped, read] = [OpenMode::Map, OpenMode::Read].map(|mode| {
        let checkpoint = Checkpoint::open_with(folder.path(), mode).unwrap();
        let weights = MoeWeights::load(&checkpoint, &config);
        let weights = weights.map_err(|e| e.to_string())?;
        for e in 0..config.experts {
            weights.expert(e).map_err(|e| e.to_string())?;
        }
        Ok::<_, String>(weights.formats())
    });
    assert_eq!(mapped, read);
    mapped
}

fn refused(
    form: &SyntheticMoe,
    name: &str,
    reason: &str,
    change: impl FnOnce(&mut MoeConfig, &mut Tensors),
) {
    let error = load(form, change).unwrap_err();
    assert!(
        error.contains(name) && error.contains(reason),
        "expected {name}: {reason}, got {error}"
    );
}

#[test]
fn fp4_is_read_as_bytes_of_either_sign_and_as_a_type_of_its_own() {
    let fp4 = Ok([WeightFormat::Fp4; 2]);
    assert_eq!(load(&plain(), |_, _| ()), fp4);
    let each = |t: &mut Tensors, change: &dyn Fn(&str, &mut (Dtype, Vec<usize>, Vec<u8>))| {
        let experts = t.iter_mut().filter(|(n, _)| n.contains(".experts."));
        experts.for_each(|(n, tensor)| change(n, tensor));
    };
    let unsigned = load(&plain(), |_, t| {
        each(t, &|_, tensor| tensor.0 = Dtype::U8);
    });
    assert_eq!(unsigned, fp4);
    let own = load(&plain(), |_, t| {
        each(t, &|n, tensor| {
            if n.ends_with("weight") {
                (tensor.0, tensor.1[1]) = (Dtype::F4, 2 * tensor.1[1]);
            }
        });
    });
    assert_eq!(own, fp4);
}

#[test]
fn experts_that_are_missing_misnumbered_or_too_many_are_named() {
    let at = |n: usize, rest: &str| format!("layers.3.ffn.experts.{n}.{rest}");
    let form = plain();
    refused(&form, "experts.2.*", "missing, of 5", |_, t| {
        t.retain(|n, _| !n.contains(".experts.2."));
    });
    refused(&form, "experts.4.*", "missing, of 5", |_, t| {
        t.retain(|n, _| !n.contains(".experts.4."));
    });
    refused(&form, "experts.3.w2.weight", "missing", |_, t| {
        drop(t.remove(&at(3, "w2.weight")));
    });
    refused(&form, "experts.3.w1.scale", "missing, and FP4", |_, t| {
        drop(t.remove(&at(3, "w1.scale")));
    });
    refused(&form, "experts.4.", "has 4 routed experts", |c, _| {
        c.experts = 4
    });
    refused(&form, "experts.5.*", "missing, of 6", |c, t| {
        c.experts = 6;
        let gate = t.get_mut("layers.3.ffn.gate.weight").unwrap();
        gate.1[0] = 6;
        gate.2.extend([0; 128]);
    });
    for wrong in [
        "layers.3.ffn.experts.05.w1.weight",
        "layers.3.ffn.experts.x.w1.weight",
    ] {
        refused(&form, wrong, "unexpected", |_, t| {
            t.insert(wrong.to_owned(), (Dtype::U8, vec![1], vec![0]));
        });
    }
    refused(&form, "experts.1.w1.bias", "unexpected", |_, t| {
        t.insert(at(1, "w1.bias"), (Dtype::U8, vec![1], vec![0]));
    });
    refused(&form, "layers.3.ffn.norm.weight", "unexpected", |_, t| {
        t.insert(
            "layers.3.ffn.norm.weight".to_owned(),
            (Dtype::U8, vec![1], vec![0]),
        );
    });
    refused(&form, "shared_experts", "", |_, t| {
        t.retain(|n, _| !n.contains("shared_experts"));
    });
}

#[test]
fn experts_of_wrong_types_and_shapes_are_named() {
    let at = |rest: &str| format!("layers.3.ffn.experts.1.{rest}");
    let form = plain();
    refused(
        &form,
        &at("w1.weight"),
        "expected shape [32, 32]",
        |_, t| {
            t.get_mut(&at("w1.weight")).unwrap().1 = vec![64, 16];
        },
    );
    refused(&form, &at("w2.scale"), "expected shape [64, 1]", |_, t| {
        t.get_mut(&at("w2.scale")).unwrap().1 = vec![1, 64];
    });
    refused(&form, &at("w1.scale"), "NVFP4", |_, t| {
        t.get_mut(&at("w1.scale")).unwrap().0 = Dtype::F8_E4M3;
    });
    refused(&form, &at("w1.weight"), "F8_E5M2", |_, t| {
        t.get_mut(&at("w1.weight")).unwrap().0 = Dtype::F8_E5M2;
    });
    // One expert in another format than the rest.
    let (_, other) = tensors(&small(ExpertDtype::Fp8, Names::DeepSeek, None));
    refused(&form, "experts.1.", "stored as the first", |c, t| {
        c.expert_dtype = None;
        for (name, tensor) in &other {
            if name.contains(".experts.1.") {
                t.insert(name.clone(), tensor.clone());
            }
        }
    });
    for (stated, name) in [(ExpertDtype::Fp8, "fp8"), (ExpertDtype::Bf16, "bf16")] {
        let reason =
            format!("expected fp4, as the tensors under layers.3.ffn.experts are, got {name}");
        refused(&form, "expert_dtype", &reason, |c, _| {
            c.expert_dtype = Some(stated)
        });
    }
    assert!(load(&form, |c, _| c.expert_dtype = None).is_ok());
}

#[test]
fn a_routers_tensors_are_what_the_configuration_says() {
    let at = |rest: &str| format!("layers.3.ffn.gate.{rest}");
    let score = plain();
    let hash = small(ExpertDtype::Fp4, Names::DeepSeek, Some(11));
    refused(&score, &at("weight"), "missing", |_, t| {
        drop(t.remove(&at("weight")))
    });
    refused(&score, &at("weight"), "expected shape [5, 64]", |_, t| {
        t.get_mut(&at("weight")).unwrap().1 = vec![64, 5];
    });
    refused(&score, &at("weight"), "expected BF16, got F16", |_, t| {
        t.get_mut(&at("weight")).unwrap().0 = Dtype::F16;
    });
    refused(&score, &at("bias"), "missing, and so is tid2eid", |_, t| {
        drop(t.remove(&at("bias")));
    });
    refused(&score, &at("bias_vl"), "expected shape [5]", |_, t| {
        t.insert(at("bias_vl"), (Dtype::F32, vec![4], vec![0; 16]));
    });
    refused(&score, &at("bias"), "expected F32, got I32", |_, t| {
        t.get_mut(&at("bias")).unwrap().0 = Dtype::I32;
    });
    refused(&score, "e_score_correction_bias", "the same as", |_, t| {
        let bias = t[&at("bias")].clone();
        t.insert(at("e_score_correction_bias"), bias);
    });
    refused(&hash, &at("bias"), "unexpected beside tid2eid", |_, t| {
        t.insert(at("bias"), (Dtype::F32, vec![5], vec![0; 20]));
    });
    refused(
        &hash,
        &at("tid2eid"),
        "has this layer choose by score",
        |c, _| c.hashes = Some(false),
    );
    refused(&score, &at("tid2eid"), "has this layer hash", |c, _| {
        c.hashes = Some(true)
    });
    refused(&hash, &at("tid2eid"), "expected shape [12, 2]", |c, _| {
        c.vocab_size = Some(12)
    });
    refused(&hash, &at("tid2eid"), "expected shape [11, 3]", |c, _| {
        c.top_k = 3
    });
    refused(
        &hash,
        &at("tid2eid"),
        "expected I64 or I32, got F32",
        |_, t| {
            *t.get_mut(&at("tid2eid")).unwrap() = (Dtype::F32, vec![11, 2], vec![0; 88]);
        },
    );
    for id in [5_i64, -1, i64::MAX, 1 << 32] {
        refused(&hash, &at("tid2eid"), "at [10, 1]", |_, t| {
            t.get_mut(&at("tid2eid")).unwrap().2[21 * 8..].copy_from_slice(&id.to_le_bytes());
        });
    }
    let narrow = load(&hash, |_, t| {
        let (dtype, _, bytes) = t.get_mut(&at("tid2eid")).unwrap();
        *dtype = Dtype::I32;
        *bytes = bytes.chunks(8).flat_map(|id| id[..4].to_vec()).collect();
    });
    assert!(narrow.is_ok(), "{narrow:?}");
    assert!(load(&hash, |c, _| (c.hashes, c.vocab_size) = (None, None)).is_ok());
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
