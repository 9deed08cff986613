use std::sync::Arc;
use std::thread;

use swiglu::mlp::{DeepseekV4Mlp, MlpConfig, SharedExpert, Workspace};
use swiglu::{RowLayout, Tensor, TensorMut, bf16, reference::Reference};

use crate::failure::{Failure, Result};

/// What the reference makes of an input, and how much of it the limit touches.
pub struct Oracle {
    pub y: Vec<bf16>,
    pub gates_beyond: f64,
    pub ups_beyond: f64,
}

impl Oracle {
    /// Runs the MLP on the scalar f64 reference, tokens shared among this machine's cores.
    pub fn run(config: &MlpConfig, expert: &SharedExpert<'_>, x: &[bf16]) -> Result<Self> {
        let mlp = DeepseekV4Mlp::load(Arc::new(Reference), config, expert)?;
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let tokens = x.len() / config.hidden_size;
        let share = tokens.div_ceil(cores).max(1) * config.hidden_size;
        let parts = thread::scope(|scope| {
            let threads: Vec<_> = x
                .chunks(share)
                .map(|x| scope.spawn(|| forward(&mlp, config, x)))
                .collect();
            let join = |t: thread::ScopedJoinHandle<'_, _>| {
                t.join()
                    .unwrap_or_else(|_| Err(Failure::Check("the reference panicked".to_owned())))
            };
            threads.into_iter().map(join).collect::<Result<Vec<_>>>()
        })?;
        let beyond = |gate: bool| {
            let limit = config.limit.map_or(f32::INFINITY, |l| l.get());
            let i = config.intermediate_size;
            let rows = parts.iter().flat_map(|p| p.gate_up.chunks(2 * i));
            let hits: usize = rows
                .map(|row| match gate {
                    true => row[..i].iter().filter(|g| g.to_f32() > limit).count(),
                    false => row[i..].iter().filter(|u| u.to_f32().abs() > limit).count(),
                })
                .sum();
            hits as f64 / (tokens * i).max(1) as f64
        };
        Ok(Self {
            gates_beyond: beyond(true),
            ups_beyond: beyond(false),
            y: parts.into_iter().flat_map(|p| p.y).collect(),
        })
    }
}

/// What one thread's tokens gave.
struct Share {
    gate_up: Vec<bf16>,
    y: Vec<bf16>,
}

fn forward(mlp: &DeepseekV4Mlp<Reference>, config: &MlpConfig, x: &[bf16]) -> Result<Share> {
    let (h, i) = (config.hidden_size, config.intermediate_size);
    let t = x.len() / h;
    let rows = |cols| RowLayout::contiguous(t, cols);
    let zeros = |cols: usize| vec![bf16::ZERO; t * cols];
    let (mut gate_up, mut act, mut y) = (zeros(2 * i), zeros(i), zeros(h));
    mlp.forward_stages(
        Tensor::from_slice(x, rows(h)),
        TensorMut::from_slice(&mut gate_up, rows(2 * i)),
        TensorMut::from_slice(&mut act, rows(i)),
        TensorMut::from_slice(&mut y, rows(h)),
        &mut Workspace::new(),
    )?;
    Ok(Share { gate_up, y })
}
