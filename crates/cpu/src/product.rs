//! y = x · wᵀ over packed panels. An output is summed over k in order, block by block, and then
//! rounded once, whatever the number of rows, threads and lanes; so its bits depend on its own row
//! and weights alone.

use rayon::prelude::*;
use swiglu_core::RowLayout;

use crate::InstructionSet;
use crate::activation::Lanes;
use crate::simd::{self, LANES};
use crate::weight::PackedWeight;

mod decode;
mod input;
mod output;
mod tile;

use input::{Packed, Tiles};
use output::Totals;
pub(crate) use output::{Activated, Output, Rounded};
use tile::{MostRows, Multiply};

/// Most rows that are multiplied at a time. This bounds the memory for their widened copy, and a
/// block of k of it stays in the second-level cache.
const CHUNK: usize = 256;
/// Rows up to which a task reads its panels from end to end: their copy is in the cache anyhow.
const LOW: usize = 32;
/// Most panels of a task, with few rows and with many: each block of k is read once for so many.
const PANELS: [usize; 2] = [4, 8];

/// Products whose operations one thread does in about the time that waking a pool takes.
const INLINE: usize = 64 * 1024;

/// Multiplies the rows of `x` by `weight`: \[T, K\] to \[T, N\]. Layouts must have passed their
/// checks. `widened` is memory for some rows as f32; it grows to what it must hold.
pub(crate) fn multiply<T: Lanes, O: Output>(
    set: InstructionSet,
    (x, layout): (&[T], RowLayout),
    weight: &PackedWeight,
    output: &O,
    widened: &mut Vec<f32>,
) {
    let [n, k] = weight.shape();
    // SAFETY: `set` is only given out for machines that have it; so below.
    let most = unsafe { simd::dispatch(set, MostRows) };
    let small = layout.rows * n * k <= INLINE;
    let chunks = Tiles::new(layout.rows, CHUNK);
    for (first_row, rows) in (0..chunks.count).map(|c| chunks.get(c)) {
        let tiles = Tiles::new(rows, most);
        let needed = rows * k;
        if widened.len() < needed {
            widened.resize(needed, 0.0);
        }
        let task = Task {
            set,
            x: Packed::new(set, (x, layout), first_row, tiles, &mut widened[..needed]),
            first_row,
            weight,
            output,
        };
        let low = rows <= LOW;
        // In pairs, for a gate to have its up, and enough tasks for threads to share.
        let share = weight.count() / (4 * rayon::current_num_threads());
        let panels = share.clamp(2, PANELS[usize::from(!low)]) / 2 * 2;
        let run = |group: usize| {
            let first = group * panels;
            let panels = first..weight.count().min(first + panels);
            if low {
                task.run::<{ PANELS[0] * LOW * LANES }>(panels);
            } else {
                task.run::<{ PANELS[1] * CHUNK * LANES }>(panels);
            }
        };
        let groups = weight.count().div_ceil(panels);
        if small {
            (0..groups).for_each(run);
        } else {
            (0..groups).into_par_iter().for_each(run);
        }
    }
}

/// The panels' products with a chunk of rows.
struct Task<'a, O> {
    set: InstructionSet,
    x: Packed<'a>,
    first_row: usize,
    weight: &'a PackedWeight,
    output: &'a O,
}

impl<O: Output> Task<'_, O> {
    /// Some panels, on one thread; N is room for their sums.
    fn run<const N: usize>(&self, panels: std::ops::Range<usize>) {
        let mut totals = [0.0_f32; N];
        let totals = &mut totals[..panels.len() * self.x.tiles().rows * LANES];
        let multiply = Multiply {
            x: &self.x,
            weight: self.weight,
            panels: panels.clone(),
            totals,
        };
        // SAFETY: as in `multiply`.
        unsafe { simd::dispatch(self.set, multiply) };
        let totals = Totals {
            weight: self.weight,
            first_panel: panels.start,
            panels: panels.len(),
            first_row: self.first_row,
            rows: self.x.tiles().rows,
            values: totals,
        };
        // SAFETY: every task has panels of its own, and chunks of rows come one after another; the
        // set is as above.
        unsafe { self.output.store(self.set, &totals) };
    }
}
