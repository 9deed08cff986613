use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::escape;

/// The exit code of a check that failed.
pub const CHECK_FAILED: u8 = 1;
/// The exit code of bad usage or input.
pub const BAD_INPUT: u8 = 2;
/// The exit code of a check that its data do not decide.
pub const CANNOT_TELL: u8 = 3;

/// Why the program ends without having done its work.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Check(String),
    #[error("{0}")]
    CannotTell(String),
    #[error("{0}")]
    Input(String),
    #[error("{}: {source}", path.display())]
    File {
        path: PathBuf,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(transparent)]
    Operation(#[from] swiglu::Error),
    #[error(transparent)]
    Mlp(#[from] swiglu::mlp::Error),
    #[error("cannot write the output: {0}")]
    Output(#[from] std::io::Error),
    #[cfg(all(feature = "cpu", feature = "mpi"))]
    #[error("a rank failed, which it has told")]
    Told,
}

impl Failure {
    /// A failure on a file.
    pub fn file(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::File {
            path: path.to_owned(),
            source: source.into(),
        }
    }

    /// Says in one line on standard error what went wrong, if that is yet to be said.
    pub fn tell(&self) {
        #[cfg(all(feature = "cpu", feature = "mpi"))]
        if matches!(self, Self::Told) {
            return;
        }
        let line = escape::one_line(&self.to_string());
        // There is nowhere left to report a closed stderr to.
        let _ = writeln!(std::io::stderr(), "swiglu: {line}");
    }

    /// 1 for a failed check, 3 for one without a result, 2 for everything that the caller brought.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Check(_) => CHECK_FAILED,
            Self::CannotTell(_) => CANNOT_TELL,
            Self::Input(_)
            | Self::File { .. }
            | Self::Operation(_)
            | Self::Mlp(_)
            | Self::Output(_) => BAD_INPUT,
            #[cfg(all(feature = "cpu", feature = "mpi"))]
            Self::Told => BAD_INPUT,
        }
        .into()
    }
}

/// A result with this program's [`Failure`].
pub type Result<T> = std::result::Result<T, Failure>;
