/// How much a suite runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Size {
    /// Some seconds on two cores.
    #[default]
    Quick,
    /// Every shape and many more values: minutes.
    Full,
}

impl Size {
    /// The environment variable that asks for [`Size::Full`] with the value `full`.
    pub const VARIABLE: &'static str = "SWIGLU_SUITE";

    /// What the environment asks for.
    pub fn from_env() -> Self {
        match std::env::var(Self::VARIABLE).as_deref() {
            Ok("full") => Self::Full,
            _ => Self::Quick,
        }
    }

    /// One of two values, by size.
    pub fn pick<V>(self, quick: V, full: V) -> V {
        match self {
            Self::Quick => quick,
            Self::Full => full,
        }
    }
}
