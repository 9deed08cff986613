//! `swiglu inspect`, and `swiglu run` on what it lists.
#![allow(clippy::unwrap_used)] // A helper of a test fails by panicking.

mod common;

use common::{Folder, expect, write};
use safetensors::Dtype;
use serde_json::Value;
use swiglu::mlp::synthetic::{SyntheticConfig, synthetic_input, write_checkpoint};

const PREFIX: &str = "layers.3.ffn.shared_experts";
const DENSE: &str = "layers.0.ffn";
const H: usize = 64;
const I: usize = 40;

/// A folder with a shared expert, and in `sick.safetensors` a dense MLP with every kind of number
/// that is none, whose scales are for rows.
fn folder() -> Folder {
    let folder = Folder::new();
    let config = SyntheticConfig {
        hidden: H,
        intermediate: I,
        block: 32,
        ..SyntheticConfig::flash(7)
    };
    write_checkpoint(folder.path("").as_path(), &config).unwrap();
    let mut codes = vec![0x38; 24 * H];
    (codes[3], codes[9]) = (0x7f, 0xff);
    let scales = [1.0, 0.0, -2.0, f32::INFINITY, f32::NAN, 0.5].map(f32::to_le_bytes);
    let scales: Vec<u8> = scales.iter().cycle().take(24).flatten().copied().collect();
    let plain = vec![0x3f; 24 * H * 2];
    let name = |rest: &str| format!("{DENSE}.{rest}");
    let tensors = [
        (name("w1.weight"), Dtype::F8_E4M3, [24, H], &codes[..]),
        (name("w1.weight_scale"), Dtype::F32, [24, 1], &scales[..]),
        (name("w3.weight"), Dtype::BF16, [24, H], &plain[..]),
        (name("w2.weight"), Dtype::BF16, [H, 24], &plain[..]),
    ];
    let tensors = tensors
        .each_ref()
        .map(|(n, d, s, b)| (n.as_str(), *d, &s[..], *b));
    write(&folder.path("sick.safetensors"), &tensors);
    let path = folder.path("config.json");
    let text = std::fs::read_to_string(path).unwrap();
    let foreign = text.replace("\"fp8\"", "\"compressed-tensors\"");
    std::fs::write(folder.path("foreign.json"), foreign).unwrap();
    let x = synthetic_input(2, H, 7);
    let x = bytemuck::cast_slice(&x);
    write(&folder.path("x"), &[("x", Dtype::BF16, &[2, H], x)]);
    folder
}

fn inspect(code: i32, folder: &Folder, file: &str, more: &[&str]) -> String {
    let path = folder.path(file).display().to_string();
    let config = match file {
        "sick.safetensors" => folder.path("foreign.json"),
        _ => folder.path("config.json"),
    };
    let config = config.display().to_string();
    let arguments = ["inspect", &path, "--config", &config, "--platform", "cpu"];
    expect(code, &[&arguments[..], more].concat())
}

fn json(folder: &Folder, file: &str, more: &[&str]) -> Value {
    let text = inspect(0, folder, file, &[more, &["--json"]].concat());
    serde_json::from_str(&text).unwrap()
}

#[test]
fn without_a_prefix_the_mlps_are_listed() {
    let folder = folder();
    let listed = inspect(0, &folder, "", &[]);
    assert!(listed.contains("6 tensors, 1 MLPs"), "{listed}");
    let line = format!("{PREFIX}: H=64 I=40 fp8 in blocks of 32 x 32 with e8m0 scales");
    assert!(listed.contains(&line), "{listed}");
    let document = json(&folder, "", &[]);
    let mlp = &document["mlps"][0];
    assert_eq!(
        (&mlp["prefix"], &mlp["refused"]),
        (&PREFIX.into(), &Value::Null)
    );
    assert_eq!(
        (&mlp["hidden"], &mlp["intermediate"]),
        (&64.into(), &40.into())
    );
    assert_eq!(mlp["tensors"].as_array().unwrap().len(), 6);
    assert_eq!(mlp["tensors"][0]["type"], "F8_E8M0");
    assert_eq!(document["config"]["model_type"], "deepseek_v4");
    // Of what does not run the reason stands in its line.
    let listed = inspect(0, &folder, "", &["--intermediate", "41"]);
    let reason = format!("{PREFIX}: does not run: tensor {PREFIX}.w1.weight in ");
    assert!(listed.contains(&reason), "{listed}");
}

#[test]
fn experts_that_are_alike_take_one_line() {
    let folder = folder();
    let bytes = vec![0; 8 * H * 2];
    let name = |e: usize, w: &str| format!("layers.3.ffn.experts.{e}.{w}.weight");
    let names: Vec<_> = (0..12)
        .flat_map(|e| ["w1", "w3", "w2"].map(|w| name(e, w)))
        .collect();
    let tensors: Vec<_> = names
        .iter()
        .map(|n| {
            let shape: &[usize] = if n.contains("w2") { &[H, 8] } else { &[8, H] };
            (n.as_str(), Dtype::BF16, shape, &bytes[..])
        })
        .collect();
    write(&folder.path("experts.safetensors"), &tensors);
    let listed = inspect(0, &folder, "experts.safetensors", &[]);
    let line = "layers.3.ffn.experts.0 and 11 alike: H=64 I=8 bf16";
    assert!(listed.contains(line), "{listed}");
    assert_eq!(listed.lines().count(), 2, "{listed}");
}

#[test]
fn an_mlp_is_shown_with_its_numbers_and_what_runs_it() {
    let folder = folder();
    let shown = inspect(0, &folder, "", &["--prefix", PREFIX]);
    for part in [
        "w1.weight F8_E4M3 [40, 64] in model.safetensors",
        "gate     2560 elements, 0 NaN; 4 scales from ",
        "silu_and_mul_with_clamp",
        "matmuls  of bf16",
        "platform cpu",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let document = json(&folder, "", &["--prefix", PREFIX, "--activations", "fp8"]);
    let mlp = &document["mlps"][0];
    assert_eq!(mlp["platform"], "cpu");
    assert!(
        mlp["matmuls_of"].as_str().unwrap().contains("group=32"),
        "{mlp}"
    );
    let plan = mlp["plan"].as_array().unwrap();
    assert!(
        plan.iter()
            .any(|line| line.as_str().unwrap().starts_with("down [256")),
        "{mlp}"
    );
}

#[test]
fn numbers_that_are_none_are_counted() {
    let folder = folder();
    let shown = inspect(0, &folder, "sick.safetensors", &["--prefix", DENSE]);
    let line = "gate     1536 elements, 2 NaN; 24 scales from -2e0 to 1e0, 4 NaN, 4 infinite, \
                4 zero, 4 negative";
    assert!(shown.contains(line), "{shown}");
    assert!(shown.contains("H=64 I=24 gate fp8"), "{shown}");
    let document = json(&folder, "sick.safetensors", &["--prefix", DENSE]);
    let gate = &document["mlps"][0]["weights"][0];
    assert_eq!(
        (&gate["nan"], &gate["scales"]["zero"]),
        (&2.into(), &4.into())
    );
}

#[test]
fn what_does_not_run_says_why() {
    let folder = folder();
    for (more, reason) in [
        (
            &["--prefix", "layers.3.ffn"][..],
            "the nearest are under layers.3.ffn.shared_experts",
        ),
        (
            &["--prefix", PREFIX, "--intermediate", "41"],
            "expected shape [41, 64], got [40, 64]",
        ),
        (&["--prefix", PREFIX, "--platform", "none"], "none"),
    ] {
        let path = folder.path("").display().to_string();
        let output = expect(1, &[&["inspect", &path], more].concat());
        assert!(output.contains(reason), "{output}");
    }
    // Without a configuration tensors are shown all the same.
    std::fs::remove_file(folder.path("config.json")).unwrap();
    let path = folder.path("").display().to_string();
    let shown = common::swiglu(&["inspect", &path, "--prefix", PREFIX])
        .assert()
        .code(1);
    let shown = String::from_utf8(shown.get_output().stdout.clone()).unwrap();
    assert!(
        shown.contains("w1.weight F8_E4M3") && shown.contains("config.json"),
        "{shown}"
    );
    let output = expect(0, &["inspect", &path]);
    assert!(output.contains("without a configuration"), "{output}");
}

#[test]
fn a_dense_mlp_runs_with_the_size_of_its_tensors() {
    let folder = folder();
    let path = |name: &str| folder.path(name).display().to_string();
    let (checkpoint, config) = (path("sick.safetensors"), path("foreign.json"));
    let (input, output) = (path("x"), path("y"));
    let run = |code, more: &[&str]| {
        let arguments = [
            "run",
            "--checkpoint",
            &checkpoint,
            "--config",
            &config,
            "--input",
            &input,
            "--output",
            &output,
            "--prefix",
            DENSE,
        ];
        expect(code, &[&arguments[..], more].concat())
    };
    assert!(run(0, &[]).contains("H=64 I=24"));
    run(0, &["--intermediate", "24"]);
    let refused = run(2, &["--intermediate", "25"]);
    assert!(
        refused.contains("expected shape [25, 64], got [24, 64]"),
        "{refused}"
    );
}
