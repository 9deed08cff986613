//! `swiglu verify` on the platforms of this machine.
#![allow(clippy::unwrap_used)] // A helper of a test fails by panicking.

mod common;

use common::{expect, swiglu};
use serde_json::Value;

#[test]
fn the_cpu_is_as_the_definition_says() {
    let text = expect(0, &["verify", "--platform", "cpu"]);
    assert!(text.starts_with("cpu: "), "{text}");
    assert!(text.ends_with("cpu: as the definition says\n"), "{text}");
    assert!(!text.contains("FAILED"), "{text}");
    for name in ["silu_and_mul_with_clamp(limit=10, eager)", "situ_and_mul"] {
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn one_operation_is_checked_with_its_own_settings() {
    let arguments = ["verify", "--platform", "cpu", "--json", "--op"];
    let json = |more: &[&str]| -> Value {
        serde_json::from_str(&expect(0, &[&arguments, more].concat())).unwrap()
    };
    let report = json(&["silu_and_mul_with_clamp", "--limit", "0.5"]);
    let rows = report["platforms"][0]["operations"].as_array().unwrap();
    assert_eq!(rows.len(), 5, "f32 once, f16 and bf16 in both roundings");
    for row in rows {
        let operation = row["operation"].as_str().unwrap();
        assert!(operation.contains("limit=0.5"), "{operation}");
        assert_eq!(row["passes"], true);
        let bar = if row["dtype"] == "f32" { 4 } else { 2 };
        assert!(row["worst_ulps"].as_u64().unwrap() <= bar, "{row}");
        assert!(row["results"].as_u64().unwrap() >= 3 * 65_536 / 2, "{row}");
    }
    let report = json(&["gpt_oss", "--rounding", "eager"]);
    let rows = report["platforms"][0]["operations"].as_array().unwrap();
    assert_eq!(rows.len(), 3);
}

#[test]
fn every_stage_is_checked_with_a_line_each() {
    let report = expect(0, &["verify", "--platform", "cpu", "--json"]);
    let report: Value = serde_json::from_str(&report).unwrap();
    let stages = report["platforms"][0]["stages"].as_array().unwrap();
    for row in stages {
        assert_eq!(row["passes"], true, "{row}");
        assert!(
            row["measured"].is_string() && row["skipped"].is_null(),
            "{row}"
        );
    }
    let names: Vec<_> = stages
        .iter()
        .map(|r| r["stage"].as_str().unwrap())
        .collect();
    let has = |name: &str| names.iter().any(|n| n.contains(name));
    for format in [
        "f32",
        "f16",
        "bf16",
        "fp8 in blocks of 128 x 128",
        "fp8 in blocks of 32 x 32",
    ] {
        assert!(has(&format!("matmul of bf16 by {format}")), "{names:?}");
    }
    for group in [32, 64, 128] {
        for scales in ["f32", "e8m0"] {
            let quant = format!("fp8(group={group}, scales={scales})");
            assert!(names.contains(&quant.as_str()), "{names:?}");
            assert!(
                has(&format!("silu_and_mul_with_clamp to {quant}")),
                "{names:?}"
            );
        }
    }
    assert!(has("MLP of bf16 activations by fp8") && has("MLP of FP8 activations"));
    assert!(has(
        "matmul of fp8(group=128, scales=e8m0) by fp8 in blocks of 128 x 128"
    ));
    let text = expect(0, &["verify", "--platform", "cpu"]);
    for name in names {
        let line = text.lines().find(|line| line.starts_with(name));
        assert!(
            line.is_some_and(|line| line.contains(" ok, ")),
            "{name}: {line:?}"
        );
    }
    // One operation has no matmuls.
    let one = [
        "verify",
        "--platform",
        "cpu",
        "--json",
        "--op",
        "silu_and_mul",
    ];
    let report: Value = serde_json::from_str(&expect(0, &one)).unwrap();
    assert_eq!(
        report["platforms"][0]["stages"].as_array().unwrap().len(),
        0
    );
}

#[test]
fn the_environment_names_the_platform() {
    let output = swiglu(&["verify", "--op", "silu_and_mul", "--json"])
        .env("SWIGLU_PLATFORM", "reference")
        .assert()
        .success()
        .get_output()
        .clone();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let platforms = report["platforms"].as_array().unwrap();
    assert_eq!(platforms.len(), 1);
    assert_eq!(platforms[0]["platform"], "reference");
    // No progress bar where standard error is no terminal.
    assert!(output.stderr.is_empty());
}

/// Built with the feature and with a device, or a rasteriser that is allowed.
#[cfg(feature = "wgpu")]
#[test]
fn wgpu_is_as_the_definition_says() {
    let probe: Value = serde_json::from_str(&expect(0, &["probe", "--json"])).unwrap();
    let mut platforms = probe["platforms"].as_array().unwrap().iter();
    let wgpu = platforms.find(|p| p["platform"] == "wgpu").unwrap();
    if wgpu["available"] == true {
        let text = expect(0, &["verify", "--platform", "wgpu"]);
        assert!(text.ends_with("wgpu: as the definition says\n"), "{text}");
    } else {
        let reason = wgpu["reason"].to_string();
        swiglu_conformance::may_skip("wgpu", &reason, "wgpu_is_as_the_definition_says");
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    let cases: [(&[&str], &str); 5] = [
        (&["--platform", "tpu"], "tpu"),
        (&["--against", "x.safetensors"], "--op"),
        (&["--limit", "10"], "--op"),
        (
            &["--op", "silu_and_mul", "--against", "x", "--exhaustive"],
            "--exhaustive",
        ),
        (&["--op", "silu_and_mul", "--limit", "3"], "limit"),
    ];
    for (arguments, named) in cases {
        let message = expect(2, &[&["verify"], arguments].concat());
        assert!(message.contains(named), "{arguments:?}: {message}");
    }
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_platform_that_is_asked_for_and_absent_is_an_error() {
    let absent = expect(2, &["verify", "--platform", "cuda"]);
    assert!(absent.contains("cuda"), "{absent}");
}
