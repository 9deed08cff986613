//! Faults with a number in them, which is read off the output: another limit, and factors.
//!
//! ## Method
//! 1. Each element says which numbers explain it. For a limit that is an interval, as a result grows
//!    in magnitude with the limit until the limit no longer touches it: its ends are found by
//!    bisection over the floats. For a factor it is what rounds to the result, over the result
//!    without the factor.
//! 2. The number is where most intervals overlap; the roundest one there is taken, as people write
//!    limits such as 9.9.
//! 3. Whether that explains all elements, and better than other hypotheses, is decided elsewhere.

use swiglu::{Element, GatedActivation, Rounding};

use super::faults::Part;
use super::finish::{Factor, Finish, Store};
use super::hypothesis::RowFactors;
use super::range::{Range, at_place, order};
use super::recipe::Recipe;

/// Elements that a limit is read off.
const LIMIT_SAMPLE: usize = 8192;
/// Elements of a row that a factor is read off.
const ROW_SAMPLE: usize = 64;
/// Elements that a factor of all rows is read off.
const FACTOR_SAMPLE: usize = 65_536;

/// What an engine read and wrote: rows of 2d elements and of d.
pub struct Dump<'a, T> {
    pub op: &'a GatedActivation,
    pub d: usize,
    pub input: &'a [T],
    pub output: &'a [T],
}

/// One output with its row.
#[derive(Clone, Copy)]
pub struct Output<'a, T> {
    pub t: usize,
    pub j: usize,
    pub row: &'a [T],
    pub got: T,
}

impl<T: Element> Dump<'_, T> {
    pub fn rows(&self) -> usize {
        self.output.len() / self.d
    }

    pub fn output(&self, at: usize) -> Output<'_, T> {
        let (t, j) = (at / self.d, at % self.d);
        Output {
            t,
            j,
            row: &self.input[t * 2 * self.d..(t + 1) * 2 * self.d],
            got: self.output[at],
        }
    }

    /// Gate and up of an output, where a recipe looks for them.
    fn halves(&self, recipe: &Recipe, x: Output<'_, T>) -> [T; 2] {
        let (gate, up) = recipe.positions(self.op, self.d, x.j);
        [x.row[gate], x.row[up]]
    }
}

/// A fault with the number that was found.
pub struct Fit {
    pub name: String,
    pub note: String,
    pub part: Part,
    /// As that of a row of the table of faults.
    pub more: bool,
    pub recipe: Recipe,
    pub factors: RowFactors,
}

/// The limits that explain an output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    pub low: f32,
    /// [`f32::MAX`] where no element says that there is a limit.
    pub high: f32,
}

/// The limits that explain the most elements, if nine in ten that say anything of a limit agree on
/// them, and at least two.
pub fn limits<T: Element>(dump: &Dump<'_, T>, finish: Finish) -> Option<Limits> {
    dump.op.limit()?;
    let recipe = Recipe {
        may_underflow: true,
        ..Recipe::defined(dump.op)
    };
    let mut intervals = Vec::new();
    for at in telling_of_limits(dump) {
        let x = dump.output(at);
        let [gate, up] = dump.halves(&recipe, x);
        let (g, u) = (gate.to_f32(), up.to_f32());
        // Otherwise a result does not grow with the limit.
        let grows = recipe.offset == 0.0 || (u > 0.0 && recipe.offset > 0.0);
        if !(grows && g.is_finite() && u.is_finite()) {
            continue;
        }
        let of = |limit: f32| {
            let recipe = recipe.with_limit(f64::from(limit));
            finish.range::<T>(&recipe.factors(finish.rounding, gate, up), None)
        };
        intervals.extend(limits_of_one(of, x.got));
    }
    let (low, high, count) = densest(&intervals)?;
    let touched = intervals.iter().filter(|i| i.1 < f64::from(f32::MAX));
    let agree = touched.filter(|i| i.0 <= low && low <= i.1).count();
    // Where many disagree, the output is another's.
    let most = count > 1 && count * 10 >= intervals.len() * 9;
    (most && (agree > 1 || high == f64::from(f32::MAX))).then_some(Limits {
        low: low as f32,
        high: high as f32,
    })
}

/// The elements with the largest halves, which a limit reaches first, and others from everywhere.
fn telling_of_limits<T: Element>(dump: &Dump<'_, T>) -> Vec<usize> {
    let count = dump.output.len();
    let defined = Recipe::defined(dump.op);
    let size = |at: usize| {
        let [gate, up] = dump.halves(&defined, dump.output(at));
        let size = gate.to_f32().max(up.to_f32().abs());
        if size.is_finite() { size } else { 0.0 }
    };
    let mut all: Vec<(f32, usize)> = (0..count).map(|at| (size(at), at)).collect();
    if count > LIMIT_SAMPLE {
        let largest_first = |a: &(f32, usize), b: &(f32, usize)| b.0.total_cmp(&a.0);
        all.select_nth_unstable_by(LIMIT_SAMPLE / 2, largest_first);
        let (first, rest) = all.split_at(LIMIT_SAMPLE / 2);
        let step = rest.len().div_ceil(LIMIT_SAMPLE / 2);
        let spread = rest.iter().step_by(step);
        return first.iter().chain(spread).map(|(_, at)| *at).collect();
    }
    all.into_iter().map(|(_, at)| at).collect()
}

/// The limits that explain one result; none where every limit or no limit does.
fn limits_of_one<T: Element>(of: impl Fn(f32) -> Range, got: T) -> Option<(f64, f64)> {
    const MOST: u32 = f32::MAX.to_bits();
    let unclamped = of(f32::MAX);
    if got.is_nan() || unclamped.nan {
        return None;
    }
    // Magnitudes, by the sign of the result.
    let sign = (unclamped.low.saturating_add(unclamped.high)).signum();
    let magnitude = order(got) * sign;
    let ends = |bits: u32| {
        let range = of(f32::from_bits(bits));
        match sign {
            1 => (range.low, range.high),
            _ => (-range.high, -range.low),
        }
    };
    if sign == 0 || magnitude < 0 || ends(MOST).1 < magnitude {
        return None;
    }
    let low = bisect(|bits| ends(bits).1 >= magnitude);
    let high = if ends(MOST).0 <= magnitude {
        MOST
    } else {
        bisect(|bits| ends(bits).0 > magnitude).checked_sub(1)?
    };
    let value = |bits| f64::from(f32::from_bits(bits));
    (low <= high && (low > 0 || high < MOST)).then(|| (value(low), value(high)))
}

/// The least bits of a float from 0 on for which this holds, as it does for all larger ones.
fn bisect(holds: impl Fn(u32) -> bool) -> u32 {
    let (mut low, mut high) = (0, f32::MAX.to_bits());
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

/// Another limit than the operation's.
pub fn another_limit<T: Element>(dump: &Dump<'_, T>, finish: Finish) -> Option<Fit> {
    let asked = dump.op.limit()?.get();
    let Limits { low, high } = limits(dump, finish)?;
    if high == f32::MAX || (low..=high).contains(&asked) {
        return None;
    }
    let found = roundest(f64::from(low), f64::from(high));
    let note = if high > low * 1.001 {
        format!("so does any limit from {low} to {high}")
    } else {
        String::new()
    };
    Some(Fit {
        name: format!("limit {} for {asked}", found as f32),
        note,
        part: Part::SomeClamp,
        more: false,
        recipe: Recipe::defined(dump.op).with_limit(found),
        factors: RowFactors::None,
    })
}

/// A factor of all results, or one for each row, as route weights are.
pub fn factors<T: Element>(
    dump: &Dump<'_, T>,
    finish: Finish,
    after_rounding: bool,
) -> Option<Fit> {
    let recipe = Recipe {
        may_underflow: true,
        ..Recipe::defined(dump.op)
    };
    let of = |at| factors_of_one(dump, &recipe, finish, after_rounding, at);
    let factor = |by| Factor { by, after_rounding };
    let fit = |name: String, factors| Fit {
        name: if after_rounding {
            format!("{name} after rounding")
        } else {
            name
        },
        note: String::new(),
        part: Part::Special,
        more: after_rounding,
        recipe,
        factors,
    };
    let count = dump.output.len();
    let all: Vec<_> = (0..count)
        .step_by(count.div_ceil(FACTOR_SAMPLE))
        .filter_map(of)
        .collect();
    let (low, high, agree) = densest(&all)?;
    if agree >= 4 && agree * 10 >= all.len() * 9 {
        let by = roundest(low, high);
        return (!(low..=high).contains(&1.0))
            .then(|| fit(format!("scaled by {by}"), RowFactors::All(factor(by))));
    }
    // As many numbers as rows explain any output that has few elements in each.
    let (mut found, mut beyond) = (Vec::with_capacity(dump.rows()), 0);
    for t in 0..dump.rows() {
        let row = (t * dump.d)..(t + 1) * dump.d;
        let step = dump.d.div_ceil(ROW_SAMPLE);
        let row: Vec<_> = row.step_by(step).filter_map(of).collect();
        let Some((low, high, agree)) = densest(&row) else {
            found.push(1.0);
            continue;
        };
        if agree * 10 < row.len() * 9 {
            return None;
        }
        beyond += agree - 1;
        found.push(roundest(low, high));
    }
    let least = found.iter().copied().fold(f64::INFINITY, f64::min);
    let most = found.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (beyond >= 8 && (least, most) != (1.0, 1.0)).then(|| {
        let name = format!("each row scaled, by {least} to {most}");
        let factors = found.into_iter().map(factor).collect();
        fit(name, RowFactors::Each(factors))
    })
}

/// The factors that explain one result; none where it says nothing of them.
fn factors_of_one<T: Element>(
    dump: &Dump<'_, T>,
    recipe: &Recipe,
    finish: Finish,
    after_rounding: bool,
    at: usize,
) -> Option<(f64, f64)> {
    let x = dump.output(at);
    let [gate, up] = dump.halves(recipe, x);
    let factors = recipe.factors(finish.rounding, gate, up);
    let (base, noise) = if finish.rounding == Rounding::Eager || after_rounding {
        let range = finish.range::<T>(&factors, None);
        if range.low != range.high || range.nan {
            return None;
        }
        (at_place::<T>(range.low), 1e-7)
    } else {
        (factors.product(), factors.noise())
    };
    let got = f64::from(x.got.to_f32());
    if !got.is_finite() || !base.is_finite() || base.abs() < 1e-30 {
        return None;
    }
    let place = order(x.got);
    let [before, after] = [-1, 1].map(|step| at_place::<T>(place + step));
    if !before.is_finite() || !after.is_finite() {
        return None;
    }
    let [low, high] = match (finish.store, place.signum()) {
        (Store::Truncated, 1) => [got, after],
        (Store::Truncated, -1) => [before, got],
        (Store::Truncated, _) => [before, after],
        _ => [before, after].map(|other| (got + other) / 2.0),
    };
    let [a, b] = [low / base, high / base];
    let (low, high) = (a.min(b), a.max(b));
    Some((low - low.abs() * noise, high + high.abs() * noise))
}

/// Where most intervals overlap, and how many do.
fn densest(intervals: &[(f64, f64)]) -> Option<(f64, f64, usize)> {
    let starts = intervals.iter().map(|i| (i.0, false));
    let ends = intervals.iter().map(|i| (i.1, true));
    let mut ends: Vec<_> = starts.chain(ends).collect();
    ends.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let (mut open, mut best) = (0, (0.0, 0.0, 0));
    let mut start = None;
    for (place, ends) in ends {
        if !ends {
            open += 1;
            if open > best.2 {
                start = Some(place);
            }
            continue;
        }
        if let Some(start) = start.take() {
            best = (start, place, open);
        }
        open -= 1;
    }
    (best.2 > 0).then_some(best)
}

/// The number between two with the fewest decimals, and of those the one nearest to their middle.
fn roundest(low: f64, high: f64) -> f64 {
    let middle = low + (high - low) / 2.0;
    let rounded = |decimals: i32| {
        let power = 10_f64.powi(decimals);
        (middle * power).round() / power
    };
    let found = (0..=12).map(rounded).find(|x| (low..=high).contains(x));
    found.unwrap_or(middle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roundest_number_between_two_is_what_people_write() {
        assert_eq!(roundest(6.98, 7.02), 7.0);
        assert_eq!(roundest(9.897, 9.91), 9.9);
        assert_eq!(roundest(10.0295, 10.0301), 10.03);
        assert_eq!(roundest(0.0, 1e-20), 0.0);
    }

    #[test]
    fn the_densest_place_is_that_of_most_intervals() {
        assert_eq!(densest(&[]), None);
        let (low, high, count) =
            densest(&[(0.0, 5.0), (4.0, 9.0), (1.0, 2.0), (4.5, 4.6)]).unwrap();
        assert_eq!((low, high, count), (4.5, 4.6, 3));
        assert_eq!(densest(&[(1.0, 2.0), (2.0, 3.0)]), Some((2.0, 2.0, 2)));
    }
}
