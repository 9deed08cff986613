use std::io::Write;

use crate::arguments::Verify;
use crate::failure::{Failure, Result};

mod against;
mod hypothesis;

/// `swiglu verify`.
pub fn verify(arguments: &Verify, out: &mut impl Write) -> Result<()> {
    let op = arguments.settings.activation(&arguments.op)?;
    let verdict = against::against(&arguments.against, &op)?;
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
