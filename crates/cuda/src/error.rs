use cudarc::driver::DriverError;

use crate::probe::NotAvailable;

/// The platform's name.
pub const PLATFORM: &str = "cuda";

/// An answer of cublasLt's that is no success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} (status {0})", name = self.name())]
pub struct CublasStatus(
    /// A `cublasStatus_t`.
    pub i32,
);

impl CublasStatus {
    const fn name(self) -> &'static str {
        match self.0 {
            1 => "CUBLAS_STATUS_NOT_INITIALIZED",
            3 => "CUBLAS_STATUS_ALLOC_FAILED",
            7 => "CUBLAS_STATUS_INVALID_VALUE",
            8 => "CUBLAS_STATUS_ARCH_MISMATCH",
            11 => "CUBLAS_STATUS_MAPPING_ERROR",
            13 => "CUBLAS_STATUS_EXECUTION_FAILED",
            14 => "CUBLAS_STATUS_INTERNAL_ERROR",
            15 => "CUBLAS_STATUS_NOT_SUPPORTED",
            16 => "CUBLAS_STATUS_LICENSE_ERROR",
            _ => "cublasLt failed",
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_named() {
        let text = CublasStatus(15).to_string();
        assert_eq!(text, "CUBLAS_STATUS_NOT_SUPPORTED (status 15)");
    }
}
