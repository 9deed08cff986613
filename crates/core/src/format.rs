//! How numbers are stored, one file a format: its codes, their values, and which are NaN.
//!
//! [`WeightFormat`] and [`ScaleFormat`] name them; [`crate::HostWeight`] decodes by them.

use std::fmt;

use crate::{Error, Float, Result};

mod e2m1;
mod e4m3;
mod e8m0;

pub use e2m1::E2M1;
pub use e4m3::E4M3;
pub use e8m0::E8M0;

/// How a scale is stored, of a block of weights or of a group of quantized activations. Scales
/// multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleFormat {
    /// An f32.
    F32,
    /// A power of two in one byte, an [`E8M0`]. Quantization rounds up to it (DeepSeek's UE8M0).
    E8M0,
}

impl ScaleFormat {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::F32, Self::E8M0];

    /// Bytes of one scale.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::E8M0 => 1,
        }
    }

    /// The name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::E8M0 => "e8m0",
        }
    }

    /// The scale number `index` of little-endian scales. `bytes` must hold it.
    pub fn read(self, bytes: &[u8], index: usize) -> f32 {
        match self {
            Self::F32 => bytemuck::pod_read_unaligned(&bytes[4 * index..4 * index + 4]),
            Self::E8M0 => E8M0(bytes[index]).to_f32(),
        }
    }

    /// Writes the scale number `index`; as an [`E8M0`] it is rounded up to a power of two.
    pub fn write(self, bytes: &mut [u8], index: usize, scale: f32) {
        match self {
            Self::F32 => {
                bytes[4 * index..4 * index + 4].copy_from_slice(&scale.to_le_bytes());
            }
            Self::E8M0 => bytes[index] = E8M0::ceil(scale).0,
        }
    }
}

impl fmt::Display for ScaleFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a weight's elements are stored. FP8 weights come in blocks that share a scale, FP4 weights
/// in groups of 32 along K.
///
/// ```
/// use swiglu_core::{Float, ScaleFormat, WeightFormat};
/// let fp8 = WeightFormat::Fp8 { scales: ScaleFormat::E8M0, block: [128, 128] };
/// assert_eq!((fp8.bits(), fp8.row_bytes(4096)), (8, 4096));
/// assert_eq!(fp8.to_string(), "fp8 in blocks of 128 x 128 with e8m0 scales");
/// assert_eq!(WeightFormat::Float(Float::BF16).to_string(), "bf16");
/// assert_eq!(WeightFormat::Fp4.row_bytes(4096), 2048);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightFormat {
    /// Plain numbers, without scales.
    Float(Float),
    /// [`E4M3`] codes, with one scale for each `block[0]` rows and `block[1]` columns.
    Fp8 {
        /// How the scales are stored.
        scales: ScaleFormat,
        /// Rows and columns of a block, each at least 1.
        block: [usize; 2],
    },
    /// [`E2M1`] codes, two in a byte along K, the even column in the lower half; one
    /// [`ScaleFormat::E8M0`] scale for each [`Self::FP4_GROUP`] columns of a row. Rows are whole
    /// groups. This is how DeepSeek-V4 stores its routed experts (MXFP4 as OCP defines it).
    Fp4,
}

impl WeightFormat {
    /// Columns of a row of [`Self::Fp4`] that share a scale.
    pub const FP4_GROUP: usize = 32;

    /// DeepSeek-V4's: FP8 in blocks of 128 x 128 with [`ScaleFormat::E8M0`] scales.
    pub const DEEPSEEK_V4: Self = Self::Fp8 {
        scales: ScaleFormat::E8M0,
        block: [128, 128],
    };

    /// One of each kind, for checks of completeness: FP8 with either type of scale.
    pub const SAMPLES: [Self; 6] = [
        Self::Float(Float::F32),
        Self::Float(Float::F16),
        Self::Float(Float::BF16),
        Self::DEEPSEEK_V4,
        Self::Fp8 {
            scales: ScaleFormat::F32,
            block: [128, 128],
        },
        Self::Fp4,
    ];

    /// Bits of an element.
    pub const fn bits(&self) -> usize {
        match self {
            Self::Float(float) => 8 * float.size(),
            Self::Fp8 { .. } => 8,
            Self::Fp4 => 4,
        }
    }

    /// Bytes of a row of `k` elements, without its scales. A size out of range is `usize::MAX`.
    pub const fn row_bytes(&self, k: usize) -> usize {
        match k.checked_mul(self.bits()) {
            Some(bits) => bits.div_ceil(8),
            None => usize::MAX,
        }
    }

    /// The element's format, in lower case.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Float(float) => float.name(),
            Self::Fp8 { .. } => "fp8",
            Self::Fp4 => "fp4",
        }
    }

    /// How the scales are stored and the rows and columns that share one; none for plain numbers.
    pub const fn scaling(&self) -> Option<(ScaleFormat, [usize; 2])> {
        match self {
            Self::Float(_) => None,
            Self::Fp8 { scales, block } => Some((*scales, *block)),
            Self::Fp4 => Some((ScaleFormat::E8M0, [1, Self::FP4_GROUP])),
        }
    }

    /// A weight's columns (K) are a multiple of this.
    pub const fn columns_step(&self) -> usize {
        match self {
            Self::Float(_) | Self::Fp8 { .. } => 1,
            Self::Fp4 => Self::FP4_GROUP,
        }
    }

    /// The grid of scales of a weight of this shape, [0, 0] where there are none.
    ///
    /// # Errors
    /// A block with a side of 0, or columns that [`Self::columns_step`] does not divide.
    pub fn scale_grid(&self, [rows, cols]: [usize; 2]) -> Result<[usize; 2]> {
        let step = self.columns_step();
        if !cols.is_multiple_of(step) {
            let expected = format!("a multiple of {step} columns for {self}");
            return Err(Error::argument("weight", expected, cols));
        }
        match self.scaling() {
            None => Ok([0, 0]),
            Some((_, [r, c])) if r == 0 || c == 0 => {
                let got = format!("{r} x {c}");
                Err(Error::argument("block", "at least 1 x 1", got))
            }
            Some((_, [r, c])) => Ok([rows.div_ceil(r), cols.div_ceil(c)]),
        }
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self.scaling() {
            None => Ok(()),
            Some((scales, [r, c])) => write!(f, " in blocks of {r} x {c} with {scales} scales"),
        }
    }
}
