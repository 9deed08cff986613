//! Gathers what a GPU's machine needs to run the tests and benches without a Rust toolchain.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{Result, checked};

/// What is built, one call of cargo each.
const BUILDS: [&str; 5] = [
    "test --no-run --tests -p swiglu-cuda -p swiglu-wgpu",
    "test --no-run --tests -p swiglu --features cuda,wgpu",
    "test --no-run --test nccl -p swiglu-cuda -p swiglu --features nccl",
    "bench --no-run -p swiglu-bench --features cuda,wgpu --bench cuda --bench wgpu",
    "build --release -p swiglu-cli --features cuda,wgpu",
];

/// Runs what it lies beside, one program after another: side by side they would disturb each other.
const RUN: &str = r#"#!/usr/bin/env bash
# Runs every test here, then what measures. A platform named in SWIGLU_REQUIRE must be there.
cd "$(dirname "$0")"
failed=0
for test in test-*; do
    echo "== $test"
    "./$test" --test-threads=4 || failed=1
done
for command in 'swiglu verify' 'swiglu demo' 'bench-cuda --csv' 'bench-wgpu --csv' \
    'swiglu bench --platform cuda' 'swiglu bench --platform wgpu'; do
    echo "== $command"
    ./$command || failed=1
done
exit $failed
"#;

/// Builds into `folder`, which is made if it is not there.
pub fn run(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for build in BUILDS {
        for (name, built) in executables(build)? {
            let target = folder.join(&name);
            checked(Command::new("strip").arg("-o").arg(&target).arg(&built))?;
            println!("{name}: {} bytes", fs::metadata(&target)?.len());
        }
    }
    let script = folder.join("run");
    fs::write(&script, RUN)?;
    checked(Command::new("chmod").arg("+x").arg(&script))?;
    Ok(())
}

/// Builds, and gives each executable that came of it with the name that it gets.
fn executables(build: &str) -> Result<Vec<(String, PathBuf)>> {
    let output = checked(
        Command::new(env!("CARGO"))
            .args(build.split(' '))
            .args(["--locked", "--message-format=json-render-diagnostics"])
            .stderr(Stdio::inherit()),
    )?;
    let mut found = Vec::new();
    for line in output
        .stdout
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        let message: Value = serde_json::from_slice(line)?;
        let Some(executable) = message["executable"].as_str() else {
            continue;
        };
        found.push((named(&message), executable.into()));
    }
    Ok(found)
}

/// `test-swiglu-cuda-suite` for a test, `bench-wgpu` for a bench, as all of these are of one package; a
/// program keeps its name.
fn named(message: &Value) -> String {
    let target = &message["target"];
    let name = target["name"].as_str().unwrap_or_default();
    let package = message["package_id"].as_str().map_or("", package);
    let kind = target["kind"][0].as_str().unwrap_or_default();
    match (kind, message["profile"]["test"].as_bool()) {
        ("bench", _) => format!("bench-{name}"),
        (_, Some(true)) => format!("test-{package}-{name}"),
        _ => name.to_owned(),
    }
}

/// A package's name out of its identifier: `path+file:///…/crates/cuda#swiglu-cuda@0.1.0`, or
/// `path+file:///…/swiglu#0.1.0` where the folder has the same name.
fn package(id: &str) -> &str {
    let (path, version) = id.rsplit_once('#').unwrap_or((id, ""));
    let folder = path.rsplit('/').next().unwrap_or(path);
    version.split_once('@').map_or(folder, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_program_keeps_its_name_and_others_say_what_they_are() {
        let message = |kind: &str, test: bool| {
            let target = json!({ "kind": [kind], "name": "suite" });
            let package = "path+file:///x/crates/cuda#swiglu-cuda@0.1.0";
            named(&json!({ "target": target, "package_id": package, "profile": { "test": test } }))
        };
        assert_eq!(message("test", true), "test-swiglu-cuda-suite");
        assert_eq!(message("bench", true), "bench-suite");
        assert_eq!(message("bin", false), "suite");
        assert_eq!(package("path+file:///x/swiglu#0.1.0"), "swiglu");
    }
}
