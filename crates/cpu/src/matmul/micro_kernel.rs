//! The sums of a matmul, MR rows by NR outputs at a time, in registers.
//!
//! ## Method
//! 1. A tile has R rows and P panels of 16 outputs (MR and NR are the most there are), a vector of
//!    sums each. Every k takes P vectors of weights and R scalars of x, and makes R · P fused
//!    multiply-adds ([`step`]).
//! 2. After each block of k, which ends where a scale's does, a tile's sums are multiplied by the scale
//!    and added to their totals in memory ([`Multiply::tile`]). That order is the same for all R and P.
//! 3. With few rows this is a GEMV: weights come from memory once, from several panels side by side
//!    ([`Gemv`]).
//! 4. With many rows each block of k of two panels serves all tiles, and the next block is prefetched
//!    meanwhile. Its weights are decoded for each tile ([`ManyTiles`]) or once ([`DecodedTiles`]).
//! 5. R and P are constants of the functions, and loops over them are unrolled in the source, so that
//!    sums are registers from the start. Each of these functions is compiled by itself.

use std::marker::PhantomData;
use std::ops::Range;

use super::decode::{BF16, Decode, E4M3, F16, F32};
use super::input::Packed;
use super::plan::{DecodeStep, gemv_panels, tile_panels};
use crate::simd::{self, Kernel, LANES, Outlined, Simd};
use crate::weight::{BLOCK, Block, GROUP, PackedWeight, PanelFormat};

/// Some panels for all rows of an input.
pub(super) struct Multiply<'a> {
    pub(super) x: &'a Packed<'a>,
    pub(super) weight: &'a PackedWeight,
    pub(super) decode: DecodeStep,
    pub(super) panels: Range<usize>,
    /// \[panel, row, lane\], zero before.
    pub(super) sums: &'a mut [f32],
}

impl Kernel for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        match (self.decode, self.weight.shape().format) {
            (DecodeStep::Gemv, PanelFormat::F32) => self.gemv::<S, F32>(s),
            (DecodeStep::Gemv, PanelFormat::F16) => self.gemv::<S, F16>(s),
            (DecodeStep::Gemv, PanelFormat::BF16) => self.gemv::<S, BF16>(s),
            (DecodeStep::Gemv, PanelFormat::E4M3) => self.gemv::<S, E4M3>(s),
            (DecodeStep::Gemv, PanelFormat::Fp4) => fp4::gemv(s, &mut self),
            (DecodeStep::EachTile, PanelFormat::BF16) if tile_panels(S::REGISTERS) == 2 => {
                s.call(ManyTiles::<BF16>(&mut self, PhantomData));
            }
            (DecodeStep::EachTile | DecodeStep::OnceABlock | DecodeStep::Tiles, _) => {
                s.call(DecodedTiles(&mut self));
            }
        }
    }
}

/// A loop of at most eight rounds without a loop: sums that are indexed by a constant are registers
/// from the start, and need no optimisation to become that.
macro_rules! unrolled {
    ($i:ident < $n:tt, $body:block) => {
        unrolled!(@ $i, $n, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $i:ident, $n:tt, $body:block, $($value:literal)+) => {
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
            $($n if $n <= $S::REGISTERS.rows => {
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

mod fp4;

/// One low tile: weights are decoded as they come.
struct Gemv<'a, 'b, D, const R: usize>(&'a mut Multiply<'b>, PhantomData<D>);

impl<S: Simd, D: Decode, const R: usize> Outlined<S> for Gemv<'_, '_, D, R> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        assert_eq!(self.0.x.tiles().rows, R, "a GEMV's rows are one tile");
        match gemv_panels(S::REGISTERS, R, D::IS_F8) {
            4 => self.0.gemv_panels::<S, D, R, 4>(s),
            2 => self.0.gemv_panels::<S, D, R, 2>(s),
            _ => self.0.gemv_panels::<S, D, R, 1>(s),
        }
    }
}

/// Many rows: block by block of k, so that those of the input stay in the second-level cache, and in
/// each of them two panels after two.
struct ManyTiles<'a, 'b, D>(&'a mut Multiply<'b>, PhantomData<D>);

impl<S: Simd, D: Decode> Outlined<S> for ManyTiles<'_, '_, D> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        let all = self.0;
        for block in all.weight.blocks() {
            for first in all.panels.clone().step_by(2) {
                let w = all.stored::<D, 2>(first, &block);
                let next = all.after(first, &block);
                // SAFETY: the panels go on for the block's k.
                unsafe { all.tiles::<S, D>(s, first, &block, w, &next) };
            }
        }
    }
}

/// The same with a block of two panels decoded once, into the first-level cache.
struct DecodedTiles<'a, 'b>(&'a mut Multiply<'b>);

impl<S: Simd> Outlined<S> for DecodedTiles<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        let all = self.0;
        let mut w = [Decoded::ZERO; 2];
        for block in all.weight.blocks() {
            for first in all.panels.clone().step_by(2) {
                let panels = first..all.panels.end.min(first + 2);
                for (panel, w) in panels.zip(&mut w) {
                    s.call(Fill {
                        to: w,
                        weight: all.weight,
                        panel,
                        ks: &block.ks,
                    });
                }
                let w = [w[0].at(&block.ks), w[1].at(&block.ks)];
                let next = all.after(first, &block);
                // SAFETY: the block was filled in.
                unsafe { all.tiles::<S, F32>(s, first, &block, w, &next) };
            }
        }
    }
}

impl Multiply<'_> {
    #[inline(always)]
    fn gemv<S: Simd, D: Decode>(&mut self, s: S) {
        match self.x.tiles().rows {
            4 if S::REGISTERS.rows >= 4 => s.call(Gemv::<D, 4>(self, PhantomData)),
            3 if S::REGISTERS.rows >= 3 => s.call(Gemv::<D, 3>(self, PhantomData)),
            2 if S::REGISTERS.rows >= 2 => s.call(Gemv::<D, 2>(self, PhantomData)),
            _ => s.call(Gemv::<D, 1>(self, PhantomData)),
        }
    }

    #[inline(always)]
    fn gemv_panels<S: Simd, D: Decode, const R: usize, const P: usize>(&mut self, s: S) {
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
        let [start, end] = [block.ks.start, block.ks.end].map(|k| {
            let groups = k.div_ceil(GROUP) * GROUP;
            self.weight.shape().format.offset(groups)
        });
        let panels = [first, last.min(first + 1)];
        Next {
            panels: panels.map(|p| self.weight.panel(p).as_ptr().wrapping_add(end)),
            bytes: end - start,
        }
    }

    /// All tiles' sums of a block of two panels.
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
            next.prefetch(tile, tiles.count);
            rows!(rows, S, R => {
                // SAFETY: the caller vouches for it.
                unsafe {
                    if tile_panels(S::REGISTERS) == 2 {
                        self.tile::<S, D, R, 2>(s, tile, first, block, w);
                    } else {
                        for (p, w) in w.into_iter().enumerate() {
                            self.tile::<S, D, R, 1>(s, tile, first + p, block, [w]);
                        }
                    }
                }
            });
        }
    }

    /// Adds a block's sums of a tile's R rows with P panels to their totals. `w` points to the
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
        for group in self.weight.groups(block) {
            let before = group.ks.start - block.ks.start;
            // SAFETY: a group is a part of the block, and begins with it or at a multiple of 4 k.
            let (x, w) = unsafe {
                let at = before / GROUP * D::BYTES;
                (x.add(before * R), w.map(|w| w.wrapping_add(at)))
            };
            // SAFETY: as the caller says.
            unsafe { self.group::<S, D, R, P>(s, (x, row), first, &group, w) };
        }
    }

    /// The same for what of a block is summed by itself, of the tile whose first row is given.
    ///
    /// # Safety
    /// `x` points to R rows of the group's k, each of `w` to its whole groups of 4 k.
    #[inline(always)]
    unsafe fn group<S: Simd, D: Decode, const R: usize, const P: usize>(
        &mut self,
        s: S,
        (x, row): (*const f32, usize),
        first: usize,
        block: &Block,
        w: [*const u8; P],
    ) {
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
            let totals = self.sums[at * LANES..][..R * LANES].as_mut_ptr();
            let scale = self.scale(s, first + p, block.scale);
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

impl Multiply<'_> {
    /// What the sums of a panel's outputs are multiplied by, if anything.
    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, panel: usize, block: usize) -> Option<S::F> {
        if self.weight.shape().format == PanelFormat::Fp4 {
            return Some(fp4::scale(s, self.weight, panel, block));
        }
        Some(match self.weight.scales(panel, block)? {
            &[one] if self.weight.nans(panel, block) == 0 => s.splat(one),
            [_] => {
                let lanes = self.weight.lane_scales(panel, block);
                // SAFETY: the array has LANES elements.
                unsafe { s.load_f32(lanes.as_ptr()) }
            }
            // SAFETY: there are LANES of them otherwise.
            lanes => unsafe { s.load_f32(lanes.as_ptr()) },
        })
    }
}

/// The weights that a thread needs after those that it multiplies with: they come from memory, and
/// sums in registers leave little for the processor to run ahead to.
struct Next {
    panels: [*const u8; 2],
    bytes: usize,
}

impl Next {
    /// Prefetches a tile's share of them.
    #[inline(always)]
    fn prefetch(&self, tile: usize, count: usize) {
        const LINE: usize = 64;
        let lines = self.bytes.div_ceil(LINE);
        for line in lines * tile / count..lines * (tile + 1) / count {
            for panel in self.panels {
                simd::prefetch_second_level(panel.wrapping_add(line * LINE));
            }
        }
    }
}

/// Adds the products of a group's k number J.
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
    fn decode<S: Simd, D: Decode>(&mut self, s: S, panel: &[u8], groups: Range<usize>) {
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

/// Decodes a block of a panel.
struct Fill<'a> {
    to: &'a mut Decoded,
    weight: &'a PackedWeight,
    panel: usize,
    ks: &'a Range<usize>,
}

impl<S: Simd> Outlined<S> for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        let groups = self.ks.start / GROUP..self.ks.end.div_ceil(GROUP);
        let panel = self.weight.panel(self.panel);
        match self.weight.shape().format {
            PanelFormat::F32 => self.to.decode::<S, F32>(s, panel, groups),
            PanelFormat::F16 => self.to.decode::<S, F16>(s, panel, groups),
            PanelFormat::BF16 => self.to.decode::<S, BF16>(s, panel, groups),
            PanelFormat::E4M3 => self.to.decode::<S, E4M3>(s, panel, groups),
            PanelFormat::Fp4 => fp4::decode(s, panel, self.ks, &mut self.to.0),
        }
    }
}
