//! Any text as `config.json`: an error or a configuration, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use swiglu_mlp::ModelConfig;

fuzz_target!(|text: &str| {
    if let Ok(model) = ModelConfig::from_json(text) {
        if let Ok(config) = model.mlp_config("layers.3.ffn.shared_experts") {
            let _ = config.activation();
            let _ = config.quantization();
        }
    }
});
