//! What configurations say about routed experts.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use serde_json::{Value, json};
use swiglu_mlp::{ExpertDtype, ModelConfig, MoeConfig, Result};

const PREFIX: &str = "layers.3.ffn";

/// V4-Flash, as Hugging Face has it.
fn flash() -> Value {
    json!({
        "model_type": "deepseek_v4", "hidden_size": 4096, "moe_intermediate_size": 2048,
        "n_routed_experts": 256, "num_experts_per_tok": 6, "n_shared_experts": 1,
        "num_hash_layers": 3, "scoring_func": "sqrtsoftplus", "topk_method": "noaux_tc",
        "norm_topk_prob": true, "routed_scaling_factor": 1.5, "swiglu_limit": 10.0,
        "hidden_act": "silu", "expert_dtype": "fp4", "vocab_size": 129280,
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0",
            "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    })
}

fn layer(config: &Value, prefix: &str) -> Result<MoeConfig> {
    ModelConfig::from_json(&config.to_string())?.moe_config(prefix)
}

#[test]
fn the_models_are_read_as_they_are_released() {
    let v4 = layer(&flash(), PREFIX).unwrap();
    assert_eq!((v4.experts, v4.top_k, v4.intermediate_size), (256, 6, 2048));
    assert_eq!(
        (v4.scale, v4.normalize, v4.hashes),
        (1.5, true, Some(false))
    );
    assert_eq!(
        (v4.vocab_size, v4.expert_dtype),
        (Some(129_280), Some(ExpertDtype::Fp4))
    );
    assert_eq!(v4.shared.prefix, "layers.3.ffn.shared_experts");
    assert_eq!(
        (v4.shared.block, v4.shared.limit.unwrap().get()),
        (Some([128; 2]), 10.0)
    );
    assert_eq!(layer(&flash(), "layers.2.ffn").unwrap().hashes, Some(true));
    assert_eq!(layer(&flash(), "mtp.0.ffn").unwrap().hashes, Some(false));

    let inference = json!({
        "dim": 7168, "moe_inter_dim": 3072, "n_routed_experts": 384, "n_activated_experts": 6,
        "n_shared_experts": 1, "n_hash_layers": 3, "score_func": "sqrtsoftplus",
        "route_scale": 2.5, "swiglu_limit": 10.0, "expert_dtype": "fp4", "dtype": "fp8",
        "scale_fmt": "ue8m0", "vocab_size": 129280,
    });
    let pro = layer(&inference, "layers.60.ffn").unwrap();
    assert_eq!(
        (pro.experts, pro.top_k, pro.intermediate_size),
        (384, 6, 3072)
    );
    assert_eq!(
        (pro.scale, pro.normalize, pro.hashes),
        (2.5, true, Some(false))
    );

    let mut text = flash();
    let text = text.as_object_mut().unwrap();
    let mut q = text.remove("quantization_config").unwrap();
    (q["weight_block_size"], q["expert_dtype"]) = (json!([32, 32]), "fp4".into());
    for key in ["expert_dtype", "num_hash_layers"] {
        text.remove(key);
    }
    text.insert("model_type".to_owned(), "deepseek_v41_text".into());
    text.insert("n_group".to_owned(), Value::Null);
    text.insert("dspark_n_routed_experts".to_owned(), 128.into());
    text.insert("dspark_num_experts_per_tok".to_owned(), 3.into());
    let nested =
        json!({"model_type": "deepseek_v41", "text_config": text, "quantization_config": q});
    let v41 = layer(&nested, PREFIX).unwrap();
    assert_eq!((v41.experts, v41.hashes), (256, None));
    assert_eq!(
        (v41.shared.block, v41.expert_dtype),
        (Some([32; 2]), Some(ExpertDtype::Fp4))
    );
    let drafter = layer(&nested, "mtp.1.ffn").unwrap();
    assert_eq!(
        (drafter.experts, drafter.top_k, drafter.hashes),
        (128, 3, Some(false))
    );

    let saved = include_str!("configs/deepseek_v4.json");
    let saved = ModelConfig::from_json(saved).unwrap();
    let hashes = |n: usize| {
        saved
            .moe_config(&format!("model.layers.{n}.mlp"))
            .unwrap()
            .hashes
    };
    assert_eq!(
        [0, 2, 3, 42].map(hashes),
        [Some(true), Some(true), Some(false), Some(false)]
    );
}

#[test]
fn what_is_not_computed_is_refused_by_its_name() {
    let with = |key: &str, value: Value| {
        let mut config = flash();
        config[key] = value;
        layer(&config, PREFIX)
    };
    for (key, value) in [
        ("scoring_func", json!("sigmoid")),
        ("scoring_func", json!("softmax")),
        ("scoring_func", Value::Null),
        ("topk_method", json!("greedy")),
        ("topk_method", json!("group_limited_greedy")),
        ("n_group", json!(8)),
        ("topk_group", json!(4)),
        ("n_group", json!("1")),
        ("gate_temperature", json!(2.0)),
        ("router_temperature", json!("1")),
        ("n_routed_experts", json!(0)),
        ("n_routed_experts", Value::Null),
        ("num_experts_per_tok", json!(0)),
        ("num_experts_per_tok", Value::Null),
        ("routed_scaling_factor", json!(0)),
        ("routed_scaling_factor", json!("1.5")),
        ("routed_scaling_factor", Value::Null),
        ("norm_topk_prob", Value::Null),
        ("norm_topk_prob", json!(1)),
        ("expert_dtype", json!("int4")),
        ("expert_dtype", json!(4)),
        ("num_hash_layers", json!(-1)),
        ("num_hash_layers", json!("3")),
        ("vocab_size", json!(0)),
        ("num_local_experts", json!(255)),
        ("mlp_layer_types", json!("moe")),
        ("mlp_layer_types", json!(["moe", "moe", "moe", "dense"])),
        (
            "mlp_layer_types",
            json!(["hash_moe", "hash_moe", "hash_moe", "hash_moe"]),
        ),
        ("mlp_layer_types", json!(["hash_moe"])),
        ("swiglu_limit", json!(-1)),
    ] {
        let got = with(key, value.clone());
        let error = got.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.starts_with(key), "{key} {value}: {error:?}");
    }
    for (key, value) in [
        ("n_group", json!(1)),
        ("n_group", json!(0)),
        ("topk_group", Value::Null),
        ("topk_method", Value::Null),
        ("gate_temperature", json!(1.0)),
        ("num_local_experts", json!(256)),
        ("norm_topk_prob", json!(false)),
        ("expert_dtype", Value::Null),
        (
            "mlp_layer_types",
            json!(["hash_moe", "hash_moe", "hash_moe", "moe"]),
        ),
    ] {
        let got = with(key, value.clone());
        assert!(got.is_ok(), "{key} {value}: {got:?}");
    }
    assert!(!with("norm_topk_prob", json!(false)).unwrap().normalize);
    let error = with("num_experts_per_tok", json!(257)).unwrap().check();
    let error = error.unwrap_err().to_string();
    let expected = "num_experts_per_tok: expected 1 to the 256 experts, got 257";
    assert_eq!(error, expected);
    // Models whose routers are others, though their shared experts load.
    let error = with("model_type", json!("glm5_next"))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("model_type: expected deepseek_v4"),
        "{error}"
    );
    let mut twice = flash();
    twice["quantization_config"]["expert_dtype"] = "fp8".into();
    let error = layer(&twice, PREFIX).unwrap_err().to_string();
    assert!(
        error.starts_with("quantization_config.expert_dtype: expected fp4"),
        "{error}"
    );
}

#[test]
fn what_a_layer_does_not_have_is_refused_when_it_is_built() {
    let mut config = layer(&flash(), PREFIX).unwrap();
    assert!(config.check().is_ok());
    config.shared.rounding = swiglu_core::Rounding::Eager;
    assert!(
        config
            .check()
            .unwrap_err()
            .to_string()
            .starts_with("rounding: ")
    );
    config.shared.rounding = swiglu_core::Rounding::Official;
    config.shared.shard.world = 2;
    assert!(
        config
            .check()
            .unwrap_err()
            .to_string()
            .starts_with("shard: ")
    );
}
