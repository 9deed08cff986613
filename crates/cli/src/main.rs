//! The program `swiglu`: what it can run here, and running it on files.
#![forbid(unsafe_code)]

mod act;
mod arguments;
mod bench;
mod chosen;
mod console;
mod demo;
mod escape;
mod failure;
mod files;
mod generate;
mod inspect;
mod probe;
mod run;
mod tensor_file;
mod threads;
mod timed;
mod verify;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{Arguments, Command};
use crate::console::Console;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    let mut console = Console::new();
    let result = match arguments.command {
        Command::Probe(a) => probe::probe(&a, &mut console),
        Command::Run(a) => run::run(&a, &mut console),
        Command::Inspect(a) => inspect::inspect(&a, &mut console),
        Command::Act(a) => act::act(&a, &mut console),
        Command::Bench(a) => bench::bench(&a, &mut console),
        Command::Demo(a) => demo::demo(&a, &mut console),
        Command::Verify(a) => verify::verify(&a, &mut console),
        Command::Completions(a) => generate::completions(&a, &mut console),
        Command::Man(a) => generate::man(&a, &mut console),
    };
    // A check that failed is told even where its report could not be written.
    let finished = console.finish();
    match result.and(finished) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.tell();
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
    let line = escape::one_line(line.strip_prefix("error: ").unwrap_or(&line));
    let _ = writeln!(std::io::stderr(), "swiglu: {line}");
    failure::BAD_INPUT.into()
}
