//! FP4: see [`crate::weight::fp4`] for how a panel lies.
//!
//! The sums of a group's 32 k, of x times codes, are multiplied by the group's scales, an output's
//! each, and added to the totals, which a GEMV keeps in registers from end to end.

use super::products::{Products, Sum};
use super::{Multiply, Panels, sum};
use crate::matmul::decode::load_unit;
use crate::matmul::input::Term;
use crate::matmul::plan::{fp4_gemv_panels, gemv_rows};
use crate::simd::{self, LANES, Outlined, Simd};
use crate::weight::fp4::{GROUP, SCALE_BYTES, SPAN_BYTES, UNIT, UNIT_BYTES, scale_offset};
use crate::weight::{BLOCK, Block, PackedWeight};

/// All panels for one low tile of rows.
#[inline(always)]
pub(super) fn gemv<S: Simd, X: Products<S>>(s: S, all: &mut Multiply<'_, X>) {
    rows!(all.x.tiles().rows, gemv_rows(S::REGISTERS, X::KS), R => s.call(Gemv::<X, R>(all)));
}

struct Gemv<'a, 'b, X, const R: usize>(&'a mut Multiply<'b, X>);

impl<S: Simd, X: Products<S>, const R: usize> Outlined<S> for Gemv<'_, '_, X, R> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        assert_eq!(self.0.x.tiles().rows, R, "a GEMV's rows are one tile");
        match fp4_gemv_panels(S::REGISTERS, R) {
            4 => self.panels::<S, 4>(s),
            2 => self.panels::<S, 2>(s),
            _ => self.panels::<S, 1>(s),
        }
    }
}

impl<X, const R: usize> Gemv<'_, '_, X, R> {
    /// P panels side by side.
    #[inline(always)]
    fn panels<S: Simd, const P: usize>(self, s: S)
    where
        X: Products<S>,
    {
        let all = self.0;
        let (k, last) = (all.weight.shape().k, all.panels.end - 1);
        let panel_bytes = all.weight.panel(last).len();
        for first in all.panels.clone().step_by(P) {
            let mut w: [*const u8; P] =
                std::array::from_fn(|p| all.weight.panel(last.min(first + p)).as_ptr());
            let mut totals = [[s.splat(0.0); P]; R];
            for start in (0..k).step_by(BLOCK) {
                let ks = start..k.min(start + BLOCK);
                let mut x = all.x.get(0, &ks).as_ptr();
                // What comes two spans later, if need be in the panels that follow.
                let next = w.map(|w| match start + 2 * BLOCK < k {
                    true => w.wrapping_add(2 * SPAN_BYTES),
                    false => w.wrapping_add(2 * SPAN_BYTES + (P - 1) * panel_bytes),
                });
                for group in 0..ks.len() / GROUP {
                    let mut sums = [[s.splat(0.0); P]; R];
                    for unit in 0..GROUP / UNIT {
                        let at = SCALE_BYTES + (group * (GROUP / UNIT) + unit) * UNIT_BYTES;
                        unrolled!(p < P, {
                            simd::prefetch_second_level(next[p].wrapping_add(at));
                        });
                        // SAFETY: x holds R rows of the span's k, w the span.
                        unsafe {
                            add_unit::<S, X, R, P>(s, x, &w, at, &mut sums);
                            x = x.add(UNIT / X::KS * R);
                        }
                    }
                    unrolled!(p < P, {
                        let normal = all.weight.fp4_scales_are_normal();
                        // SAFETY: a span begins with its groups' scales.
                        let scale = unsafe { load_scale(s, w[p].add(group * LANES), normal) };
                        unrolled!(r < R, {
                            totals[r][p] = s.fma(scale, sums[r][p], totals[r][p]);
                        });
                    });
                }
                w = w.map(|p| p.wrapping_add(SPAN_BYTES));
            }
            unrolled!(p < P, {
                if first + p <= last {
                    let at = (first + p - all.panels.start) * R * LANES;
                    let to = all.sums[at..][..R * LANES].as_mut_ptr();
                    unrolled!(r < R, {
                        // SAFETY: the slice has R · LANES elements.
                        unsafe { s.store_f32(to.add(r * LANES), totals[r][p]) };
                    });
                }
            });
        }
    }
}

/// Adds the products of a unit's k.
///
/// # Safety
/// `x` points to R rows of the unit's k, each of `w` to the unit, `at` bytes before it.
#[inline(always)]
unsafe fn add_unit<S: Simd, X: Products<S>, const R: usize, const P: usize>(
    s: S,
    x: *const X,
    w: &[*const u8; P],
    at: usize,
    sums: &mut [[S::F; P]; R],
) {
    let mut units = [s.splat_u32(0); P];
    unrolled!(p < P, {
        // SAFETY: the caller vouches for it; so below.
        units[p] = unsafe { load_unit(s, w[p].add(at)) };
    });
    let pair = 2 / X::KS * R;
    // SAFETY: as above.
    unsafe {
        X::add_pair::<R, P, 0>(s, x, &units, sums);
        X::add_pair::<R, P, 1>(s, x.add(pair), &units, sums);
        X::add_pair::<R, P, 2>(s, x.add(2 * pair), &units, sums);
        X::add_pair::<R, P, 3>(s, x.add(3 * pair), &units, sums);
    }
}

/// Adds a block's sums of a tile's R rows with P panels to their totals, which are in registers from the
/// block's first group to its last.
///
/// # Safety
/// As [`Multiply::tile`]; `x` points to the tile's rows of the block's k, of which the first is given.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, X: Term, D: Sum<S, X>, const R: usize, const P: usize>(
    s: S,
    all: &mut Multiply<'_, X>,
    (x, row): (*const X, usize),
    block: &Block,
    panels: &Panels<P>,
) {
    let (weight, last) = (all.weight, all.panels.end - 1);
    // A call would take sums out of their registers.
    let starts: [_; P] = std::array::from_fn(|p| weight.panel(last.min(panels.first + p)).as_ptr());
    let mut totals = [[s.splat(0.0); P]; R];
    unrolled!(p < P, {
        let from = all.totals::<R>(last.min(panels.first + p), row);
        unrolled!(r < R, {
            // SAFETY: there are R vectors; so below.
            totals[r][p] = unsafe { s.load_f32(from.add(r * LANES)) };
        });
    });
    for group in weight.groups(block) {
        let before = group.ks.start - block.ks.start;
        // SAFETY: a group is a part of the block, and begins with it or at a multiple of 4 k.
        let sums = unsafe {
            let x = x.add(before / X::KS * R);
            sum::<S, X, D, R, P>(s, x, group.ks.len(), &panels.at::<D>(before))
        };
        unrolled!(p < P, {
            // SAFETY: a panel has every group's scales.
            let scale = unsafe { scale(s, weight, starts[p], group.scale) };
            unrolled!(r < R, {
                totals[r][p] = s.fma(scale, sums[r][p], totals[r][p]);
            });
        });
    }
    unrolled!(p < P, {
        if panels.first + p <= last {
            let to = all.totals::<R>(panels.first + p, row);
            unrolled!(r < R, {
                // SAFETY: as above.
                unsafe { s.store_f32(to.add(r * LANES), totals[r][p]) };
            });
        }
    });
}

/// The scales of a panel's outputs in a group.
///
/// # Safety
/// `panel` points to the weight's panel, which has the group.
#[inline(always)]
pub(super) unsafe fn scale<S: Simd>(
    s: S,
    weight: &PackedWeight,
    panel: *const u8,
    group: usize,
) -> S::F {
    // SAFETY: there are LANES of them.
    unsafe {
        load_scale(
            s,
            panel.add(scale_offset(group)),
            weight.fp4_scales_are_normal(),
        )
    }
}

/// # Safety
/// `from` points to [`LANES`] bytes.
#[inline(always)]
unsafe fn load_scale<S: Simd>(s: S, from: *const u8, normal: bool) -> S::F {
    // SAFETY: the caller vouches for it.
    let exponents = s.shl::<23>(unsafe { s.load_u8(from) });
    if normal {
        return s.float(exponents);
    }
    // Byte 0 is the subnormal 2^-127, byte 255 is NaN, of which shifting makes 0 and infinity: both
    // have the highest bit of the mantissa.
    let below = s.lt(s.float(exponents), s.splat(f32::MIN_POSITIVE));
    let above = s.lt(s.splat(f32::MAX), s.float(exponents));
    let mended = s.float(s.or(exponents, s.splat_u32(0x0040_0000)));
    let low = s.select(below, mended, s.float(exponents));
    s.select(above, mended, low)
}
