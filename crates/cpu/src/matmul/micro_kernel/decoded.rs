//! A block of a panel that is decoded once for all tiles.

use std::marker::PhantomData;
use std::ops::Range;

use super::products::Products;
use crate::matmul::decode::{Elements, Pairs, load_unit};
use crate::matmul::input::Term;
use crate::simd::{LANES, Outlined, Simd};
use crate::weight::fp4::{UNIT, UNIT_BYTES};
use crate::weight::{BLOCK, GROUP, PackedWeight, PanelFormat};

/// A block of a panel, as f32 or as a panel of bf16 has it; it may begin and end within a group.
#[repr(align(64))]
pub(super) struct Decoded([f32; (BLOCK + 2 * GROUP) * LANES]);

impl Decoded {
    pub(super) const ZERO: Self = Self([0.0; _]);

    /// Where a block that was filled in begins.
    pub(super) fn at<X: Term>(&self, ks: &Range<usize>) -> *const u8 {
        let before = ks.start % GROUP / X::KS;
        self.0[before * LANES..].as_ptr().cast()
    }

    /// Groups as f32.
    #[inline(always)]
    pub(super) fn elements<S: Simd, D: Elements>(&mut self, s: S, groups: &[u8]) {
        let groups = groups.chunks_exact(D::BYTES);
        for (from, to) in groups.zip(self.0.chunks_exact_mut(GROUP * LANES)) {
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

    /// The same as pairs of bf16.
    #[inline(always)]
    pub(super) fn pairs<S: Simd, D: Pairs>(&mut self, s: S, groups: &[u8]) {
        let groups = groups.chunks_exact(D::BYTES);
        for (from, to) in groups.zip(self.0.chunks_exact_mut(GROUP / 2 * LANES)) {
            let to = to.as_mut_ptr();
            // SAFETY: a group each.
            unsafe {
                let [first, second] = D::pairs(s, from.as_ptr());
                s.store_f32(to, s.float(first));
                s.store_f32(to.add(LANES), s.float(second));
            }
        }
    }

    /// FP4's codes from a unit on.
    #[inline(always)]
    fn units<S: Simd, X: Products<S>>(&mut self, s: S, units: &[u8], count: usize) {
        let units = units.chunks_exact(UNIT_BYTES).take(count);
        for (from, to) in units.zip(self.0.chunks_exact_mut(UNIT / X::KS * LANES)) {
            let to = to.as_mut_ptr();
            let each = 2 / X::KS * LANES;
            // SAFETY: a unit each.
            unsafe {
                let unit = load_unit(s, from.as_ptr());
                X::store_pair::<0>(s, unit, to);
                X::store_pair::<1>(s, unit, to.add(each));
                X::store_pair::<2>(s, unit, to.add(2 * each));
                X::store_pair::<3>(s, unit, to.add(3 * each));
            }
        }
    }
}

/// Decodes a block of a panel.
pub(super) struct Fill<'a, X> {
    pub(super) to: &'a mut Decoded,
    pub(super) weight: &'a PackedWeight,
    pub(super) panel: usize,
    pub(super) ks: &'a Range<usize>,
    pub(super) terms: PhantomData<X>,
}

impl<S: Simd, X: Products<S>> Outlined<S> for Fill<'_, X> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        let panel = self.weight.panel(self.panel);
        let format = self.weight.shape().format;
        if format == PanelFormat::Fp4 {
            // Blocks are spans.
            let codes = &panel[format.offset(self.ks.start)..];
            return self.to.units::<S, X>(s, codes, self.ks.len() / UNIT);
        }
        let [start, end] = [self.ks.start, self.ks.end.next_multiple_of(GROUP)];
        let groups = format.offset(start / GROUP * GROUP)..format.offset(end);
        X::decode(s, format, &panel[groups], self.to);
    }
}
