use std::io::Write;

use serde::Serialize;
use swiglu::{Backend, Float, GatedActivation, Request, Support};
use swiglu_conformance::Harness;

use super::platform::Platform;
use crate::failure::{Failure, Result};

/// What the checks found on the platforms here.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub platforms: Vec<PlatformReport>,
    /// Those that are not here, with the reason.
    pub absent: Vec<(String, String)>,
}

/// What the checks found on one platform.
#[derive(Debug, Serialize)]
pub struct PlatformReport {
    pub platform: String,
    pub device: String,
    pub operations: Vec<OperationRow>,
    pub checks: Vec<CheckRow>,
    /// Matmuls, quantization and the MLP; empty where one operation is asked for.
    pub stages: Vec<StageRow>,
}

/// One operation in one type against the reference.
#[derive(Debug, Serialize)]
pub struct OperationRow {
    pub operation: String,
    pub dtype: &'static str,
    /// Why it was not run.
    pub skipped: Option<String>,
    /// Results compared.
    pub results: usize,
    pub worst_ulps: u32,
    /// Those that are the exact value, rounded once.
    pub correctly_rounded: usize,
    pub nan_propagates: bool,
    pub special_values: bool,
    pub passes: bool,
    pub failures: Vec<String>,
}

/// A check on all operations together.
#[derive(Debug, Serialize)]
pub struct CheckRow {
    pub check: &'static str,
    pub passes: bool,
    pub failure: Option<String>,
}

/// A stage of the MLP against the reference.
#[derive(Debug, Serialize)]
pub struct StageRow {
    pub stage: String,
    /// Why it was not run.
    pub skipped: Option<String>,
    /// What was measured, and the bound.
    pub measured: Option<String>,
    pub passes: bool,
    pub failure: Option<String>,
}

impl StageRow {
    /// A stage that was run, with what was measured.
    pub fn new(
        stage: String,
        measured: std::result::Result<String, swiglu_conformance::Failure>,
    ) -> Self {
        let (measured, failure) = match measured {
            Ok(measured) => (Some(measured), None),
            Err(failure) => (None, Some(format!("{stage}: {failure}"))),
        };
        Self {
            stage,
            skipped: None,
            measured,
            passes: failure.is_none(),
            failure,
        }
    }

    /// A stage that the platform does not run.
    pub const fn skipped(stage: String, reason: String) -> Self {
        Self {
            stage,
            skipped: Some(reason),
            measured: None,
            passes: true,
            failure: None,
        }
    }

    fn outcome(&self) -> String {
        match (&self.skipped, &self.measured) {
            (Some(reason), _) => format!("skipped: {reason}"),
            (None, Some(measured)) => format!("ok, {measured}"),
            (None, None) => "FAILED".to_owned(),
        }
    }
}

impl OperationRow {
    pub fn of(harness: &Harness<Platform>, op: &GatedActivation, float: Float) -> Self {
        let row = Self {
            operation: op.to_string(),
            dtype: float.name(),
            skipped: None,
            results: 0,
            worst_ulps: 0,
            correctly_rounded: 0,
            nan_propagates: true,
            special_values: true,
            passes: true,
            failures: Vec::new(),
        };
        let request = Request::Activation { op: *op, float };
        if let Support::No(reason) = harness.backend.supports(&request) {
            return Self {
                skipped: Some(reason),
                ..row
            };
        }
        let survey = harness.survey(op, float);
        Self {
            results: survey.results,
            worst_ulps: survey.worst_ulps,
            correctly_rounded: survey.correctly_rounded,
            nan_propagates: survey.nan.is_ok(),
            special_values: survey.special.is_ok(),
            passes: survey.passes(),
            failures: survey.failures().map(ToString::to_string).collect(),
            ..row
        }
    }
}

impl OperationRow {
    /// Cut off, not rounded: 100 means all.
    fn percent_rounded_right(&self) -> f64 {
        let thousandths = 100_000 * self.correctly_rounded / self.results.max(1);
        thousandths as f64 / 1e3
    }
}

impl CheckRow {
    pub fn new(
        check: &'static str,
        outcome: std::result::Result<(), swiglu_conformance::Failure>,
    ) -> Self {
        Self {
            check,
            passes: outcome.is_ok(),
            failure: outcome.err().map(|failure| failure.to_string()),
        }
    }
}

impl PlatformReport {
    pub fn new(platform: &str, backend: &Platform) -> Self {
        Self {
            platform: platform.to_owned(),
            device: backend.description(),
            operations: Vec::new(),
            checks: Vec::new(),
            stages: Vec::new(),
        }
    }

    /// What is not as the definition says.
    pub fn failures(&self) -> impl Iterator<Item = &str> {
        let of_operations = self.operations.iter().flat_map(|row| &row.failures);
        let of_checks = self.checks.iter().filter_map(|row| row.failure.as_ref());
        let of_stages = self.stages.iter().filter_map(|row| row.failure.as_ref());
        let all = of_operations.chain(of_checks).chain(of_stages);
        all.map(String::as_str)
    }

    fn print(&self, out: &mut impl Write) -> Result<()> {
        writeln!(out, "{}: {}\n", self.platform, self.device)?;
        let width = self.operations.iter().map(|r| r.operation.len()).max();
        let width = width.unwrap_or(0).max(9);
        writeln!(
            out,
            "{:<width$} {:<5} {:>9} {:>10} {:>13}  {:<10} {:<9} verdict",
            "operation", "type", "results", "worst ulp", "rounded right", "NaN", "special"
        )?;
        for r in &self.operations {
            write!(out, "{:<width$} {:<5} ", r.operation, r.dtype)?;
            if let Some(reason) = &r.skipped {
                writeln!(out, "skipped: {reason}")?;
                continue;
            }
            let word = |good, yes, no| if good { yes } else { no };
            writeln!(
                out,
                "{:>9} {:>10} {:>11.3} %  {:<10} {:<9} {}",
                r.results,
                r.worst_ulps,
                r.percent_rounded_right(),
                word(r.nan_propagates, "propagates", "LOST"),
                word(r.special_values, "right", "WRONG"),
                word(r.passes, "ok", "FAILED"),
            )?;
        }
        writeln!(out)?;
        for r in &self.checks {
            let verdict = if r.passes { "ok" } else { "FAILED" };
            writeln!(out, "{:<50} {verdict}", r.check)?;
        }
        writeln!(out)?;
        let width = self.stages.iter().map(|r| r.stage.len()).max();
        let width = width.unwrap_or(0);
        for r in &self.stages {
            writeln!(out, "{:<width$} {}", r.stage, r.outcome())?;
        }
        if !self.stages.is_empty() {
            writeln!(out)?;
        }
        for failure in self.failures() {
            writeln!(out, "{failure}")?;
        }
        Ok(())
    }
}

impl Report {
    /// Notes a platform that is not here.
    pub fn absent(&mut self, platform: &str, reason: String) {
        self.absent.push((platform.to_owned(), reason));
    }

    /// The tables, the failures, and the platforms that were not checked.
    pub fn print(&self, out: &mut impl Write) -> Result<()> {
        for platform in &self.platforms {
            platform.print(out)?;
        }
        for (platform, reason) in &self.absent {
            writeln!(out, "{platform}: not checked, {reason}")?;
        }
        if self.outcome().is_ok() {
            let names: Vec<_> = self.platforms.iter().map(|p| p.platform.as_str()).collect();
            writeln!(out, "{}: as the definition says", names.join(", "))?;
        }
        Ok(())
    }

    /// An error where something is not as the definition says.
    pub fn outcome(&self) -> Result<()> {
        let mut failures = self
            .platforms
            .iter()
            .flat_map(|p| p.failures().map(move |f| (p.platform.as_str(), f)));
        let Some((platform, first)) = failures.next() else {
            return Ok(());
        };
        Err(Failure::Check(format!(
            "{} checks failed, the first on {platform}: {first}",
            failures.count() + 1
        )))
    }
}
