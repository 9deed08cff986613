/// What can go wrong in a call, and which argument was at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument has a value, shape or length that the operation does not take.
    #[error("{argument}: expected {expected}, got {got}")]
    Argument {
        /// The argument's name, as the function's signature has it.
        argument: &'static str,
        /// What the operation takes.
        expected: String,
        /// What came.
        got: String,
    },
    /// The platform cannot do this, and says why.
    #[error("{platform} does not support {what}: {reason}")]
    Unsupported {
        /// The platform's name, such as `cpu`.
        platform: String,
        /// The operation, such as a [`crate::Request`] prints.
        what: String,
        /// Why not.
        reason: String,
    },
    /// No registered platform can run what was asked for.
    #[error("no platform can run this: {0}")]
    NoPlatform(String),
    /// Memory could not be had.
    #[error("{platform}: out of memory allocating {bytes} bytes")]
    OutOfMemory {
        /// The platform's name.
        platform: &'static str,
        /// The size asked for, in bytes.
        bytes: usize,
    },
    /// The backend's device or driver failed.
    #[error("{platform}: {source}")]
    Backend {
        /// The platform's name.
        platform: &'static str,
        /// The backend's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Argument`] from anything printable.
    pub fn argument(
        argument: &'static str,
        expected: impl Into<String>,
        got: impl ToString,
    ) -> Self {
        Self::Argument {
            argument,
            expected: expected.into(),
            got: got.to_string(),
        }
    }

    /// An [`Error::Unsupported`] from anything printable.
    pub fn unsupported(
        platform: impl Into<String>,
        what: impl ToString,
        reason: impl Into<String>,
    ) -> Self {
        Self::Unsupported {
            platform: platform.into(),
            what: what.to_string(),
            reason: reason.into(),
        }
    }
}
