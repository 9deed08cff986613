//! A whole layer, router and routed experts in FP4 included, on the CPU and on the engine's own slices.
//!
//! `cargo run --release --example moe_layer -- DIR PREFIX` takes a released checkpoint; without
//! arguments it makes up a small one.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use swiglu::cpu::CpuBackend;
use swiglu::mlp::synthetic::{
    SyntheticConfig, SyntheticMoe, synthetic_input, write_moe_checkpoint,
};
use swiglu::mlp::{Checkpoint, DeepseekV4Moe, ModelConfig, MoeWeights, MoeWorkspace};
use swiglu::{RowLayout, Tensor, TensorMut, Tokens, bf16};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let text = match (arguments.next(), arguments.next()) {
        (Some(folder), Some(prefix)) => layer(folder.as_ref(), &prefix)?,
        _ => run()?,
    };
    print!("{text}");
    Ok(())
}

/// What the program prints for a checkpoint of its own: a layer that hashes.
pub fn run() -> Result<String, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let form = SyntheticMoe {
        shared: SyntheticConfig {
            hidden: 256,
            intermediate: 128,
            ..SyntheticConfig::flash(1)
        },
        vocabulary: Some(100),
        ..SyntheticMoe::flash(16, 1)
    };
    write_moe_checkpoint(folder.path(), &form)?;
    layer(folder.path(), &form.prefix())
}

fn layer(folder: &Path, prefix: &str) -> Result<String, Box<dyn Error>> {
    let config = ModelConfig::from_file(&folder.join("config.json"))?.moe_config(prefix)?;
    let checkpoint = Checkpoint::open(folder)?;
    let weights = MoeWeights::load(&checkpoint, &config)?;
    let layer = DeepseekV4Moe::load(Arc::new(CpuBackend::new()), &config, &weights)?;

    // One for as long as passes run: a second pass of the same size allocates nothing.
    let mut workspace = MoeWorkspace::new();
    let rows = RowLayout::contiguous(3, layer.hidden_size());
    let x = synthetic_input(rows.rows, rows.cols, 7);
    let mut y = vec![bf16::ZERO; x.len()];
    // Layers that hash go by the tokens' ids; the last is none of the vocabulary's.
    let ids = [17_i32, 4, -1];
    let tokens = Tokens {
        ids: Some(bytemuck::cast_slice(&ids)),
        ..Tokens::default()
    };
    let (from, to) = (
        Tensor::from_slice(&x, rows),
        TensorMut::from_slice(&mut y, rows),
    );
    layer.forward(from, tokens, to, &mut workspace)?;
    Ok(format!(
        "{}\nexperts in {}, {} bytes each\ny of 3 tokens begins with {}, {}, {}\n",
        layer.routing(),
        weights.formats()[0],
        layer.expert_bytes(),
        y[0],
        y[rows.cols],
        y[2 * rows.cols],
    ))
}
