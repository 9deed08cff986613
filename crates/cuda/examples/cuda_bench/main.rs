//! Times activations, matmuls and MLPs against their limits, in CUDA graphs, on cold buffers:
//!
//!     cargo run --release -p swiglu-cuda --example cuda_bench [limit | quantized | matmuls | blocks | few]…
//!
//! Each graph holds many calls over a ring of buffers larger than the L2; a time is the median
//! over replays, divided by the calls. The limit of an activation is a kernel of the same shape
//! that moves as many bytes, run between the replays of the others. `blocks` tries the sizes of a
//! block, `few` the matmuls of few rows; without arguments it is the first two and `matmuls`.
#![allow(clippy::print_stdout)]

mod gpu;
mod matmuls;
mod rows;

use gpu::{Failure, Gpu};

fn main() -> Result<(), Failure> {
    let mut asked: Vec<String> = std::env::args().skip(1).collect();
    if asked.is_empty() {
        asked = ["limit", "quantized", "matmuls"]
            .map(str::to_owned)
            .to_vec();
    }
    let gpu = Gpu::open()?;
    for table in asked {
        match table.as_str() {
            "limit" => rows::limit(&gpu)?,
            "quantized" => rows::quantized(&gpu)?,
            "blocks" => rows::blocks(&gpu)?,
            "few" => matmuls::few(&gpu)?,
            "matmuls" => {
                matmuls::matmuls(&gpu)?;
                matmuls::mlps(&gpu)?;
                matmuls::accuracy(&gpu)?;
            }
            other => return Err(format!("no table is called {other}").into()),
        }
        println!();
    }
    Ok(())
}
