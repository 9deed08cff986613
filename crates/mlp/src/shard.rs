use swiglu_core::{BlockScales, DType, E8M0, HostWeight};

use crate::{Error, Result};

/// One rank's part of an MLP that is split over several: gate and up by rows, down by columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which part, from 0.
    pub rank: usize,
    /// How many parts.
    pub world: usize,
    /// Every rank holds the whole MLP all the same (sequence parallel).
    pub disable_tp: bool,
}

impl Shard {
    /// The whole MLP in one place.
    pub const WHOLE: Self = Self {
        rank: 0,
        world: 1,
        disable_tp: false,
    };

    /// Whether this is less than the whole.
    pub const fn is_split(&self) -> bool {
        self.world > 1 && !self.disable_tp
    }

    /// Columns of `act` that each rank gets of `intermediate`, cut at whole blocks of `block`:
    /// ceil(blocks / world) · block. Trailing ranks are padded with zeros, up to whole ranks of
    /// them.
    ///
    /// Weights without scales have blocks of 1.
    pub fn width(&self, intermediate: usize, block: usize) -> Option<usize> {
        if !self.is_split() {
            return Some(intermediate);
        }
        let blocks = intermediate.div_ceil(block);
        blocks.div_ceil(self.world).checked_mul(block)
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.rank >= self.world {
            let expected = format!("a rank below the world's {}", self.world);
            return Err(Error::config("shard", expected, self.rank));
        }
        Ok(())
    }
}

/// Which side of a matrix is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Axis {
    Rows,
    Cols,
}

/// A part of a weight in memory of its own.
#[derive(Clone, Debug)]
pub(crate) struct OwnedWeight {
    rows: usize,
    cols: usize,
    dtype: DType,
    data: Vec<u8>,
    scales: Option<(Vec<u8>, DType, [usize; 2])>,
}

impl OwnedWeight {
    /// Part `rank` of `weight` in parts of `width` rows or columns, a multiple of the block's side
    /// there. What lies beyond the weight is 0, and its scales 1.
    pub(crate) fn cut(
        weight: &HostWeight<'_>,
        axis: Axis,
        rank: usize,
        width: usize,
    ) -> Result<Self> {
        let (rows, cols) = match axis {
            Axis::Rows => (width, weight.cols()),
            Axis::Cols => (weight.rows(), width),
        };
        let data = Matrix {
            data: weight.data(),
            cols: weight.cols(),
            size: weight.dtype().size(),
        }
        .cut(axis, rank, width, rows, &[0; 4][..weight.dtype().size()])?;
        let scales = match weight.scales() {
            None => None,
            Some(s) => {
                let [r, c] = s.block;
                let width = match axis {
                    Axis::Rows => width.div_ceil(r),
                    Axis::Cols => width.div_ceil(c),
                };
                let one = 1_f32.to_le_bytes();
                let fill: &[u8] = match s.dtype {
                    DType::E8M0 => &[E8M0::ONE.0],
                    _ => &one,
                };
                let grid = Matrix {
                    data: s.data,
                    cols: weight.cols().div_ceil(c),
                    size: s.dtype.size(),
                };
                let data = grid.cut(axis, rank, width, rows.div_ceil(r), fill)?;
                Some((data, s.dtype, s.block))
            }
        };
        Ok(Self {
            rows,
            cols,
            dtype: weight.dtype(),
            data,
            scales,
        })
    }

    /// The part as a weight.
    pub(crate) fn view(&self) -> Result<HostWeight<'_>> {
        let scales = self
            .scales
            .as_ref()
            .map(|(data, dtype, block)| BlockScales {
                data,
                dtype: *dtype,
                block: *block,
            });
        let (rows, cols) = (self.rows, self.cols);
        Ok(HostWeight::new(rows, cols, self.dtype, &self.data, scales)?)
    }
}

/// Elements of `size` bytes, `cols` in a row.
struct Matrix<'a> {
    data: &'a [u8],
    cols: usize,
    size: usize,
}

impl Matrix<'_> {
    /// Part `rank` of parts that are `width` wide along `axis`, `rows` rows of it, with `fill` where
    /// the matrix has ended.
    fn cut(
        &self,
        axis: Axis,
        rank: usize,
        width: usize,
        rows: usize,
        fill: &[u8],
    ) -> Result<Vec<u8>> {
        let out_cols = match axis {
            Axis::Rows => self.cols,
            Axis::Cols => width,
        };
        let start = rank.saturating_mul(width);
        let overflow = || Error::config("shard", "parts within the address space", width);
        let bytes = rows
            .checked_mul(out_cols)
            .and_then(|n| n.checked_mul(self.size))
            .ok_or_else(overflow)?;
        let mut out = Vec::new();
        out.try_reserve_exact(bytes)
            .map_err(|_| swiglu_core::Error::OutOfMemory {
                platform: "host",
                bytes,
            })?;
        let line = self.cols * self.size;
        match axis {
            Axis::Rows => {
                let from = start.saturating_mul(line).min(self.data.len());
                let to = from.saturating_add(bytes).min(self.data.len());
                out.extend_from_slice(&self.data[from..to]);
            }
            Axis::Cols => {
                let from = start.min(self.cols) * self.size;
                let to = start.saturating_add(width).min(self.cols) * self.size;
                for row in self.data.chunks_exact(line) {
                    out.extend_from_slice(&row[from..to]);
                    pad(&mut out, (width * self.size) - (to - from), fill);
                }
            }
        }
        let missing = bytes - out.len();
        pad(&mut out, missing, fill);
        Ok(out)
    }
}

/// Appends `bytes` bytes of whole `fill`s.
fn pad(out: &mut Vec<u8>, bytes: usize, fill: &[u8]) {
    out.extend(fill.iter().cycle().take(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(rank: usize, world: usize) -> Shard {
        Shard {
            rank,
            world,
            disable_tp: false,
        }
    }

    #[test]
    fn widths_are_whole_blocks() {
        assert_eq!(shard(0, 16).width(3072, 128), Some(256));
        assert_eq!(shard(0, 2).width(136, 128), Some(128));
        assert_eq!(shard(0, 3).width(100, 1), Some(34));
        assert_eq!(shard(0, 1).width(136, 128), Some(136));
        let replicated = Shard {
            disable_tp: true,
            ..shard(1, 4)
        };
        assert_eq!(replicated.width(136, 128), Some(136));
        assert!(shard(2, 2).check().is_err());
        assert!(shard(0, 0).check().is_err());
    }

    #[test]
    fn parts_are_padded_with_zeros_of_scale_one() {
        // Columns 0 to 4 in blocks of 2: scales 1, 2, 3 in the first row of blocks.
        let codes: Vec<u8> = (1..=15).collect();
        let scales = BlockScales {
            data: &[1, 2, 3, 4, 5, 6],
            dtype: DType::E8M0,
            block: [2, 2],
        };
        let w = HostWeight::new(3, 5, DType::F8E4M3, &codes, Some(scales)).unwrap();
        let last = OwnedWeight::cut(&w, Axis::Cols, 1, 4).unwrap();
        assert_eq!(last.data, [5, 0, 0, 0, 10, 0, 0, 0, 15, 0, 0, 0]);
        assert_eq!(last.scales.as_ref().unwrap().0, [3, 127, 6, 127]);
        let beyond = OwnedWeight::cut(&w, Axis::Cols, 7, 2).unwrap();
        assert_eq!(beyond.data, [0; 6]);
        assert_eq!(beyond.scales.as_ref().unwrap().0, [127; 2]);
        let rows = OwnedWeight::cut(&w, Axis::Rows, 1, 2).unwrap();
        assert_eq!(rows.data, [11, 12, 13, 14, 15, 0, 0, 0, 0, 0]);
        assert_eq!(rows.scales.as_ref().unwrap().0, [4, 5, 6]);
        assert_eq!(rows.view().unwrap().rows(), 2);
    }
}
