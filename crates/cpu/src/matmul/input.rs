use std::ops::Range;

use swiglu_core::{Backend, Float, Result, RowLayout, Tensor, bf16, f16};

use crate::InstructionSet;
use crate::element::{UNIT, VectorElement};
use crate::simd::{self, Kernel, LANES, Simd};
use crate::tasks::{self, Shared};
use crate::weight::BLOCK;

/// Elements that are widened in about the time that waking a pool takes.
const INLINE: usize = 64 * 1024;

/// Rows cut into tiles of about the same height.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiles {
    pub(super) rows: usize,
    pub(super) count: usize,
}

impl Tiles {
    /// As few tiles as there can be of at most `most` rows.
    pub(super) const fn new(rows: usize, most: usize) -> Self {
        Self {
            rows,
            count: rows.div_ceil(most),
        }
    }

    /// The height of the lower tiles, and how many, the first, are taller by one.
    const fn heights(self) -> (usize, usize) {
        (self.rows / self.count, self.rows % self.count)
    }

    /// The first row of a tile, and how many it has.
    pub(super) const fn get(self, tile: usize) -> (usize, usize) {
        let (height, taller) = self.heights();
        if tile < taller {
            (tile * (height + 1), height + 1)
        } else {
            (tile * height + taller, height)
        }
    }
}

/// The rows of x, of any of the three floats.
pub(crate) struct Input<'a> {
    elements: Elements<'a>,
    layout: RowLayout,
}

#[derive(Clone, Copy)]
enum Elements<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    BF16(&'a [bf16]),
}

impl<'a> Input<'a> {
    /// The tensor must have passed its check.
    ///
    /// # Errors
    /// Memory that is not aligned to its type.
    pub(crate) fn new<B: Backend<View<'a> = &'a [u8]>>(x: &Tensor<'a, B>) -> Result<Self> {
        Ok(Self {
            elements: match x.float {
                Float::F32 => Elements::F32(x.typed("x")?),
                Float::F16 => Elements::F16(x.typed("x")?),
                Float::BF16 => Elements::BF16(x.typed("x")?),
            },
            layout: x.layout,
        })
    }

    pub(super) const fn rows(&self) -> usize {
        self.layout.rows
    }

    pub(super) const fn k(&self) -> usize {
        self.layout.cols
    }

    /// The bits of some k of a row of bf16; nothing of other types.
    pub(super) fn bits(&self, row: usize, ks: Range<usize>) -> &[u16] {
        match self.elements {
            Elements::BF16(x) => bytemuck::cast_slice(&x[self.layout.row(row)][ks]),
            Elements::F32(_) | Elements::F16(_) => &[],
        }
    }
}

/// Rows of a matmul's input as f32: for each [`BLOCK`] of k tile after tile, in each of them for
/// every k the tile's rows side by side. A matmul reads that from the first to the last.
pub(super) struct Packed<'a> {
    values: &'a [f32],
    tiles: Tiles,
}

impl<'a> Packed<'a> {
    /// Widens the rows from `first` on into `values`, which have rows · K elements.
    pub(super) fn new(
        set: InstructionSet,
        x: &Input<'_>,
        first: usize,
        tiles: Tiles,
        values: &'a mut [f32],
    ) -> Self {
        let (size, inline) = (tiles.rows * BLOCK, values.len() <= INLINE);
        let (length, to) = (values.len(), Shared(values.as_mut_ptr()));
        tasks::for_each(length.div_ceil(size), inline, &|block| {
            let start = block * size;
            // SAFETY: blocks are disjoint parts of the values.
            let to = unsafe {
                let to = to.get().add(start);
                std::slice::from_raw_parts_mut(to, size.min(length - start))
            };
            let offset = x.layout.offset + first * x.layout.stride + block * BLOCK;
            let layout = x.layout.with_offset(offset);
            match x.elements {
                // SAFETY: `set` is only given out for machines that have it; so below.
                Elements::F32(x) => unsafe {
                    simd::dispatch(
                        set,
                        Widen {
                            x,
                            layout,
                            tiles,
                            to,
                        },
                    )
                },
                // SAFETY: as above.
                Elements::F16(x) => unsafe {
                    simd::dispatch(
                        set,
                        Widen {
                            x,
                            layout,
                            tiles,
                            to,
                        },
                    )
                },
                // SAFETY: as above.
                Elements::BF16(x) => unsafe {
                    simd::dispatch(
                        set,
                        Widen {
                            x,
                            layout,
                            tiles,
                            to,
                        },
                    )
                },
            }
        });
        Self { values, tiles }
    }

    pub(super) const fn tiles(&self) -> Tiles {
        self.tiles
    }

    /// Some k, all of one [`BLOCK`], of a tile's rows.
    #[inline(always)]
    pub(super) fn get(&self, tile: usize, ks: &Range<usize>) -> &[f32] {
        let (row, rows) = self.tiles.get(tile);
        let start = ks.start / BLOCK * BLOCK * self.tiles.rows;
        let block = &self.values[start..];
        let length = BLOCK.min(block.len() / self.tiles.rows);
        &block[row * length + ks.start % BLOCK * rows..][..ks.len() * rows]
    }
}

/// A block of k of all rows.
struct Widen<'a, T> {
    x: &'a [T],
    /// Where the block's first k lie.
    layout: RowLayout,
    tiles: Tiles,
    to: &'a mut [f32],
}

impl<T: VectorElement> Kernel for Widen<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let length = self.to.len() / self.tiles.rows;
        for (first, rows) in (0..self.tiles.count).map(|tile| self.tiles.get(tile)) {
            let tile = &mut self.to[first * length..][..rows * length];
            for r in 0..rows {
                let start = self.layout.row(first + r).start;
                let mut places = tile[r..].iter_mut().step_by(rows);
                let (units, rest) = self.x[start..][..length].as_chunks::<UNIT>();
                for unit in units {
                    let mut values = [0.0; UNIT];
                    // SAFETY: both arrays are a unit, two vectors.
                    unsafe {
                        let [a, b] = T::load(s, unit.as_ptr());
                        s.store_f32(values.as_mut_ptr(), a);
                        s.store_f32(values.as_mut_ptr().add(LANES), b);
                    }
                    for (element, to) in (0..UNIT).zip(&mut places) {
                        *to = values[T::place(element)];
                    }
                }
                for (value, to) in rest.iter().zip(places) {
                    *to = value.to_f32();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_all_rows_in_order() {
        for rows in 1..100 {
            for most in 1..20 {
                let tiles = Tiles::new(rows, most);
                let mut next = 0;
                for (first, count) in (0..tiles.count).map(|t| tiles.get(t)) {
                    assert!(first == next && (1..=most).contains(&count));
                    next += count;
                }
                assert_eq!(next, rows);
            }
        }
    }
}
