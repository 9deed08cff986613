use std::io::Write;
use std::time::{Duration, Instant};

use serde::Serialize;
use swiglu::mlp::{
    ActivationQuant, Checkpoint, MlpConfig, ModelConfig, SharedExpert,
    synthetic::{SyntheticConfig, synthetic_input, write_checkpoint},
};
use swiglu::{Quantization, Request, Support, bf16};
use swiglu_conformance::relative_error;

use crate::arguments::Demo;
use crate::chosen::Chosen;
use crate::console::Console;
use crate::failure::{Failure, Result};
use crate::files::TemporaryFolder;
use crate::timed::{self, MlpPasses, TimedBackend};
use crate::verify::compared;

mod moe;
mod oracle;
use oracle::Oracle;

/// The largest relative error that passes: a wrong clamp gives some hundred times as much.
const TOLERANCE: f64 = 3e-3;
const PREFIX: &str = "layers.3.ffn.shared_experts";
const SEED: u64 = 20_260_424;

/// What `swiglu demo` found, as JSON has it.
#[derive(Debug, Serialize)]
struct DemoReport {
    operation: String,
    hidden_size: usize,
    intermediate_size: usize,
    /// The part of gates and ups that the limit changes.
    gates_beyond: f64,
    ups_beyond: f64,
    /// The relative error that a lost clamp would make.
    error_without_clamp: f64,
    results: Vec<DemoRow>,
    /// What there is to say of each platform: its device, or why it or a part was not run.
    notes: Vec<String>,
    chosen: Chosen,
    /// Relative distances between the two kinds of activations: in the reference, and the largest
    /// of the platforms.
    bf16_to_fp8_reference: f64,
    bf16_to_fp8: f64,
    /// The largest relative error, and the largest that passes.
    worst_error: f64,
    tolerance: f64,
    passes: bool,
}

/// One number of tokens on one platform.
#[derive(Debug, Serialize)]
struct DemoRow {
    platform: String,
    activations: &'static str,
    tokens: u32,
    milliseconds: f64,
    tokens_per_second: f64,
    weights_gb_per_s: f64,
    /// To the reference.
    relative_error: f64,
    /// The distance to what bf16 activations gave; nothing for these themselves.
    to_bf16: Option<f64>,
}

/// `swiglu demo`.
pub fn demo(arguments: &Demo, out: &mut Console) -> Result<()> {
    out.reserve_for_json(arguments.json);
    let Some(&most) = arguments.tokens.iter().max() else {
        return Err(Failure::Input(
            "tokens: expected a number, got none".to_owned(),
        ));
    };
    if arguments.moe {
        return moe::demo(arguments, out);
    }
    let most = most as usize;
    // Before the work: a mistake should not have to wait for that.
    let dispatcher = arguments.device.dispatcher()?;
    let folder = TemporaryFolder::new()?;
    write_checkpoint(folder.path(), &SyntheticConfig::flash(SEED))?;
    let model = ModelConfig::from_file(&folder.path().join("config.json"))?;
    let config = model.mlp_config(PREFIX)?;
    let op = config.activation()?;
    let checkpoint = Checkpoint::open(folder.path())?;
    let expert = SharedExpert::load(&checkpoint, &config)?;
    // Devices that are only looked at are closed before one is opened again under its own type.
    let chosen = dispatcher.mlp_device(&config, expert.gate().format(), expert.down().format())?;
    let chosen = chosen.report().clone();
    writeln!(
        out,
        "DeepSeek-V4-Flash shared expert: H={} I={}, FP8 weights in 128 x 128 blocks, {op}",
        config.hidden_size, config.intermediate_size
    )?;

    let x = synthetic_input(most, config.hidden_size, SEED);
    let mode = |activations| Mode::new(activations, &config, &expert, &x);
    let modes = [
        mode(ActivationQuant::None)?,
        mode(ActivationQuant::Fp8Block)?,
    ];
    let exact = &modes[0].reference;
    let unclamped = MlpConfig {
        limit: None,
        ..config.clone()
    };
    let few = &x[..config.hidden_size * most.min(2)];
    let without = Oracle::run(&unclamped, &expert, few)?;
    let error_without_clamp = relative_error(&without.y, &exact.y[..few.len()]);
    writeln!(
        out,
        "beyond the limit: {:.1} % of gates, {:.1} % of ups; without the clamp the error would be {:.1e}\n",
        100.0 * exact.gates_beyond,
        100.0 * exact.ups_beyond,
        error_without_clamp,
    )?;
    writeln!(
        out,
        "{:<10} {:<11} {:>6} {:>11} {:>11} {:>12} {:>9} {:>9}",
        "platform", "activations", "tokens", "time", "tokens/s", "weights GB/s", "error", "to bf16"
    )?;

    let mut trial = Trial {
        tokens: &arguments.tokens,
        x: &x,
        expert: &expert,
        modes: &modes,
        notes: Vec::new(),
        results: Vec::new(),
    };
    for (platform, opened) in dispatcher.probe(compared(&dispatcher)) {
        match opened.map(drop) {
            Ok(()) => {
                let backend = timed::open(platform, &dispatcher.dispatch().open, None)?;
                trial.run(platform, &*backend, out)?;
            }
            Err(reason) => trial.notes.push(format!("{platform}: not run, {reason}")),
        }
    }
    let Trial { notes, results, .. } = trial;
    let worst = results.iter().map(|r| r.relative_error).fold(0.0, larger);
    let between = results.iter().filter_map(|r| r.to_bf16).fold(0.0, larger);
    let report = DemoReport {
        operation: op.to_string(),
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        gates_beyond: exact.gates_beyond,
        ups_beyond: exact.ups_beyond,
        error_without_clamp,
        results,
        notes,
        chosen: (&chosen).into(),
        bf16_to_fp8_reference: relative_error(&modes[1].reference.y, &exact.y),
        bf16_to_fp8: between,
        worst_error: worst,
        tolerance: TOLERANCE,
        passes: worst <= TOLERANCE,
    };
    report.print_summary(out)?;
    if arguments.json {
        out.document(&report)?;
    }
    report.outcome()
}

impl DemoReport {
    /// What follows the results.
    fn print_summary(&self, out: &mut impl Write) -> Result<()> {
        writeln!(out)?;
        for line in &self.notes {
            writeln!(out, "{line}")?;
        }
        writeln!(out, "chosen: {}", self.chosen)?;
        writeln!(
            out,
            "from bf16 to fp8 activations: {:.1e} in the reference, {:.1e} at most here",
            self.bf16_to_fp8_reference, self.bf16_to_fp8,
        )?;
        if self.passes {
            writeln!(
                out,
                "every result agrees with the reference: {:.1e} at most, of {:.0e}",
                self.worst_error, self.tolerance
            )?;
        }
        Ok(())
    }

    fn outcome(&self) -> Result<()> {
        if self.passes {
            return Ok(());
        }
        Err(Failure::Check(format!(
            "relative error {:.1e}, expected at most {:.0e}",
            self.worst_error, self.tolerance
        )))
    }
}

impl DemoRow {
    fn print(&self, out: &mut impl Write) -> Result<()> {
        write!(
            out,
            "{:<10} {:<11} {:>6} {:>8.3} ms {:>11.0} {:>12.1} {:>9.1e}",
            self.platform,
            self.activations,
            self.tokens,
            self.milliseconds,
            self.tokens_per_second,
            self.weights_gb_per_s,
            self.relative_error,
        )?;
        match self.to_bf16 {
            Some(between) => writeln!(out, " {between:>9.1e}")?,
            None => writeln!(out)?,
        }
        Ok(())
    }
}

/// The MLP with one kind of activations, and what the reference makes of the input.
struct Mode {
    config: MlpConfig,
    quant: Option<Quantization>,
    /// What it asks of a backend.
    requests: Vec<Request>,
    reference: Oracle,
}

impl Mode {
    fn new(
        activation_quant: ActivationQuant,
        config: &MlpConfig,
        expert: &SharedExpert<'_>,
        x: &[bf16],
    ) -> Result<Self> {
        let config = MlpConfig {
            activation_quant,
            ..config.clone()
        };
        Ok(Self {
            quant: config.quantization()?,
            requests: config.requests(expert.gate().format(), expert.down().format())?,
            reference: Oracle::run(&config, expert, x)?,
            config,
        })
    }

    const fn name(&self) -> &'static str {
        match self.quant {
            None => "bf16",
            Some(_) => "fp8",
        }
    }

    /// Whether a backend runs it, and how.
    fn support(&self, backend: &dyn TimedBackend) -> Support {
        let answers = self.requests.iter().map(|r| backend.supports(r));
        answers.fold(Support::Native, Support::and)
    }
}

/// What every platform runs, and what came of it so far.
struct Trial<'a> {
    tokens: &'a [u32],
    x: &'a [bf16],
    expert: &'a SharedExpert<'a>,
    /// bf16 first.
    modes: &'a [Mode; 2],
    notes: Vec<String>,
    results: Vec<DemoRow>,
}

impl Trial<'_> {
    fn run(
        &mut self,
        platform: &str,
        backend: &dyn TimedBackend,
        out: &mut impl Write,
    ) -> Result<()> {
        self.notes
            .push(format!("{platform}: {}", backend.description()));
        let mut plain: Vec<Vec<bf16>> = Vec::new();
        for mode in self.modes {
            match mode.support(backend) {
                Support::No(reason) => {
                    let note = format!("{platform}: {} not run, {reason}", mode.name());
                    self.notes.push(note);
                    continue;
                }
                Support::Emulated(how) => {
                    let note = format!("{platform}: {} emulated, {how}", mode.name());
                    self.notes.push(note);
                }
                Support::Native => {}
            }
            let mut mlp = backend.load_mlp(&mode.config, self.expert)?;
            for (n, &tokens) in self.tokens.iter().enumerate() {
                let count = tokens as usize * mode.config.hidden_size;
                let (y, time) = time(&mut *mlp, &self.x[..count])?;
                let seconds = time.as_secs_f64();
                let plain_y = mode.quant.and(plain.get(n));
                let row = DemoRow {
                    platform: platform.to_owned(),
                    activations: mode.name(),
                    tokens,
                    milliseconds: seconds * 1e3,
                    tokens_per_second: f64::from(tokens) / seconds,
                    weights_gb_per_s: mlp.weight_bytes() as f64 / seconds / 1e9,
                    relative_error: relative_error(&y, &mode.reference.y[..count]),
                    to_bf16: plain_y.map(|plain| relative_error(&y, plain)),
                };
                row.print(out)?;
                self.results.push(row);
                if mode.quant.is_none() {
                    plain.push(y);
                }
            }
        }
        Ok(())
    }
}

/// Not `max`, which would drop a NaN.
fn larger(worst: f64, error: f64) -> f64 {
    if error > worst || error.is_nan() {
        error
    } else {
        worst
    }
}

/// The output for `x`, and the median time of a forward pass, copies to and from the host left out.
fn time(mlp: &mut dyn MlpPasses, x: &[bf16]) -> Result<(Vec<bf16>, Duration)> {
    const BUDGET: Duration = Duration::from_millis(400);
    mlp.write_input(x)?;
    mlp.run()?;
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < 3 || (start.elapsed() < BUDGET && times.len() < 1000) {
        let start = Instant::now();
        mlp.run()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok((mlp.read_output()?, times[times.len() / 2]))
}
