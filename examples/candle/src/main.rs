//! One layer's shared expert of DeepSeek-V4 in an engine on candle, from an FP8 checkpoint.
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::Module;
use swiglu::candle::{Checkpoint, DeepseekV4Mlp, ModelConfig};
use swiglu::mlp::synthetic::{SyntheticConfig, synthetic_input, write_checkpoint};

/// A transformer's layer, as far as this example goes.
struct Layer {
    shared_experts: DeepseekV4Mlp,
}

impl Layer {
    /// Loads layer `number` of the checkpoint in `folder`: FP8 weights and their scales, which
    /// candle's own `VarBuilder` would read as numbers without scales.
    fn load(
        folder: &Path,
        number: usize,
        device: &Device,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let model = ModelConfig::from_file(&folder.join("config.json"))?;
        let config = model.mlp_config(&format!("layers.{number}.ffn.shared_experts"))?;
        let checkpoint = Checkpoint::open(folder)?;
        Ok(Self {
            shared_experts: DeepseekV4Mlp::load(&config, &checkpoint, device)?,
        })
    }
}

impl Module for Layer {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        x + self.shared_experts.forward(x)?
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A small checkpoint in the form of DeepSeek-V4-Flash, in place of a downloaded one.
    let folder = tempfile::tempdir()?;
    let synthetic = SyntheticConfig {
        hidden: 512,
        intermediate: 256,
        ..SyntheticConfig::flash(1)
    };
    write_checkpoint(folder.path(), &synthetic)?;

    let device = Device::Cpu;
    let layer = Layer::load(folder.path(), 3, &device)?;
    let x = Tensor::from_vec(synthetic_input(2 * 5, 512, 1), (2, 5, 512), &device)?;
    let y = layer.forward(&x)?;
    let norm = y
        .to_dtype(DType::F32)?
        .sqr()?
        .sum_all()?
        .sqrt()?
        .to_scalar::<f32>()?;
    println!("{:?} in {:?}, norm {norm:.1}", y.dims(), y.dtype());
    println!("{}", layer.shared_experts.activation());
    Ok(())
}
