use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use swiglu::mlp::{Checkpoint, MlpConfig, ModelConfig, SharedExpert};
use swiglu::{Element, Float, HostBuffer, HostWeight, Limit, Report, bf16, with_float};

use crate::act::InputTensor;
use crate::arguments::Run;
use crate::chosen::Chosen;
use crate::console::Console;
use crate::escape;
use crate::failure::{Failure, Result};
use crate::files::{Inputs, OutputFile};
use crate::tensor_file::{self, HostTensor, WrittenTensor};

/// What `swiglu run` did, as JSON has it.
#[derive(Debug, Serialize)]
struct RunReport {
    operation: String,
    /// What the matmuls read: bf16, or a quantization.
    matmuls: String,
    platform: Chosen,
    /// The class of the matmuls' sums.
    sums: &'static str,
    weights: Weights,
    input: InputTensor,
    /// As it was named.
    output: String,
    tensors: Vec<WrittenTensor>,
    /// Copies to and from the device included.
    milliseconds: f64,
}

#[derive(Debug, Serialize)]
struct Weights {
    hidden_size: usize,
    intermediate_size: usize,
    gate_up: String,
    down: String,
    bytes: usize,
    load_milliseconds: f64,
}

/// `swiglu run`.
pub fn run(arguments: &Run, out: &mut Console) -> Result<()> {
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
    let checkpoint = Checkpoint::open_with(&arguments.checkpoint, arguments.mapping.mode())?;
    let mut config = config.with_tensors(&checkpoint)?;
    if let Some(intermediate) = arguments.intermediate {
        config.intermediate_size = intermediate;
    }
    let (op, quant) = (config.activation()?, config.quantization()?);
    let mut inputs = Inputs::of_checkpoint(&arguments.checkpoint, &config_path);
    let input = tensor_file::read(&arguments.input, &mut inputs)?;
    let (tokens, leading) = rows(&input, config.hidden_size)?;
    let output = OutputFile::new("output", &arguments.output, &inputs)?;
    out.reserve_for_json(arguments.json);
    out.reserve_for(&output)?;

    let expert = SharedExpert::load(&checkpoint, &config)?;
    let dispatcher = arguments.device.dispatcher()?;
    let device = dispatcher.device_for(&expert.requests(&config)?)?;
    let start = Instant::now();
    read_ahead(&[expert.gate(), expert.up(), expert.down()]);
    let mut mlp = device.load_mlp(&config, &expert)?;
    let loaded = start.elapsed();

    let x = rounded(&input);
    let start = Instant::now();
    let y = mlp.forward(&x)?;
    let ran = start.elapsed();

    let y = tensor(&y, leading, config.hidden_size)?;
    let mut tensors = vec![("y", &y)];
    let stages;
    if arguments.stages {
        let (gate_up, act) = mlp.stages(&x)?;
        let i = config.intermediate_size;
        stages = (tensor(&gate_up, leading, 2 * i)?, tensor(&act, leading, i)?);
        tensors.extend([("gate_up", &stages.0), ("act", &stages.1)]);
    }
    tensor_file::write(&output, &tensors)?;

    let report = Report {
        plan: mlp.plan(tokens),
        ..device.report().clone()
    };
    let report = RunReport {
        operation: op.to_string(),
        matmuls: quant.map_or("bf16".to_owned(), |quant| quant.to_string()),
        sums: device.backend().accuracy().accumulation.name(),
        weights: Weights {
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            gate_up: formats(&[expert.gate(), expert.up()]),
            down: expert.down().format().to_string(),
            bytes: mlp.weight_bytes(),
            load_milliseconds: loaded.as_secs_f64() * 1e3,
        },
        input: (&input).into(),
        output: output.name().display().to_string(),
        tensors: WrittenTensor::all(&tensors),
        milliseconds: ran.as_secs_f64() * 1e3,
        platform: (&report).into(),
    };
    report.print(out)?;
    if arguments.json {
        out.document(&report)?;
    }
    Ok(())
}

impl RunReport {
    fn print(&self, out: &mut impl Write) -> Result<()> {
        writeln!(out, "{}", self.operation)?;
        writeln!(out, "platform {}", self.platform)?;
        writeln!(out, "sums     {}", self.sums)?;
        let Weights {
            hidden_size,
            intermediate_size,
            gate_up,
            bytes,
            load_milliseconds,
            ..
        } = &self.weights;
        writeln!(
            out,
            "weights  H={hidden_size} I={intermediate_size} {gate_up}, {:.1} MB loaded in \
             {load_milliseconds:.0} ms",
            *bytes as f64 / 1e6,
        )?;
        writeln!(out, "matmuls  of {}", self.matmuls)?;
        for t in &self.tensors {
            writeln!(out, "{:<8} {}", t.name, escape::shape(&t.shape))?;
        }
        let milliseconds = self.milliseconds;
        writeln!(out, "forward  {milliseconds:.3} ms, copies included")?;
        Ok(())
    }
}

/// How weights are stored: one format, or that of each.
fn formats(weights: &[&HostWeight<'_>]) -> String {
    let mut formats: Vec<_> = weights.iter().map(|w| w.format().to_string()).collect();
    formats.dedup();
    formats.join(" and ")
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

/// The rows of an input [.., H], and its shape without H.
fn rows(input: &HostTensor<Float>, hidden: usize) -> Result<(usize, &[usize])> {
    match input.shape.split_last() {
        Some((&last, leading)) if last == hidden => Ok((leading.iter().product(), leading)),
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
