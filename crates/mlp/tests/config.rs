//! The forms of `config.json`.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use swiglu_core::{GatedActivation, Limit};
use swiglu_mlp::{HiddenAct, ModelConfig};

mod common;
use common::{PREFIX, V4};

fn read(text: &str) -> ModelConfig {
    ModelConfig::from_json(text).unwrap()
}

fn limit(text: &str) -> Option<f32> {
    read(text).limit(PREFIX).unwrap().map(Limit::get)
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
    assert_eq!(limit(V4), Some(10.0));
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
    // The scales say which block: V4.1's form is the same.
    assert_eq!((config.hidden_size, config.block), (4096, None));
    assert!(config.ue8m0 && !read(&text.replace("ue8m0", "float")).ue8m0);
    assert!(ModelConfig::from_json(&text.replace("ue8m0", "e5m3")).is_err());
    assert_eq!(read(&text.replace("fp8", "bf16")).block, None);
    assert!(ModelConfig::from_json(&text.replace("fp8", "fp4")).is_err());
}

#[test]
fn the_limit_is_off_in_four_ways_and_never_nan_or_text() {
    for off in ["null", "0", "0.0", "Infinity"] {
        assert_eq!(limit(&V4.replace("10.0", off)), None, "{off}");
    }
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
    refused("e4m3", "e5m2", "quantization_config.fmt");
    refused("dynamic", "slow", "quantization_config.activation_scheme");
    refused("ue8m0", "e5m3", "quantization_config.scale_fmt");
    refused(
        "\"quant_method\"",
        "\"transform_config\": {\"config_groups\": {}}, \"quant_method\"",
        "quantization_config.transform_config",
    );
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
    refused("\"silu\"", "\"swigluoai\"", "hidden_act: expected");
    refused("\"hidden_act\": \"silu\",", "", "hidden_act: expected");
    refused(
        "{\"model",
        "{\"text_config\": 7, \"model",
        "text_config: expected an object",
    );
    assert!(ModelConfig::from_json("[]").is_err());
    assert!(ModelConfig::from_json("").is_err());
}

/// Other values of `scale_fmt` are read elsewhere or not at all; none is taken for E8M0 unseen.
#[test]
fn a_format_of_scales_that_is_not_known_is_refused_in_either_form() {
    for bad in ["\"nf4\"", "7", "[\"ue8m0\"]", "true"] {
        refused("\"ue8m0\"", bad, "quantization_config.scale_fmt: expected");
        let text = format!(
            r#"{{"dim": 64, "moe_inter_dim": 32, "n_shared_experts": 1, "dtype": "fp8",
            "scale_fmt": {bad}, "swiglu_limit": 10.0}}"#
        );
        let error = ModelConfig::from_json(&text).unwrap_err().to_string();
        assert!(error.starts_with("scale_fmt: expected"), "{error}");
    }
    let mut unstated = read(V4);
    unstated.ue8m0 = false;
    assert_eq!(read(&V4.replace("\"ue8m0\"", "null")), unstated);
}

/// `dtype` is a setting of blocks in DeepSeek's own form alone.
#[test]
fn a_dtype_in_hugging_faces_form_says_nothing_of_blocks() {
    let quantization = &V4[V4.find(", \"quantization_config").unwrap()..V4.len() - 1];
    for dtype in ["bfloat16", "fp8"] {
        let text = V4.replace(quantization, &format!(", \"dtype\": \"{dtype}\""));
        assert_eq!(read(&text).block, None, "{dtype}");
    }
}

/// As saved by a model of several modalities: what quantizes all stands at the root.
#[test]
fn a_quantization_at_the_root_counts_for_the_language_model() {
    let quantization = &V4[V4.find("\"quantization_config").unwrap()..V4.len() - 1];
    let rest = V4.replace(&format!(", {quantization}"), "");
    let block = |root: &str| read(&format!("{{{root}, \"text_config\": {rest}}}")).block;
    assert_eq!(block(quantization), Some([128, 128]));
    assert_eq!(
        block(&quantization.replace("[128, 128]", "[32, 64]")),
        Some([32, 64])
    );
    // Refused at the root as it is below.
    let bad = quantization.replace("e4m3", "e5m2");
    let error = ModelConfig::from_json(&format!("{{{bad}, \"text_config\": {rest}}}"));
    let error = error.unwrap_err().to_string();
    assert!(error.starts_with("quantization_config.fmt"), "{error}");
}

#[test]
fn quantization_is_read_as_far_as_it_goes() {
    let config = |from: &str, to: &str| {
        assert!(V4.contains(from), "{from}");
        let config = read(&V4.replace(from, to));
        (config.block, config.ue8m0)
    };
    assert_eq!(config("fp8", "fp8"), (Some([128, 128]), true));
    assert_eq!(config("ue8m0", "float"), (Some([128, 128]), false));
    assert_eq!(config("\"ue8m0\"", "null"), (Some([128, 128]), false));
    assert_eq!(config("fp8", "deepseek_v4_fp8"), (Some([128, 128]), true));
    assert_eq!(config("dynamic", "static"), (Some([128, 128]), true));
    assert_eq!(config("[128, 128]", "null"), (None, true));
    // Other methods' blocks are the tensors' to say.
    for method in ["compressed-tensors", "modelopt", "quark", "awq"] {
        assert_eq!(config("fp8", method), (None, true), "{method}");
    }
    assert_eq!(config("\"quant_method\": \"fp8\",", ""), (None, true));
    let empty = "\"transform_config\": {}, \"quant_method\"";
    assert_eq!(config("\"quant_method\"", empty), (Some([128, 128]), true));
}

#[test]
fn settings_of_nested_configurations_are_looked_up_at_both_levels() {
    let nested = |top: &str| format!("{{{top} \"text_config\": {V4}}}");
    assert_eq!(read(&nested("")), read(V4));
    for top in [
        "\"swiglu_limit\": 10,",
        "\"swiglu_limit\": 1e1, \"model_type\": \"a_wrapper\",",
        "\"quantization_config\": null, \"hidden_size\": 4096,",
    ] {
        assert_eq!(read(&nested(top)), read(V4), "{top}");
    }
    for (top, reason) in [
        (
            "\"swiglu_limit\": 7,",
            "swiglu_limit: expected one value at both levels, got 10.0 under",
        ),
        (
            "\"swiglu_limit\": null,",
            "swiglu_limit: expected one value at both levels",
        ),
        (
            "\"hidden_size\": 4097,",
            "hidden_size: expected one value at both levels",
        ),
        (
            "\"n_shared_experts\": 2,",
            "n_shared_experts: expected one value at both levels",
        ),
        (
            "\"quantization_config\": {},",
            "quantization_config: expected one value at both",
        ),
        (
            "\"swiglu_alpha\": 2,",
            "swiglu_alpha: expected no such setting",
        ),
    ] {
        let error = ModelConfig::from_json(&nested(top))
            .unwrap_err()
            .to_string();
        assert!(error.starts_with(reason), "{error}");
    }
    // What one level alone says counts, wherever it stands.
    let split = |moved: &str| {
        assert!(V4.contains(moved));
        let text = format!("{{{moved} \"text_config\": {}}}", V4.replace(moved, ""));
        assert_eq!(read(&text), read(V4), "{moved}");
    };
    split("\"swiglu_limit\": 10.0,");
    split("\"moe_intermediate_size\": 2048,");
    let quantization = &V4[V4.find("\"quantization_config").unwrap()..V4.len() - 1];
    let rest = V4.replace(&format!(", {quantization}"), "");
    let root = format!("{{{quantization}, \"text_config\": {rest}}}");
    assert_eq!(read(&root), read(V4));
    // The settings of another part of the model have no say.
    let vision = nested("\"vision_config\": {\"swiglu_limit\": 3, \"swiglu_alpha\": 2},");
    assert_eq!(read(&vision), read(V4));
}

#[test]
fn a_key_that_stands_twice_is_an_error_at_any_level() {
    refused(
        "\"swiglu_limit\": 10.0",
        "\"swiglu_limit\": 10.0, \"swiglu_limit\": 0",
        "config: expected JSON",
    );
    let twice = V4.replace("\"fmt\": \"e4m3\"", "\"fmt\": \"e4m3\", \"fmt\": \"e4m3\"");
    let error = ModelConfig::from_json(&twice).unwrap_err().to_string();
    assert!(error.contains("fmt stands twice"), "{error}");
}

#[test]
fn the_limit_of_a_layer_reaches_the_mlp() {
    let config = read(V4).mlp_config(PREFIX).unwrap();
    assert_eq!(
        (config.hidden_act, config.prefix.as_str()),
        (HiddenAct::Silu, PREFIX)
    );
    assert_eq!(config.activation().unwrap(), GatedActivation::deepseek_v4());
}
