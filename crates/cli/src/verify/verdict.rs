use std::io::Write;

use serde::Serialize;

use crate::failure::{Failure, Result};

/// Hypotheses that are shown where none explains an output.
const SHOWN: usize = 5;

/// What an output turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Outcome {
    /// The operation asked for.
    #[serde(rename = "conforms")]
    Conforms,
    /// Something else.
    #[serde(rename = "differs")]
    Differs,
    /// The data do not decide.
    #[serde(rename = "cannot tell")]
    CannotTell,
}

impl Outcome {
    const fn name(self) -> &'static str {
        match self {
            Self::Conforms => "conforms",
            Self::Differs => "differs",
            Self::CannotTell => "cannot tell",
        }
    }
}

/// One hypothesis held against an output.
#[derive(Debug, Serialize)]
pub struct Row {
    pub name: String,
    /// Elements that it was compared with: not all, where too many contradict it.
    pub compared: usize,
    /// Those of them that tell it from the definition.
    pub telling: usize,
    /// Those of the latter that are as it predicts.
    pub agreeing: usize,
    /// Elements that are off by a unit in the last place, or two in eager rounding.
    pub near: usize,
    /// Elements that it does not explain.
    pub mismatches: usize,
}

/// A hypothesis that the data could not have told from the definition.
#[derive(Debug, Serialize)]
pub struct Untried {
    pub hypothesis: String,
    /// The data that would.
    pub needs: String,
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

/// What an output turned out to be, and why. Its fields are documented in `docs/verify.md`.
#[derive(Debug, Serialize)]
pub struct Verdict {
    pub outcome: Outcome,
    /// Why, in a sentence.
    pub verdict: String,
    pub operation: String,
    pub dtype: &'static str,
    pub shape: [usize; 2],
    pub elements: usize,
    /// The hypotheses that explain every element and that the data tell from the definition; the
    /// definition where it does. Where the data cannot tell, all that they leave.
    pub explained_by: Vec<String>,
    pub not_tried: Vec<Untried>,
    /// The limits between which nothing decides, where the elements agree on some; the second is
    /// f32's largest number where none is beyond a limit.
    pub limits: Option<[f32; 2]>,
    /// Results that are the definition's own, rounded once.
    pub correctly_rounded: usize,
    pub worst_ulps: u32,
    pub hypotheses: Vec<Row>,
    pub first_mismatches: Vec<Mismatch>,
}

impl Verdict {
    /// One line if the output conforms and one on what was not tried; else what explains it, and
    /// what to look at first.
    pub fn print(&self, out: &mut impl Write) -> Result<()> {
        let [rows, d] = self.shape;
        writeln!(
            out,
            "{}: {} in {}, [{rows}, {d}]: {}",
            self.outcome.name(),
            self.operation,
            self.dtype,
            self.verdict
        )?;
        if !self.not_tried.is_empty() {
            writeln!(out, "not tried: {}", self.untried())?;
        }
        if self.outcome == Outcome::Differs && self.explained_by.is_empty() {
            self.print_nearest(out)?;
        }
        if self.outcome != Outcome::Differs {
            return Ok(());
        }
        for m in &self.first_mismatches {
            writeln!(
                out,
                "at [{}, {}] of gate {} and up {}: got {}, expected {}",
                m.row, m.column, m.gate, m.up, m.got, m.expected
            )?;
        }
        Ok(())
    }

    fn untried(&self) -> String {
        let one = |u: &Untried| format!("{} (needs {})", u.hypothesis, u.needs);
        let all: Vec<_> = self.not_tried.iter().map(one).collect();
        all.join("; ")
    }

    fn print_nearest(&self, out: &mut impl Write) -> Result<()> {
        let share = |r: &Row| (r.mismatches * 1000 / r.compared.max(1), r.near);
        let mut nearest: Vec<_> = self.hypotheses.iter().collect();
        nearest.sort_by_key(|r| share(r));
        writeln!(
            out,
            "{:<50} {:>10} {:>10} {:>10}",
            "hypothesis", "compared", "off by 1", "unlike it"
        )?;
        for r in nearest.into_iter().take(SHOWN) {
            let Row {
                name,
                compared,
                near,
                mismatches,
                ..
            } = r;
            writeln!(out, "{name:<50} {compared:>10} {near:>10} {mismatches:>10}")?;
        }
        Ok(())
    }

    /// An error unless the output conforms.
    pub fn result(&self) -> Result<()> {
        match self.outcome {
            Outcome::Conforms => Ok(()),
            Outcome::Differs => Err(Failure::Check(format!(
                "the output is not {}: {}",
                self.operation, self.verdict
            ))),
            Outcome::CannotTell => Err(Failure::CannotTell(format!(
                "the output may be {} or not: {}",
                self.operation, self.verdict
            ))),
        }
    }
}
