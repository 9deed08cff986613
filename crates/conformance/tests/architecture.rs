//! The direction of dependencies: between the workspace's packages, read from cargo, and between
//! the modules of a backend, read from their sources.
#![allow(clippy::unwrap_used)] // Helpers of tests may panic as tests may.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Runs cargo as it runs this test, on this workspace.
fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .args(["--offline", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml"))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The packages of the workspace with those of them that each needs, at run time or to build.
fn members() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = cargo(&["metadata", "--no-deps", "--format-version", "1"]);
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let name = |v: &Value| v["name"].as_str().unwrap().to_owned();
    let names: BTreeSet<_> = packages.iter().map(name).collect();
    let needs = |package: &Value| {
        let needed = package["dependencies"].as_array().unwrap().iter();
        needed
            .filter(|d| d["kind"] != "dev")
            .map(name)
            .filter(|n| names.contains(n))
            .collect()
    };
    packages.iter().map(|p| (name(p), needs(p))).collect()
}

#[test]
fn dependencies_point_towards_core() {
    let core = ["swiglu-core"].as_slice();
    // Helpers that know nothing of the library may be used by anyone but core.
    let allowed = |name: &str| match name {
        "swiglu-core" | "swiglu-mmap" => Some([].as_slice()),
        "swiglu-cpu" | "swiglu-wgpu" | "swiglu-cuda" | "swiglu-conformance" | "swiglu-mpi" => {
            Some(core)
        }
        "swiglu-mlp" => Some(["swiglu-core", "swiglu-mmap"].as_slice()),
        // The program's `verify` runs the suite's checks.
        "swiglu-cli" => Some(["swiglu", "swiglu-conformance", "swiglu-mmap"].as_slice()),
        // On the backends whose memory candle has.
        "swiglu-candle" => {
            Some(["swiglu-core", "swiglu-cpu", "swiglu-cuda", "swiglu-mlp"].as_slice())
        }
        // What engines on candle and on wgpu write.
        "candle-engine" => Some(["swiglu"].as_slice()),
        "wgpu-device" => Some(["swiglu-core", "swiglu-wgpu"].as_slice()),
        // The toy that shows how a backend from outside looks.
        "threads-backend" => Some(["swiglu", "swiglu-core"].as_slice()),
        // What is not published, the benches, may measure anything.
        "swiglu" | "swiglu-bench" => None,
        // The list of CUDA's instances follows from the family's table.
        "xtask" => Some(core),
        other => panic!("{other} is new here: say what it may depend on"),
    };
    let members = members();
    for (name, needs) in &members {
        if let Some(allowed) = allowed(name) {
            let others: Vec<_> = needs
                .iter()
                .filter(|n| !allowed.contains(&n.as_str()))
                .collect();
            assert!(others.is_empty(), "{name} depends on {others:?}");
        }
        assert!(
            matches!(name.as_str(), "swiglu-cli" | "swiglu-bench")
                || !needs.contains("swiglu-conformance"),
            "{name} depends on the tests"
        );
        assert!(
            !needs.contains("swiglu-bench"),
            "{name} depends on the benches"
        );
    }
    assert!(members["swiglu"].contains("swiglu-core"));
}

/// The packages that are compiled to use one.
fn tree(package: &str) -> BTreeSet<String> {
    let arguments = ["tree", "-p", package, "-e", "normal,build"];
    let tree = cargo(&[&arguments[..], &["--prefix", "none", "-f", "{p}"]].concat());
    let name = |line: &str| line.split_whitespace().next().map(str::to_owned);
    let names: BTreeSet<_> = tree.lines().filter_map(name).collect();
    assert!(names.contains("swiglu-core"), "{tree}");
    names
}

#[test]
fn the_default_features_bring_no_gpu_and_no_framework() {
    let names = tree("swiglu");
    for gpu in ["wgpu", "cudarc", "naga", "swiglu-wgpu", "swiglu-cuda"] {
        assert!(!names.contains(gpu), "{gpu} is among {names:?}");
    }
    for framework in ["candle-core", "candle-nn", "swiglu-candle"] {
        assert!(!names.contains(framework), "{framework} is among {names:?}");
    }
}

#[test]
fn candle_on_the_cpu_brings_no_gpu() {
    let names = tree("swiglu-candle");
    assert!(names.contains("candle-core"), "{names:?}");
    for gpu in [
        "cudarc",
        "candle-kernels",
        "candle-metal-kernels",
        "swiglu-cuda",
    ] {
        assert!(!names.contains(gpu), "{gpu} is among {names:?}");
    }
}

#[test]
fn the_program_brings_no_test_framework() {
    let names = tree("swiglu-cli");
    assert!(names.contains("swiglu-conformance"), "{names:?}");
    for framework in ["proptest", "criterion"] {
        assert!(!names.contains(framework), "{framework} is among {names:?}");
    }
}

mod modules;

#[test]
fn no_backends_modules_need_each_other_in_a_circle() {
    for name in ["cpu", "cuda", "wgpu"] {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        let source = std::path::Path::new(folder).join(name).join("src");
        let circles = modules::circles(&modules::uses(&source));
        assert!(circles.is_empty(), "{name}: {}", circles.join("; "));
    }
}
