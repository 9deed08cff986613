use cudarc::driver::DriverError;

use crate::{matmul::CublasStatus, probe::NotAvailable};

/// The platform's name.
pub const PLATFORM: &str = "cuda";

/// What can go wrong on a CUDA device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// CUDA cannot be used here.
    #[error(transparent)]
    NotAvailable(#[from] NotAvailable),
    /// An argument of a call does not fit.
    #[error(transparent)]
    Call(#[from] swiglu_core::Error),
    /// The driver failed.
    #[error("{what}: {source}")]
    Driver {
        /// What was asked of it.
        what: &'static str,
        /// The driver's own error.
        source: DriverError,
    },
    /// NCCL failed.
    #[cfg(feature = "nccl")]
    #[error(transparent)]
    Nccl(#[from] NcclError),
    /// cublasLt failed.
    #[error("{what}: {source}")]
    CublasLt {
        /// What was asked of it.
        what: &'static str,
        /// Its own error.
        source: CublasStatus,
    },
}

/// What can go wrong with NCCL.
#[cfg(feature = "nccl")]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NcclError {
    /// The library is not there, or lacks a function.
    #[error("no NCCL library (libnccl.so.2, from 2.18 on): {0}")]
    NotFound(String),
    /// The library is too old, or did not say its version.
    #[error("NCCL has version code {0}, at least 21800 (2.18) is needed")]
    TooOld(i32),
    /// NCCL refused.
    #[error("{what}: NCCL says: {words}")]
    Refused {
        /// What was asked of it.
        what: &'static str,
        /// Its own words.
        words: String,
    },
    /// A rank did not come, or has died.
    #[error("{what}: the other ranks did not come within {seconds} s")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        seconds: u64,
    },
    /// The group failed before.
    #[error("the group of ranks failed before: {0}")]
    Failed(String),
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Says what a call of a library was for.
pub(crate) trait Doing<T> {
    fn doing(self, what: &'static str) -> Result<T>;
}

impl<T> Doing<T> for std::result::Result<T, DriverError> {
    fn doing(self, what: &'static str) -> Result<T> {
        self.map_err(|source| Error::Driver { what, source })
    }
}

impl<T> Doing<T> for std::result::Result<T, CublasStatus> {
    fn doing(self, what: &'static str) -> Result<T> {
        self.map_err(|source| Error::CublasLt { what, source })
    }
}

impl From<Error> for swiglu_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Call(error) => error,
            error => Self::Backend {
                platform: PLATFORM,
                source: Box::new(error),
            },
        }
    }
}

/// What the loader of libraries said: libloading's own message is only that it failed.
pub(crate) fn loader_said(error: &libloading::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => source.to_string(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_loader_said_names_the_library() {
        let name = "libno-such-library-of-swiglu.so.1";
        // SAFETY: there is no such library.
        let error = unsafe { libloading::Library::new(name) }.unwrap_err();
        let said = loader_said(&error);
        assert!(cfg!(windows) || said.contains(name), "{said}");
    }
}
