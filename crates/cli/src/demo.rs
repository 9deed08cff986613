use std::io::Write;
use std::time::{Duration, Instant};

use swiglu::mlp::{
    ActivationQuant, Checkpoint, MlpConfig, ModelConfig, SharedExpert,
    synthetic::{SyntheticConfig, synthetic_input, write_checkpoint},
};
use swiglu::{Quantization, Request, Support, bf16};
use swiglu_conformance::relative_error;

use crate::arguments::Demo;
use crate::failure::{Failure, Result};
use crate::timed::{self, MlpPasses, TimedBackend};
use crate::verify::compared;

mod oracle;
use oracle::Oracle;

/// The largest relative error that passes: a wrong clamp gives some hundred times as much.
const TOLERANCE: f64 = 3e-3;
const PREFIX: &str = "layers.3.ffn.shared_experts";
const SEED: u64 = 20_260_424;

/// `swiglu demo`.
pub fn demo(arguments: &Demo, out: &mut impl Write) -> Result<()> {
    let Some(&most) = arguments.tokens.iter().max() else {
        return Err(Failure::Input(
            "tokens: expected a number, got none".to_owned(),
        ));
    };
    let most = most as usize;
    let folder = tempfile::tempdir()?;
    write_checkpoint(folder.path(), &SyntheticConfig::flash(SEED))?;
    let model = ModelConfig::from_file(&folder.path().join("config.json"))?;
    let config = model.mlp_config(PREFIX)?;
    let op = config.activation()?;
    let checkpoint = Checkpoint::open(folder.path())?;
    let expert = SharedExpert::load(&checkpoint, &config)?;
    let dispatcher = arguments.device.dispatcher()?;
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
    writeln!(
        out,
        "beyond the limit: {:.1} % of gates, {:.1} % of ups; without the clamp the error would be {:.1e}\n",
        100.0 * exact.gates_beyond,
        100.0 * exact.ups_beyond,
        relative_error(&without.y, &exact.y[..few.len()]),
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
        worst: 0.0,
        between: 0.0,
    };
    for (platform, opened) in dispatcher.probe(compared(&dispatcher)) {
        match opened.map(drop) {
            Ok(()) => {
                let backend = timed::open(platform, &dispatcher.dispatch().open)?;
                trial.run(platform, &*backend, out)?;
            }
            Err(reason) => trial.notes.push(format!("{platform}: not run, {reason}")),
        }
    }
    let Trial {
        notes,
        worst,
        between,
        ..
    } = trial;
    writeln!(out)?;
    for line in notes {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "chosen: {chosen}")?;
    writeln!(
        out,
        "from bf16 to fp8 activations: {:.1e} in the reference, {between:.1e} at most here",
        relative_error(&modes[1].reference.y, &exact.y),
    )?;
    if worst <= TOLERANCE {
        writeln!(
            out,
            "every result agrees with the reference: {worst:.1e} at most, of {TOLERANCE:.0e}"
        )?;
        Ok(())
    } else {
        Err(Failure::Check(format!(
            "relative error {worst:.1e}, expected at most {TOLERANCE:.0e}"
        )))
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
    /// The largest relative error to the reference.
    worst: f64,
    /// The largest between the modes.
    between: f64,
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
                let error = relative_error(&y, &mode.reference.y[..count]);
                self.worst = larger(self.worst, error);
                let seconds = time.as_secs_f64();
                write!(
                    out,
                    "{platform:<10} {:<11} {tokens:>6} {:>8.3} ms {:>11.0} {:>12.1} {error:>9.1e}",
                    mode.name(),
                    seconds * 1e3,
                    f64::from(tokens) / seconds,
                    mlp.weight_bytes() as f64 / seconds / 1e9,
                )?;
                match (mode.quant, plain.get(n)) {
                    (Some(_), Some(plain)) => {
                        let between = relative_error(&y, plain);
                        self.between = larger(self.between, between);
                        writeln!(out, " {between:>9.1e}")?;
                    }
                    _ => writeln!(out)?,
                }
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
