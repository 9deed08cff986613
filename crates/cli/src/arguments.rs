use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use swiglu::{GatedActivation, Parameters};

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
    /// The input, BF16 [T, H]; a name picks one of several tensors.
    #[arg(long, value_name = "FILE[:NAME]")]
    pub input: String,
    /// Takes the output, BF16 [T, H], as tensor `y`.
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    /// auto, or a platform's name.
    #[arg(long)]
    pub platform: Option<String>,
    /// Also writes `gate_up` [T, 2I] and `act` [T, I].
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
    /// The input; a name picks one of several tensors.
    #[arg(long, value_name = "FILE[:NAME]")]
    pub input: String,
    /// Takes the output [.., d] as tensor `y`.
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
