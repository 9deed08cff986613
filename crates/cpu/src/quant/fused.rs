use std::marker::PhantomData;
use std::mem::MaybeUninit;

use swiglu_core::{GatedActivation, Quantisation, reference};

use super::TargetRow;
use super::rows::groups;
use crate::activation::{Columns, Lanes, Output, Piece};
use crate::simd::{Kernel, LANES, Simd};

/// Columns that are activated before they are quantised: whole groups, and 4 KiB of f32.
const CHUNK: usize = 1024;

/// The activation of a run of columns and its quantisation.
pub(super) struct Fused<'a, T> {
    pub(super) from: Columns<'a, T>,
    pub(super) quant: &'a Quantisation,
    pub(super) route: f32,
    pub(super) to: TargetRow<'a>,
}

impl<T: Lanes> Kernel for Fused<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { from, quant, .. } = self;
        let mut room = MaybeUninit::<[f32; CHUNK]>::uninit();
        let values: *mut f32 = room.as_mut_ptr().cast();
        for start in from.range.clone().step_by(CHUNK) {
            let range = start..from.range.end.min(start + CHUNK);
            let piece = Piece {
                from: Columns {
                    range: range.clone(),
                    ..from
                },
                output: Values::<T> {
                    to: values,
                    first: start,
                    route: self.route,
                    materialize: quant.materialize(),
                    of: PhantomData,
                },
            };
            piece.run(s);
            // SAFETY: the piece has written the range's values, in whole vectors.
            let load = |j: usize, _| unsafe { s.load_f32(values.add(j - start)) };
            // SAFETY: the range is this call's own.
            unsafe { groups(s, quant, range, &self.to, load) };
        }
    }
}

/// Results as f32, from column `first` on, in whole vectors of which the last ends in zeros.
#[derive(Clone, Copy)]
struct Values<T> {
    to: *mut f32,
    first: usize,
    route: f32,
    materialize: bool,
    of: PhantomData<T>,
}

impl<T: Lanes> Output<T> for Values<T> {
    #[inline(always)]
    unsafe fn store<S: Simd>(self, s: S, j: usize, y: S::F, count: usize) {
        let y = s.mul(y, s.splat(self.route));
        let y = if self.materialize { T::round(s, y) } else { y };
        // SAFETY: the caller vouches for the column; there is room for whole vectors.
        unsafe {
            let to = self.to.add(j - self.first);
            s.store_f32(to, y);
            to.add(count).write_bytes(0, LANES - count);
        }
    }

    unsafe fn evaluate(self, j: usize, op: &GatedActivation, gate: T, up: T) {
        let y = if self.materialize {
            reference::gated_routed(op, gate, up, self.route).to_f32()
        } else {
            // Not in eager rounding, so that f32 only means the last one.
            reference::gated_routed::<f32>(op, gate.to_f32(), up.to_f32(), self.route)
        };
        let at = j - self.first;
        let whole = if at.is_multiple_of(LANES) { LANES } else { 1 };
        // SAFETY: as above. A vector is cleared before its first column is written.
        unsafe {
            self.to.add(at).write_bytes(0, whole);
            self.to.add(at).write(y);
        }
    }
}
