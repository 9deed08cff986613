use swiglu_core::{Clamp, Function, Rounding};

use crate::activation::{Columns, Lanes};
use crate::math::silu;
use crate::simd::{Kernel, LANES, Simd};

/// How many columns of a run are clamped: at the gate (with the clamp after the function, at its
/// result), at the up half from above, and from below. NaN is not.
pub(super) struct Hits<'a, T>(pub(super) &'a Columns<'a, T>);

impl<T: Lanes> Kernel for Hits<'_, T> {
    type Output = [u32; 3];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [u32; 3] {
        let op = self.0.op;
        match (op.clamp(), op.function()) {
            (Clamp::None, _) => [0; 3],
            (Clamp::After(limit), Function::Silu { alpha }) => {
                let eager = op.rounding() == Rounding::Eager;
                let f = |gate| {
                    let f = silu(s, gate, s.splat(alpha));
                    if eager { T::round(s, f) } else { f }
                };
                self.count(s, limit.get(), f)
            }
            // No other function is clamped at its result.
            (Clamp::Before(limit) | Clamp::After(limit), _) => self.count(s, limit.get(), |g| g),
        }
    }
}

impl<T: Lanes> Hits<'_, T> {
    #[inline(always)]
    fn count<S: Simd>(&self, s: S, limit: f32, gate: impl Fn(S::F) -> S::F) -> [u32; 3] {
        let (above, below) = (s.splat(limit), s.splat(-limit));
        let (no, one) = (s.splat(0.0), s.float(s.splat_u32(1)));
        let mut counts = [s.splat_u32(0); 3];
        // What pads the last columns is 0, which no limit clamps.
        self.0.each(s, |_, _, g, u| {
            let hits = [s.lt(above, gate(g)), s.lt(above, u), s.lt(u, below)];
            for (count, hit) in counts.iter_mut().zip(hits) {
                *count = s.add_u32(*count, s.bits(s.select(hit, one, no)));
            }
        });
        counts.map(|count| {
            let mut lanes = [0.0_f32; LANES];
            // SAFETY: the array has LANES elements.
            unsafe { s.store_f32(lanes.as_mut_ptr(), s.float(count)) };
            lanes.iter().map(|x| x.to_bits()).sum()
        })
    }
}
