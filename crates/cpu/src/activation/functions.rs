//! The activations that these kernels compute, all in one place: which there are, what runs each, and
//! the formulas that are exact operations around silu. A new one is a variant of [`KnownFunction`], and
//! the compiler names the rest of this file; a function that has to be approximated has its vectors in
//! [`crate::math`].

use swiglu_core::{Clamp, Function, GatedActivation, Rounding};

use super::Piece;
use super::approximate::{Approximate, Gelu, GeluTanh, Mended, Situ};
use super::clamped::Clamped;
use super::formula::{Each, Formula};
use crate::element::{HIGHEST_LIMIT, VectorElement};
use crate::math::silu;
use crate::simd::Simd;

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
            KnownFunction::Gelu => self.mended(s, Gelu, eager),
            KnownFunction::GeluTanh => self.mended(s, GeluTanh, eager),
            KnownFunction::Situ { beta, up_bound } => {
                self.mended(s, Situ { beta, up_bound }, eager);
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

    #[inline(always)]
    fn mended<S: Simd, F: Approximate>(&self, s: S, function: F, eager: bool) {
        s.call(Mended {
            piece: self,
            to: self.to,
            function,
            eager,
        });
    }
}

/// silu(gate) · up.
#[derive(Clone, Copy)]
pub(super) struct Plain;

impl<T: VectorElement> Formula<T> for Plain {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, gate: S::F, up: S::F) -> S::F {
        s.canonical(s.mul(silu::<S, T>(s, gate, 1.0), up))
    }
}

/// Every activation with silu.
#[derive(Clone, Copy)]
pub(super) struct Silu {
    pub(super) alpha: f32,
    pub(super) clamp: SiluClamp,
    pub(super) up_offset: f32,
    pub(super) eager: bool,
}

impl<T: VectorElement> Formula<T> for Silu {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, gate: S::F, up: S::F) -> S::F {
        let (gate, up) = match self.clamp {
            SiluClamp::Before(l) => {
                let gate = s.clamp_above(gate, s.splat(l));
                (self.round::<S, T>(s, gate), both(s, up, l))
            }
            SiluClamp::After(l) => (gate, both(s, up, l)),
            SiluClamp::None => (gate, up),
        };
        let f = self.round::<S, T>(s, silu::<S, T>(s, gate, self.alpha));
        let f = match self.clamp {
            SiluClamp::After(l) => self.round::<S, T>(s, s.clamp_above(f, s.splat(l))),
            SiluClamp::Before(_) | SiluClamp::None => f,
        };
        // Adding an offset of 0 would take an up of -0 to +0.
        let up = match self.up_offset {
            0.0 => up,
            offset => s.add(up, s.splat(offset)),
        };
        s.canonical(s.mul(f, self.round::<S, T>(s, up)))
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

/// (gate > threshold ? gate : 0) · up.
#[derive(Clone, Copy)]
pub(super) struct FatRelu {
    pub(super) threshold: f32,
}

impl<T: VectorElement> Formula<T> for FatRelu {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, gate: S::F, up: S::F) -> S::F {
        // Not "above the threshold", which would take a NaN to 0.
        let above = s.lt(s.splat(self.threshold), gate);
        let kept = s.select(s.is_nan(gate), gate, s.splat(0.0));
        s.canonical(s.mul(s.select(above, gate, kept), up))
    }
}

/// clamp(x, -limit, limit) that lets NaN through.
#[inline(always)]
fn both<S: Simd>(s: S, x: S::F, limit: f32) -> S::F {
    s.clamp_below(s.clamp_above(x, s.splat(limit)), s.splat(-limit))
}
