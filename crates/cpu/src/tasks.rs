//! Work cut into tasks: for the rayon pool that a call is made from, or for this process's team where
//! the caller is in none.

use std::fmt;
use std::ops::Range;

use rayon::prelude::*;
use swiglu_core::RowLayout;

use crate::simd;

mod team;

use team::Team;

/// Outputs that one task computes at the most: a multiple of every quantization's group.
const TASK: usize = 8 * 1024;

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

/// Calls `task` with each number below `count`: on this thread, on those of the pool that it is in, or
/// on this one and the team's. Where another call has the team, rayon's global pool takes it.
///
/// Everything that runs in parallel comes through here, and the task is no type parameter, so that
/// rayon's machinery is compiled once.
pub(crate) fn for_each(count: usize, inline: bool, task: &(dyn Fn(usize) + Sync)) {
    if inline || count < 2 {
        return (0..count).for_each(task);
    }
    let in_a_pool = rayon::current_thread_index().is_some();
    // Asked for outside of pools only, as its size is that of the global one.
    let helped = !in_a_pool && Team::of_process().is_some_and(|team| team.run(count, task));
    if !helped {
        (0..count).into_par_iter().for_each(task);
    }
}

/// Which of the threads that run a call's tasks this one is: below how many rayon says there are.
pub(crate) fn thread_index() -> usize {
    let of_pool = || rayon::current_thread_index().unwrap_or(0);
    team::member().unwrap_or_else(of_pool)
}

/// How the rows of an elementwise operation are cut into tasks: several whole rows if they are short,
/// parts of one if they are long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Split {
    /// Columns of a task.
    pub(crate) columns: usize,
    /// Rows of a task.
    pub(crate) rows: usize,
    /// Tasks side by side in a row.
    pub(crate) parts: usize,
    /// How many there are.
    pub(crate) tasks: usize,
    /// Whether the caller's thread runs all of them.
    pub(crate) inline: bool,
}

impl Split {
    /// The tasks of `rows` by `d` outputs, d at least 1, of which up to `inline` stay on the caller's
    /// thread.
    pub(crate) fn new([rows, d]: [usize; 2], inline: usize) -> Self {
        let columns = d.min(TASK);
        let height = TASK / columns;
        let parts = d.div_ceil(columns);
        Self {
            columns,
            rows: height,
            parts,
            tasks: rows.div_ceil(height) * parts,
            inline: rows * d <= inline,
        }
    }

    /// Calls `work` with a row and a range of its columns until all of `output` is covered. Where it
    /// stores past the caches (`streamed`), each task makes that visible to other threads.
    pub(crate) fn run(
        &self,
        output: &RowLayout,
        streamed: bool,
        work: &(dyn Fn(usize, Range<usize>) + Sync),
    ) {
        for_each(self.tasks, self.inline, &|task| {
            let start = task % self.parts * self.columns;
            let first = task / self.parts * self.rows;
            for row in first..output.rows.min(first + self.rows) {
                work(row, start..output.cols.min(start + self.columns));
            }
            // After each row it would take a third of the time.
            if streamed {
                simd::fence();
            }
        });
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { columns, rows, .. } = self;
        match self.tasks {
            1 => f.write_str("1 task")?,
            tasks => write!(f, "{tasks} tasks of {rows} x {columns}")?,
        }
        f.write_str(if self.inline {
            " on the caller's thread"
        } else {
            " in the pool"
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::*;

    #[test]
    fn short_rows_share_a_task_and_long_ones_are_cut() {
        let split = |rows, d| Split::new([rows, d], 100);
        let short = split(800, 10);
        assert_eq!((short.columns, short.rows, short.tasks), (10, TASK / 10, 1));
        let long = split(3, TASK + 1);
        assert_eq!((long.columns, long.rows, long.tasks), (TASK, 1, 6));
        assert!(split(10, 10).inline && !split(10, 11).inline);
        assert_eq!(split(0, 7).tasks, 0);
        assert_eq!(long.to_string(), "6 tasks of 1 x 8192 in the pool");
        assert_eq!(split(2, 3).to_string(), "1 task on the caller's thread");
    }

    #[test]
    fn every_column_is_some_tasks_once() {
        for (rows, d) in [(1, 1), (700, 129), (3, 40_001), (2, TASK), (0, 5)] {
            for inline in [0, usize::MAX] {
                let seen: Vec<_> = (0..rows * d).map(|_| AtomicU8::new(0)).collect();
                let layout = RowLayout::contiguous(rows, d);
                Split::new([rows, d], inline).run(&layout, false, &|row, range| {
                    for column in range {
                        seen[row * d + column].fetch_add(1, Ordering::Relaxed);
                    }
                });
                assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 1));
            }
        }
    }
}
