use std::fmt;

use serde::Serialize;
use swiglu::Report;

/// Which platform runs, and why not another, as JSON has it. Prints as the report does.
#[derive(Debug, Serialize)]
pub struct Chosen {
    chosen: String,
    support: String,
    rejected: Vec<RejectedPlatform>,
    /// A line for each kernel; empty where nobody asked.
    plan: Vec<String>,
    #[serde(skip)]
    text: String,
}

#[derive(Debug, Serialize)]
struct RejectedPlatform {
    platform: String,
    reason: String,
}

impl From<&Report> for Chosen {
    fn from(report: &Report) -> Self {
        let rejected = report.rejected.iter().map(|r| RejectedPlatform {
            platform: r.platform.clone(),
            reason: r.reason.clone(),
        });
        Self {
            chosen: report.chosen.clone(),
            support: report.support.to_string(),
            rejected: rejected.collect(),
            plan: report.plan.clone(),
            text: report.to_string(),
        }
    }
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
