use std::marker::PhantomData;
use std::mem::MaybeUninit;

use swiglu_core::{DType, GatedActivation, Quantization, reference};

use super::TargetRow;
use super::rows::{CHUNK, Row, Values, groups};
use crate::activation::{Columns, Lanes, Output, Piece, UNIT};
use crate::simd::{Kernel, Simd};

/// The activation of a run of columns and its quantization.
pub(super) struct Fused<'a, T> {
    pub(super) from: Columns<'a, T>,
    pub(super) quant: &'a Quantization,
    pub(super) route: Option<f32>,
    pub(super) to: TargetRow<'a>,
}

impl<T: Lanes> Kernel for Fused<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { from, quant, .. } = self;
        let all = from.range();
        // What is rounded to T and then quantized is kept as T.
        if quant.materialize() && self.route.is_none() && T::DTYPE != DType::F32 {
            let mut room = [T::default(); CHUNK];
            for start in all.clone().step_by(CHUNK) {
                let range = start..all.end.min(start + CHUNK);
                let piece = Piece {
                    from: from.part(range.clone()),
                    output: Kept {
                        to: room.as_mut_ptr(),
                        first: start,
                    },
                };
                piece.run(s);
                let row = Row {
                    values: &room[..range.len()],
                    first: start,
                };
                // SAFETY: the row has the range's columns, which are this call's own.
                unsafe { groups::<S, T, _>(s, quant, range, &self.to, &row) };
            }
            return;
        }
        let mut room = MaybeUninit::<[f32; CHUNK]>::uninit();
        let values: *mut f32 = room.as_mut_ptr().cast();
        for start in all.clone().step_by(CHUNK) {
            let range = start..all.end.min(start + CHUNK);
            let piece = Piece {
                from: from.part(range.clone()),
                output: Widened::<T> {
                    to: values,
                    first: start,
                    route: self.route,
                    materialize: quant.materialize(),
                    of: PhantomData,
                },
            };
            piece.run(s);
            let written = Written {
                values,
                first: start,
            };
            // SAFETY: the piece has written the range's values, in whole units; the columns are this
            // call's own.
            unsafe { groups::<S, T, _>(s, quant, range, &self.to, &written) };
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

/// Results from column `first` on.
#[derive(Clone, Copy)]
struct Kept<T> {
    to: *mut T,
    first: usize,
}

impl<T: Lanes> Output<T> for Kept<T> {
    #[inline(always)]
    unsafe fn store<S: Simd>(self, s: S, j: usize, y: [S::F; 2], count: usize) {
        // SAFETY: the caller vouches for the columns; so below.
        unsafe { self.to.store(s, j - self.first, y, count) }
    }

    #[inline(always)]
    unsafe fn store_unit<S: Simd>(self, s: S, j: usize, y: [S::F; 2]) {
        // SAFETY: as above.
        unsafe { self.to.store_unit(s, j - self.first, y) }
    }

    unsafe fn evaluate(self, j: usize, op: &GatedActivation, gate: T, up: T) {
        // SAFETY: as above.
        unsafe { self.to.evaluate(j - self.first, op, gate, up) }
    }
}

/// Results as f32, from column `first` on, in whole units of T's order, with zeros for what the last
/// does not have.
#[derive(Clone, Copy)]
struct Widened<T> {
    to: *mut f32,
    first: usize,
    route: Option<f32>,
    materialize: bool,
    of: PhantomData<T>,
}

impl<T: Lanes> Widened<T> {
    #[inline(always)]
    fn finish<S: Simd>(self, s: S, y: S::F) -> S::F {
        let y = match self.route {
            Some(route) => s.canonical(s.mul(y, s.splat(route))),
            None => y,
        };
        if self.materialize { T::round(s, y) } else { y }
    }
}

impl<T: Lanes> Output<T> for Widened<T> {
    #[inline(always)]
    unsafe fn store<S: Simd>(self, s: S, j: usize, y: [S::F; 2], count: usize) {
        // SAFETY: the caller vouches for the column; there is room for whole units.
        unsafe {
            let to = self.to.add(j - self.first);
            self.store_unit(s, j, y);
            for element in count..UNIT {
                to.add(T::place(element)).write(0.0);
            }
        }
    }

    #[inline(always)]
    unsafe fn store_unit<S: Simd>(self, s: S, j: usize, y: [S::F; 2]) {
        let y = [self.finish(s, y[0]), self.finish(s, y[1])];
        // SAFETY: as above.
        unsafe { f32::store(s, self.to.add(j - self.first), y) }
    }

    unsafe fn evaluate(self, j: usize, op: &GatedActivation, gate: T, up: T) {
        let route = self.route.unwrap_or(1.0);
        let y = if self.materialize {
            reference::gated_routed(op, gate, up, route).to_f32()
        } else {
            // Not in eager rounding, so that f32 only means the last one.
            reference::gated_routed::<f32>(op, gate.to_f32(), up.to_f32(), route)
        };
        let element = (j - self.first) % UNIT;
        // SAFETY: as above.
        unsafe {
            let unit = self.to.add(j - self.first - element);
            unit.add(T::place(element)).write(y);
        }
    }
}
