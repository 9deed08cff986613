use std::ops::Range;

use swiglu_core::{Backend, Float, Result, RowLayout, Tensor, bf16, f16};

use crate::InstructionSet;
use crate::element::{UNIT, VectorElement};
use crate::simd::{self, Kernel, LANES, Simd};
use crate::tasks::{self, Shared};
use crate::weight::{BLOCK, GROUP};

/// Terms that are written in about the time that waking a pool takes.
pub(super) const INLINE: usize = 64 * 1024;

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
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    elements: Elements<'a>,
    layout: RowLayout,
    order: RowOrder<'a>,
}

#[derive(Clone, Copy)]
enum Elements<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    BF16(&'a [bf16]),
}

/// Which rows of a matrix are multiplied.
#[derive(Clone, Copy)]
enum RowOrder<'a> {
    /// So many from one on.
    From { first: usize, count: usize },
    /// Those of the tokens of these routes, of which a token has so many.
    OfRoutes { routes: &'a [i32], top_k: usize },
}

impl<'a> Input<'a> {
    /// All rows of a tensor, which must have passed its check.
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
            order: RowOrder::From {
                first: 0,
                count: x.layout.rows,
            },
        })
    }

    /// Some rows of the tensor.
    pub(crate) const fn some(self, rows: &Range<usize>) -> Self {
        let (first, count) = (rows.start, rows.end - rows.start);
        Self {
            order: RowOrder::From { first, count },
            ..self
        }
    }

    /// For each of these routes the row of its token; `top_k` routes are a token's.
    pub(crate) const fn of_routes(self, routes: &'a [i32], top_k: usize) -> Self {
        Self {
            order: RowOrder::OfRoutes { routes, top_k },
            ..self
        }
    }

    pub(super) const fn float(&self) -> Float {
        match self.elements {
            Elements::F32(_) => Float::F32,
            Elements::F16(_) => Float::F16,
            Elements::BF16(_) => Float::BF16,
        }
    }

    pub(super) const fn rows(&self) -> usize {
        match self.order {
            RowOrder::From { count, .. } => count,
            RowOrder::OfRoutes { routes, .. } => routes.len(),
        }
    }

    pub(super) const fn k(&self) -> usize {
        self.layout.cols
    }

    /// Which row of the tensor a row is.
    #[inline(always)]
    pub(super) const fn source(&self, row: usize) -> usize {
        match self.order {
            RowOrder::From { first, .. } => first + row,
            RowOrder::OfRoutes { routes, top_k } => routes[row] as usize / top_k,
        }
    }

    /// Where a row begins.
    #[inline(always)]
    fn start(&self, row: usize) -> usize {
        self.layout.row(self.source(row)).start
    }

    /// The bits of some k of a row of bf16; nothing of other types.
    pub(super) fn bits(&self, row: usize, ks: Range<usize>) -> &[u16] {
        match self.elements {
            Elements::BF16(x) => bytemuck::cast_slice(&x[self.start(row)..][ks]),
            Elements::F32(_) | Elements::F16(_) => &[],
        }
    }
}

/// What a matmul takes of a row at a time: a k in f32, or a pair of k in bf16 as a word, the first in
/// its lower half.
pub(super) trait Term: bytemuck::Pod + Send + Sync {
    /// k of a term.
    const KS: usize;

    /// Terms of a row of so many k, of which a last group may be filled up with zeros.
    fn count(k: usize) -> usize;

    /// Writes a block of k of all rows.
    fn write(set: InstructionSet, block: Rows<'_, Self>);
}

impl Term for f32 {
    const KS: usize = 1;

    fn count(k: usize) -> usize {
        k
    }

    fn write(set: InstructionSet, block: Rows<'_, Self>) {
        // SAFETY: `set` is only given out for machines that have it.
        unsafe { simd::dispatch(set, block) };
    }
}

impl Term for u32 {
    const KS: usize = 2;

    fn count(k: usize) -> usize {
        k.next_multiple_of(GROUP) / 2
    }

    fn write(_: InstructionSet, block: Rows<'_, Self>) {
        let Rows { x, tiles, .. } = block;
        let length = block.to.len() / tiles.rows;
        let ks = block.k..x.k().min(block.k + 2 * length);
        for (first, rows) in (0..tiles.count).map(|tile| tiles.get(tile)) {
            let tile = &mut block.to[first * length..][..rows * length];
            let from = |r| x.bits(block.first + first + r, ks.clone());
            match rows {
                1 => side_by_side::<1>(from, tile),
                2 => side_by_side::<2>(from, tile),
                3 => side_by_side::<3>(from, tile),
                4 => side_by_side::<4>(from, tile),
                5 => side_by_side::<5>(from, tile),
                6 => side_by_side::<6>(from, tile),
                7 => side_by_side::<7>(from, tile),
                // No tile is taller.
                _ => side_by_side::<8>(from, tile),
            }
        }
    }
}

/// Writes R rows' pairs side by side, and zeros where they end.
fn side_by_side<'a, const R: usize>(row: impl Fn(usize) -> &'a [u16], to: &mut [u32]) {
    let rows: [&[u16]; R] = std::array::from_fn(row);
    let (to, _) = to.as_chunks_mut::<R>();
    let whole = rows[0].len() / 2;
    let pairs = rows.map(|row| &row.as_chunks::<2>().0[..whole]);
    for (i, to) in to.iter_mut().enumerate() {
        for (r, to) in to.iter_mut().enumerate() {
            let [low, high] = match pairs[r].get(i) {
                Some(pair) => *pair,
                None => [rows[r].get(2 * i).copied().unwrap_or(0), 0],
            };
            *to = u32::from(low) | u32::from(high) << 16;
        }
    }
}

/// Rows of a matmul's input as terms: for each [`BLOCK`] of k tile after tile, in each of them term by
/// term the tile's rows side by side. A matmul reads that from the first to the last.
pub(super) struct Packed<'a, X> {
    values: &'a [X],
    tiles: Tiles,
}

impl<'a, X: Term> Packed<'a, X> {
    /// Writes the rows from `first` on into `values`, which have their terms.
    pub(super) fn new(
        set: InstructionSet,
        x: &Input<'_>,
        first: usize,
        tiles: Tiles,
        values: &'a mut [X],
    ) -> Self {
        let (size, inline) = (tiles.rows * BLOCK / X::KS, values.len() <= INLINE);
        let (length, to) = (values.len(), Shared(values.as_mut_ptr()));
        tasks::for_each(length.div_ceil(size), inline, &|block| {
            let start = block * size;
            // SAFETY: blocks are disjoint parts of the values.
            let to = unsafe {
                let to = to.get().add(start);
                std::slice::from_raw_parts_mut(to, size.min(length - start))
            };
            let k = block * BLOCK;
            X::write(
                set,
                Rows {
                    x,
                    first,
                    k,
                    tiles,
                    to,
                },
            );
        });
        Self { values, tiles }
    }

    /// Rows that were written before.
    pub(super) const fn again(values: &'a [X], tiles: Tiles) -> Self {
        Self { values, tiles }
    }

    pub(super) const fn tiles(&self) -> Tiles {
        self.tiles
    }

    /// The terms of some k, all of one [`BLOCK`], of a tile's rows.
    #[inline(always)]
    pub(super) fn get(&self, tile: usize, ks: &Range<usize>) -> &[X] {
        let (row, rows) = self.tiles.get(tile);
        let start = ks.start / BLOCK * BLOCK / X::KS * self.tiles.rows;
        let block = &self.values[start..];
        let length = (BLOCK / X::KS).min(block.len() / self.tiles.rows);
        let terms = X::count(ks.len());
        &block[row * length + ks.start % BLOCK / X::KS * rows..][..terms * rows]
    }
}

/// A block of k of all rows, and where its terms go.
pub(super) struct Rows<'a, X> {
    x: &'a Input<'a>,
    /// The first of the rows, and of the block's k.
    first: usize,
    k: usize,
    tiles: Tiles,
    to: &'a mut [X],
}

impl Kernel for Rows<'_, f32> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.x.elements {
            Elements::F32(x) => self.elements(s, x),
            Elements::F16(x) => self.elements(s, x),
            Elements::BF16(x) => self.elements(s, x),
        }
    }
}

impl Rows<'_, f32> {
    #[inline(always)]
    fn elements<S: Simd, T: VectorElement>(self, s: S, x: &[T]) {
        let length = self.to.len() / self.tiles.rows;
        for (first, rows) in (0..self.tiles.count).map(|tile| self.tiles.get(tile)) {
            let tile = &mut self.to[first * length..][..rows * length];
            for r in 0..rows {
                let start = self.x.start(self.first + first + r) + self.k;
                let mut places = tile[r..].iter_mut().step_by(rows);
                let (units, rest) = x[start..][..length].as_chunks::<UNIT>();
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
