//! What the shared expert of each known model computes, by its `config.json`.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use swiglu_core::{GatedActivation, Limit};
use swiglu_mlp::ModelConfig;

mod common;
use common::{PREFIX, V4};

fn read(text: &str) -> ModelConfig {
    ModelConfig::from_json(text).unwrap()
}

/// A file as transformers 5.24 wrote it.
fn saved(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/configs");
    std::fs::read_to_string(format!("{folder}/{name}.json")).unwrap()
}

/// The activation of the shared expert in a layer.
fn activation(text: &str, layer: usize) -> Result<GatedActivation, String> {
    let prefix = format!("model.layers.{layer}.mlp.shared_experts");
    let model = ModelConfig::from_json(text).map_err(|e| e.to_string())?;
    let config = model.mlp_config(&prefix).map_err(|e| e.to_string())?;
    config.activation().map_err(|e| e.to_string())
}

fn step(limit: f32) -> GatedActivation {
    GatedActivation::swiglustep_and_mul(limit).unwrap()
}

const PLAIN: GatedActivation = GatedActivation::silu_and_mul();

#[test]
fn an_absent_limit_is_an_error_that_asks_for_one() {
    let files = ["deepseek_v4", "glm5_next", "minimax_m3_vl"].map(saved);
    let inference =
        r#"{"dim": 64, "moe_inter_dim": 32, "n_shared_experts": 1, "swiglu_limit": 10.0}"#;
    for text in [V4, inference]
        .into_iter()
        .chain(files.iter().map(String::as_str))
    {
        let set = if text.contains("7.0") { "7.0" } else { "10.0" };
        let mut without = text.to_owned();
        for key in [
            format!("\"swiglu_limit\": {set},"),
            format!(", \"swiglu_limit\": {set}"),
        ] {
            without = without.replace(&key, "");
        }
        assert!(!without.contains("swiglu_limit"), "{without}");
        let model = read(&without);
        let error = model.mlp_config(PREFIX).unwrap_err().to_string();
        let asks = "--limit 10, --limit none";
        assert!(
            error.starts_with("swiglu_limit: expected a number or null"),
            "{error}"
        );
        assert!(
            error.contains(asks) && error.ends_with("got nothing"),
            "{error}"
        );
        let stated = model.mlp_config_with_limit(PREFIX, Some(Limit::new(3.0).unwrap()));
        assert_eq!(stated.limit.map(Limit::get), Some(3.0));
        assert!(activation(text, 3).unwrap().limit().is_some());
    }
}

#[test]
fn the_activation_follows_from_the_model_and_not_from_the_keys() {
    for name in ["deepseek_v4", "glm5_next"] {
        assert_eq!(
            activation(&saved(name), 3).unwrap(),
            GatedActivation::deepseek_v4()
        );
    }
    for name in [
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "hy_v4",
        "bailing_hybrid",
    ] {
        assert_eq!(activation(&saved(name), 3).unwrap(), PLAIN, "{name}");
    }
    for name in ["step3p5", "step3p7", "exaone_moe"] {
        assert_eq!(activation(&saved(name), 3).unwrap(), PLAIN, "{name}");
    }
    // The limit of Hy4-preview is its routed experts'.
    assert!(saved("hy_v4").contains("\"swiglu_limit\": 10.0"));
    let minimax = saved("minimax_m3_vl");
    assert_eq!(
        activation(&minimax, 3).unwrap(),
        GatedActivation::minimax_m3()
    );
    for model in ["deepseek_v41", "deepseek_v41_text"] {
        let text = V4.replace("deepseek_v4", model);
        assert_eq!(
            activation(&text, 3).unwrap(),
            GatedActivation::deepseek_v4()
        );
    }
    let hy = V4.replace("deepseek_v4", "hy_v4");
    assert_eq!(activation(&hy, 3).unwrap(), PLAIN);
}

#[test]
fn alpha_and_beta_are_read_where_the_model_has_them() {
    let minimax = saved("minimax_m3_vl");
    let of = |from: &str, to: &str| {
        assert!(minimax.contains(from), "{from}");
        activation(&minimax.replace(from, to), 3)
    };
    let clamped =
        |limit, alpha, beta| GatedActivation::silu_and_mul_with_clamp(limit, alpha, beta).unwrap();
    let alpha = "\"swiglu_alpha\": 1.702";
    assert_eq!(
        of(alpha, "\"swiglu_alpha\": 2").unwrap(),
        clamped(7.0, 2.0, 1.0)
    );
    let beta = format!("{alpha}, \"swiglu_beta\": 0.5");
    assert_eq!(of(alpha, &beta).unwrap(), clamped(7.0, 1.702, 0.5));
    for name in ["\"swigluoai\"", "\"silu\""] {
        let named = of(
            "\"hidden_act\": \"silu\"",
            &format!("\"hidden_act\": {name}"),
        );
        assert_eq!(named.unwrap(), GatedActivation::minimax_m3());
    }
    for bad in ["\"1.7\"", "NaN", "Infinity", "[1]", "1e300"] {
        let error = of(alpha, &format!("\"swiglu_alpha\": {bad}")).unwrap_err();
        assert!(
            error.starts_with("swiglu_alpha: expected a finite number"),
            "{error}"
        );
    }
    let off = of("\"swiglu_limit\": 7.0", "\"swiglu_limit\": null").unwrap_err();
    assert!(off.starts_with("limit: expected a limit"), "{off}");
    assert!(of(alpha, "\"swiglu_alpha\": -1").is_err());
}

#[test]
fn a_list_by_layer_gives_each_layer_its_own() {
    let with = |name: &str, key: &str, list: &str| {
        let text = saved(name);
        let null = format!("\"{key}\": null");
        if text.contains(&null) {
            return text.replace(&null, &format!("\"{key}\": {list}"));
        }
        text.replacen('{', &format!("{{\"{key}\": {list},"), 1)
    };
    let ling = with(
        "bailing_hybrid",
        "share_expert_swiglu_limit_list",
        "[0, null, 5.0, 7, 0.0]",
    );
    let of = |layer| activation(&ling, layer);
    assert_eq!(
        [0, 1, 2, 3, 4].map(|l| of(l).unwrap()),
        [PLAIN, PLAIN, step(5.0), step(7.0), PLAIN]
    );
    let error = of(5).unwrap_err();
    let expected = "share_expert_swiglu_limit_list: expected an entry for layer 5, got 5 entries";
    assert_eq!(error, expected);
    let error = read(&ling)
        .mlp_config("mtp.0.shared_experts")
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("prefix: expected a layer's number"),
        "{error}"
    );
    for name in ["step3p5", "step3p7"] {
        let text = with(name, "swiglu_limits_shared", "[0, 16]");
        // Those of the routed experts have no say.
        let text = text.replace("\"swiglu_limits\": null", "\"swiglu_limits\": [7, 7]");
        assert_eq!(
            [0, 1].map(|l| activation(&text, l).unwrap()),
            [PLAIN, step(16.0)],
            "{name}"
        );
    }
    let exaone = with("exaone_moe", "swiglu_limits", "[0, 10.0]");
    let expected = [PLAIN, GatedActivation::deepseek_v4()];
    assert_eq!([0, 1].map(|l| activation(&exaone, l).unwrap()), expected);
    for empty in ["[]", "null"] {
        let text = with("exaone_moe", "swiglu_limits", empty);
        assert_eq!(activation(&text, 7).unwrap(), PLAIN);
    }
    for (bad, reason) in [
        ("7", "swiglu_limits: expected a list"),
        ("[1, \"7\"]", "swiglu_limits[1]: expected"),
        ("[NaN]", "swiglu_limits[0]: expected"),
        ("[1, 2, -1]", "swiglu_limits[2]: expected"),
    ] {
        let error = activation(&with("exaone_moe", "swiglu_limits", bad), 0).unwrap_err();
        assert!(error.starts_with(reason), "{error}");
    }
}

#[test]
fn sizes_follow_from_the_model() {
    for (name, sizes) in [
        ("deepseek_v2", (4096, 2 * 1407)),
        ("deepseek_v3", (7168, 2048)),
        ("deepseek_v4", (4096, 2048)),
        ("glm5_next", (4096, 2048)),
        ("hy_v4", (2816, 768)),
        ("minimax_m3_vl", (6144, 3072)),
        ("bailing_hybrid", (2560, 768)),
        ("step3p7", (4096, 1280)),
        ("exaone_moe", (4096, 1024)),
    ] {
        let config = read(&saved(name));
        assert_eq!(
            (config.hidden_size, config.intermediate_size),
            sizes,
            "{name}"
        );
    }
    let both = saved("bailing_hybrid").replacen('{', "{\"n_shared_experts\": 2,", 1);
    let error = ModelConfig::from_json(&both).unwrap_err().to_string();
    assert_eq!(
        error,
        "num_shared_experts: expected 2, as n_shared_experts says, got 1"
    );
}

#[test]
fn a_key_that_may_change_the_activation_of_another_model_is_refused_by_name() {
    let with = |model: &str, key: &str| {
        let text = V4.replace("\"swiglu_limit\": 10.0", &format!("\"{key}\": 1.5"));
        text.replace("\"deepseek_v4\"", model)
    };
    for model in ["\"deepseek_v3\"", "\"somebody_new\"", "null"] {
        for key in [
            "swiglu_limit",
            "swiglu_limits",
            "hidden_clamp",
            "expert_act_limit",
        ] {
            let config = read(&with(model, key));
            let error = config.mlp_config(PREFIX).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{key}: expected no such setting")),
                "{error}"
            );
            assert!(
                error.contains("--limit none") && error.ends_with("got 1.5"),
                "{error}"
            );
            let stated = config.mlp_config_with_limit(PREFIX, None);
            assert_eq!(stated.activation().unwrap(), PLAIN);
        }
        // A stated limit would not say what these do.
        for key in ["swiglu_alpha", "swiglu_beta", "activation_situ_beta"] {
            let error = activation(&with(model, key), 3).unwrap_err();
            assert!(
                error.starts_with(&format!("{key}: expected no such setting")),
                "{error}"
            );
        }
        // These change something else.
        for key in [
            "rope_beta",
            "lora_alpha",
            "max_limit",
            "use_swiglu",
            "n_group_limit",
        ] {
            assert_eq!(
                activation(&with(model, key), 3).unwrap(),
                PLAIN,
                "{model} {key}"
            );
        }
        assert_eq!(
            activation(&with(model, "swiglu_limit").replace("1.5", "null"), 3).unwrap(),
            PLAIN
        );
    }
    let known = V4.replace(
        "\"swiglu_limit\"",
        "\"swiglu_alpha\": 1.7, \"swiglu_limit\"",
    );
    assert!(
        activation(&known, 3)
            .unwrap_err()
            .starts_with("swiglu_alpha: expected")
    );
    let known = V4.replace(
        "\"swiglu_limit\"",
        "\"swiglu_limits\": [7], \"swiglu_limit\"",
    );
    assert!(
        activation(&known, 3)
            .unwrap_err()
            .starts_with("swiglu_limits: expected")
    );
    // It has no shared experts, and its activation is another.
    let error = ModelConfig::from_json(&saved("gpt_oss"))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("swiglu_alpha: expected no such setting"),
        "{error}"
    );
}

/// Files whose weights are FP8, as transformers 5.24 wrote them with `FineGrainedFP8Config()`: scales
/// are "float" by default, in blocks; or one for each matrix, with static scales of inputs.
#[test]
fn quantizations_that_transformers_saves_are_read() {
    let blocks = saved("deepseek_v4_fp8");
    assert!(blocks.contains("\"scale_fmt\": \"float\""), "{blocks}");
    let config = read(&blocks).mlp_config(PREFIX).unwrap();
    assert_eq!((config.block, config.ue8m0), (Some([128, 128]), false));
    let whole = saved("deepseek_v3_fp8");
    assert!(
        whole.contains("\"activation_scheme\": \"static\""),
        "{whole}"
    );
    let config = read(&whole).mlp_config(PREFIX).unwrap();
    assert_eq!((config.block, config.ue8m0), (None, false));
}

/// What a configuration says of the shared experts does not hold for a routed one that has a limit of
/// its own.
#[test]
fn routed_experts_with_limits_of_their_own_ask_for_one() {
    for (file, key) in [
        ("hy_v4", "swiglu_limit"),
        ("step3p5", "swiglu_limits"),
        ("bailing_hybrid", "expert_swiglu_limit_list"),
    ] {
        let text = saved(file);
        let text = text.replace(&format!("\"{key}\": null"), "\"unused\": null");
        let text = match text.contains(&format!("\"{key}\"")) {
            true => text,
            false => text.replacen('{', &format!("{{\"{key}\": [7.0],"), 1),
        };
        let model = read(&text);
        let error = model
            .mlp_config("model.layers.0.mlp.experts.7")
            .unwrap_err();
        let error = error.to_string();
        assert!(
            error.starts_with(&format!("{key}: expected a stated limit")),
            "{error}"
        );
        let shared = model.mlp_config("model.layers.0.mlp.shared_experts");
        assert!(shared.is_ok(), "{file}");
    }
    let model = read(V4);
    assert!(model.mlp_config("layers.3.ffn.experts.7").is_ok());
}
