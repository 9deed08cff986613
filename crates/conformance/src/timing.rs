//! The timer of the workspace's benchmarks.
//!
//! ## Method
//! 1. Some passes run uncounted: caches, clocks and pages are then as they stay.
//! 2. A batch is the number of passes, doubled from one, that takes at least 2 ms: what starting
//!    and waiting cost is then a small part of it. A sample is the time of a batch over its passes.
//! 3. Samples are taken until the budget is used up, at least five. Their median and the tenths
//!    from either end are told: one that something disturbed moves neither.

use std::time::{Duration, Instant};

/// How long passes took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// The median of the samples, in seconds a pass.
    pub median: f64,
    /// A tenth of the samples is below.
    pub low: f64,
    /// A tenth of the samples is above.
    pub high: f64,
    /// Passes that a sample enqueues before it waits.
    pub batch: usize,
}

const SAMPLE: Duration = Duration::from_millis(2);
const LEAST_SAMPLES: usize = 5;
const MOST_BATCH: usize = 512;

/// Times `passes(n)`, which runs n passes and waits for them, for about `budget`. The first
/// `warm_up` passes, at least one, and those that find the size of a batch are not counted.
///
/// ```
/// use std::time::Duration;
/// use swiglu_conformance::timing::time;
/// let mut sum = 0.0;
/// let timing = time(Duration::from_millis(5), 10, |passes| {
///     for _ in 0..passes {
///         sum += (0..1000).map(f64::from).map(f64::sqrt).sum::<f64>();
///     }
///     Ok::<_, std::convert::Infallible>(())
/// });
/// let Ok(timing) = timing;
/// assert!(timing.low <= timing.median && timing.median <= timing.high);
/// ```
///
/// # Errors
/// The first that `passes` returns.
pub fn time<E>(
    budget: Duration,
    warm_up: usize,
    passes: impl FnMut(usize) -> Result<(), E>,
) -> Result<Timing, E> {
    let origin = Instant::now();
    time_by(|| origin.elapsed(), budget, warm_up, passes)
}

/// As [`time`], by any clock: a test's own does not depend on what else the machine does.
fn time_by<E>(
    clock: impl Fn() -> Duration,
    budget: Duration,
    warm_up: usize,
    mut passes: impl FnMut(usize) -> Result<(), E>,
) -> Result<Timing, E> {
    passes(warm_up.max(1))?;
    let mut batch = 1;
    loop {
        let start = clock();
        passes(batch)?;
        if clock() - start >= SAMPLE || batch == MOST_BATCH {
            break;
        }
        batch *= 2;
    }
    let mut samples = Vec::new();
    let begin = clock();
    while samples.len() < LEAST_SAMPLES || clock() - begin < budget {
        let start = clock();
        passes(batch)?;
        samples.push((clock() - start).as_secs_f64() / batch as f64);
    }
    samples.sort_unstable_by(f64::total_cmp);
    let at = |tenths: usize| samples[(samples.len() - 1) * tenths / 10];
    Ok(Timing {
        median: at(5),
        low: at(1),
        high: at(9),
        batch,
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;

    use super::*;

    /// Times passes of 100 µs by a clock that only they move; a batch after `slow` others takes
    /// ten times as long. Gives the timing and the sizes of the batches.
    fn timed(budget: Duration, slow: usize) -> (Timing, Vec<usize>) {
        let now = Cell::new(Duration::ZERO);
        let mut ran = Vec::new();
        let timing = time_by(
            || now.get(),
            budget,
            3,
            |n| {
                let factor = if ran.len() == slow { 10 } else { 1 };
                ran.push(n);
                now.set(now.get() + Duration::from_micros(100) * factor * n as u32);
                Ok::<_, Infallible>(())
            },
        );
        (timing.unwrap(), ran)
    }

    #[test]
    fn a_batch_fills_its_time_and_the_samples_the_budget() {
        let (timing, ran) = timed(Duration::from_millis(32), usize::MAX);
        assert_eq!(ran[..7], [3, 1, 2, 4, 8, 16, 32], "warm-up, then doubled");
        assert_eq!(ran[7..], [32; 10], "3.2 ms each");
        assert_eq!(timing.batch, 32);
        for time in [timing.low, timing.median, timing.high] {
            assert!((time - 100e-6).abs() < 1e-12, "{timing:?}");
        }
    }

    #[test]
    fn there_are_samples_without_a_budget_and_one_that_is_slow_is_not_the_median() {
        let (timing, ran) = timed(Duration::ZERO, 11);
        assert_eq!(ran.len(), 7 + LEAST_SAMPLES);
        assert!((timing.median - 100e-6).abs() < 1e-12, "{timing:?}");
    }

    #[test]
    fn a_failure_ends_it() {
        let mut calls = 0;
        let timing = time(Duration::ZERO, 0, |_| {
            calls += 1;
            Err("no")
        });
        assert_eq!((timing, calls), (Err("no"), 1));
    }
}
