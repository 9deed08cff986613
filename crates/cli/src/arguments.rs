use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand};

pub mod environment;
mod settings;
mod values;

pub use settings::{
    DeviceSettings, Mapping, PlatformSettings, QuantSettings, RankSettings, Settings,
};
pub use values::{
    ActivationsArgument, CommunicatorArgument, NumberOrNone, RoundingArgument, ShapeArgument,
    TypeArgument,
};

/// Gated activations and the DeepSeek-V4 MLP, on every platform of this machine.
///
/// Exit codes: 0 done, 1 a check failed, 2 bad usage or input, 3 the data of `verify --against`
/// cannot tell.
#[derive(Debug, Parser)]
#[command(
    name = "swiglu",
    version = environment::version(),
    max_term_width = 100,
    after_help = environment::help(),
)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Probe(Probe),
    Inspect(Inspect),
    Run(Run),
    Act(Act),
    Bench(Bench),
    Demo(Demo),
    Verify(Verify),
    Completions(Completions),
    Man(Man),
}

/// Lists the platforms with their numbered devices, how exact they are, which kernels V4-Flash's MLP
/// would run there, what is chosen and why the others are not.
#[derive(Debug, Args)]
pub struct Probe {
    /// Prints one JSON document.
    #[arg(long)]
    pub json: bool,
}

/// Lists the MLPs of a checkpoint; or, of one of them, its tensors, numbers that are none, what would
/// run it and how, or why it does not run.
#[derive(Debug, Args)]
pub struct Inspect {
    /// A folder with model.safetensors or model.safetensors.index.json, or a .safetensors file.
    #[arg(value_name = "DIR_OR_FILE")]
    pub checkpoint: PathBuf,
    /// The tensors of one MLP, such as layers.3.ffn.shared_experts or layers.0.ffn.
    #[arg(long)]
    pub prefix: Option<String>,
    /// The model's configuration; config.json beside the checkpoint unless given.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The limit of the activation, or none; the configuration's unless given.
    #[arg(long, value_name = "L|none")]
    pub limit: Option<NumberOrNone>,
    /// I, which must be the tensors'; the configuration's of shared experts and the tensors' of
    /// other MLPs unless given.
    #[arg(long, value_name = "I")]
    pub intermediate: Option<usize>,
    /// What the two matmuls would read: bf16, or FP8 as DeepSeek runs its FP8 weights.
    #[arg(long, value_enum, default_value_t)]
    pub activations: ActivationsArgument,
    #[command(flatten)]
    pub mapping: Mapping,
    #[command(flatten)]
    pub device: DeviceSettings,
    /// Prints JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs the shared expert of a checkpoint on an input; or, where the prefix has a gate, the whole
/// layer: router, routed experts and shared expert.
#[derive(Debug, Args)]
pub struct Run {
    /// A folder with model.safetensors or model.safetensors.index.json, or a .safetensors file.
    #[arg(long, value_name = "DIR_OR_FILE")]
    pub checkpoint: PathBuf,
    /// The expert's tensors, such as layers.3.ffn.shared_experts or
    /// model.layers.3.mlp.shared_experts, or the layer's, such as layers.3.ffn.
    #[arg(long)]
    pub prefix: String,
    /// The model's configuration; config.json beside the checkpoint unless given.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The limit of the activation, or none; the configuration's unless given.
    #[arg(long, value_name = "L|none")]
    pub limit: Option<NumberOrNone>,
    /// I, which must be the tensors'; the configuration's of shared experts and the tensors' of
    /// other MLPs unless given.
    #[arg(long, value_name = "I")]
    pub intermediate: Option<usize>,
    /// Where results are rounded.
    #[arg(long, value_enum, default_value_t)]
    pub rounding: RoundingArgument,
    /// What the two matmuls read: bf16, or FP8 as DeepSeek runs its FP8 weights.
    #[arg(long, value_enum, default_value_t)]
    pub activations: ActivationsArgument,
    /// The input [.., H] in BF16, or in F32 or F16, which are rounded to the nearest BF16, ties to
    /// even; a name picks one of several tensors, and - is standard input.
    #[arg(long, value_name = "FILE[:NAME]", allow_hyphen_values = true)]
    pub input: String,
    /// Takes the output, BF16 of the input's shape whatever the input's type, as tensor `y`; - is
    /// standard output.
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    #[command(flatten)]
    pub device: DeviceSettings,
    #[command(flatten)]
    pub ranks: RankSettings,
    /// Also writes `gate_up` [.., 2I] and `act` [.., I], the latter before it is quantized; on one
    /// rank only.
    #[arg(long)]
    pub stages: bool,
    #[command(flatten)]
    pub mapping: Mapping,
    /// Prints one JSON document to standard output, and prose to standard error.
    #[arg(long)]
    pub json: bool,
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
    /// The input; a name picks one of several tensors, and - is standard input.
    #[arg(long, value_name = "FILE[:NAME]", allow_hyphen_values = true)]
    pub input: String,
    /// Takes the output [.., d] of the input's type as tensor `y`; if quantized, as `codes` [.., d]
    /// and `scales` [.., G]. - is standard output.
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    #[command(flatten)]
    pub platform: PlatformSettings,
    /// Prints one JSON document to standard output, and prose to standard error.
    #[arg(long)]
    pub json: bool,
}

/// Times the activation and the MLP on a platform, against the limits of the machine where it can
/// measure them in the same run.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").args(["op", "mlp", "moe"]))]
pub struct Bench {
    #[command(flatten)]
    pub device: DeviceSettings,
    /// Times this activation: an operator such as silu_and_mul, or a model such as deepseek_v4.
    #[arg(long, value_name = "NAME")]
    pub op: Option<String>,
    /// Times the MLP. With neither this nor --op, both it and deepseek_v4 are timed.
    #[arg(long)]
    pub mlp: bool,
    /// Times a whole layer with routed experts in FP4, and counts the experts that are touched.
    #[arg(long, conflicts_with_all = ["quant", "plot"])]
    pub moe: bool,
    /// How many of the layer's routed experts there are, of which a token has 6; 16 unless given.
    #[arg(long, value_name = "N", requires = "moe", value_parser = experts)]
    pub experts: Option<usize>,
    /// The numbers of tokens (T).
    #[arg(
        long,
        value_name = "T,T,..",
        value_delimiter = ',',
        default_value = "1,4,16,64,256",
        value_parser = clap::value_parser!(u32).range(1..=65_536),
    )]
    pub tokens: Vec<u32>,
    /// flash, pro, v41, or the sizes of the MLP, HxI; an activation has d = I.
    #[arg(long, default_value = "flash")]
    pub shape: ShapeArgument,
    /// The activation's type (bf16 unless given), or that of the MLP's weights (fp8 unless given).
    #[arg(long, value_enum, requires = "what")]
    pub dtype: Option<TypeArgument>,
    /// What the matmuls of the MLP read; bf16 unless given.
    #[arg(long, value_enum, conflicts_with = "op")]
    pub activations: Option<ActivationsArgument>,
    #[command(flatten)]
    pub quant: QuantSettings,
    /// Times CUDA graphs of passes, so that the host's share of a call is left out.
    #[arg(long)]
    pub graph: bool,
    /// How long each line is timed, in seconds.
    #[arg(long, default_value_t = 0.5, value_parser = seconds)]
    pub seconds: f64,
    /// Prints comma-separated values, and nothing else.
    #[arg(long)]
    pub csv: bool,
    /// Prints one JSON document to standard output, and prose to standard error.
    #[arg(long, conflicts_with = "csv")]
    pub json: bool,
    /// Draws time over tokens, with the limits' floors, into an SVG file.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

fn experts(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| (1..=1024).contains(n));
    number.ok_or_else(|| "expected from 1 to 1024".to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|s| (0.001..=60.0).contains(s));
    number.ok_or_else(|| "expected from 0.001 to 60".to_owned())
}

/// Writes a checkpoint of V4-Flash's shape, runs it on every platform here, or on the one that is
/// named, and checks the results against the reference.
#[derive(Debug, Args)]
pub struct Demo {
    /// The numbers of tokens to run.
    #[arg(
        long,
        value_name = "T,T,..",
        value_delimiter = ',',
        default_value = "1,16,256",
        value_parser = clap::value_parser!(u32).range(1..=16_384),
    )]
    pub tokens: Vec<u32>,
    /// Runs a whole layer with 8 of V4-Flash's routed experts: router, experts in FP4, and the shared
    /// one. The reference computes the first 4 tokens.
    #[arg(long)]
    pub moe: bool,
    #[command(flatten)]
    pub device: DeviceSettings,
    /// Prints one JSON document to standard output, and prose to standard error.
    #[arg(long)]
    pub json: bool,
}

/// Checks every platform here against the definition: the gated activations in every type, matmuls,
/// quantization and the MLP; or, with --against, another engine's output in a file.
///
/// Exit codes: 0 all is as the definition says, 1 it is not, 2 bad usage or input, 3 the data in the
/// file cannot tell. docs/verify.md has the method and the fields of --json.
#[derive(Debug, Args)]
pub struct Verify {
    /// A safetensors file with an engine's `input` [.., 2d] and the `output` [.., d] that it made
    /// of it: says whether that is the operation, and if not, which known fault explains it.
    #[arg(
        long,
        value_name = "FILE",
        requires = "op",
        conflicts_with_all = ["platform", "device"],
    )]
    pub against: Option<PathBuf>,
    /// An operator such as silu_and_mul_with_clamp, or a model such as deepseek_v4; all of them,
    /// and matmuls, quantization and the MLP, unless given.
    #[arg(long)]
    pub op: Option<String>,
    #[command(flatten)]
    pub settings: Settings,
    #[command(flatten)]
    pub platform: PlatformSettings,
    /// Takes all 65,536 gates of a 16-bit type with 64 ups in place of 3, and more of the rest.
    #[arg(long, conflicts_with = "against")]
    pub exhaustive: bool,
    /// Prints JSON.
    #[arg(long)]
    pub json: bool,
}

/// Prints a script that completes this program's commands and flags in a shell.
#[derive(Debug, Args)]
pub struct Completions {
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Prints the manual page of the program or of one of its commands, as roff.
#[derive(Debug, Args)]
pub struct Man {
    /// One command; all of them in short unless given.
    pub command: Option<String>,
}

#[cfg(test)]
mod tests;
