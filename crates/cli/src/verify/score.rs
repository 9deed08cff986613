//! How hypotheses stand to an output.
//!
//! ## Method
//! 1. Each hypothesis is compared with every element, until too many contradict it. It *explains* the
//!    output if none does; in 16 bits a few may be off by one, as a less exact engine's are.
//! 2. Of those that explain it, each pair is compared on the elements where their predictions exclude
//!    each other. One that nine in ten of these speak against is *refuted*.
//! 3. What is not refuted and no element tells from a simpler one is left out.

use swiglu::{Element, Float, Rounding, reference};

use super::finish::Store;
use super::fitted::{Dump, Output};
use super::hypothesis::Hypothesis;
use super::range::Range;
use super::recipe::Factors;

/// Contradictions after which a hypothesis is dropped.
const ENOUGH: usize = 64;
/// How many times as many of the elements that tell two hypotheses apart must speak for one.
const DECIDED: usize = 9;

/// One hypothesis held against an output.
#[derive(Clone, Copy, Debug, Default)]
pub struct Score {
    /// Elements that were looked at.
    pub compared: usize,
    /// Those at which it and the definition exclude each other, and those of them that it predicts.
    pub telling: usize,
    pub agreeing: usize,
    /// Elements that are off by a unit in the last place, or two in eager rounding.
    pub near: usize,
    /// Elements that it does not explain.
    pub mismatches: usize,
}

impl Score {
    pub fn explains(&self) -> bool {
        self.mismatches == 0 && self.near <= (self.compared / 10).max(1)
    }
}

/// How far off a result in 16 bits may be that arithmetic less exact than f32 explains.
const fn near(float: Float, rounding: Rounding) -> u32 {
    match (float, rounding) {
        (Float::F32, _) => 0,
        (_, Rounding::Official) => 1,
        (_, Rounding::Eager) => 2,
    }
}

/// Scores hypotheses, of which the first is the definition.
pub fn score<T: Element>(dump: &Dump<'_, T>, all: &[Hypothesis]) -> Vec<Score> {
    let mut scores = vec![Score::default(); all.len()];
    let Some(defined) = all.first() else {
        return scores;
    };
    let mut predictions = Predictions::new(dump, all);
    let mut live: Vec<usize> = (0..all.len()).collect();
    for at in 0..dump.output.len() {
        let x = dump.output(at);
        let by_definition = predictions.range(0, at, x);
        for &h in &live {
            let predicted = predictions.range(h, at, x);
            let distance = predicted.distance(x.got);
            let tells = if all[h].only_loses && all[h].finish == defined.finish {
                predicted != by_definition
            } else {
                predicted.excludes(&by_definition)
            };
            let most = near(T::FLOAT, all[h].finish.rounding);
            let score = &mut scores[h];
            score.compared += 1;
            score.telling += usize::from(tells);
            score.agreeing += usize::from(tells && distance == Some(0));
            match distance {
                Some(0) => {}
                Some(ulps) if ulps <= most => score.near += 1,
                _ => score.mismatches += 1,
            }
        }
        if at % 64 == 63 {
            live.retain(|&h| h == 0 || scores[h].mismatches < ENOUGH);
        }
    }
    scores
}

/// What hypotheses predict, with what several have in common computed once an element.
struct Predictions<'a, T> {
    dump: &'a Dump<'a, T>,
    all: &'a [Hypothesis],
    /// For each hypothesis the first with the same recipe and rounding.
    first: Vec<usize>,
    /// What these gave, and for which element.
    factors: Vec<Option<(usize, Factors)>>,
}

impl<'a, T: Element> Predictions<'a, T> {
    fn new(dump: &'a Dump<'a, T>, all: &'a [Hypothesis]) -> Self {
        let same = |a: &Hypothesis, b: &Hypothesis| {
            a.recipe == b.recipe && a.finish.rounding == b.finish.rounding
        };
        let first = |h: &Hypothesis| all.iter().position(|other| same(other, h)).unwrap_or(0);
        Self {
            dump,
            all,
            first: all.iter().map(first).collect(),
            factors: vec![None; all.len()],
        }
    }

    /// What hypothesis `h` predicts of the element at `at`.
    fn range(&mut self, h: usize, at: usize, x: Output<'_, T>) -> Range {
        let (hypothesis, first) = (&self.all[h], self.first[h]);
        let factors = match self.factors[first] {
            Some((of, factors)) if of == at => factors,
            _ => {
                let factors = hypothesis.factors(self.dump.op, x.row, self.dump.d, x.j);
                self.factors[first] = Some((at, factors));
                factors
            }
        };
        hypothesis.range_of::<T>(&factors, x.t)
    }
}

/// What tells apart hypotheses that all explain an output.
pub struct Contest {
    /// Their places among all.
    pub of: Vec<usize>,
    /// Elements at which two exclude each other, and those of them that the first predicts.
    telling: Vec<Vec<usize>>,
    speak_for: Vec<Vec<usize>>,
}

impl Contest {
    pub fn new<T: Element>(dump: &Dump<'_, T>, all: &[Hypothesis], of: Vec<usize>) -> Self {
        let square = || vec![vec![0; of.len()]; of.len()];
        let (mut telling, mut speak_for) = (square(), square());
        let mut ranges = Vec::with_capacity(of.len());
        let mut predictions = Predictions::new(dump, all);
        for at in 0..if of.len() > 1 { dump.output.len() } else { 0 } {
            let x = dump.output(at);
            ranges.clear();
            ranges.extend(of.iter().map(|&h| predictions.range(h, at, x)));
            if common(&ranges) {
                continue;
            }
            for (a, first) in ranges.iter().enumerate() {
                for (b, second) in ranges.iter().enumerate() {
                    if first.excludes(second) {
                        telling[a][b] += 1;
                        speak_for[a][b] += usize::from(first.distance(x.got) == Some(0));
                    }
                }
            }
        }
        Self {
            of,
            telling,
            speak_for,
        }
    }

    /// Whether some element tells the hypotheses at these places of [`Self::of`] apart.
    pub fn tells(&self, a: usize, b: usize) -> bool {
        self.telling[a][b] > 0
    }

    fn refutes(&self, a: usize, b: usize) -> bool {
        let (a_for, b_for) = (self.speak_for[a][b], self.speak_for[b][a]);
        a_for > 0 && a_for >= DECIDED * b_for
    }

    /// Those that no other refutes, as places of [`Self::of`].
    pub fn unrefuted(&self) -> Vec<usize> {
        let places = 0..self.of.len();
        let alone = |&b: &usize| !places.clone().any(|a| self.refutes(a, b));
        places.clone().filter(alone).collect()
    }
}

/// Whether a value is in all of these.
fn common(ranges: &[Range]) -> bool {
    let low = ranges.iter().map(|r| r.low).max();
    let high = ranges.iter().map(|r| r.high).min();
    low <= high || ranges.iter().all(|r| r.nan)
}

/// Whether `a` is so much simpler than `b` that `b` is not worth naming where nothing tells them
/// apart.
pub fn simpler(a: &Hypothesis, b: &Hypothesis, asked: Rounding) -> bool {
    let rank = |h: &Hypothesis| {
        let store = match h.finish.store {
            Store::Rounded => 0,
            Store::Truncated => 1,
            Store::Flushed => 2,
        };
        (store, u8::from(h.finish.rounding != asked))
    };
    if a.finish != b.finish {
        return a.fault == b.fault && rank(a) < rank(b);
    }
    match (&a.fault, &b.fault) {
        (None, Some(_)) => true,
        (Some(_), Some(_)) if a.only_loses => !b.only_loses,
        _ => a.part == b.part && !a.more && b.more,
    }
}

/// How exact an output is, against the definition rounded once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Exactness {
    /// Results that are the definition's to the bit, any NaN for any other.
    pub exact: usize,
    /// How far off the others are at most, in units in the last place.
    pub worst_ulps: u32,
}

impl Exactness {
    pub fn of<T: Element>(dump: &Dump<'_, T>) -> Self {
        let mut all = Self::default();
        for at in 0..dump.output.len() {
            let x = dump.output(at);
            let (gate, up) = dump.op.positions(dump.d, x.j);
            let want = reference::gated(dump.op, x.row[gate], x.row[up]);
            match (x.got.is_nan(), want.is_nan()) {
                (true, true) => all.exact += 1,
                (false, false) => {
                    let ulps = x.got.ulps_between(want);
                    all.exact += usize::from(x.got.to_bits() == want.to_bits());
                    all.worst_ulps = all.worst_ulps.max(ulps);
                }
                _ => {}
            }
        }
        all
    }
}
