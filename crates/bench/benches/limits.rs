//! Activations, alone and with quantization, beside what the memory allows, on each instruction set
//! of this machine: each round times the limits and all cases in turn, and medians are compared.
//!
//! `cargo bench -p swiglu-bench --bench limits [-- WORDS] [--csv]`: cases whose name has all the
//! words; `all` for every activation of the family.
#![allow(clippy::unwrap_used, reason = "a benchmark ends at the first error")]

use std::time::Duration;

use swiglu_bench::{Options, Passes, Report, figure, in_turn};
use swiglu_conformance::Case;
use swiglu_core::{
    ActAndMul, Backend, Element, Float, GatedActivation, HostBuffer, QuantOptions, Quantization,
    Quantize, QuantizedMut, RowLayout, ScaleFormat, ScaleLayout, ScaleOrder, Tensor, TensorMut,
    bf16, f16,
};
use swiglu_cpu::limits::{Pattern, Traffic};
use swiglu_cpu::{CpuBackend, InstructionSet};

/// T × d: beyond caches, within the last-level cache, a batch of tokens, a few of them, one.
const SHAPES: [[usize; 2]; 5] = [[4096, 3072], [512, 3072], [64, 3072], [16, 3072], [1, 2048]];

/// The first two are what cases are compared with.
const LIMITS: [Pattern; 3] = [
    Pattern::TwoReadsOneStream,
    Pattern::TwoReadsOneWrite,
    Pattern::Read,
];

/// How long each case and each limit runs in all.
const EACH: Duration = Duration::from_millis(400);

/// Something to time, which moves so many bytes.
struct Measured<'a> {
    section: &'static str,
    name: String,
    bytes: usize,
    passes: Passes<'a>,
}

/// Gates and ups of which a tenth is clamped.
fn input<T: Element>(count: usize) -> HostBuffer {
    let mut random = fastrand::Rng::with_seed(1);
    let values: Vec<T> = (0..count)
        .map(|_| T::from_f32((random.f32() - 0.5) * 22.0))
        .collect();
    HostBuffer::from_slice(&values).unwrap()
}

fn activation<'a>(
    set: InstructionSet,
    op: &'a GatedActivation,
    x: &'a HostBuffer,
    float: Float,
    [rows, d]: [usize; 2],
) -> Measured<'a> {
    let backend = CpuBackend::with_instruction_set(set).unwrap();
    let mut y = backend.alloc(rows * d * float.size()).unwrap();
    Measured {
        section: op.name(),
        name: set.to_string(),
        bytes: Case::activation(*op, float, rows, d).bytes().iter().sum(),
        passes: Box::new(move |n| {
            for _ in 0..n {
                let input = Tensor::contiguous(CpuBackend::view(x), float, rows, 2 * d);
                let output = CpuBackend::view_mut(&mut y);
                let output = TensorMut::contiguous(output, float, rows, d);
                backend.act_and_mul(op, input.into(), output).unwrap();
            }
        }),
    }
}

fn quantized<'a>(
    set: InstructionSet,
    op: &'a GatedActivation,
    quant: Quantization,
    x: &'a HostBuffer,
    float: Float,
    [rows, d]: [usize; 2],
) -> Measured<'a> {
    let backend = CpuBackend::with_instruction_set(set).unwrap();
    let groups = quant.groups(d);
    let layout = ScaleLayout::contiguous(quant.format(), ScaleOrder::RowMajor, rows, groups);
    let mut codes = backend.alloc(rows * d).unwrap();
    let mut scales = backend.alloc(layout.bytes().unwrap()).unwrap();
    let case = Case::activation_quant(*op, quant, float, rows, d);
    Measured {
        section: op.name(),
        name: format!("{set} {quant}"),
        bytes: case.bytes().iter().sum(),
        passes: Box::new(move |n| {
            for _ in 0..n {
                let output = QuantizedMut {
                    codes: CpuBackend::view_mut(&mut codes),
                    layout: RowLayout::contiguous(rows, d),
                    scales: CpuBackend::view_mut(&mut scales),
                    scale_layout: layout,
                };
                let input = Tensor::contiguous(CpuBackend::view(x), float, rows, 2 * d);
                let options = QuantOptions::default();
                backend
                    .act_and_mul_quant(op, &quant, input.into(), output, options)
                    .unwrap();
            }
        }),
    }
}

fn limit<'a>(pattern: Pattern, bytes: usize) -> Measured<'a> {
    let mut traffic = Traffic::new(pattern, bytes);
    Measured {
        section: "limits",
        name: format!("{pattern:?}"),
        bytes: traffic.run(),
        passes: Box::new(move |n| {
            for _ in 0..n {
                traffic.run();
            }
        }),
    }
}

fn main() {
    let options = Options::from_env();
    let mut report = Report::new(&options);
    let (all, words): (Vec<_>, Vec<_>) = options.words.into_iter().partition(|w| w == "all");
    let ops = if all.is_empty() {
        vec![GatedActivation::deepseek_v4()]
    } else {
        GatedActivation::ALL.to_vec()
    };
    let x = [
        (Float::BF16, input::<bf16>(4096 * 2 * 3072)),
        (Float::F16, input::<f16>(4096 * 2 * 3072)),
        (Float::F32, input::<f32>(4096 * 2 * 3072)),
    ];
    let quants = [
        Quantization::deepseek_v4(),
        Quantization::deepseek_v4_1(),
        Quantization::new(128, ScaleFormat::F32).unwrap(),
    ];
    for (float, x) in &x {
        for shape in SHAPES {
            let title = format!("{float} {}x{}", shape[0], shape[1]);
            let mut cases = Vec::new();
            for op in &ops {
                for set in InstructionSet::ALL.into_iter().filter(|s| s.available()) {
                    cases.push(activation(set, op, x, *float, shape));
                    let of = |quant| quantized(set, op, quant, x, *float, shape);
                    cases.extend(quants.map(of));
                }
            }
            cases.retain(|case| {
                let name = format!("{title} {} {}", case.section, case.name);
                words.iter().all(|w| name.contains(w.as_str()))
            });
            if !cases.is_empty() {
                let bytes = 3 * shape[0] * shape[1] * float.size();
                cases.splice(0..0, LIMITS.map(|pattern| limit(pattern, bytes)));
                measure(&title, cases, &mut report);
            }
        }
    }
}

/// Times `cases`, of which the first are the limits.
fn measure(title: &str, cases: Vec<Measured<'_>>, report: &mut Report) {
    let (about, mut passes): (Vec<_>, Vec<_>) = cases
        .into_iter()
        .map(|case| ((case.section, case.name, case.bytes), case.passes))
        .unzip();
    let seconds = in_turn(EACH, &mut passes);
    let rate = |i: usize| about[i].2 as f64 / seconds[i];
    for (i, (section, name, _)) in about.iter().enumerate() {
        let figures = [
            figure("time", "us", seconds[i] * 1e6),
            figure("rate", "GB/s", rate(i) / 1e9),
            figure("of the streaming limit", "ratio", rate(i) / rate(0)),
            figure("of the writing limit", "ratio", rate(i) / rate(1)),
        ];
        report.case(section, &format!("{title} {name}"), &figures);
    }
}
