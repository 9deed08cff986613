use cudarc::{cublaslt::result::CublasError, driver::DriverError};

use crate::probe::NotAvailable;

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
    /// cublasLt failed.
    #[error("{what}: {source}")]
    CublasLt {
        /// What was asked of it.
        what: &'static str,
        /// Its own error.
        source: CublasError,
    },
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

impl<T> Doing<T> for std::result::Result<T, CublasError> {
    fn doing(self, what: &'static str) -> Result<T> {
        self.map_err(|source| Error::CublasLt { what, source })
    }
}

impl From<Error> for swiglu_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Call(error) => error,
            Error::NotAvailable(_) | Error::Driver { .. } | Error::CublasLt { .. } => {
                Self::Backend {
                    platform: PLATFORM,
                    source: Box::new(error),
                }
            }
        }
    }
}
