use rayon::prelude::*;
use swiglu_core::{
    Clamp, Element, Function, GatedActivation, Layout, Order, Rounding, RowLayout, bf16, f16,
    reference,
};

use crate::InstructionSet;
use crate::math::silu;
use crate::simd::{self, Kernel, LANES, Simd};

/// An element type as vectors are loaded and stored.
pub(crate) trait Lanes: Element {
    /// # Safety
    /// [`LANES`] elements can be read.
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F;
    /// # Safety
    /// [`LANES`] elements can be written.
    unsafe fn store<S: Simd>(s: S, to: *mut Self, a: S::F);
    /// Rounds to this type and widens again.
    fn round<S: Simd>(s: S, a: S::F) -> S::F;
}

impl Lanes for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F {
        // SAFETY: the caller vouches for it; so below.
        unsafe { s.load_f32(from) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut Self, a: S::F) {
        // SAFETY: as above.
        unsafe { s.store_f32(to, s.canonical(a)) }
    }
    #[inline(always)]
    fn round<S: Simd>(_: S, a: S::F) -> S::F {
        a
    }
}

/// The upper half of each lane, rounded to nearest even.
#[inline(always)]
fn upper<S: Simd>(s: S, a: S::F) -> S::I {
    let bits = s.bits(s.canonical(a));
    let odd = s.and(s.shr::<16>(bits), s.splat_u32(1));
    s.shr::<16>(s.add_u32(bits, s.add_u32(odd, s.splat_u32(0x7fff))))
}

impl Lanes for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F {
        // SAFETY: as above; bf16 is a u16.
        s.float(s.shl::<16>(unsafe { s.load_u16(from.cast()) }))
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut Self, a: S::F) {
        // SAFETY: as above.
        unsafe { s.store_u16(to.cast(), upper(s, a)) }
    }
    #[inline(always)]
    fn round<S: Simd>(s: S, a: S::F) -> S::F {
        s.float(s.shl::<16>(upper(s, a)))
    }
}

impl Lanes for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F {
        // SAFETY: as above; f16 is a u16.
        unsafe { s.load_f16(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut Self, a: S::F) {
        // SAFETY: as above.
        unsafe { s.store_f16(to.cast(), s.canonical(a)) }
    }
    #[inline(always)]
    fn round<S: Simd>(s: S, a: S::F) -> S::F {
        let mut halves = [0_u16; LANES];
        // SAFETY: the array has LANES elements.
        unsafe {
            s.store_f16(halves.as_mut_ptr(), a);
            s.load_f16(halves.as_ptr())
        }
    }
}

/// Outputs that one task computes at the most.
const TASK: usize = 16 * 1024;

/// Outputs up to which a call runs on the caller's thread: waking a pool costs some microseconds,
/// in which one thread computes about as many.
const INLINE: usize = 16 * 1024;

/// A call whose layouts have passed their checks.
struct Call<'a, T> {
    op: &'a GatedActivation,
    input: &'a [T],
    from: RowLayout,
    output: *mut T,
    to: RowLayout,
}

// SAFETY: tasks write disjoint parts of the output.
unsafe impl<T: Sync> Sync for Call<'_, T> {}

/// Whether an output is computed on the caller's thread.
pub(crate) const fn is_small(output: &RowLayout) -> bool {
    output.rows * output.cols <= INLINE
}

/// Runs `op` over rows in slices. The layouts must have passed [`swiglu_core::ActShape::new`] and
/// [`RowLayout::check`].
pub(crate) fn act_and_mul<T: Lanes>(
    set: InstructionSet,
    op: &GatedActivation,
    (input, from): (&[T], RowLayout),
    (output, to): (&mut [T], RowLayout),
) {
    let d = to.cols;
    let call = Call {
        op,
        input,
        from,
        output: output.as_mut_ptr(),
        to,
    };
    // Whole rows if they are short, parts of one if they are long.
    let width = d.min(TASK);
    let parts = d.div_ceil(width);
    let rows = (TASK / width).max(1);
    let run = |task: usize| {
        let start = task % parts * width;
        let first = task / parts * rows;
        for row in first..to.rows.min(first + rows) {
            let piece = Piece {
                call: &call,
                row,
                columns: start..d.min(start + width),
            };
            // SAFETY: `set` is only given out for machines that have it.
            unsafe { simd::dispatch(set, piece) }
        }
    };
    let tasks = to.rows.div_ceil(rows) * parts;
    if is_small(&to) {
        (0..tasks).for_each(run);
    } else {
        (0..tasks).into_par_iter().for_each(run);
    }
}

/// A run of a row's outputs.
struct Piece<'a, T> {
    call: &'a Call<'a, T>,
    row: usize,
    columns: std::ops::Range<usize>,
}

impl<T: Lanes> Kernel for Piece<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let op = self.call.op;
        let eager = op.rounding() == Rounding::Eager;
        match (op.function(), op.clamp(), eager) {
            (Function::Silu { alpha }, Clamp::None, false) => {
                self.each(s, |g, u| {
                    mul_up::<S, T, false>(s, op, silu(s, g, s.splat(alpha)), u)
                });
            }
            (Function::Silu { alpha }, Clamp::Before(limit), false) => {
                let limit = s.splat(limit.get());
                self.each(s, |g, u| {
                    let f = silu(s, s.clamp_above(g, limit), s.splat(alpha));
                    mul_up::<S, T, false>(s, op, f, both(s, u, limit))
                });
            }
            (Function::Silu { alpha }, clamp, _) => self.each(s, |g, u| {
                let r = |a| if eager { T::round(s, a) } else { a };
                let alpha = s.splat(alpha);
                let (f, u) = match clamp {
                    Clamp::None => (r(silu(s, g, alpha)), u),
                    Clamp::Before(l) => {
                        let l = s.splat(l.get());
                        (r(silu(s, r(s.clamp_above(g, l)), alpha)), both(s, u, l))
                    }
                    Clamp::After(l) => {
                        let l = s.splat(l.get());
                        (r(s.clamp_above(r(silu(s, g, alpha)), l)), both(s, u, l))
                    }
                };
                if eager {
                    mul_up::<S, T, true>(s, op, f, u)
                } else {
                    mul_up::<S, T, false>(s, op, f, u)
                }
            }),
            (Function::FatRelu { threshold }, _, _) => {
                let t = s.splat(threshold);
                self.each(s, |g, u| {
                    // Not "above the threshold", which would take a NaN to 0.
                    let above = s.lt(t, g);
                    let kept = s.select(s.is_nan(g), g, s.splat(0.0));
                    s.mul(s.select(above, g, kept), u)
                });
            }
            (Function::Gelu | Function::GeluTanh | Function::Situ { .. }, _, _) => self.scalar(),
        }
    }
}

/// clamp(u, -limit, limit) that lets NaN through.
#[inline(always)]
fn both<S: Simd>(s: S, u: S::F, limit: S::F) -> S::F {
    s.clamp_below(s.clamp_above(u, limit), s.neg(limit))
}

/// f · (u + offset), the sum rounded in mode Eager.
#[inline(always)]
fn mul_up<S: Simd, T: Lanes, const EAGER: bool>(
    s: S,
    op: &GatedActivation,
    f: S::F,
    u: S::F,
) -> S::F {
    // Adding an offset of 0 would take an up of -0 to +0.
    let u = match op.up_offset() {
        0.0 => u,
        offset => s.add(u, s.splat(offset)),
    };
    s.mul(f, if EAGER { T::round(s, u) } else { u })
}

impl<T: Lanes> Piece<'_, T> {
    /// Applies `f` to (gate, up) in vectors; the last ones, if fewer, through padded copies, so that
    /// they are computed alike.
    #[inline(always)]
    fn each<S: Simd>(&self, s: S, f: impl Fn(S::F, S::F) -> S::F) {
        let (op, d) = (self.call.op, self.call.to.cols);
        let row = &self.call.input[self.call.from.row(self.row)];
        let out = self.call.to.row(self.row).start;
        let apply = |gate: *const T, up: *const T, y: *mut T| {
            // SAFETY: every caller below gives pointers to LANES elements.
            unsafe { T::store(s, y, f(T::load(s, gate), T::load(s, up))) }
        };
        let mut j = self.columns.start;
        while j < self.columns.end {
            let count = LANES.min(self.columns.end - j);
            let mut y = [T::default(); LANES];
            let whole = count == LANES;
            // SAFETY: the output's layout was checked; this piece alone writes these columns.
            let target = unsafe { self.call.output.add(out + j) };
            let to = if whole { target } else { y.as_mut_ptr() };
            match op.layout() {
                Layout::Concatenated if whole => {
                    let (gate, up) = op.positions(d, j);
                    apply(
                        row[gate..gate + LANES].as_ptr(),
                        row[up..up + LANES].as_ptr(),
                        to,
                    );
                }
                Layout::Interleaved if whole => {
                    let pair = &row[2 * j..2 * (j + LANES)];
                    // SAFETY: `pair` has 2 · LANES elements, and `to` LANES.
                    unsafe {
                        let a = T::load(s, pair.as_ptr());
                        let b = T::load(s, pair.as_ptr().add(LANES));
                        let (even, odd) = s.deinterleave(a, b);
                        let (gate, up) = match op.order() {
                            Order::GateFirst => (even, odd),
                            Order::UpFirst => (odd, even),
                        };
                        T::store(s, to, f(gate, up));
                    }
                }
                Layout::Concatenated | Layout::Interleaved => {
                    let (mut gates, mut ups) = ([T::default(); LANES], [T::default(); LANES]);
                    for lane in 0..count {
                        let (gate, up) = op.positions(d, j + lane);
                        (gates[lane], ups[lane]) = (row[gate], row[up]);
                    }
                    apply(gates.as_ptr(), ups.as_ptr(), to);
                    for (lane, &y) in y[..count].iter().enumerate() {
                        // SAFETY: as above.
                        unsafe { target.add(lane).write(y) };
                    }
                }
            }
            j += count;
        }
    }

    /// The functions that few models use, by the reference.
    fn scalar(&self) {
        let (op, d) = (self.call.op, self.call.to.cols);
        let row = &self.call.input[self.call.from.row(self.row)];
        let out = self.call.to.row(self.row).start;
        for j in self.columns.clone() {
            let (gate, up) = op.positions(d, j);
            let y = reference::gated(op, row[gate], row[up]);
            // SAFETY: the output's layout was checked; this piece alone writes these columns.
            unsafe { self.call.output.add(out + j).write(y) };
        }
    }
}
