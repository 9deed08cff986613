//! Routed experts of V4-Flash (H 4096, I 2048, 6 a token) with weights from memory, beside this
//! machine's limits, which are taken in turns with them as in the bench `mlp`. As many experts are
//! loaded as are asked for; each pass routes anew, and only those that are touched count.
//!
//! `cargo bench -p swiglu-bench --bench moe [-- [avx2|avx512|…] [fp4|fp8|bf16] [T …]] [--csv]`
//! with the number of experts in `EXPERTS` (32).
#![allow(clippy::unwrap_used, reason = "a benchmark ends at the first error")]

use std::convert::Infallible;
use std::time::Duration;

use swiglu_bench::{
    Options, ROUTINGS, Report, figure, fma_limit, median, requests, routings, unit_limit,
};
use swiglu_conformance::{MlpShape, timing};
use swiglu_core::{
    Backend, Experts, ExpertsShape, Float, GatedActivation, GroupedMatmul, HostBuffer, HostWeight,
    Routes, Routing, Selection, Tensor, TensorMut, WeightFormat, bf16,
};
use swiglu_cpu::limits::{Pattern, Traffic};
use swiglu_cpu::{CpuBackend, InstructionSet, PackedWeight};

const H: usize = MlpShape::FLASH.hidden;
const I: usize = MlpShape::FLASH.intermediate;
/// Experts of a token.
const TOP_K: usize = 6;
const TOKENS: [usize; 6] = [1, 2, 4, 16, 64, 256];
const FORMATS: [WeightFormat; 3] = [
    WeightFormat::Fp4,
    WeightFormat::DEEPSEEK_V4,
    WeightFormat::Float(Float::BF16),
];
/// More than caches hold: what is read for the limit.
const COLD: usize = 160 << 20;
/// A time, and what it is of either limit as it was just before.
const ROUNDS: usize = 7;

fn weight(
    random: &mut fastrand::Rng,
    format: WeightFormat,
    shape: [usize; 2],
) -> HostWeight<'static> {
    let [n, k] = shape;
    let mut data = vec![0_u8; n * format.row_bytes(k)];
    random.fill(&mut data);
    if format != WeightFormat::Fp4 {
        // Neither NaN nor infinity: the exponent's highest bit is in an element's last byte.
        let size = format.bits() / 8;
        data.iter_mut()
            .skip(size - 1)
            .step_by(size)
            .for_each(|byte| *byte &= 0xbf);
    }
    let [rows, cols] = format.scale_grid(shape).unwrap();
    let scale = if format == WeightFormat::Fp4 {
        121
    } else {
        114
    };
    HostWeight::owned(shape, format, data, vec![scale; rows * cols]).unwrap()
}

struct Layer {
    experts: Experts<PackedWeight>,
    routing: Routing,
}

impl Layer {
    fn new(cpu: &CpuBackend, format: WeightFormat, count: usize) -> Self {
        let shape = ExpertsShape {
            range: 0..count,
            hidden: H,
            intermediate: I,
            gate_up: format,
            down: format,
        };
        let mut random = fastrand::Rng::with_seed(1);
        let mut experts = cpu.alloc_experts(shape).unwrap();
        let [gate, up] = [0, 1].map(|_| weight(&mut random, format, [I, H]));
        let down = weight(&mut random, format, [H, I]);
        for _ in 0..count {
            let [gate, up, down] = [&gate, &up, &down].map(HostWeight::clone);
            cpu.load_expert(&mut experts, gate, up, down).unwrap();
        }
        let routing = Routing::new(count, TOP_K, 1.5, true, Selection::Score).unwrap();
        Self { experts, routing }
    }
}

/// Passes of one number of tokens, each routed in another way.
struct Forward<'a> {
    cpu: &'a CpuBackend,
    layer: &'a Layer,
    tokens: usize,
    routes: Vec<Routes<HostBuffer>>,
    /// x, act, y and scratch.
    buffers: [HostBuffer; 4],
    done: usize,
    /// Experts that a pass touches, on average.
    touched: f64,
}

impl<'a> Forward<'a> {
    fn new(cpu: &'a CpuBackend, layer: &'a Layer, tokens: usize) -> Self {
        let routing = &layer.routing;
        let (routes, touched) = routings(cpu, routing, tokens).unwrap();
        let [_, halves @ ..] = requests(*routing, layer.experts.shape().gate_up, [H, I], tokens);
        let scratch = halves.map(|(request, shape)| cpu.scratch(&request, &shape));
        let scratch = scratch.into_iter().max().unwrap();
        let mut random = fastrand::Rng::with_seed(3);
        let sizes = [
            tokens * H * 2,
            tokens * TOP_K * I * 2,
            tokens * H * 2,
            scratch,
        ];
        let mut buffers = sizes.map(|bytes| cpu.alloc(bytes).unwrap());
        for x in buffers[0].typed_mut::<bf16>() {
            *x = bf16::from_f32(random.f32() * 8.0 - 4.0);
        }
        Self {
            cpu,
            layer,
            tokens,
            routes,
            buffers,
            done: 0,
            touched,
        }
    }

    fn run(&mut self) {
        let op = GatedActivation::deepseek_v4();
        let routes = &self.routes[self.done % ROUTINGS];
        self.done += 1;
        let [x, act, y, scratch] = &mut self.buffers;
        let (t, cpu, experts) = (self.tokens, self.cpu, &self.layer.experts);
        let from = Tensor::contiguous(CpuBackend::view(x), Float::BF16, t, H);
        let between = CpuBackend::view_mut(act);
        let mut between = TensorMut::contiguous(between, Float::BF16, t * TOP_K, I);
        let room = scratch.bytes_mut();
        cpu.grouped_matmul_act_and_mul(&op, None, from, experts, routes, room, between.reborrow())
            .unwrap();
        let to = TensorMut::contiguous(CpuBackend::view_mut(y), Float::BF16, t, H);
        let room = scratch.bytes_mut();
        cpu.grouped_matmul_sum(None, between.as_tensor(), experts, routes, None, room, to)
            .unwrap();
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
    let count = std::env::var("EXPERTS").map_or(32, |text| text.parse().unwrap());
    let name = |format: WeightFormat| format.name().to_owned();
    for format in options.named(&FORMATS, name) {
        let vectors = &InstructionSet::ALL[1..];
        for set in options.named(vectors, |set| set.name().to_owned()) {
            let Ok(cpu) = CpuBackend::with_instruction_set(set) else {
                continue;
            };
            let layer = Layer::new(&cpu, format, count);
            let expert = cpu.expert_bytes(&layer.experts) as f64;
            for tokens in options.numbers(&TOKENS) {
                let mut forward = Forward::new(&cpu, &layer, tokens);
                let bytes = forward.touched * expert;
                let operations = (tokens * TOP_K * 3 * H * I * 2) as f64;
                let rounds = [(); ROUNDS].map(|()| {
                    let (reads, fma) = (reads.rate(5), fma_limit(set).unwrap());
                    let unit = unit_limit(set).unwrap().unwrap_or(f64::INFINITY);
                    let time = forward.time();
                    let floors = [bytes / reads, operations / fma, operations / unit];
                    let [read, compute, unit] = floors.map(|floor| floor / time);
                    [time, read, compute, read.max(compute), unit, reads]
                });
                let column = |i: usize| median(rounds.map(|r| r[i]).to_vec());
                let mut figures = vec![
                    figure("time", "ms", column(0) * 1e3),
                    figure("experts", "count", forward.touched),
                    figure("of reads", "ratio", column(1)),
                    figure("of multiply-adds", "ratio", column(2)),
                    figure("of the floor", "ratio", column(3)),
                ];
                if column(4) > 0.0 {
                    figures.push(figure("of the unit", "ratio", column(4)));
                }
                figures.push(figure("reads", "GB/s", column(5) / 1e9));
                let case = format!("{} {set} T={tokens}", format.name());
                report.case("moe", &case, &figures);
            }
        }
    }
}
