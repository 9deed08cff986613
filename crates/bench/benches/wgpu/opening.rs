//! How long it takes to open a backend for what is asked of it. Run it twice in two processes, to see what the
//! pipelines that were kept are good for; a driver's own cache of shaders must be new, too.

use std::time::Instant;

use swiglu_bench::{Report, figure};
use swiglu_core::{Float, GatedActivation, Request, WeightFormat};
use swiglu_wgpu::WgpuBackend;

use crate::device::Result;

/// What an MLP asks whose weights are stored so.
fn mlp(weight: WeightFormat) -> Vec<Request> {
    let (op, x) = (GatedActivation::deepseek_v4(), Float::BF16);
    vec![
        Request::GatedMatmul {
            op,
            x,
            weight,
            act: x,
        },
        Request::Matmul { x, weight, y: x },
    ]
}

pub fn opening(report: &mut Report) -> Result<()> {
    let activation = Request::Activation {
        op: GatedActivation::deepseek_v4(),
        float: Float::BF16,
    };
    let bf16 = mlp(WeightFormat::Float(Float::BF16));
    let cases = [
        ("one activation", Some(vec![activation])),
        ("MLP fp8", Some(mlp(WeightFormat::DEEPSEEK_V4))),
        ("MLP bf16", Some(bf16)),
        ("every kernel", None),
    ];
    for (name, requests) in cases {
        let start = Instant::now();
        let builder = WgpuBackend::builder();
        let builder = match &requests {
            Some(requests) => builder.for_requests(requests),
            None => builder,
        };
        let backend = builder.open()?;
        let seconds = start.elapsed().as_secs_f64();
        drop(backend);
        report.case("opening", name, &[figure("time", "s", seconds)]);
    }
    Ok(())
}
