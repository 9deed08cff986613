use swiglu_core::{HostWeight, WeightFormat};

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

    /// Columns of `act` at whose multiples the three weights are cut, whose blocks have these sides
    /// along them: gate's and up's rows and down's columns.
    ///
    /// Whole blocks of all three stay together, and so do groups of a quantization. A scale of all
    /// columns holds for any part of them, so it counts as one of each. Where blocks of different
    /// sides would leave everything to the first rank, only down's stay whole: rows of gate and up
    /// may be cut within a block.
    pub(crate) fn cut_at(
        &self,
        intermediate: usize,
        sides: [usize; 3],
        group: Option<usize>,
    ) -> Option<usize> {
        let [gate, up, down] = sides.map(|side| if side < intermediate { side } else { 1 });
        let down = match group {
            Some(group) => common_multiple(down, group)?,
            None => down,
        };
        let all = common_multiple(gate, up).and_then(|rows| common_multiple(rows, down));
        all.filter(|&step| step < intermediate).or(Some(down))
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.rank >= self.world {
            let expected = format!("a rank below the world's {}", self.world);
            return Err(Error::config("shard", expected, self.rank));
        }
        Ok(())
    }
}

/// The rectangle of `shape` rows and columns from `[top, left]` on of a weight. What lies beyond
/// the weight is 0, and its scales 1. A corner within a block makes blocks smaller, with the same
/// scales, where the format lets them be.
pub(crate) fn cut(
    weight: &HostWeight<'_>,
    [top, left]: [usize; 2],
    shape: [usize; 2],
) -> Result<HostWeight<'static>> {
    let format = weight.format();
    let [rows, cols] = shape;
    let elements = ByteRows {
        data: weight.data(),
        line: format.row_bytes(weight.cols()),
    };
    let corner = [top, format.row_bytes(left.min(weight.cols()))];
    let data = elements.cut(corner, [rows, format.row_bytes(cols)], &[0])?;
    let (format, scales) = cut_scales(weight, [top, left], shape)?;
    Ok(HostWeight::owned(shape, format, data, scales)?)
}

/// Both halves of a weight's rows.
pub(crate) fn split_rows(weight: HostWeight<'_>) -> Result<(HostWeight<'_>, HostWeight<'_>)> {
    let shape = [weight.rows() / 2, weight.cols()];
    Ok((
        cut(&weight, [0, 0], shape)?,
        cut(&weight, [shape[0], 0], shape)?,
    ))
}

/// The scales of a rectangle of a weight, and its format.
fn cut_scales(
    weight: &HostWeight<'_>,
    [top, left]: [usize; 2],
    shape: [usize; 2],
) -> Result<(WeightFormat, Vec<u8>)> {
    let Some((scales, block)) = weight.format().scaling() else {
        return Ok((weight.format(), Vec::new()));
    };
    let rows = CutSide::new([weight.rows(), block[0]], top, shape[0]);
    let cols = CutSide::new([weight.cols(), block[1]], left, shape[1]);
    let size = scales.size();
    let count = rows.count().checked_mul(cols.count());
    let count = count.filter(|n| n.checked_mul(size).is_some());
    let count = count.ok_or_else(|| Error::config("shard", "parts within memory", rows.count()))?;
    let mut out = reserved(count * size)?;
    let mut one = [0; 4];
    scales.write(&mut one, 0, 1.0);
    let grid_cols = weight.cols().div_ceil(block[1]);
    for row in rows.blocks() {
        for col in cols.blocks() {
            match row.zip(col) {
                Some((row, col)) => {
                    let at = (row * grid_cols + col) * size;
                    out.extend_from_slice(&weight.scales()[at..at + size]);
                }
                None => out.extend_from_slice(&one[..size]),
            }
        }
    }
    let smaller = [rows.block, cols.block];
    match weight.format() {
        WeightFormat::Fp8 { .. } => Ok((
            WeightFormat::Fp8 {
                scales,
                block: smaller,
            },
            out,
        )),
        format if smaller == block => Ok((format, out)),
        format => {
            let expected = format!("a part of {format} that begins with a block");
            Err(Error::config("shard", expected, format!("column {left}")))
        }
    }
}

/// A part of a side that is divided into blocks.
struct CutSide {
    /// Elements of the whole side, and of its blocks.
    whole: [usize; 2],
    start: usize,
    length: usize,
    /// Elements of the part's blocks.
    block: usize,
}

impl CutSide {
    fn new(whole: [usize; 2], start: usize, length: usize) -> Self {
        let [side, block] = whole;
        let block = if start.is_multiple_of(block) || start >= side {
            block
        } else if block >= side {
            length
        } else {
            gcd(start, block)
        };
        Self {
            whole,
            start,
            length,
            block: block.max(1),
        }
    }

    const fn count(&self) -> usize {
        self.length.div_ceil(self.block)
    }

    /// For each of the part's blocks the one of the whole side that it lies in.
    fn blocks(&self) -> impl Iterator<Item = Option<usize>> {
        let [side, block] = self.whole;
        let at = (0..self.count()).map(|n| self.start.saturating_add(n * self.block));
        at.map(move |at| (at < side).then_some(at / block))
    }
}

const fn gcd(a: usize, b: usize) -> usize {
    let (mut gcd, mut rest) = (a, b);
    while rest != 0 {
        (gcd, rest) = (rest, gcd % rest);
    }
    gcd
}

fn common_multiple(a: usize, b: usize) -> Option<usize> {
    (a / gcd(a, b)).checked_mul(b)
}

/// Room for so many bytes.
fn reserved(bytes: usize) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    out.try_reserve_exact(bytes)
        .map_err(|_| swiglu_core::Error::OutOfMemory {
            platform: "host",
            bytes,
        })?;
    Ok(out)
}

/// A matrix as bytes, `line` of them in a row.
struct ByteRows<'a> {
    data: &'a [u8],
    line: usize,
}

impl ByteRows<'_> {
    /// The rectangle of `rows` rows and `width` bytes from `[top, left]` on, with whole `fill`s
    /// where the matrix has ended.
    fn cut(
        &self,
        [top, left]: [usize; 2],
        [rows, width]: [usize; 2],
        fill: &[u8],
    ) -> Result<Vec<u8>> {
        let from = left.min(self.line);
        let to = from.saturating_add(width).min(self.line);
        let bytes = rows
            .checked_mul(width)
            .ok_or_else(|| Error::config("shard", "parts within the address space", width))?;
        let mut out = reserved(bytes)?;
        for row in self.data.chunks_exact(self.line).skip(top).take(rows) {
            out.extend_from_slice(&row[from..to]);
            pad(&mut out, width - (to - from), fill);
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
    use swiglu_core::ScaleFormat;

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
        let format = WeightFormat::Fp8 {
            scales: ScaleFormat::E8M0,
            block: [2, 2],
        };
        let w = HostWeight::new([3, 5], format, &codes, &[1, 2, 3, 4, 5, 6]).unwrap();
        let last = cut(&w, [0, 4], [3, 4]).unwrap();
        assert_eq!(last.data(), [5, 0, 0, 0, 10, 0, 0, 0, 15, 0, 0, 0]);
        assert_eq!(last.scales(), [3, 127, 6, 127]);
        let beyond = cut(&w, [0, 14], [3, 2]).unwrap();
        assert_eq!(beyond.data(), [0; 6]);
        assert_eq!(beyond.scales(), [127; 2]);
        let rows = cut(&w, [2, 0], [2, 5]).unwrap();
        assert_eq!(rows.data(), [11, 12, 13, 14, 15, 0, 0, 0, 0, 0]);
        assert_eq!(rows.scales(), [4, 5, 6]);
        assert_eq!((rows.rows(), rows.format()), (2, format));
        assert!(cut(&w, [0, usize::MAX - 1], [3, 2]).is_ok());
    }

    #[test]
    fn fp4_is_cut_at_whole_groups_and_padded_with_zeros_of_scale_one() {
        let data: Vec<u8> = (0..3 * 48).collect();
        let scales: Vec<u8> = (100..109).collect();
        let w = HostWeight::new([3, 96], WeightFormat::Fp4, &data, &scales).unwrap();
        let part = cut(&w, [1, 64], [3, 64]).unwrap();
        assert_eq!((part.format(), part.cols()), (WeightFormat::Fp4, 64));
        assert_eq!(part.scales(), [105, 127, 108, 127, 127, 127]);
        let first: Vec<u8> = (80..96).chain([0; 16]).collect();
        assert_eq!(part.data()[..32], first);
        assert_eq!(part.data()[64..], [0; 32]);
        let beyond = cut(&w, [3, 96], [1, 32]).unwrap();
        assert_eq!((beyond.data(), beyond.scales()), (&[0; 16][..], &[127][..]));
        for (corner, shape) in [([0, 16], [3, 32]), ([0, 33], [3, 32]), ([0, 32], [3, 16])] {
            assert!(cut(&w, corner, shape).is_err(), "{corner:?} {shape:?}");
        }
    }

    #[test]
    fn scales_of_f32_are_cut_and_padded_as_whole_numbers() {
        let scales = [0.5_f32, 2.0, 4.0, 8.0].map(f32::to_le_bytes).concat();
        let format = WeightFormat::Fp8 {
            scales: ScaleFormat::F32,
            block: [1, 3],
        };
        let w = HostWeight::new([2, 4], format, &[7; 8], &scales).unwrap();
        let part = cut(&w, [1, 3], [2, 6]).unwrap();
        assert_eq!(part.data(), [7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let expected = [8.0_f32, 1.0, 1.0, 1.0].map(f32::to_le_bytes).concat();
        assert_eq!(part.scales(), expected);
    }
}
