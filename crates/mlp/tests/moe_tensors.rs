//! What a layer's tensors must be: others are refused by name.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use safetensors::Dtype;
use swiglu_core::WeightFormat;
use swiglu_mlp::synthetic::{Names, SyntheticMoe};
use swiglu_mlp::{Checkpoint, ExpertDtype, MoeConfig, MoeWeights, OpenMode};

mod common;
use common::moe::{plain, small, tensors};
use common::{Tensors, save};

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
    type Change<'a> = &'a dyn Fn(&str, &mut (Dtype, Vec<usize>, Vec<u8>));
    let each = |t: &mut Tensors, change: Change<'_>| {
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
