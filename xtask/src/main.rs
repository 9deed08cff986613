//! The workspace's own tasks: `cargo xtask kernels [--check]` and `cargo xtask bundle FOLDER`.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bundle;
mod kernels;

use std::{path::Path, process::ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["kernels"] => kernels::run(kernels::Mode::Write),
        ["kernels", "--check"] => kernels::run(kernels::Mode::Check),
        ["bundle", folder] => bundle::run(Path::new(folder)),
        _ => Err("usage: cargo xtask kernels [--check] | bundle FOLDER".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
