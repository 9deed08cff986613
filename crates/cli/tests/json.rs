//! The JSON of every command: one document, and the fields that docs/program.md lists, no more and
//! no fewer.
#![allow(clippy::unwrap_used)] // A helper of a test fails by panicking.

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::{Folder, swiglu, write};
use safetensors::Dtype;
use serde_json::Value;
use swiglu::mlp::synthetic::{
    SyntheticConfig, SyntheticMoe, synthetic_input, write_checkpoint, write_moe_checkpoint,
};

/// Runs a command that prints one JSON document, and returns that and what went to stderr.
fn json(arguments: &[&str]) -> (Value, String) {
    let output = swiglu(arguments).assert().success().get_output().clone();
    let document = serde_json::from_slice(&output.stdout).unwrap();
    (document, String::from_utf8(output.stderr).unwrap())
}

/// Every field with its path; those of a list's entries once.
fn fields(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(entries) => {
            for (name, value) in entries {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                fields(value, &path, found);
                found.insert(path);
            }
        }
        Value::Array(entries) => entries.iter().for_each(|entry| fields(entry, path, found)),
        _ => {}
    }
}

/// The fields that the page lists under a command's heading, as `` | `field` | ``. Those marked
/// "sometimes" need not be there.
fn documented(command: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/program.md");
    let page = std::fs::read_to_string(page).unwrap();
    let heading = format!("### `swiglu {command} --json`");
    let section = page
        .split(&heading)
        .nth(1)
        .unwrap_or_else(|| panic!("no {heading}"));
    let section = section.split("\n#").next().unwrap();
    let (mut all, mut always) = (BTreeSet::new(), BTreeSet::new());
    for row in section.lines().filter_map(|line| line.strip_prefix("| `")) {
        let (name, what) = row.split_once("` |").unwrap();
        all.insert(name.to_owned());
        if !what.contains("sometimes") {
            always.insert(name.to_owned());
        }
    }
    (all, always)
}

fn is_documented(command: &str, document: &Value) {
    let mut found = BTreeSet::new();
    fields(document, "", &mut found);
    let (all, always) = documented(command);
    let unknown: Vec<_> = found.difference(&all).collect();
    assert!(unknown.is_empty(), "not in docs/program.md: {unknown:?}");
    let missing: Vec<_> = always.difference(&found).collect();
    assert!(missing.is_empty(), "in docs/program.md alone: {missing:?}");
}

#[test]
fn probe_numbers_the_devices() {
    let (document, prose) = json(&["probe", "--json"]);
    is_documented("probe", &document);
    assert_eq!(prose, "");
    let platforms = document["platforms"].as_array().unwrap();
    for platform in platforms.iter().filter(|p| p["available"] == true) {
        let devices = platform["devices"].as_array().unwrap();
        let numbers: Vec<_> = devices
            .iter()
            .map(|d| d["number"].as_u64().unwrap())
            .collect();
        assert_eq!(numbers, (0..devices.len() as u64).collect::<Vec<_>>());
        assert!(!devices.is_empty(), "{platform:#}");
    }
    let printed = common::expect(0, &["probe"]);
    assert!(printed.contains("device 0: "), "{printed}");
}

#[test]
fn act_tells_what_it_wrote() {
    let folder = Folder::new();
    let (x, y) = (folder.path("x"), folder.path("y"));
    write(&x, &[("x", Dtype::F16, &[3, 2, 8], &[0; 96])]);
    let (x, y) = (x.to_str().unwrap(), y.to_str().unwrap());
    let act = [
        "act",
        "--op",
        "deepseek_v4",
        "--input",
        x,
        "--output",
        y,
        "--json",
    ];
    let (document, prose) = json(&[&act[..], &["--platform", "cpu"]].concat());
    is_documented("act", &document);
    assert!(prose.contains("platform cpu"), "{prose}");
    assert_eq!(document["platform"]["chosen"], "cpu");
    assert_eq!(document["quantization"], Value::Null);
    assert_eq!(
        document["tensors"][0]["shape"],
        serde_json::json!([3, 2, 4])
    );
    assert_eq!(document["tensors"][0]["dtype"], "f16");
    let (document, _) = json(&[&act[..], &["--quant", "fp8"]].concat());
    is_documented("act", &document);
    let names = document["tensors"].as_array().unwrap();
    let names: Vec<_> = names.iter().map(|t| t["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["codes", "scales"]);
}

#[test]
fn run_tells_what_it_ran() {
    let folder = Folder::new();
    let config = SyntheticConfig {
        hidden: 64,
        intermediate: 32,
        ..SyntheticConfig::flash(7)
    };
    let whole = folder.path("");
    write_checkpoint(&whole, &config).unwrap();
    let (x, y) = (folder.path("x"), folder.path("y"));
    let data = synthetic_input(2, 64, 7);
    write(
        &x,
        &[("x", Dtype::BF16, &[2, 64], bytemuck::cast_slice(&data))],
    );
    let files = [
        "--checkpoint",
        whole.to_str().unwrap(),
        "--input",
        x.to_str().unwrap(),
    ];
    let prefix = config.prefix();
    let rest = [
        "--output",
        y.to_str().unwrap(),
        "--prefix",
        &prefix,
        "--json",
    ];
    let (document, prose) = json(&[&["run"], &files[..], &rest, &["--stages"]].concat());
    is_documented("run", &document);
    assert!(prose.contains("sums     "), "{prose}");
    assert_eq!(document["weights"]["hidden_size"], 64);
    assert!(document["operation"].as_str().unwrap().contains("limit=10"));
    let tensors = document["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 3);
    assert_eq!(tensors[1]["shape"], serde_json::json!([2, 64]));
    let one = serde_json::json!({
        "communicator": null, "world": 1, "intermediate_size": 32,
    });
    assert_eq!(document["ranks"], one);
    let (document, _) = json(&[&["run"], &files[..], &rest, &["--ranks", "1"]].concat());
    assert_eq!(document["ranks"], one);
}

#[test]
fn bench_gives_a_row_for_each_line() {
    let always = [
        "bench",
        "--platform",
        "cpu",
        "--seconds",
        "0.001",
        "--shape",
        "96x64",
    ];
    let (document, prose) = json(&[&always[..], &["--tokens", "1,3", "--json"]].concat());
    is_documented("bench", &document);
    assert!(prose.contains("of memory"), "{prose}");
    assert_eq!(document["graph"], false);
    assert!(document["limits"]["fp8_gflop_per_s"].is_null());
    let rows = document["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4);
    for row in rows {
        let number = |name: &str| row[name].as_f64().unwrap();
        assert!(0.0 < number("p10_us") && number("p10_us") <= number("median_us"));
    }
    common::expect(2, &["bench", "--csv", "--json"]);
}

#[test]
fn demo_tells_whether_it_passes() {
    let demo = ["demo", "--platform", "cpu", "--tokens", "1,2", "--json"];
    let (document, prose) = json(&demo);
    is_documented("demo", &document);
    assert!(prose.contains("every result agrees"), "{prose}");
    assert_eq!(document["passes"], true);
    let results = document["results"].as_array().unwrap();
    assert_eq!(results.len(), 4);
    assert!(document["error_without_clamp"].as_f64().unwrap() > 0.01);
}

#[test]
fn whole_layers_tell_what_they_ran() {
    let folder = Folder::new();
    let config = SyntheticMoe {
        shared: SyntheticConfig {
            hidden: 64,
            intermediate: 32,
            ..SyntheticConfig::flash(7)
        },
        ..SyntheticMoe::flash(8, 7)
    };
    let whole = folder.path("");
    write_moe_checkpoint(&whole, &config).unwrap();
    let (x, y) = (folder.path("x"), folder.path("y"));
    let data = synthetic_input(2, 64, 7);
    write(
        &x,
        &[("x", Dtype::BF16, &[2, 64], bytemuck::cast_slice(&data))],
    );
    let prefix = config.prefix();
    let run = [
        "run",
        "--checkpoint",
        whole.to_str().unwrap(),
        "--input",
        x.to_str().unwrap(),
        "--output",
        y.to_str().unwrap(),
        "--prefix",
        &prefix,
        "--platform",
        "cpu",
        "--json",
    ];
    let (document, prose) = json(&[&run[..], &["--stages"]].concat());
    is_documented("run --prefix LAYER", &document);
    assert!(prose.contains("touched  "), "{prose}");
    assert_eq!(document["weights"]["experts"], 8);
    assert_eq!(document["tensors"].as_array().unwrap().len(), 5);
    let bench = ["bench", "--moe", "--platform", "cpu", "--seconds", "0.001"];
    let small = [
        "--shape",
        "96x64",
        "--experts",
        "7",
        "--tokens",
        "1,3",
        "--json",
    ];
    let (document, _) = json(&[&bench[..], &small].concat());
    is_documented("bench --moe", &document);
    assert_eq!(document["rows"].as_array().unwrap().len(), 2);
    assert!(document["rows"][0]["touched_experts"].as_f64().unwrap() >= 6.0);
}

#[test]
fn a_demonstrated_layer_passes() {
    let demo = [
        "demo",
        "--moe",
        "--platform",
        "cpu",
        "--tokens",
        "1,2",
        "--json",
    ];
    let (document, prose) = json(&demo);
    is_documented("demo --moe", &document);
    assert!(prose.contains("agrees with the reference"), "{prose}");
    assert_eq!(document["passes"], true);
    assert_eq!(document["results"].as_array().unwrap().len(), 4);
}
