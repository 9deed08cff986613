//! Writes the list of the activations' kernels out of the family's table, and compiles the CUDA
//! kernels to fatbins with a pinned nvcc; or checks what is there.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use sha2::{Digest, Sha256};

use crate::{Result, checked};

// The backend's own files, so that what is compiled is what it looks up. A dependency on its crate
// would need the fatbins before they are made.
#[allow(dead_code, reason = "the backend uses the rest")]
#[path = "../../crates/cuda/src/activation/family.rs"]
mod family;
#[path = "../../crates/cuda/src/activation/instances.rs"]
mod instances;

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

/// The folder of each source in `crates/cuda/kernels`, and its name.
const SOURCES: [(&str, &str); 7] = [
    ("activation", "activation"),
    ("quant", "act_quant"),
    ("matmul", "matmul"),
    ("matmul", "matmul_rows"),
    ("matmul", "matmul_tiles"),
    ("quant", "quantize"),
    ("ranks", "round"),
];

/// The list that is written before the sources are compiled.
const INSTANCES: &str = "activation/instances.cuh";

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

/// Writes the list of instances and compiles all sources.
pub fn run(mode: Mode) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()?;
    let work = root.join("target/kernels");
    fs::create_dir_all(&work)?;
    let toolkit = toolkit(&work)?;
    let kernels = root.join("crates/cuda/kernels");
    let list = instances::text(&family::Forms::of_family().0);
    settle(mode, &kernels.join(INSTANCES), list.as_bytes())?;
    let mut files = Vec::new();
    let mut manifest = format!(
        "# Written by `cargo xtask kernels`.\n\ncompiler: {}\nflags: {}\n",
        PACKAGES.join(" "),
        FLAGS.join(" ")
    );
    for (folder, name) in SOURCES {
        let (fatbin, report) = compile(&toolkit, &kernels.join(folder), &work, name)?;
        let sum = hex(&Sha256::digest(&fatbin));
        write!(manifest, "\n## {name}.fatbin\n\nsha256: {sum}\n\n")?;
        manifest.push_str(&report);
        files.push((format!("{name}.fatbin"), fatbin));
    }
    files.push(("MANIFEST".to_owned(), manifest.into_bytes()));
    let folder = root.join("crates/cuda/fatbin");
    for (name, bytes) in files {
        settle(mode, &folder.join(&name), &bytes)?;
        println!("{name}: {} bytes", bytes.len());
    }
    Ok(())
}

/// Writes a file, or checks that it is these bytes. One that is them is left alone.
fn settle(mode: Mode, path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).ok().as_deref() == Some(bytes) {
        return Ok(());
    }
    match mode {
        Mode::Write => Ok(fs::write(path, bytes)?),
        Mode::Check => {
            let (path, fix) = (path.display(), "run `cargo xtask kernels`");
            Err(format!("{path} is not what the sources give: {fix}").into())
        }
    }
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
fn compile(toolkit: &Path, folder: &Path, work: &Path, name: &str) -> Result<(Vec<u8>, String)> {
    let target = work.join(format!("{name}.fatbin"));
    let output = checked(
        Command::new(toolkit.join("bin/nvcc"))
            .current_dir(folder)
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
