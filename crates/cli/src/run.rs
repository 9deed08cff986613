use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use swiglu::mlp::{Checkpoint, MlpConfig, ModelConfig, SharedExpert};
use swiglu::{Float, HostBuffer, HostWeight, Limit, Report, bf16};

use crate::arguments::Run;
use crate::failure::{Failure, Result};
use crate::tensor_file::{self, HostTensor};

/// `swiglu run`.
pub fn run(arguments: &Run, out: &mut impl Write) -> Result<()> {
    let model = ModelConfig::from_file(&config_path(arguments)?)?;
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
    let (op, quant) = (config.activation()?, config.quantization()?);
    let x = tensor_file::read(&arguments.input)?;
    let [tokens, _] = input_shape(&x, config.hidden_size)?;

    let checkpoint = Checkpoint::open(&arguments.checkpoint)?;
    let expert = SharedExpert::load(&checkpoint, &config)?;
    let (gate_up, down) = (expert.gate().format(), expert.down().format());
    let dispatcher = arguments.device.dispatcher()?;
    let device = dispatcher.mlp_device(&config, gate_up, down)?;
    let start = Instant::now();
    read_ahead(&[expert.gate(), expert.up(), expert.down()]);
    let mut mlp = device.load_mlp(&config, &expert)?;
    let loaded = start.elapsed();

    let x = x.data.typed::<bf16>();
    let start = Instant::now();
    let y = mlp.forward(x)?;
    let ran = start.elapsed();

    let y = tensor(&y, tokens, config.hidden_size)?;
    let mut tensors = vec![("y", &y)];
    let stages;
    if arguments.stages {
        let (gate_up, act) = mlp.stages(x)?;
        let i = config.intermediate_size;
        stages = (tensor(&gate_up, tokens, 2 * i)?, tensor(&act, tokens, i)?);
        tensors.extend([("gate_up", &stages.0), ("act", &stages.1)]);
    }
    tensor_file::write(&arguments.output, &tensors)?;

    writeln!(out, "{op}")?;
    let report = Report {
        plan: mlp.plan(tokens),
        ..device.report().clone()
    };
    writeln!(out, "platform {report}")?;
    let accuracy = device.backend().accuracy();
    writeln!(out, "sums     {}", accuracy.accumulation)?;
    writeln!(
        out,
        "weights  H={} I={} {gate_up}, {:.1} MB loaded in {:.0} ms",
        config.hidden_size,
        config.intermediate_size,
        mlp.weight_bytes() as f64 / 1e6,
        loaded.as_secs_f64() * 1e3,
    )?;
    match &quant {
        Some(quant) => writeln!(out, "matmuls  of {quant}")?,
        None => writeln!(out, "matmuls  of bf16")?,
    }
    for (name, t) in &tensors {
        writeln!(out, "{name:<8} {:?}", t.shape)?;
    }
    let milliseconds = ran.as_secs_f64() * 1e3;
    writeln!(out, "forward  {milliseconds:.3} ms, copies included")?;
    Ok(())
}

/// The configuration that the caller names, or the one beside the checkpoint.
fn config_path(arguments: &Run) -> Result<PathBuf> {
    if let Some(path) = &arguments.config {
        return Ok(path.clone());
    }
    let checkpoint = &arguments.checkpoint;
    let folder = if checkpoint.is_dir() {
        checkpoint.as_path()
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

fn input_shape(x: &HostTensor<Float>, hidden: usize) -> Result<[usize; 2]> {
    match (x.stored, x.shape.as_slice()) {
        (Float::BF16, &[t, h]) if h == hidden => Ok([t, h]),
        (float, shape) => Err(Failure::Input(format!(
            "input: expected BF16 [T, {hidden}], got {float} {shape:?}"
        ))),
    }
}

fn tensor(data: &[bf16], rows: usize, cols: usize) -> Result<HostTensor> {
    Ok(HostTensor {
        stored: Float::BF16.into(),
        shape: vec![rows, cols],
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
