//! The weights of an MLP out of the tensors that were found.

use std::borrow::Cow;

use safetensors::Dtype;
use swiglu_core::{Float, HostWeight, ScaleFormat, WeightFormat, bf16, f16};

use super::SharedExpert;
use super::blocks::{self, ScaledShape};
use super::names::{MatrixTensors, MlpTensors};
use crate::checkpoint::{Pages, ReadAhead, StoredTensor, StoredType};
use crate::shard::split_rows;
use crate::{ActivationQuant, Checkpoint, Error, MlpConfig, Result, text};

/// A matrix with its scales, both of the right type and shape.
struct Matrix<'a> {
    weight: StoredTensor<'a>,
    shape: [usize; 2],
    content: Content<'a>,
}

enum Content<'a> {
    Float(Float),
    Fp8 {
        scale: StoredTensor<'a>,
        stored: StoredScales,
        grid: [usize; 2],
    },
    /// Two codes in a byte, with scales of E8M0 for groups along a row.
    Fp4 {
        scale: StoredTensor<'a>,
    },
}

/// How the elements of a weight are stored.
#[derive(Clone, Copy)]
enum StoredElements {
    Float(Float),
    Fp8,
    /// Packed, as I8 or U8 \[R, C/2\].
    Fp4Bytes,
    /// Packed, as F4 of the logical shape \[R, C\].
    Fp4,
}

/// How a file has scales.
#[derive(Clone, Copy)]
enum StoredScales {
    E8m0,
    F32,
    /// Widened to f32 as they are loaded, which is exact.
    F16,
    Bf16,
}

/// The matrices of an MLP, not yet read.
pub struct Matrices<'a> {
    /// Gate and up, or both in one.
    gate_up: Vec<Matrix<'a>>,
    down: Matrix<'a>,
    block: Option<[usize; 2]>,
    ahead: &'a ReadAhead,
}

impl<'a> Matrices<'a> {
    /// Finds and checks them.
    pub fn find(checkpoint: &'a Checkpoint, config: &MlpConfig) -> Result<Self> {
        config.check()?;
        let prefix = &config.prefix;
        let found = MlpTensors::find(checkpoint, prefix)?;
        if config.activation_quant != ActivationQuant::None
            && let Some(scale) = found.input_scales().next()
        {
            let problem = "a static scale of a matmul's input, which FP8 activations with a scale \
                           for each group do not use: expected bf16 activations";
            return Err(scale.error(problem));
        }
        let (h, i) = (config.hidden_size, config.intermediate_size);
        let one = |tensors: &MatrixTensors<'a>, names, shape| match tensors.weight {
            Some(weight) => Matrix::new(checkpoint, config, weight, tensors.scale, shape),
            None => Err(found.missing(checkpoint, prefix, names)),
        };
        let gate_up = match found.gate_up.weight {
            Some(weight) => {
                let both = i
                    .checked_mul(2)
                    .ok_or_else(|| Error::config("intermediate_size", "a size within range", i))?;
                let scale = found.gate_up.scale;
                vec![Matrix::new(checkpoint, config, weight, scale, [both, h])?]
            }
            None => vec![
                one(&found.gate, ["w1", "gate_proj"], [i, h])?,
                one(&found.up, ["w3", "up_proj"], [i, h])?,
            ],
        };
        Ok(Self {
            gate_up,
            down: one(&found.down, ["w2", "down_proj"], [h, i])?,
            block: config.block,
            ahead: checkpoint.ahead(),
        })
    }

    /// Reads them: mapped ones into the page cache.
    pub fn read(&self) -> Result<SharedExpert<'a>> {
        let all = self.scaled();
        let pages = Pages::of(self.weights());
        let started = self.ahead.start(&pages);
        let read = |matrix: &Matrix<'a>| matrix.read(self.block, &all);
        let (gate, up) = match &self.gate_up[..] {
            [gate, up] => (read(gate)?, read(up)?),
            both => {
                let [both] = both else {
                    return Err(Error::config("gate_up", "one weight or two", both.len()));
                };
                split_rows(read(both)?)?
            }
        };
        let expert = SharedExpert::new(gate, up, read(&self.down)?).with_pages(pages);
        if let Some(number) = started {
            self.ahead.wait(number);
        }
        Ok(expert)
    }

    /// Reads them ahead, for a call of [`Self::read`] that comes later.
    pub fn read_ahead(&self) {
        self.ahead.start(&Pages::of(self.weights()));
    }

    fn weights(&self) -> impl Iterator<Item = &StoredTensor<'a>> {
        let matrices = self.gate_up.iter().chain([&self.down]);
        matrices.map(|matrix| &matrix.weight)
    }

    /// How gate, up and down are stored: as one they are of one format.
    pub fn formats(&self) -> Result<[WeightFormat; 3]> {
        let all = self.scaled();
        let format = |matrix: Option<&Matrix<'a>>| match matrix {
            Some(matrix) => matrix.format(self.block, &all),
            None => Err(Error::config("gate_up", "one weight or two", "none")),
        };
        let (gate, up) = (self.gate_up.first(), self.gate_up.last());
        Ok([format(gate)?, format(up)?, format(Some(&self.down))?])
    }

    /// The one block of all weights, where all are FP8 in blocks of one shape.
    pub fn block(&self) -> Result<Option<[usize; 2]>> {
        if self.block.is_some() {
            return Ok(self.block);
        }
        let all = self.scaled();
        let matrices = self.gate_up.iter().chain([&self.down]);
        let blocks: Result<Vec<_>> = matrices.map(|m| m.block(None, &all)).collect();
        let blocks = blocks?;
        let first = blocks.first().copied().flatten();
        Ok(first.filter(|_| blocks.iter().all(|b| *b == first)))
    }

    fn scaled(&self) -> Vec<ScaledShape> {
        let matrices = self.gate_up.iter().chain([&self.down]);
        matrices.filter_map(Matrix::scaled).collect()
    }
}

impl<'a> Matrix<'a> {
    fn new(
        checkpoint: &Checkpoint,
        config: &MlpConfig,
        weight: StoredTensor<'a>,
        scale: Option<StoredTensor<'a>>,
        shape: [usize; 2],
    ) -> Result<Self> {
        let elements = StoredElements::of(&weight)?;
        let step = elements.columns_step();
        if !shape[1].is_multiple_of(step) {
            let got = shape[1];
            let problem = format!("packed FP4, expected a multiple of {step} columns, got {got}");
            return Err(weight.error(problem));
        }
        let stored = match elements {
            StoredElements::Fp4Bytes => [shape[0], shape[1] / 2],
            StoredElements::Float(_) | StoredElements::Fp8 | StoredElements::Fp4 => shape,
        };
        if weight.shape != stored {
            let packed = match elements {
                StoredElements::Fp4Bytes => " of packed FP4, two codes in a byte",
                _ => "",
            };
            return Err(misshaped(&weight, &format!("{stored:?}{packed}")));
        }
        let needed = |what: &str| {
            let name = MatrixTensors::scale_name(weight.name);
            let problem = format!("missing, and {what} weights need it");
            Error::tensor(&name, checkpoint.path(), problem)
        };
        let content = match (elements, scale) {
            (StoredElements::Float(float), None) => Content::Float(float),
            (StoredElements::Float(float), Some(scale)) => {
                let problem = format!("unexpected: the weight is {float}, which takes no scale");
                return Err(scale.error(problem));
            }
            (StoredElements::Fp8, None) => return Err(needed("FP8")),
            (StoredElements::Fp4Bytes | StoredElements::Fp4, None) => return Err(needed("FP4")),
            (StoredElements::Fp8, Some(scale)) => Content::Fp8 {
                scale,
                stored: StoredScales::of(&scale, config.ue8m0)?,
                grid: grid(&scale, shape, config.block)?,
            },
            (StoredElements::Fp4Bytes | StoredElements::Fp4, Some(scale)) => {
                fp4_scales(&scale, shape)?;
                Content::Fp4 { scale }
            }
        };
        Ok(Self {
            weight,
            shape,
            content,
        })
    }

    fn scaled(&self) -> Option<ScaledShape> {
        match self.content {
            Content::Float(_) | Content::Fp4 { .. } => None,
            Content::Fp8 { grid, .. } => Some(ScaledShape {
                shape: self.shape,
                grid,
            }),
        }
    }

    /// The block that shares a scale, none of plain numbers.
    fn block(&self, stated: Option<[usize; 2]>, all: &[ScaledShape]) -> Result<Option<[usize; 2]>> {
        let Content::Fp8 { scale, grid, .. } = &self.content else {
            return Ok(None);
        };
        if stated.is_some() {
            return Ok(stated);
        }
        let of = ScaledShape {
            shape: self.shape,
            grid: *grid,
        };
        let block = blocks::derive(of, all).map_err(|problem| scale.error(problem))?;
        Ok(Some(block))
    }

    fn format(&self, stated: Option<[usize; 2]>, all: &[ScaledShape]) -> Result<WeightFormat> {
        match (&self.content, self.block(stated, all)?) {
            (Content::Fp8 { stored, .. }, Some(block)) => Ok(WeightFormat::Fp8 {
                scales: stored.format(),
                block,
            }),
            (Content::Float(float), _) => Ok(WeightFormat::Float(*float)),
            (Content::Fp4 { .. }, _) => Ok(WeightFormat::Fp4),
            (Content::Fp8 { scale, .. }, None) => Err(scale.error("without a block")),
        }
    }

    fn read(&self, stated: Option<[usize; 2]>, all: &[ScaledShape]) -> Result<HostWeight<'a>> {
        let format = self.format(stated, all)?;
        let scales = match &self.content {
            Content::Float(_) => Cow::Borrowed(&[][..]),
            Content::Fp8 { scale, stored, .. } => stored.read(scale.data()?),
            Content::Fp4 { scale } => scale.data()?,
        };
        match (self.weight.data()?, scales) {
            (Cow::Borrowed(data), Cow::Borrowed(scales)) => {
                HostWeight::new(self.shape, format, data, scales)
            }
            (data, scales) => {
                HostWeight::owned(self.shape, format, data.into_owned(), scales.into_owned())
            }
        }
        .map_err(|e| self.weight.error(e))
    }
}

impl StoredElements {
    /// Columns come in whole groups of so many.
    const fn columns_step(self) -> usize {
        match self {
            Self::Float(_) | Self::Fp8 => 1,
            Self::Fp4Bytes | Self::Fp4 => WeightFormat::FP4_GROUP,
        }
    }

    fn of(weight: &StoredTensor<'_>) -> Result<Self> {
        Ok(match weight.dtype {
            StoredType::Known(Dtype::F8_E4M3) => Self::Fp8,
            StoredType::Known(Dtype::BF16) => Self::Float(Float::BF16),
            StoredType::Known(Dtype::F16) => Self::Float(Float::F16),
            StoredType::Known(Dtype::F32) => Self::Float(Float::F32),
            StoredType::Known(Dtype::I8 | Dtype::U8) => Self::Fp4Bytes,
            StoredType::Known(Dtype::F4) => Self::Fp4,
            other => {
                let reason = match other {
                    StoredType::Known(Dtype::I32) => {
                        ": packed integers, by which nothing here multiplies"
                    }
                    _ => "",
                };
                let expected = "F8_E4M3, BF16, F16, F32, or FP4 as I8, U8 or F4";
                let problem = format!("expected {expected}, got {other}{reason}");
                return Err(weight.error(problem));
            }
        })
    }
}

/// Checks the scales of an FP4 weight of this logical shape: a byte for each 32 columns of a row.
fn fp4_scales(scale: &StoredTensor<'_>, [rows, cols]: [usize; 2]) -> Result<()> {
    match scale.dtype {
        StoredType::Known(Dtype::F8_E8M0 | Dtype::U8) => {}
        other => {
            let reason = match other {
                StoredType::Known(Dtype::F8_E4M3) => ": those are of NVFP4, which is not read",
                _ => "",
            };
            let problem = format!("expected F8_E8M0 or U8 beside FP4, got {other}{reason}");
            return Err(scale.error(problem));
        }
    }
    let expected = [rows, cols / WeightFormat::FP4_GROUP];
    if scale.shape != expected {
        return Err(misshaped(scale, &format!("{expected:?}")));
    }
    Ok(())
}

impl StoredScales {
    fn of(scale: &StoredTensor<'_>, ue8m0: bool) -> Result<Self> {
        let problem = match scale.dtype {
            StoredType::Known(Dtype::F8_E8M0) => return Ok(Self::E8m0),
            StoredType::Known(Dtype::F32) => return Ok(Self::F32),
            StoredType::Known(Dtype::F16) => return Ok(Self::F16),
            StoredType::Known(Dtype::BF16) => return Ok(Self::Bf16),
            StoredType::Known(Dtype::U8) if ue8m0 => return Ok(Self::E8m0),
            StoredType::Known(Dtype::U8) => {
                "which would be E8M0 only if the configuration said so (scale_fmt \"ue8m0\")"
            }
            StoredType::Known(Dtype::F8_E4M3) => "which are NVFP4's",
            _ => "which are no scales of FP8",
        };
        let got = scale.dtype;
        let expected = "F8_E8M0, F32, F16 or BF16";
        Err(scale.error(format!("expected {expected}, got {got}, {problem}")))
    }

    const fn format(self) -> ScaleFormat {
        match self {
            Self::E8m0 => ScaleFormat::E8M0,
            Self::F32 | Self::F16 | Self::Bf16 => ScaleFormat::F32,
        }
    }

    fn read(self, bytes: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
        let widen = |to_f32: fn([u8; 2]) -> f32| {
            let (halves, _) = bytes.as_chunks::<2>();
            let wide = halves.iter().flat_map(|&half| to_f32(half).to_le_bytes());
            Cow::Owned(wide.collect())
        };
        match self {
            Self::E8m0 | Self::F32 => bytes,
            Self::F16 => widen(|half| f16::from_le_bytes(half).to_f32()),
            Self::Bf16 => widen(|half| bf16::from_le_bytes(half).to_f32()),
        }
    }
}

/// Rows and columns of scales: one for all, one a row, or a matrix. Blocks that the configuration
/// states must fit.
fn grid(
    scale: &StoredTensor<'_>,
    [rows, cols]: [usize; 2],
    block: Option<[usize; 2]>,
) -> Result<[usize; 2]> {
    let grid = match *scale.shape {
        [] | [1] => Some([1, 1]),
        [n] if n == rows => Some([n, 1]),
        [r, c] => Some([r, c]),
        _ => None,
    };
    match block.map(|[r, c]| [rows.div_ceil(r), cols.div_ceil(c)]) {
        Some(expected) if grid != Some(expected) => Err(misshaped(scale, &format!("{expected:?}"))),
        None => grid.ok_or_else(|| {
            let expected = format!("[], [{rows}] or a matrix, of scales for [{rows}, {cols}]");
            misshaped(scale, &expected)
        }),
        Some(expected) => Ok(expected),
    }
}

fn misshaped(tensor: &StoredTensor<'_>, expected: &str) -> Error {
    let got = text::shape(tensor.shape);
    let problem = format!("expected shape {expected}, got {got}");
    let path = tensor.path.file_name().map(|name| name.to_string_lossy());
    match path.and_then(|name| crate::checkpoint::tensor_parallel(&name)) {
        Some(what) => tensor.error(format!("{problem}; the file is {what}")),
        None => tensor.error(problem),
    }
}
