//! MLPs of up to 2048 tokens, weights cold: in a graph, and as the host enqueues them one by one.

use swiglu_bench::{Report, figure};
use swiglu_conformance::MlpShape;
use swiglu_core::{ActAndMul, Backend, GatedActivation, HostWeight, Matmul, WeightFormat};
use swiglu_cuda::{CudaWeight, Route};

use crate::gpu::{COLD, Failure, Gpu};
use crate::matmuls::{BF16, In, Out, numbers, weight_bytes, weights};

/// Tokens of decode steps, of warpgroups, and beyond.
const TOKENS: [usize; 18] = [
    1, 4, 8, 16, 24, 32, 33, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048,
];

/// Of them all.
const MOST: usize = 2048;

/// Tokens from which on the weights decoded to bf16 for cublasLt are worth a look.
const MANY: usize = 33;

/// Copies of an MLP's gate and up weights that together are larger than the L2.
pub fn gate_ups(
    gpu: &Gpu,
    model: &MlpShape,
    format: WeightFormat,
) -> Result<Vec<CudaWeight>, Failure> {
    let shape = [model.intermediate, model.hidden];
    let [data, scales] = weight_bytes(shape, format)?;
    let half = || HostWeight::new(shape, format, &data, &scales);
    let copies = (COLD / (2 * data.len())).max(2);
    let load = |_| Ok(gpu.backend.load_gate_up(half()?, half()?)?);
    (0..copies).map(load).collect()
}

/// Whole MLPs with FP8 weights and bf16 activations, beside those decoded first.
pub fn steps(gpu: &Gpu, report: &mut Report) -> Result<(), Failure> {
    for model in MlpShape::ALL {
        let names = ["W8A16, bf16 activations", "decoded to bf16, cublasLt"];
        let other = (Route::Decode, MANY);
        mlps(gpu, report, &model, (model.weight(), names), other)?;
    }
    Ok(())
}

/// Whole MLPs in bf16, beside cublasLt's with an activation of its own between.
pub fn in_bf16(gpu: &Gpu, report: &mut Report) -> Result<(), Failure> {
    for model in MlpShape::ALL {
        let names = [
            "weights and activations in bf16",
            "cublasLt and an activation",
        ];
        let format = WeightFormat::Float(BF16);
        mlps(gpu, report, &model, (format, names), (Route::Library, 1))?;
    }
    Ok(())
}

/// As a backend chooses, and from some tokens on by another way.
fn mlps(
    gpu: &Gpu,
    report: &mut Report,
    model: &MlpShape,
    (format, [own, others]): (WeightFormat, [&str; 2]),
    (other, from): (Route, usize),
) -> Result<(), Failure> {
    let (op, b) = (GatedActivation::deepseek_v4(), &gpu.backend);
    let (h, i) = (model.hidden, model.intermediate);
    let gate_up = gate_ups(gpu, model, format)?;
    let down = weights(gpu, [h, i], format)?;
    // The second has twice as many copies, and is read as rarely.
    let copies = gate_up.len();
    let x = numbers(gpu, MOST * h)?;
    let mut wide = b.alloc(2 * MOST * 2 * i)?;
    let (mut act, mut y) = (b.alloc(2 * MOST * i)?, b.alloc(2 * MOST * h)?);
    for t in TOKENS {
        let mut forward = |place: usize, route: Option<Route>| -> Result<(), Failure> {
            let from = In::contiguous((&x).into(), BF16, t, h);
            let between = Out::contiguous((&mut wide).into(), BF16, t, 2 * i);
            let to = Out::contiguous((&mut act).into(), BF16, t, i);
            if route.is_some() {
                b.matmul_by(route, &from, &gate_up[place], &between)?;
                b.act_and_mul(&op, between.as_tensor().into(), to)?;
            } else {
                b.matmul_act_and_mul(&op, from, &gate_up[place], between, to)?;
            }
            let from = In::contiguous((&act).into(), BF16, t, i);
            let to = Out::contiguous((&mut y).into(), BF16, t, h);
            Ok(b.matmul_by(route, &from, &down[place], &to)?)
        };
        forward(0, None)?;
        let bytes = 3 * h * format.row_bytes(i);
        let mut cases = vec![gpu.case(copies, bytes, |place| forward(place, None))?];
        if t >= from {
            forward(0, Some(other))?;
            cases.push(gpu.case(copies, bytes, |place| forward(place, Some(other)))?);
        }
        let in_graph = gpu.medians(cases, 21)?;
        let [enqueued, done] = gpu.by_host(copies, |place| forward(place, None))?;
        let mut figures = vec![
            figure("floor: weights at 4.39 TB/s", "us", bytes as f64 / 4.39e6),
            figure(format!("{own}, in a graph"), "us", in_graph[0]),
            figure("enqueued by the host", "us", done),
            figure("the host's share", "us", enqueued),
        ];
        if let Some(by_other) = in_graph.get(1) {
            figures.push(figure(others, "us", *by_other));
        }
        let is_fp8 = format.scaling().is_some();
        let case = if is_fp8 { "" } else { " in bf16" };
        let case = format!("{}{case} T={t}", model.name);
        report.case("mlp, few tokens", &case, &figures);
    }
    Ok(())
}
