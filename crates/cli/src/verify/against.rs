//! Another engine's output, held against the definition and against what engines get wrong.

use std::path::Path;

use swiglu::{Element, Float, GatedActivation, bf16, f16};

use super::faults::Part;
use super::finish::Store;
use super::fitted::{self, Dump};
use super::hypothesis::{Hypothesis, finishes};
use super::score::{Contest, Exactness, Score, score, simpler};
use super::verdict::{Mismatch, Outcome, Row, Untried, Verdict};
use crate::act::shapes;
use crate::failure::{Failure, Result};
use crate::tensor_file::read_tensor;

/// The mismatches that are shown.
const SHOWN: usize = 3;

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
    Ok(match input.stored {
        Float::F32 => judge::<f32>(op, d, x.typed(), y.typed()),
        Float::F16 => judge::<f16>(op, d, x.typed(), y.typed()),
        Float::BF16 => judge::<bf16>(op, d, x.typed(), y.typed()),
    })
}

fn judge<T: Element>(op: &GatedActivation, d: usize, input: &[T], output: &[T]) -> Verdict {
    let dump = Dump {
        op,
        d,
        input,
        output,
    };
    let mut all = Hypothesis::all(op, T::FLOAT);
    let mut scores = score(&dump, &all);
    if !scores[0].explains() || scores[0].near > 0 {
        let mut more = vec![all[0].clone()];
        more.extend(fits(&dump));
        let more_scores = score(&dump, &more);
        all.extend(more.drain(1..));
        scores.extend_from_slice(&more_scores[1..]);
    }
    let explaining = (0..all.len()).filter(|&h| scores[h].explains()).collect();
    let judgment = Judgment {
        contest: Contest::new(&dump, &all, explaining),
        exactness: Exactness::of(&dump),
        elements: output.len(),
        float: T::FLOAT,
        all,
        scores,
    };
    let found = judgment.found(op);
    let limits = fitted::limits(&dump, judgment.all[0].finish);
    Verdict {
        outcome: found.outcome,
        verdict: found.sentence,
        operation: op.to_string(),
        dtype: T::FLOAT.name(),
        shape: [dump.rows(), d],
        elements: output.len(),
        explained_by: found.explained_by,
        not_tried: found.not_tried,
        limits: limits.map(|l| [l.low, l.high]),
        correctly_rounded: judgment.exactness.exact,
        worst_ulps: judgment.exactness.worst_ulps,
        hypotheses: judgment.rows(),
        first_mismatches: mismatches(&dump, &judgment.all[0]),
    }
}

/// The faults whose number is read off the output, however it may be rounded.
fn fits<T: Element>(dump: &Dump<'_, T>) -> Vec<Hypothesis> {
    let mut fits = Vec::new();
    for finish in finishes(dump.op, T::FLOAT) {
        if finish.store == Store::Flushed {
            continue;
        }
        let mut add = |fit: Option<fitted::Fit>| {
            fits.extend(fit.map(|fit| Hypothesis::fitted(dump.op, fit, finish)));
        };
        add(fitted::another_limit(dump, finish));
        add(fitted::factors(dump, finish, false));
        if T::FLOAT != Float::F32 && finish.rounding == swiglu::Rounding::Official {
            add(fitted::factors(dump, finish, true));
        }
    }
    fits
}

/// All that was measured of an output.
struct Judgment {
    /// The definition first.
    all: Vec<Hypothesis>,
    scores: Vec<Score>,
    /// Of those that explain the output.
    contest: Contest,
    exactness: Exactness,
    elements: usize,
    float: Float,
}

/// What follows from it.
struct Found {
    outcome: Outcome,
    sentence: String,
    explained_by: Vec<String>,
    not_tried: Vec<Untried>,
}

impl Judgment {
    fn found(&self, op: &GatedActivation) -> Found {
        let standing = self.contest.unrefuted();
        let hypothesis = |place: usize| &self.all[self.contest.of[place]];
        let (name, asked) = (hypothesis_name, op.rounding());
        if standing.first().map(|&place| self.contest.of[place]) != Some(0) {
            let beside = |&&b: &&usize| {
                !standing.iter().any(|&a| {
                    simpler(hypothesis(a), hypothesis(b), asked) && !self.contest.tells(a, b)
                })
            };
            let named: Vec<usize> = standing.iter().filter(beside).copied().collect();
            let explained_by = named.iter().map(|&p| name(hypothesis(p))).collect();
            return Found {
                outcome: Outcome::Differs,
                sentence: self.differs(&named),
                explained_by,
                not_tried: Vec::new(),
            };
        }
        // The definition explains the output. It is the first.
        let rival = |&&p: &&usize| self.contest.tells(0, p);
        let rivals: Vec<usize> = standing.iter().filter(rival).copied().collect();
        let untried: Vec<usize> = (1..self.contest.of.len())
            .filter(|&p| self.is_untried(p))
            .collect();
        let not_tried = untried.iter().map(|&p| Untried {
            hypothesis: name(hypothesis(p)),
            needs: hypothesis(p).needs.clone(),
        });
        let not_tried: Vec<Untried> = not_tried.collect();
        let mut explained_by = vec![name(&self.all[0])];
        explained_by.extend(rivals.iter().map(|&p| name(hypothesis(p))));
        let (outcome, sentence) = if let Some(reason) = self.undecided(&rivals, &untried) {
            (Outcome::CannotTell, reason)
        } else if let Some(reason) = self.inexact() {
            (Outcome::Differs, reason)
        } else {
            (Outcome::Conforms, self.conforms())
        };
        if outcome == Outcome::CannotTell {
            explained_by.extend(not_tried.iter().map(|u| u.hypothesis.clone()));
        }
        Found {
            outcome,
            sentence,
            explained_by,
            not_tried,
        }
    }

    /// Whether a hypothesis explains the output as the definition does, as no element tells them
    /// apart. Of the other ways to round only those of the definition count.
    fn is_untried(&self, place: usize) -> bool {
        let h = self.contest.of[place];
        let alike = self.all[h].finish == self.all[0].finish || self.all[h].fault.is_none();
        alike && self.scores[h].telling == 0
    }

    /// Why the data do not decide whether this is the definition.
    fn undecided(&self, rivals: &[usize], untried: &[usize]) -> Option<String> {
        let part = |&p: &usize| self.all[self.contest.of[p]].part;
        if untried.iter().any(|p| part(p) == Some(Part::WholeClamp)) {
            return Some(
                "nothing is beyond the limit, so that no element tells a clamp".to_owned(),
            );
        }
        // Functions that no element tells apart are no evidence for one of them.
        let functions = || {
            let of_function = |h: &&Hypothesis| h.part == Some(Part::Function);
            self.all.iter().filter(of_function)
        };
        let untried_functions = untried.iter().filter(|p| part(p) == Some(Part::Function));
        let same_finish = functions().filter(|h| h.finish == self.all[0].finish);
        if functions().next().is_some() && untried_functions.count() == same_finish.count() {
            return Some("no element tells the function from another".to_owned());
        }
        let rivals: Vec<_> = rivals
            .iter()
            .map(|&p| hypothesis_name(&self.all[self.contest.of[p]]))
            .collect();
        (!rivals.is_empty()).then(|| {
            let rivals = listed(&rivals);
            format!("{rivals} explains it as well: the elements that tell do not decide")
        })
    }

    /// Results in 16 bits that arithmetic as exact as f32's would not give. In f32 such results are
    /// mismatches.
    fn inexact(&self) -> Option<String> {
        let near = self.scores[0].near;
        (near > (self.elements / 1000).max(1)).then(|| {
            format!(
                "{} in less exact arithmetic: within {} ulp, but only {} % are correctly rounded, \
                 where f32 arithmetic gives 99.9",
                self.all[0],
                self.exactness.worst_ulps,
                self.percent_exact()
            )
        })
    }

    /// Cut off, not rounded: 100 means all.
    fn percent_exact(&self) -> f64 {
        let thousandths = 100_000 * self.exactness.exact / self.elements.max(1);
        thousandths as f64 / 1e3
    }

    fn conforms(&self) -> String {
        match self.float {
            Float::F32 => format!("within {} ulp", self.exactness.worst_ulps),
            Float::F16 | Float::BF16 => format!("{} % correctly rounded", self.percent_exact()),
        }
    }

    /// What explains an output that is not the definition's.
    fn differs(&self, named: &[usize]) -> String {
        let hypothesis = |&p: &usize| &self.all[self.contest.of[p]];
        match named {
            [] => format!("none explains it; {}", self.nearest()),
            [one] => {
                let score = &self.scores[self.contest.of[*one]];
                let hypothesis = hypothesis(one);
                let mut sentence = format!(
                    "{hypothesis} explains it, by {} of the {} elements that tell it from the \
                     definition",
                    score.agreeing, score.telling
                );
                if !hypothesis.note.is_empty() {
                    sentence += "; ";
                    sentence += &hypothesis.note;
                }
                sentence
            }
            several => {
                let names: Vec<_> = several.iter().map(|p| hypothesis(p).to_string()).collect();
                let together = if names.len() == 2 { "both" } else { "all" };
                let names = listed(&names);
                format!("{names} {together} explain it: no element decides between them")
            }
        }
    }

    /// What comes nearest where nothing explains an output.
    fn nearest(&self) -> String {
        let share = |s: &Score| s.mismatches as f64 / s.compared.max(1) as f64;
        let both = || self.all.iter().zip(&self.scores);
        let least =
            both().min_by(|(_, a), (_, b)| share(a).total_cmp(&share(b)).then(a.near.cmp(&b.near)));
        // What is hardly nearer than the definition is no hint.
        let defined = both().next();
        let nearer = least.filter(|l| defined.is_some_and(|d| 2.0 * share(l.1) <= share(d.1)));
        let Some((hypothesis, score)) = nearer.or(defined) else {
            return String::new();
        };
        if score.mismatches == 0 {
            return format!(
                "nearest is {hypothesis}, with {} of {} elements off by one or two ulp",
                score.near, score.compared
            );
        }
        let off = match hypothesis.fault {
            None => format!(", up to {} ulp off", self.exactness.worst_ulps),
            Some(_) => String::new(),
        };
        format!(
            "nearest is {hypothesis}, with {} of {} elements unlike it{off}",
            score.mismatches, score.compared
        )
    }

    fn rows(&self) -> Vec<Row> {
        let row = |(h, s): (&Hypothesis, &Score)| Row {
            name: h.to_string(),
            compared: s.compared,
            telling: s.telling,
            agreeing: s.agreeing,
            near: s.near,
            mismatches: s.mismatches,
        };
        self.all.iter().zip(&self.scores).map(row).collect()
    }
}

fn hypothesis_name(h: &Hypothesis) -> String {
    h.to_string()
}

/// `a; b and c`: names have commas.
fn listed(names: &[String]) -> String {
    match names.split_last() {
        None => String::new(),
        Some((only, [])) => only.clone(),
        Some((last, others)) => format!("{} and {last}", others.join("; ")),
    }
}

/// The first elements that the definition does not explain.
fn mismatches<T: Element>(dump: &Dump<'_, T>, defined: &Hypothesis) -> Vec<Mismatch> {
    let shown = |x: T| format!("{:e} ({:#x})", x.to_f32(), x.to_bits());
    let describe = |at: usize| {
        let x = dump.output(at);
        let (gate, up) = dump.op.positions(dump.d, x.j);
        let [gate, up] = [x.row[gate], x.row[up]];
        Mismatch {
            row: x.t,
            column: x.j,
            gate: shown(gate),
            up: shown(up),
            got: shown(x.got),
            expected: shown(swiglu::reference::gated(dump.op, gate, up)),
        }
    };
    let wrong = |at: &usize| {
        let x = dump.output(*at);
        let range = defined.range(dump.op, (x.t, x.row), dump.d, x.j);
        range.distance(x.got) != Some(0)
    };
    let wrong = (0..dump.output.len()).filter(wrong);
    wrong.take(SHOWN).map(describe).collect()
}
