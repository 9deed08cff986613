//! The MLP of V4-Flash (H 4096, I 2048) with weights from memory, beside this machine's limits,
//! which are taken in turns with it: reads of four streams a thread, independent fused
//! multiply-adds, and what a matrix unit or dot products do in registers, where the set has any.
//!
//! `cargo bench -p swiglu-bench --bench mlp [-- [avx2|avx512|…] [bf16|fp8|fp4|f16|f32] [T …]] [--csv]`
#![allow(clippy::unwrap_used, reason = "a benchmark ends at the first error")]

use std::convert::Infallible;
use std::time::{Duration, Instant};

use swiglu_bench::{Options, Report, figure, fma_limit, median, unit_limit};
use swiglu_conformance::{Case, MlpShape, timing};
use swiglu_core::{
    Backend, E2M1, E4M3, Element, Float, GatedActivation, HostBuffer, HostWeight, Matmul, Tensor,
    TensorMut, WeightFormat, bf16, f16,
};
use swiglu_cpu::limits::{Pattern, Traffic};
use swiglu_cpu::{CpuBackend, InstructionSet, PackedWeight};

const H: usize = MlpShape::FLASH.hidden;
const I: usize = MlpShape::FLASH.intermediate;
const TOKENS: [usize; 8] = [1, 2, 4, 8, 16, 32, 64, 256];
const FORMATS: [WeightFormat; 5] = [
    WeightFormat::Float(Float::BF16),
    WeightFormat::DEEPSEEK_V4,
    WeightFormat::Fp4,
    WeightFormat::Float(Float::F16),
    WeightFormat::Float(Float::F32),
];
/// More than caches hold: of all copies of the weights, and what is read for the limit.
const COLD: usize = 160 << 20;
/// A time, and what it is of either limit as it was just before.
const ROUNDS: usize = 7;

/// The weights of an MLP, as a checkpoint has them.
struct Checkpoint {
    format: WeightFormat,
    data: [Vec<u8>; 3],
    scales: Vec<u8>,
}

impl Checkpoint {
    fn new(format: WeightFormat) -> Self {
        let mut random = fastrand::Rng::with_seed(1);
        let mut matrix = || {
            let mut data = Vec::with_capacity(H * format.row_bytes(I));
            let mut codes = Vec::new();
            for _ in 0..H * I {
                // About normal, as weights are.
                let x: f32 = (0..4).map(|_| random.f32() - 0.5).sum();
                if format == WeightFormat::Fp4 {
                    codes.push(E2M1::from_f32_saturating(x * 2.0));
                    if let [a, b] = codes[..] {
                        data.push(E2M1::pack([a, b]));
                        codes.clear();
                    }
                    continue;
                }
                match format {
                    WeightFormat::Float(Float::F32) => data.extend((x / 32.0).to_le_bytes()),
                    WeightFormat::Float(Float::F16) => {
                        data.extend(<f16 as Element>::from_f32(x / 32.0).to_le_bytes());
                    }
                    WeightFormat::Float(Float::BF16) => {
                        data.extend(<bf16 as Element>::from_f32(x / 32.0).to_le_bytes());
                    }
                    _ => data.push(E4M3::from_f32_saturating(x * 200.0).0),
                }
            }
            data
        };
        let [rows, cols] = format.scale_grid([H, I]).unwrap();
        let scale = if format == WeightFormat::Fp4 {
            127 - 6
        } else {
            127 - 13
        };
        Self {
            format,
            data: [matrix(), matrix(), matrix()],
            scales: vec![scale; rows * cols],
        }
    }

    fn weight(&self, which: usize, shape: [usize; 2]) -> HostWeight<'_> {
        let scales = match self.format {
            WeightFormat::Float(_) => &[],
            _ => self.scales.as_slice(),
        };
        HostWeight::new(shape, self.format, &self.data[which], scales).unwrap()
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

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// Forward passes of one number of tokens, each with the next copy of the weights.
struct Forward<'a> {
    cpu: &'a CpuBackend,
    weights: &'a [Weights],
    tokens: usize,
    /// x, `gate_up`, act and y.
    buffers: [HostBuffer; 4],
    done: usize,
}

impl<'a> Forward<'a> {
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
        let from = Tensor::contiguous(CpuBackend::view(x), Float::BF16, t, H);
        let between = TensorMut::contiguous(CpuBackend::view_mut(gate_up), Float::BF16, t, 2 * I);
        let mut stage = TensorMut::contiguous(CpuBackend::view_mut(act), Float::BF16, t, I);
        cpu.matmul_act_and_mul(&op, from, &weights.gate_up, between, stage.reborrow())
            .unwrap();
        let to = TensorMut::contiguous(CpuBackend::view_mut(y), Float::BF16, t, H);
        cpu.matmul(stage.as_tensor(), &weights.down, to).unwrap();
    }

    /// Multiplications and additions of a pass.
    fn operations(&self, format: WeightFormat) -> f64 {
        let op = GatedActivation::deepseek_v4();
        let first = Case::gated_matmul(op, format, Float::BF16, [self.tokens, 2 * I, H]);
        let second = Case::matmul(format, Float::BF16, [self.tokens, H, I]);
        (first.operations() + second.operations()) as f64
    }

    /// Seconds of a pass.
    fn time(&mut self) -> f64 {
        let passes = |n| {
            (0..n).for_each(|_| self.run());
            Ok::<_, Infallible>(())
        };
        let Ok(timing) = timing::time(Duration::from_millis(100), 1, passes);
        timing.median
    }
}

fn main() {
    let options = Options::from_env();
    let mut report = Report::new(&options);
    let mut reads = Traffic::new(Pattern::Read, COLD);
    let name = |format: WeightFormat| format.name().to_owned();
    for format in options.named(&FORMATS, name) {
        let checkpoint = Checkpoint::new(format);
        let scales = if format == WeightFormat::Fp4 {
            checkpoint.scales.len()
        } else {
            0
        };
        let bytes = (3 * (H * format.row_bytes(I) + scales)) as f64;
        let vectors = &InstructionSet::ALL[1..];
        for set in options.named(vectors, |set| set.name().to_owned()) {
            let Ok(cpu) = CpuBackend::with_instruction_set(set) else {
                continue;
            };
            let (mut weights, mut loading) = (Vec::new(), Vec::new());
            while weights.len() as f64 * bytes < COLD as f64 {
                loading.push(timed(|| weights.push(checkpoint.load(&cpu))));
            }
            for tokens in options.numbers(&TOKENS) {
                let mut forward = Forward::new(&cpu, &weights, tokens);
                let operations = forward.operations(format);
                let rounds = [(); ROUNDS].map(|()| {
                    let (reads, fma) = (reads.rate(5), fma_limit(set).unwrap());
                    let unit = unit_limit(set).unwrap().unwrap_or(f64::INFINITY);
                    let time = forward.time();
                    let rate = operations / time;
                    [time, bytes / time / reads, rate / fma, rate / unit, reads]
                });
                let column = |i: usize| median(rounds.map(|r| r[i]).to_vec());
                let mut figures = vec![
                    figure("time", "ms", column(0) * 1e3),
                    figure("of reads", "ratio", column(1)),
                    figure("of multiply-adds", "ratio", column(2)),
                ];
                if column(3) > 0.0 {
                    figures.push(figure("of the unit", "ratio", column(3)));
                }
                figures.push(figure("reads", "GB/s", column(4) / 1e9));
                report.case(
                    "mlp",
                    &format!("{} {set} T={tokens}", format.name()),
                    &figures,
                );
            }
            let rate = bytes / median(loading) / 1e9;
            let case = format!("{} {set}", format.name());
            report.case("packing", &case, &[figure("rate", "GB/s", rate)]);
        }
    }
}
