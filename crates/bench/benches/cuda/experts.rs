//! A layer of V4-Flash, its experts in FP4 and the shared one in FP8, weights cold: in a graph, each pass routed in
//! another way.

use swiglu_bench::{ROUTINGS, Report, figure, requests};
use swiglu_conformance::MlpShape;
use swiglu_core::{
    Backend, Experts, ExpertsShape, GatedActivation, GroupedMatmul, HostGate, HostWeight, Matmul,
    MoeCall, Router, Routes, Routing, Selection, SharedCall, Tokens, WeightFormat, bf16,
};
use swiglu_cuda::CudaWeight;

use crate::gpu::{Failure, Gpu};
use crate::matmuls::{BF16, In, Out, weights};
use crate::steps::gate_ups;

const H: usize = MlpShape::FLASH.hidden;
const I: usize = MlpShape::FLASH.intermediate;
const FP4: WeightFormat = WeightFormat::Fp4;
const EXPERTS: usize = 256;
const TOP_K: usize = 6;
const TOKENS: [usize; 14] = [
    1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192,
];
/// Bytes a microsecond that a kernel reads of an H200's memory.
const READ: f64 = 4.39e6;

fn weight(random: &mut fastrand::Rng, shape: [usize; 2]) -> Result<HostWeight<'static>, Failure> {
    let mut data = vec![0; shape[0] * FP4.row_bytes(shape[1])];
    random.fill(&mut data);
    let [rows, cols] = FP4.scale_grid(shape)?;
    Ok(HostWeight::owned(shape, FP4, data, vec![121; rows * cols])?)
}

fn load(gpu: &Gpu) -> Result<Experts<CudaWeight>, Failure> {
    let mut random = fastrand::Rng::with_seed(1);
    let mut experts = gpu.backend.alloc_experts(ExpertsShape {
        range: 0..EXPERTS,
        hidden: H,
        intermediate: I,
        gate_up: FP4,
        down: FP4,
    })?;
    let (gate, up) = (weight(&mut random, [I, H])?, weight(&mut random, [I, H])?);
    let down = weight(&mut random, [H, I])?;
    for _ in 0..EXPERTS {
        let (gate, up, down) = (gate.clone(), up.clone(), down.clone());
        gpu.backend.load_expert(&mut experts, gate, up, down)?;
    }
    Ok(experts)
}

/// The parts of a layer by themselves, and all of it.
pub fn experts(gpu: &Gpu, report: &mut Report) -> Result<(), Failure> {
    let (op, b) = (GatedActivation::deepseek_v4(), &gpu.backend);
    let routing = Routing::new(EXPERTS, TOP_K, 1.5, true, Selection::Score)?;
    let experts = load(gpu)?;
    let mut random = fastrand::Rng::with_seed(3);
    let mut number = |spread: f32| bf16::from_f32(spread * (random.f32() - 0.5));
    let gate: Vec<bf16> = (0..EXPERTS * H).map(|_| number(0.1)).collect();
    let bf16s = WeightFormat::Float(BF16);
    let gate = HostWeight::new([EXPERTS, H], bf16s, bytemuck::cast_slice(&gate), &[])?;
    let gate = HostGate::new(routing, gate, Some(vec![0.0; EXPERTS]), None, None)?;
    let gate = b.load_gate(&gate)?;
    let shared_gate_up = gate_ups(gpu, &MlpShape::FLASH, MlpShape::FLASH.weight())?;
    let shared_down = weights(gpu, [H, I], MlpShape::FLASH.weight())?;
    let of_shared = 3 * H * I + 2 * EXPERTS * H;
    for t in TOKENS {
        let mut chosen = Routes::new(b, &routing, t)?;
        // Other rows for each routing; of many tokens all experts have some anyhow.
        let different = if t <= 64 { ROUTINGS } else { 1 };
        let mut xs = Vec::new();
        for _ in 0..different {
            let rows: Vec<bf16> = (0..t * H).map(|_| number(4.0)).collect();
            let mut x = b.alloc(2 * t * H)?;
            b.upload(&mut x, bytemuck::cast_slice(&rows))?;
            xs.push(x);
        }
        let (mut act, mut y) = (b.alloc(2 * t * TOP_K * I)?, b.alloc(2 * t * H)?);
        let (mut wide, mut between) = (b.alloc(2 * t * 2 * I)?, b.alloc(2 * t * I)?);
        let mut of_shared_expert = b.alloc(2 * t * H)?;
        let requests = requests(routing, FP4, [H, I], t);
        let bytes = requests
            .iter()
            .map(|(request, shape)| b.scratch(request, shape));
        let mut scratch = b.alloc(bytes.max().unwrap_or_default())?;
        let (mut routes, mut touched) = (Vec::new(), 0.0);
        for x in &xs {
            let mut of_x = Routes::new(b, &routing, t)?;
            let x = In::contiguous(x.into(), BF16, t, H);
            b.route(
                &gate,
                x,
                Tokens::default(),
                (&mut scratch).into(),
                &mut of_x,
            )?;
            let offsets = of_x.download(b)?.offsets;
            let with_rows = offsets.windows(2).filter(|w| w[0] < w[1]).count();
            touched += with_rows as f64 / different as f64;
            routes.push(of_x);
        }
        let mut parts = |place: usize, parts: [bool; 4]| -> Result<(), Failure> {
            let place = place % different;
            let x = || In::contiguous((&xs[place]).into(), BF16, t, H);
            let routes = &routes[place];
            if parts == [true; 4] {
                let copy = place % shared_gate_up.len();
                let call = MoeCall {
                    gate: &gate,
                    experts: &experts,
                    op: &op,
                    quant: None,
                    shared: SharedCall {
                        gate_up: &shared_gate_up[copy],
                        down: &shared_down[copy],
                        op: &op,
                        between: Out::contiguous((&mut wide).into(), BF16, t, 2 * I),
                        act: Out::contiguous((&mut between).into(), BF16, t, I),
                        y: Out::contiguous((&mut of_shared_expert).into(), BF16, t, H),
                    },
                    routes: &mut chosen,
                    scratch: (&mut scratch).into(),
                    act: Out::contiguous((&mut act).into(), BF16, t * TOP_K, I),
                };
                let to = Out::contiguous((&mut y).into(), BF16, t, H);
                return Ok(b.moe(call, x(), Tokens::default(), to)?);
            }
            if parts[3] {
                let copy = place % shared_gate_up.len();
                let wide = Out::contiguous((&mut wide).into(), BF16, t, 2 * I);
                let to = Out::contiguous((&mut between).into(), BF16, t, I);
                b.matmul_act_and_mul(&op, x(), &shared_gate_up[copy], wide, to)?;
                let from = In::contiguous((&between).into(), BF16, t, I);
                let to = Out::contiguous((&mut of_shared_expert).into(), BF16, t, H);
                b.matmul(from, &shared_down[copy], to)?;
            }
            if parts[0] {
                let tokens = Tokens::default();
                b.route(&gate, x(), tokens, (&mut scratch).into(), &mut chosen)?;
            }
            if parts[1] && parts[2] {
                let shared = In::contiguous((&of_shared_expert).into(), BF16, t, H);
                let shared = Some(shared).filter(|_| parts[3]);
                let between = Out::contiguous((&mut act).into(), BF16, t * TOP_K, I);
                let to = Out::contiguous((&mut y).into(), BF16, t, H);
                let scratch = (&mut scratch).into();
                return Ok(b.grouped_mlp(
                    &op,
                    None,
                    x(),
                    &experts,
                    routes,
                    shared,
                    scratch,
                    between,
                    to,
                )?);
            }
            if parts[1] {
                let to = Out::contiguous((&mut act).into(), BF16, t * TOP_K, I);
                let scratch = (&mut scratch).into();
                b.grouped_matmul_act_and_mul(&op, None, x(), &experts, routes, scratch, to)?;
            }
            if parts[2] {
                let from = In::contiguous((&act).into(), BF16, t * TOP_K, I);
                let to = Out::contiguous((&mut y).into(), BF16, t, H);
                let scratch = (&mut scratch).into();
                let shared = In::contiguous((&of_shared_expert).into(), BF16, t, H);
                let shared = Some(shared).filter(|_| parts[3]);
                b.grouped_matmul_sum(None, from, &experts, routes, shared, scratch, to)?;
            }
            Ok(())
        };
        let all = [
            [true, false, false, false],
            [false, true, false, false],
            [false, false, true, false],
            [false, false, false, true],
            [false, true, true, false],
            [true; 4],
        ];
        let of_expert = b.expert_bytes(&experts) as f64;
        let mut times = [0.0; 6];
        for (time, which) in times.iter_mut().zip(all) {
            parts(0, which)?;
            let case = gpu.case(ROUTINGS, (touched * of_expert) as usize, |place| {
                parts(place, which)
            })?;
            *time = gpu.medians(vec![case], 11)?[0];
        }
        let [route, first, second, shared, both, whole] = times;
        let bytes = touched * of_expert + of_shared as f64;
        let operations = (2 * t * (TOP_K + 1) * 3 * H * I) as f64;
        let plans = requests
            .iter()
            .filter_map(|(request, shape)| b.plan(request, shape));
        report.note(&format!("T={t}: {}", plans.collect::<Vec<_>>().join(" | ")));
        let figures = [
            figure("experts touched", "experts", touched),
            figure("floor: weights at 4.39 TB/s", "us", bytes / READ),
            figure("router", "us", route),
            figure("gate_up and activation", "us", first),
            figure("down and sum", "us", second),
            figure("shared expert", "us", shared),
            figure("both halves and sum in one call", "us", both),
            figure("the layer, in a graph", "us", whole),
            figure("floor / time", "ratio", bytes / READ / whole),
            figure("useful work", "TFLOP/s", operations / whole / 1e6),
        ];
        report.case("layer, fp4 experts", &format!("v4-flash T={t}"), &figures);
    }
    Ok(())
}
