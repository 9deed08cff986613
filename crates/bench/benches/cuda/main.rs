//! Times activations, matmuls and MLPs against their limits, in CUDA graphs, on cold buffers:
//!
//! `cargo bench -p swiglu-bench --features cuda --bench cuda [-- limit quantized matmuls mlps blocks few steps bf16 experts] [--csv]`
//!
//! ## Method
//! 1. A graph holds many calls over a ring of buffers larger than the L2.
//! 2. A time is the median over its replays, between two events, divided by the calls.
//! 3. What is compared takes turns, replay by replay. The limit of an activation is a kernel of the
//!    same shape that moves as many bytes; that of a matmul its weight's bytes or its operations.
//!
//! `mlps` are those of `matmuls` alone, `blocks` tries the sizes of a block, `few` the matmuls of few rows, `steps` MLPs of
//! few tokens, `bf16` the same with weights in bf16, `experts` routers and routed experts; without words it is the first
//! three.

mod experts;
mod gpu;
mod matmuls;
mod rows;
mod steps;

use gpu::{Failure, Gpu};
use swiglu_bench::{Options, Report};

fn main() -> Result<(), Failure> {
    let mut options = Options::from_env();
    if options.words.is_empty() {
        options.words = ["limit", "quantized", "matmuls"]
            .map(str::to_owned)
            .to_vec();
    }
    let mut report = Report::new(&options);
    let gpu = Gpu::open(&report)?;
    for table in &options.words {
        match table.as_str() {
            "limit" => rows::limit(&gpu, &mut report)?,
            "quantized" => rows::quantized(&gpu, &mut report)?,
            "blocks" => rows::blocks(&gpu, &mut report)?,
            "few" => matmuls::few(&gpu, &mut report)?,
            "mlps" => matmuls::mlps(&gpu, &mut report)?,
            "experts" => experts::experts(&gpu, &mut report)?,
            "steps" => steps::steps(&gpu, &mut report)?,
            "bf16" => steps::in_bf16(&gpu, &mut report)?,
            "matmuls" => {
                matmuls::matmuls(&gpu, &mut report)?;
                matmuls::mlps(&gpu, &mut report)?;
                matmuls::accuracy(&gpu, &mut report)?;
            }
            other => return Err(format!("no table is called {other}").into()),
        }
    }
    Ok(())
}
