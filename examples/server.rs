//! A server: many requests over one set of weights. Passes run on `spawn_blocking`, so that they
//! never hold up the executor, and take their workspaces from a pool.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::sync::Arc;

use swiglu::cpu::CpuBackend;
use swiglu::mlp::synthetic::{SyntheticConfig, synthetic_input, write_checkpoint};
use swiglu::mlp::{Checkpoint, DeepseekV4Mlp, ModelConfig, SharedExpert, WorkspacePool};
use swiglu::{RowLayout, Tensor, TensorMut, bf16};

/// What all requests share.
struct Model {
    mlp: DeepseekV4Mlp<CpuBackend>,
    workspaces: WorkspacePool<CpuBackend>,
}

impl Model {
    fn forward(&self, x: &[bf16]) -> Result<Vec<bf16>, swiglu::mlp::Error> {
        let hidden = self.mlp.hidden_size();
        let layout = RowLayout::contiguous(x.len() / hidden, hidden);
        let mut y = vec![bf16::ZERO; x.len()];
        self.mlp.forward(
            Tensor::from_slice(x, layout),
            TensorMut::from_slice(&mut y, layout),
            &mut self.workspaces.take(),
        )?;
        Ok(y)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    print!("{}", run()?);
    Ok(())
}

/// What the program prints.
pub fn run() -> Result<String, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let form = SyntheticConfig {
        hidden: 512,
        intermediate: 256,
        ..SyntheticConfig::flash(1)
    };
    write_checkpoint(folder.path(), &form)?;
    let config = ModelConfig::from_file(&folder.path().join("config.json"))?
        .mlp_config("layers.3.ffn.shared_experts")?;
    let checkpoint = Checkpoint::open(folder.path())?;
    let weights = SharedExpert::load(&checkpoint, &config)?;
    let model = Arc::new(Model {
        mlp: DeepseekV4Mlp::load(Arc::new(CpuBackend::new()), &config, &weights)?,
        workspaces: WorkspacePool::new(),
    });

    let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
    let answers = runtime.block_on(async {
        let mut requests = Vec::new();
        for seed in 0..16 {
            let model = Arc::clone(&model);
            let x = synthetic_input(1 + seed as usize % 4, 512, seed);
            requests.push(tokio::task::spawn_blocking(move || {
                model.forward(&x).map(|y| (x, y))
            }));
        }
        let mut answers = Vec::new();
        for request in requests {
            answers.push(request.await);
        }
        answers
    });

    let mut right = 0;
    for answer in answers {
        let (x, y) = answer??;
        right += usize::from(y == model.forward(&x)?);
    }
    Ok(format!(
        "{right} of 16 answers are those of one request alone\n"
    ))
}
