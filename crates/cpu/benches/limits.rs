//! Activations, alone and with quantization, beside what the memory allows, on each instruction set
//! of this machine: each round runs the limits and all cases in turn, and medians are compared.
//!
//! `cargo bench -p swiglu-cpu --bench limits [-- words that a case's name must contain]`
#![allow(clippy::unwrap_used, reason = "a benchmark ends at the first error")]
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::time::{Duration, Instant};

use swiglu_core::{
    ActAndMul, ActAndMulQuant, Backend, DType, Element, GatedActivation, HostBuffer, QuantOptions,
    Quantization, QuantizedMut, ScaleFormat, ScaleLayout, ScaleOrder, ScalesMut, Tensor, TensorMut,
    bf16, f16,
};
use swiglu_cpu::limits::{Pattern, Traffic};
use swiglu_cpu::{CpuBackend, InstructionSet};

/// T × d: beyond caches, within the last-level cache, one token.
const SHAPES: [[usize; 2]; 3] = [[4096, 3072], [512, 3072], [1, 2048]];

/// How long each case and each limit runs in all.
const EACH: Duration = Duration::from_millis(400);

/// Something to time, which moves so many bytes.
struct Case<'a> {
    name: String,
    bytes: usize,
    run: Box<dyn FnMut() + 'a>,
    seconds: Vec<f64>,
}

impl Case<'_> {
    fn time(&mut self, repeats: usize) {
        let start = Instant::now();
        for _ in 0..repeats {
            (self.run)();
        }
        self.seconds
            .push(start.elapsed().as_secs_f64() / repeats as f64);
    }

    fn median(&mut self) -> f64 {
        self.seconds.sort_by(f64::total_cmp);
        self.seconds[self.seconds.len() / 2]
    }
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
    dtype: DType,
    [rows, d]: [usize; 2],
) -> Case<'a> {
    let backend = CpuBackend::with_instruction_set(set).unwrap();
    let mut y = backend.alloc(rows * d * dtype.size()).unwrap();
    Case {
        name: format!("{} {dtype} {set}", op.name()),
        bytes: 3 * rows * d * dtype.size(),
        run: Box::new(move || {
            let input = Tensor::contiguous(x, dtype, rows, 2 * d);
            let output = TensorMut::contiguous(&mut y, dtype, rows, d);
            backend.act_and_mul(op, input, output).unwrap();
        }),
        seconds: Vec::new(),
    }
}

fn quantized<'a>(
    set: InstructionSet,
    op: &'a GatedActivation,
    quant: Quantization,
    x: &'a HostBuffer,
    dtype: DType,
    [rows, d]: [usize; 2],
) -> Case<'a> {
    let backend = CpuBackend::with_instruction_set(set).unwrap();
    let groups = quant.groups(d);
    let layout = ScaleLayout::contiguous(quant.format(), ScaleOrder::RowMajor, rows, groups);
    let mut codes = backend.alloc(rows * d).unwrap();
    let mut scales = backend.alloc(layout.bytes().unwrap()).unwrap();
    Case {
        name: format!("{} {dtype} {set} {quant}", op.name()),
        bytes: rows * d * (2 * dtype.size() + 1) + layout.bytes().unwrap(),
        run: Box::new(move || {
            let output = QuantizedMut {
                codes: TensorMut::contiguous(&mut codes, DType::F8E4M3, rows, d),
                scales: ScalesMut {
                    buffer: &mut scales,
                    layout,
                },
            };
            let input = Tensor::contiguous(x, dtype, rows, 2 * d);
            let options = QuantOptions::default();
            backend
                .act_and_mul_quant(op, &quant, input, output, options)
                .unwrap();
        }),
        seconds: Vec::new(),
    }
}

fn limit<'a>(pattern: Pattern, bytes: usize) -> Case<'a> {
    let mut traffic = Traffic::new(pattern, bytes);
    Case {
        name: format!("limit {pattern:?}"),
        bytes: traffic.run(),
        run: Box::new(move || {
            traffic.run();
        }),
        seconds: Vec::new(),
    }
}

fn main() {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    let mut ops = vec![GatedActivation::deepseek_v4()];
    if words.iter().any(|w| w == "all") {
        ops = GatedActivation::ALL.to_vec();
    }
    let x = [
        (DType::BF16, input::<bf16>(4096 * 2 * 3072)),
        (DType::F16, input::<f16>(4096 * 2 * 3072)),
        (DType::F32, input::<f32>(4096 * 2 * 3072)),
    ];
    let quants = [
        Quantization::deepseek_v4(),
        Quantization::deepseek_v4_1(),
        Quantization::new(128, ScaleFormat::F32).unwrap(),
    ];
    println!("us, GB/s, of the limit TwoReadsOneStream, of TwoReadsOneWrite of as many bytes");
    for (dtype, x) in &x {
        for shape in SHAPES {
            let bytes = 3 * shape[0] * shape[1] * dtype.size();
            let mut cases = vec![
                limit(Pattern::TwoReadsOneStream, bytes),
                limit(Pattern::TwoReadsOneWrite, bytes),
                limit(Pattern::Read, bytes),
            ];
            for op in &ops {
                for set in InstructionSet::ALL.into_iter().filter(|s| s.available()) {
                    cases.push(activation(set, op, x, *dtype, shape));
                    for quant in quants {
                        cases.push(quantized(set, op, quant, x, *dtype, shape));
                    }
                }
            }
            let title = format!("{}x{} {dtype}", shape[0], shape[1]);
            cases.retain(|case| {
                let name = format!("{title} {}", case.name);
                let all = words
                    .iter()
                    .all(|w| w == "all" || name.contains(w.as_str()));
                all || case.name.starts_with("limit")
            });
            if cases.len() == 3 {
                continue;
            }
            measure(&title, &mut cases);
        }
    }
}

fn measure(title: &str, cases: &mut [Case<'_>]) {
    println!("\n{title}");
    // Short cases are repeated to some tens of microseconds, far above the clock's step.
    let repeats: Vec<usize> = cases
        .iter_mut()
        .map(|case| {
            case.time(1);
            case.time(3);
            (3e-5 / case.seconds.pop().unwrap_or(1.0)).clamp(1.0, 1e3) as usize
        })
        .collect();
    cases.iter_mut().for_each(|case| case.seconds.clear());
    let start = Instant::now();
    let rounds = 5..2000;
    for round in 0..rounds.end {
        if round >= rounds.start && start.elapsed() > EACH * cases.len() as u32 {
            break;
        }
        for (case, &repeats) in cases.iter_mut().zip(&repeats) {
            case.time(repeats);
        }
    }
    let rates: Vec<f64> = cases
        .iter_mut()
        .map(|case| case.bytes as f64 / case.median())
        .collect();
    for (case, rate) in cases.iter().zip(&rates) {
        println!(
            "{:58} {:9.2} {:7.2} {:6.3} {:6.3}",
            case.name,
            case.bytes as f64 / rate * 1e6,
            rate / 1e9,
            rate / rates[0],
            rate / rates[1],
        );
    }
}
