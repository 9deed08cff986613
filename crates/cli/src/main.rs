//! The program `swiglu`: what it can run here, and running it on files.
#![forbid(unsafe_code)]

mod act;
mod arguments;
mod bench;
mod demo;
mod failure;
mod probe;
mod run;
mod tensor_file;
mod timed;
mod verify;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{Arguments, Command};

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    let mut out = std::io::stdout().lock();
    let result = match arguments.command {
        Command::Probe(a) => probe::probe(&a, &mut out),
        Command::Run(a) => run::run(&a, &mut out),
        Command::Act(a) => act::act(&a, &mut out),
        Command::Bench(a) => bench::bench(&a, &mut out),
        Command::Demo(a) => demo::demo(&a, &mut out),
        Command::Verify(a) => verify::verify(&a, &mut out),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let line = failure.to_string().replace('\n', " ");
            // There is nowhere left to report a closed stderr to.
            let _ = writeln!(std::io::stderr(), "swiglu: {line}");
            failure.exit_code()
        }
    }
}

/// Help and version as clap prints them; a mistake in one line.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    let parts: Vec<_> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .filter(|line| !line.is_empty())
        .collect();
    let line = parts.join(" ");
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    let _ = writeln!(std::io::stderr(), "swiglu: {line}");
    failure::BAD_INPUT.into()
}
