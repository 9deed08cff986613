use safetensors::Dtype;
use swiglu_core::{BlockScales, DType, HostWeight, Quantization};

use crate::checkpoint::Stored;
use crate::shard::{Axis, OwnedWeight};
use crate::{Checkpoint, Error, MlpConfig, Result, Shard};

/// The weights of a shared expert in host memory: gate and up [I, H], down [H, I].
#[derive(Clone, Debug)]
pub struct SharedExpert<'a> {
    gate: HostWeight<'a>,
    up: HostWeight<'a>,
    down: HostWeight<'a>,
}

/// How a checkpoint names gate, up, down and a weight's scales.
struct Scheme {
    matrices: [&'static str; 3],
    scale: &'static str,
}

const SCHEMES: [Scheme; 2] = [
    // DeepSeek's own.
    Scheme {
        matrices: ["w1", "w3", "w2"],
        scale: "scale",
    },
    // Hugging Face's; the scale multiplies, whatever its name says.
    Scheme {
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
        let found = checkpoint.under(&config.prefix);
        let source = Source {
            checkpoint,
            config,
            scheme: scheme(checkpoint, &config.prefix, &found)?,
            found,
        };
        source.check_names()?;
        let (h, i) = (config.hidden_size, config.intermediate_size);
        let [gate, up, down] = source.scheme.matrices;
        Ok(Self {
            gate: source.weight(gate, [i, h])?,
            up: source.weight(up, [i, h])?,
            down: source.weight(down, [h, i])?,
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

    /// Checks the shapes of the weights.
    ///
    /// # Errors
    /// The first that is not as `hidden` and `intermediate` demand.
    pub fn check(&self, hidden: usize, intermediate: usize) -> Result<()> {
        for (name, weight, shape) in [
            ("gate", &self.gate, [intermediate, hidden]),
            ("up", &self.up, [intermediate, hidden]),
            ("down", &self.down, [hidden, intermediate]),
        ] {
            let got = [weight.rows(), weight.cols()];
            if got != shape {
                let (expected, got) = (format!("shape {shape:?}"), format!("{got:?}"));
                return Err(swiglu_core::Error::argument(name, expected, got).into());
            }
        }
        Ok(())
    }

    /// Checks that these are weights whose products read quantized rows: FP8, in blocks as wide as
    /// the rows' groups.
    ///
    /// # Errors
    /// The first that is not.
    pub(crate) fn check_quantized(&self, quant: &Quantization) -> Result<()> {
        for (name, weight) in [("gate", &self.gate), ("up", &self.up), ("down", &self.down)] {
            let Some(scales) = weight.scales() else {
                let expected = format!("none, as the {name} weight is not FP8");
                let got = format!("Fp8Block with {}", weight.dtype());
                return Err(Error::config("activation_quant", expected, got));
            };
            if scales.block[1] != quant.group() {
                let expected = format!("blocks {} columns wide", quant.group());
                return Err(swiglu_core::Error::argument(name, expected, scales.block[1]).into());
            }
        }
        Ok(())
    }

    /// A rank's part, or none where that is the whole.
    pub(crate) fn shard(&self, shard: Shard) -> Result<Option<OwnedExpert>> {
        if !shard.is_split() {
            return Ok(None);
        }
        // The same columns of `act` must be cut from all three: at whole blocks of each.
        let sides = [
            self.gate.scales().map_or(1, |s| s.block[0]),
            self.up.scales().map_or(1, |s| s.block[0]),
            self.down.scales().map_or(1, |s| s.block[1]),
        ];
        let width = sides
            .into_iter()
            .try_fold(1, common_multiple)
            .and_then(|block| shard.width(self.gate.rows(), block))
            .ok_or_else(|| {
                let expected = "blocks with a common multiple in range";
                Error::config("block", expected, format!("{sides:?}"))
            })?;
        let cut = |weight, axis| OwnedWeight::cut(weight, axis, shard.rank, width);
        Ok(Some(OwnedExpert {
            gate: cut(&self.gate, Axis::Rows)?,
            up: cut(&self.up, Axis::Rows)?,
            down: cut(&self.down, Axis::Cols)?,
        }))
    }
}

/// A rank's part of a shared expert.
pub(crate) struct OwnedExpert {
    gate: OwnedWeight,
    up: OwnedWeight,
    down: OwnedWeight,
}

impl OwnedExpert {
    pub(crate) fn view(&self) -> Result<SharedExpert<'_>> {
        Ok(SharedExpert {
            gate: self.gate.view()?,
            up: self.up.view()?,
            down: self.down.view()?,
        })
    }
}

fn common_multiple(a: usize, b: usize) -> Option<usize> {
    let (mut gcd, mut rest) = (a, b);
    while rest != 0 {
        (gcd, rest) = (rest, gcd % rest);
    }
    (a / gcd).checked_mul(b)
}

/// The scheme of the tensors found: that of the names of their matrices.
fn scheme(checkpoint: &Checkpoint, prefix: &str, found: &[Stored<'_>]) -> Result<&'static Scheme> {
    let matrix = |name: &str| -> Option<String> {
        let rest = name.strip_prefix(prefix)?.strip_prefix('.')?;
        Some(rest.split('.').next()?.to_owned())
    };
    let of = |scheme: &Scheme| {
        found
            .iter()
            .find(|t| matrix(t.name).is_some_and(|m| scheme.matrices.contains(&m.as_str())))
    };
    match [of(&SCHEMES[0]), of(&SCHEMES[1])] {
        [Some(_), None] => Ok(&SCHEMES[0]),
        [None, Some(_)] => Ok(&SCHEMES[1]),
        [Some(a), Some(b)] => {
            let problem = format!("mixes namings with {}", a.name);
            Err(Error::tensor(b.name, b.path, problem))
        }
        [None, None] => {
            let name = format!("{prefix}.w1.weight");
            let problem = format!("missing, and so is {prefix}.gate_proj.weight");
            Err(Error::tensor(&name, checkpoint.path(), problem))
        }
    }
}

/// The tensors under a prefix, and what is expected of them.
struct Source<'a, 'c> {
    checkpoint: &'a Checkpoint,
    config: &'c MlpConfig,
    scheme: &'static Scheme,
    found: Vec<Stored<'a>>,
}

impl<'a> Source<'a, '_> {
    fn weight_name(&self, matrix: &str) -> String {
        format!("{}.{matrix}.weight", self.config.prefix)
    }

    fn scale_name(&self, matrix: &str) -> String {
        format!("{}.{matrix}.{}", self.config.prefix, self.scheme.scale)
    }

    fn find(&self, name: &str) -> Option<&Stored<'a>> {
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
        let dtypes = [DType::F8E4M3, DType::BF16, DType::F16, DType::F32];
        let dtype = expect(weight, &dtypes, shape)?;
        let scales = match (dtype, scale) {
            (DType::F8E4M3, None) => {
                return Err(missing(&scale_name, "missing, and FP8 weights need it"));
            }
            (DType::F8E4M3, Some(scale)) => {
                let block = self.config.block.ok_or_else(|| {
                    let expected = format!("the blocks' sides, for the FP8 weight {name}");
                    Error::config("block", expected, "none")
                })?;
                let grid = [shape[0].div_ceil(block[0]), shape[1].div_ceil(block[1])];
                Some(BlockScales {
                    data: scale.data,
                    dtype: expect(scale, &[DType::E8M0, DType::F32], grid)?,
                    block,
                })
            }
            (_, None) => None,
            (_, Some(scale)) => {
                let problem = format!("unexpected: the weight is {dtype}, which takes no scale");
                return Err(Error::tensor(scale.name, scale.path, problem));
            }
        };
        HostWeight::new(shape[0], shape[1], dtype, weight.data, scales)
            .map_err(|e| Error::tensor(&name, weight.path, e))
    }
}

/// The type of a tensor that must have one of `dtypes` and this shape.
fn expect(tensor: &Stored<'_>, dtypes: &[DType], shape: [usize; 2]) -> Result<DType> {
    let wrong = |problem| Error::tensor(tensor.name, tensor.path, problem);
    let dtype = stored_type(tensor.dtype).filter(|d| dtypes.contains(d));
    let dtype = dtype.ok_or_else(|| {
        let names: Vec<_> = dtypes.iter().map(|d| d.name()).collect();
        let got = format!("{:?}", tensor.dtype);
        wrong(format!("expected {}, got {got}", names.join(", ")))
    })?;
    if tensor.shape != shape {
        return Err(wrong(format!(
            "expected shape {shape:?}, got {:?}",
            tensor.shape
        )));
    }
    Ok(dtype)
}

fn stored_type(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F8_E4M3 => Some(DType::F8E4M3),
        Dtype::F8_E8M0 => Some(DType::E8M0),
        _ => None,
    }
}
