//! A panel of words as the transpose of its outputs' rows, on vectors.
//!
//! ## Method
//! [`LANES`] words of as many rows are a square in as many vectors. A word's place has eight bits: four
//! of the vector, its row, and four of the lane, its unit of k. Taking two vectors' even lanes and
//! their odd ones apart swaps the lowest bit of the lane for one of the vector, and moves the others
//! on: after all four the square is transposed.

use crate::simd::{self, Kernel, LANES, Simd};

/// Bytes of a row that are taken at a time: a vector, and a cache line.
pub(super) const LINE: usize = 4 * LANES;

/// Lines that are asked for before they are read, as a row ends with a page or soon after.
const AHEAD: usize = 8;

/// Writes words of whole rows side by side, as far as these are whole lines.
pub(super) struct Transpose<'a> {
    pub(super) rows: [&'a [u8]; LANES],
    pub(super) panel: &'a mut [u8],
}

impl Transpose<'_> {
    /// Lines of each row.
    pub(super) fn lines(&self) -> usize {
        let shortest = self.rows.iter().map(|row| row.len()).min().unwrap_or(0);
        shortest.min(self.panel.len() / LANES) / LINE
    }
}

/// One step for these pairs of vectors.
macro_rules! apart {
    ($s:expr, $v:ident: $($a:literal $b:literal)*) => {
        $(($v[$a], $v[$b]) = $s.deinterleave($v[$a], $v[$b]);)*
    };
}

impl Kernel for Transpose<'_> {
    /// Whether a byte was 0x7f or 0xff.
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let lines = self.lines();
        let to: *mut f32 = self.panel.as_mut_ptr().cast();
        let aligned = to.addr().is_multiple_of(LINE);
        let mut found = s.splat_u32(0);
        for line in 0..lines {
            let mut v = [s.splat(0.0); LANES];
            for (lane, row) in self.rows.iter().enumerate() {
                let from = row.as_ptr().wrapping_add(line * LINE);
                // Behind its end begins the next row, and so many on that of the next panel.
                let next = match line + AHEAD < lines {
                    true => 0,
                    false => (LANES - 1) * row.len(),
                };
                simd::prefetch(from.wrapping_add(AHEAD * LINE + next));
                // SAFETY: the row has the line.
                v[lane] = unsafe { s.load_f32(from.cast()) };
                // Of each byte the highest bit, where the others are all set.
                let bytes = s.and(s.bits(v[lane]), s.splat_u32(0x7f7f_7f7f));
                found = s.or(found, s.add_u32(bytes, s.splat_u32(0x0101_0101)));
            }
            apart!(s, v: 0 1  2 3  4 5  6 7  8 9  10 11  12 13  14 15);
            apart!(s, v: 0 2  1 3  4 6  5 7  8 10  9 11  12 14  13 15);
            apart!(s, v: 0 4  1 5  2 6  3 7  8 12  9 13  10 14  11 15);
            apart!(s, v: 0 8  1 9  2 10  3 11  4 12  5 13  6 14  7 15);
            for (unit, words) in v.into_iter().enumerate() {
                // SAFETY: the panel has the line's units, and begins with a vector where it is aligned.
                unsafe {
                    let to = to.add((line * LANES + unit) * LANES);
                    match aligned {
                        // Nobody reads them soon.
                        true => s.stream_f32(to, words),
                        false => s.store_f32(to, words),
                    }
                }
            }
        }
        simd::fence();
        s.highest(s.and(found, s.splat_u32(0x8080_8080))) > 0
    }
}
