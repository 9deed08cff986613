use swiglu_core::{GatedActivation, RowLayout};

use super::PANELS;
use crate::InstructionSet;
use crate::activation::{Columns, Lanes, Piece, Shared, UNIT};
use crate::simd::{self, Kernel, LANES, Simd};
use crate::weight::PackedWeight;

/// The sums of some panels for some rows.
pub(crate) struct Totals<'a> {
    pub(super) weight: &'a PackedWeight,
    pub(super) first_panel: usize,
    pub(super) panels: usize,
    pub(super) first_row: usize,
    pub(super) rows: usize,
    /// \[panel, row, lane\].
    pub(super) values: &'a [f32],
}

/// Where a product's sums go.
pub(crate) trait Output: Sync {
    /// Takes the sums of panels for rows.
    ///
    /// # Safety
    /// The machine has `set`, and no other call the same panels and rows.
    unsafe fn store(&self, set: InstructionSet, totals: &Totals<'_>);
}

/// One row of sums rounded to T, in vectors from these panels, none for zeros.
struct Round<'a, T, P> {
    totals: &'a Totals<'a>,
    row: usize,
    panel: P,
    to: &'a mut [T],
}

impl<T: Lanes, P: Fn(usize) -> Option<usize>> Kernel for Round<'_, T, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Totals { rows, values, .. } = *self.totals;
        for (i, to) in self.to.as_chunks_mut::<UNIT>().0.iter_mut().enumerate() {
            let mut unit = [s.splat(0.0); 2];
            for (j, vector) in unit.iter_mut().enumerate() {
                if let Some(panel) = (self.panel)(2 * i + j) {
                    let sums = &values[(panel * rows + self.row) * LANES..][..LANES];
                    // SAFETY: the slice has LANES elements.
                    *vector = s.canonical(unsafe { s.load_f32(sums.as_ptr()) });
                }
            }
            // SAFETY: the array is a unit.
            unsafe { T::store(s, to.as_mut_ptr(), T::from_order(s, unit)) };
        }
    }
}

/// Room for a row of sums.
const ROW: usize = PANELS[1] * LANES;

/// Sums rounded to T, \[rows, N\].
pub(crate) struct Rounded<T> {
    output: Shared<T>,
    layout: RowLayout,
}

impl<T: Lanes> Rounded<T> {
    /// The layout must have passed its check against the slice.
    pub(crate) const fn new((output, layout): (&mut [T], RowLayout)) -> Self {
        Self {
            output: Shared(output.as_mut_ptr()),
            layout,
        }
    }
}

impl<T: Lanes> Output for Rounded<T> {
    unsafe fn store(&self, set: InstructionSet, totals: &Totals<'_>) {
        let mut rounded = [T::default(); ROW];
        let rounded = &mut rounded[..(totals.panels * LANES).next_multiple_of(UNIT)];
        for row in 0..totals.rows {
            let round = Round {
                totals,
                row,
                panel: |i| (i < totals.panels).then_some(i),
                to: rounded,
            };
            // SAFETY: the caller vouches for the set.
            unsafe { simd::dispatch(set, round) };
            let start = self.layout.row(totals.first_row + row).start;
            for (p, values) in rounded.chunks(LANES).take(totals.panels).enumerate() {
                let outputs = totals.weight.outputs(totals.first_panel + p);
                // SAFETY: the layout was checked; the row's columns are this call's own.
                unsafe {
                    let to = self.output.get().add(start + outputs.start);
                    to.copy_from_nonoverlapping(values.as_ptr(), outputs.len());
                }
            }
        }
    }
}

/// The activation of sums rounded to T, \[rows, N/2\]: the weight is gated.
pub(crate) struct Activated<'a, T> {
    op: &'a GatedActivation,
    output: Shared<T>,
    layout: RowLayout,
}

impl<'a, T: Lanes> Activated<'a, T> {
    /// The layout must have passed its check against the slice.
    pub(crate) const fn new(
        op: &'a GatedActivation,
        (output, layout): (&mut [T], RowLayout),
    ) -> Self {
        Self {
            op,
            output: Shared(output.as_mut_ptr()),
            layout,
        }
    }
}

impl<T: Lanes> Output for Activated<'_, T> {
    unsafe fn store(&self, set: InstructionSet, totals: &Totals<'_>) {
        // A row of its own, [gate | up], for the activation that rows have everywhere.
        let mut rounded = [T::default(); ROW];
        let pairs = totals.panels / 2;
        // Vectors of a half, in whole units.
        let half = pairs.next_multiple_of(UNIT / LANES);
        let rounded = &mut rounded[..2 * half * LANES];
        let first = totals.weight.outputs(totals.first_panel).start;
        let last = totals
            .weight
            .outputs(totals.first_panel + totals.panels - 2);
        for row in 0..totals.rows {
            let round = Round {
                totals,
                row,
                panel: |i| (i % half < pairs).then_some(i % half * 2 + i / half),
                to: rounded,
            };
            // SAFETY: the caller vouches for the set.
            unsafe { simd::dispatch(set, round) };
            let start = self.layout.row(totals.first_row + row).start + first;
            let piece = Piece {
                from: Columns::new(self.op, rounded, 0..last.end - first),
                // SAFETY: the layout was checked.
                output: unsafe { self.output.get().add(start) },
            };
            // SAFETY: as above; the row's columns are this call's own.
            unsafe { simd::dispatch(set, piece) };
        }
    }
}
