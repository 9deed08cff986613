//! What goes to standard output and what to standard error.

use std::io::{self, StdoutLock, Write};

use serde::Serialize;

use crate::failure::{Failure, Result};
use crate::files::OutputFile;

/// Standard output holds one thing: a JSON document, an output file, or else prose. Where another
/// thing has it, prose goes to standard error. As a [`Write`], this takes prose.
///
/// A reader of standard output that closes it has seen enough: what comes after is dropped, and is
/// no error.
#[derive(Debug)]
pub struct Console {
    stdout: StdoutLock<'static>,
    taken: bool,
}

impl Console {
    pub fn new() -> Self {
        Self {
            stdout: io::stdout().lock(),
            taken: false,
        }
    }

    /// Keeps standard output for a JSON document, if `json` asks for one.
    pub const fn reserve_for_json(&mut self, json: bool) {
        self.taken = json;
    }

    /// Keeps standard output for a file's content, where the file is standard output.
    ///
    /// # Errors
    /// Where a JSON document has it already.
    pub fn reserve_for(&mut self, file: &OutputFile) -> Result<()> {
        if !file.is_stdout() {
            return Ok(());
        }
        if self.taken {
            let argument = file.argument();
            return Err(Failure::Input(format!(
                "{argument}: expected a file with --json, got standard output, which holds the JSON"
            )));
        }
        self.taken = true;
        Ok(())
    }

    /// Writes a JSON document to standard output.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn document(&mut self, document: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(document).map_err(io::Error::from)?;
        unless_closed(writeln!(self.stdout, "{text}"))?;
        Ok(())
    }

    /// Brings out what is left.
    ///
    /// # Errors
    /// What the operating system says, such as that the disk is full.
    pub fn finish(mut self) -> Result<()> {
        unless_closed(self.stdout.flush())?;
        Ok(())
    }
}

fn unless_closed(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.taken {
            // There is nowhere left to report a closed stderr to.
            let _ = io::stderr().write_all(bytes);
        } else {
            unless_closed(self.stdout.write_all(bytes))?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.taken {
            return Ok(());
        }
        unless_closed(self.stdout.flush())
    }
}
