//! What a shared expert's tensors must be.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use swiglu_mlp::synthetic::{Names, SyntheticConfig, write_checkpoint};
use swiglu_mlp::{Checkpoint, MlpConfig, ModelConfig, SharedExpert};

mod common;
use common::{PREFIX, put, tiny};

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(form: &SyntheticConfig) -> (MlpConfig, Tensors) {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), form).unwrap();
    let model = ModelConfig::from_file(&folder.path().join("config.json")).unwrap();
    let bytes = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    let own = |(n, t): (&str, TensorView<'_>)| {
        (
            n.to_owned(),
            (t.dtype(), t.shape().to_vec(), t.data().to_vec()),
        )
    };
    (
        model.mlp_config(&form.prefix()).unwrap(),
        read.iter().map(own).collect(),
    )
}

fn save(folder: &Path, name: &str, tensors: &Tensors) {
    let views: BTreeMap<&String, TensorView<'_>> = tensors
        .iter()
        .map(|(n, (d, s, b))| (n, TensorView::new(*d, s.clone(), b).unwrap()))
        .collect();
    put(folder, name, safetensors::serialize(views, None).unwrap());
}

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
    let raw = refused(|_, t| t.get_mut(&name("w1.scale")).unwrap().0 = Dtype::U8);
    assert!(raw.contains("expected F8_E8M0 or F32, got U8"), "{raw}");
    let mixed = refused(|_, t| {
        let up = t.remove(&name("w3.weight")).unwrap();
        t.insert(name("up_proj.weight"), up);
    });
    assert!(mixed.contains("mixes namings"), "{mixed}");
    let block = refused(|config, _| config.block = None);
    assert!(block.starts_with("block: expected"), "{block}");
    let nothing = refused(|config, _| config.prefix = "layers.30.ffn.shared_experts".to_owned());
    assert!(
        nothing.contains("layers.30.ffn.shared_experts.* in ") && nothing.ends_with(PREFIX),
        "{nothing}"
    );
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
