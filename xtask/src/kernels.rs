//! Compiles the CUDA kernels to fatbins with a pinned nvcc, or checks those that are there.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use sha2::{Digest, Sha256};

use crate::{Result, checked};

/// What becomes of the compiled files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They take the place of those checked in.
    Write,
    /// They must equal those checked in, byte for byte.
    Check,
}

/// The compiler and what it needs, from PyPI: the same bytes in, the same bytes out.
const PACKAGES: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];

const SOURCES: [&str; 6] = [
    "activation",
    "act_quant",
    "product",
    "product_rows",
    "product_tiles",
    "quantize",
];

const FLAGS: [&str; 11] = [
    "-std=c++17",
    "-O3",
    "-fatbin",
    "-Xptxas=-v",
    "-Xfatbin=-compress-all",
    "--threads=2",
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-gencode=arch=compute_100,code=sm_100",
    "-gencode=arch=compute_120,code=sm_120",
    "-gencode=arch=compute_80,code=compute_80",
];

/// Compiles all sources.
pub fn run(mode: Mode) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()?;
    let work = root.join("target/kernels");
    fs::create_dir_all(&work)?;
    let toolkit = toolkit(&work)?;
    let kernels = root.join("crates/cuda/kernels");
    let mut files = Vec::new();
    let mut manifest = format!(
        "# Written by `cargo xtask kernels`.\n\ncompiler: {}\nflags: {}\n",
        PACKAGES.join(" "),
        FLAGS.join(" ")
    );
    for name in SOURCES {
        let (fatbin, report) = compile(&toolkit, &kernels, &work, name)?;
        let sum = hex(&Sha256::digest(&fatbin));
        write!(manifest, "\n## {name}.fatbin\n\nsha256: {sum}\n\n")?;
        manifest.push_str(&report);
        files.push((format!("{name}.fatbin"), fatbin));
    }
    files.push(("MANIFEST".to_owned(), manifest.into_bytes()));
    let folder = root.join("crates/cuda/fatbin");
    for (name, bytes) in files {
        let path = folder.join(&name);
        match mode {
            Mode::Write => fs::write(&path, &bytes)?,
            Mode::Check if fs::read(&path).ok().as_ref() == Some(&bytes) => {}
            Mode::Check => {
                let fix = "run `cargo xtask kernels`";
                return Err(format!("{name} is not what the sources compile to: {fix}").into());
            }
        }
        println!("{name}: {} bytes", bytes.len());
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The folder of the compiler, in a Python environment that is made here if it is not there.
fn toolkit(work: &Path) -> Result<PathBuf> {
    let venv = work.join("venv");
    let stamp = venv.join("packages");
    let wanted = PACKAGES.join("\n");
    if fs::read_to_string(&stamp).ok().as_ref() != Some(&wanted) {
        checked(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        let pip = venv.join("bin/pip");
        checked(
            Command::new(pip)
                .args(["install", "--quiet", "--no-deps"])
                .args(PACKAGES),
        )?;
        fs::write(&stamp, wanted)?;
    }
    let lib = fs::read_dir(venv.join("lib"))?
        .next()
        .ok_or("an empty venv")??;
    Ok(lib.path().join("site-packages/nvidia/cu13"))
}

/// The fatbin of a source, and its kernels' registers and spills.
fn compile(toolkit: &Path, kernels: &Path, work: &Path, name: &str) -> Result<(Vec<u8>, String)> {
    let target = work.join(format!("{name}.fatbin"));
    let output = checked(
        Command::new(toolkit.join("bin/nvcc"))
            .current_dir(kernels)
            .args(FLAGS)
            .arg("-I")
            .arg(toolkit.join("include"))
            .arg(format!("{name}.cu"))
            .arg("-o")
            .arg(&target),
    )?;
    let report = String::from_utf8_lossy(&output.stderr);
    Ok((fs::read(&target)?, resources(&report)))
}

/// A line for each kernel and target out of ptxas's report, sorted: targets compile side by side.
fn resources(report: &str) -> String {
    let (mut lines, mut kernel, mut spills) = (Vec::new(), String::new(), String::new());
    for line in report.lines() {
        let quoted: Vec<&str> = line.split('\'').collect();
        if line.contains("Compiling entry function") && quoted.len() > 3 {
            kernel = format!("{} {}", quoted[1], quoted[3]);
        } else if line.contains("bytes spill stores") {
            let words: Vec<&str> = line.split_whitespace().collect();
            spills = format!("{} spilled", words.get(4).unwrap_or(&"?"));
        } else if let Some((_, used)) = line.split_once("Used ") {
            let registers = used.split_whitespace().next().unwrap_or("?");
            lines.push(format!("{kernel}: {registers} registers, {spills}\n"));
        }
    }
    lines.sort();
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_becomes_a_line_for_each_kernel() {
        let report = "ptxas info    : Compiling entry function 'b' for 'sm_90a'\n\
            ptxas info    : Function properties for b\n\
            \x20   0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
            ptxas info    : Used 30 registers, used 0 barriers\n\
            ptxas info    : Compiling entry function 'a' for 'sm_80'\n\
            \x20   8 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads\n\
            ptxas info    : Used 7 registers\n";
        let lines = "a sm_80: 7 registers, 12 spilled\nb sm_90a: 30 registers, 0 spilled\n";
        assert_eq!(resources(report), lines);
    }
}
