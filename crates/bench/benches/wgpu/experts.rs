//! Routed experts of V4-Flash in FP4, each pass routed in another way, and the layer around them.

use swiglu_bench::{Options, ROUTINGS, Report, figure, requests, routings};
use swiglu_conformance::MlpShape;
use swiglu_core::{
    Backend, Experts, ExpertsShape, Float, Gate, GatedActivation, GroupedMatmul, HostGate,
    HostWeight, Matmul, Router, Routes, Routing, Selection, Tokens, WeightFormat,
};
use swiglu_wgpu::{Buffer, Weight};

use crate::device::{Bench, Result, noise, read, write};

const BF16: Float = Float::BF16;
const FP4: WeightFormat = WeightFormat::Fp4;
const TOP_K: usize = 6;
const COPIED: usize = 1 << 30;

/// What there is of a layer: a model's, or what software can do.
struct Sizes {
    h: usize,
    i: usize,
    experts: usize,
    tokens: &'static [usize],
}

impl Sizes {
    fn of(bench: &Bench) -> Self {
        let asked = std::env::var("EXPERTS").ok();
        let asked = asked.and_then(|count| count.parse().ok());
        if bench.software() {
            return Self {
                h: 1024,
                i: 512,
                experts: asked.unwrap_or(16),
                tokens: &[1, 16],
            };
        }
        Self {
            h: MlpShape::FLASH.hidden,
            i: MlpShape::FLASH.intermediate,
            experts: asked.unwrap_or(256),
            tokens: &[1, 2, 4, 8, 16, 32, 64, 256, 1024, 4096],
        }
    }
}

/// Codes of any kind, and scales with which sums are of ordinary size.
fn weight(shape: [usize; 2]) -> Result<HostWeight<'static>> {
    let mut random = fastrand::Rng::with_seed(1);
    let mut data = vec![0; shape[0] * FP4.row_bytes(shape[1])];
    random.fill(&mut data);
    let [rows, cols] = FP4.scale_grid(shape)?;
    Ok(HostWeight::owned(shape, FP4, data, vec![121; rows * cols])?)
}

struct Layer {
    routing: Routing,
    gate: Gate<Weight, Buffer>,
    experts: Experts<Weight>,
    /// Of the shared expert: gate and up, and down.
    shared: [Weight; 2],
}

impl Layer {
    fn new(bench: &Bench, sizes: &Sizes) -> Result<Self> {
        let (b, &Sizes { h, i, experts, .. }) = (&bench.backend, sizes);
        let routing = Routing::new(experts, TOP_K, 1.5, true, Selection::Score)?;
        let rows = noise(experts * h * 2);
        let bf16s = WeightFormat::Float(BF16);
        let rows = HostWeight::new([experts, h], bf16s, &rows, &[])?;
        let gate = HostGate::new(routing, rows, Some(vec![0.0; experts]), None, None)?;
        let gate = b.load_gate(&gate)?;
        let mut on = b.alloc_experts(ExpertsShape {
            range: 0..experts,
            hidden: h,
            intermediate: i,
            gate_up: FP4,
            down: FP4,
        })?;
        let (of_gate, down) = (weight([i, h])?, weight([h, i])?);
        for _ in 0..experts {
            let (gate, up, down) = (of_gate.clone(), of_gate.clone(), down.clone());
            b.load_expert(&mut on, gate, up, down)?;
        }
        let fp8 = WeightFormat::DEEPSEEK_V4;
        Ok(Self {
            routing,
            gate,
            experts: on,
            shared: [bench.weight(fp8, 2 * i, h)?, bench.weight(fp8, h, i)?],
        })
    }
}

/// The router, both halves and the shared expert by themselves, and the whole layer, beside the rate of a large copy.
pub fn experts(bench: &Bench, options: &Options, report: &mut Report) -> Result<()> {
    let sizes = Sizes::of(bench);
    let (b, op) = (&bench.backend, GatedActivation::deepseek_v4());
    let layer = Layer::new(bench, &sizes)?;
    let Sizes { h, i, .. } = sizes;
    let copied = if bench.software() { 64 << 20 } else { COPIED };
    let rate = copied as f64 / bench.copy(copied)?;
    report.case(
        "limit",
        &format!("copy of {} MiB", copied >> 20),
        &[figure("rate", "GB/s", rate / 1e3)],
    );
    let of_expert = b.expert_bytes(&layer.experts) as f64;
    let of_shared: usize = layer.shared.iter().map(|w| b.weight_bytes(w)).sum();
    let fixed = (of_shared + b.weight_bytes(&layer.gate.weight)) as f64;
    for t in options.numbers(sizes.tokens) {
        let (routes, touched) = routings(b, &layer.routing, t)?;
        let mut chosen = Routes::new(b, &layer.routing, t)?;
        let x = bench.tokens(t * h)?;
        let (mut act, mut y) = (b.alloc(2 * t * TOP_K * i)?, b.alloc(2 * t * h)?);
        let (mut between, mut act_of_shared) = (b.alloc(4 * t * i)?, b.alloc(2 * t * i)?);
        let mut shared = b.alloc(2 * t * h)?;
        let requests = requests(layer.routing, FP4, [h, i], t);
        let scratch = requests.iter().map(|(r, shape)| b.scratch(r, shape));
        let mut scratch = b.alloc(scratch.max().unwrap_or_default())?;
        let plans = requests.iter().filter_map(|(r, shape)| b.plan(r, shape));
        report.note(&format!("T={t}: {}", plans.collect::<Vec<_>>().join(" | ")));
        let mut parts = |n: usize, [route, first, second, expert]: [bool; 4]| {
            let x = || read(&x, BF16, t, h);
            let routes = &routes[n % ROUTINGS];
            if route {
                let scratch = (&mut scratch).into();
                b.route(&layer.gate, x(), Tokens::default(), scratch, &mut chosen)?;
            }
            if expert {
                let [gate_up, down] = &layer.shared;
                let to = write(&mut between, BF16, t, 2 * i);
                let act = write(&mut act_of_shared, BF16, t, i);
                b.matmul_act_and_mul(&op, x(), gate_up, to, act)?;
                let act = read(&act_of_shared, BF16, t, i);
                b.matmul(act, down, write(&mut shared, BF16, t, h))?;
            }
            if first {
                let to = write(&mut act, BF16, t * TOP_K, i);
                let (e, scratch) = (&layer.experts, (&mut scratch).into());
                b.grouped_matmul_act_and_mul(&op, None, x(), e, routes, scratch, to)?;
            }
            if second {
                let from = read(&act, BF16, t * TOP_K, i);
                let shared = expert.then(|| read(&shared, BF16, t, h));
                let (e, scratch) = (&layer.experts, (&mut scratch).into());
                let to = write(&mut y, BF16, t, h);
                b.grouped_matmul_sum(None, from, e, routes, shared, scratch, to)?;
            }
            Ok(())
        };
        let all = [
            [true, false, false, false],
            [false, true, false, false],
            [false, false, true, false],
            [false, true, true, false],
            [true; 4],
        ];
        // Both halves before the second alone: it reads what the first makes.
        parts(0, [true; 4])?;
        let mut times = [0.0; 5];
        for (time, which) in times.iter_mut().zip(all) {
            let count = if t > 256 { 2 } else { ROUTINGS };
            *time = bench.time_calls(count, |n| parts(n, which))?;
        }
        let [route, first, second, halves, whole] = times;
        let bytes = touched * of_expert;
        let products = t * TOP_K * 3 * h * i;
        let figures = [
            figure("experts touched", "experts", touched),
            figure("router", "us", route),
            figure("gate_up and activation", "us", first),
            figure("down and sum", "us", second),
            figure("both halves", "us", halves),
            figure("of the copy's rate", "ratio", bytes / rate / halves),
            figure("rate", "TFLOP/s", 2.0 * products as f64 / halves / 1e6),
            figure("whole layer", "us", whole),
            figure(
                "layer, of the copy's rate",
                "ratio",
                (bytes + fixed) / rate / whole,
            ),
        ];
        let name = format!("T={t} {h}/{i} fp4, {} experts", sizes.experts);
        report.case("routed experts", &name, &figures);
    }
    Ok(())
}
