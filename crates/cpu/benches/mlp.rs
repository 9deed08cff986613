//! The MLP of V4-Flash (H 4096, I 2048) beside this machine's limits, taken in the same run: reads
//! from memory, four streams a thread, and independent fused multiply-adds.
//!
//! `cargo bench -p swiglu-cpu --bench mlp [-- [avx2|avx512] [bf16|f8_e4m3|…] [T …]]`
#![allow(clippy::unwrap_used, reason = "a benchmark ends at the first error")]
#![allow(clippy::print_stdout, reason = "that is what it is for")]

use std::hint::black_box;
use std::time::Instant;

use swiglu_core::{
    Backend, BlockScales, DType, GatedActivation, GatedMatmul, HostBuffer, HostWeight, Matmul,
    Tensor, TensorMut,
};
use swiglu_cpu::{CpuBackend, InstructionSet, PackedWeight};

const H: usize = 4096;
const I: usize = 2048;
const TOKENS: [usize; 9] = [1, 2, 4, 8, 16, 32, 64, 256, 512];
/// More than caches hold, of all copies of the weights.
const COLD: usize = 160 << 20;

/// The weights of an MLP, as a checkpoint has them.
struct Stored {
    dtype: DType,
    data: [Vec<u8>; 3],
    scales: Vec<u8>,
}

impl Stored {
    fn new(dtype: DType) -> Self {
        let mut random = fastrand::Rng::with_seed(1);
        let mut matrix = || {
            let mut data = Vec::with_capacity(H * I * dtype.size());
            for _ in 0..H * I {
                // About normal, as weights are.
                let x: f32 = (0..4).map(|_| random.f32() - 0.5).sum();
                match dtype {
                    DType::F32 => data.extend((x / 32.0).to_le_bytes()),
                    DType::F16 => data.extend(swiglu_core::f16::from_f32(x / 32.0).to_le_bytes()),
                    DType::BF16 => data.extend(swiglu_core::bf16::from_f32(x / 32.0).to_le_bytes()),
                    DType::F8E4M3 | DType::E8M0 => {
                        data.push(swiglu_core::E4M3::from_f32_saturating(x * 200.0).0);
                    }
                }
            }
            data
        };
        Self {
            dtype,
            data: [matrix(), matrix(), matrix()],
            scales: vec![127 - 13; H * I / 128 / 128],
        }
    }

    fn weight(&self, which: usize, [rows, cols]: [usize; 2]) -> HostWeight<'_> {
        let scales = (self.dtype == DType::F8E4M3).then_some(BlockScales {
            data: &self.scales,
            dtype: DType::E8M0,
            block: [128, 128],
        });
        HostWeight::new(rows, cols, self.dtype, &self.data[which], scales).unwrap()
    }
}

/// `gate_up` and `down`.
type Weights = (PackedWeight, PackedWeight);

fn load(cpu: &CpuBackend, stored: &Stored) -> Weights {
    let [gate, up] = [0, 1].map(|i| stored.weight(i, [I, H]));
    let gate_up = cpu.load_gate_up(gate, up).unwrap();
    let down = cpu.load_weight(&[stored.weight(2, [H, I])]).unwrap();
    (gate_up, down)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Seconds of a forward pass, weights cold.
fn forward(cpu: &CpuBackend, weights: &[Weights], tokens: usize) -> f64 {
    let bf16 = |cols| cpu.alloc(tokens * cols * 2).unwrap();
    let (mut x, mut gate_up, mut act, mut y) = (bf16(H), bf16(2 * I), bf16(I), bf16(H));
    let mut random = fastrand::Rng::with_seed(2);
    for x in x.typed_mut::<swiglu_core::bf16>() {
        *x = swiglu_core::bf16::from_f32(random.f32() * 8.0 - 4.0);
    }
    let op = GatedActivation::deepseek_v4();
    let count = (0.6 * 200e9 / (tokens * 6 * H * I) as f64).clamp(7.0, 100.0) as usize;
    let mut pass = |(gate_up_weight, down): &Weights| {
        fn read(buffer: &HostBuffer, rows: usize, cols: usize) -> Tensor<'_, HostBuffer> {
            Tensor::contiguous(buffer, DType::BF16, rows, cols)
        }
        fn write(buffer: &mut HostBuffer, rows: usize, cols: usize) -> TensorMut<'_, HostBuffer> {
            TensorMut::contiguous(buffer, DType::BF16, rows, cols)
        }
        let x = read(&x, tokens, H);
        let (between, stage) = (
            write(&mut gate_up, tokens, 2 * I),
            write(&mut act, tokens, I),
        );
        cpu.matmul_act_and_mul(&op, x, gate_up_weight, between, stage)
            .unwrap();
        cpu.matmul(read(&act, tokens, I), down, write(&mut y, tokens, H))
            .unwrap();
    };
    let time = |i: usize| {
        let start = Instant::now();
        pass(&weights[i % weights.len()]);
        start.elapsed().as_secs_f64()
    };
    let times: Vec<f64> = (0..count + 2).map(time).skip(2).collect();
    if std::env::var_os("FASTEST").is_some() {
        return times.into_iter().fold(f64::MAX, f64::min);
    }
    median(times)
}

/// Runs `work` on every thread at once; seconds.
fn on_all(work: impl Fn(usize) + Sync) -> f64 {
    let start = Instant::now();
    rayon::broadcast(|context| work(context.index()));
    start.elapsed().as_secs_f64()
}

/// Bytes a second that all threads read from memory.
fn read_limit() -> f64 {
    let threads = rayon::current_num_threads();
    let data: Vec<u64> = (0..COLD as u64 / 8).collect();
    let parts: Vec<_> = data.chunks(data.len() / threads / 4).collect();
    let time = |_| {
        on_all(|t| {
            let [a, b, c, d] = [0, 1, 2, 3].map(|s| parts[4 * t + s].as_chunks::<32>().0);
            let mut sums = [0_u64; 32];
            for (((a, b), c), d) in a.iter().zip(b).zip(c).zip(d) {
                for (i, s) in sums.iter_mut().enumerate() {
                    *s ^= a[i] ^ b[i] ^ c[i] ^ d[i];
                }
            }
            black_box(sums);
        })
    };
    COLD as f64 / (0..9).map(time).fold(f64::MAX, f64::min)
}

/// Fused multiply-adds, twice, a second of all threads.
fn fma_limit(set: InstructionSet) -> f64 {
    const ROUNDS: usize = 2_000_000;
    let (time, lanes) = match set {
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2 => (fma_times(|| unsafe { x86::fma_avx2(ROUNDS) }), 8),
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512 => (fma_times(|| unsafe { x86::fma_avx512(ROUNDS) }), 16),
        _ => return f64::NAN,
    };
    (rayon::current_num_threads() * ROUNDS * 12 * lanes * 2) as f64 / time
}

fn fma_times(work: impl Fn() + Sync) -> f64 {
    (0..9).map(|_| on_all(|_| work())).fold(f64::MAX, f64::min)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn fma_avx2(rounds: usize) {
        let mut a = [_mm256_set1_ps(1.0); 12];
        let x = _mm256_set1_ps(std::hint::black_box(0.5));
        for _ in 0..rounds {
            for v in &mut a {
                *v = _mm256_fmadd_ps(x, *v, x);
            }
        }
        std::hint::black_box(a);
    }
    #[target_feature(enable = "avx512f")]
    pub unsafe fn fma_avx512(rounds: usize) {
        let mut a = [_mm512_set1_ps(1.0); 12];
        let x = _mm512_set1_ps(std::hint::black_box(0.5));
        for _ in 0..rounds {
            for v in &mut a {
                *v = _mm512_fmadd_ps(x, *v, x);
            }
        }
        std::hint::black_box(a);
    }
}

fn main() {
    let asked: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let wants = |name: &str, among: &[&str]| {
        let chosen: Vec<_> = asked
            .iter()
            .filter(|a| among.contains(&a.as_str()))
            .collect();
        chosen.is_empty() || chosen.iter().any(|a| *a == name)
    };
    let sets = [InstructionSet::Avx2, InstructionSet::Avx512];
    let set_names = sets.map(InstructionSet::name);
    let dtypes = [DType::BF16, DType::F8E4M3, DType::F16, DType::F32];
    let dtype_names = dtypes.map(DType::name);
    let mut tokens: Vec<usize> = asked.iter().filter_map(|a| a.parse().ok()).collect();
    if tokens.is_empty() {
        tokens = TOKENS.to_vec();
    }
    println!(
        "| weights | set | T | ms | GB/s | of reads | GFLOP/s | of FMA |\n|---|---|---|---|---|---|---|---|"
    );
    for dtype in dtypes.into_iter().filter(|d| wants(d.name(), &dtype_names)) {
        let stored = Stored::new(dtype);
        let bytes = 3 * H * I * dtype.size();
        for set in sets
            .into_iter()
            .filter(|s| s.available() && wants(s.name(), &set_names))
        {
            let cpu = CpuBackend::with_instruction_set(set).unwrap();
            let start = Instant::now();
            let mut weights = vec![load(&cpu, &stored)];
            let loading = start.elapsed().as_secs_f64();
            while weights.len() * bytes < COLD {
                weights.push(load(&cpu, &stored));
            }
            for &t in &tokens {
                let limits = (read_limit(), fma_limit(set));
                let time = forward(&cpu, &weights, t);
                let flops = (t * 6 * H * I) as f64;
                println!(
                    "| {dtype} | {set} | {t} | {:.3} | {:.1} | {:.3} | {:.1} | {:.3} |",
                    time * 1e3,
                    bytes as f64 / time / 1e9,
                    bytes as f64 / time / limits.0,
                    flops / time / 1e9,
                    flops / time / limits.1,
                );
            }
            println!(
                "loaded and packed at {:.2} GB/s",
                bytes as f64 / loading / 1e9
            );
        }
    }
}
