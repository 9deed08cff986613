//! Any bytes as a safetensors file and as a checkpoint's index, mapped and read, and as the MLP of
//! every prefix in it: an error or weights, the same in both modes, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use swiglu_mlp::inspect::WeightSummary;
use swiglu_mlp::{Checkpoint, MlpConfig, ModelConfig, OpenMode, Shard, SharedExpert};

const CONFIG: &str = r#"{"model_type": "deepseek_v4", "hidden_size": 8,
    "moe_intermediate_size": 6, "n_shared_experts": 1, "hidden_act": "silu", "swiglu_limit": 10}"#;

/// The gates of all MLPs that load.
fn gates(checkpoint: &Checkpoint, model: &ModelConfig) -> Vec<Vec<u8>> {
    let mut gates = Vec::new();
    for prefix in checkpoint.mlp_prefixes() {
        let _ = checkpoint.describe(prefix);
        let Ok(config) = model.mlp_config(prefix) else {
            continue;
        };
        let config = MlpConfig {
            reduce_results: false,
            shard: Shard {
                rank: 1,
                world: 3,
                disable_tp: false,
            },
            ..config
        };
        let Ok(config) = config.with_tensors(checkpoint) else {
            continue;
        };
        // As many ranks as there are columns at most, and no more bytes than came.
        if let Ok(expert) = SharedExpert::load(checkpoint, &config) {
            let _ = WeightSummary::of(expert.down());
            let backend = std::sync::Arc::new(swiglu_core::reference::Reference);
            let _ = swiglu_mlp::DeepseekV4Mlp::load(backend, &config, &expert);
            gates.push(expert.gate().data().to_vec());
        }
    }
    gates
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(folder) = tempfile::tempdir() else {
        return;
    };
    let Ok(model) = ModelConfig::from_json(CONFIG) else {
        return;
    };
    for name in ["model.safetensors.index.json", "model.safetensors"] {
        let path = folder.path().join(name);
        if std::fs::write(&path, bytes).is_err() {
            return;
        }
        // A folder, which then holds an index, and later the file by itself.
        let target = if name.ends_with("json") {
            folder.path()
        } else {
            &path
        };
        let [mapped, read] = [OpenMode::Map, OpenMode::Read].map(|mode| {
            let checkpoint = Checkpoint::open_with(target, mode).ok()?;
            Some(gates(&checkpoint, &model))
        });
        assert_eq!(mapped, read);
    }
});
