//! A matmul on a matrix unit: x in bf16 by weights in bf16 or FP8.
//!
//! ## Method
//! 1. Up to [`PASS`] rows of x are copied into tiles of 16 rows by 32 k, those of 32 rows side by side
//!    for each step of 32 k, filled up with zeros.
//! 2. A task takes some panels for a chunk of rows. It goes through k in runs of [`RUN`] steps, in each of them
//!    through its panels two by two, and for these through the rows, 32 at a time: two by two tiles of
//!    sums stay in the unit over a run, and wait in memory for the next. With no more than 32 rows it
//!    reads two panels from end to end before the next two, as memory likes best.
//! 3. A panel of bf16 is a column of tiles as it is stored. Codes are decoded into such a column, a run
//!    at a time into the near caches, once for all rows; so are the last k where they fill no tile.
//! 4. Scales that are powers of two are multiplied into the decoded numbers, which stay exact. Other
//!    scales multiply sums in f32: a run is then a block of scales, summed by itself.
//! 5. What the next two panels hold of the run is asked for meanwhile: each step its share, or, where
//!    panels are decoded, each line of codes its fellow. With few rows both do half of it, as memory
//!    would rest while the unit works.
//!
//! A sum's order is that of the steps of k: neither rows, nor threads, nor runs have a say in it.

use std::ops::Range;

use super::epilogue::{Epilogue, Sums};
use super::input::Input;
use super::plan::MatmulPlan;
use crate::simd;
use crate::simd::tiles::{DEPTH, Ready, SIDE, SIDES, TILE, TileProduct};
use crate::tasks::{self, Shared};
use crate::weight::{PackedWeight, PanelFormat};

mod fill;

use fill::{AddScaled, Fill, LINE_BYTES};

/// Most steps of a run: two panels of it and 32 rows are 128 KiB, beside as much that is on its way.
const RUN: usize = 32;
/// Steps of x that one task copies.
const COPIED: usize = 32;
/// Elements of x that are copied in about the time that waking a pool takes.
const INLINE: usize = 128 * 1024;
/// Rows of two tiles.
const ROWS: usize = SIDES * SIDE;
/// Elements of f32 in a cache line.
const LINE: usize = LINE_BYTES / 4;

/// Most rows of x that are copied at a time.
const PASS: usize = 1024;

/// Where things lie in the scratch memory, in elements of f32: x, then for each thread its sums, a run
/// of two panels decoded, and the sums of a block of scales.
struct Places {
    x: usize,
    sums: usize,
    decoded: usize,
    of_scale: usize,
}

impl Places {
    fn new(plan: &MatmulPlan, rows: usize, steps: usize) -> Self {
        Self {
            x: rows.min(PASS).next_multiple_of(SIDE) * steps * DEPTH / 2,
            sums: plan.panels_per_task * chunk_rows(plan) * SIDE,
            decoded: SIDES * RUN * TILE / 2,
            of_scale: SIDES * SIDES * SIDE * SIDE,
        }
    }

    const fn each_thread(&self) -> usize {
        self.sums + self.decoded + self.of_scale
    }
}

/// Rows of a task: the plan's chunk, in whole tiles side by side.
const fn chunk_rows(plan: &MatmulPlan) -> usize {
    plan.chunk.next_multiple_of(ROWS)
}

/// As [`super::multiply`], for a plan of tiles.
pub(super) fn multiply(
    plan: &MatmulPlan,
    x: &Input<'_>,
    weight: &PackedWeight,
    epilogue: &dyn Epilogue,
    scratch: &mut Vec<f32>,
) {
    let steps = weight.shape().k.div_ceil(DEPTH);
    let threads = if plan.inline { 1 } else { plan.threads };
    let places = Places::new(plan, x.rows(), steps);
    let needed = places.x + threads * places.each_thread() + LINE;
    if scratch.len() < needed {
        scratch.resize(needed, 0.0);
    }
    let start = scratch.as_ptr().align_offset(LINE_BYTES).min(LINE);
    let (tiles, rest) = scratch[start..].split_at_mut(places.x);
    let rest = Shared(rest.as_mut_ptr());
    for pass in (0..x.rows()).step_by(PASS) {
        let rows = PASS.min(x.rows() - pass);
        copy(x, (pass, rows), tiles);
        let tiles: &[u16] = bytemuck::cast_slice(tiles);
        let groups = weight.shape().panels().div_ceil(plan.panels_per_task);
        let chunks = rows.div_ceil(chunk_rows(plan));
        // The chunks of some panels one after another, so that a thread has their weights still near.
        tasks::for_each(groups * chunks, plan.inline, &|task| {
            let (group, first_row) = (task / chunks, task % chunks * chunk_rows(plan));
            // A thread runs one task at a time, and has a number of its own.
            let thread = match plan.inline {
                true => 0,
                false => tasks::thread_index(),
            };
            assert!(thread < threads, "a plan knows the threads of its pool");
            // SAFETY: each thread has so many elements of its own.
            let own = unsafe {
                let own = rest.get().add(thread * places.each_thread());
                std::slice::from_raw_parts_mut(own, places.each_thread())
            };
            let (sums, own) = own.split_at_mut(places.sums);
            let (decoded, of_scale) = own.split_at_mut(places.decoded);
            let room = Room {
                decoded: bytemuck::cast_slice_mut(decoded),
                of_scale,
            };
            let task = Task {
                plan,
                x: &tiles[first_row * steps * DEPTH..],
                rows: chunk_rows(plan).min(rows - first_row),
                first_row: pass + first_row,
                steps,
                weight,
            };
            let first = group * plan.panels_per_task;
            let panels = first..weight.shape().panels().min(first + plan.panels_per_task);
            task.run(panels, sums, room, epilogue);
        });
    }
}

/// Copies rows of x into tiles.
fn copy(x: &Input<'_>, (first_row, rows): (usize, usize), to: &mut [f32]) {
    let to: &mut [u16] = bytemuck::cast_slice_mut(to);
    let k = x.k();
    let steps = k.div_ceil(DEPTH);
    let parts = steps.div_ceil(COPIED);
    let blocks = rows.div_ceil(ROWS);
    let to = Shared(to.as_mut_ptr());
    tasks::for_each(blocks * parts, rows * k <= INLINE, &|part| {
        let (block, first) = (part / parts, part % parts * COPIED);
        let row = block * ROWS;
        let tiles = (rows - row).div_ceil(SIDE).min(SIDES);
        let last = steps.min(first + COPIED);
        for r in 0..tiles * SIDE {
            let from = match row + r < rows {
                true => x.bits(first_row + row + r, first * DEPTH..k.min(last * DEPTH)),
                false => &[],
            };
            let (whole, rest) = from.as_chunks::<DEPTH>();
            for step in first..last {
                let mut line = [0; DEPTH];
                match whole.get(step - first) {
                    Some(whole) => line = *whole,
                    None if step - first == whole.len() => line[..rest.len()].copy_from_slice(rest),
                    None => {}
                }
                // SAFETY: a block's rows of a step lie where no other's do.
                unsafe {
                    let at = row * steps * DEPTH + step * tiles * TILE + r * DEPTH;
                    to.get().add(at).cast::<[u16; DEPTH]>().write(line);
                }
            }
        }
    });
}

/// The panels' matmuls with a chunk of rows.
struct Task<'a> {
    plan: &'a MatmulPlan,
    x: &'a [u16],
    rows: usize,
    first_row: usize,
    /// Of all k.
    steps: usize,
    weight: &'a PackedWeight,
}

/// A thread's own memory beside sums.
struct Room<'a> {
    /// For each of two panels the tiles of a run.
    decoded: &'a mut [u16],
    /// For each of two panels two tiles of sums.
    of_scale: &'a mut [f32],
}

/// How a run's panels come to the unit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Weights {
    /// As they are stored.
    Stored,
    /// Decoded or filled up.
    Decoded,
    /// Decoded, and the sums times the scales of this block.
    Scaled(usize),
}

impl Task<'_> {
    /// Some panels, on one thread.
    fn run(
        &self,
        panels: Range<usize>,
        sums: &mut [f32],
        mut room: Room<'_>,
        epilogue: &dyn Epilogue,
    ) {
        // SAFETY: a plan of tiles has a set with a matrix unit that the machine has.
        let unit = unsafe { Ready::new(self.plan.set) };
        let mut next = Some((panels.start, 0));
        while let Some((first, start)) = next {
            let (steps, weights) = self.run_from(start);
            next = self.after(&panels, first, &steps);
            let call = Call {
                pair: first..panels.end.min(first + SIDES),
                steps,
                weights,
                // After the last likely this thread's next task.
                later: next.unwrap_or((panels.end, 0)),
            };
            let at = (first - panels.start) * self.stride() * SIDE;
            self.multiply(&unit, &call, &mut sums[at..], &mut room);
        }
        drop(unit);
        let sums = Sums {
            weight: self.weight,
            first_panel: panels.start,
            panels: panels.len(),
            first_row: self.first_row,
            rows: self.rows,
            stride: self.stride(),
            values: sums,
        };
        // SAFETY: every task has panels of its own, and chunks of rows come one after another; the
        // set is one that the machine has.
        unsafe { epilogue.store(self.plan.set, &sums) };
    }

    /// The first panel and the first step of the run that follows one.
    fn after(
        &self,
        panels: &Range<usize>,
        first: usize,
        steps: &Range<usize>,
    ) -> Option<(usize, usize)> {
        let pair = first + SIDES;
        let (more_panels, more_steps) = (pair < panels.end, steps.end < self.steps);
        if self.rows <= ROWS {
            match more_steps {
                true => Some((first, steps.end)),
                false => more_panels.then_some((pair, 0)),
            }
        } else {
            match more_panels {
                true => Some((pair, steps.start)),
                false => more_steps.then_some((panels.start, steps.end)),
            }
        }
    }

    /// Rows of sums of a panel.
    const fn stride(&self) -> usize {
        self.rows.next_multiple_of(SIDE)
    }

    /// The run that begins with a step.
    fn run_from(&self, start: usize) -> (Range<usize>, Weights) {
        let shape = self.weight.shape();
        let whole = shape.k / DEPTH;
        let end = self.steps.min(start + RUN);
        match shape.format {
            PanelFormat::E4M3 | PanelFormat::Fp4 if !self.weight.scales_fold() => {
                let block = start * DEPTH / shape.scale_block();
                let scaled = ((block + 1) * shape.scale_block()).div_ceil(DEPTH);
                (start..end.min(scaled), Weights::Scaled(block))
            }
            PanelFormat::E4M3 | PanelFormat::Fp4 => (start..end, Weights::Decoded),
            _ if start < whole => (start..end.min(whole), Weights::Stored),
            _ => (start..end, Weights::Decoded),
        }
    }

    /// A run of one or two panels with all rows.
    fn multiply(&self, unit: &Ready, call: &Call, sums: &mut [f32], room: &mut Room<'_>) {
        let Call {
            pair,
            steps,
            weights,
            ..
        } = call;
        let first = pair.start;
        let w: [*const u16; SIDES] = std::array::from_fn(|p| {
            let panel = pair.end.min(first + p + 1) - 1;
            if *weights == Weights::Stored {
                let bytes = &self.weight.panel(panel)[steps.start * TILE * 2..];
                return bytes.as_ptr().cast();
            }
            if panel == first + p {
                let fill = Fill {
                    weight: self.weight,
                    panel,
                    steps: steps.clone(),
                    folds: *weights == Weights::Decoded,
                    later: self.later_panel(call, p),
                    half: self.rows <= ROWS,
                    to: &mut room.decoded[p * RUN * TILE..][..steps.len() * TILE],
                };
                // SAFETY: the plan's set is one that the machine has.
                unsafe { simd::dispatch(self.plan.set, fill) };
            }
            room.decoded[(panel - first) * RUN * TILE..].as_ptr()
        });
        let stride = self.stride();
        let blocks = self.rows.div_ceil(ROWS);
        for block in 0..blocks {
            let row = block * ROWS;
            let tiles = (stride - row).div_ceil(SIDE).min(SIDES);
            let at = row * self.steps * DEPTH + steps.start * tiles * TILE;
            let totals: [*mut f32; SIDES] = std::array::from_fn(|p| {
                let panel = p.min(pair.len() - 1);
                sums[(panel * stride + row) * SIDE..].as_mut_ptr()
            });
            let (later, lines) = self.later(call, block, blocks);
            let mut product = TileProduct {
                rows: tiles,
                panels: pair.len(),
                x: self.x[at..].as_ptr(),
                w,
                sums: totals,
                steps: steps.len(),
                begins: steps.start == 0,
                x_ahead: block > 0,
                later,
                lines,
            };
            if let Weights::Scaled(scales) = *weights {
                let size = tiles * SIDE * SIDE;
                let (a, b) = room.of_scale.split_at_mut(size);
                product.sums = [a.as_mut_ptr(), b.as_mut_ptr()];
                product.begins = true;
                // SAFETY: as below, into memory of this thread's own.
                unsafe { unit.multiply(&product) };
                for (p, from) in [a, b].into_iter().enumerate().take(pair.len()) {
                    let add = AddScaled {
                        scales: self.weight.lane_scales(first + p, scales),
                        from: &from[..size],
                        to: &mut sums[(p * stride + row) * SIDE..][..size],
                        begins: steps.start == 0,
                    };
                    // SAFETY: as above.
                    unsafe { simd::dispatch(self.plan.set, add) };
                }
            } else {
                // SAFETY: x has the block's tiles of all steps, each of w those of the run, and sums
                // the block's rows of both panels.
                unsafe { unit.multiply(&product) };
            }
        }
    }

    /// Where the panel begins that is needed after one of a call's; none after the last.
    fn later_panel(&self, call: &Call, p: usize) -> Option<*const u8> {
        let (first, step) = call.later;
        let panels = self.weight.shape().panels();
        if first >= panels {
            return None;
        }
        let panel = self.weight.panel((first + p).min(panels - 1));
        let offset = self.weight.shape().format.offset(step * DEPTH);
        Some(panel.as_ptr().wrapping_add(offset))
    }

    /// A block's share of that: where it begins in each panel, and how many lines a step. What is
    /// decoded was asked for by then, of codes with few rows the first half.
    fn later(&self, call: &Call, block: usize, blocks: usize) -> ([*const u8; SIDES], usize) {
        let stored = call.weights == Weights::Stored;
        let of_codes = self.weight.shape().format == PanelFormat::E4M3 && self.rows <= ROWS;
        let (lines, skipped) = match (stored, of_codes) {
            (true, _) => {
                let lines = (TILE * 2 / LINE_BYTES).div_ceil(blocks);
                (lines, block * lines)
            }
            (false, true) => (TILE / LINE_BYTES / 2, TILE / LINE_BYTES / 2),
            (false, false) => (0, 0),
        };
        match [0, 1].map(|p| self.later_panel(call, p)) {
            [Some(a), Some(b)] if lines > 0 && skipped * LINE_BYTES < TILE * 2 => {
                let skipped = skipped * LINE_BYTES * call.steps.len();
                ([a, b].map(|p| p.wrapping_add(skipped)), lines)
            }
            _ => ([std::ptr::null(); SIDES], 0),
        }
    }
}

/// What a run of a pair of panels is.
struct Call {
    pair: Range<usize>,
    steps: Range<usize>,
    weights: Weights,
    /// The panel and the step that follow.
    later: (usize, usize),
}
