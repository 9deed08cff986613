//! Writes the list of the activations' kernels out of the family's table, and compiles the CUDA
//! kernels to fatbins with a pinned compiler; or checks what is there.
//!
//! ## Method
//! 1. The compiler is NVRTC of CUDA 12.9: nvcc's own as a library, which PyPI has whole (of nvcc 12 it
//!    has only parts). What it makes runs on every driver from CUDA 12.0 on, for machine code of one
//!    major version of CUDA does.
//! 2. Each source is compiled once for each target, as many at once as there are processors.
//! 3. The images of a source become two fatbins. Devices up to Hopper have drivers from CUDA 12.0 on:
//!    theirs holds no image of a device that such a driver does not know, compressed in the way that
//!    it reads (LZ4; the smaller one came with 12.4). Later devices have drivers from 12.8 on.

use std::{
    error::Error,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
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

/// The compiler, its headers, and the tool that makes fatbins, from PyPI: the same bytes in, the same
/// bytes out. That tool is a newer CUDA's, as PyPI has none of 12.
const PACKAGES: [&str; 4] = [
    "nvidia-cuda-nvrtc-cu12==12.9.86",
    "nvidia-cuda-runtime-cu12==12.9.79",
    "nvidia-cuda-cccl-cu12==12.9.27",
    "nvidia-cuda-nvcc==13.0.88",
];

/// Calls NVRTC: NVRTC SOURCE IMAGE FLAGS…
const NVRTC: &str = include_str!("nvrtc.py");

/// The folder of each source in `crates/cuda/kernels`, and its name.
const SOURCES: [(&str, &str); 19] = [
    ("activation", "activation"),
    ("quant", "act_quant"),
    ("matmul", "matmul"),
    ("matmul", "matmul_rows"),
    ("matmul", "matmul_tiles"),
    ("matmul", "codes"),
    ("matmul", "decode"),
    ("matmul", "decode_codes"),
    ("matmul", "warpgroups"),
    ("matmul", "mapped"),
    ("quant", "quantize"),
    ("ranks", "round"),
    ("limits", "limits"),
    ("moe", "route"),
    ("moe", "experts"),
    ("moe", "experts_packed"),
    ("moe", "experts_tiles"),
    ("moe", "experts_warpgroups"),
    ("moe", "rows"),
];

/// The list that is written before the sources are compiled.
const INSTANCES: &str = "activation/instances.cuh";

const FLAGS: [&str; 2] = ["-std=c++17", "--ptxas-options=-v"];

/// A fatbin of a source: the compute capability that it is for and those after it, up to the next's.
struct Fatbin {
    from: &'static str,
    compression: &'static str,
    targets: &'static [&'static str],
}

/// Machine code, and text for devices that are none of these.
const FATBINS: [Fatbin; 2] = [
    Fatbin {
        from: "80",
        compression: "--compress-mode=speed",
        targets: &["sm_80", "sm_90a"],
    },
    Fatbin {
        from: "100",
        compression: "--compress-mode=size",
        targets: &["sm_100", "sm_120", "compute_80"],
    },
];

/// Of the tool that makes fatbins.
const FATBIN_FLAGS: [&str; 2] = ["-64", "--compress-all"];

/// Writes the list of instances and compiles all sources.
pub fn run(mode: Mode) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()?;
    let work = root.join("target/kernels");
    fs::create_dir_all(&work)?;
    let toolkit = Toolkit::new(&work)?;
    let kernels = root.join("crates/cuda/kernels");
    let list = instances::text(&family::Forms::of_family().0);
    settle(mode, &kernels.join(INSTANCES), list.as_bytes())?;
    let mut images = toolkit.compile(&kernels, &work)?;
    let mut files = Vec::new();
    let mut manifest = format!(
        "# Written by `cargo xtask kernels`.\n\ncompiler: {}\nflags: {}\n",
        PACKAGES.join(" "),
        FLAGS.join(" ")
    );
    for fatbin in &FATBINS {
        let (from, targets) = (fatbin.from, fatbin.targets.join(" "));
        let flags = FATBIN_FLAGS.join(" ");
        writeln!(
            manifest,
            "from {from} on: {targets} {flags} {}",
            fatbin.compression
        )?;
    }
    for (_, name) in SOURCES {
        let (of_source, later): (Vec<_>, Vec<_>) = images.into_iter().partition(|i| i.name == name);
        images = later;
        write!(manifest, "\n## {name}\n\n")?;
        for fatbin in &FATBINS {
            let file = format!("{name}.{}.fatbin", fatbin.from);
            let bytes = toolkit.fatbin(&work.join(&file), fatbin, &of_source)?;
            writeln!(manifest, "{file} sha256: {}", hex(&Sha256::digest(&bytes)))?;
            files.push((file, bytes));
        }
        manifest.push('\n');
        let mut lines: Vec<_> = of_source.iter().flat_map(|i| i.kernels.iter()).collect();
        lines.sort();
        lines.into_iter().for_each(|line| manifest.push_str(line));
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

/// A source compiled for a target.
struct Image {
    name: &'static str,
    target: &'static str,
    file: PathBuf,
    /// A line for each kernel: its registers and spills.
    kernels: Vec<String>,
}

/// The folder of the packages, in a Python environment.
struct Toolkit {
    python: PathBuf,
    nvidia: PathBuf,
}

impl Toolkit {
    /// In an environment that is made here if it is not there.
    fn new(work: &Path) -> Result<Self> {
        let venv = work.join("venv");
        let stamp = venv.join("packages");
        let wanted = PACKAGES.join("\n");
        if fs::read_to_string(&stamp).ok().as_ref() != Some(&wanted) {
            // What other packages left there would be found as well.
            checked(
                Command::new("python3")
                    .args(["-m", "venv", "--clear"])
                    .arg(&venv),
            )?;
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
        fs::write(work.join("nvrtc.py"), NVRTC)?;
        Ok(Self {
            python: venv.join("bin/python3"),
            nvidia: lib.path().join("site-packages/nvidia"),
        })
    }

    /// The images of every source, those of one after those of another.
    fn compile(&self, kernels: &Path, work: &Path) -> Result<Vec<Image>> {
        let jobs: Vec<_> = SOURCES
            .into_iter()
            .flat_map(|source| {
                let targets = FATBINS.iter().flat_map(|fatbin| fatbin.targets);
                targets.map(move |&target| (source, target))
            })
            .collect();
        let next = AtomicUsize::new(0);
        let worker = || {
            let mut done = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(&((folder, name), target)) = jobs.get(at) else {
                    return Ok(done);
                };
                // Threads hand errors over as text.
                let image = self.image(&kernels.join(folder), work, name, target);
                done.push((at, image.map_err(|error| error.to_string())?));
            }
        };
        let threads = std::thread::available_parallelism()?.get();
        let mut images = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
            let mut images = Vec::new();
            for worker in workers {
                let done: std::result::Result<Vec<(usize, Image)>, String> =
                    worker.join().map_err(|_| "a compiling thread panicked")?;
                images.extend(done?);
            }
            Ok::<_, Box<dyn Error>>(images)
        })?;
        images.sort_by_key(|(at, _)| *at);
        Ok(images.into_iter().map(|(_, image)| image).collect())
    }

    /// A source compiled for one target.
    fn image(
        &self,
        folder: &Path,
        work: &Path,
        name: &'static str,
        target: &'static str,
    ) -> Result<Image> {
        let file = work.join(format!("{name}.{target}"));
        let include = |package: &str| {
            let folder = self.nvidia.join(package).join("include");
            format!("-I{}", folder.display())
        };
        let libraries = self.nvidia.join("cuda_nvrtc/lib");
        let output = checked(
            Command::new(&self.python)
                .current_dir(folder)
                // The library looks for another one there.
                .env("LD_LIBRARY_PATH", &libraries)
                .arg(work.join("nvrtc.py"))
                .arg(libraries.join("libnvrtc.so.12"))
                .arg(format!("{name}.cu"))
                .arg(&file)
                .arg(format!("--gpu-architecture={target}"))
                .args(FLAGS)
                .args([
                    "-I.".to_owned(),
                    include("cuda_runtime"),
                    include("cuda_cccl"),
                ]),
        )?;
        let report = String::from_utf8_lossy(&output.stdout);
        if let Some(line) = serialized(&report) {
            return Err(format!("{name} for {target}: {line}").into());
        }
        let kernels = resources(&report, target);
        Ok(Image {
            name,
            target,
            file,
            kernels,
        })
    }

    /// A fatbin of a source's images.
    fn fatbin(&self, target: &Path, fatbin: &Fatbin, images: &[Image]) -> Result<Vec<u8>> {
        let image = |image: &Image| {
            let (kind, version) = match image.target.split_once('_') {
                Some(("compute", version)) => ("ptx", version),
                Some((_, version)) => ("elf", version),
                None => ("elf", image.target),
            };
            let file = image.file.display();
            format!("--image3=kind={kind},sm={version},file={file}")
        };
        let images = images.iter().filter(|i| fatbin.targets.contains(&i.target));
        checked(
            Command::new(self.nvidia.join("cu13/bin/fatbinary"))
                .args(FATBIN_FLAGS)
                .arg(fatbin.compression)
                .arg(format!("--create={}", target.display()))
                .args(images.map(image)),
        )?;
        Ok(fs::read(target)?)
    }
}

/// ptxas's line that products of warpgroups wait for each other: several times as slow, with the same results.
fn serialized(report: &str) -> Option<&str> {
    let mut lines = report.lines();
    lines.find(|line| line.contains("wgmma.mma_async instructions are serialized"))
}

/// A line for each kernel out of ptxas's report on one target.
fn resources(report: &str, target: &str) -> Vec<String> {
    let (mut lines, mut kernel, mut spills) = (Vec::new(), "", String::new());
    for line in report.lines() {
        if let Some((_, name)) = line.split_once("Function properties for ") {
            kernel = name;
        } else if line.contains("bytes spill stores") {
            let words: Vec<&str> = line.split_whitespace().collect();
            let at = words.iter().position(|&word| word == "spill");
            let bytes = at.and_then(|at| words.get(at.checked_sub(2)?));
            spills = format!("{} spilled", bytes.unwrap_or(&"?"));
        } else if let Some((_, used)) = line.split_once("Used ") {
            let registers = used.split_whitespace().next().unwrap_or("?");
            lines.push(format!(
                "{kernel} {target}: {registers} registers, {spills}\n"
            ));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_that_wait_for_each_other_are_found() {
        let line = "ptxas info    : (C7514) Potential Performance Loss: wgmma.mma_async instructions are serialized due to";
        let report = format!("ptxas info    : Used 7 registers\n{line} reasons");
        assert!(serialized(&report).is_some_and(|found| found.starts_with(line)));
        assert_eq!(serialized("ptxas info    : Used 7 registers"), None);
    }

    #[test]
    fn a_report_becomes_a_line_for_each_kernel() {
        let report = "ptxas info    : Compiling entry function 'b' for 'sm_90a'\n\
            ptxas info    : Function properties for b\n\
            ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
            ptxas info    : Used 30 registers, used 0 barriers\n\
            ptxas info    : Compiling entry function 'a' for 'sm_90a'\n\
            ptxas info    : Function properties for a\n\
            ptxas         .     8 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads\n\
            ptxas info    : Used 7 registers\n";
        let lines = [
            "b sm_90a: 30 registers, 0 spilled\n",
            "a sm_90a: 7 registers, 12 spilled\n",
        ];
        assert_eq!(resources(report, "sm_90a"), lines);
    }
}
