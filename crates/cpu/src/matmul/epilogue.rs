use swiglu_core::RowLayout;

use super::plan::PANELS;
use crate::InstructionSet;
use crate::activation::{Columns, Destination, KnownActivation, Piece};
use crate::element::{UNIT, VectorElement};
use crate::simd::{self, Kernel, LANES, Simd};
use crate::tasks::Shared;
use crate::weight::PackedWeight;

/// The sums of some panels for some rows.
#[derive(Clone, Copy)]
pub(crate) struct Sums<'a> {
    pub(super) weight: &'a PackedWeight,
    pub(super) first_panel: usize,
    pub(super) panels: usize,
    pub(super) first_row: usize,
    pub(super) rows: usize,
    /// Rows from a panel's first to the next panel's.
    pub(super) stride: usize,
    /// \[panel, row, lane\].
    pub(super) values: &'a [f32],
}

/// What becomes of a matmul's sums.
pub(crate) trait Epilogue: Sync {
    /// Takes the sums of panels for rows.
    ///
    /// # Safety
    /// The machine has `set`, and no other call the same panels and rows.
    unsafe fn store(&self, set: InstructionSet, sums: &Sums<'_>);
}

/// Another epilogue's, whose rows begin so many rows later.
pub(super) struct FromRow<'a> {
    pub(super) first_row: usize,
    pub(super) epilogue: &'a dyn Epilogue,
}

impl Epilogue for FromRow<'_> {
    unsafe fn store(&self, set: InstructionSet, sums: &Sums<'_>) {
        let first_row = self.first_row + sums.first_row;
        let sums = Sums { first_row, ..*sums };
        // SAFETY: the caller vouches for it.
        unsafe { self.epilogue.store(set, &sums) };
    }
}

/// One row of sums rounded to T, in vectors, zeros where there is no panel: a part of kernels that go
/// through all rows.
struct Round<'a, T> {
    sums: &'a Sums<'a>,
    row: usize,
    order: PanelOrder,
    to: &'a mut [T],
}

/// Which panel makes each vector of a row.
#[derive(Clone, Copy)]
enum PanelOrder {
    /// One after another, so many.
    AsTheyCome(usize),
    /// Panels take turns between gate and up: so many gates in `half` vectors, then the ups.
    GatesFirst { pairs: usize, half: usize },
}

impl PanelOrder {
    const fn panel(self, vector: usize) -> Option<usize> {
        match self {
            Self::AsTheyCome(panels) if vector < panels => Some(vector),
            Self::GatesFirst { pairs, half } if vector % half < pairs => {
                Some(vector % half * 2 + vector / half)
            }
            Self::AsTheyCome(_) | Self::GatesFirst { .. } => None,
        }
    }
}

impl<T: VectorElement> Round<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Sums { stride, values, .. } = *self.sums;
        for (i, to) in self.to.as_chunks_mut::<UNIT>().0.iter_mut().enumerate() {
            let mut unit = [s.splat(0.0); 2];
            for (j, vector) in unit.iter_mut().enumerate() {
                if let Some(panel) = self.order.panel(2 * i + j) {
                    let sums = &values[(panel * stride + self.row) * LANES..][..LANES];
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

impl<T: VectorElement> Rounded<T> {
    /// The layout must have passed its check against the slice.
    pub(crate) const fn new((output, layout): (&mut [T], RowLayout)) -> Self {
        Self {
            output: Shared(output.as_mut_ptr()),
            layout,
        }
    }
}

impl<T: VectorElement> Epilogue for Rounded<T> {
    unsafe fn store(&self, set: InstructionSet, sums: &Sums<'_>) {
        let store = StoreRounded { sums, to: self };
        // SAFETY: the caller vouches for the set, and for the columns.
        unsafe { simd::dispatch(set, store) }
    }
}

struct StoreRounded<'a, T> {
    sums: &'a Sums<'a>,
    to: &'a Rounded<T>,
}

impl<T: VectorElement> Kernel for StoreRounded<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { sums, to } = self;
        let mut rounded = [T::default(); ROW];
        let rounded = &mut rounded[..(sums.panels * LANES).next_multiple_of(UNIT)];
        for row in 0..sums.rows {
            let round = Round {
                sums,
                row,
                order: PanelOrder::AsTheyCome(sums.panels),
                to: rounded,
            };
            round.run(s);
            let start = to.layout.row(sums.first_row + row).start;
            let panels = rounded.as_chunks::<LANES>().0.iter().take(sums.panels);
            for (p, values) in panels.enumerate() {
                let outputs = sums.weight.outputs(sums.first_panel + p);
                // SAFETY: the layout was checked; the row's columns are this call's own.
                unsafe {
                    let to = to.output.get().add(start + outputs.start);
                    match outputs.len() {
                        LANES => to.cast::<[T; LANES]>().write_unaligned(*values),
                        few => to.copy_from_nonoverlapping(values.as_ptr(), few),
                    }
                }
            }
        }
    }
}

/// The weights of rows that are routes: each is the one of its route's number.
#[derive(Clone, Copy)]
pub(crate) struct RouteWeights<'a> {
    pub(crate) weights: &'a [f32],
    pub(crate) routes: &'a [i32],
}

/// The activation of sums rounded to T, \[rows, N/2\]: the weight is gated. With routes, times a
/// row's weight before it is rounded.
pub(crate) struct Activated<'a, T> {
    activation: &'a KnownActivation,
    routes: Option<RouteWeights<'a>>,
    output: Shared<T>,
    layout: RowLayout,
}

impl<'a, T: VectorElement> Activated<'a, T> {
    /// The layout must have passed its check against the slice.
    pub(crate) const fn new(
        activation: &'a KnownActivation,
        (output, layout): (&mut [T], RowLayout),
    ) -> Self {
        Self {
            activation,
            routes: None,
            output: Shared(output.as_mut_ptr()),
            layout,
        }
    }

    /// The same with weights of the rows.
    pub(crate) const fn times(self, routes: RouteWeights<'a>) -> Self {
        Self {
            routes: Some(routes),
            ..self
        }
    }
}

impl<T: VectorElement> Epilogue for Activated<'_, T> {
    unsafe fn store(&self, set: InstructionSet, sums: &Sums<'_>) {
        let store = StoreActivated { sums, to: self };
        // SAFETY: as above.
        unsafe { simd::dispatch(set, store) }
    }
}

struct StoreActivated<'a, T> {
    sums: &'a Sums<'a>,
    to: &'a Activated<'a, T>,
}

impl<T: VectorElement> Kernel for StoreActivated<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { sums, to } = self;
        // A row of its own, [gate | up], for the activation that rows have everywhere.
        let mut rounded = [T::default(); ROW];
        let pairs = sums.panels / 2;
        // Vectors of a half, in whole units.
        let half = pairs.next_multiple_of(UNIT / LANES);
        let rounded = &mut rounded[..2 * half * LANES];
        let first = sums.weight.outputs(sums.first_panel).start;
        let last = sums.weight.outputs(sums.first_panel + sums.panels - 2);
        for row in 0..sums.rows {
            let round = Round {
                sums,
                row,
                order: PanelOrder::GatesFirst { pairs, half },
                to: rounded,
            };
            round.run(s);
            let start = to.layout.row(sums.first_row + row).start + first;
            // SAFETY: the layout was checked.
            let at = unsafe { to.output.get().add(start) };
            let piece = Piece {
                from: Columns::new(to.activation, rounded, rounded.len(), 0..last.end - first),
                to: match to.routes {
                    None => Destination::new(at, false),
                    Some(RouteWeights { weights, routes }) => {
                        let route = routes[sums.first_row + row] as usize;
                        Destination::routed(at, weights[route])
                    }
                },
            };
            // The row's columns are this call's own.
            piece.compute(s);
        }
    }
}
