//! MLPs of few tokens, weights cold: in a graph, and as the host enqueues them one by one.

use swiglu_bench::{Report, figure};
use swiglu_conformance::MlpShape;
use swiglu_core::{Backend, GatedActivation, HostWeight, Matmul};
use swiglu_cuda::CudaWeight;

use crate::gpu::{COLD, Failure, Gpu};
use crate::matmuls::{BF16, In, Out, numbers, weight_bytes, weights};

/// Tokens of decode steps, and beyond.
const TOKENS: [usize; 10] = [1, 2, 4, 8, 12, 16, 17, 32, 48, 64];

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
        let x = numbers(gpu, 64 * h)?;
        let mut wide = b.alloc(2 * 64 * 2 * i)?;
        let (mut act, mut y) = (b.alloc(2 * 64 * i)?, b.alloc(2 * 64 * h)?);
        for t in TOKENS {
            let mut forward = |place: usize| -> Result<(), Failure> {
                let from = In::contiguous((&x).into(), BF16, t, h);
                let between = Out::contiguous((&mut wide).into(), BF16, t, 2 * i);
                let to = Out::contiguous((&mut act).into(), BF16, t, i);
                b.matmul_act_and_mul(&op, from, &gate_up[place], between, to)?;
                let from = In::contiguous((&act).into(), BF16, t, i);
                let to = Out::contiguous((&mut y).into(), BF16, t, h);
                Ok(b.matmul(from, &down[place], to)?)
            };
            forward(0)?;
            let bytes = 3 * h * i;
            let case = gpu.case(copies, bytes, &mut forward)?;
            let in_graph = gpu.medians(vec![case], 21)?[0];
            let [enqueued, done] = gpu.by_host(copies, &mut forward)?;
            let figures = [
                figure("floor: weights at 4.39 TB/s", "us", bytes as f64 / 4.39e6),
                figure("W8A16, bf16 activations, in a graph", "us", in_graph),
                figure("enqueued by the host", "us", done),
                figure("the host's share", "us", enqueued),
            ];
            let case = format!("{} T={t}", model.name);
            report.case("mlp, few tokens", &case, &figures);
        }
    }
    Ok(())
}
