use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use swiglu::mlp::synthetic::{SyntheticConfig, synthetic_input, write_checkpoint};
use swiglu::mlp::{Checkpoint, MlpConfig, ModelConfig, SharedExpert};
use swiglu::{
    ActShape, AnyBackend, AnyMlp, DType, Device, Element, GatedActivation, Parameters,
    Quantization, bf16, f16,
};

use crate::act::dispatcher;
use crate::arguments::{Bench, ShapeArgument, TypeArgument};
use crate::failure::{Failure, Result};

mod limits;
mod plot;
mod report;
mod timing;

use limits::Limits;
use report::Row;

const SEED: u64 = 20_260_424;
/// The last cache's size where nothing says it: no GPU's is larger.
const LARGEST_CACHE: usize = 256 << 20;
const MOST_COPIES: usize = 64;

/// `swiglu bench`.
pub fn bench(arguments: &Bench, out: &mut impl Write) -> Result<()> {
    let subjects = subjects(arguments)?;
    let device = device(arguments, &subjects)?;
    let (platform, description) = (device.backend().platform(), device.backend().description());
    let before = Limits::measure(platform);
    let bench = Timer {
        backend: device.backend(),
        tokens: &arguments.tokens,
        shape: arguments.shape,
        budget: Duration::from_secs_f64(arguments.seconds),
        cache: last_cache(platform),
    };
    if !arguments.csv {
        writeln!(out, "platform {}", device.report())?;
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
            Subject::Act { op, quant, dtype } => bench.act(op, quant.as_ref(), *dtype)?,
            Subject::Mlp { weights, config } => bench.mlp(weights, config)?,
        });
    }
    let limits = before.or_better(Limits::measure(platform));
    if arguments.csv {
        report::csv(platform, &description, &rows, &limits, out)?;
    } else {
        writeln!(out, "limits   {}", limits.describe(platform))?;
        report::table(&rows, &limits, out)?;
    }
    if let Some(path) = &arguments.plot {
        plot::draw(path, &format!("{platform}: {description}"), &rows, &limits)?;
        if !arguments.csv {
            writeln!(out, "\nplot     {}", path.display())?;
        }
    }
    Ok(())
}

/// What is timed.
enum Subject {
    Act {
        op: GatedActivation,
        quant: Option<Quantization>,
        dtype: DType,
    },
    Mlp {
        weights: SyntheticConfig,
        config: MlpConfig,
    },
}

fn subjects(arguments: &Bench) -> Result<Vec<Subject>> {
    let both = arguments.op.is_none() && !arguments.mlp;
    let quant = arguments.quant.quantization()?;
    let mut subjects = Vec::new();
    if arguments.op.is_some() || both {
        let dtype = arguments.dtype.unwrap_or(TypeArgument::Bf16);
        if dtype == TypeArgument::Fp8 {
            let message = "dtype: expected f32, f16 or bf16 for an activation, got fp8";
            return Err(Failure::Input(message.to_owned()));
        }
        let name = arguments.op.as_deref().unwrap_or("deepseek_v4");
        subjects.push(Subject::Act {
            op: GatedActivation::from_name(name, &Parameters::default())?,
            quant,
            dtype: dtype.into(),
        });
    } else if quant.is_some() {
        let message = "quant: expected --op with it, got --mlp, whose option is --activations";
        return Err(Failure::Input(message.to_owned()));
    }
    if arguments.mlp || both {
        let ShapeArgument {
            hidden,
            intermediate,
            block,
        } = arguments.shape;
        let weights = SyntheticConfig {
            hidden,
            intermediate,
            block,
            weights: arguments.dtype.unwrap_or(TypeArgument::Fp8).into(),
            ..SyntheticConfig::flash(SEED)
        };
        let model = ModelConfig::from_json(&weights.config_json())?;
        let config = MlpConfig {
            activation_quant: arguments.activations.unwrap_or_default().into(),
            ..model.mlp_config(&weights.prefix())
        };
        subjects.push(Subject::Mlp { weights, config });
    }
    Ok(subjects)
}

/// The device that runs the last of what is timed: it is the more demanding.
fn device(arguments: &Bench, subjects: &[Subject]) -> Result<Device> {
    let dispatcher = dispatcher(arguments.platform.as_deref())?;
    Ok(match subjects.last() {
        Some(Subject::Mlp { weights, config }) => dispatcher.mlp_device(
            &config.activation()?,
            config.quantization()?.as_ref(),
            weights.weights,
        )?,
        Some(Subject::Act {
            op,
            quant: Some(quant),
            dtype,
        }) => dispatcher.quant_device(op, quant, *dtype)?,
        Some(Subject::Act { op, dtype, .. }) => dispatcher.device(op, *dtype)?,
        None => return Err(Failure::Input("op: expected something to time".to_owned())),
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

/// What every line shares.
struct Timer<'a> {
    backend: &'a Arc<dyn AnyBackend>,
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

    fn act(
        &self,
        op: &GatedActivation,
        quant: Option<&Quantization>,
        dtype: DType,
    ) -> Result<Vec<Row>> {
        let d = self.shape.intermediate;
        let row = |&tokens: &u32| {
            let shape = ActShape {
                rows: tokens as usize,
                d,
            };
            let input = act_input(shape, dtype);
            let load = |copies| {
                let backend = Arc::clone(self.backend);
                backend.load_act(op, quant, dtype, shape, &input, copies)
            };
            let bytes = load(1)?.bytes().iter().sum();
            let (copies, cold) = self.copies(bytes);
            let mut act = load(copies)?;
            let timing = timing::time(self.budget, copies, |passes| {
                for _ in 0..passes {
                    act.enqueue()?;
                }
                Ok(act.wait()?)
            })?;
            Ok(Row {
                what: match quant {
                    Some(quant) => format!("{op} d={d}, {quant}"),
                    None => format!("{op} d={d}"),
                },
                dtype: dtype.name(),
                tokens: shape.rows,
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
        let folder = tempfile::tempdir()?;
        write_checkpoint(folder.path(), weights)?;
        let checkpoint = Checkpoint::open(folder.path())?;
        let expert = SharedExpert::load(&checkpoint, config)?;
        let load = || Arc::clone(self.backend).load_mlp(config, &expert);
        let mut mlps = vec![load()?];
        let bytes = mlps[0].weight_bytes();
        let (copies, cold) = self.copies(bytes);
        for _ in 1..copies {
            mlps.push(load()?);
        }
        let (h, i) = (config.hidden_size, config.intermediate_size);
        let products = match config.quantization()? {
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
                what: format!("mlp H={h} I={i}, products of {products}"),
                dtype: weights.weights.name(),
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
fn run(mlps: &mut [Box<dyn AnyMlp>], next: &mut usize, passes: usize) -> Result<()> {
    for _ in 0..passes {
        mlps[*next].enqueue()?;
        *next = (*next + 1) % mlps.len();
    }
    Ok(mlps[0].wait()?)
}

/// Rows of random numbers, of which the first few come again and again: to make them takes longer
/// than to use them.
fn inputs(rows: usize, cols: usize) -> Vec<bf16> {
    let few = synthetic_input(rows.min(64), cols, SEED);
    few.into_iter().cycle().take(rows * cols).collect()
}

/// Gates and ups of which some lie beyond any limit.
fn act_input(shape: ActShape, dtype: DType) -> Vec<u8> {
    fn wide<T: Element>(x: &[bf16]) -> Vec<u8> {
        let x: Vec<T> = x.iter().map(|x| T::from_f32(5.0 * x.to_f32())).collect();
        bytemuck::cast_slice(&x).to_vec()
    }
    let x = inputs(shape.rows, 2 * shape.d);
    match dtype {
        DType::F32 => wide::<f32>(&x),
        DType::F16 => wide::<f16>(&x),
        DType::BF16 | DType::F8E4M3 | DType::E8M0 => wide::<bf16>(&x),
    }
}
