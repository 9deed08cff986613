//! Matmuls of several weights of one shape, each with rows of its own, as one.
//!
//! ## Method
//! 1. A group is a weight with its rows. As many groups as have [`CHUNK`] rows together are a *wave*:
//!    their rows are packed, a row that is a group by itself once for all groups that it is in.
//! 2. A wave is one parallel region of tasks, each some panels of one group: a group's weights are
//!    read once, and no thread waits between groups.
//! 3. Each group is multiplied as its plan says, so with the bits of a matmul by itself. What tiles
//!    multiply, and what has more rows than a wave, is one.

use super::epilogue::{Epilogue, FromRow};
use super::input::{INLINE, Input, Packed, Tiles};
use super::plan::{CHUNK, DecodeStep, MatmulPlan, PANELS, Resources};
use super::{Multiplied, Task, multiply, room};
use crate::tasks::{self, Shared};
use crate::weight::PackedWeight;

/// A weight and the rows that it multiplies.
#[derive(Clone, Copy)]
pub(crate) struct Group<'a> {
    pub(crate) x: Input<'a>,
    pub(crate) weight: &'a PackedWeight,
    /// Which row of the results the first is.
    pub(crate) first_row: usize,
}

/// Most groups of a wave.
const GROUPS: usize = 64;

/// A group that waits for its wave.
#[derive(Clone, Copy)]
struct Waiting<'a> {
    group: Group<'a>,
    plan: MatmulPlan,
    /// Where its rows are packed, in rows.
    at: usize,
    /// Whether another group's are the same.
    again: bool,
}

/// Multiplies the rows of all groups, whose weights have one shape. Layouts must have passed their
/// checks. `scratch` grows to what it must hold.
pub(crate) fn multiply_groups<'a>(
    resources: &Resources,
    groups: impl Iterator<Item = Group<'a>>,
    epilogue: &dyn Epilogue,
    scratch: &mut Vec<f32>,
) {
    let mut wave = Wave {
        groups: [None; GROUPS],
        count: 0,
        rows: 0,
    };
    for group in groups {
        let (x, weight) = (&group.x, group.weight);
        let plan = MatmulPlan::new(resources, x.rows(), x.float(), weight.shape());
        if plan.decode == DecodeStep::Tiles || x.rows() > CHUNK {
            let first_row = group.first_row;
            let epilogue = FromRow {
                first_row,
                epilogue,
            };
            multiply(&plan, x, weight, &epilogue, scratch);
            continue;
        }
        if wave.count == GROUPS || wave.rows + x.rows() > CHUNK {
            wave.run(resources, epilogue, scratch);
        }
        wave.push(group, plan);
    }
    wave.run(resources, epilogue, scratch);
}

struct Wave<'a> {
    groups: [Option<Waiting<'a>>; GROUPS],
    count: usize,
    /// Rows to be packed.
    rows: usize,
}

impl<'a> Wave<'a> {
    fn push(&mut self, group: Group<'a>, plan: MatmulPlan) {
        let token = |x: &Input<'_>| (x.rows() == 1).then(|| x.source(0));
        let same = |other: &&Waiting<'_>| {
            token(&group.x).is_some() && token(&group.x) == token(&other.group.x)
        };
        let found = self.groups[..self.count].iter().flatten().find(same);
        let (at, again) = found.map_or((self.rows, false), |other| (other.at, true));
        self.groups[self.count] = Some(Waiting {
            group,
            plan,
            at,
            again,
        });
        self.count += 1;
        if !again {
            self.rows += group.x.rows();
        }
    }

    /// Multiplies all groups, of which there are none then.
    fn run(&mut self, resources: &Resources, epilogue: &dyn Epilogue, scratch: &mut Vec<f32>) {
        match self.groups[0] {
            Some(first) if first.plan.dots => self.run_as::<u32>(resources, epilogue, scratch),
            _ => self.run_as::<f32>(resources, epilogue, scratch),
        }
        (self.count, self.rows) = (0, 0);
    }

    fn run_as<X: Multiplied>(
        &self,
        resources: &Resources,
        epilogue: &dyn Epilogue,
        scratch: &mut Vec<f32>,
    ) {
        let waiting = &self.groups[..self.count];
        let Some(Some(first)) = waiting.first() else {
            return;
        };
        let (shape, k) = (first.group.weight.shape(), first.group.x.k());
        let terms = X::count(k);
        let scratch: &mut [X] = room(scratch, self.rows * terms);
        let all: usize = waiting.iter().flatten().map(|w| w.group.x.rows()).sum();
        let inline = all * shape.n * k <= resources.settings.inline_multiplications;
        let to = Shared(scratch.as_mut_ptr());
        let inline_rows = inline || waiting.len() == 1 || self.rows * terms <= INLINE;
        tasks::for_each(waiting.len(), inline_rows, &|at| {
            if let Some(one) = waiting[at].filter(|one| !one.again) {
                let rows = one.group.x.rows();
                // SAFETY: groups have parts of their own, which lie within the scratch memory.
                let to = unsafe {
                    let to = to.get().add(one.at * terms);
                    std::slice::from_raw_parts_mut(to, rows * terms)
                };
                let tiles = Tiles::new(rows, one.plan.mr);
                Packed::new(one.plan.set, &one.group.x, 0, tiles, to);
            }
        });
        let packed: &[X] = scratch;
        // The same for all, and enough for sums of few rows and of many.
        let most = PANELS[0];
        let share = shape.panels() * waiting.len() / (4 * resources.threads.max(1));
        let panels = share.clamp(2, most) / 2 * 2;
        let parts = shape.panels().div_ceil(panels);
        tasks::for_each(waiting.len() * parts, inline, &|task| {
            if let Some(one) = &waiting[task / parts] {
                let rows = one.group.x.rows();
                let values = &packed[one.at * terms..][..rows * terms];
                let task_of_group = Task {
                    plan: &one.plan,
                    x: Packed::again(values, Tiles::new(rows, one.plan.mr)),
                    first_row: one.group.first_row,
                    weight: one.group.weight,
                    epilogue,
                };
                let first = task % parts * panels;
                task_of_group.run_some(first..shape.panels().min(first + panels));
            }
        });
    }
}
