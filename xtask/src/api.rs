//! The public API of each library as text, so that a change of it shows in review.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use public_api::Builder;

use crate::{Result, checked};

/// The toolchain whose rustdoc writes the JSON that the crate `public-api` reads.
const TOOLCHAIN: &str = "+1.95.0";

/// The libraries that are published, and the features that they are shown with: all that need no
/// nvcc.
const LIBRARIES: [(&str, &str); 10] = [
    ("swiglu", "candle,cuda,mpi,nccl,wgpu"),
    ("swiglu-core", ""),
    ("swiglu-cpu", ""),
    ("swiglu-cuda", "nccl"),
    ("swiglu-wgpu", ""),
    ("swiglu-mlp", ""),
    ("swiglu-mmap", ""),
    ("swiglu-mpi", "mpi"),
    ("swiglu-candle", ""),
    ("swiglu-conformance", "proptest"),
];

/// Writes `docs/api/*.txt`, or fails where one of them is not what the code has.
pub fn run(check: bool) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/api");
    fs::create_dir_all(&folder)?;
    let mut changed = Vec::new();
    for (library, features) in LIBRARIES {
        let now = items(library, features)?;
        let path = folder.join(format!("{library}.txt"));
        let before = fs::read_to_string(&path).unwrap_or_default();
        if !check {
            fs::write(&path, now)?;
        } else if now != before {
            changed.push(format!(
                "docs/api/{library}.txt:\n{}",
                difference(&before, &now)
            ));
        }
    }
    if changed.is_empty() {
        return Ok(());
    }
    let list = changed.join("\n");
    Err(format!("the public API changed; if that is meant, run `cargo xtask api`\n{list}").into())
}

/// The public items of a library, a line each.
fn items(library: &str, features: &str) -> Result<String> {
    let target = target_directory()?;
    checked(
        Command::new("cargo")
            .args([TOOLCHAIN, "rustdoc", "--quiet", "--locked", "--lib"])
            .args(["--features", features])
            .args([
                "-p",
                library,
                "--",
                "-Z",
                "unstable-options",
                "--output-format",
                "json",
            ])
            // Rustdoc's JSON is unstable; the pinned toolchain makes it one format.
            .env("RUSTC_BOOTSTRAP", "1")
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("RUSTDOCFLAGS"),
    )?;
    let json = target.join("doc").join(library.replace('-', "_") + ".json");
    let api = Builder::from_rustdoc_json(json)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build()?;
    let lines = api.items().map(|item| format!("{item}\n"));
    Ok(lines.collect())
}

fn target_directory() -> Result<PathBuf> {
    let output =
        checked(Command::new(env!("CARGO")).args(["metadata", "--format-version=1", "--no-deps"]))?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let folder = metadata["target_directory"].as_str();
    Ok(folder
        .ok_or("cargo metadata names no target directory")?
        .into())
}

/// The lines that went and those that came.
fn difference(before: &str, now: &str) -> String {
    let only = |sign: char, these: &str, those: &str| -> String {
        let those: std::collections::HashSet<&str> = those.lines().collect();
        let gone = these.lines().filter(|line| !those.contains(line));
        gone.map(|line| format!("{sign} {line}\n")).collect()
    };
    only('-', before, now) + &only('+', now, before)
}
