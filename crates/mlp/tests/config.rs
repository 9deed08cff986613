//! The forms of `config.json`.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use swiglu_core::Limit;
use swiglu_mlp::ModelConfig;

const V4: &str = r#"{"model_type": "deepseek_v4", "hidden_size": 4096, "moe_intermediate_size": 2048,
  "n_shared_experts": 1, "hidden_act": "silu", "swiglu_limit": 10.0, "quantization_config":
  {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "scale_fmt": "ue8m0",
   "weight_block_size": [128, 128]}}"#;

fn read(text: &str) -> ModelConfig {
    ModelConfig::from_json(text).unwrap()
}

fn refused(from: &str, to: &str, reason: &str) {
    assert!(V4.contains(from), "{from}");
    let error = ModelConfig::from_json(&V4.replace(from, to))
        .unwrap_err()
        .to_string();
    assert!(error.starts_with(reason), "{error}");
}

#[test]
fn hugging_faces_form() {
    let config = read(V4);
    assert_eq!((config.hidden_size, config.intermediate_size), (4096, 2048));
    assert_eq!(config.limit, Some(Limit::new(10.0).unwrap()));
    assert_eq!(config.block, Some([128, 128]));
    let v41 = V4
        .replace("[128, 128]", "[32, 32]")
        .replace("\"scale_fmt\": \"ue8m0\",", "");
    assert_eq!(read(&v41).block, Some([32, 32]));
    assert_eq!(
        read(&V4.replace("experts\": 1", "experts\": 3")).intermediate_size,
        6144
    );
    assert_eq!(read(&format!("{{\"text_config\": {V4}}}")), config);
}

#[test]
fn deepseeks_own_form() {
    let text = r#"{"dim": 4096, "moe_inter_dim": 2048, "n_shared_experts": 1, "dtype": "fp8",
        "scale_fmt": "ue8m0", "swiglu_limit": 10.0}"#;
    let config = read(text);
    assert_eq!((config.hidden_size, config.block), (4096, Some([128, 128])));
    assert_eq!(read(&text.replace("fp8", "bf16")).block, None);
    assert!(ModelConfig::from_json(&text.replace("fp8", "fp4")).is_err());
}

#[test]
fn the_limit_is_off_in_four_ways_and_never_nan() {
    for off in ["null", "0", "0.0", "Infinity"] {
        assert_eq!(read(&V4.replace("10.0", off)).limit, None, "{off}");
    }
    assert_eq!(read(&V4.replace("\"swiglu_limit\": 10.0,", "")).limit, None);
    for bad in [
        "NaN",
        "-Infinity",
        "-1",
        "\"10\"",
        "[10]",
        "true",
        "\"Infinity\"",
    ] {
        refused("10.0", bad, "swiglu_limit: expected");
    }
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    refused(
        "\"silu\"",
        "\"gelu\"",
        "hidden_act: expected \"silu\", got \"gelu\"",
    );
    refused("\"fp8\"", "\"awq\"", "quantization_config.quant_method");
    refused("e4m3", "e5m2", "quantization_config.fmt");
    refused("dynamic", "static", "quantization_config.activation_scheme");
    refused(
        "[128, 128]",
        "[128]",
        "quantization_config.weight_block_size",
    );
    refused(
        "[128, 128]",
        "[0, 128]",
        "quantization_config.weight_block_size",
    );
    refused(
        "[128, 128]",
        "[128, 9223372036854775807]",
        "quantization_config.weight_block_size",
    );
    refused("4096", "0", "hidden_size");
    refused("4096", "-4096", "hidden_size");
    refused(
        "\"hidden_size\": 4096,",
        "",
        "hidden_size: expected a whole number above 0, got nothing",
    );
    refused(
        "experts\": 1",
        "experts\": 18446744073709551615",
        "n_shared_experts",
    );
    assert!(ModelConfig::from_json("[]").is_err());
    assert!(ModelConfig::from_json("").is_err());
}
