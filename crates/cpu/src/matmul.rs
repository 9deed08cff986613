//! y = x · wᵀ over packed panels: [T, K] by [N, K] to [T, N].
//!
//! ## Method
//! 1. Weights are packed once into panels of 16 outputs, in the width that they are stored in: see
//!    [`crate::weight`].
//! 2. A [`plan`] cuts rows into chunks that stay in the caches and panels into tasks.
//! 3. [`input`] widens a chunk's rows to f32 and lays them out as they will be read: block of k by
//!    block, tile of rows by tile.
//! 4. A task takes some panels for all rows of the chunk. The [`micro_kernel`] sums MR rows by NR
//!    outputs at a time in registers, with weights decoded ([`decode`]) as they come or a block at a
//!    time.
//!    Where there is a matrix unit for it, [`matrix`] multiplies tiles instead.
//! 5. An [`Epilogue`] takes the task's sums: rounded, or rounded and activated.
//!
//! An output is summed over k in order, block by block, and then rounded once, whatever the number of
//! rows, threads and lanes; so its bits depend on its own row and weights alone. A matrix unit has an
//! order of its own, of which the same holds.

use std::ops::Range;

use crate::simd::{self, LANES};
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
use micro_kernel::Multiply;
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
    let k = weight.shape().k;
    let chunks = Tiles::new(x.rows(), plan.chunk);
    let needed = plan.chunk.min(x.rows()) * k;
    if scratch.len() < needed {
        scratch.resize(needed, 0.0);
    }
    for (first_row, rows) in (0..chunks.count).map(|c| chunks.get(c)) {
        let tiles = Tiles::new(rows, plan.mr);
        let task = Task {
            plan,
            x: Packed::new(plan.set, x, first_row, tiles, &mut scratch[..rows * k]),
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

/// The panels' matmuls with a chunk of rows.
struct Task<'a> {
    plan: &'a MatmulPlan,
    x: Packed<'a>,
    first_row: usize,
    weight: &'a PackedWeight,
    epilogue: &'a dyn Epilogue,
}

impl Task<'_> {
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
        unsafe { simd::dispatch(self.plan.set, multiply) };
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
