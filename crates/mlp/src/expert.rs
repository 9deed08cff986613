use std::borrow::Cow;

use safetensors::Dtype;
use swiglu_core::{Error as CoreError, Float, HostWeight, ScaleFormat, WeightFormat};

use crate::checkpoint::{StoredTensor, StoredType};
use crate::shard::cut;
use crate::{Checkpoint, Error, MlpConfig, Result, Shard};

/// The weights of a shared expert in host memory: gate and up [I, H], down [H, I].
#[derive(Clone, Debug)]
pub struct SharedExpert<'a> {
    pub(crate) gate: HostWeight<'a>,
    pub(crate) up: HostWeight<'a>,
    pub(crate) down: HostWeight<'a>,
}

/// How a checkpoint names gate, up, down and a weight's scales.
struct NamingScheme {
    matrices: [&'static str; 3],
    scale: &'static str,
}

const NAMING_SCHEMES: [NamingScheme; 2] = [
    // DeepSeek's own.
    NamingScheme {
        matrices: ["w1", "w3", "w2"],
        scale: "scale",
    },
    // Hugging Face's; the scale multiplies, whatever its name says.
    NamingScheme {
        matrices: ["gate_proj", "up_proj", "down_proj"],
        scale: "weight_scale_inv",
    },
];

impl<'a> SharedExpert<'a> {
    /// Weights that the caller holds: gate and up [I, H], down [H, I].
    pub const fn new(gate: HostWeight<'a>, up: HostWeight<'a>, down: HostWeight<'a>) -> Self {
        Self { gate, up, down }
    }

    /// Finds the weights under `config.prefix` by either naming: DeepSeek's (`w1`, `w3`, `w2`,
    /// `.scale`) or Hugging Face's (`gate_proj`, `up_proj`, `down_proj`, `.weight_scale_inv`). They
    /// stay where they are mapped.
    ///
    /// # Errors
    /// A tensor that is missing, unexpected under the prefix, misshaped or wrong-typed, the two
    /// namings mixed, and FP8 weights where `config.block` is not given.
    pub fn load(checkpoint: &'a Checkpoint, config: &MlpConfig) -> Result<Self> {
        config.check()?;
        let found = checkpoint.under(&config.prefix)?;
        let tensors = ExpertTensors {
            checkpoint,
            config,
            scheme: scheme(checkpoint, &config.prefix, &found)?,
            found,
        };
        tensors.check_names()?;
        let (h, i) = (config.hidden_size, config.intermediate_size);
        let [gate, up, down] = tensors.scheme.matrices;
        Ok(Self {
            gate: tensors.weight(gate, [i, h])?,
            up: tensors.weight(up, [i, h])?,
            down: tensors.weight(down, [h, i])?,
        })
    }

    /// The gate's weight, [I, H].
    pub const fn gate(&self) -> &HostWeight<'a> {
        &self.gate
    }

    /// The up weight, [I, H].
    pub const fn up(&self) -> &HostWeight<'a> {
        &self.up
    }

    /// The down weight, [H, I].
    pub const fn down(&self) -> &HostWeight<'a> {
        &self.down
    }

    /// Checks that the weights fit together.
    ///
    /// # Errors
    /// The first whose shape is not as `hidden` and `intermediate` demand; gate and up in different
    /// formats.
    pub fn check(&self, hidden: usize, intermediate: usize) -> Result<()> {
        for (name, weight, shape) in [
            ("gate", &self.gate, [intermediate, hidden]),
            ("up", &self.up, [intermediate, hidden]),
            ("down", &self.down, [hidden, intermediate]),
        ] {
            let got = [weight.rows(), weight.cols()];
            if got != shape {
                let (expected, got) = (format!("shape {shape:?}"), format!("{got:?}"));
                return Err(CoreError::argument(name, expected, got).into());
            }
        }
        let (gate, up) = (self.gate.format(), self.up.format());
        if up != gate {
            let expected = format!("{gate}, as the gate weight is");
            return Err(CoreError::argument("up", expected, up).into());
        }
        Ok(())
    }

    /// A rank's part of the weights: a copy, or where that is the whole, these.
    pub(crate) fn part(&self, shard: Shard) -> Result<SharedExpert<'_>> {
        if !shard.is_split() {
            return Ok(SharedExpert {
                gate: borrowed(&self.gate)?,
                up: borrowed(&self.up)?,
                down: borrowed(&self.down)?,
            });
        }
        // The same columns of `act` must be cut from all three: at whole blocks of each.
        let side = |weight: &HostWeight<'_>, axis: usize| {
            let scaling = weight.format().scaling();
            scaling.map_or(1, |(_, block)| block[axis])
        };
        let [gate, up, down] = [side(&self.gate, 0), side(&self.up, 0), side(&self.down, 1)];
        let width = common_multiple(gate, up)
            .and_then(|block| common_multiple(block, down))
            .and_then(|block| shard.width(self.gate.rows(), block))
            .ok_or_else(|| {
                let expected = "blocks with a common multiple in range";
                Error::config("block", expected, format!("{gate}, {up} and {down}"))
            })?;
        let start = shard.rank.saturating_mul(width);
        let hidden = self.gate.cols();
        Ok(SharedExpert {
            gate: cut(&self.gate, [start, 0], [width, hidden])?,
            up: cut(&self.up, [start, 0], [width, hidden])?,
            down: cut(&self.down, [0, start], [hidden, width])?,
        })
    }
}

/// The same weight without a copy.
fn borrowed<'a>(weight: &'a HostWeight<'_>) -> Result<HostWeight<'a>> {
    let shape = [weight.rows(), weight.cols()];
    Ok(HostWeight::new(
        shape,
        weight.format(),
        weight.data(),
        weight.scales(),
    )?)
}

fn common_multiple(a: usize, b: usize) -> Option<usize> {
    let (mut gcd, mut rest) = (a, b);
    while rest != 0 {
        (gcd, rest) = (rest, gcd % rest);
    }
    (a / gcd).checked_mul(b)
}

/// The scheme of the tensors found: that of the names of their matrices.
fn scheme(
    checkpoint: &Checkpoint,
    prefix: &str,
    found: &[StoredTensor<'_>],
) -> Result<&'static NamingScheme> {
    let matrix = |name: &str| -> Option<String> {
        let rest = name.strip_prefix(prefix)?.strip_prefix('.')?;
        Some(rest.split('.').next()?.to_owned())
    };
    let of = |scheme: &NamingScheme| {
        found
            .iter()
            .find(|t| matrix(t.name).is_some_and(|m| scheme.matrices.contains(&m.as_str())))
    };
    match [of(&NAMING_SCHEMES[0]), of(&NAMING_SCHEMES[1])] {
        [Some(_), None] => Ok(&NAMING_SCHEMES[0]),
        [None, Some(_)] => Ok(&NAMING_SCHEMES[1]),
        [Some(a), Some(b)] => {
            let problem = format!("mixes namings with {}", a.name);
            Err(Error::tensor(b.name, b.path, problem))
        }
        [None, None] => Err(checkpoint.no_mlp(prefix)),
    }
}

/// The tensors under a prefix, and what is expected of them.
struct ExpertTensors<'a, 'c> {
    checkpoint: &'a Checkpoint,
    config: &'c MlpConfig,
    scheme: &'static NamingScheme,
    found: Vec<StoredTensor<'a>>,
}

impl<'a> ExpertTensors<'a, '_> {
    fn weight_name(&self, matrix: &str) -> String {
        format!("{}.{matrix}.weight", self.config.prefix)
    }

    fn scale_name(&self, matrix: &str) -> String {
        format!("{}.{matrix}.{}", self.config.prefix, self.scheme.scale)
    }

    fn find(&self, name: &str) -> Option<&StoredTensor<'a>> {
        self.found.iter().find(|t| t.name == name)
    }

    fn check_names(&self) -> Result<()> {
        let known = |name: &str| {
            let mut matrices = self.scheme.matrices.iter();
            matrices.any(|m| name == self.weight_name(m) || name == self.scale_name(m))
        };
        match self.found.iter().find(|t| !known(t.name)) {
            None => Ok(()),
            Some(t) => Err(Error::tensor(t.name, t.path, "unexpected under the prefix")),
        }
    }

    fn weight(&self, matrix: &str, shape: [usize; 2]) -> Result<HostWeight<'a>> {
        let (name, scale_name) = (self.weight_name(matrix), self.scale_name(matrix));
        let missing =
            |name: &str, problem: &str| Error::tensor(name, self.checkpoint.path(), problem);
        let weight = self.find(&name).ok_or_else(|| missing(&name, "missing"))?;
        let scale = self.find(&scale_name);
        let float = match weight.dtype {
            StoredType::Known(Dtype::F8_E4M3) => None,
            StoredType::Known(Dtype::BF16) => Some(Float::BF16),
            StoredType::Known(Dtype::F16) => Some(Float::F16),
            StoredType::Known(Dtype::F32) => Some(Float::F32),
            _ => return Err(wrong_type(weight, "F8_E4M3, BF16, F16 or F32")),
        };
        has_shape(weight, shape)?;
        let (format, scales) = match (float, scale) {
            (Some(float), None) => (WeightFormat::Float(float), Cow::Borrowed(&[][..])),
            (Some(float), Some(scale)) => {
                let problem = format!("unexpected: the weight is {float}, which takes no scale");
                return Err(Error::tensor(scale.name, scale.path, problem));
            }
            (None, None) => {
                return Err(missing(&scale_name, "missing, and FP8 weights need it"));
            }
            (None, Some(scale)) => (self.fp8(&name, shape, scale)?, scale.data()?),
        };
        match (weight.data()?, scales) {
            (Cow::Borrowed(data), Cow::Borrowed(scales)) => {
                HostWeight::new(shape, format, data, scales)
            }
            (data, scales) => {
                HostWeight::owned(shape, format, data.into_owned(), scales.into_owned())
            }
        }
        .map_err(|e| weight.error(e))
    }

    /// The format of the FP8 weight `name` with these scales.
    fn fp8(
        &self,
        name: &str,
        [rows, cols]: [usize; 2],
        scale: &StoredTensor<'_>,
    ) -> Result<WeightFormat> {
        let block = self.config.block.ok_or_else(|| {
            let expected = format!("the blocks' sides, for the FP8 weight {name}");
            Error::config("block", expected, "none")
        })?;
        let scales = match scale.dtype {
            StoredType::Known(Dtype::F8_E8M0) => ScaleFormat::E8M0,
            StoredType::Known(Dtype::F32) => ScaleFormat::F32,
            _ => return Err(wrong_type(scale, "F8_E8M0 or F32")),
        };
        has_shape(scale, [rows.div_ceil(block[0]), cols.div_ceil(block[1])])?;
        Ok(WeightFormat::Fp8 { scales, block })
    }
}

fn wrong_type(tensor: &StoredTensor<'_>, expected: &str) -> Error {
    let problem = format!("expected {expected}, got {}", tensor.dtype);
    Error::tensor(tensor.name, tensor.path, problem)
}

fn has_shape(tensor: &StoredTensor<'_>, shape: [usize; 2]) -> Result<()> {
    if tensor.shape == shape {
        return Ok(());
    }
    let problem = format!("expected shape {shape:?}, got {:?}", tensor.shape);
    Err(Error::tensor(tensor.name, tensor.path, problem))
}
