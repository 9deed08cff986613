//! MLPs of up to 2048 tokens, weights cold: in a graph, and as the host enqueues them one by one.

use swiglu_bench::{Report, figure};
use swiglu_conformance::MlpShape;
use swiglu_core::{ActAndMul, Backend, GatedActivation, HostWeight, Matmul};
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
pub fn gate_ups(gpu: &Gpu, model: &MlpShape) -> Result<Vec<CudaWeight>, Failure> {
    let shape = [model.intermediate, model.hidden];
    let [data, scales] = weight_bytes(shape, model.weight())?;
    let half = || HostWeight::new(shape, model.weight(), &data, &scales);
    let copies = (COLD / (2 * data.len())).max(2);
    let load = |_| Ok(gpu.backend.load_gate_up(half()?, half()?)?);
    (0..copies).map(load).collect()
}

/// Whole MLPs with FP8 weights and bf16 activations.
pub fn steps(gpu: &Gpu, report: &mut Report) -> Result<(), Failure> {
    let (op, b) = (GatedActivation::deepseek_v4(), &gpu.backend);
    for model in MlpShape::ALL {
        let (h, i) = (model.hidden, model.intermediate);
        let gate_up = gate_ups(gpu, &model)?;
        let down = weights(gpu, [h, i], model.weight())?;
        // The second has twice as many copies, and is read as rarely.
        let copies = gate_up.len();
        let x = numbers(gpu, MOST * h)?;
        let mut wide = b.alloc(2 * MOST * 2 * i)?;
        let (mut act, mut y) = (b.alloc(2 * MOST * i)?, b.alloc(2 * MOST * h)?);
        for t in TOKENS {
            let mut forward = |place: usize, decoded: bool| -> Result<(), Failure> {
                let from = In::contiguous((&x).into(), BF16, t, h);
                let between = Out::contiguous((&mut wide).into(), BF16, t, 2 * i);
                let to = Out::contiguous((&mut act).into(), BF16, t, i);
                if decoded {
                    b.matmul_by(Some(Route::Decode), &from, &gate_up[place], &between)?;
                    b.act_and_mul(&op, between.as_tensor().into(), to)?;
                } else {
                    b.matmul_act_and_mul(&op, from, &gate_up[place], between, to)?;
                }
                let route = decoded.then_some(Route::Decode);
                let from = In::contiguous((&act).into(), BF16, t, i);
                let to = Out::contiguous((&mut y).into(), BF16, t, h);
                Ok(b.matmul_by(route, &from, &down[place], &to)?)
            };
            forward(0, false)?;
            let bytes = 3 * h * i;
            let mut cases = vec![gpu.case(copies, bytes, |place| forward(place, false))?];
            if t >= MANY {
                forward(0, true)?;
                cases.push(gpu.case(copies, bytes, |place| forward(place, true))?);
            }
            let in_graph = gpu.medians(cases, 21)?;
            let [enqueued, done] = gpu.by_host(copies, |place| forward(place, false))?;
            let mut figures = vec![
                figure("floor: weights at 4.39 TB/s", "us", bytes as f64 / 4.39e6),
                figure("W8A16, bf16 activations, in a graph", "us", in_graph[0]),
                figure("enqueued by the host", "us", done),
                figure("the host's share", "us", enqueued),
            ];
            if let Some(decoded) = in_graph.get(1) {
                figures.push(figure("decoded to bf16, cublasLt", "us", *decoded));
            }
            let case = format!("{} T={t}", model.name);
            report.case("mlp, few tokens", &case, &figures);
        }
    }
    Ok(())
}
