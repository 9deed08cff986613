/// Where the contract itself differs between backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expectations {
    /// How far an f32 result may be from the reference, in units in the last place.
    pub f32_ulps: u32,
    /// Whether subnormal operands and results may be taken for zero, and a zero lose its sign.
    pub flushes_subnormals: bool,
    /// How much is run.
    pub size: Size,
}

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

impl Expectations {
    /// CPUs and CUDA: f32 within 4 ulp, subnormals and the sign of zero survive.
    pub fn exact() -> Self {
        Self {
            f32_ulps: 4,
            flushes_subnormals: false,
            size: Size::from_env(),
        }
    }

    /// wgpu: f32 within 8 ulp, subnormals may be flushed to zero.
    pub fn shader() -> Self {
        Self {
            f32_ulps: 8,
            flushes_subnormals: true,
            ..Self::exact()
        }
    }
}
