//! Any bytes as the checkpoint of a whole layer, whose configuration follows from the first of them:
//! an error or a layer that runs, the same mapped and read, never a panic.
#![no_main]

use std::path::Path;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use swiglu_core::reference::Reference;
use swiglu_mlp::{Checkpoint, DeepseekV4Moe, ModelConfig, MoeWeights, OpenMode};

/// Sizes that the first bytes choose.
fn config(bytes: [u8; 4]) -> String {
    let [experts, top_k, hidden, hash] = bytes.map(usize::from);
    format!(
        r#"{{"model_type": "deepseek_v4", "hidden_size": {}, "moe_intermediate_size": 32,
        "n_shared_experts": 1, "hidden_act": "silu", "swiglu_limit": 10, "n_routed_experts": {},
        "num_experts_per_tok": {}, "scoring_func": "sqrtsoftplus", "norm_topk_prob": true,
        "routed_scaling_factor": 1.5, "num_hash_layers": {}, "vocab_size": 5}}"#,
        32 * (1 + hidden % 2),
        experts % 6,
        top_k % 4,
        hash % 2,
    )
}

/// The bytes of all experts of every layer that loads.
fn layers(path: &Path, mode: OpenMode, model: &ModelConfig) -> Option<Vec<Vec<u8>>> {
    let checkpoint = Checkpoint::open_with(path, mode).ok()?;
    let mut all = Vec::new();
    for prefix in checkpoint.moe_prefixes() {
        let Ok(config) = model.moe_config(prefix) else {
            continue;
        };
        let Ok(config) = config.with_tensors(&checkpoint) else {
            continue;
        };
        let Ok(weights) = MoeWeights::load(&checkpoint, &config) else {
            continue;
        };
        for e in 0..config.experts {
            let Ok(expert) = weights.expert(e) else {
                continue;
            };
            all.push(expert.down().data().to_vec());
        }
        let _ = DeepseekV4Moe::load(Arc::new(Reference), &config, &weights);
    }
    Some(all)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first_chunk() else {
        return;
    };
    let Ok(folder) = tempfile::tempdir() else {
        return;
    };
    let Ok(model) = ModelConfig::from_json(&config(*first)) else {
        return;
    };
    let path = folder.path().join("model.safetensors");
    if std::fs::write(&path, rest).is_err() {
        return;
    }
    let [mapped, read] = [OpenMode::Map, OpenMode::Read].map(|mode| layers(&path, mode, &model));
    assert_eq!(mapped, read);
});
