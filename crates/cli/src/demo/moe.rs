//! `swiglu demo --moe`: a whole layer of V4-Flash's shape, with few experts, on every platform.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use swiglu::mlp::synthetic::{SyntheticMoe, synthetic_input, write_moe_checkpoint};
use swiglu::mlp::{ActivationQuant, Checkpoint, ModelConfig, MoeConfig, MoeWeights};
use swiglu::reference::Reference;
use swiglu::{AnyBackend, HostTokens, Moe, Support, bf16};
use swiglu_conformance::relative_error;

use super::SEED;
use crate::arguments::Demo;
use crate::console::Console;
use crate::failure::{Failure, Result};
use crate::files::TemporaryFolder;
use crate::verify::compared;

const EXPERTS: usize = 8;
/// Tokens that the reference computes too; of others it is seen that they run.
const CHECKED: usize = 4;
/// The largest relative error of a token that passes, with bf16 and with FP8 activations: weights
/// that multiply behind the last matmul give 1.8e-3 and more, a wrong clamp far more.
const TOLERANCES: [f64; 2] = [1.5e-3, 4e-3];

/// What `swiglu demo --moe` found, as JSON has it.
#[derive(Debug, Serialize)]
struct MoeDemoReport {
    operation: String,
    routing: String,
    hidden_size: usize,
    intermediate_size: usize,
    expert_bytes: usize,
    results: Vec<MoeDemoRow>,
    notes: Vec<String>,
    passes: bool,
}

#[derive(Debug, Serialize)]
struct MoeDemoRow {
    platform: String,
    activations: &'static str,
    tokens: u32,
    /// Copies to and from the device included.
    milliseconds: f64,
    /// The largest of the tokens that were compared.
    relative_error: f64,
    tolerance: f64,
}

/// One kind of activations, and what the reference makes of the first tokens.
struct Mode {
    name: &'static str,
    config: MoeConfig,
    reference: Vec<bf16>,
    tolerance: f64,
}

/// `swiglu demo --moe`.
pub fn demo(arguments: &Demo, out: &mut Console) -> Result<()> {
    let dispatcher = arguments.device.dispatcher()?;
    let folder = TemporaryFolder::new()?;
    write_moe_checkpoint(folder.path(), &SyntheticMoe::flash(EXPERTS, SEED))?;
    let model = ModelConfig::from_file(&folder.path().join("config.json"))?;
    let plain = model.moe_config("layers.3.ffn")?;
    let checkpoint = Checkpoint::open(folder.path())?;
    let weights = MoeWeights::load(&checkpoint, &plain)?;
    let (hidden, op) = (plain.shared.hidden_size, plain.activation()?);
    let routing = *weights.routing();
    writeln!(
        out,
        "DeepSeek-V4-Flash layer with {EXPERTS} of its experts: H={hidden} I={}, {}, {routing}, {op}",
        plain.intermediate_size,
        weights.formats()[0],
    )?;
    let most = arguments.tokens.iter().copied().max().unwrap_or(1) as usize;
    let x = synthetic_input(most, hidden, SEED);
    let checked = &x[..hidden * most.min(CHECKED)];
    let reference = AnyBackend::new(Reference);
    let mode = |name, activation_quant, tolerance| {
        let mut config = plain.clone();
        config.shared.activation_quant = activation_quant;
        let mut layer = reference.load_moe(&config, &weights)?;
        Ok::<_, Failure>(Mode {
            name,
            reference: layer.forward(checked, HostTokens::default())?,
            config,
            tolerance,
        })
    };
    let modes = [
        mode("bf16", ActivationQuant::None, TOLERANCES[0])?,
        mode("fp8", ActivationQuant::Fp8Block, TOLERANCES[1])?,
    ];
    writeln!(
        out,
        "{:<10} {:<11} {:>6} {:>11} {:>9} {:>9}",
        "platform", "activations", "tokens", "time", "error", "at most"
    )?;
    let (mut results, mut notes) = (Vec::new(), Vec::new());
    let mut expert_bytes = 0;
    for (platform, opened) in dispatcher.probe(compared(&dispatcher)) {
        let backend: Arc<AnyBackend> = match opened {
            Ok(backend) => backend,
            Err(reason) => {
                notes.push(format!("{platform}: not run, {reason}"));
                continue;
            }
        };
        notes.push(format!("{platform}: {}", backend.description()));
        for mode in &modes {
            let requests = weights.requests(&mode.config)?;
            let answers = requests.iter().map(|r| backend.supports(r));
            match answers.fold(Support::Native, Support::and) {
                Support::No(reason) => {
                    notes.push(format!("{platform}: {} not run, {reason}", mode.name));
                    continue;
                }
                Support::Emulated(how) => {
                    notes.push(format!("{platform}: {} emulated, {how}", mode.name));
                }
                Support::Native => {}
            }
            let mut layer = backend.load_moe(&mode.config, &weights)?;
            expert_bytes = layer.expert_bytes();
            for &tokens in &arguments.tokens {
                let x = &x[..hidden * tokens as usize];
                let (y, time) = timed(&mut layer, x)?;
                let row = MoeDemoRow {
                    platform: platform.to_owned(),
                    activations: mode.name,
                    tokens,
                    milliseconds: time.as_secs_f64() * 1e3,
                    relative_error: worst(&y, &mode.reference, hidden),
                    tolerance: mode.tolerance,
                };
                writeln!(
                    out,
                    "{:<10} {:<11} {:>6} {:>8.3} ms {:>9.1e} {:>9.1e}",
                    row.platform,
                    row.activations,
                    row.tokens,
                    row.milliseconds,
                    row.relative_error,
                    row.tolerance
                )?;
                results.push(row);
            }
        }
    }
    let wrong = results
        .iter()
        .find(|r| r.relative_error.is_nan() || r.relative_error > r.tolerance);
    let failure = wrong.map(|r| {
        let (error, tolerance) = (r.relative_error, r.tolerance);
        let message =
            format!("relative error {error:.1e} of a token, expected at most {tolerance:.1e}");
        Failure::Check(message)
    });
    let report = MoeDemoReport {
        operation: op.to_string(),
        routing: routing.to_string(),
        hidden_size: hidden,
        intermediate_size: plain.intermediate_size,
        expert_bytes,
        passes: failure.is_none(),
        results,
        notes,
    };
    writeln!(out)?;
    for note in &report.notes {
        writeln!(out, "{note}")?;
    }
    if report.passes && !report.results.is_empty() {
        writeln!(out, "every compared token agrees with the reference")?;
    }
    if arguments.json {
        out.document(&report)?;
    }
    failure.map_or(Ok(()), Err)
}

/// The largest relative error of a token.
fn worst(got: &[bf16], expected: &[bf16], hidden: usize) -> f64 {
    let pairs = got.chunks_exact(hidden).zip(expected.chunks_exact(hidden));
    let errors = pairs.map(|(got, expected)| relative_error(got, expected));
    // Not `max`, which would drop a NaN.
    errors.fold(
        0.0,
        |worst, e| if e > worst || e.is_nan() { e } else { worst },
    )
}

/// The output, and the median time of a pass.
fn timed(layer: &mut Moe, x: &[bf16]) -> Result<(Vec<bf16>, Duration)> {
    const BUDGET: Duration = Duration::from_millis(400);
    let mut y = layer.forward(x, HostTokens::default())?;
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < 3 || (start.elapsed() < BUDGET && times.len() < 1000) {
        let start = Instant::now();
        layer.forward_into(x, HostTokens::default(), &mut y)?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok((y, times[times.len() / 2]))
}
