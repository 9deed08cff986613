//! `swiglu run`: the MLP of a checkpoint on an input, on one device or on several ranks, or a whole
//! layer with its router and routed experts.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use swiglu::mlp::{Checkpoint, MlpConfig, ModelConfig, SharedExpert};
use swiglu::{Element, Float, HostBuffer, HostWeight, Limit, Report, bf16, with_float};

use crate::arguments::{CommunicatorArgument, Run};
use crate::console::Console;
use crate::escape;
use crate::failure::{Failure, Result};
use crate::files::{Inputs, OutputFile};
use crate::tensor_file::{self, HostTensor};

mod moe;
#[cfg(all(feature = "cpu", feature = "mpi"))]
mod mpi;
#[cfg(feature = "cpu")]
mod ranks;
mod report;

pub use moe::{layer_config, touched};
use report::{Ranks, StoredWeights};

/// `swiglu run`.
pub fn run(arguments: &Run, out: &mut Console) -> Result<()> {
    let checkpoint = Checkpoint::open_with(&arguments.checkpoint, arguments.mapping.mode())?;
    if checkpoint.has_gate(&arguments.prefix) {
        return moe::run(arguments, out);
    }
    if arguments.ranks.communicator() == CommunicatorArgument::Mpi {
        return over_mpi(arguments, out);
    }
    let world = arguments.ranks.ranks.unwrap_or(1);
    if world == 1 {
        return alone(arguments, out);
    }
    let (task, checkpoint, inputs) = Task::read(arguments)?;
    let output = output(arguments, &inputs, out)?;
    let done = on_threads(arguments, &task, checkpoint, world)?;
    finish(arguments, &task, &output, done, out)
}

#[cfg(feature = "cpu")]
use ranks::on_threads;

#[cfg(not(feature = "cpu"))]
fn on_threads(_: &Run, _: &Task, _: Checkpoint, world: usize) -> Result<Done> {
    Err(Failure::Input(format!(
        "ranks: expected 1, as this program is built without the feature `cpu`, got {world}"
    )))
}

#[cfg(all(feature = "cpu", feature = "mpi"))]
use mpi::over_mpi;

#[cfg(not(all(feature = "cpu", feature = "mpi")))]
fn over_mpi(_: &Run, _: &mut Console) -> Result<()> {
    Err(Failure::Input(
        "communicator: expected threads, as this program is built without the features `cpu` and \
         `mpi`, got mpi"
            .to_owned(),
    ))
}

/// What is to be run, checked as far as that goes without the weights.
struct Task {
    config: MlpConfig,
    operation: String,
    /// What the matmuls read: bf16, or a quantization.
    matmuls: String,
    input: HostTensor<Float>,
    /// Rows of the input.
    tokens: usize,
}

impl Task {
    /// Reads the configuration and the input. Of the checkpoint the headers are read.
    fn read(arguments: &Run) -> Result<(Self, Checkpoint, Inputs)> {
        let config_path = config_path(&arguments.checkpoint, arguments.config.as_deref())?;
        let model = ModelConfig::from_file(&config_path)?;
        let stated = match arguments.limit {
            Some(given) => {
                let limit = given.0.map(Limit::new).transpose()?;
                model.mlp_config_with_limit(&arguments.prefix, limit)
            }
            None => model.mlp_config(&arguments.prefix)?,
        };
        let config = MlpConfig {
            rounding: arguments.rounding.into(),
            activation_quant: arguments.activations.into(),
            ..stated
        };
        let mode = arguments.mapping.mode();
        let checkpoint = Checkpoint::open_with(&arguments.checkpoint, mode)?;
        let mut config = config.with_tensors(&checkpoint)?;
        if let Some(intermediate) = arguments.intermediate {
            config.intermediate_size = intermediate;
        }
        let (op, quant) = (config.activation()?, config.quantization()?);
        let mut inputs = Inputs::of_checkpoint(&arguments.checkpoint, &config_path);
        let input = tensor_file::read(&arguments.input, &mut inputs)?;
        let tokens = rows(&input, config.hidden_size)?;
        let task = Self {
            config,
            operation: op.to_string(),
            matmuls: quant.map_or("bf16".to_owned(), |quant| quant.to_string()),
            input,
            tokens,
        };
        Ok((task, checkpoint, inputs))
    }
}

/// Where the output goes, with standard output kept for it where that is the place.
fn output(arguments: &Run, inputs: &Inputs, out: &mut Console) -> Result<OutputFile> {
    let output = OutputFile::new("output", &arguments.output, inputs)?;
    out.reserve_for_json(arguments.json);
    out.reserve_for(&output)?;
    Ok(output)
}

/// What a forward pass gave, and how it was run.
struct Done {
    y: Vec<bf16>,
    /// `gate_up` and `act`, where they are asked for.
    stages: Option<(Vec<bf16>, Vec<bf16>)>,
    platform: Report,
    /// The class of the matmuls' sums.
    sums: &'static str,
    weights: StoredWeights,
    ranks: Ranks,
    loading: Duration,
    forward: Duration,
}

/// On one device, whichever it is.
fn alone(arguments: &Run, out: &mut Console) -> Result<()> {
    let (task, checkpoint, inputs) = Task::read(arguments)?;
    let output = output(arguments, &inputs, out)?;
    let config = &task.config;
    let expert = SharedExpert::load(&checkpoint, config)?;
    let dispatcher = arguments.device.dispatcher()?;
    let device = dispatcher.device_for(&expert.requests(config)?)?;
    let start = Instant::now();
    read_ahead(&[expert.gate(), expert.up(), expert.down()]);
    let mut mlp = device.load_mlp(config, &expert)?;
    let loading = start.elapsed();

    let x = rounded(&task.input);
    let start = Instant::now();
    let y = mlp.forward(&x)?;
    let forward = start.elapsed();

    let stages = match arguments.stages {
        true => Some(mlp.stages(&x)?),
        false => None,
    };
    let done = Done {
        y,
        stages,
        platform: Report {
            plan: mlp.plan(task.tokens),
            ..device.report().clone()
        },
        sums: device.backend().accuracy().accumulation.name(),
        weights: StoredWeights::new(&expert, mlp.weight_bytes()),
        ranks: Ranks::one(config.intermediate_size),
        loading,
        forward,
    };
    finish(arguments, &task, &output, done, out)
}

/// Writes the output and tells how it was made.
fn finish(
    arguments: &Run,
    task: &Task,
    output: &OutputFile,
    done: Done,
    out: &mut Console,
) -> Result<()> {
    let (h, i) = (task.config.hidden_size, task.config.intermediate_size);
    let leading = task
        .input
        .shape
        .split_last()
        .map_or(&[][..], |(_, leading)| leading);
    let y = tensor(&done.y, leading, h)?;
    let mut tensors = vec![("y", &y)];
    let stages;
    if let Some((gate_up, act)) = &done.stages {
        stages = (tensor(gate_up, leading, 2 * i)?, tensor(act, leading, i)?);
        tensors.extend([("gate_up", &stages.0), ("act", &stages.1)]);
    }
    tensor_file::write(output, &tensors)?;
    report::tell(arguments, task, output, &tensors, done, out)
}

/// The configuration that the caller names, or the one beside the checkpoint.
pub fn config_path(checkpoint: &Path, named: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    let folder = if checkpoint.is_dir() {
        checkpoint
    } else {
        checkpoint.parent().unwrap_or_else(|| Path::new("."))
    };
    let path = folder.join("config.json");
    if path.is_file() {
        return Ok(path);
    }
    Err(Failure::Input(format!(
        "config: expected config.json in {} or --config FILE, got neither",
        folder.display()
    )))
}

/// The rows of an input [.., H].
fn rows(input: &HostTensor<Float>, hidden: usize) -> Result<usize> {
    match input.shape.split_last() {
        Some((&last, leading)) if last == hidden => Ok(leading.iter().product()),
        _ => Err(Failure::Input(format!(
            "input: expected shape [.., {hidden}], got {} {}",
            input.stored,
            escape::shape(&input.shape)
        ))),
    }
}

/// The input in the type that the MLP takes: of a wider type the nearest, of two the even one.
fn rounded(input: &HostTensor<Float>) -> Vec<bf16> {
    fn each<T: Element>(data: &HostBuffer) -> Vec<bf16> {
        let typed = data.typed::<T>().iter();
        typed.map(|x| bf16::from_f32(x.to_f32())).collect()
    }
    if input.stored == Float::BF16 {
        return input.data.typed::<bf16>().to_vec();
    }
    with_float!(input.stored, T => each::<T>(&input.data))
}

fn tensor(data: &[bf16], leading: &[usize], cols: usize) -> Result<HostTensor> {
    Ok(HostTensor {
        stored: Float::BF16.into(),
        shape: [leading, &[cols]].concat(),
        data: HostBuffer::from_slice(data)?,
    })
}

/// Touches mapped weights in order, under a progress bar, so that what waits for a disk is seen.
/// Without a terminal it does nothing: loading reads the pages itself.
fn read_ahead(weights: &[&HostWeight<'_>]) {
    const STEP: usize = 4 << 20;
    const PAGE: usize = 4096;
    let bytes: usize = weights.iter().map(|w| w.data().len()).sum();
    let bar = ProgressBar::new(bytes as u64);
    if bar.is_hidden() || bytes < 16 * STEP {
        return;
    }
    let template = "reading {bar:40} {bytes}/{total_bytes} {bytes_per_sec}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    for chunk in weights.iter().flat_map(|w| w.data().chunks(STEP)) {
        let sum = chunk.iter().step_by(PAGE).fold(0_u8, |a, b| a ^ b);
        std::hint::black_box(sum);
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
}
