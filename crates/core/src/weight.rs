use half::{bf16, f16};

use crate::{DType, E4M3, E8M0, Error, Result};

/// The scales of a weight that is quantized in blocks: one for each `block[0]` rows and `block[1]`
/// columns, row-major, `[ceil(rows/block[0]), ceil(cols/block[1])]`. They multiply.
#[derive(Clone, Copy, Debug)]
pub struct BlockScales<'a> {
    /// The scales' bytes, little-endian.
    pub data: &'a [u8],
    /// [`DType::E8M0`] or [`DType::F32`].
    pub dtype: DType,
    /// Rows and columns of a block.
    pub block: [usize; 2],
}

impl BlockScales<'_> {
    /// The scale at a place of the grid of scales, as it is stored.
    pub fn get(&self, index: usize) -> f32 {
        match self.dtype {
            DType::E8M0 => E8M0(self.data[index]).to_f32(),
            _ => f32::from_le_bytes(array(&self.data[4 * index..])),
        }
    }
}

/// A weight matrix in host memory, [rows, cols] row-major as checkpoints store it: row n holds
/// what makes output n of `y = x · wᵀ`.
///
/// The bytes need no alignment, so that they may lie in a mapped file.
#[derive(Clone, Copy, Debug)]
pub struct HostWeight<'a> {
    rows: usize,
    cols: usize,
    dtype: DType,
    data: &'a [u8],
    scales: Option<BlockScales<'a>>,
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut a = [0; N];
    a.copy_from_slice(&bytes[..N]);
    a
}

impl<'a> HostWeight<'a> {
    /// A weight of f32, f16, bf16, or of [`DType::F8E4M3`] with its scales.
    ///
    /// # Errors
    /// No rows or columns, bytes that do not fit the shape, a type that is no weight's, scales
    /// with a weight that has none or none with one that needs them.
    pub fn new(
        rows: usize,
        cols: usize,
        dtype: DType,
        data: &'a [u8],
        scales: Option<BlockScales<'a>>,
    ) -> Result<Self> {
        if rows == 0 || cols == 0 {
            let got = format!("[{rows}, {cols}]");
            return Err(Error::argument(
                "weight",
                "at least one row and column",
                got,
            ));
        }
        let bytes = rows
            .checked_mul(cols)
            .and_then(|n| n.checked_mul(dtype.size()));
        if bytes != Some(data.len()) {
            let expected = format!("{rows} x {cols} elements of {dtype}");
            let got = format!("{} bytes", data.len());
            return Err(Error::argument("weight", expected, got));
        }
        match (dtype, &scales) {
            (DType::E8M0, _) => {
                return Err(Error::argument(
                    "weight",
                    "f32, f16, bf16 or f8_e4m3",
                    dtype,
                ));
            }
            (DType::F8E4M3, None) => {
                return Err(Error::argument("scales", "scales for f8_e4m3", "none"));
            }
            (DType::F8E4M3, Some(s)) => check_scales(rows, cols, s)?,
            (DType::F32 | DType::F16 | DType::BF16, None) => {}
            (DType::F32 | DType::F16 | DType::BF16, Some(_)) => {
                let expected = format!("no scales for {dtype}");
                return Err(Error::argument("scales", expected, "scales"));
            }
        }
        Ok(Self {
            rows,
            cols,
            dtype,
            data,
            scales,
        })
    }

    /// Outputs of the product.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs of the product.
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// How the elements are stored.
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    /// The elements' bytes, little-endian.
    pub const fn data(&self) -> &'a [u8] {
        self.data
    }

    /// The scales of a quantized weight.
    pub const fn scales(&self) -> Option<&BlockScales<'a>> {
        self.scales.as_ref()
    }

    /// The stored element at (row, col), without its scale.
    pub fn element(&self, row: usize, col: usize) -> f32 {
        let at = row * self.cols + col;
        match self.dtype {
            DType::F32 => f32::from_le_bytes(array(&self.data[4 * at..])),
            DType::F16 => f16::from_le_bytes(array(&self.data[2 * at..])).to_f32(),
            DType::BF16 => bf16::from_le_bytes(array(&self.data[2 * at..])).to_f32(),
            DType::F8E4M3 | DType::E8M0 => E4M3(self.data[at]).to_f32(),
        }
    }

    /// The scale that multiplies the element at (row, col): 1 where there are none.
    pub fn scale(&self, row: usize, col: usize) -> f32 {
        self.scales.as_ref().map_or(1.0, |s| {
            let per_row = self.cols.div_ceil(s.block[1]);
            s.get(row / s.block[0] * per_row + col / s.block[1])
        })
    }

    /// The weights of a row, element times scale, into `out` of `cols` elements.
    pub fn decode_row(&self, row: usize, out: &mut [f64]) {
        let width = self.scales.as_ref().map_or(self.cols, |s| s.block[1]);
        for (b, block) in out.chunks_mut(width).enumerate() {
            let scale = f64::from(self.scale(row, b * width));
            for (j, value) in block.iter_mut().enumerate() {
                *value = f64::from(self.element(row, b * width + j)) * scale;
            }
        }
    }

    /// Checks that weights can be stacked: same width, type and block.
    ///
    /// # Errors
    /// No weights, or the first difference.
    pub fn check_parts(parts: &[Self]) -> Result<()> {
        let Some(first) = parts.first() else {
            return Err(Error::argument("parts", "at least one weight", "none"));
        };
        let kind = |w: &Self| {
            let scales = w.scales.map(|s| (s.dtype, s.block));
            (w.cols, w.dtype, scales)
        };
        let rows = parts.iter().try_fold(0_usize, |n, w| n.checked_add(w.rows));
        if rows.is_none() {
            return Err(Error::argument("parts", "fewer rows", "an overflow"));
        }
        match parts.iter().find(|w| kind(w) != kind(first)) {
            None => Ok(()),
            Some(other) => Err(Error::argument(
                "parts",
                format!("columns, type and scales {:?}", kind(first)),
                format!("{:?}", kind(other)),
            )),
        }
    }

    /// The weight at (row, col): element times scale.
    pub fn get(&self, row: usize, col: usize) -> f64 {
        f64::from(self.element(row, col)) * f64::from(self.scale(row, col))
    }
}

fn check_scales(rows: usize, cols: usize, s: &BlockScales<'_>) -> Result<()> {
    if !matches!(s.dtype, DType::E8M0 | DType::F32) {
        return Err(Error::argument("scales", "f8_e8m0 or f32", s.dtype));
    }
    if s.block.contains(&0) {
        let got = format!("{} x {}", s.block[0], s.block[1]);
        return Err(Error::argument("block", "at least 1 x 1", got));
    }
    let (r, c) = (rows.div_ceil(s.block[0]), cols.div_ceil(s.block[1]));
    if s.data.len() != r * c * s.dtype.size() {
        let expected = format!("{r} x {c} elements of {}", s.dtype);
        let got = format!("{} bytes", s.data.len());
        return Err(Error::argument("scales", expected, got));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_blocks_take_their_own_scale() {
        let codes = [E4M3::from_f32_saturating(1.0).0; 15];
        let scales = [126, 127, 128, 129, 130, 131];
        let scales = BlockScales {
            data: &scales,
            dtype: DType::E8M0,
            block: [2, 2],
        };
        let w = HostWeight::new(3, 5, DType::F8E4M3, &codes, Some(scales)).unwrap();
        assert_eq!(w.get(0, 0), 0.5);
        assert_eq!(w.get(1, 4), 2.0);
        assert_eq!(w.get(2, 0), 4.0);
        assert_eq!(w.get(2, 4), 16.0);
    }

    #[test]
    fn sizes_that_lie_are_refused() {
        let new = |r, c, t, n| HostWeight::new(r, c, t, &[0; 64][..n], None);
        assert!(new(4, 4, DType::F32, 64).is_ok());
        assert!(new(4, 4, DType::F32, 63).is_err());
        assert!(new(usize::MAX, 4, DType::F32, 64).is_err());
        assert!(new(0, 4, DType::F32, 0).is_err());
        assert!(new(8, 8, DType::F8E4M3, 64).is_err());
        assert!(new(8, 8, DType::E8M0, 64).is_err());
    }
}
