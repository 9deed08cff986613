use std::io::Write;
use std::time::Duration;

use serde::Serialize;
use swiglu::mlp::synthetic::{SyntheticConfig, synthetic_input, write_checkpoint};
use swiglu::mlp::{Checkpoint, MlpConfig, ModelConfig, SharedExpert};
use swiglu::{
    Element, GatedActivation, Parameters, Report, Request, WeightFormat, bf16, with_float,
};
use swiglu_conformance::timing;

use crate::act;
use crate::arguments::{Bench, ShapeArgument, TypeArgument};
use crate::chosen::Chosen;
use crate::console::Console;
use crate::failure::{Failure, Result};
use crate::files::{Inputs, OutputFile, TemporaryFolder};
use crate::timed::{self, MlpPasses, TimedAct, TimedBackend};

mod limits;
mod moe;
mod plot;
mod report;

use limits::Limits;
use report::{Line, Row};

const SEED: u64 = 20_260_424;
/// The last cache's size where nothing says it: no GPU's is larger.
const LARGEST_CACHE: usize = 256 << 20;
const MOST_COPIES: usize = 64;

/// What `swiglu bench` measured, as JSON has it.
#[derive(Debug, Serialize)]
struct BenchReport {
    platform: Chosen,
    device: String,
    limits: Limits,
    rows: Vec<Line>,
    /// Nothing where none was asked for.
    plot: Option<String>,
}

/// `swiglu bench`.
pub fn bench(arguments: &Bench, out: &mut Console) -> Result<()> {
    if arguments.moe {
        out.reserve_for_json(arguments.json);
        return moe::bench(arguments, out);
    }
    let subjects = subjects(arguments)?;
    let plot = arguments.plot.as_deref();
    let plot = plot.map(|path| OutputFile::new("plot", path, &Inputs::default()));
    let plot = plot.transpose()?;
    out.reserve_for_json(arguments.json);
    if let Some(file) = &plot {
        if arguments.csv && file.is_stdout() {
            let message =
                "plot: expected a file with --csv, got standard output, which holds the values";
            return Err(Failure::Input(message.to_owned()));
        }
        out.reserve_for(file)?;
    }
    let (backend, chosen) = backend(arguments, &subjects)?;
    let (platform, description) = (chosen.chosen.as_str(), backend.description());
    let accumulation = backend.accuracy().accumulation;
    let before = Limits::measure(platform, accumulation);
    let bench = Timer {
        backend: &*backend,
        tokens: &arguments.tokens,
        shape: arguments.shape,
        budget: Duration::from_secs_f64(arguments.seconds),
        cache: last_cache(platform),
    };
    if !arguments.csv {
        writeln!(out, "platform {chosen}")?;
        writeln!(out, "device   {description}")?;
        writeln!(
            out,
            "method   passes take copies of weights, inputs and outputs in turn, {:.0} MB of them where \
             {MOST_COPIES} reach that (cold); a sample is a batch of passes of at least 2 ms, \
             enqueued and waited for, copies to and from the host left out",
            2.0 * bench.cache as f64 / 1e6,
        )?;
    }
    let mut rows = Vec::new();
    for subject in &subjects {
        rows.extend(match subject {
            Subject::Act(act) => bench.act(act)?,
            Subject::Mlp { weights, config } => bench.mlp(weights, config)?,
        });
    }
    let limits = before.or_better(Limits::measure(platform, accumulation));
    if arguments.csv {
        report::csv(platform, &description, &rows, &limits, out)?;
    } else {
        writeln!(out, "limits   {}", limits.describe(platform))?;
        report::table(&rows, &limits, out)?;
    }
    if let Some(file) = &plot {
        plot::draw(file, &format!("{platform}: {description}"), &rows, &limits)?;
        if !arguments.csv {
            writeln!(out, "\nplot     {}", file.name().display())?;
        }
    }
    if arguments.json {
        out.document(&BenchReport {
            platform: (&chosen).into(),
            device: description,
            rows: rows.iter().map(|row| row.line(&limits)).collect(),
            limits,
            plot: plot.map(|file| file.name().display().to_string()),
        })?;
    }
    Ok(())
}

/// What is timed.
enum Subject {
    /// The activation; its rows are those of the numbers of tokens in turn.
    Act(TimedAct),
    Mlp {
        weights: SyntheticConfig,
        config: MlpConfig,
    },
}

impl Subject {
    /// What it asks of a backend.
    fn requests(&self) -> Result<Vec<Request>> {
        Ok(match self {
            Self::Act(TimedAct {
                op, quant, float, ..
            }) => vec![act::request(op, quant.as_ref(), *float)],
            Self::Mlp { weights, config } => {
                let format = weight_format(weights);
                config.requests(format, format)?
            }
        })
    }
}

fn subjects(arguments: &Bench) -> Result<Vec<Subject>> {
    let both = arguments.op.is_none() && !arguments.mlp;
    let quant = arguments.quant.quantization()?;
    let ShapeArgument {
        hidden,
        intermediate,
        block,
    } = arguments.shape;
    let mut subjects = Vec::new();
    if arguments.op.is_some() || both {
        let Some(float) = arguments.dtype.unwrap_or(TypeArgument::Bf16).float() else {
            let message = "dtype: expected f32, f16 or bf16 for an activation, got fp8";
            return Err(Failure::Input(message.to_owned()));
        };
        let name = arguments.op.as_deref().unwrap_or("deepseek_v4");
        subjects.push(Subject::Act(TimedAct {
            op: GatedActivation::from_name(name, &Parameters::default())?,
            quant,
            float,
            rows: 0,
            d: intermediate,
        }));
    } else if quant.is_some() {
        let message = "quant: expected --op with it, got --mlp, whose option is --activations";
        return Err(Failure::Input(message.to_owned()));
    }
    if arguments.mlp || both {
        let format = arguments.dtype.unwrap_or(TypeArgument::Fp8);
        let weights = SyntheticConfig {
            hidden,
            intermediate,
            block,
            weights: format.float(),
            ..SyntheticConfig::flash(SEED)
        };
        let model = ModelConfig::from_json(&weights.config_json())?;
        let config = MlpConfig {
            activation_quant: arguments.activations.unwrap_or_default().into(),
            ..model.mlp_config(&weights.prefix())?
        };
        subjects.push(Subject::Mlp { weights, config });
    }
    Ok(subjects)
}

/// How a made-up checkpoint stores its weights.
fn weight_format(weights: &SyntheticConfig) -> WeightFormat {
    let fp8 = WeightFormat::Fp8 {
        scales: weights.scales,
        block: [weights.block; 2],
    };
    weights.weights.map_or(fp8, WeightFormat::Float)
}

/// The backend that runs all that is timed, and why it is that one.
fn backend(arguments: &Bench, subjects: &[Subject]) -> Result<(Box<dyn TimedBackend>, Report)> {
    let requests: Vec<_> = subjects
        .iter()
        .map(Subject::requests)
        .collect::<Result<_>>()?;
    let dispatcher = arguments.device.dispatcher()?;
    // The device that was chosen is closed before it is opened again under its own type.
    let report = dispatcher.device_for(&requests.concat())?.report().clone();
    let backend = timed::open(&report.chosen, &dispatcher.dispatch().open)?;
    Ok((backend, report))
}

/// The size of the cache before memory, in bytes.
fn last_cache(platform: &str) -> usize {
    match platform {
        #[cfg(feature = "cpu")]
        "cpu" => swiglu::cpu::limits::last_level_cache(),
        _ => LARGEST_CACHE,
    }
}

/// What every line shares.
struct Timer<'a> {
    backend: &'a dyn TimedBackend,
    tokens: &'a [u32],
    shape: ShapeArgument,
    budget: Duration,
    cache: usize,
}

impl Timer<'_> {
    /// How many copies of `bytes` bytes are taken in turn, and whether no cache holds them.
    fn copies(&self, bytes: usize) -> (usize, bool) {
        let cold = 2 * self.cache;
        let copies = cold.div_ceil(bytes.max(1)).clamp(1, MOST_COPIES);
        (copies, copies * bytes >= cold)
    }

    fn act(&self, act: &TimedAct) -> Result<Vec<Row>> {
        let row = |&tokens: &u32| {
            let act = TimedAct {
                rows: tokens as usize,
                ..*act
            };
            let TimedAct { op, d, .. } = act;
            let bytes = act.bytes();
            let (copies, cold) = self.copies(bytes);
            let mut passes = self.backend.load_act(&act, &act_input(&act), copies)?;
            let timing = timing::time(self.budget, copies, |count| {
                for _ in 0..count {
                    passes.enqueue()?;
                }
                passes.wait()
            })?;
            Ok(Row {
                what: match act.quant {
                    Some(quant) => format!("{op} d={d}, {quant}"),
                    None => format!("{op} d={d}"),
                },
                dtype: act.float.name(),
                tokens: act.rows,
                copies,
                cold,
                timing,
                bytes,
                flops: 0.0,
            })
        };
        self.tokens.iter().map(row).collect()
    }

    fn mlp(&self, weights: &SyntheticConfig, config: &MlpConfig) -> Result<Vec<Row>> {
        let folder = TemporaryFolder::new()?;
        write_checkpoint(folder.path(), weights)?;
        let checkpoint = Checkpoint::open(folder.path())?;
        let expert = SharedExpert::load(&checkpoint, config)?;
        let load = || self.backend.load_mlp(config, &expert);
        let mut mlps = vec![load()?];
        let bytes = mlps[0].weight_bytes();
        let (copies, cold) = self.copies(bytes);
        for _ in 1..copies {
            mlps.push(load()?);
        }
        let ShapeArgument {
            hidden: h,
            intermediate: i,
            ..
        } = self.shape;
        let inputs_are = match config.quantization()? {
            Some(quant) => quant.to_string(),
            None => "bf16".to_owned(),
        };
        let mut row = |&tokens: &u32| {
            let tokens = tokens as usize;
            let x = inputs(tokens, h);
            for mlp in &mut mlps {
                mlp.write_input(&x)?;
            }
            let mut next = 0;
            let timing = timing::time(self.budget, copies, |passes| {
                run(&mut mlps, &mut next, passes)
            })?;
            Ok(Row {
                what: format!("mlp H={h} I={i}, matmuls of {inputs_are}"),
                dtype: weight_format(weights).name(),
                tokens,
                copies,
                cold,
                timing,
                bytes,
                flops: 6.0 * tokens as f64 * h as f64 * i as f64,
            })
        };
        self.tokens.iter().map(&mut row).collect()
    }
}

/// Passes of the MLPs in turn, from `next` on.
fn run(mlps: &mut [Box<dyn MlpPasses>], next: &mut usize, passes: usize) -> Result<()> {
    for _ in 0..passes {
        mlps[*next].enqueue()?;
        *next = (*next + 1) % mlps.len();
    }
    mlps[0].wait()
}

/// Rows of random numbers, of which the first few come again and again: to make them takes longer
/// than to use them.
fn inputs(rows: usize, cols: usize) -> Vec<bf16> {
    let few = synthetic_input(rows.min(64), cols, SEED);
    few.into_iter().cycle().take(rows * cols).collect()
}

/// Gates and ups of which some lie beyond any limit.
fn act_input(act: &TimedAct) -> Vec<u8> {
    fn wide<T: Element>(x: &[bf16]) -> Vec<u8> {
        let x: Vec<T> = x.iter().map(|x| T::from_f32(5.0 * x.to_f32())).collect();
        bytemuck::cast_slice(&x).to_vec()
    }
    let x = inputs(act.rows, 2 * act.d);
    with_float!(act.float, T => wide::<T>(&x))
}
