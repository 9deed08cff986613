use crate::InstructionSet;

/// What can go wrong in this backend beyond what [`swiglu_core::Error`] names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The instruction set was asked for by name and this machine lacks it.
    #[error("instruction_set: expected one that this machine has, got {}", .0.name())]
    Unavailable(InstructionSet),
}

impl From<Error> for swiglu_core::Error {
    fn from(error: Error) -> Self {
        Self::Backend {
            platform: crate::PLATFORM,
            source: Box::new(error),
        }
    }
}
