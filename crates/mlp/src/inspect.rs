//! What a checkpoint holds, and what a weight's numbers are like: for people who ask why a model
//! does not load, or gives NaN.

use std::path::PathBuf;

use swiglu_core::{Float, HostWeight, WeightFormat};

use crate::checkpoint::StoredTensor;
use crate::{Checkpoint, Result, text};

/// A tensor as the header of its file describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorDescription {
    /// Its full name.
    pub name: String,
    /// What its elements are stored as, in the names of safetensors, such as `F8_E4M3`.
    pub dtype: String,
    /// Its sides.
    pub shape: Vec<usize>,
    /// The file that it lies in.
    pub path: PathBuf,
}

impl Checkpoint {
    /// The tensors whose names begin with `prefix` and a dot. Only headers are read.
    ///
    /// # Errors
    /// A shard of theirs that cannot be opened, and an index that is wrong about one of them.
    pub fn describe(&self, prefix: &str) -> Result<Vec<TensorDescription>> {
        let describe = |tensor: StoredTensor<'_>| TensorDescription {
            name: tensor.name.to_owned(),
            dtype: tensor.dtype.to_string(),
            shape: tensor.shape.to_vec(),
            path: tensor.path.to_owned(),
        };
        Ok(self.under(prefix)?.into_iter().map(describe).collect())
    }
}

/// The elements of a weight that are no ordinary numbers, and its scales.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightSummary {
    /// All elements.
    pub elements: usize,
    /// Those that are NaN: of FP8, the codes 0x7f and 0xff.
    pub nan: usize,
    /// Those that are infinite, which FP8 has none of.
    pub infinite: usize,
    /// The scales, where there are some.
    pub scales: Option<ScaleSummary>,
}

/// The scales of a weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScaleSummary {
    /// All scales.
    pub count: usize,
    /// The least of those that are finite; NaN where none is.
    pub least: f32,
    /// The greatest of those that are finite; NaN where none is.
    pub greatest: f32,
    /// Those that are NaN: of E8M0, the byte 255.
    pub nan: usize,
    /// Those that are infinite.
    pub infinite: usize,
    /// Those that are 0: their blocks are lost.
    pub zero: usize,
    /// Those below 0.
    pub negative: usize,
}

impl WeightSummary {
    /// Looks at every element and every scale.
    pub fn of(weight: &HostWeight<'_>) -> Self {
        let data = weight.data();
        let count =
            |is: &dyn Fn(&[u8]) -> bool, size| data.chunks_exact(size).filter(|c| is(c)).count();
        // All bits of the exponent are set in NaN and infinity, and some of the mantissa in NaN.
        let halves = |exponent: u16| {
            let bits = |c: &[u8]| u16::from_le_bytes([c[0], c[1]]) & 0x7fff;
            let nan = count(&|c| bits(c) > exponent, 2);
            (nan, count(&|c| bits(c) == exponent, 2))
        };
        let (nan, infinite) = match weight.format() {
            WeightFormat::Float(Float::F32) => {
                let bits = |c: &[u8]| u32::from_le_bytes([c[0], c[1], c[2], c[3]]) & 0x7fff_ffff;
                let nan = count(&|c| bits(c) > 0x7f80_0000, 4);
                (nan, count(&|c| bits(c) == 0x7f80_0000, 4))
            }
            WeightFormat::Float(Float::F16) => halves(0x7c00),
            WeightFormat::Float(Float::BF16) => halves(0x7f80),
            WeightFormat::Fp8 { .. } => (count(&|c| c[0] & 0x7f == 0x7f, 1), 0),
            WeightFormat::Fp4 => (0, 0),
            // What is added to the formats is looked at element by element.
            _ => {
                let elements = (0..weight.rows()).flat_map(|row| {
                    let row = (0..weight.cols()).map(move |col| weight.element(row, col));
                    row.filter(|v| !v.is_finite())
                });
                elements.fold((0, 0), |(nan, infinite), v| {
                    (
                        nan + usize::from(v.is_nan()),
                        infinite + usize::from(v.is_infinite()),
                    )
                })
            }
        };
        Self {
            elements: weight.rows() * weight.cols(),
            nan,
            infinite,
            scales: ScaleSummary::of(weight),
        }
    }
}

impl ScaleSummary {
    fn of(weight: &HostWeight<'_>) -> Option<Self> {
        let (format, _) = weight.format().scaling()?;
        let count = weight.scales().len() / format.size();
        let mut summary = Self {
            count,
            least: f32::NAN,
            greatest: f32::NAN,
            nan: 0,
            infinite: 0,
            zero: 0,
            negative: 0,
        };
        for scale in (0..count).map(|n| format.read(weight.scales(), n)) {
            summary.nan += usize::from(scale.is_nan());
            summary.infinite += usize::from(scale.is_infinite());
            summary.zero += usize::from(scale == 0.0);
            summary.negative += usize::from(scale < 0.0);
            if scale.is_finite() {
                // The other operand where one is NaN.
                summary.least = summary.least.min(scale);
                summary.greatest = summary.greatest.max(scale);
            }
        }
        Some(summary)
    }
}

/// A name from a file as messages show it: what does not print is escaped, and what is long is cut.
pub fn printable(name: &str) -> String {
    text::name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use swiglu_core::{ScaleFormat, bf16, f16};

    #[test]
    fn every_code_that_is_no_number_is_counted() {
        let codes: Vec<u8> = (0..=255).collect();
        let format = |scales, block| WeightFormat::Fp8 { scales, block };
        let e8m0 = format(ScaleFormat::E8M0, [1, 64]);
        let w = HostWeight::new([2, 128], e8m0, &codes, &[0, 255, 127, 254]).unwrap();
        let summary = WeightSummary::of(&w);
        assert_eq!(
            (summary.elements, summary.nan, summary.infinite),
            (256, 2, 0)
        );
        let scales = summary.scales.unwrap();
        assert_eq!((scales.count, scales.nan, scales.zero), (4, 1, 0));
        assert_eq!(scales.least, 2_f32.powi(-127));
        assert_eq!(scales.greatest, 2_f32.powi(127));
        let values = [
            1.0,
            f32::NAN,
            -f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            6e4,
        ];
        for float in Float::ALL {
            let bytes: Vec<u8> = values
                .iter()
                .flat_map(|&v| match float {
                    Float::F32 => v.to_le_bytes().to_vec(),
                    Float::F16 => f16::from_f32(v).to_le_bytes().to_vec(),
                    Float::BF16 => bf16::from_f32(v).to_le_bytes().to_vec(),
                })
                .collect();
            let w = HostWeight::new([2, 3], WeightFormat::Float(float), &bytes, &[]).unwrap();
            let summary = WeightSummary::of(&w);
            assert_eq!((summary.nan, summary.infinite), (2, 2), "{float}");
            assert_eq!(summary.scales, None);
        }
    }
}
