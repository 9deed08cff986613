use std::mem::MaybeUninit;

use swiglu_core::{Float, Quantization};

use super::TargetRow;
use super::rows::{CHUNK, Groups, Room, Row, Values};
use crate::activation::{Columns, ComputePiece, Destination, Piece};
use crate::element::{UNIT, VectorElement};
use crate::simd::{Kernel, Simd};

/// The activation of a run of columns and its quantization.
pub(super) struct Fused<'a, T> {
    pub(super) from: Columns<'a, T>,
    pub(super) quant: &'a Quantization,
    pub(super) route: Option<f32>,
    pub(super) to: TargetRow<'a>,
}

impl<T: VectorElement> Kernel for Fused<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { from, quant, .. } = self;
        let all = from.range();
        // What is rounded to T and then quantized is kept as T.
        if quant.materialize() && self.route.is_none() && T::FLOAT != Float::F32 {
            let mut room = Room([T::default(); CHUNK]);
            for start in all.clone().step_by(CHUNK) {
                let range = start..all.end.min(start + CHUNK);
                let piece = Piece {
                    from: from.part(range.clone()),
                    to: Destination::from_column(room.0.as_mut_ptr(), start),
                };
                s.call(ComputePiece(&piece));
                let row = Row {
                    values: &room.0[..range.len()],
                    first: start,
                };
                // SAFETY: the row has the range's columns, which are this call's own.
                s.call(unsafe { Groups::<T, _>::new(quant, range, &self.to, &row) });
            }
            return;
        }
        let mut room = MaybeUninit::<Room<f32, CHUNK>>::uninit();
        let values: *mut f32 = room.as_mut_ptr().cast();
        for start in all.clone().step_by(CHUNK) {
            let range = start..all.end.min(start + CHUNK);
            let piece = Piece {
                from: from.part(range.clone()),
                to: Destination::widened(values, start, self.route, quant.materialize()),
            };
            s.call(ComputePiece(&piece));
            let written = Written {
                values,
                first: start,
            };
            // SAFETY: the piece has written the range's values, in whole units; the columns are this
            // call's own.
            s.call(unsafe { Groups::<T, _>::new(quant, range, &self.to, &written) });
        }
    }
}

/// What a piece has written.
struct Written {
    values: *const f32,
    first: usize,
}

impl Values for Written {
    type Of = f32;

    #[inline(always)]
    unsafe fn unit(&self, j: usize, _: usize, _: &mut [f32; UNIT]) -> *const f32 {
        // SAFETY: the caller vouches for the columns, and units are whole.
        unsafe { self.values.add(j - self.first) }
    }
}
