use std::borrow::Cow;

use half::{bf16, f16};

use crate::{E2M1, E4M3, Error, Float, Result, WeightFormat};

/// A weight matrix in host memory, [rows, cols] row-major as checkpoints store it: row n holds
/// what makes output n of `y = x · wᵀ`. It borrows its bytes, which may lie unaligned in a mapped
/// file, or owns them.
///
/// ```
/// use swiglu_core::{Float, HostWeight, WeightFormat};
/// # fn main() -> swiglu_core::Result<()> {
/// let bytes = [1.0_f32, 2.0, 3.0, 4.0].map(f32::to_le_bytes).concat();
/// let w = HostWeight::new([2, 2], WeightFormat::Float(Float::F32), &bytes, &[])?;
/// assert_eq!(w.get(1, 0), 3.0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct HostWeight<'a> {
    rows: usize,
    cols: usize,
    format: WeightFormat,
    data: Cow<'a, [u8]>,
    scales: Cow<'a, [u8]>,
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut a = [0; N];
    a.copy_from_slice(&bytes[..N]);
    a
}

impl<'a> HostWeight<'a> {
    /// A weight over borrowed bytes: `data` holds rows of [`WeightFormat::row_bytes`], `scales`
    /// the grid of scales row-major and is empty where the format has none. Both little-endian.
    ///
    /// # Errors
    /// No rows or columns, columns that [`WeightFormat::columns_step`] does not divide, or bytes that
    /// do not fit the shape.
    pub fn new(
        shape: [usize; 2],
        format: WeightFormat,
        data: &'a [u8],
        scales: &'a [u8],
    ) -> Result<Self> {
        Self::from_cow(shape, format, Cow::Borrowed(data), Cow::Borrowed(scales))
    }

    /// A weight that owns its bytes; otherwise as [`Self::new`].
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn owned(
        shape: [usize; 2],
        format: WeightFormat,
        data: Vec<u8>,
        scales: Vec<u8>,
    ) -> Result<Self> {
        Self::from_cow(shape, format, Cow::Owned(data), Cow::Owned(scales))
    }

    fn from_cow(
        shape: [usize; 2],
        format: WeightFormat,
        data: Cow<'a, [u8]>,
        scales: Cow<'a, [u8]>,
    ) -> Result<Self> {
        let [rows, cols] = shape;
        if rows == 0 || cols == 0 {
            let got = format!("[{rows}, {cols}]");
            return Err(Error::argument(
                "weight",
                "at least one row and column",
                got,
            ));
        }
        let [r, c] = format.scale_grid(shape)?;
        if rows.checked_mul(format.row_bytes(cols)) != Some(data.len()) {
            let expected = format!("{rows} x {cols} elements of {}", format.name());
            let got = format!("{} bytes", data.len());
            return Err(Error::argument("weight", expected, got));
        }
        let size = format.scaling().map_or(0, |(scale, _)| scale.size());
        if r.checked_mul(c).and_then(|n| n.checked_mul(size)) != Some(scales.len()) {
            let expected = match format.scaling() {
                Some((scale, _)) => format!("{r} x {c} scales of {scale} for {format}"),
                None => format!("no scales for {format}"),
            };
            let got = format!("{} bytes", scales.len());
            return Err(Error::argument("scales", expected, got));
        }
        Ok(Self {
            rows,
            cols,
            format,
            data,
            scales,
        })
    }

    /// The same weight with bytes of its own.
    pub fn into_owned(self) -> HostWeight<'static> {
        HostWeight {
            rows: self.rows,
            cols: self.cols,
            format: self.format,
            data: Cow::Owned(self.data.into_owned()),
            scales: Cow::Owned(self.scales.into_owned()),
        }
    }

    /// Outputs of the matmul (N).
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs of the matmul (K).
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// How the elements are stored.
    pub const fn format(&self) -> WeightFormat {
        self.format
    }

    /// The elements' bytes, little-endian.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The scales' bytes, little-endian, row-major over the grid of blocks; empty where there are
    /// none.
    pub fn scales(&self) -> &[u8] {
        &self.scales
    }

    /// Bytes of the elements and their scales.
    pub fn bytes(&self) -> usize {
        self.data.len() + self.scales.len()
    }

    /// The stored element at (row, col), without its scale.
    pub fn element(&self, row: usize, col: usize) -> f32 {
        let at = row * self.cols + col;
        match self.format {
            WeightFormat::Float(Float::F32) => f32::from_le_bytes(array(&self.data[4 * at..])),
            WeightFormat::Float(Float::F16) => {
                f16::from_le_bytes(array(&self.data[2 * at..])).to_f32()
            }
            WeightFormat::Float(Float::BF16) => {
                bf16::from_le_bytes(array(&self.data[2 * at..])).to_f32()
            }
            WeightFormat::Fp8 { .. } => E4M3(self.data[at]).to_f32(),
            // Rows are whole bytes, so the lower half is the even column.
            WeightFormat::Fp4 => E2M1::unpack(self.data[at / 2])[at % 2].to_f32(),
        }
    }

    /// The scale that multiplies the element at (row, col): 1 where there are none.
    pub fn scale(&self, row: usize, col: usize) -> f32 {
        self.format.scaling().map_or(1.0, |(format, [r, c])| {
            let per_row = self.cols.div_ceil(c);
            format.read(&self.scales, row / r * per_row + col / c)
        })
    }

    /// The weight at (row, col): element times scale, exactly.
    pub fn get(&self, row: usize, col: usize) -> f64 {
        f64::from(self.element(row, col)) * f64::from(self.scale(row, col))
    }

    /// The weights of a row, element times scale, into `out` of `cols` elements.
    pub fn decode_row(&self, row: usize, out: &mut [f64]) {
        let width = self
            .format
            .scaling()
            .map_or(self.cols, |(_, block)| block[1]);
        for (b, block) in out.chunks_mut(width).enumerate() {
            let scale = f64::from(self.scale(row, b * width));
            for (j, value) in block.iter_mut().enumerate() {
                *value = f64::from(self.element(row, b * width + j)) * scale;
            }
        }
    }

    /// Checks that weights can be stacked, the rows of the first first: same width and format.
    ///
    /// # Errors
    /// No weights, or the first difference.
    pub fn check_parts(parts: &[Self]) -> Result<()> {
        let Some(first) = parts.first() else {
            return Err(Error::argument("parts", "at least one weight", "none"));
        };
        let rows = parts.iter().try_fold(0_usize, |n, w| n.checked_add(w.rows));
        if rows.is_none() {
            return Err(Error::argument("parts", "fewer rows", "an overflow"));
        }
        let differs = |w: &&Self| (w.cols, w.format) != (first.cols, first.format);
        match parts.iter().find(differs) {
            None => Ok(()),
            Some(other) => Err(Error::argument(
                "parts",
                format!("{} columns of {}", first.cols, first.format),
                format!("{} columns of {}", other.cols, other.format),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ScaleFormat;

    #[test]
    fn partial_blocks_take_their_own_scale() {
        let codes = [E4M3::from_f32_saturating(1.0).0; 15];
        let format = WeightFormat::Fp8 {
            scales: ScaleFormat::E8M0,
            block: [2, 2],
        };
        let scales = [126, 127, 128, 129, 130, 131];
        let w = HostWeight::new([3, 5], format, &codes, &scales).unwrap();
        assert_eq!(w.get(0, 0), 0.5);
        assert_eq!(w.get(1, 4), 2.0);
        assert_eq!(w.get(2, 0), 4.0);
        assert_eq!(w.get(2, 4), 16.0);
        assert_eq!(w.clone().into_owned().get(2, 4), 16.0);
    }

    #[test]
    fn every_byte_of_fp4_under_every_scale_is_its_two_codes_times_a_power_of_two() {
        const MAGNITUDES: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        let value = |code: u8| {
            let magnitude = MAGNITUDES[usize::from(code & 7)];
            if code & 8 == 0 { magnitude } else { -magnitude }
        };
        // A row holds every byte, and every row has another scale, none for two rows.
        let data: Vec<u8> = (0..256).flat_map(|_| 0..=255_u8).collect();
        let scales: Vec<u8> = (0..=255).flat_map(|scale| [scale; 16]).collect();
        let w = HostWeight::new([256, 512], WeightFormat::Fp4, &data, &scales).unwrap();
        let mut row = [0.0; 512];
        for scale in 0..=255_u8 {
            w.decode_row(scale.into(), &mut row);
            for (col, &got) in row.iter().enumerate() {
                assert_eq!(w.get(scale.into(), col).to_bits(), got.to_bits());
                let byte = (col / 2) as u8;
                let code = if col % 2 == 0 { byte & 15 } else { byte >> 4 };
                if scale == 255 {
                    assert!(got.is_nan());
                    continue;
                }
                let want = value(code) * 2f64.powi(i32::from(scale) - 127);
                assert_eq!(got.to_bits(), want.to_bits(), "{code} under {scale}");
            }
        }
    }

    #[test]
    fn a_scale_of_fp4_is_of_32_columns_of_one_row() {
        let scales = [127, 128, 129, 130];
        let w = HostWeight::new([2, 64], WeightFormat::Fp4, &[0x12; 64], &scales).unwrap();
        let of = |row, col| w.get(row, col);
        assert_eq!([of(0, 30), of(0, 31), of(0, 32)], [1.0, 0.5, 2.0]);
        assert_eq!([of(1, 0), of(1, 33), of(1, 63)], [4.0, 4.0, 4.0]);
        let new = |cols: usize, data: usize, scales: usize| {
            let (data, scales) = (vec![0; data], vec![0; scales]);
            HostWeight::owned([2, cols], WeightFormat::Fp4, data, scales).map(drop)
        };
        let message = |cols, data, scales| new(cols, data, scales).unwrap_err().to_string();
        assert!(new(64, 64, 4).is_ok());
        let expected = "weight: expected a multiple of 32 columns for fp4 in blocks of 1 x 32 with \
                        e8m0 scales, got 48";
        assert_eq!(message(48, 48, 4), expected);
        assert_eq!(message(33, 34, 4).split(" for").count(), 2);
        assert!(message(64, 128, 4).starts_with("weight: expected 2 x 64 elements of fp4"));
        assert!(message(64, 64, 3).starts_with("scales: expected 2 x 2 scales of e8m0"));
        assert!(message(64, 64, 16).starts_with("scales: expected 2 x 2 scales"));
    }

    #[test]
    fn sizes_that_lie_are_refused() {
        let new = |r, c, format, n| HostWeight::new([r, c], format, &[0; 64][..n], &[]);
        let f32s = WeightFormat::Float(Float::F32);
        assert!(new(4, 4, f32s, 64).is_ok());
        assert!(new(4, 4, f32s, 63).is_err());
        assert!(new(usize::MAX, 4, f32s, 64).is_err());
        assert!(new(4, usize::MAX, f32s, 64).is_err());
        assert!(new(0, 4, f32s, 0).is_err());
        let error = new(8, 8, WeightFormat::DEEPSEEK_V4, 64).unwrap_err();
        let expected = "scales: expected 1 x 1 scales of e8m0 for fp8";
        assert!(error.to_string().starts_with(expected), "{error}");
        assert!(new(usize::MAX, 32, WeightFormat::Fp4, 64).is_err());
        assert!(new(4, usize::MAX / 32 * 32, WeightFormat::Fp4, 64).is_err());
        let flat = WeightFormat::Fp8 {
            scales: ScaleFormat::F32,
            block: [0, 4],
        };
        assert!(new(8, 8, flat, 64).is_err());
        assert!(HostWeight::new([4, 4], f32s, &[0; 64], &[0; 4]).is_err());
    }

    #[test]
    fn parts_of_different_formats_cannot_be_stacked() {
        let part = |float, bytes: &'static [u8]| {
            HostWeight::new([2, 2], WeightFormat::Float(float), bytes, &[]).unwrap()
        };
        let parts = [part(Float::BF16, &[0; 8]), part(Float::F16, &[0; 8])];
        let error = HostWeight::check_parts(&parts).unwrap_err().to_string();
        assert_eq!(
            error,
            "parts: expected 2 columns of bf16, got 2 columns of f16"
        );
        assert!(HostWeight::check_parts(&parts[..1]).is_ok());
        assert!(HostWeight::check_parts(&[]).is_err());
    }
}
