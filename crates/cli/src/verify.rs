use std::io::Write;

use swiglu::Dispatcher;

use crate::arguments::Verify;
use crate::failure::Result;

mod against;
mod faults;
mod finish;
mod fitted;
mod hypothesis;
mod platform;
mod range;
mod recipe;
mod report;
mod score;
mod stages;
mod survey;
mod verdict;

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
            verdict.result()
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

/// Which platforms are compared with the reference: the one that is asked for, or all others.
pub fn compared(dispatcher: &Dispatcher) -> impl Fn(&str) -> bool {
    let asked = dispatcher.asked_for();
    move |name| asked.map_or(name != "reference", |a| a == name)
}
