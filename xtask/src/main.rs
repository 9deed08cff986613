//! The workspace's own tasks; `cargo xtask --help` lists them.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod api;
mod bundle;
mod kernels;
mod link_modes;

use std::{
    error::Error,
    path::Path,
    process::{Command, ExitCode, Output},
};

/// What `--help` prints.
const HELP: &str = "\
The workspace's own tasks.

cargo xtask kernels          Writes the list of the activations' kernels, and compiles the CUDA kernels to
                             the fatbins that are checked in, with a compiler of one version that
                             it installs below target/
cargo xtask kernels --check  Does so, and fails unless all of it is what is checked in
cargo xtask api              Writes the public API of each library to docs/api, with a rustdoc of one version
cargo xtask api --check      Fails unless that is what is checked in
cargo xtask link-modes       Checks that swiglu-cuda compiles in every way that an engine beside it may have
                             cudarc linked, with what is in the registry's cache
cargo xtask link-modes --all Does so for every version of CUDA that cudarc has from 12.0 on, too
cargo xtask bundle FOLDER    Gathers in FOLDER the tests and programs that a machine with a GPU can run
                             without a Rust toolchain, and a script `run` that runs all of them";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        words if asks_for_help(words) => {
            println!("{HELP}");
            Ok(())
        }
        ["kernels"] => kernels::run(kernels::Mode::Write),
        ["kernels", "--check"] => kernels::run(kernels::Mode::Check),
        ["api"] => api::run(false),
        ["api", "--check"] => api::run(true),
        ["link-modes"] => link_modes::run(false),
        ["link-modes", "--all"] => link_modes::run(true),
        ["bundle", folder] => bundle::run(Path::new(folder)),
        _ => Err(HELP.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether help is asked for, be it of one task: `bundle --help` makes no folder of that name.
fn asks_for_help(words: &[&str]) -> bool {
    words.first() == Some(&"help") || words.iter().any(|w| matches!(*w, "--help" | "-h"))
}

/// Runs a command to its end; one that fails is an error with what it wrote.
fn checked(command: &mut Command) -> Result<Output> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(output);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?} failed:\n{errors}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_is_asked_for_anywhere() {
        for words in [
            &["help"][..],
            &["-h"],
            &["bundle", "--help"],
            &["kernels", "-h"],
        ] {
            assert!(asks_for_help(words), "{words:?}");
        }
        for words in [&[][..], &["kernels", "--check"], &["bundle", "help"]] {
            assert!(!asks_for_help(words), "{words:?}");
        }
    }
}
