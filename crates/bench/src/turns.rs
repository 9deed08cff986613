//! Cases that take turns, so that what disturbs the machine disturbs all of them alike.

use std::convert::Infallible;
use std::time::Duration;

use swiglu_conformance::timing;

/// Runs so many passes of a case and waits for them.
pub type Passes<'a> = Box<dyn FnMut(usize) + 'a>;

/// Seconds a pass of each case, in their order: medians over `rounds`, each of which times all cases
/// one after another, for about `budget` a case.
pub fn in_turn(rounds: usize, budget: Duration, cases: &mut [Passes<'_>]) -> Vec<f64> {
    let mut seconds = vec![Vec::with_capacity(rounds); cases.len()];
    for _ in 0..rounds {
        for (seconds, passes) in seconds.iter_mut().zip(&mut *cases) {
            let run = |n| {
                passes(n);
                Ok::<_, Infallible>(())
            };
            let Ok(timing) = timing::time(budget, 1, run);
            seconds.push(timing.median);
        }
    }
    seconds.into_iter().map(median).collect()
}

/// The middle one of `values`, of an even number the upper of the two; NaN if there are none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_and_of_nothing_not_a_number() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 3.0);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn every_case_gets_its_own_time() {
        let mut calls = [0, 0];
        let [a, b] = &mut calls;
        let mut cases: [Passes<'_>; 2] = [Box::new(|n| *a += n), Box::new(|n| *b += n)];
        let seconds = in_turn(2, Duration::ZERO, &mut cases);
        assert_eq!(seconds.len(), 2);
        assert!(seconds.iter().all(|s| s.is_finite()));
        drop(cases);
        assert!(calls.iter().all(|&n| n > 0), "{calls:?}");
    }
}
