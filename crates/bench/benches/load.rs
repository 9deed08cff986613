//! Loading the shared experts of a checkpoint of V4-Flash's shape (43 layers, FP8, a file a layer
//! and an index) onto the CPU: from files on the disk or in the page cache to packed weights, beside
//! what reading those files allows. Rounds take all of it in turn; medians are compared.
//!
//! `cargo bench -p swiglu-bench --bench load [-- LAYERS] [--csv]`
//!
//! The host of a virtual machine may take the memory that one round frees before the next has it:
//! `GLIBC_TUNABLES=glibc.malloc.mmap_threshold=1099511627776:glibc.malloc.trim_threshold=1099511627776`
//! keeps that of the weights in the process, which zeroes it itself then.
#![allow(clippy::unwrap_used, reason = "a benchmark ends at the first error")]

use std::fs::File;
use std::hint::black_box;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use swiglu_bench::{Options, Report, figure, median};
use swiglu_cpu::CpuBackend;
use swiglu_mlp::synthetic::{SyntheticConfig, write_checkpoint};
use swiglu_mlp::{Checkpoint, DeepseekV4Mlp, MlpConfig, ModelConfig, SharedExpert};

const LAYERS: usize = 43;
const ROUNDS: usize = 5;

/// A checkpoint in a folder of its own.
struct Files {
    folder: tempfile::TempDir,
    paths: Vec<PathBuf>,
    layers: Vec<MlpConfig>,
}

impl Files {
    fn new(layers: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (mut paths, mut configs, mut map) = (Vec::new(), Vec::new(), Vec::new());
        for layer in 0..layers {
            let form = SyntheticConfig {
                layer,
                ..SyntheticConfig::flash(layer as u64)
            };
            write_checkpoint(folder.path(), &form).unwrap();
            let name = format!("model-{layer:05}.safetensors");
            let path = folder.path().join(&name);
            std::fs::rename(folder.path().join("model.safetensors"), &path).unwrap();
            for tensor in Checkpoint::open(&path).unwrap().names() {
                map.push(format!("\"{tensor}\":\"{name}\""));
            }
            let model = ModelConfig::from_json(&form.config_json()).unwrap();
            configs.push(model.mlp_config(&form.prefix()).unwrap());
            paths.push(path);
        }
        let index = format!("{{\"weight_map\":{{{}}}}}", map.join(","));
        let path = folder.path().join("model.safetensors.index.json");
        std::fs::write(path, index).unwrap();
        Self {
            folder,
            paths,
            layers: configs,
        }
    }

    fn open(&self) -> Checkpoint {
        Checkpoint::open(self.folder.path()).unwrap()
    }

    fn load(
        &self,
        cpu: &Arc<CpuBackend>,
        checkpoint: &Checkpoint,
    ) -> Vec<DeepseekV4Mlp<CpuBackend>> {
        let load = |config: &MlpConfig| {
            let expert = SharedExpert::load(checkpoint, config).unwrap();
            DeepseekV4Mlp::load(Arc::clone(cpu), config, &expert).unwrap()
        };
        self.layers.iter().map(load).collect()
    }
}

/// Runs `work` on every item, the threads of the machine taking them in turn.
fn on_all_threads<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(item);
                }
            });
        }
    });
}

/// Turns a file's pages out of the page cache, where that can be asked for.
fn forget(path: &PathBuf) {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{Advice, fadvise, fdatasync};
        let file = File::open(path).unwrap();
        // Pages that wait to be written would stay.
        fdatasync(&file).unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    }
}

/// The page cache by copies into a buffer that stays in a cache.
fn read(path: &PathBuf) {
    let mut buffer = vec![0; 256 << 10];
    let mut file = File::open(path).unwrap();
    while file.read(&mut buffer).unwrap() > 0 {
        black_box(&buffer);
    }
}

/// The page cache through a mapping: every page is touched, and no more.
fn touch(checkpoint: &Checkpoint, config: &MlpConfig) {
    let expert = SharedExpert::load(checkpoint, config).unwrap();
    for weight in [expert.gate(), expert.up(), expert.down()] {
        let bytes = weight.data().iter().step_by(4096);
        black_box(bytes.fold(0_u8, |a, b| a ^ b));
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let value = work();
    (start.elapsed().as_secs_f64(), value)
}

fn main() {
    let options = Options::from_env();
    let mut report = Report::new(&options);
    let layers = options.numbers(&[LAYERS])[0];
    let files = Files::new(layers);
    let cpu = Arc::new(CpuBackend::new());
    let bytes: u64 = files
        .paths
        .iter()
        .map(|p| std::fs::metadata(p).unwrap().len())
        .sum();
    report.note(&format!("{layers} layers, {:.2} GB", bytes as f64 / 1e9));
    let load = || {
        let checkpoint = files.open();
        let loaded = files.load(&cpu, &checkpoint);
        (checkpoint, loaded)
    };
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        files.paths.iter().for_each(forget);
        let (disk, ()) = timed(|| on_all_threads(&files.paths, read));
        files.paths.iter().for_each(forget);
        let (from_disk, loaded) = timed(load);
        drop(loaded);
        let (reading, ()) = timed(|| on_all_threads(&files.paths, read));
        let (touching, ()) = timed(|| {
            let checkpoint = files.open();
            on_all_threads(&files.layers, |config| touch(&checkpoint, config));
        });
        let (loading, (checkpoint, loaded)) = timed(load);
        drop(loaded);
        // From pages that are mapped already.
        let (packing, loaded) = timed(|| files.load(&cpu, &checkpoint));
        drop(loaded);
        rounds.push([disk, from_disk, reading, touching, loading, packing]);
    }
    let names = [
        "the disk, by read() on all threads",
        "loading from the disk",
        "the page cache, by read()",
        "the page cache, a byte of every mapped page",
        "loading from the page cache",
        "packing alone, from pages that are mapped",
    ];
    for (i, name) in names.iter().enumerate() {
        let rates: Vec<f64> = rounds.iter().map(|r| bytes as f64 / r[i] / 1e9).collect();
        let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
        let most = rates.iter().copied().fold(0.0, f64::max);
        let figures = [
            figure("median", "GB/s", median(rates)),
            figure("least", "GB/s", least),
            figure("most", "GB/s", most),
        ];
        report.case("loading", name, &figures);
    }
}
