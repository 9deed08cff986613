//! What a shared expert's tensors must be.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use std::collections::BTreeMap;

use safetensors::Dtype;
use swiglu_mlp::synthetic::{Names, SyntheticConfig};
use swiglu_mlp::{ActivationQuant, Checkpoint, MlpConfig, SharedExpert};

mod common;
use common::{PREFIX, Tensors, put, save, tensors, tiny};

/// The error of loading the small checkpoint after `change`.
fn refused(change: impl FnOnce(&mut MlpConfig, &mut Tensors)) -> String {
    let (mut config, mut tensors) = tensors(&tiny());
    change(&mut config, &mut tensors);
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), "model.safetensors", &tensors);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    SharedExpert::load(&checkpoint, &config)
        .unwrap_err()
        .to_string()
}

fn name(rest: &str) -> String {
    format!("{PREFIX}.{rest}")
}

#[test]
fn tensors_that_are_not_as_expected_are_named() {
    let missing = refused(|_, t| drop(t.remove(&name("w3.weight"))));
    assert!(
        missing.contains("w3.weight in ") && missing.ends_with("missing"),
        "{missing}"
    );
    let scale = refused(|_, t| drop(t.remove(&name("w2.scale"))));
    assert!(scale.contains("w2.scale in "), "{scale}");
    let extra = refused(|_, t| drop(t.insert(name("w1.bias"), (Dtype::U8, vec![1], vec![0]))));
    assert!(
        extra.contains("w1.bias in ") && extra.contains("unexpected"),
        "{extra}"
    );
    let shape = refused(|_, t| t.get_mut(&name("w1.weight")).unwrap().1.reverse());
    assert!(
        shape.contains("w1.weight in ") && shape.contains("expected shape [27, 40]"),
        "{shape}"
    );
    let grid = refused(|_, t| t.get_mut(&name("w1.scale")).unwrap().1.reverse());
    assert!(
        grid.contains("w1.scale in ") && grid.contains("expected shape [4, 5]"),
        "{grid}"
    );
    let dtype = refused(|_, t| t.get_mut(&name("w1.weight")).unwrap().0 = Dtype::F8_E5M2);
    assert!(
        dtype.contains("w1.weight in ") && dtype.contains("F8_E5M2"),
        "{dtype}"
    );
    let raw = refused(|config, t| {
        config.ue8m0 = false;
        t.get_mut(&name("w1.scale")).unwrap().0 = Dtype::U8;
    });
    assert!(
        raw.contains("w1.scale in ") && raw.contains("got U8, which would be E8M0 only if"),
        "{raw}"
    );
    let twice = refused(|_, t| {
        let up = t[&name("w3.weight")].clone();
        t.insert(name("up_proj.weight"), up);
    });
    assert!(
        twice.contains("w3.weight in ") && twice.contains("the same as"),
        "{twice}"
    );
    let twice = refused(|_, t| {
        let scale = t[&name("w3.scale")].clone();
        t.insert(name("w3.weight_scale_inv"), scale);
    });
    assert!(twice.contains("w3.weight_scale_inv in ") && twice.contains("the same as"));
    let merged = refused(|_, t| {
        let up = t[&name("w3.weight")].clone();
        t.insert(name("gate_up_proj.weight"), up);
    });
    assert!(merged.contains("gate and up in one, beside"), "{merged}");
    let plain = refused(|_, t| t.get_mut(&name("w1.scale")).unwrap().0 = Dtype::I8);
    assert!(plain.contains("got I8, which are no scales"), "{plain}");
    let ambiguous = refused(|config, t| {
        config.block = None;
        // 27 rows in blocks of 14 to 26: of 16, as none divides 27; 40 columns in 16, or 20.
        for matrix in ["w1", "w3"] {
            let scale = t.get_mut(&name(&format!("{matrix}.scale"))).unwrap();
            (scale.1, scale.2) = (vec![2, 2], vec![127; 4]);
        }
        t.remove(&name("w2.scale"));
        let down = t.get_mut(&name("w2.weight")).unwrap();
        (down.0, down.2) = (Dtype::BF16, vec![0; 2 * 27 * 40]);
    });
    assert!(
        ambiguous.contains("w1.scale in ") && ambiguous.contains("may be blocks of 20 or 32"),
        "{ambiguous}"
    );
    let nothing = refused(|config, _| config.prefix = "layers.30.ffn.shared_experts".to_owned());
    assert!(
        nothing.contains("layers.30.ffn.shared_experts.* in ") && nothing.ends_with(PREFIX),
        "{nothing}"
    );
}

#[test]
fn what_other_methods_store_is_refused_by_what_it_is() {
    for (tensor, dtype, reason) in [
        ("w1.qweight", Dtype::I32, "AWQ or GPTQ"),
        ("w1.weight_packed", Dtype::I32, "compressed-tensors"),
        ("w1.weight_zero_point", Dtype::I8, "not symmetric"),
        ("w1.weight_scale_2", Dtype::F32, "NVFP4"),
        ("w1.bias", Dtype::BF16, "a bias"),
        (
            "w1.input_quantizer._pre_quant_scale",
            Dtype::BF16,
            "not computed",
        ),
    ] {
        for alone in [false, true] {
            let error = refused(|_, t| {
                if alone {
                    t.retain(|n, _| !n.ends_with(".weight"));
                }
                let size = dtype.bitsize() / 8;
                t.insert(name(tensor), (dtype, vec![1], vec![0; size]));
            });
            assert!(error.contains(reason) && error.contains(tensor), "{error}");
        }
    }
    for dtype in [Dtype::U8, Dtype::I8] {
        let packed = refused(|_, t| t.get_mut(&name("w2.weight")).unwrap().0 = dtype);
        assert!(
            packed.contains("w2.weight in ") && packed.contains("packed"),
            "{packed}"
        );
    }
    let nvfp4 = refused(|_, t| t.get_mut(&name("w2.scale")).unwrap().0 = Dtype::F8_E4M3);
    assert!(
        nvfp4.contains("w2.scale in ") && nvfp4.contains("NVFP4"),
        "{nvfp4}"
    );
}

#[test]
fn static_scales_of_inputs_are_for_static_activations_alone() {
    let add = |t: &mut Tensors| {
        t.insert(name("w1.input_scale"), (Dtype::F32, vec![], vec![0; 4]));
    };
    let (config, mut all) = tensors(&SyntheticConfig {
        block: 32,
        ..tiny()
    });
    add(&mut all);
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), "model.safetensors", &all);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert!(SharedExpert::load(&checkpoint, &config).is_ok());
    let quantized = MlpConfig {
        activation_quant: ActivationQuant::Fp8Block,
        ..config
    };
    let error = SharedExpert::load(&checkpoint, &quantized).unwrap_err();
    assert!(error.to_string().contains("w1.input_scale in "), "{error}");
}

#[test]
fn a_part_of_a_converted_checkpoint_is_named_where_its_shapes_are_not_whole() {
    let (config, all) = tensors(&tiny());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model3-mp8.safetensors");
    save(folder.path(), "model3-mp8.safetensors", &all);
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert!(SharedExpert::load(&checkpoint, &config).is_ok());
    let whole = MlpConfig {
        intermediate_size: 8 * 27,
        ..config
    };
    let error = SharedExpert::load(&checkpoint, &whole)
        .unwrap_err()
        .to_string();
    assert!(error.contains("one of 8 parts of each tensor"), "{error}");
}

#[test]
fn other_layers_are_nobodys_business() {
    let (config, mut all) = tensors(&tiny());
    for other in [
        "layers.3.ffn.shared_experts2.w1.weight",
        "layers.30.x",
        "mtp.0.y",
    ] {
        all.insert(other.to_owned(), (Dtype::I64, vec![1], vec![0; 8]));
    }
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), "model.safetensors", &all);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert!(SharedExpert::load(&checkpoint, &config).is_ok());
}

#[test]
fn a_weight_and_its_scales_may_lie_in_different_shards() {
    let form = SyntheticConfig {
        names: Names::HuggingFace,
        ..tiny()
    };
    let (config, all) = tensors(&form);
    let folder = tempfile::tempdir().unwrap();
    let (weights, scales): (Tensors, Tensors) = all
        .clone()
        .into_iter()
        .partition(|(n, _)| n.ends_with(".weight"));
    save(folder.path(), "1.safetensors", &weights);
    save(folder.path(), "2.safetensors", &scales);
    let shard = |n: &String| {
        if n.ends_with(".weight") {
            "1.safetensors"
        } else {
            "2.safetensors"
        }
    };
    let map: BTreeMap<_, _> = all.keys().map(|n| (n, shard(n))).collect();
    let index = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
    let index = put(folder.path(), "model.safetensors.index.json", index);
    for path in [folder.path(), &index] {
        let checkpoint = Checkpoint::open(path).unwrap();
        let expert = SharedExpert::load(&checkpoint, &config).unwrap();
        let gate = format!("{}.gate_proj.weight", config.prefix);
        assert_eq!(expert.gate().data(), all[&gate].2);
        let scale = format!("{}.down_proj.weight_scale_inv", config.prefix);
        assert_eq!(expert.down().scales(), all[&scale].2);
    }
}
