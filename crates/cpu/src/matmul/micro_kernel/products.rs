//! The products of a group of k: fused multiply-adds of f32, one k after another, or dot products of
//! pairs of bf16.

use super::decoded::Decoded;
use crate::matmul::decode::{BF16, Decode, E4M3, Elements, F16, F32, Pairs, e2m1_pair, e2m1_words};
use crate::matmul::input::Term;
use crate::simd::{Dots, LANES, Simd};
use crate::weight::PanelFormat;

/// Stored elements that are multiplied with terms X.
pub(super) trait Sum<S: Simd, X>: Decode {
    /// Adds the products of a group of k.
    ///
    /// # Safety
    /// `x` points to R rows of the group's k, each of `w` to the group, `at` bytes before it.
    unsafe fn add_group<const R: usize, const P: usize>(
        s: S,
        x: *const X,
        w: &[*const u8; P],
        at: usize,
        sums: &mut [[S::F; P]; R],
    );

    /// The same of the first one, two or three k of a group, as far as x is not filled up.
    ///
    /// # Safety
    /// As [`Self::add_group`], with so many k of x.
    unsafe fn add_rest<const R: usize, const P: usize>(
        s: S,
        x: *const X,
        w: &[*const u8; P],
        at: usize,
        rest: usize,
        sums: &mut [[S::F; P]; R],
    ) {
        let _ = (s, x, w, at, rest, sums);
    }
}

/// Terms on an instruction set that multiplies them.
pub(super) trait Products<S: Simd>: Term {
    /// As which elements that were decoded before are read.
    type Decoded: Sum<S, Self>;

    /// Decodes groups of a panel, not of FP4.
    fn decode(s: S, format: PanelFormat, groups: &[u8], to: &mut Decoded);

    /// Adds the products of the k number 2J of units of FP4 and of the one after it.
    ///
    /// # Safety
    /// `x` points to R rows of both.
    unsafe fn add_pair<const R: usize, const P: usize, const J: u32>(
        s: S,
        x: *const Self,
        units: &[S::I; P],
        sums: &mut [[S::F; P]; R],
    );

    /// Decodes those two of one unit.
    ///
    /// # Safety
    /// `to` points to a vector for each of their terms.
    unsafe fn store_pair<const J: u32>(s: S, unit: S::I, to: *mut f32);
}

impl<S: Simd> Products<S> for f32 {
    type Decoded = F32;

    #[inline(always)]
    fn decode(s: S, format: PanelFormat, groups: &[u8], to: &mut Decoded) {
        match format {
            PanelFormat::F32 => to.elements::<S, F32>(s, groups),
            PanelFormat::F16 => to.elements::<S, F16>(s, groups),
            PanelFormat::BF16 => to.elements::<S, BF16>(s, groups),
            PanelFormat::E4M3 | PanelFormat::Fp4 => to.elements::<S, E4M3>(s, groups),
        }
    }

    #[inline(always)]
    unsafe fn add_pair<const R: usize, const P: usize, const J: u32>(
        s: S,
        x: *const f32,
        units: &[S::I; P],
        sums: &mut [[S::F; P]; R],
    ) {
        let mut pairs = [[s.splat(0.0); 2]; P];
        unrolled!(p < P, {
            pairs[p] = e2m1_pair::<S, J>(s, units[p]);
        });
        unrolled!(odd < 2, {
            unrolled!(r < R, {
                // SAFETY: the caller vouches for it.
                let x = s.splat(unsafe { *x.add(odd * R + r) });
                unrolled!(p < P, {
                    sums[r][p] = s.fma(x, pairs[p][odd], sums[r][p]);
                });
            });
        });
    }

    #[inline(always)]
    unsafe fn store_pair<const J: u32>(s: S, unit: S::I, to: *mut f32) {
        let [even, odd] = e2m1_pair::<S, J>(s, unit);
        // SAFETY: the caller vouches for it.
        unsafe {
            s.store_f32(to, even);
            s.store_f32(to.add(LANES), odd);
        }
    }
}

impl<S: Dots> Products<S> for u32 {
    type Decoded = BF16;

    #[inline(always)]
    fn decode(s: S, format: PanelFormat, groups: &[u8], to: &mut Decoded) {
        match format {
            PanelFormat::E4M3 => to.pairs::<S, E4M3>(s, groups),
            _ => to.pairs::<S, BF16>(s, groups),
        }
    }

    #[inline(always)]
    unsafe fn add_pair<const R: usize, const P: usize, const J: u32>(
        s: S,
        x: *const u32,
        units: &[S::I; P],
        sums: &mut [[S::F; P]; R],
    ) {
        let mut w = [s.splat_u32(0); P];
        unrolled!(p < P, {
            w[p] = e2m1_words::<S, J>(s, units[p]);
        });
        // SAFETY: the caller vouches for it.
        unsafe { dots(s, x, &w, sums) };
    }

    #[inline(always)]
    unsafe fn store_pair<const J: u32>(s: S, unit: S::I, to: *mut f32) {
        // SAFETY: the caller vouches for it.
        unsafe { s.store_f32(to, s.float(e2m1_words::<S, J>(s, unit))) };
    }
}

impl<S: Simd, D: Elements> Sum<S, f32> for D {
    #[inline(always)]
    unsafe fn add_group<const R: usize, const P: usize>(
        s: S,
        x: *const f32,
        w: &[*const u8; P],
        at: usize,
        sums: &mut [[S::F; P]; R],
    ) {
        // SAFETY: the caller vouches for it.
        unsafe {
            step::<S, D, R, P, 0>(s, x, w, at, sums);
            step::<S, D, R, P, 1>(s, x, w, at, sums);
            step::<S, D, R, P, 2>(s, x, w, at, sums);
            step::<S, D, R, P, 3>(s, x, w, at, sums);
        }
    }

    #[inline(always)]
    unsafe fn add_rest<const R: usize, const P: usize>(
        s: S,
        x: *const f32,
        w: &[*const u8; P],
        at: usize,
        rest: usize,
        sums: &mut [[S::F; P]; R],
    ) {
        // SAFETY: the caller vouches for it.
        unsafe {
            if rest > 0 {
                step::<S, D, R, P, 0>(s, x, w, at, sums);
            }
            if rest > 1 {
                step::<S, D, R, P, 1>(s, x, w, at, sums);
            }
            if rest > 2 {
                step::<S, D, R, P, 2>(s, x, w, at, sums);
            }
        }
    }
}

/// Adds the products of a group's k number J.
///
/// # Safety
/// `x` points to R rows of the group's k up to J, each of `w` to the group, `at` bytes before it.
#[inline(always)]
unsafe fn step<S: Simd, D: Elements, const R: usize, const P: usize, const J: usize>(
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

impl<S: Dots, D: Pairs> Sum<S, u32> for D {
    #[inline(always)]
    unsafe fn add_group<const R: usize, const P: usize>(
        s: S,
        x: *const u32,
        w: &[*const u8; P],
        at: usize,
        sums: &mut [[S::F; P]; R],
    ) {
        let mut pairs = [[s.splat_u32(0); P]; 2];
        unrolled!(p < P, {
            // SAFETY: the caller vouches for it; so below.
            [pairs[0][p], pairs[1][p]] = unsafe { D::pairs(s, w[p].add(at)) };
        });
        // SAFETY: as above.
        unsafe {
            dots(s, x, &pairs[0], sums);
            dots(s, x.add(R), &pairs[1], sums);
        }
    }
}

/// Adds the dot products of a pair of k.
///
/// # Safety
/// `x` points to R rows of the pair.
#[inline(always)]
unsafe fn dots<S: Dots, const R: usize, const P: usize>(
    s: S,
    x: *const u32,
    w: &[S::I; P],
    sums: &mut [[S::F; P]; R],
) {
    unrolled!(r < R, {
        // SAFETY: the caller vouches for it.
        let x = s.splat_u32(unsafe { *x.add(r) });
        unrolled!(p < P, {
            sums[r][p] = s.dot(x, w[p], sums[r][p]);
        });
    });
}
