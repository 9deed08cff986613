//! The sums of a product: R rows by P panels at a time, in registers.

use std::ops::Range;

use swiglu_core::DType;

use super::decode::{BF16, Decode, E4M3, F16, F32};
use super::input::{Packed, Tiles};
use crate::simd::{self, Kernel, LANES, Simd};
use crate::weight::{BLOCK, Block, GROUP, PackedWeight};

/// Rows up to which weights are decoded as they come.
const FEW: usize = 4;

/// Most rows of a tile on an instruction set.
pub(super) struct MostRows;

impl Kernel for MostRows {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::ROWS
    }
}

/// Some panels for all rows of an input.
pub(super) struct Multiply<'a> {
    pub(super) x: &'a Packed<'a>,
    pub(super) weight: &'a PackedWeight,
    pub(super) panels: Range<usize>,
    /// \[panel, row, lane\], zero before.
    pub(super) totals: &'a mut [f32],
}

impl Kernel for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let rows = match self.x.tiles() {
            Tiles { rows, count: 1 } if rows <= FEW => rows,
            _ => 0,
        };
        // What takes little to decode is decoded as often as it is used.
        match (self.weight.dtype(), self.weight.blocks_are_groups(), rows) {
            (_, false, _) => self.decoded(s),
            (DType::BF16, _, 0) if 2 * S::ROWS <= S::SUMS => self.many::<S, BF16>(s),
            (_, _, 0) => self.decoded(s),
            (DType::F32, ..) => self.few::<S, F32>(s, rows),
            (DType::F16, ..) => self.few::<S, F16>(s, rows),
            (DType::BF16, ..) => self.few::<S, BF16>(s, rows),
            (DType::F8E4M3 | DType::E8M0, ..) => self.few::<S, E4M3>(s, rows),
        }
    }
}

/// A loop of at most eight rounds without a loop: sums that are indexed by a constant are registers
/// from the start, and need no optimisation to become that.
macro_rules! unrolled {
    ($i:ident < $n:ident, $body:block) => {
        unrolled!(@ $i, $n, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $i:ident, $n:ident, $body:block, $($value:literal)+) => {
        $(if $value < $n {
            let $i = $value;
            $body
        })+
    };
}

/// A call with the number of a tile's rows as a constant: as many as the instruction set takes.
macro_rules! rows {
    ($rows:expr, $S:ident, $R:ident => $call:expr) => {
        rows!(@ $rows, $S, $R, $call, 2 3 4 5 6 7 8)
    };
    (@ $rows:expr, $S:ident, $R:ident, $call:expr, $($n:literal)+) => {
        match $rows {
            $($n if $n <= $S::ROWS => {
                const $R: usize = $n;
                $call
            })+
            _ => {
                const $R: usize = 1;
                $call
            }
        }
    };
}

impl Multiply<'_> {
    /// One low tile: weights are decoded as they come, from as many panels side by side as the
    /// sums leave registers for.
    #[inline(always)]
    fn few<S: Simd, D: Decode>(&mut self, s: S, rows: usize) {
        match rows {
            1 => self.strips::<S, D, 1>(s),
            2 => self.strips::<S, D, 2>(s),
            3 => self.strips::<S, D, 3>(s),
            _ => self.strips::<S, D, 4>(s),
        }
    }

    #[inline(always)]
    fn strips<S: Simd, D: Decode, const R: usize>(&mut self, s: S) {
        // Decoding f8 takes registers too, which sums leave where there are many.
        let spare = S::SUMS >= 2 * S::ROWS || D::BYTES != E4M3::BYTES;
        if 4 * R <= S::SUMS && spare {
            self.strip::<S, D, R, 4>(s);
        } else if 2 * R <= S::SUMS {
            self.strip::<S, D, R, 2>(s);
        } else {
            self.strip::<S, D, R, 1>(s);
        }
    }

    #[inline(always)]
    fn strip<S: Simd, D: Decode, const R: usize, const P: usize>(&mut self, s: S) {
        for first in self.panels.clone().step_by(P) {
            for block in self.weight.blocks() {
                let w = self.stored::<D, P>(first, &block);
                // SAFETY: the panels go on for the block's k.
                unsafe { self.tile::<S, D, R, P>(s, 0, first, &block, w) };
            }
        }
    }

    /// Where a block lies in P panels from `first` on; beyond the last, in the last.
    #[inline(always)]
    fn stored<D: Decode, const P: usize>(&self, first: usize, block: &Block) -> [*const u8; P] {
        let last = self.panels.end - 1;
        std::array::from_fn(|p| {
            let panel = self.weight.panel(last.min(first + p));
            panel[block.ks.start / GROUP * D::BYTES..].as_ptr()
        })
    }

    /// What follows a block in two panels from `first` on.
    #[inline(always)]
    fn after(&self, first: usize, block: &Block) -> Next {
        let last = self.panels.end - 1;
        let bytes = LANES * self.weight.dtype().size();
        Next {
            panels: [first, last.min(first + 1)].map(|p| {
                self.weight
                    .panel(p)
                    .as_ptr()
                    .wrapping_add(block.ks.end * bytes)
            }),
            bytes: block.ks.len() * bytes,
        }
    }

    /// Many rows: block by block of k, so that those of the input stay in the second-level cache,
    /// and in each of them two panels after two.
    #[inline(always)]
    fn many<S: Simd, D: Decode>(&mut self, s: S) {
        for block in self.weight.blocks() {
            for first in self.panels.clone().step_by(2) {
                let w = self.stored::<D, 2>(first, &block);
                let next = self.after(first, &block);
                // SAFETY: the panels go on for the block's k.
                unsafe { self.tiles::<S, D>(s, first, &block, w, &next) };
            }
        }
    }

    /// The same with a block of two panels decoded once, into the first-level cache.
    #[inline(always)]
    fn decoded<S: Simd>(&mut self, s: S) {
        let mut w = [Decoded::ZERO; 2];
        for block in self.weight.blocks() {
            for first in self.panels.clone().step_by(2) {
                let panels = first..self.panels.end.min(first + 2);
                for (panel, w) in panels.zip(&mut w) {
                    w.fill(s, self.weight, panel, &block.ks);
                }
                let w = [w[0].at(&block.ks), w[1].at(&block.ks)];
                let next = self.after(first, &block);
                // SAFETY: the block was filled in.
                unsafe { self.tiles::<S, F32>(s, first, &block, w, &next) };
            }
        }
    }

    /// All rows' products of a block of two panels.
    ///
    /// # Safety
    /// As [`Self::tile`] for the tiles' rows.
    #[inline(always)]
    unsafe fn tiles<S: Simd, D: Decode>(
        &mut self,
        s: S,
        first: usize,
        block: &Block,
        w: [*const u8; 2],
        next: &Next,
    ) {
        let tiles = self.x.tiles();
        for (tile, rows) in (0..tiles.count).map(|tile| (tile, tiles.get(tile).1)) {
            next.fetch(tile, tiles.count);
            rows!(rows, S, R => {
                // SAFETY: the caller vouches for it.
                unsafe {
                    if 2 * S::ROWS <= S::SUMS {
                        self.tile::<S, D, R, 2>(s, tile, first, block, w);
                    } else {
                        self.tile::<S, D, R, 1>(s, tile, first, block, [w[0]]);
                        self.tile::<S, D, R, 1>(s, tile, first + 1, block, [w[1]]);
                    }
                }
            });
        }
    }

    /// Adds a block's products of a tile's R rows with P panels to their totals. `w` points to the
    /// block in each panel.
    ///
    /// # Safety
    /// The tile has R rows, and each of `w` points to the block's k in whole groups. Panels that are
    /// not among `self.panels` are left out.
    #[inline(always)]
    unsafe fn tile<S: Simd, D: Decode, const R: usize, const P: usize>(
        &mut self,
        s: S,
        tile: usize,
        first: usize,
        block: &Block,
        w: [*const u8; P],
    ) {
        let (row, _) = self.x.tiles().get(tile);
        let x = self.x.get(tile, &block.ks).as_ptr();
        let (groups, rest) = (block.ks.len() / GROUP, block.ks.len() % GROUP);
        let mut sums = [[s.splat(0.0); P]; R];
        for g in 0..groups {
            // SAFETY: x holds R rows of the block's k, w its groups.
            unsafe {
                let (x, at) = (x.add(g * GROUP * R), g * D::BYTES);
                step::<S, D, R, P, 0>(s, x, &w, at, &mut sums);
                step::<S, D, R, P, 1>(s, x, &w, at, &mut sums);
                step::<S, D, R, P, 2>(s, x, &w, at, &mut sums);
                step::<S, D, R, P, 3>(s, x, &w, at, &mut sums);
            }
        }
        // SAFETY: as above, of which the last group has `rest` k.
        unsafe {
            let (x, at) = (x.add(groups * GROUP * R), groups * D::BYTES);
            if rest > 0 {
                step::<S, D, R, P, 0>(s, x, &w, at, &mut sums);
            }
            if rest > 1 {
                step::<S, D, R, P, 1>(s, x, &w, at, &mut sums);
            }
            if rest > 2 {
                step::<S, D, R, P, 2>(s, x, &w, at, &mut sums);
            }
        }
        unrolled!(p < P, {
            if first + p == self.panels.end {
                return;
            }
            let at = (first + p - self.panels.start) * self.x.tiles().rows + row;
            let totals = self.totals[at * LANES..][..R * LANES].as_mut_ptr();
            let scale = match self.weight.scales(first + p, block.scale) {
                None => None,
                Some(&[one]) => Some(match self.weight.nans(first + p, block.scale) {
                    0 => s.splat(one),
                    // SAFETY: the array has LANES elements.
                    nans => unsafe { s.load_f32(with_nans(one, nans).as_ptr()) },
                }),
                // SAFETY: there are LANES of them otherwise.
                Some(lanes) => Some(unsafe { s.load_f32(lanes.as_ptr()) }),
            };
            unrolled!(r < R, {
                // SAFETY: the slice has R · LANES elements.
                unsafe {
                    let to = totals.add(r * LANES);
                    let total = s.load_f32(to);
                    let total = match scale {
                        Some(scale) => s.fma(scale, sums[r][p], total),
                        None => s.add(sums[r][p], total),
                    };
                    s.store_f32(to, total);
                }
            });
        });
    }
}

/// A panel's scale for each of its outputs, of which some are NaN.
#[cold]
fn with_nans(scale: f32, nans: u16) -> [f32; LANES] {
    std::array::from_fn(|lane| match nans >> lane & 1 {
        0 => scale,
        _ => f32::NAN,
    })
}

/// The weights that a thread needs after those that it multiplies with: they come from memory, and
/// sums in registers leave little for the processor to run ahead to.
struct Next {
    panels: [*const u8; 2],
    bytes: usize,
}

impl Next {
    /// Asks for a tile's share of them.
    #[inline(always)]
    fn fetch(&self, tile: usize, count: usize) {
        const LINE: usize = 64;
        let lines = self.bytes.div_ceil(LINE);
        for line in lines * tile / count..lines * (tile + 1) / count {
            for panel in self.panels {
                simd::prefetch_second_level(panel.wrapping_add(line * LINE));
            }
        }
    }
}

/// Adds the products of k number J of a group.
///
/// # Safety
/// `x` points to R rows of the group's k up to J, each of `w` to the group, `at` bytes before it.
#[inline(always)]
unsafe fn step<S: Simd, D: Decode, const R: usize, const P: usize, const J: usize>(
    s: S,
    x: *const f32,
    w: &[*const u8; P],
    at: usize,
    sums: &mut [[S::F; P]; R],
) {
    let mut elements = [s.splat(0.0); P];
    unrolled!(p < P, {
        // SAFETY: the caller vouches for it; so below.
        elements[p] = unsafe { D::element::<S, J>(s, w[p].add(at)) };
    });
    unrolled!(r < R, {
        // SAFETY: as above.
        let x = s.splat(unsafe { *x.add(J * R + r) });
        unrolled!(p < P, {
            sums[r][p] = s.fma(x, elements[p], sums[r][p]);
        });
    });
}

/// A block of a panel as f32; it may begin and end within a group.
#[repr(align(64))]
struct Decoded([f32; (BLOCK + 2 * GROUP) * LANES]);

impl Decoded {
    const ZERO: Self = Self([0.0; _]);

    #[inline(always)]
    fn fill<S: Simd>(&mut self, s: S, weight: &PackedWeight, panel: usize, ks: &Range<usize>) {
        let groups = ks.start / GROUP..ks.end.div_ceil(GROUP);
        let panel = weight.panel(panel);
        match weight.dtype() {
            DType::F32 => self.with::<S, F32>(s, panel, groups),
            DType::F16 => self.with::<S, F16>(s, panel, groups),
            DType::BF16 => self.with::<S, BF16>(s, panel, groups),
            DType::F8E4M3 | DType::E8M0 => self.with::<S, E4M3>(s, panel, groups),
        }
    }

    #[inline(always)]
    fn with<S: Simd, D: Decode>(&mut self, s: S, panel: &[u8], groups: Range<usize>) {
        let panel = panel[groups.start * D::BYTES..groups.end * D::BYTES].chunks_exact(D::BYTES);
        for (from, to) in panel.zip(self.0.chunks_exact_mut(GROUP * LANES)) {
            let (from, to) = (from.as_ptr(), to.as_mut_ptr());
            // SAFETY: a group each.
            unsafe {
                s.store_f32(to, D::element::<S, 0>(s, from));
                s.store_f32(to.add(LANES), D::element::<S, 1>(s, from));
                s.store_f32(to.add(2 * LANES), D::element::<S, 2>(s, from));
                s.store_f32(to.add(3 * LANES), D::element::<S, 3>(s, from));
            }
        }
    }

    /// Where a block that was filled in begins.
    fn at(&self, ks: &Range<usize>) -> *const u8 {
        self.0[ks.start % GROUP * LANES..].as_ptr().cast()
    }
}
