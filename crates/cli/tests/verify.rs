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
