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

#[cfg(test)]
mod tests {
    use swiglu_core::{GatedActivation, bf16, reference};

    use super::*;
    use crate::InstructionSet;

    /// All gates of bf16 with an up, and what a destination makes of them.
    fn results(set: InstructionSet, up: bf16, to: Destination<bf16>) {
        let gates = (0..=u16::MAX).map(bf16::from_bits);
        let pairs: Vec<_> = gates.clone().chain(gates.map(|_| up)).collect();
        let known = KnownActivation::new(&GatedActivation::deepseek_v4()).unwrap();
        let from = Columns::new(&known, &pairs, pairs.len(), 0..pairs.len() / 2);
        // SAFETY: the caller has asked whether the set is there.
        unsafe { simd::dispatch(set, Piece { from, to }) }
    }

    /// The weight of a route comes before the rounding, and so does the question whether that is in
    /// doubt.
    #[test]
    fn results_times_a_routes_weight_are_rounded_correctly() {
        const COUNT: usize = 1 << 16;
        for set in InstructionSet::ALL
            .into_iter()
            .filter(|set| set.available())
        {
            for (up, route) in [(-7.875, 0.1), (10.0, 1.5), (0.337, 0.730_12), (3.0, 2.5)] {
                let up = bf16::from_f32(up);
                let (mut routed, mut widened) = (vec![bf16::ZERO; COUNT], vec![0_f32; COUNT]);
                let to = widened.as_mut_ptr();
                results(set, up, Destination::routed(routed.as_mut_ptr(), route));
                results(set, up, Destination::widened(to, 0, Some(route), true));
                for (i, got) in routed.iter().enumerate() {
                    let gate = bf16::from_bits(i as u16);
                    let op = GatedActivation::deepseek_v4();
                    let expected = reference::gated_routed(&op, gate, up, route);
                    assert_eq!(
                        got.to_bits(),
                        expected.to_bits(),
                        "{gate} {up} {route} {set}"
                    );
                    let place = i - i % 32 + <bf16 as VectorElement>::place(i % 32);
                    let (got, expected) = (widened[place].to_bits(), expected.to_f32().to_bits());
                    assert_eq!(got, expected, "{gate} {up} {route} {set}, as f32");
                }
            }
        }
    }
}
