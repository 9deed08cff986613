use std::io::Write;

use crate::arguments::Verify;
use crate::failure::{Failure, Result};

mod against;
mod hypothesis;
mod platform;
mod report;
mod survey;

/// `swiglu verify`.
pub fn verify(arguments: &Verify, out: &mut impl Write) -> Result<()> {
    match (&arguments.against, &arguments.op) {
        (Some(file), Some(name)) => {
            let op = arguments.settings.activation(name)?;
            let verdict = against::against(file, &op)?;
            if arguments.json {
                writeln!(out, "{:#}", serde_json::json!(verdict))?;
            } else {
                verdict.print(out)?;
            }
            if verdict.right {
                return Ok(());
            }
            Err(Failure::Check(format!(
                "the output is not {}: {}",
                verdict.operation, verdict.verdict
            )))
        }
        _ => {
            let report = survey::survey(arguments)?;
            if arguments.json {
                writeln!(out, "{:#}", serde_json::json!(report))?;
            } else {
                report.print(out)?;
            }
            report.outcome()
        }
    }
}
