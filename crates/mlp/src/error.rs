use std::path::{Path, PathBuf};

use crate::text::{self, path as shown};

/// What can go wrong in reading a model and running it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call that does not fit, or a backend that cannot or failed.
    #[error(transparent)]
    Core(#[from] swiglu_core::Error),
    /// A file that cannot be read or written.
    #[error("{}: {source}", shown(path))]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file that is not what its format demands.
    #[error("{}: {problem}", shown(path))]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A tensor that is missing, unexpected, misshaped, wrong-typed, or not where its file says.
    #[error("tensor {tensor} in {}: {problem}", shown(path))]
    Tensor {
        /// The tensor's full name.
        tensor: String,
        /// The file in which it lies, or in which it was sought.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A setting of a model or of an MLP that is missing or cannot be used.
    #[error("{field}: expected {expected}, got {got}")]
    Config {
        /// The setting.
        field: String,
        /// What is accepted.
        expected: String,
        /// What was there.
        got: String,
    },
    /// A configuration file with a setting that cannot be used.
    #[error("{}: {source}", shown(path))]
    ConfigFile {
        /// The file.
        path: PathBuf,
        /// The setting.
        source: Box<Self>,
    },
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        let path = path.to_owned();
        Self::Io { path, source }
    }

    pub(crate) fn file(path: &Path, problem: impl ToString) -> Self {
        Self::File {
            path: path.to_owned(),
            problem: text::sentence(&problem.to_string()),
        }
    }

    pub(crate) fn tensor(tensor: &str, path: &Path, problem: impl ToString) -> Self {
        Self::Tensor {
            tensor: text::name(tensor),
            path: path.to_owned(),
            problem: text::sentence(&problem.to_string()),
        }
    }

    pub(crate) fn config(
        field: impl Into<String>,
        expected: impl Into<String>,
        got: impl ToString,
    ) -> Self {
        Self::Config {
            field: text::name(&field.into()),
            expected: text::sentence(&expected.into()),
            got: text::name(&got.to_string()),
        }
    }
}
