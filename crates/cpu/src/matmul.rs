//! y = x · wᵀ over packed panels: [T, K] by [N, K] to [T, N].
//!
//! ## Method
//! 1. Weights are packed once into panels of 16 outputs, in the width that they are stored in: see
//!    [`crate::weight`].
//! 2. A [`plan`] cuts rows into chunks that stay in the caches and panels into tasks.
//! 3. [`input`] widens a chunk's rows to f32, or pairs up their bf16, and lays them out as they will be
//!    read: block of k by block, tile of rows by tile.
//! 4. A task takes some panels for all rows of the chunk. The [`micro_kernel`] sums MR rows by NR
//!    outputs at a time in registers, with weights decoded ([`decode`]) as they come or a block at a
//!    time.
//!    Where there is a unit for tiles, [`matrix`] multiplies these instead.
//! 5. An [`Epilogue`] takes the task's sums: rounded, or rounded and activated.
//!
//! An output is summed over k in order, block by block, and then rounded once, whatever the number of
//! rows, threads and lanes; so its bits depend on its own row and weights alone. Dot products of pairs
//! of k have an order of their own, and so have tiles, of which the same holds.

use std::ops::Range;

use crate::simd::LANES;
use crate::tasks;
use crate::weight::PackedWeight;

mod decode;
mod epilogue;
mod grouped;
mod input;
mod matrix;
mod micro_kernel;
mod plan;

use epilogue::Sums;
pub(crate) use epilogue::{Activated, Epilogue, Rounded, RouteWeights};
pub(crate) use grouped::{Group, multiply_groups};
pub(crate) use input::Input;
use input::{Packed, Tiles};
use micro_kernel::{Multiplied, Multiply};
use plan::{CHUNK, DecodeStep, LOW, PANELS};
pub(crate) use plan::{MatmulPlan, Resources};

/// Multiplies the rows of `x` by `weight`, both of the plan's shape. Layouts must have passed their
/// checks. `scratch` is memory for some rows of x; it grows to what it must hold.
pub(crate) fn multiply(
    plan: &MatmulPlan,
    x: &Input<'_>,
    weight: &PackedWeight,
    epilogue: &dyn Epilogue,
    scratch: &mut Vec<f32>,
) {
    if let DecodeStep::Tiles = plan.decode {
        return matrix::multiply(plan, x, weight, epilogue, scratch);
    }
    match plan.dots {
        true => multiply_as::<u32>(plan, x, weight, epilogue, scratch),
        false => multiply_as::<f32>(plan, x, weight, epilogue, scratch),
    }
}

fn multiply_as<X: Multiplied>(
    plan: &MatmulPlan,
    x: &Input<'_>,
    weight: &PackedWeight,
    epilogue: &dyn Epilogue,
    scratch: &mut Vec<f32>,
) {
    let terms = X::count(weight.shape().k);
    let chunks = Tiles::new(x.rows(), plan.chunk);
    let scratch: &mut [X] = room(scratch, plan.chunk.min(x.rows()) * terms);
    for (first_row, rows) in (0..chunks.count).map(|c| chunks.get(c)) {
        let tiles = Tiles::new(rows, plan.mr);
        let task = Task {
            plan,
            x: Packed::new(plan.set, x, first_row, tiles, &mut scratch[..rows * terms]),
            first_row,
            weight,
            epilogue,
        };
        let groups = weight.shape().panels().div_ceil(plan.panels_per_task);
        tasks::for_each(groups, plan.inline, &|group| {
            let first = group * plan.panels_per_task;
            let panels = first..weight.shape().panels().min(first + plan.panels_per_task);
            task.run_some(panels);
        });
    }
}

/// The scratch memory, grown to so many terms.
fn room<X: Multiplied>(scratch: &mut Vec<f32>, terms: usize) -> &mut [X] {
    const { assert!(size_of::<X>() == size_of::<f32>()) };
    if scratch.len() < terms {
        scratch.resize(terms, 0.0);
    }
    bytemuck::cast_slice_mut(scratch)
}

/// The panels' matmuls with a chunk of rows.
struct Task<'a, X> {
    plan: &'a MatmulPlan,
    x: Packed<'a, X>,
    first_row: usize,
    weight: &'a PackedWeight,
    epilogue: &'a dyn Epilogue,
}

impl<X: Multiplied> Task<'_, X> {
    /// Some panels, on one thread: at most as many as the plan of so many rows says.
    fn run_some(&self, panels: Range<usize>) {
        if self.x.tiles().rows <= LOW {
            self.run::<{ PANELS[0] * LOW * LANES }>(panels);
        } else {
            self.run::<{ PANELS[1] * CHUNK * LANES }>(panels);
        }
    }

    /// Some panels, on one thread; N is room for their sums.
    fn run<const N: usize>(&self, panels: Range<usize>) {
        let mut sums = [0.0_f32; N];
        let sums = &mut sums[..panels.len() * self.x.tiles().rows * LANES];
        let multiply = Multiply {
            x: &self.x,
            weight: self.weight,
            decode: self.plan.decode,
            panels: panels.clone(),
            sums,
        };
        // SAFETY: a plan's set is one that the machine has; so below.
        unsafe { X::multiply(self.plan.set, multiply) };
        let sums = Sums {
            weight: self.weight,
            first_panel: panels.start,
            panels: panels.len(),
            first_row: self.first_row,
            rows: self.x.tiles().rows,
            stride: self.x.tiles().rows,
            values: sums,
        };
        // SAFETY: every task has panels of its own, and chunks of rows come one after another; the
        // set is as above.
        unsafe { self.epilogue.store(self.plan.set, &sums) };
    }
}
