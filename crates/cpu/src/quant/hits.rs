use std::marker::PhantomData;

use crate::activation::{Columns, SiluClamp, Visit};
use crate::element::VectorElement;
use crate::math::Sigmoid;
use crate::simd::{Kernel, LANES, Simd};

/// How many columns of a run are clamped: at the gate (with the clamp after the function, at its
/// result), at the up half from above, and from below. NaN is not.
pub(super) struct Hits<'a, T>(pub(super) &'a Columns<'a, T>);

impl<T: VectorElement> Kernel for Hits<'_, T> {
    type Output = [u32; 3];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [u32; 3] {
        let activation = self.0.activation();
        let (limit, slope) = match activation.clamp() {
            (SiluClamp::None, _) => return [0; 3],
            (SiluClamp::Before(limit), _) => (limit, None),
            (SiluClamp::After(limit), alpha) => (limit, Some(alpha)),
        };
        let mut count = Count::<S, T> {
            limit,
            slope,
            eager: activation.eager,
            counts: [s.splat_u32(0); 3],
            of: PhantomData,
        };
        // What pads the last columns is 0, which no limit clamps.
        self.0.each(s, &self.0.range(), 0, &mut count);
        let mut hits = [0; 3];
        for (hits, count) in hits.iter_mut().zip(count.counts) {
            let mut lanes = [0.0_f32; LANES];
            // SAFETY: the array has LANES elements.
            unsafe { s.store_f32(lanes.as_mut_ptr(), s.float(count)) };
            *hits = lanes.iter().map(|x| x.to_bits()).sum();
        }
        hits
    }
}

struct Count<S: Simd, T> {
    limit: f32,
    /// Of silu, where the clamp comes after it.
    slope: Option<f32>,
    eager: bool,
    counts: [S::I; 3],
    of: PhantomData<T>,
}

impl<S: Simd, T: VectorElement> Visit<S> for Count<S, T> {
    #[inline(always)]
    fn visit(&mut self, s: S, _: usize, _: usize, gates: [S::F; 2], ups: [S::F; 2]) {
        let (above, below) = (s.splat(self.limit), s.splat(-self.limit));
        let (no, one) = (s.splat(0.0), s.float(s.splat_u32(1)));
        for (gate, up) in gates.into_iter().zip(ups) {
            let gate = match self.slope {
                None => gate,
                Some(alpha) => self.silu(s, gate, alpha),
            };
            let hits = [s.lt(above, gate), s.lt(above, up), s.lt(up, below)];
            for (count, hit) in self.counts.iter_mut().zip(hits) {
                *count = s.add_u32(*count, s.bits(s.select(hit, one, no)));
            }
        }
    }
}

impl<S: Simd, T: VectorElement> Count<S, T> {
    /// silu of what may be above a limit: positive gates, of which large ones are their own.
    #[inline(always)]
    fn silu(&self, s: S, gate: S::F, alpha: f32) -> S::F {
        let sigmoid = Sigmoid::new::<T>(s, gate, alpha);
        let f = s.select(sigmoid.holds(s), sigmoid.times::<T>(s, gate), gate);
        if self.eager {
            T::round(s, s.canonical(f))
        } else {
            f
        }
    }
}
