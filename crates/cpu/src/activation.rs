//! Activations of rows: tasks of a pool take rows, or parts of long ones, in vectors.

use std::ops::Range;

use rayon::prelude::*;
use swiglu_core::{Clamp, Function, GatedActivation, Layout, Rounding, RowLayout};

use crate::simd::{self, Kernel, Simd};
use crate::{InstructionSet, cache};

mod approximate;
mod clamped;
mod columns;
mod formula;
mod lanes;
mod output;

use approximate::{Approximate, Gelu, GeluTanh, Mended, Situ};
pub(crate) use columns::{Columns, Visit};
use formula::{FatRelu, Formula, Plain, Silu};
use lanes::HIGHEST;
pub(crate) use lanes::{Lanes, UNIT};
pub(crate) use output::Output;
use output::Streamed;

/// Outputs that one task computes at the most.
const TASK: usize = 16 * 1024;

/// Outputs up to which a call runs on the caller's thread: waking a pool costs some microseconds,
/// in which one thread computes about as many.
const INLINE: usize = 16 * 1024;

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
        (0..tasks).into_par_iter().for_each(|task| {
            run(task);
            // For what was stored past the caches; after each row it would take a third of the time.
            simd::fence();
        });
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
    // What no cache holds is written past them, which spares reading it first.
    let streamed = 3 * to.rows * to.cols * size_of::<T>() > cache::last_level();
    let output = Shared(output.as_mut_ptr());
    split(&to, |row, range| {
        let from = Columns::new(op, &input[from.row(row)], range);
        // SAFETY: the row lies inside the output, whose layout was checked.
        let output = unsafe { output.get().add(to.row(row).start) };
        // SAFETY: `set` is only given out for machines that have it.
        unsafe {
            if streamed {
                let output = Streamed(output);
                simd::dispatch(set, Piece { from, output });
            } else {
                simd::dispatch(set, Piece { from, output });
            }
        }
    });
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
        let op = self.from.op();
        let eager = op.rounding() == Rounding::Eager;
        match (op.function(), op.clamp()) {
            (Function::Silu { alpha: 1.0 }, Clamp::None) if !eager => self.each(s, Plain),
            (Function::Silu { alpha }, clamp) => {
                let formula = Silu {
                    alpha,
                    clamp,
                    offset: op.up_offset(),
                    eager,
                };
                match formula.only_clamps().filter(|&limit| {
                    let same = T::from_f32(limit).to_f32() == limit;
                    same && limit <= HIGHEST && op.layout() == Layout::Concatenated
                }) {
                    Some(limit) => self.clamped(s, limit, formula),
                    None => self.each(s, formula),
                }
            }
            (Function::FatRelu { threshold }, _) => self.each(s, FatRelu { threshold }),
            (Function::Gelu, _) => self.mended(s, Gelu, eager),
            (Function::GeluTanh, _) => self.mended(s, GeluTanh, eager),
            (Function::Situ { beta, up_bound }, _) => {
                self.mended(s, Situ { beta, up_bound }, eager);
            }
        }
    }
}

impl<T: Lanes, O: Output<T>> Piece<'_, T, O> {
    #[inline(always)]
    fn each<S: Simd, F: Formula<T>>(&self, s: S, formula: F) {
        let lead = self.output.lead(self.from.range().start);
        let mut store = Store {
            output: self.output,
            formula,
            of: std::marker::PhantomData,
        };
        self.from.each(s, lead, &mut store);
    }

    #[inline(always)]
    fn mended<S: Simd, F: Approximate>(&self, s: S, function: F, eager: bool) {
        let mut mended = Mended {
            piece: self,
            function,
            eager,
        };
        let lead = self.output.lead(self.from.range().start);
        self.from.each(s, lead, &mut mended);
    }
}

/// Stores what a formula gives.
struct Store<O, F, T> {
    output: O,
    formula: F,
    of: std::marker::PhantomData<T>,
}

impl<S: Simd, T: Lanes, O: Output<T>, F: Formula<T>> Visit<S> for Store<O, F, T> {
    #[inline(always)]
    fn visit(&mut self, s: S, j: usize, count: usize, gates: [S::F; 2], ups: [S::F; 2]) {
        let f = self.formula;
        let y = [f.of(s, gates[0], ups[0]), f.of(s, gates[1], ups[1])];
        // SAFETY: the columns are the piece's own.
        unsafe { self.output.store(s, j, y, count) }
    }
}
