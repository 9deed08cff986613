use std::io::Write;
use std::path::Path;

use serde::Serialize;
use swiglu::{Accuracy, Element, Float, GatedActivation, bf16, f16};

use super::hypothesis::{Fault, Hypothesis};
use crate::act::shapes;
use crate::failure::{Failure, Result};
use crate::tensor_file::read_tensor;

/// The mismatches that are shown.
const SHOWN: usize = 3;

/// Below this both values count as 0: f32's exponential underflows there, or is flushed.
const NEGLIGIBLE: f32 = 1.0 / (1_u128 << 120) as f32;

/// One hypothesis held against an output.
#[derive(Debug, Serialize)]
pub struct Row {
    #[serde(skip)]
    pub hypothesis: Hypothesis,
    pub name: String,
    /// Elements that are the same bit for bit, any NaN for any other.
    pub exact: usize,
    /// Other elements within the tolerance.
    pub close: usize,
    pub mismatches: usize,
    /// Elements at which the hypothesis predicts something else than the operation asked for.
    pub distinguishing: usize,
}

/// An element at which an output is not what was asked for.
#[derive(Debug, Serialize)]
pub struct Mismatch {
    pub row: usize,
    pub column: usize,
    pub gate: String,
    pub up: String,
    pub got: String,
    pub expected: String,
}

/// What an output turned out to be.
#[derive(Debug, Serialize)]
pub struct Verdict {
    pub operation: String,
    pub dtype: &'static str,
    pub shape: [usize; 2],
    pub elements: usize,
    pub tolerance_ulps: u32,
    pub hypotheses: Vec<Row>,
    /// Those that explain every element, and none more exactly.
    pub explained_by: Vec<String>,
    /// Whether the operation asked for is among them.
    pub right: bool,
    pub verdict: String,
    /// The first mismatches with the operation asked for.
    pub first_mismatches: Vec<Mismatch>,
}

/// Reads `input` and `output` and holds every hypothesis against them.
pub fn against(path: &Path, op: &GatedActivation) -> Result<Verdict> {
    let input = read_tensor(path, Some("input"))?;
    let output = read_tensor(path, Some("output"))?;
    let (shape, output_shape) = shapes(&input).map_err(|e| Failure::file(path, e))?;
    if output.stored != input.stored || output.shape != output_shape {
        return Err(Failure::file(
            path,
            format!(
                "output: expected {} {output_shape:?}, got {} {:?}",
                input.stored, output.stored, output.shape
            ),
        ));
    }
    if output.data.is_empty() {
        return Err(Failure::file(
            path,
            "input: expected at least one row, got none",
        ));
    }
    let (d, x, y) = (shape.d, &input.data, &output.data);
    match input.stored {
        Float::F32 => judge::<f32>(op, d, x.typed(), y.typed()),
        Float::F16 => judge::<f16>(op, d, x.typed(), y.typed()),
        Float::BF16 => judge::<bf16>(op, d, x.typed(), y.typed()),
    }
}

fn same<T: Element>(a: T, b: T) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

fn close<T: Element>(a: T, b: T) -> bool {
    let negligible = |x: T| x.to_f32().abs() < NEGLIGIBLE;
    !a.is_nan()
        && !b.is_nan()
        && (a.ulps_between(b) <= Accuracy::EXACT.ulps(T::FLOAT) || (negligible(a) && negligible(b)))
}

fn judge<T: Element>(op: &GatedActivation, d: usize, input: &[T], output: &[T]) -> Result<Verdict> {
    let predict = |h: &Hypothesis| -> Vec<T> {
        let of_row = |row| (0..d).map(move |j| h.predict(row, d, j));
        input.chunks_exact(2 * d).flat_map(of_row).collect()
    };
    let hypotheses = Hypothesis::all(op, T::FLOAT)?;
    let asked: Vec<T> = hypotheses.first().map(predict).unwrap_or_default();
    let rows: Vec<_> = hypotheses
        .into_iter()
        .map(|h| compare(h, &predict(&h), &asked, output))
        .collect();
    let first_mismatches = mismatches(op, d, input, &asked, output);
    let winners = winners(&rows);
    let names = |rows: &[&Row]| rows.iter().map(|r| r.name.clone()).collect();
    let is_asked =
        |r: &&Row| r.hypothesis.fault == Fault::None && r.hypothesis.rounding() == op.rounding();
    Ok(Verdict {
        operation: op.to_string(),
        dtype: T::FLOAT.name(),
        shape: [output.len() / d, d],
        elements: output.len(),
        tolerance_ulps: Accuracy::EXACT.ulps(T::FLOAT),
        explained_by: names(&winners),
        right: winners.iter().any(is_asked),
        verdict: sentence(&rows, &winners),
        first_mismatches,
        hypotheses: rows,
    })
}

fn compare<T: Element>(hypothesis: Hypothesis, predicted: &[T], asked: &[T], got: &[T]) -> Row {
    let count = |test: &dyn Fn(&T, &T) -> bool| {
        let both = predicted.iter().zip(got);
        both.filter(|(p, g)| test(p, g)).count()
    };
    let exact = count(&|p, g| same(*p, *g));
    let close = count(&|p, g| !same(*p, *g) && close(*p, *g));
    let other = |(p, a): &(&T, &T)| !same(**p, **a);
    Row {
        hypothesis,
        name: hypothesis.to_string(),
        exact,
        close,
        mismatches: got.len() - exact - close,
        distinguishing: predicted.iter().zip(asked).filter(other).count(),
    }
}

/// Of the hypotheses that explain every element, those that explain most of them exactly. Where
/// two predict the same but at a few elements, these decide: the tolerance would take both.
fn winners(rows: &[Row]) -> Vec<&Row> {
    let explains = || rows.iter().filter(|r| r.mismatches == 0);
    let best = explains().map(|r| r.exact).max();
    explains().filter(|r| Some(r.exact) == best).collect()
}

fn sentence(rows: &[Row], winners: &[&Row]) -> String {
    match winners {
        [] => {
            let nearest = rows.iter().min_by_key(|r| r.mismatches);
            let nearest = nearest.map_or(String::new(), |r| {
                format!("; nearest is {}, with {} mismatches", r.name, r.mismatches)
            });
            format!("none explains it{nearest}")
        }
        [one] => {
            let next = rows
                .iter()
                .filter(|r| r.mismatches == 0 && r.name != one.name)
                .max_by_key(|r| r.exact);
            let next = next.map_or(String::new(), |r| {
                format!(
                    "; {} comes within the tolerance too, but matches {} elements fewer exactly",
                    r.name,
                    one.exact - r.exact
                )
            });
            format!("{} explains it{next}", one.name)
        }
        several => {
            let names: Vec<_> = several.iter().map(|r| r.name.as_str()).collect();
            let (last, others) = names.split_last().unwrap_or((&"", &[]));
            let together = if names.len() == 2 { "both" } else { "all" };
            let same = |r: &&Row| r.distinguishing == 0 || r.close == 0;
            let why = if several.iter().all(same) {
                "no element distinguishes them"
            } else {
                "equally well: the elements that distinguish them do not decide"
            };
            format!(
                "{} and {last} {together} explain it: {why}",
                others.join("; ")
            )
        }
    }
}

fn mismatches<T: Element>(
    op: &GatedActivation,
    d: usize,
    input: &[T],
    expected: &[T],
    got: &[T],
) -> Vec<Mismatch> {
    let shown = |x: T| format!("{:e} ({:#x})", x.to_f32(), x.to_bits());
    let both = expected.iter().zip(got).enumerate();
    let wrong = both.filter(|(_, (e, g))| !same(**e, **g) && !close(**e, **g));
    let describe = |(at, (e, g)): (usize, (&T, &T))| {
        let (row, column) = (at / d, at % d);
        let (gate, up) = op.positions(d, column);
        Mismatch {
            row,
            column,
            gate: shown(input[row * 2 * d + gate]),
            up: shown(input[row * 2 * d + up]),
            got: shown(*g),
            expected: shown(*e),
        }
    };
    wrong.take(SHOWN).map(describe).collect()
}

impl Verdict {
    /// The table, the verdict, and what to look at first.
    pub fn print(&self, out: &mut impl Write) -> Result<()> {
        let [rows, d] = self.shape;
        writeln!(out, "asked    {}", self.operation)?;
        writeln!(
            out,
            "output   {} [{rows}, {d}], {} elements\n",
            self.dtype, self.elements
        )?;
        let within = format!("within {} ulp", self.tolerance_ulps);
        writeln!(
            out,
            "{:<44} {:>10} {within:>12} {:>11} {:>12}",
            "hypothesis", "exact", "mismatches", "unlike asked"
        )?;
        for r in &self.hypotheses {
            writeln!(
                out,
                "{:<44} {:>10} {:>12} {:>11} {:>12}",
                r.name, r.exact, r.close, r.mismatches, r.distinguishing
            )?;
        }
        writeln!(out, "\nverdict  {}", self.verdict)?;
        for m in &self.first_mismatches {
            writeln!(
                out,
                "at [{}, {}] of gate {} and up {}: got {}, expected {}",
                m.row, m.column, m.gate, m.up, m.got, m.expected
            )?;
        }
        Ok(())
    }
}
