//! What follows from the command line's own description: completions and manual pages.

use std::io::Write;

use clap::CommandFactory;

use crate::arguments::{Arguments, Completions, Man};
use crate::escape;
use crate::failure::{Failure, Result};

/// `swiglu completions`.
pub fn completions(arguments: &Completions, out: &mut impl Write) -> Result<()> {
    let mut script = Vec::new();
    let mut command = Arguments::command();
    clap_complete::generate(arguments.shell, &mut command, "swiglu", &mut script);
    out.write_all(&script)?;
    Ok(())
}

/// `swiglu man`.
pub fn man(arguments: &Man, out: &mut impl Write) -> Result<()> {
    let mut all = Arguments::command();
    all.build();
    let command = match &arguments.command {
        None => &all,
        Some(name) => all.find_subcommand(name).ok_or_else(|| {
            let known: Vec<_> = all.get_subcommands().map(clap::Command::get_name).collect();
            let (known, name) = (known.join(", "), escape::name(name));
            Failure::Input(format!("command: expected one of {known}, got `{name}`"))
        })?,
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    out.write_all(&page)?;
    Ok(())
}
