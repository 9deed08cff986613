//! The sums of a matmul, MR rows by NR outputs at a time, in registers.
//!
//! ## Method
//! 1. A tile has R rows and P panels of 16 outputs (MR and NR are the most there are), a vector of
//!    sums each. Every k takes P vectors of weights and R scalars of x, and makes R · P fused
//!    multiply-adds; where there are dot products of bf16, every pair of k as many of those
//!    ([`products`]).
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
use super::input::{Packed, Term};
use super::plan::{DecodeStep, gemv_panels, gemv_rows, tile_panels};
use crate::InstructionSet;
use crate::simd::{self, DotKernel, Dots, Kernel, LANES, Outlined, Simd};
use crate::weight::{Block, GROUP, PackedWeight, PanelFormat};

/// Some panels for all rows of an input, whose terms say what multiplies: f32 fused multiply-adds, and
/// pairs of bf16 dot products.
pub(super) struct Multiply<'a, X> {
    pub(super) x: &'a Packed<'a, X>,
    pub(super) weight: &'a PackedWeight,
    pub(super) decode: DecodeStep,
    pub(super) panels: Range<usize>,
    /// \[panel, row, lane\], zero before.
    pub(super) sums: &'a mut [f32],
}

/// A term that there are micro-kernels for.
pub(super) trait Multiplied: Term {
    /// Runs them.
    ///
    /// # Safety
    /// The machine has the instruction set.
    unsafe fn multiply(set: InstructionSet, multiply: Multiply<'_, Self>);
}

impl Multiplied for f32 {
    unsafe fn multiply(set: InstructionSet, multiply: Multiply<'_, Self>) {
        // SAFETY: the caller vouches for it.
        unsafe { simd::dispatch(set, multiply) }
    }
}

impl Multiplied for u32 {
    unsafe fn multiply(set: InstructionSet, multiply: Multiply<'_, Self>) {
        // SAFETY: the caller vouches for it.
        unsafe { simd::dispatch_dots(set, multiply) }
    }
}

impl Kernel for Multiply<'_, f32> {
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
                s.call(ManyTiles::<_, BF16>(&mut self, PhantomData));
            }
            (DecodeStep::EachTile | DecodeStep::OnceABlock | DecodeStep::Tiles, _) => {
                s.call(DecodedTiles(&mut self));
            }
        }
    }
}

impl DotKernel for Multiply<'_, u32> {
    #[inline(always)]
    fn run<S: Dots>(mut self, s: S) {
        match (self.decode, self.weight.shape().format) {
            (DecodeStep::Gemv, PanelFormat::E4M3) => self.gemv::<S, E4M3>(s),
            (DecodeStep::Gemv, PanelFormat::Fp4) => fp4::gemv(s, &mut self),
            (DecodeStep::Gemv, _) => self.gemv::<S, BF16>(s),
            (DecodeStep::EachTile, _) => s.call(ManyTiles::<_, BF16>(&mut self, PhantomData)),
            (DecodeStep::OnceABlock | DecodeStep::Tiles, _) => s.call(DecodedTiles(&mut self)),
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

/// A call with the number of a tile's rows as a constant: as many as are said to be the most.
macro_rules! rows {
    ($rows:expr, $most:expr, $R:ident => $call:expr) => {
        rows!(@ $rows, $most, $R, $call, 2 3 4 5 6 7 8)
    };
    (@ $rows:expr, $most:expr, $R:ident, $call:expr, $($n:literal)+) => {
        match $rows {
            $($n if const { $n <= $most } => {
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

mod decoded;
mod fp4;
mod panels;
mod products;

use decoded::{Decoded, Fill};
use panels::{Next, Panels};
use products::{Products, Sum};

/// One low tile: weights are decoded as they come.
struct Gemv<'a, 'b, X, D, const R: usize>(&'a mut Multiply<'b, X>, PhantomData<D>);

impl<S: Simd, X: Term, D: Sum<S, X>, const R: usize> Outlined<S> for Gemv<'_, '_, X, D, R> {
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
struct ManyTiles<'a, 'b, X, D>(&'a mut Multiply<'b, X>, PhantomData<D>);

impl<S: Simd, X: Term, D: Sum<S, X>> Outlined<S> for ManyTiles<'_, '_, X, D> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        let all = self.0;
        for block in all.weight.blocks() {
            for first in all.panels.clone().step_by(2) {
                let w = all.stored::<D, 2>(first, &block);
                let next = all.after::<2>(first, &block, all.panels.len(), all.x.tiles().count);
                // SAFETY: the panels go on for the block's k.
                unsafe { all.tiles::<S, D>(s, first, &block, w, &next) };
            }
        }
    }
}

/// The same with a block of two panels decoded once, into the first-level cache.
struct DecodedTiles<'a, 'b, X>(&'a mut Multiply<'b, X>);

impl<S: Simd, X: Products<S>> Outlined<S> for DecodedTiles<'_, '_, X> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        let all = self.0;
        let mut w = [Decoded::ZERO; 2];
        for block in all.weight.blocks() {
            for first in all.panels.clone().step_by(2) {
                let panels = first..all.panels.end.min(first + 2);
                for (panel, w) in panels.zip(&mut w) {
                    s.call(Fill::<X> {
                        to: w,
                        weight: all.weight,
                        panel,
                        ks: &block.ks,
                        terms: PhantomData,
                    });
                }
                let w = [w[0].at::<X>(&block.ks), w[1].at::<X>(&block.ks)];
                let next = all.after::<2>(first, &block, all.panels.len(), all.x.tiles().count);
                // SAFETY: the block was filled in.
                unsafe { all.tiles::<S, X::Decoded>(s, first, &block, w, &next) };
            }
        }
    }
}

impl<X: Term> Multiply<'_, X> {
    #[inline(always)]
    fn gemv<S: Simd, D: Sum<S, X>>(&mut self, s: S) {
        rows!(self.x.tiles().rows, gemv_rows(S::REGISTERS, X::KS), R => {
            s.call(Gemv::<X, D, R>(self, PhantomData));
        });
    }

    #[inline(always)]
    fn gemv_panels<S: Simd, D: Sum<S, X>, const R: usize, const P: usize>(&mut self, s: S) {
        for first in self.panels.clone().step_by(P) {
            for block in self.weight.blocks() {
                let panels = Panels {
                    first,
                    w: self.stored::<D, P>(first, &block),
                    next: self.after::<P>(first, &block, P, 1).share(0),
                };
                let scales = self.scales(s, first, &block);
                // SAFETY: the panels go on for the block's k.
                unsafe { self.tile::<S, D, R, P>(s, 0, &block, &panels, &scales) };
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

    /// All tiles' sums of a block of two panels.
    ///
    /// # Safety
    /// As [`Self::tile`] for the tiles' rows.
    #[inline(always)]
    unsafe fn tiles<S: Simd, D: Sum<S, X>>(
        &mut self,
        s: S,
        first: usize,
        block: &Block,
        w: [*const u8; 2],
        next: &Next<2>,
    ) {
        let tiles = self.x.tiles();
        let scales = self.scales::<S, 2>(s, first, block);
        for (tile, rows) in (0..tiles.count).map(|tile| (tile, tiles.get(tile).1)) {
            let panels = Panels {
                first,
                w,
                next: next.share(tile),
            };
            rows!(rows, S::REGISTERS.rows, R => {
                // SAFETY: the caller vouches for it.
                unsafe {
                    if tile_panels(S::REGISTERS) == 2 {
                        self.tile::<S, D, R, 2>(s, tile, block, &panels, &scales);
                    } else {
                        for (p, scale) in scales.into_iter().enumerate() {
                            let panel = panels.one(p);
                            self.tile::<S, D, R, 1>(s, tile, block, &panel, &[scale]);
                        }
                    }
                }
            });
        }
    }

    /// Adds a block's sums of a tile's R rows with P panels, times the scales, to their totals. FP4's
    /// groups have scales of their own.
    ///
    /// # Safety
    /// The tile has R rows, and the panels stand at the block. Those that are not among `self.panels`
    /// are left out.
    #[inline(always)]
    unsafe fn tile<S: Simd, D: Sum<S, X>, const R: usize, const P: usize>(
        &mut self,
        s: S,
        tile: usize,
        block: &Block,
        panels: &Panels<P>,
        scales: &[S::F; P],
    ) {
        let (row, _) = self.x.tiles().get(tile);
        let x = self.x.get(tile, &block.ks).as_ptr();
        if self.weight.shape().format != PanelFormat::Fp4 {
            let ks = block.ks.len();
            // SAFETY: as the caller says.
            return unsafe { self.group::<S, D, R, P>(s, (x, row), ks, panels, scales) };
        }
        if R <= const { S::REGISTERS.rows_of_fp4 } {
            // SAFETY: as above.
            return unsafe { fp4::tile::<S, X, D, R, P>(s, self, (x, row), block, panels) };
        }
        for group in self.weight.groups(block) {
            // Before there are sums, which a call would take out of their registers.
            let scales = self.scales(s, panels.first, &group);
            let (before, ks) = (group.ks.start - block.ks.start, group.ks.len());
            // SAFETY: a group is a part of the block, and begins with it or at a multiple of 4 k; the
            // rest is as the caller says.
            unsafe {
                let x = x.add(before / X::KS * R);
                self.group::<S, D, R, P>(s, (x, row), ks, &panels.at::<D>(before), &scales);
            }
        }
    }

    /// The same of so many k that are summed by themselves, of the tile whose first row is given.
    ///
    /// # Safety
    /// `x` points to R rows of the k, and the panels stand there.
    #[inline(always)]
    unsafe fn group<S: Simd, D: Sum<S, X>, const R: usize, const P: usize>(
        &mut self,
        s: S,
        (x, row): (*const X, usize),
        ks: usize,
        panels: &Panels<P>,
        scales: &[S::F; P],
    ) {
        // SAFETY: as the caller says.
        let sums = unsafe { sum::<S, X, D, R, P>(s, x, ks, panels) };
        unrolled!(p < P, {
            if panels.first + p == self.panels.end {
                return;
            }
            let totals = self.totals::<R>(panels.first + p, row);
            unrolled!(r < R, {
                // SAFETY: there are R vectors.
                unsafe {
                    let to = totals.add(r * LANES);
                    s.store_f32(to, s.fma(scales[p], sums[r][p], s.load_f32(to)));
                }
            });
        });
    }

    /// Where the totals of a panel's R rows from one on lie.
    #[inline(always)]
    fn totals<const R: usize>(&mut self, panel: usize, row: usize) -> *mut f32 {
        let at = (panel - self.panels.start) * self.x.tiles().rows + row;
        self.sums[at * LANES..][..R * LANES].as_mut_ptr()
    }
}

impl<X> Multiply<'_, X> {
    /// What a block's sums of P panels from `first` on are multiplied by.
    #[inline(always)]
    fn scales<S: Simd, const P: usize>(&self, s: S, first: usize, block: &Block) -> [S::F; P] {
        let last = self.panels.end - 1;
        let mut scales = [s.splat(1.0); P];
        unrolled!(p < P, {
            scales[p] = self.scale(s, last.min(first + p), block.scale);
        });
        scales
    }

    /// The same of a panel: 1 without scales.
    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, panel: usize, block: usize) -> S::F {
        if self.weight.shape().format == PanelFormat::Fp4 {
            let panel = self.weight.panel(panel);
            // SAFETY: a panel has every group's scales.
            return unsafe { fp4::scale(s, self.weight, panel.as_ptr(), block) };
        }
        match self.weight.scales(panel, block) {
            None => s.splat(1.0),
            Some(&[one]) if self.weight.nans(panel, block) == 0 => s.splat(one),
            Some([_]) => {
                let lanes = self.weight.lane_scales(panel, block);
                // SAFETY: the array has LANES elements.
                unsafe { s.load_f32(lanes.as_ptr()) }
            }
            // SAFETY: there are LANES of them otherwise.
            Some(lanes) => unsafe { s.load_f32(lanes.as_ptr()) },
        }
    }
}

/// The sums of so many k of R rows with P panels.
///
/// # Safety
/// As [`Multiply::group`].
#[inline(always)]
unsafe fn sum<S: Simd, X: Term, D: Sum<S, X>, const R: usize, const P: usize>(
    s: S,
    x: *const X,
    ks: usize,
    panels: &Panels<P>,
) -> [[S::F; P]; R] {
    let groups = X::count(ks) * X::KS / GROUP;
    let mut sums = [[s.splat(0.0); P]; R];
    for g in 0..groups {
        panels.next.prefetch(g);
        // SAFETY: x holds R rows of the k, the panels their groups.
        unsafe {
            let x = x.add(g * GROUP / X::KS * R);
            D::add_group(s, x, &panels.w, g * D::BYTES, &mut sums);
        }
    }
    let rest = ks.saturating_sub(groups * GROUP);
    if rest > 0 {
        // SAFETY: as above, of which the last group has `rest` k.
        unsafe {
            let x = x.add(groups * GROUP * R);
            D::add_rest(s, x, &panels.w, groups * D::BYTES, rest, &mut sums);
        }
    }
    sums
}
