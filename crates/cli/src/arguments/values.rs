//! The values of flags.

use std::str::FromStr;

use clap::ValueEnum;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use swiglu::mlp::ActivationQuant;
use swiglu::{Accumulation, Float, ScaleFormat};

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

impl TypeArgument {
    /// The plain type, if this is one: what activations compute on.
    pub const fn float(self) -> Option<Float> {
        match self {
            Self::F32 => Some(Float::F32),
            Self::F16 => Some(Float::F16),
            Self::Bf16 => Some(Float::BF16),
            Self::Fp8 => None,
        }
    }
}

/// A number, or `none`.
#[derive(Clone, Copy, Debug)]
pub struct NumberOrNone(pub Option<f32>);

impl FromStr for NumberOrNone {
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

/// What the matmuls of the MLP read.
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

/// What the ranks of an MLP are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CommunicatorArgument {
    /// Threads of this process, which share its cores.
    #[default]
    Threads,
    /// Processes, which mpirun starts: `mpirun -np N swiglu run ...`. The first writes the output.
    Mpi,
}

impl CommunicatorArgument {
    /// As it is typed.
    #[cfg(feature = "cpu")]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Threads => "threads",
            Self::Mpi => "mpi",
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
    #[value(alias = "ue8m0")]
    E8m0,
    /// Floats.
    F32,
}

impl From<ScalesArgument> for ScaleFormat {
    fn from(argument: ScalesArgument) -> Self {
        match argument {
            ScalesArgument::E8m0 => Self::E8M0,
            ScalesArgument::F32 => Self::F32,
        }
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

/// Reads the name of a class of sums.
pub fn accumulation() -> impl TypedValueParser<Value = Accumulation> {
    let names = PossibleValuesParser::new(Accumulation::ALL.map(Accumulation::name));
    names.try_map(|name| Accumulation::from_name(&name))
}
