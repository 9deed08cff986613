use swiglu_core::{GatedActivation, reference};

use crate::element::{UNIT, VectorElement};
use crate::simd::Simd;

/// Where the results of a row go, by their column.
#[derive(Clone, Copy)]
pub(crate) struct Destination<T> {
    /// The place of column `first`, of T; of f32 if widened.
    to: *mut T,
    first: usize,
    kind: Kind,
}

/// How results are stored.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// Rounded to T.
    Stored,
    /// The same past the caches, which a [fence](crate::simd::fence) must follow.
    Streamed,
    /// Times a route's weight, and rounded to T after that.
    Routed { weight: f32 },
    /// As f32 in T's order, in whole units with zeros for what the last does not have.
    Widened {
        route: Option<f32>,
        materialize: bool,
    },
}

impl<T: VectorElement> Destination<T> {
    /// A row of results from column 0 on.
    pub(crate) const fn new(row: *mut T, streamed: bool) -> Self {
        let kind = if streamed {
            Kind::Streamed
        } else {
            Kind::Stored
        };
        Self {
            to: row,
            first: 0,
            kind,
        }
    }

    /// A row of results from column 0 on, each times its route's weight before it is rounded.
    pub(crate) const fn routed(row: *mut T, weight: f32) -> Self {
        Self {
            to: row,
            first: 0,
            kind: Kind::Routed { weight },
        }
    }

    /// Results from column `first` on.
    pub(crate) const fn from_column(to: *mut T, first: usize) -> Self {
        Self {
            to,
            first,
            kind: Kind::Stored,
        }
    }

    /// Results from column `first` on as f32, times `route`, rounded to T first if they `materialize`.
    pub(crate) const fn widened(
        to: *mut f32,
        first: usize,
        route: Option<f32>,
        materialize: bool,
    ) -> Self {
        Self {
            to: to.cast(),
            first,
            kind: Kind::Widened { route, materialize },
        }
    }

    /// The place of a column as an element.
    ///
    /// # Safety
    /// As [`Self::store`], and the results are not widened.
    #[inline(always)]
    unsafe fn place(self, j: usize) -> *mut T {
        // SAFETY: the caller vouches for the column.
        unsafe { self.to.add(j - self.first) }
    }

    /// Stores the first `count` of a unit at the columns from `j` on. Whether one of the unit's
    /// results may be rounded wrongly: [`Self::is_near_tie`] tells which.
    ///
    /// # Safety
    /// The columns lie within the row, and nothing else uses them meanwhile.
    #[inline(always)]
    pub(super) unsafe fn store<S: Simd>(self, s: S, j: usize, y: [S::F; 2], count: usize) -> bool {
        if count == UNIT && self.lead(j) == 0 {
            // SAFETY: the caller vouches for the columns; so below.
            return unsafe { self.store_unit(s, j, y) };
        }
        if let Kind::Widened { .. } = self.kind {
            // SAFETY: there is room for whole units.
            return unsafe {
                let near_tie = self.store_unit(s, j, y);
                let to = self.to.cast::<f32>().add(j - self.first);
                for element in count..UNIT {
                    to.add(T::place(element)).write(0.0);
                }
                near_tie
            };
        }
        let y = match self.kind {
            Kind::Routed { weight } => routed(s, y, weight),
            Kind::Stored | Kind::Streamed | Kind::Widened { .. } => y,
        };
        // SAFETY: as above.
        unsafe { store_few(s, self.place(j), y, count) };
        T::any_near_tie(s, y)
    }

    /// As [`Self::store`] a whole unit that begins where [`Self::lead`] is 0.
    ///
    /// # Safety
    /// As [`Self::store`].
    #[inline(always)]
    pub(super) unsafe fn store_unit<S: Simd>(self, s: S, j: usize, y: [S::F; 2]) -> bool {
        // SAFETY: the caller vouches for it.
        unsafe { self.store_unit_as(self.kind, s, j, y) }
    }

    /// As [`Self::store_unit`], for a caller that knows the kind.
    ///
    /// # Safety
    /// As [`Self::store_unit`], and the kind is [`Self::kind`].
    #[inline(always)]
    pub(super) unsafe fn store_unit_as<S: Simd>(
        self,
        kind: Kind,
        s: S,
        j: usize,
        y: [S::F; 2],
    ) -> bool {
        match kind {
            // SAFETY: the caller vouches for the columns; so below.
            Kind::Stored => unsafe { T::store(s, self.place(j), y) },
            // SAFETY: as above; the lead is there for the address.
            Kind::Streamed => unsafe { T::stream(s, self.place(j), y) },
            Kind::Routed { weight } => {
                let y = routed(s, y, weight);
                // SAFETY: as above.
                unsafe { T::store(s, self.place(j), y) };
                return T::any_near_tie(s, y);
            }
            Kind::Widened { route, materialize } => {
                let y = match route {
                    Some(route) => routed(s, y, route),
                    None => y,
                };
                let values = if materialize {
                    [T::round(s, y[0]), T::round(s, y[1])]
                } else {
                    y
                };
                // SAFETY: as above.
                unsafe { f32::store(s, self.to.cast::<f32>().add(j - self.first), values) };
                return materialize && T::any_near_tie(s, y);
            }
        }
        T::any_near_tie(s, y)
    }

    /// Whether a result, before it is multiplied with a route's weight, may be rounded wrongly.
    pub(super) fn is_near_tie(self, y: f32) -> bool {
        match self.kind {
            Kind::Stored | Kind::Streamed => T::is_near_tie(y),
            Kind::Routed { weight } => T::is_near_tie(y * weight),
            Kind::Widened { route, materialize } => {
                materialize && T::is_near_tie(y * route.unwrap_or(1.0))
            }
        }
    }

    /// How results are stored.
    #[inline(always)]
    pub(super) const fn kind(self) -> Kind {
        self.kind
    }

    /// Computes and stores one column by the reference.
    ///
    /// # Safety
    /// As [`Self::store`].
    pub(super) unsafe fn evaluate(self, j: usize, op: &GatedActivation, gate: T, up: T) {
        let value = match self.kind {
            Kind::Stored | Kind::Streamed => reference::gated(op, gate, up),
            Kind::Routed { weight } => reference::gated_routed(op, gate, up, weight),
            Kind::Widened { route, materialize } => {
                // SAFETY: the caller vouches for the column; so below.
                return unsafe { self.evaluate_widened(j, (op, gate, up), route, materialize) };
            }
        };
        // SAFETY: as above.
        unsafe { self.place(j).write(value) }
    }

    /// As [`Self::evaluate`] for what is widened.
    ///
    /// # Safety
    /// As [`Self::evaluate`].
    unsafe fn evaluate_widened(
        self,
        j: usize,
        (op, gate, up): (&GatedActivation, T, T),
        route: Option<f32>,
        materialize: bool,
    ) {
        let route = route.unwrap_or(1.0);
        let y = if materialize {
            reference::gated_routed(op, gate, up, route).to_f32()
        } else {
            // Not in eager rounding, so that f32 only means the last one.
            reference::gated_routed::<f32>(op, gate.to_f32(), up.to_f32(), route)
        };
        let element = (j - self.first) % UNIT;
        // SAFETY: as above.
        unsafe {
            let unit = self.to.cast::<f32>().add(j - self.first - element);
            unit.add(T::place(element)).write(y);
        }
    }

    /// How many columns from `j` on are stored before whole units are: streaming wants an address that
    /// is a multiple of a unit.
    #[inline(always)]
    pub(super) fn lead(self, j: usize) -> usize {
        let Kind::Streamed = self.kind else {
            return 0;
        };
        let past = self.to.wrapping_add(j - self.first).addr() % (UNIT * size_of::<T>());
        if past == 0 {
            0
        } else {
            UNIT - past / size_of::<T>()
        }
    }
}

/// Results times a route's weight.
#[inline(always)]
fn routed<S: Simd>(s: S, y: [S::F; 2], weight: f32) -> [S::F; 2] {
    let weight = s.splat(weight);
    [
        s.canonical(s.mul(y[0], weight)),
        s.canonical(s.mul(y[1], weight)),
    ]
}

/// # Safety
/// `count` elements can be written.
#[inline(always)]
unsafe fn store_few<S: Simd, T: VectorElement>(s: S, to: *mut T, y: [S::F; 2], count: usize) {
    let mut few = [T::default(); UNIT];
    // SAFETY: the array is a unit, of which `count` are copied.
    unsafe {
        T::store(s, few.as_mut_ptr(), y);
        to.copy_from_nonoverlapping(few.as_ptr(), count);
    }
}
