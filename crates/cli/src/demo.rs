use std::io::Write;
use std::time::{Duration, Instant};

use swiglu::mlp::{
    Checkpoint, MlpConfig, ModelConfig, SharedExpert,
    synthetic::{SyntheticConfig, synthetic_input, write_checkpoint},
};
use swiglu::{AnyMlp, DType, bf16};

use crate::act::dispatcher;
use crate::arguments::Demo;
use crate::failure::{Failure, Result};

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
    let config = model.mlp_config(PREFIX);
    let op = config.activation()?;
    let checkpoint = Checkpoint::open(folder.path())?;
    let expert = SharedExpert::load(&checkpoint, &config)?;
    writeln!(
        out,
        "DeepSeek-V4-Flash shared expert: H={} I={}, FP8 weights in 128 x 128 blocks, {op}",
        config.hidden_size, config.intermediate_size
    )?;

    let x = synthetic_input(most, config.hidden_size, SEED);
    let reference = Oracle::run(&config, &expert, &x)?;
    let unclamped = MlpConfig {
        limit: None,
        ..config.clone()
    };
    let few = &x[..config.hidden_size * most.min(2)];
    let without = Oracle::run(&unclamped, &expert, few)?;
    writeln!(
        out,
        "beyond the limit: {:.1} % of gates, {:.1} % of ups; without the clamp the error would be {:.1e}\n",
        100.0 * reference.gates_beyond,
        100.0 * reference.ups_beyond,
        relative_error(&without.y, &reference.y[..few.len()]),
    )?;
    writeln!(
        out,
        "{:<10} {:>6} {:>11} {:>11} {:>12} {:>10}",
        "platform", "tokens", "time", "tokens/s", "weights GB/s", "error"
    )?;

    let dispatcher = dispatcher(arguments.platform.as_deref())?;
    // The reference would only be compared with itself.
    let chosen = dispatcher.mlp_device(&op, DType::F8E4M3)?;
    let asked = arguments.platform.as_deref().filter(|p| *p != "auto");
    let mut absent = Vec::new();
    let mut worst = 0.0_f64;
    for (platform, opened) in dispatcher.registry().probe_all() {
        if asked.map_or(platform == "reference", |p| p != platform) {
            continue;
        }
        let backend = match opened {
            Ok(backend) => backend,
            Err(reason) => {
                absent.push(format!("{platform}: not run, {reason}"));
                continue;
            }
        };
        let device = backend.description();
        let mut mlp = backend.load_mlp(&config, &expert)?;
        for &tokens in &arguments.tokens {
            let count = tokens as usize * config.hidden_size;
            let (y, time) = time(&mut *mlp, &x[..count])?;
            let error = relative_error(&y, &reference.y[..count]);
            // Not `max`, which would drop a NaN.
            worst = if error > worst || error.is_nan() {
                error
            } else {
                worst
            };
            let seconds = time.as_secs_f64();
            writeln!(
                out,
                "{platform:<10} {tokens:>6} {:>8.3} ms {:>11.0} {:>12.1} {error:>10.1e}",
                seconds * 1e3,
                f64::from(tokens) / seconds,
                mlp.weight_bytes() as f64 / seconds / 1e9,
            )?;
        }
        absent.push(format!("{platform}: {device}"));
    }
    writeln!(out)?;
    for line in absent {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "chosen: {}", chosen.report())?;
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

/// The output for `x`, and the median time of a forward pass, copies to and from the host left out.
fn time(mlp: &mut dyn AnyMlp, x: &[bf16]) -> Result<(Vec<bf16>, Duration)> {
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

/// ‖got - expected‖ / ‖expected‖.
fn relative_error(got: &[bf16], expected: &[bf16]) -> f64 {
    let square = |x: f64| x * x;
    let (mut difference, mut norm) = (0.0, 0.0);
    for (g, e) in got.iter().zip(expected) {
        difference += square(g.to_f64() - e.to_f64());
        norm += square(e.to_f64());
    }
    (difference / norm).sqrt()
}
