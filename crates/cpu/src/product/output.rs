use swiglu_core::{GatedActivation, RowLayout};

use crate::activation::{Columns, Lanes, Piece, Shared};
use crate::simd::{Kernel, LANES, Simd};
use crate::weight::PackedWeight;

/// The sums of some panels for some rows.
pub(crate) struct Totals<'a> {
    pub(super) weight: &'a PackedWeight,
    pub(super) first_panel: usize,
    pub(super) first_row: usize,
    pub(super) rows: usize,
    /// \[panel, row, lane\].
    pub(super) values: &'a [f32],
}

impl Totals<'_> {
    fn panels(&self) -> impl Iterator<Item = (usize, &[f32])> {
        let panels = self.values.chunks_exact(self.rows * LANES).enumerate();
        panels.map(|(p, values)| (self.first_panel + p, values))
    }
}

/// Where a product's sums go.
pub(crate) trait Output: Sync {
    /// Takes the sums of panels for rows.
    ///
    /// # Safety
    /// No other call has the same panels and rows.
    unsafe fn store<S: Simd>(&self, s: S, totals: &Totals<'_>);
}

/// A call of [`Output::store`].
pub(crate) struct Store<'a, O> {
    output: &'a O,
    totals: Totals<'a>,
}

impl<'a, O: Output> Store<'a, O> {
    /// # Safety
    /// As [`Output::store`], when this is run.
    pub(super) const unsafe fn new(output: &'a O, totals: Totals<'a>) -> Self {
        Self { output, totals }
    }
}

impl<O: Output> Kernel for Store<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: whoever made this vouched for it.
        unsafe { self.output.store(s, &self.totals) };
    }
}

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
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, s: S, totals: &Totals<'_>) {
        for (panel, values) in totals.panels() {
            let outputs = totals.weight.outputs(panel);
            for (r, values) in values.chunks_exact(LANES).enumerate() {
                let mut rounded = [T::default(); LANES];
                let at = self.layout.row(totals.first_row + r).start + outputs.start;
                // SAFETY: chunk and array have LANES elements. The layout was checked; the row's
                // columns are this call's own.
                unsafe {
                    T::store(s, rounded.as_mut_ptr(), s.load_f32(values.as_ptr()));
                    let to = self.output.get().add(at);
                    to.copy_from_nonoverlapping(rounded.as_ptr(), outputs.len());
                }
            }
        }
    }
}

/// The activation of sums rounded to T, \[rows, N/2\]: the weight is gated, and panels come in
/// pairs of gate and up.
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
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, s: S, totals: &Totals<'_>) {
        let mut panels = totals.panels();
        while let (Some((panel, gates)), Some((_, ups))) = (panels.next(), panels.next()) {
            let outputs = totals.weight.outputs(panel);
            let rows = gates.chunks_exact(LANES).zip(ups.chunks_exact(LANES));
            for (r, (gate, up)) in rows.enumerate() {
                // A row of its own, [gate | up], for the activation that rows have everywhere.
                let mut row = [T::default(); 2 * LANES];
                let at = self.layout.row(totals.first_row + r).start + outputs.start;
                // SAFETY: the chunks have LANES elements, the array twice as many. The layout was
                // checked; the row's columns are this call's own.
                let output = unsafe {
                    T::store(s, row.as_mut_ptr(), s.load_f32(gate.as_ptr()));
                    T::store(s, row.as_mut_ptr().add(LANES), s.load_f32(up.as_ptr()));
                    self.output.get().add(at)
                };
                let from = Columns {
                    op: self.op,
                    row: &row,
                    range: 0..outputs.len(),
                };
                Piece { from, output }.run(s);
            }
        }
    }
}
