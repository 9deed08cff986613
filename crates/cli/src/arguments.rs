use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use swiglu::mlp::ActivationQuant;
use swiglu::{DType, GatedActivation, Parameters, Quantization, ScaleFormat};

/// Gated activations and the DeepSeek-V4 MLP, on every platform of this machine.
///
/// Exit codes: 0 done, 1 a check failed, 2 bad usage or input.
#[derive(Debug, Parser)]
#[command(name = "swiglu", version, max_term_width = 100)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Probe(Probe),
    Run(Run),
    Act(Act),
    Bench(Bench),
    Demo(Demo),
    Verify(Verify),
}

/// Lists the platforms and devices, what is chosen and why the others are not.
#[derive(Debug, Args)]
pub struct Probe {
    /// Prints JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs the shared expert of a checkpoint on an input.
#[derive(Debug, Args)]
pub struct Run {
    /// A folder with model.safetensors or model.safetensors.index.json, or a .safetensors file.
    #[arg(long, value_name = "DIR_OR_FILE")]
    pub checkpoint: PathBuf,
    /// The expert's tensors, such as layers.3.ffn.shared_experts or
    /// model.layers.3.mlp.shared_experts.
    #[arg(long)]
    pub prefix: String,
    /// The model's configuration; config.json beside the checkpoint unless given.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The limit of the activation, or none; the configuration's unless given.
    #[arg(long, value_name = "L|none")]
    pub limit: Option<LimitArgument>,
    /// Where results are rounded.
    #[arg(long, value_enum, default_value_t)]
    pub rounding: RoundingArgument,
    /// What the two products read: bf16, or FP8 as DeepSeek runs its FP8 weights.
    #[arg(long, value_enum, default_value_t)]
    pub activations: ActivationsArgument,
    /// The input, BF16 [T, H]; a name picks one of several tensors.
    #[arg(long, value_name = "FILE[:NAME]")]
    pub input: String,
    /// Takes the output, BF16 [T, H], as tensor `y`.
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    /// auto, or a platform's name.
    #[arg(long)]
    pub platform: Option<String>,
    /// Also writes `gate_up` [T, 2I] and `act` [T, I], the latter before it is quantized.
    #[arg(long)]
    pub stages: bool,
}

/// Runs one activation on a tensor [.., 2d] of f32, f16 or bf16.
#[derive(Debug, Args)]
pub struct Act {
    /// An operator such as silu_and_mul_with_clamp, or a model such as deepseek_v4.
    #[arg(long)]
    pub op: String,
    #[command(flatten)]
    pub settings: Settings,
    #[command(flatten)]
    pub quant: QuantSettings,
    /// The input; a name picks one of several tensors.
    #[arg(long, value_name = "FILE[:NAME]")]
    pub input: String,
    /// Takes the output [.., d] as tensor `y`; if quantized, as `codes` [.., d] and `scales` [.., G].
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    /// auto, or a platform's name.
    #[arg(long)]
    pub platform: Option<String>,
}

/// What an operation's name leaves open.
#[derive(Debug, Args)]
pub struct Settings {
    /// The limit of the clamp; the operator's own model's unless given.
    #[arg(long, allow_negative_numbers = true, requires = "op")]
    pub limit: Option<f32>,
    /// The slope of silu.
    #[arg(long, allow_negative_numbers = true, requires = "op")]
    pub alpha: Option<f32>,
    /// What is added to up; for situ_and_mul, the bound of the gate.
    #[arg(long, allow_negative_numbers = true, requires = "op")]
    pub beta: Option<f32>,
    /// The threshold of fatrelu_and_mul.
    #[arg(long, allow_negative_numbers = true, requires = "op")]
    pub threshold: Option<f32>,
    /// The bound of up in situ_and_mul, or none.
    #[arg(long, value_name = "BOUND|none", requires = "op")]
    pub up_bound: Option<LimitArgument>,
    /// Where results are rounded: official unless given.
    #[arg(long, value_enum)]
    pub rounding: Option<RoundingArgument>,
}

impl Settings {
    /// The operation of this name with these settings.
    ///
    /// # Errors
    /// As [`GatedActivation::from_name`].
    pub fn activation(&self, name: &str) -> swiglu::Result<GatedActivation> {
        let parameters = Parameters {
            limit: self.limit,
            alpha: self.alpha,
            beta: self.beta,
            threshold: self.threshold,
            up_bound: self.up_bound.map(|b| b.0),
        };
        let op = GatedActivation::from_name(name, &parameters)?;
        Ok(op.with_rounding(self.rounding.unwrap_or_default().into()))
    }
}

/// Times the activation and the MLP on a platform, against the limits of the machine where it can
/// measure them in the same run.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").args(["op", "mlp"]))]
pub struct Bench {
    /// auto, or a platform's name.
    #[arg(long)]
    pub platform: Option<String>,
    /// Times this activation: an operator such as silu_and_mul, or a model such as deepseek_v4.
    #[arg(long, value_name = "NAME")]
    pub op: Option<String>,
    /// Times the MLP. With neither this nor --op, both it and deepseek_v4 are timed.
    #[arg(long)]
    pub mlp: bool,
    /// The numbers of tokens (T).
    #[arg(
        long,
        value_delimiter = ',',
        default_values_t = [1, 4, 16, 64, 256],
        value_parser = clap::value_parser!(u32).range(1..=65_536),
    )]
    pub tokens: Vec<u32>,
    /// flash, pro, v41, or the sizes of the MLP, HxI; an activation has d = I.
    #[arg(long, default_value = "flash")]
    pub shape: ShapeArgument,
    /// The activation's type (bf16 unless given), or that of the MLP's weights (fp8 unless given).
    #[arg(long, value_enum, requires = "what")]
    pub dtype: Option<TypeArgument>,
    /// What the products of the MLP read; bf16 unless given.
    #[arg(long, value_enum, conflicts_with = "op")]
    pub activations: Option<ActivationsArgument>,
    #[command(flatten)]
    pub quant: QuantSettings,
    /// How long each line is timed, in seconds.
    #[arg(long, default_value_t = 0.5, value_parser = seconds)]
    pub seconds: f64,
    /// Prints comma-separated values, and nothing else.
    #[arg(long)]
    pub csv: bool,
    /// Draws time over tokens, with the limits' floors, into an SVG file.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|s| (0.001..=60.0).contains(s));
    number.ok_or_else(|| "expected from 0.001 to 60".to_owned())
}

/// The sizes of an MLP and the side of its FP8 weights' blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShapeArgument {
    pub hidden: usize,
    pub intermediate: usize,
    pub block: usize,
}

impl FromStr for ShapeArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = |hidden, intermediate, block| Self {
            hidden,
            intermediate,
            block,
        };
        let side = |n: &str| n.parse().ok().filter(|n| (1..=1 << 20).contains(n));
        match text {
            "flash" => Ok(shape(4096, 2048, 128)),
            "pro" => Ok(shape(7168, 3072, 128)),
            "v41" => Ok(shape(5120, 2304, 32)),
            _ => text
                .split_once('x')
                .and_then(|(h, i)| Some(shape(side(h)?, side(i)?, 128)))
                .ok_or_else(|| "expected flash, pro, v41 or sizes such as 4096x2048".to_owned()),
        }
    }
}

/// A type of elements or weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TypeArgument {
    F32,
    F16,
    Bf16,
    /// Weights only: E4M3 in blocks with scales.
    Fp8,
}

impl From<TypeArgument> for DType {
    fn from(argument: TypeArgument) -> Self {
        match argument {
            TypeArgument::F32 => Self::F32,
            TypeArgument::F16 => Self::F16,
            TypeArgument::Bf16 => Self::BF16,
            TypeArgument::Fp8 => Self::F8E4M3,
        }
    }
}

/// How an activation's output is quantized.
#[derive(Debug, Args)]
pub struct QuantSettings {
    /// Quantizes the output in the same pass.
    #[arg(long, value_enum)]
    pub quant: Option<QuantArgument>,
    /// Elements of a row that share a scale: 128 (unless given), 64 or 32.
    #[arg(long, requires = "quant")]
    pub group: Option<usize>,
    /// How scales are stored; ue8m0 unless given.
    #[arg(long, value_enum, requires = "quant")]
    pub scales: Option<ScalesArgument>,
    /// The least magnitude that a scale is computed from; DeepSeek's 1e-4 unless given.
    #[arg(long, requires = "quant", allow_negative_numbers = true)]
    pub floor: Option<f32>,
    /// Whether the output is rounded to the input's type first, as DeepSeek does; true unless given.
    #[arg(long, requires = "quant")]
    pub materialize: Option<bool>,
}

impl QuantSettings {
    /// The quantization, if one is asked for.
    ///
    /// # Errors
    /// As [`Quantization::new`] and [`Quantization::with_floor`].
    pub fn quantization(&self) -> swiglu::Result<Option<Quantization>> {
        let Some(QuantArgument::Fp8) = self.quant else {
            return Ok(None);
        };
        let format = match self.scales.unwrap_or_default() {
            ScalesArgument::Ue8m0 => ScaleFormat::Ue8m0,
            ScalesArgument::F32 => ScaleFormat::F32,
        };
        Quantization::new(self.group.unwrap_or(128), format)?
            .with_materialize(self.materialize.unwrap_or(true))
            .with_floor(self.floor.unwrap_or(Quantization::FLOOR))
            .map(Some)
    }
}

/// Writes a checkpoint of V4-Flash's shape, runs it on every platform here and checks the results
/// against the reference.
#[derive(Debug, Args)]
pub struct Demo {
    /// The numbers of tokens to run.
    #[arg(
        long,
        value_delimiter = ',',
        default_values_t = [1, 16, 256],
        value_parser = clap::value_parser!(u32).range(1..=16_384),
    )]
    pub tokens: Vec<u32>,
    /// auto (all of them), or a platform's name.
    #[arg(long)]
    pub platform: Option<String>,
}

/// Checks the gated activations of every platform here against the definition, in every type; or,
/// with --against, another engine's output in a file.
#[derive(Debug, Args)]
pub struct Verify {
    /// A safetensors file with an engine's `input` [.., 2d] and the `output` [.., d] that it made
    /// of it: says whether that is the operation, and if not, which known fault explains it.
    #[arg(long, value_name = "FILE", requires = "op")]
    pub against: Option<PathBuf>,
    /// An operator such as silu_and_mul_with_clamp, or a model such as deepseek_v4; all of them
    /// unless given.
    #[arg(long)]
    pub op: Option<String>,
    #[command(flatten)]
    pub settings: Settings,
    /// auto (all of them), or a platform's name.
    #[arg(long, conflicts_with = "against")]
    pub platform: Option<String>,
    /// Takes all 65,536 gates of a 16-bit type with 64 ups in place of 3, and more of the rest.
    #[arg(long, conflicts_with = "against")]
    pub exhaustive: bool,
    /// Prints JSON.
    #[arg(long)]
    pub json: bool,
}

/// A number, or `none`.
#[derive(Clone, Copy, Debug)]
pub struct LimitArgument(pub Option<f32>);

impl FromStr for LimitArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let number = text
            .parse()
            .map_err(|_| "expected a number or none".to_owned())?;
        Ok(Self(Some(number)))
    }
}

/// What the products of the MLP read.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum ActivationsArgument {
    /// bf16, as it comes.
    #[default]
    Bf16,
    /// FP8 in groups as wide as the weights' blocks, scales powers of two.
    Fp8,
}

impl From<ActivationsArgument> for ActivationQuant {
    fn from(argument: ActivationsArgument) -> Self {
        match argument {
            ActivationsArgument::Bf16 => Self::None,
            ActivationsArgument::Fp8 => Self::Fp8Block,
        }
    }
}

/// What an output is quantized to.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum QuantArgument {
    /// E4M3 codes with a scale for each group.
    Fp8,
}

/// How scales are stored.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum ScalesArgument {
    /// Powers of two in a byte.
    #[default]
    Ue8m0,
    /// Floats.
    F32,
}

/// Where results are rounded.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum RoundingArgument {
    /// Once, as DeepSeek's own code.
    #[default]
    Official,
    /// After every step, as PyTorch eager and vLLM.
    Eager,
}

impl From<RoundingArgument> for swiglu::Rounding {
    fn from(argument: RoundingArgument) -> Self {
        match argument {
            RoundingArgument::Official => Self::Official,
            RoundingArgument::Eager => Self::Eager,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(arguments: &[&str]) -> Result<Bench, String> {
        let all = ["swiglu", "bench"].iter().chain(arguments);
        match Arguments::try_parse_from(all) {
            Ok(Arguments {
                command: Command::Bench(bench),
            }) => Ok(bench),
            Ok(other) => Err(format!("{other:?}")),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn the_command_is_well_formed() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn shapes_are_models_or_sizes() {
        let shape = |text: &str| {
            let shape = bench(&["--shape", text])?.shape;
            Ok::<_, String>((shape.hidden, shape.intermediate, shape.block))
        };
        assert_eq!(shape("flash"), Ok((4096, 2048, 128)));
        assert_eq!(shape("pro"), Ok((7168, 3072, 128)));
        assert_eq!(shape("v41"), Ok((5120, 2304, 32)));
        assert_eq!(shape("96x64"), Ok((96, 64, 128)));
        for bad in ["x", "0x4", "4x0", "4096", "4x4x4", "2000000x4"] {
            let error = shape(bad).unwrap_err();
            assert!(error.contains("expected flash, pro, v41"), "{error}");
        }
    }

    #[test]
    fn what_is_timed_is_an_activation_or_the_mlp_or_both() {
        let both = bench(&[]).unwrap();
        assert!(both.op.is_none() && !both.mlp && both.dtype.is_none());
        assert_eq!(both.tokens, [1, 4, 16, 64, 256]);
        let mlp = bench(&["--mlp", "--dtype", "bf16", "--tokens", "2,8"]).unwrap();
        assert_eq!(
            (mlp.tokens, mlp.dtype),
            (vec![2, 8], Some(TypeArgument::Bf16))
        );
        for bad in [
            &["--mlp", "--op", "silu_and_mul"][..],
            &["--dtype", "bf16"],
            &["--op", "silu_and_mul", "--activations", "fp8"],
            &["--op", "silu_and_mul", "--group", "32"],
            &["--tokens", "0"],
            &["--seconds", "0"],
            &["--seconds", "nan"],
        ] {
            assert!(bench(bad).is_err(), "{bad:?}");
        }
    }
}
