use std::sync::PoisonError;

/// The platform's name.
pub(crate) const PLATFORM: &str = "wgpu";

/// What can go wrong between this crate and a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WgpuError {
    /// No adapter can be used; each with its reason.
    #[error("no adapter: {0}")]
    NoAdapter(String),
    /// The adapter did not give a device.
    #[error("no device from {adapter}: {reason}")]
    NoDevice {
        /// The adapter's name.
        adapter: String,
        /// Why not.
        reason: String,
    },
    /// A device lacks what every kernel here needs.
    #[error("{adapter} lacks {what}")]
    Lacks {
        /// The adapter's name.
        adapter: String,
        /// The feature or limit.
        what: String,
    },
    /// The device is gone; no call can succeed any more.
    #[error("the device is lost: {0}")]
    Lost(String),
    /// Memory could not be had.
    #[error("out of memory allocating {bytes} bytes")]
    OutOfMemory {
        /// The size asked for, in bytes.
        bytes: usize,
    },
    /// wgpu refused a call, or the driver failed in it.
    #[error("{action}: {message}")]
    Failed {
        /// What was being done.
        action: &'static str,
        /// wgpu's words.
        message: String,
    },
    /// A kernel computed something wrong when it was tried.
    #[error("{kernel} failed its self-test: {message}")]
    SelfTest {
        /// The kernel.
        kernel: String,
        /// What came and what was expected.
        message: String,
    },
    /// An argument that the operation does not take.
    #[error(transparent)]
    Argument(#[from] swiglu_core::Error),
}

/// A result with this crate's [`WgpuError`].
pub type Result<T, E = WgpuError> = std::result::Result<T, E>;

impl WgpuError {
    pub(crate) fn failed(action: &'static str, message: impl ToString) -> Self {
        Self::Failed {
            action,
            message: message.to_string(),
        }
    }
}

impl<T> From<PoisonError<T>> for WgpuError {
    fn from(_: PoisonError<T>) -> Self {
        Self::failed("locking the queue", "another thread panicked inside a call")
    }
}

impl From<WgpuError> for swiglu_core::Error {
    fn from(error: WgpuError) -> Self {
        match error {
            WgpuError::Argument(error) => error,
            WgpuError::OutOfMemory { bytes } => Self::OutOfMemory {
                platform: PLATFORM,
                bytes,
            },
            other => Self::Backend {
                platform: PLATFORM,
                source: Box::new(other),
            },
        }
    }
}
