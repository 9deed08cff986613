//! The activations that these kernels compute, all in one place: which there are, what runs each, and
//! the formulas that are exact operations around silu. A new one is a variant of [`KnownFunction`], and
//! the compiler names the rest of this file; a function that has to be approximated has its vectors in
//! [`crate::math`].

use crate::cold::cold_path;
use std::marker::PhantomData;

use swiglu_core::{Clamp, Function, GatedActivation, Rounding};

use super::Piece;
use super::approximate::{Gelu, GeluTanh, Situ, WhereItHolds};
use super::clamped::Clamped;
use super::formula::{Each, Formula};
use crate::element::{HIGHEST_LIMIT, USUAL, VectorElement};
use crate::math::Sigmoid;
use crate::simd::{Outlined, Simd};

/// An activation as the kernels here know it: they compute all that this can hold.
#[derive(Clone, Copy)]
pub(crate) struct KnownActivation {
    pub(crate) op: GatedActivation,
    function: KnownFunction,
    /// Whether what is between is rounded to the elements' type too.
    pub(crate) eager: bool,
}

#[derive(Clone, Copy)]
enum KnownFunction {
    /// silu with a slope, clamps around it, and something added to the up half.
    Silu {
        alpha: f32,
        clamp: SiluClamp,
        up_offset: f32,
    },
    FatRelu {
        threshold: f32,
    },
    Gelu,
    GeluTanh,
    Situ {
        beta: f32,
        up_bound: Option<f32>,
    },
}

/// The limit of gates and ups, and whether a gate is clamped before silu or after.
#[derive(Clone, Copy)]
pub(crate) enum SiluClamp {
    None,
    Before(f32),
    After(f32),
}

impl KnownActivation {
    /// The only place where core's description is read. None for what a later core may describe and
    /// these kernels do not compute.
    pub(crate) const fn new(op: &GatedActivation) -> Option<Self> {
        let clamp = match op.clamp() {
            Clamp::None => SiluClamp::None,
            Clamp::Before(limit) => SiluClamp::Before(limit.get()),
            Clamp::After(limit) => SiluClamp::After(limit.get()),
            _ => return None,
        };
        let up_offset = op.up_offset();
        let is_plain = matches!(clamp, SiluClamp::None) && up_offset == 0.0;
        let function = match op.function() {
            Function::Silu { alpha } => KnownFunction::Silu {
                alpha,
                clamp,
                up_offset,
            },
            Function::FatRelu { threshold } if is_plain => KnownFunction::FatRelu { threshold },
            Function::Gelu if is_plain => KnownFunction::Gelu,
            Function::GeluTanh if is_plain => KnownFunction::GeluTanh,
            Function::Situ { beta, up_bound } if is_plain => KnownFunction::Situ { beta, up_bound },
            _ => return None,
        };
        Some(Self {
            op: *op,
            function,
            eager: matches!(op.rounding(), Rounding::Eager),
        })
    }

    /// The clamp, with the slope of the silu that it stands before or after.
    pub(crate) const fn clamp(&self) -> (SiluClamp, f32) {
        match self.function {
            KnownFunction::Silu { alpha, clamp, .. } => (clamp, alpha),
            KnownFunction::FatRelu { .. }
            | KnownFunction::Gelu
            | KnownFunction::GeluTanh
            | KnownFunction::Situ { .. } => (SiluClamp::None, 1.0),
        }
    }
}

impl<T: VectorElement> Piece<'_, T> {
    /// Computes the results, in one call to the function that has the formula.
    #[inline(always)]
    pub(crate) fn compute<S: Simd>(&self, s: S) {
        let KnownActivation {
            function, eager, ..
        } = *self.from.activation();
        match function {
            KnownFunction::Silu {
                alpha: 1.0,
                clamp: SiluClamp::None,
                up_offset: 0.0,
            } if !eager => self.each(s, Plain),
            KnownFunction::Silu {
                alpha,
                clamp,
                up_offset,
            } => {
                let formula = Silu {
                    alpha,
                    clamp,
                    up_offset,
                    eager,
                };
                match formula.only_clamps().filter(|&limit| {
                    let same = T::from_f32(limit).to_f32() == limit;
                    same && limit <= HIGHEST_LIMIT && self.from.apart().is_some()
                }) {
                    Some(limit) => s.call(Clamped {
                        piece: self,
                        limit,
                        formula,
                    }),
                    None => self.each(s, formula),
                }
            }
            KnownFunction::FatRelu { threshold } => self.each(s, FatRelu { threshold }),
            KnownFunction::Gelu => self.each(
                s,
                WhereItHolds {
                    function: Gelu,
                    eager,
                },
            ),
            KnownFunction::GeluTanh => self.each(
                s,
                WhereItHolds {
                    function: GeluTanh,
                    eager,
                },
            ),
            KnownFunction::Situ { beta, up_bound } => {
                let function = Situ { beta, up_bound };
                self.each(s, WhereItHolds { function, eager });
            }
        }
    }

    #[inline(always)]
    fn each<S: Simd, F: Formula<T>>(&self, s: S, formula: F) {
        s.call(Each {
            piece: self,
            range: self.from.range(),
            formula,
        });
    }
}

/// silu(gate) · up.
#[derive(Clone, Copy)]
pub(super) struct Plain;

impl<T: VectorElement> Formula<T> for Plain {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, gates: [S::F; 2], ups: [S::F; 2]) -> [S::F; 2] {
        let plain = Silu {
            alpha: 1.0,
            clamp: SiluClamp::None,
            up_offset: 0.0,
            eager: false,
        };
        plain.unit::<S, T>(s, gates, ups)
    }
}

/// Every activation with silu.
///
/// Where a product is not rounded on the way it is up · gate · sigmoid, in this order: a sigmoid that
/// the vectors hold for is a normal number, so that what underflows is the result itself, and what
/// overflows shows in it.
#[derive(Clone, Copy)]
pub(super) struct Silu {
    pub(super) alpha: f32,
    pub(super) clamp: SiluClamp,
    pub(super) up_offset: f32,
    pub(super) eager: bool,
}

impl<T: VectorElement> Formula<T> for Silu {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, gates: [S::F; 2], ups: [S::F; 2]) -> [S::F; 2] {
        self.unit::<S, T>(s, gates, ups)
    }
}

impl Silu {
    /// The limit of silu(min(gate, limit)) · clamp(up, ±limit), if that is all.
    pub(super) fn only_clamps(self) -> Option<f32> {
        match self.clamp {
            SiluClamp::Before(limit)
                if self.alpha == 1.0 && self.up_offset == 0.0 && !self.eager =>
            {
                Some(limit)
            }
            _ => None,
        }
    }

    #[inline(always)]
    fn unit<S: Simd, T: VectorElement>(self, s: S, gates: [S::F; 2], ups: [S::F; 2]) -> [S::F; 2] {
        let pairs = [
            self.factors::<S, T>(s, gates[0], ups[0]),
            self.factors::<S, T>(s, gates[1], ups[1]),
        ];
        let sigmoids = [
            Sigmoid::new::<T>(s, pairs[0].0, self.alpha),
            Sigmoid::new::<T>(s, pairs[1].0, self.alpha),
        ];
        let [a, b] = [s.abs(sigmoids[0].z), s.abs(sigmoids[1].z)];
        let y = [
            self.product::<S, T>(s, pairs[0], sigmoids[0]),
            self.product::<S, T>(s, pairs[1], sigmoids[1]),
        ];
        let largest = s.float(s.max_u32(s.bits(a), s.bits(b)));
        if s.all(s.lt(largest, s.splat(USUAL))) {
            return y;
        }
        cold_path();
        [
            s.call(Beyond {
                formula: self,
                pair: pairs[0],
                sigmoid: sigmoids[0],
                y: y[0],
                of: PhantomData::<T>,
            }),
            s.call(Beyond {
                formula: self,
                pair: pairs[1],
                sigmoid: sigmoids[1],
                y: y[1],
                of: PhantomData::<T>,
            }),
        ]
    }

    /// What silu takes, and what it is multiplied with.
    #[inline(always)]
    fn factors<S: Simd, T: VectorElement>(self, s: S, gate: S::F, up: S::F) -> (S::F, S::F) {
        let (gate, up) = match self.clamp {
            SiluClamp::Before(l) => {
                let gate = s.clamp_above(gate, s.splat(l));
                (self.round::<S, T>(s, gate), both(s, up, l))
            }
            SiluClamp::After(l) => (gate, both(s, up, l)),
            SiluClamp::None => (gate, up),
        };
        // Adding an offset of 0 would take an up of -0 to +0.
        let up = match self.up_offset {
            0.0 => up,
            offset => s.add(up, s.splat(offset)),
        };
        (gate, self.round::<S, T>(s, up))
    }

    /// silu(gate) · up where the sigmoid holds.
    #[inline(always)]
    fn product<S: Simd, T: VectorElement>(
        self,
        s: S,
        (gate, up): (S::F, S::F),
        sigmoid: Sigmoid<S>,
    ) -> S::F {
        if self.eager {
            let f = sigmoid.times::<T>(s, gate);
            let y = s.mul(self.rounded_function::<S, T>(s, f), up);
            let ordinary = s.lt(s.splat(LEAST), s.abs(f));
            if s.all(ordinary) {
                return y;
            }
            cold_path();
            // A subnormal number was rounded twice; silu(0) is none.
            let lost = s.select(s.lt(s.splat(0.0), s.abs(gate)), s.splat(f32::NAN), y);
            return s.select(ordinary, y, lost);
        }
        let y = sigmoid.times::<T>(s, s.mul(gate, up));
        match self.clamp {
            SiluClamp::After(l) => {
                let limit = s.splat(l);
                let clamped = s.lt(limit, sigmoid.times::<T>(s, gate));
                s.select(clamped, s.mul(limit, up), y)
            }
            SiluClamp::Before(_) | SiluClamp::None => y,
        }
    }

    /// The function's value before it meets up: clamped, if it is clamped here, and rounded.
    #[inline(always)]
    fn rounded_function<S: Simd, T: VectorElement>(self, s: S, f: S::F) -> S::F {
        let f = self.round::<S, T>(s, f);
        match self.clamp {
            SiluClamp::After(l) => self.round::<S, T>(s, s.clamp_above(f, s.splat(l))),
            SiluClamp::Before(_) | SiluClamp::None => f,
        }
    }

    /// What is between, rounded in mode Eager.
    #[inline(always)]
    fn round<S: Simd, T: VectorElement>(self, s: S, a: S::F) -> S::F {
        if self.eager {
            T::round(s, s.canonical(a))
        } else {
            a
        }
    }
}

/// Magnitudes above which a function's value was not subnormal at any time.
const LEAST: f32 = f32::from_bits((127 - 120) << 23);

/// The results of a vector some of whose gates the sigmoid does not hold for. From [`USUAL`] on it
/// is 1; below, and for a NaN, the reference computes.
struct Beyond<S: Simd, T> {
    formula: Silu,
    pair: (S::F, S::F),
    sigmoid: Sigmoid<S>,
    /// Where it holds.
    y: S::F,
    of: PhantomData<T>,
}

impl<S: Simd, T: VectorElement> Outlined<S> for Beyond<S, T> {
    type Output = S::F;

    #[inline(always)]
    fn run(self, s: S) -> S::F {
        let (gate, up) = self.pair;
        let whole = s.mul(self.formula.rounded_function::<S, T>(s, gate), up);
        let large = s.lt(s.splat(USUAL.next_down()), self.sigmoid.z);
        let beyond = s.select(large, whole, s.splat(f32::NAN));
        s.select(self.sigmoid.holds(s), self.y, beyond)
    }
}

/// (gate > threshold ? gate : 0) · up.
#[derive(Clone, Copy)]
pub(super) struct FatRelu {
    pub(super) threshold: f32,
}

impl<T: VectorElement> Formula<T> for FatRelu {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, gates: [S::F; 2], ups: [S::F; 2]) -> [S::F; 2] {
        [
            self.value(s, gates[0], ups[0]),
            self.value(s, gates[1], ups[1]),
        ]
    }
}

impl FatRelu {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, gate: S::F, up: S::F) -> S::F {
        // Not "above the threshold", which would take a NaN to 0.
        let above = s.lt(s.splat(self.threshold), gate);
        let kept = s.select(s.is_nan(gate), gate, s.splat(0.0));
        s.mul(s.select(above, gate, kept), up)
    }
}

/// clamp(x, -limit, limit) that lets NaN through.
#[inline(always)]
fn both<S: Simd>(s: S, x: S::F, limit: f32) -> S::F {
    s.clamp_below(s.clamp_above(x, s.splat(limit)), s.splat(-limit))
}
