//! The MLP of V4-Flash (H 4096, I 2048) with weights from memory, beside this machine's limits,
//! which are taken in turns with it: reads of four streams a thread, and independent fused
//! multiply-adds.
//!
//! `cargo bench -p swiglu-cpu --bench mlp [-- [avx2|avx512|…] [bf16|f8_e4m3|f16|f32] [T …]]`
#![allow(clippy::unwrap_used, reason = "a benchmark ends at the first error")]
#![allow(clippy::print_stdout, reason = "that is what it is for")]

use std::time::Instant;

use swiglu_core::{
    Backend, BlockScales, DType, E4M3, Element, GatedActivation, GatedMatmul, HostBuffer,
    HostWeight, Matmul, Tensor, TensorMut, bf16, f16,
};
use swiglu_cpu::limits::{Pattern, Traffic, multiply_add_rate};
use swiglu_cpu::{CpuBackend, InstructionSet, PackedWeight};

const H: usize = 4096;
const I: usize = 2048;
const TOKENS: [usize; 8] = [1, 2, 4, 8, 16, 32, 64, 256];
const DTYPES: [DType; 4] = [DType::BF16, DType::F8E4M3, DType::F16, DType::F32];
/// More than caches hold: of all copies of the weights, and what is read for the limit.
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
                    DType::F16 => data.extend(<f16 as Element>::from_f32(x / 32.0).to_le_bytes()),
                    DType::BF16 => data.extend(<bf16 as Element>::from_f32(x / 32.0).to_le_bytes()),
                    DType::F8E4M3 | DType::E8M0 => {
                        data.push(E4M3::from_f32_saturating(x * 200.0).0);
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

    fn load(&self, cpu: &CpuBackend) -> Weights {
        let [gate, up] = [0, 1].map(|i| self.weight(i, [I, H]));
        Weights {
            gate_up: cpu.load_gate_up(gate, up).unwrap(),
            down: cpu.load_weight(&[self.weight(2, [H, I])]).unwrap(),
        }
    }
}

struct Weights {
    gate_up: PackedWeight,
    down: PackedWeight,
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// Forward passes of one number of tokens, each with the next copy of the weights.
struct Passes<'a> {
    cpu: &'a CpuBackend,
    weights: &'a [Weights],
    tokens: usize,
    /// x, `gate_up`, act and y.
    buffers: [HostBuffer; 4],
    done: usize,
}

impl<'a> Passes<'a> {
    fn new(cpu: &'a CpuBackend, weights: &'a [Weights], tokens: usize) -> Self {
        let mut buffers = [H, 2 * I, I, H].map(|cols| cpu.alloc(tokens * cols * 2).unwrap());
        let mut random = fastrand::Rng::with_seed(2);
        for x in buffers[0].typed_mut::<bf16>() {
            *x = bf16::from_f32(random.f32() * 8.0 - 4.0);
        }
        Self {
            cpu,
            weights,
            tokens,
            buffers,
            done: 0,
        }
    }

    fn run(&mut self) {
        let op = GatedActivation::deepseek_v4();
        let weights = &self.weights[self.done % self.weights.len()];
        self.done += 1;
        let [x, gate_up, act, y] = &mut self.buffers;
        let (t, cpu) = (self.tokens, self.cpu);
        let from = Tensor::contiguous(x, DType::BF16, t, H);
        let between = TensorMut::contiguous(gate_up, DType::BF16, t, 2 * I);
        let stage = TensorMut::contiguous(act, DType::BF16, t, I);
        cpu.matmul_act_and_mul(&op, from, &weights.gate_up, between, stage)
            .unwrap();
        let stage = Tensor::contiguous(act, DType::BF16, t, I);
        let to = TensorMut::contiguous(y, DType::BF16, t, H);
        cpu.matmul(stage, &weights.down, to).unwrap();
    }

    fn flops(&self) -> f64 {
        (self.tokens * 6 * H * I) as f64
    }

    /// Seconds of a pass: the median over a tenth of a second or so.
    fn time(&mut self) -> f64 {
        let count = (0.1 * 200e9 / self.flops()).clamp(2.0, 30.0) as usize;
        median((0..count).map(|_| timed(|| self.run())).collect())
    }
}

/// Operations a second of all threads.
fn fma_limit(set: InstructionSet) -> f64 {
    median(
        (0..5)
            .map(|_| multiply_add_rate(set, 400_000_000).unwrap())
            .collect(),
    )
}

/// What the command line asks for; all of what it does not mention.
struct Asked(Vec<String>);

impl Asked {
    fn any_of<T: Copy>(&self, all: &[T], name: impl Fn(T) -> &'static str) -> Vec<T> {
        let named = |&&x: &&T| self.0.iter().any(|a| a == name(x));
        let some: Vec<T> = all.iter().filter(named).copied().collect();
        if some.is_empty() { all.to_vec() } else { some }
    }

    fn tokens(&self) -> Vec<usize> {
        let some: Vec<usize> = self.0.iter().filter_map(|a| a.parse().ok()).collect();
        if some.is_empty() {
            TOKENS.to_vec()
        } else {
            some
        }
    }
}

fn main() {
    let asked = Asked(std::env::args().skip(1).collect());
    let mut reads = Traffic::new(Pattern::Read, COLD);
    println!("| weights | set | T | ms | of reads | of multiply-adds |\n|---|---|---|---|---|---|");
    for dtype in asked.any_of(&DTYPES, DType::name) {
        let stored = Stored::new(dtype);
        let bytes = (3 * H * I * dtype.size()) as f64;
        for set in asked.any_of(&InstructionSet::ALL[1..], InstructionSet::name) {
            let Ok(cpu) = CpuBackend::with_instruction_set(set) else {
                continue;
            };
            let (mut weights, mut loading) = (Vec::new(), Vec::new());
            while weights.len() as f64 * bytes < COLD as f64 {
                loading.push(timed(|| weights.push(stored.load(&cpu))));
            }
            for tokens in asked.tokens() {
                let mut passes = Passes::new(&cpu, &weights, tokens);
                passes.run();
                // A time, and what it is of either limit as it was just before.
                let rounds = [(); 7].map(|()| {
                    let (reads, fma) = (reads.rate(5), fma_limit(set));
                    let time = passes.time();
                    [time, bytes / time / reads, passes.flops() / time / fma]
                });
                let [time, reads, fma] = [0, 1, 2].map(|i| median(rounds.map(|r| r[i]).to_vec()));
                let ms = time * 1e3;
                println!("| {dtype} | {set} | {tokens} | {ms:.3} | {reads:.2} | {fma:.2} |");
            }
            let rate = bytes / median(loading) / 1e9;
            println!("{dtype}: packed at {rate:.1} GB/s");
        }
    }
}
