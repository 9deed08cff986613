use swiglu_core::Clamp;

use super::Lanes;
use crate::math::silu;
use crate::simd::Simd;

/// A gated activation on vectors, before its last rounding to T. Every NaN is the canonical one.
pub(super) trait Formula<T: Lanes>: Copy {
    fn of<S: Simd>(self, s: S, gate: S::F, up: S::F) -> S::F;
}

/// silu(gate) · up.
#[derive(Clone, Copy)]
pub(super) struct Plain;

impl<T: Lanes> Formula<T> for Plain {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, gate: S::F, up: S::F) -> S::F {
        s.canonical(s.mul(silu::<S, T>(s, gate, 1.0), up))
    }
}

/// Every activation with silu.
#[derive(Clone, Copy)]
pub(super) struct Silu {
    pub(super) alpha: f32,
    pub(super) clamp: Clamp,
    pub(super) offset: f32,
    pub(super) eager: bool,
}

impl<T: Lanes> Formula<T> for Silu {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, gate: S::F, up: S::F) -> S::F {
        let (gate, up) = match self.clamp {
            Clamp::Before(l) => {
                let gate = s.clamp_above(gate, s.splat(l.get()));
                (self.round::<S, T>(s, gate), both(s, up, l.get()))
            }
            Clamp::After(l) => (gate, both(s, up, l.get())),
            Clamp::None => (gate, up),
        };
        let f = self.round::<S, T>(s, silu::<S, T>(s, gate, self.alpha));
        let f = match self.clamp {
            Clamp::After(l) => self.round::<S, T>(s, s.clamp_above(f, s.splat(l.get()))),
            Clamp::Before(_) | Clamp::None => f,
        };
        // Adding an offset of 0 would take an up of -0 to +0.
        let up = match self.offset {
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
            Clamp::Before(limit) if self.alpha == 1.0 && self.offset == 0.0 && !self.eager => {
                Some(limit.get())
            }
            _ => None,
        }
    }

    /// What is between, rounded in mode Eager.
    #[inline(always)]
    fn round<S: Simd, T: Lanes>(self, s: S, a: S::F) -> S::F {
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

impl<T: Lanes> Formula<T> for FatRelu {
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
