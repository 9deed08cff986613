//! What is asked of a backend, and what it answers.

use std::fmt;

use crate::{Error, Float, GatedActivation, Quantization, Result, Routing, WeightFormat};

/// An operation with the types that it is wanted in: what [`crate::Backend::supports`] answers.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Request {
    /// [`crate::ActAndMul::act_and_mul`].
    Activation {
        /// The activation.
        op: GatedActivation,
        /// The type of input and output.
        float: Float,
    },
    /// [`crate::Quantize::act_and_mul_quant`].
    ActivationQuant {
        /// The activation.
        op: GatedActivation,
        /// How its results are quantized.
        quant: Quantization,
        /// The type of the input.
        float: Float,
    },
    /// [`crate::Quantize::quantize`] and [`crate::Quantize::dequantize`].
    Quantize {
        /// How.
        quant: Quantization,
        /// The type that is read, and written on the way back.
        float: Float,
    },
    /// [`crate::Matmul::matmul`].
    Matmul {
        /// The type of x.
        x: Float,
        /// How w is stored.
        weight: WeightFormat,
        /// The type of y.
        y: Float,
    },
    /// [`crate::Matmul::matmul_act_and_mul`].
    GatedMatmul {
        /// The activation.
        op: GatedActivation,
        /// The type of x.
        x: Float,
        /// How w is stored.
        weight: WeightFormat,
        /// The type of `gate_up` and `act`.
        act: Float,
    },
    /// [`crate::Matmul::matmul_quantized`].
    QuantizedMatmul {
        /// How x is quantized.
        quant: Quantization,
        /// How w is stored.
        weight: WeightFormat,
        /// The type of y.
        y: Float,
    },
    /// [`crate::Matmul::quantizing_matmul_act_and_mul`]. A backend that does not know it has no kernels for it.
    QuantizingGatedMatmul {
        /// The activation.
        op: GatedActivation,
        /// How x is quantized.
        quant: Quantization,
        /// The type of x.
        x: Float,
        /// How w is stored.
        weight: WeightFormat,
        /// The type of `act`.
        act: Float,
    },
    /// [`crate::Matmul::quantizing_matmul_act_and_mul_quant`]. A backend that does not know it has no kernels for it.
    QuantizingGatedMatmulQuant {
        /// The activation.
        op: GatedActivation,
        /// How x and the results are quantized.
        quant: Quantization,
        /// The type of x.
        x: Float,
        /// How w is stored.
        weight: WeightFormat,
    },
    /// [`crate::Matmul::quantizing_matmul`]. A backend that does not know it has no kernels for it.
    QuantizingMatmul {
        /// How x is quantized.
        quant: Quantization,
        /// The type of x.
        x: Float,
        /// How w is stored.
        weight: WeightFormat,
        /// The type of y.
        y: Float,
    },
    /// [`crate::Router::route`].
    Route {
        /// How tokens choose.
        routing: Routing,
        /// The type of x.
        x: Float,
        /// How the gate is stored.
        weight: WeightFormat,
    },
    /// [`crate::GroupedMatmul::grouped_matmul_act_and_mul`].
    GroupedGatedMatmul {
        /// The activation.
        op: GatedActivation,
        /// How the inputs of the matmuls are quantized, if they are.
        quant: Option<Quantization>,
        /// How tokens chose.
        routing: Routing,
        /// The type of x.
        x: Float,
        /// How the gate and up weights are stored.
        weight: WeightFormat,
    },
    /// [`crate::GroupedMatmul::grouped_matmul_sum`].
    GroupedMatmulSum {
        /// How the inputs of the matmuls are quantized, if they are.
        quant: Option<Quantization>,
        /// How tokens chose.
        routing: Routing,
        /// How the down weights are stored.
        weight: WeightFormat,
        /// The type of y.
        y: Float,
    },
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Activation { op, float } => write!(f, "{op} in {float}"),
            Self::ActivationQuant { op, quant, float } => write!(f, "{op} in {float} to {quant}"),
            Self::Quantize { quant, float } => write!(f, "{quant} of {float}"),
            Self::Matmul { x, weight, y } => write!(f, "matmul of {x} by {weight} to {y}"),
            Self::GatedMatmul { op, x, weight, act } => {
                write!(f, "matmul of {x} by {weight} and {op} in {act}")
            }
            Self::QuantizedMatmul { quant, weight, y } => {
                write!(f, "matmul of {quant} by {weight} to {y}")
            }
            Self::QuantizingGatedMatmul {
                op,
                quant,
                x,
                weight,
                act,
            } => write!(f, "matmul of {x} to {quant} by {weight} and {op} in {act}"),
            Self::QuantizingGatedMatmulQuant {
                op,
                quant,
                x,
                weight,
            } => write!(
                f,
                "matmul of {x} to {quant} by {weight} and {op} to {quant}"
            ),
            Self::QuantizingMatmul {
                quant,
                x,
                weight,
                y,
            } => write!(f, "matmul of {x} to {quant} by {weight} to {y}"),
            Self::Route { routing, x, weight } => {
                write!(f, "routing of {x} by {weight} to {routing}")
            }
            Self::GroupedGatedMatmul {
                op,
                quant,
                routing,
                x,
                weight,
            } => {
                write!(f, "grouped matmul of ")?;
                read(f, quant.as_ref(), *x)?;
                write!(f, " by {weight} and {op}, {routing}")
            }
            Self::GroupedMatmulSum {
                quant,
                routing,
                weight,
                y,
            } => {
                write!(f, "grouped matmul of ")?;
                read(f, quant.as_ref(), Float::BF16)?;
                write!(f, " by {weight} summed to {y}, {routing}")
            }
        }
    }
}

/// What a matmul reads: a quantization, or plain numbers.
fn read(f: &mut fmt::Formatter<'_>, quant: Option<&Quantization>, float: Float) -> fmt::Result {
    match quant {
        Some(quant) => write!(f, "{quant}"),
        None => write!(f, "{float}"),
    }
}

/// The sizes of one call of a [`Request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows (T): tokens, also of what is done for each of their routes.
    pub rows: usize,
    /// Elements in a row of the output: d of an activation, N of a matmul (2I of a gated one, E of a
    /// router).
    pub cols: usize,
    /// Elements that a sum runs over: K of a matmul, 0 of an activation.
    pub depth: usize,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, cols, depth } = self;
        match depth {
            0 => write!(f, "[{rows}, {cols}]"),
            _ => write!(f, "[{rows}, {depth}] x [{cols}, {depth}]"),
        }
    }
}

/// Whether a platform runs an operation, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    /// With its own implementation.
    Native,
    /// With the right results by a detour, for the reason given.
    Emulated(String),
    /// Not at all, for the reason given.
    No(String),
}

impl Support {
    /// Whether the operation runs.
    pub const fn runs(&self) -> bool {
        !matches!(self, Self::No(_))
    }

    /// Of two answers the one that promises less; of equals the first.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (&self, &other) {
            (Self::No(_), _) | (_, Self::Native) => self,
            (_, Self::No(_)) | (Self::Native, _) => other,
            (Self::Emulated(_), Self::Emulated(_)) => self,
        }
    }

    /// The answer as a result: an error where the operation does not run.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the reason.
    pub fn required(self, platform: &str, request: &Request) -> Result<()> {
        match self {
            Self::Native | Self::Emulated(_) => Ok(()),
            Self::No(reason) => Err(Error::unsupported(platform, request, reason)),
        }
    }
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Native => f.write_str("native"),
            Self::Emulated(reason) => write!(f, "emulated: {reason}"),
            Self::No(reason) => write!(f, "no: {reason}"),
        }
    }
}

/// How the sums of a matmul are made. Each class allows those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Accumulation {
    /// In f32 and in one defined order: the same bits on every instruction set and any number of
    /// threads.
    Ordered,
    /// In f32 and in the order of a matrix unit (tensor cores, cooperative matrices, AMX): the same
    /// bits on every run of the same build, device and shape. Subnormal operands and sums may be
    /// taken for zero there, whatever [`Accuracy::flushes_subnormals`] says of the rest.
    #[default]
    MatrixUnit,
    /// On FP8 tensor cores, whose sums keep about 14 bits and are added in f32 every 128 of k. It
    /// runs only where it is asked for.
    Fp8TensorCore,
}

impl Accumulation {
    /// All classes, the most exact first.
    pub const ALL: [Self; 3] = [Self::Ordered, Self::MatrixUnit, Self::Fp8TensorCore];

    /// The name, for flags and environment variables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ordered => "ordered",
            Self::MatrixUnit => "matrix-unit",
            Self::Fp8TensorCore => "fp8-tensor-core",
        }
    }

    /// Takes a name back.
    ///
    /// # Errors
    /// Another name.
    pub fn from_name(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|a| a.name() == name);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            let expected = format!("one of {names}");
            Error::argument("accumulation", expected, format!("`{name}`"))
        })
    }
}

impl fmt::Display for Accumulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How exact a backend's results are: what its tests hold it to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accuracy {
    /// How far an activation's result in f32 may be from the exact one, in units in the last
    /// place. In f16 and bf16 it is one unit, and 99.9 % are correctly rounded.
    pub f32_ulps: u32,
    /// Whether subnormal operands and results may be taken for zero, and a zero lose its sign.
    pub flushes_subnormals: bool,
    /// The least exact class of sums that its matmuls may use as it was opened.
    pub accumulation: Accumulation,
}

impl Accuracy {
    /// The contract's own: f32 within 4 ulp, subnormals and the sign of zero survive, ordered sums.
    pub const EXACT: Self = Self {
        f32_ulps: 4,
        flushes_subnormals: false,
        accumulation: Accumulation::Ordered,
    };

    /// The bound in units in the last place of results in this type.
    pub const fn ulps(&self, float: Float) -> u32 {
        match float {
            Float::F32 => self.f32_ulps,
            Float::F16 | Float::BF16 => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lesser_promise_wins() {
        let no = || Support::No("no".to_owned());
        let by = |s: &str| Support::Emulated(s.to_owned());
        assert_eq!(Support::Native.and(no()), no());
        assert_eq!(no().and(by("a")), no());
        assert_eq!(by("a").and(by("b")), by("a"));
        assert_eq!(Support::Native.and(by("b")), by("b"));
        let request = Request::Activation {
            op: GatedActivation::deepseek_v4(),
            float: Float::BF16,
        };
        let error = no().required("tpu", &request).unwrap_err().to_string();
        let expected = "tpu does not support silu_and_mul_with_clamp(limit=10, official) in bf16";
        assert!(error.starts_with(expected), "{error}");
    }

    #[test]
    fn classes_of_sums_are_ordered_by_exactness_and_read_back() {
        for class in Accumulation::ALL {
            assert_eq!(Accumulation::from_name(class.name()).unwrap(), class);
        }
        assert!(Accumulation::Ordered < Accumulation::MatrixUnit);
        assert!(Accumulation::from_name("fast").is_err());
    }
}
