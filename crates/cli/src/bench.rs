use std::io::Write;
use std::time::Duration;

use serde::Serialize;
use swiglu::mlp::synthetic::{SyntheticConfig, synthetic_input, write_checkpoint};
use swiglu::mlp::{Checkpoint, MlpConfig, ModelConfig, SharedExpert};
use swiglu::{
    Accumulation, Element, GatedActivation, OpenOptions, Parameters, Report, Request, WeightFormat,
    bf16, with_float,
};
use swiglu_conformance::timing::{self, Timing};

use crate::act;
use crate::arguments::{Bench, ShapeArgument, TypeArgument};
use crate::chosen::Chosen;
use crate::console::Console;
use crate::failure::{Failure, Result};
use crate::files::{Inputs, OutputFile, TemporaryFolder};
use crate::timed::{self, Beyond, Chain, MlpPasses, TimedAct, TimedBackend};

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
/// The least passes of a graph, so that its own launch is little of the time of a pass.
const GRAPH: usize = 32;

/// What `swiglu bench` measured, as JSON has it.
#[derive(Debug, Serialize)]
struct BenchReport {
    platform: Chosen,
    device: String,
    /// Whether passes were timed in graphs.
    graph: bool,
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
    let (backend, chosen, options) = backend(arguments, &subjects)?;
    let (platform, description) = (chosen.chosen.as_str(), backend.description());
    let graphs = arguments.graph.then(|| graphs(&*backend, platform));
    let graphs = graphs.transpose()?;
    let accumulation = backend.accuracy().accumulation;
    let measure = || Limits::measure(platform, &options, accumulation);
    let before = measure()?;
    let bench = Timer {
        backend: &*backend,
        tokens: &arguments.tokens,
        shape: arguments.shape,
        budget: Duration::from_secs_f64(arguments.seconds),
        cache: last_cache(platform),
        graphs,
    };
    if !arguments.csv {
        writeln!(out, "platform {chosen}")?;
        writeln!(out, "device   {description}")?;
        writeln!(
            out,
            "method   passes take copies of weights, inputs and outputs in turn, {:.0} MB of them where \
             {MOST_COPIES} reach that (cold); a sample is a batch of {} of at least 2 ms, \
             enqueued and waited for, copies to and from the host left out",
            2.0 * bench.cache as f64 / 1e6,
            match bench.graphs {
                Some(_) => "CUDA graphs of passes, whose launches overlap,",
                None => "passes",
            },
        )?;
    }
    let mut rows = Vec::new();
    for subject in &subjects {
        rows.extend(match subject {
            Subject::Act(act) => bench.act(act)?,
            Subject::Mlp { weights, config } => bench.mlp(weights, config)?,
        });
    }
    let limits = before.or_better(measure()?);
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
            graph: arguments.graph,
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

/// The backend that runs all that is timed, why it is that one, and how it was opened.
fn backend(
    arguments: &Bench,
    subjects: &[Subject],
) -> Result<(Box<dyn TimedBackend>, Report, OpenOptions)> {
    let requests: Vec<_> = subjects
        .iter()
        .map(Subject::requests)
        .collect::<Result<_>>()?;
    let dispatcher = arguments.device.dispatcher()?;
    // The device that was chosen is closed before it is opened again under its own type.
    let requests = requests.concat();
    let report = dispatcher.device_for(&requests)?.report().clone();
    let options = dispatcher.dispatch().open.clone();
    let backend = if arguments.graph {
        timed::open_for_graphs(&report.chosen, &options)
    } else {
        timed::open(&report.chosen, &options, Some(&requests))
    };
    Ok((backend?, report, options))
}

/// What captures graphs of this platform.
fn graphs<'a>(backend: &'a dyn TimedBackend, platform: &str) -> Result<&'a dyn Beyond> {
    backend.beyond().ok_or_else(|| {
        let message = format!("graph: expected the platform cuda, got {platform}");
        Failure::Input(message)
    })
}

/// The size of the cache before memory, in bytes.
fn last_cache(platform: &str) -> usize {
    match platform {
        #[cfg(feature = "cpu")]
        "cpu" => swiglu::cpu::limits::last_level_cache(),
        _ => LARGEST_CACHE,
    }
}

/// Times passes over so many copies, which `enqueue` takes in turn: in graphs where there are any.
fn time(
    backend: &dyn TimedBackend,
    graphs: Option<&dyn Beyond>,
    budget: Duration,
    copies: usize,
    enqueue: &mut dyn FnMut() -> Result<()>,
) -> Result<Timing> {
    let Some(graphs) = graphs else {
        return timing::time(budget, copies, |count| {
            (0..count).try_for_each(|_| enqueue())?;
            backend.wait()
        });
    };
    // The first pass over a copy may allocate, which no graph can.
    (0..copies).try_for_each(|_| enqueue())?;
    backend.wait()?;
    let passes = GRAPH.next_multiple_of(copies);
    let graph = graphs.capture(&mut || (0..passes).try_for_each(|_| enqueue()))?;
    let of_graph = timing::time(budget, 1, |count| {
        (0..count).try_for_each(|_| graph.enqueue())?;
        backend.wait()
    })?;
    let of_pass = |seconds: f64| seconds / passes as f64;
    Ok(Timing {
        median: of_pass(of_graph.median),
        low: of_pass(of_graph.low),
        high: of_pass(of_graph.high),
        batch: of_graph.batch * passes,
    })
}

/// What every line shares.
struct Timer<'a> {
    backend: &'a dyn TimedBackend,
    tokens: &'a [u32],
    shape: ShapeArgument,
    budget: Duration,
    cache: usize,
    /// There if passes are timed in graphs.
    graphs: Option<&'a dyn Beyond>,
}

impl Timer<'_> {
    fn time(&self, copies: usize, enqueue: &mut dyn FnMut() -> Result<()>) -> Result<Timing> {
        time(self.backend, self.graphs, self.budget, copies, enqueue)
    }

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
            let timing = self.time(copies, &mut || passes.enqueue())?;
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
                fp8: false,
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
        let inputs_are = match config.quantization()? {
            Some(quant) => quant.to_string(),
            None => "bf16".to_owned(),
        };
        let tensor_cores = self.backend.accuracy().accumulation == Accumulation::Fp8TensorCore;
        let passes = Passes {
            what: format!("mlp {}, matmuls of {inputs_are}", self.sizes()),
            dtype: weight_format(weights).name(),
            fp8: tensor_cores && config.quantization()?.is_some(),
            copies: (copies, cold),
            bytes,
        };
        let mut next = 0;
        let mut rows = self.rows(&passes, &mut mlps, |mlps| {
            next = (next + 1) % mlps.len();
            mlps[next].enqueue()
        })?;
        // Those of the library take other weights' places.
        drop(mlps);
        if let Some(beyond) = self.backend.beyond() {
            let (op, shape) = (
                config.activation()?,
                [self.shape.hidden, self.shape.intermediate],
            );
            let copies = |bytes: usize| self.copies(bytes).0;
            for chain in beyond.chains(&op, shape, &copies)? {
                rows.extend(self.chain(chain)?);
            }
        }
        Ok(rows)
    }

    /// H and I.
    fn sizes(&self) -> String {
        format!("H={} I={}", self.shape.hidden, self.shape.intermediate)
    }

    /// A vendor's library beside it.
    fn chain(&self, chain: Chain) -> Result<Vec<Row>> {
        let bytes = chain.passes.weight_bytes();
        let passes = Passes {
            what: format!("cublasLt chain {}, {}", self.sizes(), chain.what),
            dtype: chain.dtype,
            fp8: chain.fp8,
            copies: (chain.copies, self.copies(bytes).1),
            bytes,
        };
        self.rows(&passes, &mut [chain.passes], |passes| passes[0].enqueue())
    }

    /// A row for each number of tokens.
    fn rows(
        &self,
        passes: &Passes,
        mlps: &mut [Box<dyn MlpPasses>],
        mut enqueue: impl FnMut(&mut [Box<dyn MlpPasses>]) -> Result<()>,
    ) -> Result<Vec<Row>> {
        let (h, i) = (self.shape.hidden, self.shape.intermediate);
        let (copies, cold) = passes.copies;
        let row = |&tokens: &u32| {
            let tokens = tokens as usize;
            let x = inputs(tokens, h);
            for mlp in mlps.iter_mut() {
                mlp.write_input(&x)?;
            }
            Ok(Row {
                what: passes.what.clone(),
                dtype: passes.dtype,
                tokens,
                copies,
                cold,
                timing: self.time(copies, &mut || enqueue(mlps))?,
                bytes: passes.bytes,
                flops: 6.0 * tokens as f64 * h as f64 * i as f64,
                fp8: passes.fp8,
            })
        };
        self.tokens.iter().map(row).collect()
    }
}

/// What the rows of an MLP share.
struct Passes {
    what: String,
    dtype: &'static str,
    fp8: bool,
    /// Of the weights, and whether no cache holds them.
    copies: (usize, bool),
    bytes: usize,
}

/// Rows of random numbers, of which the first few come again and again: to make them takes longer
/// than to use them.
pub fn inputs(rows: usize, cols: usize) -> Vec<bf16> {
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
