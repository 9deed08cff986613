use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand};

mod settings;
mod values;

pub use settings::{DeviceSettings, QuantSettings, Settings, dispatcher};
pub use values::{
    ActivationsArgument, NumberOrNone, RoundingArgument, ShapeArgument, TypeArgument,
};

/// Gated activations and the DeepSeek-V4 MLP, on every platform of this machine.
///
/// Exit codes: 0 done, 1 a check failed, 2 bad usage or input, 3 the data of `verify --against`
/// cannot tell.
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

/// Lists the platforms with their devices, how exact they are, which kernels V4-Flash's MLP would
/// run there, what is chosen and why the others are not.
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
    pub limit: Option<NumberOrNone>,
    /// Where results are rounded.
    #[arg(long, value_enum, default_value_t)]
    pub rounding: RoundingArgument,
    /// What the two matmuls read: bf16, or FP8 as DeepSeek runs its FP8 weights.
    #[arg(long, value_enum, default_value_t)]
    pub activations: ActivationsArgument,
    /// The input, BF16 [T, H]; a name picks one of several tensors.
    #[arg(long, value_name = "FILE[:NAME]")]
    pub input: String,
    /// Takes the output, BF16 [T, H], as tensor `y`.
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    #[command(flatten)]
    pub device: DeviceSettings,
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

/// Times the activation and the MLP on a platform, against the limits of the machine where it can
/// measure them in the same run.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").args(["op", "mlp"]))]
pub struct Bench {
    #[command(flatten)]
    pub device: DeviceSettings,
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
    /// What the matmuls of the MLP read; bf16 unless given.
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

/// Writes a checkpoint of V4-Flash's shape, runs it on every platform here, or on the one that is
/// named, and checks the results against the reference.
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
    #[command(flatten)]
    pub device: DeviceSettings,
}

/// Checks every platform here against the definition: the gated activations in every type, matmuls,
/// quantization and the MLP; or, with --against, another engine's output in a file.
///
/// Exit codes: 0 all is as the definition says, 1 it is not, 2 bad usage or input, 3 the data in the
/// file cannot tell. docs/verify.md has the method and the fields of --json.
#[derive(Debug, Args)]
pub struct Verify {
    /// A safetensors file with an engine's `input` [.., 2d] and the `output` [.., d] that it made
    /// of it: says whether that is the operation, and if not, which known faults explain it.
    #[arg(long, value_name = "FILE", requires = "op")]
    pub against: Option<PathBuf>,
    /// An operator such as silu_and_mul_with_clamp, or a model such as deepseek_v4; all of them,
    /// and matmuls, quantization and the MLP, unless given.
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

#[cfg(test)]
mod tests {
    use swiglu::{Accumulation, Parameter, Parameters};

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

    fn act(flag: &str) -> Option<Parameters> {
        let flags = ["--op", "x", "--input", "i", "--output", "o", flag];
        let all = ["swiglu", "act"].into_iter().chain(flags);
        match Arguments::try_parse_from(all).ok()?.command {
            Command::Act(act) => Some(act.settings.parameters.0),
            _ => None,
        }
    }

    #[test]
    fn every_parameter_of_the_table_has_its_flag() {
        for parameter in Parameter::ALL {
            let flag = format!("--{}", parameter.name().replace('_', "-"));
            let given = act(&format!("{flag}=-0.5")).unwrap();
            for other in Parameter::ALL {
                let expected = (other == parameter).then_some(Some(-0.5));
                assert_eq!(given.get(other), expected, "{flag}");
            }
            let off = act(&format!("{flag}=none")).and_then(|p| p.get(parameter));
            assert_eq!(off == Some(None), parameter.may_be_none(), "{flag}");
            assert!(act(&format!("{flag}=some")).is_none());
        }
    }

    #[test]
    fn classes_of_sums_have_their_names() {
        for class in Accumulation::ALL {
            let bench = bench(&["--accumulation", class.name()]).unwrap();
            assert_eq!(bench.device.accumulation, Some(class));
        }
        let message = bench(&["--accumulation", "fast"]).unwrap_err();
        for class in Accumulation::ALL {
            assert!(message.contains(class.name()), "{message}");
        }
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
