use std::time::{Duration, Instant};

use crate::failure::Result;

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

/// The least time of a sample: what starting and waiting cost is then a small part of it.
const SAMPLE: Duration = Duration::from_millis(2);
const LEAST_SAMPLES: usize = 5;
const MOST_BATCH: usize = 512;

/// Times `passes(n)`, which runs n passes and waits for them, for about `budget`. The first
/// `warm_up` passes and those that find the size of a batch are not counted.
pub fn time(
    budget: Duration,
    warm_up: usize,
    mut passes: impl FnMut(usize) -> Result<()>,
) -> Result<Timing> {
    passes(warm_up.max(1))?;
    let mut batch = 1;
    loop {
        let start = Instant::now();
        passes(batch)?;
        if start.elapsed() >= SAMPLE || batch == MOST_BATCH {
            break;
        }
        batch *= 2;
    }
    let mut samples = Vec::new();
    let begin = Instant::now();
    while samples.len() < LEAST_SAMPLES || begin.elapsed() < budget {
        let start = Instant::now();
        passes(batch)?;
        samples.push(start.elapsed().as_secs_f64() / batch as f64);
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
    use super::*;

    #[test]
    fn the_spread_surrounds_the_median_and_a_batch_fills_its_time() {
        let mut ran = 0;
        let pass = Duration::from_micros(100);
        let timing = time(Duration::from_millis(20), 3, |n| {
            ran += n;
            std::thread::sleep(pass * n as u32);
            Ok(())
        })
        .unwrap();
        assert!(timing.low <= timing.median && timing.median <= timing.high);
        assert!(timing.median >= pass.as_secs_f64(), "{timing:?}");
        assert!(timing.batch > 1 && ran >= 3 + LEAST_SAMPLES * timing.batch);
    }

    #[test]
    fn a_failure_ends_it() {
        let fails = |_| Err(crate::failure::Failure::Check("no".to_owned()));
        assert!(time(Duration::ZERO, 0, fails).is_err());
    }
}
