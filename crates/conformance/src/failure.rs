use std::fmt;

/// What a check found: the operation, type, place, input bits, and both values with their bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(String);

impl Failure {
    /// A failure with this description.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The same, told from where it happened.
    #[must_use]
    pub fn within(self, context: impl fmt::Display) -> Self {
        Self(format!("{context}: {}", self.0))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

impl From<swiglu_core::Error> for Failure {
    fn from(error: swiglu_core::Error) -> Self {
        Self(format!("the call failed: {error}"))
    }
}
