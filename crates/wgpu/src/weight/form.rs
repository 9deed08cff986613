//! How a weight of one format and width is kept on the device.

use swiglu_core::{Error, Float, HostWeight, WeightFormat};

use super::{Lift, codes};
use crate::device::BindingLimits;
use crate::error::PLATFORM;
use crate::pipelines::DeviceFormat;

/// Columns that one vector of FP8 weights covers: a block of scales must not end within.
pub(super) const VECTOR_COLUMNS: usize = 16;

/// How a weight of one format and width is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WeightForm {
    pub(crate) format: DeviceFormat,
    pub(crate) cols: usize,
    /// Rows and columns that share a scale, where codes are kept with scales.
    pub(super) block: Option<[usize; 2]>,
    /// Whether codes times scales are kept, as f32.
    decoded: bool,
}

impl WeightForm {
    /// Of a weight as it comes.
    ///
    /// # Errors
    /// A format that the kernels do not have.
    pub(crate) fn of(format: WeightFormat, cols: usize) -> swiglu_core::Result<Self> {
        let (format, block, decoded) = match format {
            WeightFormat::Float(Float::F32) => (DeviceFormat::F32, None, false),
            WeightFormat::Float(Float::F16) => (DeviceFormat::F16, None, false),
            WeightFormat::Float(Float::BF16) => (DeviceFormat::BF16, None, false),
            WeightFormat::Fp8 { block, .. } => {
                if block[1].is_multiple_of(VECTOR_COLUMNS) || block[1] >= cols {
                    (DeviceFormat::E4m3, Some(block), false)
                } else {
                    (DeviceFormat::F32, None, true)
                }
            }
            WeightFormat::Fp4 => {
                let block = [1, WeightFormat::FP4_GROUP];
                (DeviceFormat::Fp4, Some(block), false)
            }
            other => {
                let reason = "its decoding is not known to this backend";
                return Err(Error::unsupported(PLATFORM, other, reason));
            }
        };
        Ok(Self {
            format,
            cols,
            block,
            decoded,
        })
    }

    /// Bytes of a row, padded to whole vectors.
    pub(crate) const fn row_bytes(&self) -> usize {
        self.format.bytes(self.cols).next_multiple_of(16)
    }

    /// The rows that fit into one binding.
    ///
    /// # Errors
    /// A row that does not.
    pub(crate) fn rows_per_chunk(&self, limits: &BindingLimits) -> swiglu_core::Result<usize> {
        let limit = usize::try_from(limits.bytes).unwrap_or(usize::MAX);
        match limit / self.row_bytes() {
            0 => {
                let expected = format!("rows of at most {limit} bytes");
                let got = format!("{} bytes", self.row_bytes());
                Err(Error::argument("weight", expected, got))
            }
            rows => Ok(rows),
        }
    }

    /// Scales in a row of them.
    pub(super) const fn scale_cols(&self, block_cols: usize) -> usize {
        self.cols.div_ceil(block_cols)
    }

    /// Bytes of a row of FP4's scales, padded to whole words.
    pub(crate) const fn scale_pitch(&self) -> usize {
        self.scale_cols(WeightFormat::FP4_GROUP).next_multiple_of(4)
    }

    /// Copies a row of FP4's scales.
    pub(crate) fn write_scale_bytes(&self, part: &HostWeight<'_>, row: usize, line: &mut [u8]) {
        let cols = self.scale_cols(WeightFormat::FP4_GROUP);
        line[..cols].copy_from_slice(&part.scales()[row * cols..][..cols]);
    }

    /// The logarithm of the vectors of a row that share a scale, if that is a power of two; 0 where
    /// there are no scales.
    pub(crate) const fn scale_shift(&self) -> Option<u32> {
        match self.block {
            None => Some(0),
            Some([_, cols]) if self.scale_cols(cols) == 1 => Some(u32::BITS - 1),
            Some([_, cols]) => match cols / VECTOR_COLUMNS {
                vectors if vectors.is_power_of_two() => Some(vectors.ilog2()),
                _ => None,
            },
        }
    }

    /// Whether codes times scales are kept, as f32.
    pub(crate) const fn is_decoded(&self) -> bool {
        self.decoded
    }

    /// Whether a code of E4M3 in rows of this form is NaN.
    pub(crate) fn has_nan_codes(&self, rows: &[u8]) -> bool {
        let is_nan = |code: &u8| code & 0x7f == 0x7f;
        self.format == DeviceFormat::E4m3 && rows.iter().any(is_nan)
    }

    /// Writes a row, whose padding stays.
    pub(crate) fn write_row(
        &self,
        (part, row): (&HostWeight<'_>, usize),
        lift: Lift,
        line: &mut [f64],
        out: &mut [u8],
    ) {
        if self.decoded {
            part.decode_row(row, line);
            for (bytes, value) in out.chunks_exact_mut(4).zip(line) {
                bytes.copy_from_slice(&lift.lifted_weight(*value).to_le_bytes());
            }
        } else {
            let bytes = self.format.bytes(self.cols);
            out[..bytes].copy_from_slice(&part.data()[row * bytes..(row + 1) * bytes]);
            if self.format == DeviceFormat::Fp4 {
                codes::arrange(out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use swiglu_core::ScaleFormat;

    fn fp8(block: [usize; 2], cols: usize) -> WeightForm {
        let scales = ScaleFormat::E8M0;
        WeightForm::of(WeightFormat::Fp8 { scales, block }, cols).unwrap()
    }

    #[test]
    fn codes_are_kept_where_no_block_ends_within_a_vector() {
        assert_eq!(fp8([128, 128], 7168).format, DeviceFormat::E4m3);
        assert_eq!(fp8([128, 128], 7168).scale_shift(), Some(3));
        assert_eq!(fp8([1, 48], 7168).scale_shift(), None);
        // One block is as wide as the weight.
        assert_eq!(fp8([2, 100], 100).format, DeviceFormat::E4m3);
        assert_eq!(fp8([2, 100], 100).scale_shift(), Some(31));
        let decoded = fp8([2, 2], 5);
        assert_eq!(
            (decoded.format, decoded.row_bytes()),
            (DeviceFormat::F32, 32)
        );
    }

    #[test]
    fn every_format_of_the_family_is_known() {
        for format in WeightFormat::SAMPLES {
            assert!(WeightForm::of(format, 4096).is_ok(), "{format}");
        }
        let fp4 = WeightForm::of(WeightFormat::Fp4, 160).unwrap();
        assert_eq!((fp4.row_bytes(), fp4.scale_pitch()), (80, 8));
    }
}
