//! One layer's shared expert, from a sharded checkpoint, on whatever this machine has.
//!
//! `cargo run --release --example checkpoint_layer -- DIR PREFIX` takes a released checkpoint;
//! without arguments it makes up a small one.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;

use swiglu::Dispatcher;
use swiglu::mlp::synthetic::{SyntheticConfig, synthetic_input, write_sharded_checkpoint};
use swiglu::mlp::{Checkpoint, ModelConfig, SharedExpert};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let text = match (arguments.next(), arguments.next()) {
        (Some(folder), Some(prefix)) => layer(Dispatcher::from_env()?, folder.as_ref(), &prefix)?,
        _ => run()?,
    };
    print!("{text}");
    Ok(())
}

/// What the program prints for a checkpoint of its own.
pub fn run() -> Result<String, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let form = SyntheticConfig {
        hidden: 512,
        intermediate: 256,
        ..SyntheticConfig::flash(1)
    };
    write_sharded_checkpoint(folder.path(), &form)?;
    // On the CPU, so that the output is the same everywhere; `from_env` alone takes the best.
    let dispatcher = Dispatcher::from_env()?.platform("cpu");
    layer(dispatcher, folder.path(), &form.prefix())
}

fn layer(dispatcher: Dispatcher, folder: &Path, prefix: &str) -> Result<String, Box<dyn Error>> {
    let config = ModelConfig::from_file(&folder.join("config.json"))?.mlp_config(prefix)?;
    let checkpoint = Checkpoint::open(folder)?;
    let weights = SharedExpert::load(&checkpoint, &config)?;
    let (gate_up, down) = (weights.gate().format(), weights.down().format());

    let device = dispatcher.mlp_device(&config, gate_up, down)?;
    let mut mlp = device.load_mlp(&config, &weights)?;
    let y = mlp.forward(&synthetic_input(2, config.hidden_size, 7))?;
    Ok(format!(
        "{} on {}: weights {gate_up}, {} bytes\ny of 2 tokens has {} elements, the first is {}\n",
        config.activation()?,
        device.report().chosen,
        mlp.weight_bytes(),
        y.len(),
        y[0],
    ))
}
