//! Checks that `swiglu-cuda` compiles however an engine beside it has cudarc linked.
//!
//! Features of cudarc add up over a whole build: candle links CUDA when it is built, others load it
//! at run time, each for the version of CUDA that it is made for. So a package of nothing but these
//! two dependencies is made for each way, and checked; nothing of CUDA is needed.

use std::{fs, path::Path, process::Command};

use crate::{Result, checked};

/// What engines turn on.
const MODES: [&[&str]; 5] = [
    &[],
    &["dynamic-loading", "cuda-12080"],
    &["dynamic-linking", "cuda-13000"],
    &["static-linking", "cuda-12090"],
    &["dynamic-linking", "cuda-12000"],
];

/// Every other version that cudarc has from the oldest driver's on.
const VERSIONS: [&str; 11] = [
    "cuda-12010",
    "cuda-12020",
    "cuda-12030",
    "cuda-12040",
    "cuda-12050",
    "cuda-12060",
    "cuda-12090",
    "cuda-13010",
    "cuda-13020",
    "cuda-13030",
    "cuda-13040",
];

/// Archives that cudarc's build asks for when CUDA is linked statically: empty ones do for a check.
const ARCHIVES: [&str; 2] = ["stdc++", "cudart_static"];

/// Checks what engines turn on, or every version besides.
pub fn run(every_version: bool) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()?;
    let work = root.join("target/link-modes");
    fs::create_dir_all(work.join("src"))?;
    fs::write(work.join("src/lib.rs"), "pub use swiglu_cuda as _;\n")?;
    let cuda = work.join("cuda");
    fs::create_dir_all(cuda.join("lib"))?;
    for archive in ARCHIVES {
        fs::write(cuda.join(format!("lib/lib{archive}.a")), "!<arch>\n")?;
    }
    let version = cudarc_version(&fs::read_to_string(root.join("crates/cuda/Cargo.toml"))?)?;
    let others = VERSIONS.map(|version| ["dynamic-loading", version]);
    let others = if every_version { &others[..] } else { &[] };
    for features in MODES.into_iter().chain(others.iter().map(|pair| &pair[..])) {
        fs::write(work.join("Cargo.toml"), manifest(&root, &version, features))?;
        // The versions that the workspace has, so that no registry is asked.
        fs::copy(root.join("Cargo.lock"), work.join("Cargo.lock"))?;
        checked(
            Command::new(env!("CARGO"))
                .current_dir(&work)
                .args(["check", "--quiet", "--offline"])
                .env("CARGO_TARGET_DIR", work.join("target"))
                .env("CUDA_PATH", &cuda),
        )?;
        let name = match features {
            [] => "its own features".to_owned(),
            features => features.join(" + "),
        };
        println!("cudarc with {name}: swiglu-cuda compiles");
    }
    Ok(())
}

/// The version of cudarc that a manifest asks for.
fn cudarc_version(manifest: &str) -> Result<String> {
    let line = manifest.lines().find(|line| line.starts_with("cudarc = "));
    let version = line.and_then(|line| line.split('"').nth(1));
    Ok(version.ok_or("no version of cudarc")?.to_owned())
}

fn manifest(root: &Path, version: &str, features: &[&str]) -> String {
    format!(
        "[package]\nname = \"link-modes\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n\
        [dependencies]\nswiglu-cuda = {{ path = {:?} }}\n\
        cudarc = {{ version = \"{version}\", default-features = false, features = {features:?} }}\n",
        root.join("crates/cuda")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_asks_for_the_backends_cudarc_with_an_engines_features() {
        let own = "[dependencies]\ncudarc = { version = \"0.19.10\", features = [\n] }\n";
        let version = cudarc_version(own).unwrap();
        let text = manifest(Path::new("/x"), &version, MODES[2]);
        let line = "cudarc = { version = \"0.19.10\", default-features = false, \
            features = [\"dynamic-linking\", \"cuda-13000\"] }";
        assert!(text.lines().any(|l| l == line), "{text}");
        assert!(cudarc_version("[dependencies]\n").is_err());
    }
}
