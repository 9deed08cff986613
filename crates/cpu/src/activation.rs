//! Activations of rows: [T, 2d] to [T, d].
//!
//! ## Method
//! 1. A [`plan`] says from the shape alone how rows are cut into tasks, and whether results are stored
//!    past the caches.
//! 2. A task goes through its rows' [`Columns`] in units of two vectors, whatever lies where: halves,
//!    pairs, two tensors. Fewer columns than a unit are padded with zeros and computed alike.
//! 3. What is computed of a unit stands in [`functions`]: a [`formula`] of exact operations around
//!    silu, or an [`approximate`] function, where the reference computes the lanes that the vectors do
//!    not hold for. DeepSeek-V4's own has a shorter way through units of usual numbers, [`clamped`].
//! 4. A [`Destination`] takes the results: rounded to their type, or as f32 on the way to being
//!    quantized. It is a value and no type parameter, so that each formula is compiled once an element
//!    type and instruction set.

use swiglu_core::RowLayout;

use crate::element::VectorElement;
use crate::simd::{self, Kernel, Outlined, Simd};
use crate::tasks::Shared;

mod approximate;
mod clamped;
mod columns;
mod destination;
mod formula;
mod functions;
mod plan;

pub(crate) use columns::{Columns, GateUpRows, Visit};
pub(crate) use destination::Destination;
pub(crate) use functions::{KnownActivation, SiluClamp};
pub(crate) use plan::ActivationPlan;

/// Runs an activation over rows in slices, whose layouts must have passed
/// [`swiglu_core::check::act`].
pub(crate) fn act_and_mul<T: VectorElement>(
    plan: &ActivationPlan,
    activation: &KnownActivation,
    input: &GateUpRows<'_, T>,
    (output, to): (&mut [T], RowLayout),
) {
    let output = Shared(output.as_mut_ptr());
    plan.split.run(&to, plan.streamed, &|row, range| {
        // SAFETY: the row lies inside the output, whose layout was checked.
        let row_of_results = unsafe { output.get().add(to.row(row).start) };
        let piece = Piece {
            from: input.columns(activation, row, range),
            to: Destination::new(row_of_results, plan.streamed),
        };
        // SAFETY: a plan's set is one that the machine has.
        unsafe { simd::dispatch(plan.set, piece) }
    });
}

/// A run of a row's results, which nothing else reads or writes meanwhile.
pub(crate) struct Piece<'a, T> {
    pub(crate) from: Columns<'a, T>,
    pub(crate) to: Destination<T>,
}

impl<T: VectorElement> Kernel for Piece<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.compute(s);
    }
}

/// A piece as a part of a larger kernel.
pub(crate) struct ComputePiece<'a, 'b, T>(pub(crate) &'a Piece<'b, T>);

impl<S: Simd, T: VectorElement> Outlined<S> for ComputePiece<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        self.0.compute(s);
    }
}
