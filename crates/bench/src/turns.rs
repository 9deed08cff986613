//! Cases that take turns, so that what disturbs the machine disturbs all of them alike.
//!
//! ## Method
//! 1. A batch of a case is the number of passes, doubled from one, that takes at least 30 µs: far
//!    above the clock's step. `swiglu_conformance::timing` takes longer batches of one case after
//!    another; here most batches are one pass, so that no case finds its data in a cache because it
//!    has just run.
//! 2. A round times one batch of every case. Rounds go on for a budget a case, at least five.
//! 3. Of each case the median of its rounds is told.

use std::time::{Duration, Instant};

/// Runs so many passes of a case and waits for them.
pub type Passes<'a> = Box<dyn FnMut(usize) + 'a>;

const SAMPLE: Duration = Duration::from_micros(30);
const MOST_BATCH: usize = 1024;
const LEAST_ROUNDS: usize = 5;

/// Seconds a pass of each case, in their order: medians over rounds, which in all take about `budget`
/// for each case.
pub fn in_turn(budget: Duration, cases: &mut [Passes<'_>]) -> Vec<f64> {
    let origin = Instant::now();
    in_turn_by(|| origin.elapsed(), budget, cases)
}

/// As [`in_turn`], by any clock: a test's own does not depend on what else the machine does.
fn in_turn_by(
    clock: impl Fn() -> Duration,
    budget: Duration,
    cases: &mut [Passes<'_>],
) -> Vec<f64> {
    let mut batches = Vec::with_capacity(cases.len());
    for passes in &mut *cases {
        passes(1);
        let mut batch = 1;
        loop {
            let start = clock();
            passes(batch);
            if clock() - start >= SAMPLE || batch == MOST_BATCH {
                break;
            }
            batch *= 2;
        }
        batches.push(batch);
    }
    let budget = budget * cases.len() as u32;
    let mut seconds = vec![Vec::new(); cases.len()];
    let begin = clock();
    for round in 0.. {
        if round >= LEAST_ROUNDS && clock() - begin >= budget {
            break;
        }
        for ((passes, &batch), seconds) in cases.iter_mut().zip(&batches).zip(&mut seconds) {
            let start = clock();
            passes(batch);
            seconds.push((clock() - start).as_secs_f64() / batch as f64);
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
    use std::cell::{Cell, RefCell};

    use super::*;

    #[test]
    fn a_median_is_the_middle_and_of_nothing_not_a_number() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 3.0);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn cases_take_turns_and_each_gets_its_own_time() {
        // A pass of the first takes 10 µs, of the second 40; a disturbed one ten times as long.
        let (now, ran) = (Cell::new(0), RefCell::new(Vec::new()));
        let case = |name: char, micros: u64| -> Passes<'_> {
            let (now, ran) = (&now, &ran);
            Box::new(move |n| {
                let factor = if ran.borrow().len() == 12 { 10 } else { 1 };
                ran.borrow_mut().push((name, n));
                now.set(now.get() + micros * factor * n as u64);
            })
        };
        let mut cases = [case('a', 10), case('b', 40)];
        let clock = || Duration::from_micros(now.get());
        let seconds = in_turn_by(clock, Duration::ZERO, &mut cases);
        assert!((seconds[0] - 10e-6).abs() < 1e-12, "{seconds:?}");
        assert!((seconds[1] - 40e-6).abs() < 1e-12, "{seconds:?}");
        let ran = ran.borrow();
        let sizes = [('a', 1), ('a', 1), ('a', 2), ('a', 4), ('b', 1), ('b', 1)];
        assert_eq!(ran[..6], sizes, "the sizes of batches");
        assert_eq!(ran[6..], [('a', 4), ('b', 1)].repeat(LEAST_ROUNDS));
    }

    #[test]
    fn the_budget_makes_rounds() {
        let now = Cell::new(0);
        let count = Cell::new(0);
        let mut cases: [Passes<'_>; 1] = [Box::new(|n| {
            now.set(now.get() + 1000 * n as u64);
            count.set(count.get() + 1);
        })];
        in_turn_by(
            || Duration::from_micros(now.get()),
            Duration::from_millis(20),
            &mut cases,
        );
        assert_eq!(count.get(), 2 + 20);
    }
}
