use std::ops::Range;

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

/// Where results go, by their column.
pub(crate) trait Output<T: Lanes>: Copy {
    /// Stores the first `count` of `y` at the columns from `j` on.
    ///
    /// # Safety
    /// The columns lie within the row, and nothing else uses them meanwhile.
    unsafe fn store<S: Simd>(self, s: S, j: usize, y: S::F, count: usize);

    /// Computes and stores one column by the reference.
    ///
    /// # Safety
    /// As [`Self::store`].
    unsafe fn evaluate(self, j: usize, op: &GatedActivation, gate: T, up: T);
}

/// A row of results in their own type.
impl<T: Lanes> Output<T> for *mut T {
    #[inline(always)]
    unsafe fn store<S: Simd>(self, s: S, j: usize, y: S::F, count: usize) {
        // SAFETY: the caller vouches for the columns; so below.
        let to = unsafe { self.add(j) };
        if count == LANES {
            // SAFETY: LANES columns.
            return unsafe { T::store(s, to, y) };
        }
        let mut last = [T::default(); LANES];
        // SAFETY: the array has LANES elements, of which `count` are copied.
        unsafe {
            T::store(s, last.as_mut_ptr(), y);
            to.copy_from_nonoverlapping(last.as_ptr(), count);
        }
    }

    unsafe fn evaluate(self, j: usize, op: &GatedActivation, gate: T, up: T) {
        // SAFETY: as above.
        unsafe { self.add(j).write(reference::gated(op, gate, up)) }
    }
}

/// A pointer that tasks write disjoint parts through.
pub(crate) struct Shared<T>(pub(crate) *mut T);

// SAFETY: whoever dereferences the pointer answers for it.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// The pointer, by a method so that closures borrow the whole.
    pub(crate) const fn get(&self) -> *mut T {
        self.0
    }
}

/// Whether an output is computed on the caller's thread.
pub(crate) const fn is_small(output: &RowLayout) -> bool {
    output.rows * output.cols <= INLINE
}

/// Calls `work` with a row and a range of its columns until all of `output` is covered, in tasks of
/// about [`TASK`] outputs: whole rows if they are short, parts of one if they are long.
pub(crate) fn split(output: &RowLayout, work: impl Fn(usize, Range<usize>) + Sync) {
    let d = output.cols;
    let width = d.min(TASK);
    let parts = d.div_ceil(width);
    let rows = (TASK / width).max(1);
    let run = |task: usize| {
        let start = task % parts * width;
        let first = task / parts * rows;
        for row in first..output.rows.min(first + rows) {
            work(row, start..d.min(start + width));
        }
    };
    let tasks = output.rows.div_ceil(rows) * parts;
    if is_small(output) {
        (0..tasks).for_each(run);
    } else {
        (0..tasks).into_par_iter().for_each(run);
    }
}

/// Runs `op` over rows in slices. The layouts must have passed [`swiglu_core::ActShape::new`] and
/// [`RowLayout::check`].
pub(crate) fn act_and_mul<T: Lanes>(
    set: InstructionSet,
    op: &GatedActivation,
    (input, from): (&[T], RowLayout),
    (output, to): (&mut [T], RowLayout),
) {
    let output = Shared(output.as_mut_ptr());
    split(&to, |row, range| {
        let piece = Piece {
            from: Columns {
                op,
                row: &input[from.row(row)],
                range,
            },
            // SAFETY: the row lies inside the output, whose layout was checked.
            output: unsafe { output.get().add(to.row(row).start) },
        };
        // SAFETY: `set` is only given out for machines that have it.
        unsafe { simd::dispatch(set, piece) }
    });
}

/// A run of columns of one row of input.
pub(crate) struct Columns<'a, T> {
    pub(crate) op: &'a GatedActivation,
    /// The whole row, 2d elements.
    pub(crate) row: &'a [T],
    pub(crate) range: Range<usize>,
}

/// A run of a row's results, which nothing else reads or writes meanwhile.
pub(crate) struct Piece<'a, T, O> {
    pub(crate) from: Columns<'a, T>,
    pub(crate) output: O,
}

impl<T: Lanes, O: Output<T>> Kernel for Piece<'_, T, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let op = self.from.op;
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

impl<T: Lanes, O: Output<T>> Piece<'_, T, O> {
    #[inline(always)]
    fn each<S: Simd>(&self, s: S, f: impl Fn(S::F, S::F) -> S::F) {
        self.from.each(s, |j, count, gate, up| {
            // SAFETY: the columns are this piece's own.
            unsafe { self.output.store(s, j, f(gate, up), count) }
        });
    }

    /// The functions that few models use, by the reference.
    fn scalar(&self) {
        let Columns { op, row, range } = &self.from;
        for j in range.clone() {
            let (gate, up) = op.positions(row.len() / 2, j);
            // SAFETY: the column is this piece's own.
            unsafe { self.output.evaluate(j, op, row[gate], row[up]) };
        }
    }
}

impl<T: Lanes> Columns<'_, T> {
    /// Calls `f` with the first column, the number of columns, their gates and their ups, in
    /// vectors. The last, if fewer than [`LANES`], are padded with zeros, so that they are computed
    /// alike.
    #[inline(always)]
    pub(crate) fn each<S: Simd>(&self, s: S, mut f: impl FnMut(usize, usize, S::F, S::F)) {
        let Range { start, end } = self.range;
        for j in (start..end).step_by(LANES) {
            let count = LANES.min(end - j);
            let (gate, up) = if count == LANES {
                self.load(s, j)
            } else {
                self.load_last(s, j, count)
            };
            f(j, count, gate, up);
        }
    }

    /// The gates and ups of the [`LANES`] columns from `j` on.
    #[inline(always)]
    fn load<S: Simd>(&self, s: S, j: usize) -> (S::F, S::F) {
        let load = |at: usize| {
            // SAFETY: the slice has LANES elements.
            unsafe { T::load(s, self.row[at..at + LANES].as_ptr()) }
        };
        match self.op.layout() {
            Layout::Concatenated => {
                let (gate, up) = self.op.positions(self.row.len() / 2, j);
                (load(gate), load(up))
            }
            Layout::Interleaved => {
                let (even, odd) = s.deinterleave(load(2 * j), load(2 * j + LANES));
                match self.op.order() {
                    Order::GateFirst => (even, odd),
                    Order::UpFirst => (odd, even),
                }
            }
        }
    }

    /// The same of fewer columns, padded with zeros.
    #[inline(always)]
    fn load_last<S: Simd>(&self, s: S, j: usize, count: usize) -> (S::F, S::F) {
        let (mut gates, mut ups) = ([T::default(); LANES], [T::default(); LANES]);
        for lane in 0..count {
            let (gate, up) = self.op.positions(self.row.len() / 2, j + lane);
            (gates[lane], ups[lane]) = (self.row[gate], self.row[up]);
        }
        // SAFETY: the arrays have LANES elements.
        unsafe { (T::load(s, gates.as_ptr()), T::load(s, ups.as_ptr())) }
    }
}
