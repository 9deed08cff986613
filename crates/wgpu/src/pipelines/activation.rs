//! The kernels that run an activation alone.

use std::fmt;

use swiglu_core::Float;

use super::shader::{
    ACTIVATION_NATIVE, ACTIVATION_QUICK, ELEMENT, FUNCTIONS_TEXT, NUMERIC, OP, OPERATION, Shader,
    WORKGROUP_TEXT, activation_constants,
};

pub(super) const CALL: &str = include_str!("../shaders/activation_call.wgsl");
const WORDS: &str = include_str!("../shaders/activation_words.wgsl");
const VECTORS: &str = include_str!("../shaders/activation_vectors.wgsl");

/// Invocations in a workgroup that counts its units through all rows.
pub(crate) const WORKGROUP: u32 = 256;

/// Invocations in a workgroup that takes whole vectors.
pub(crate) const VECTOR_WORKGROUP: u32 = 128;

/// The types that have native kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SixteenBit {
    F16,
    BF16,
}

impl SixteenBit {
    pub(crate) const fn of(float: Float) -> Option<Self> {
        match float {
            Float::F32 => None,
            Float::F16 => Some(Self::F16),
            Float::BF16 => Some(Self::BF16),
        }
    }

    const fn float(self) -> Float {
        match self {
            Self::F16 => Float::F16,
            Self::BF16 => Float::BF16,
        }
    }
}

/// A kernel that runs an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ActivationKernel {
    /// Any place of the rows.
    Words(Float),
    /// Whole vectors.
    Vectors(Float),
    /// Whole vectors, with silu as the function.
    SiluVectors(Float),
    /// Whole vectors through silu, by the device's own exp2 and division.
    NativeSilu(SixteenBit),
    /// The same for one row of whole workgroups, from the start of every binding.
    NativeRow(SixteenBit),
}

impl ActivationKernel {
    /// All of them, by [`Self::index`].
    pub(crate) const ALL: [Self; 13] = [
        Self::Words(Float::F32),
        Self::Words(Float::F16),
        Self::Words(Float::BF16),
        Self::Vectors(Float::F32),
        Self::Vectors(Float::F16),
        Self::Vectors(Float::BF16),
        Self::SiluVectors(Float::F32),
        Self::SiluVectors(Float::F16),
        Self::SiluVectors(Float::BF16),
        Self::NativeSilu(SixteenBit::F16),
        Self::NativeSilu(SixteenBit::BF16),
        Self::NativeRow(SixteenBit::F16),
        Self::NativeRow(SixteenBit::BF16),
    ];

    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Words(float) => float as usize,
            Self::Vectors(float) => 3 + float as usize,
            Self::SiluVectors(float) => 6 + float as usize,
            Self::NativeSilu(float) => 9 + float as usize,
            Self::NativeRow(float) => 11 + float as usize,
        }
    }

    const fn float(self) -> Float {
        match self {
            Self::Words(float) | Self::Vectors(float) | Self::SiluVectors(float) => float,
            Self::NativeSilu(float) | Self::NativeRow(float) => float.float(),
        }
    }

    const fn entry(self) -> &'static str {
        match self {
            Self::Words(_) => "activation_words",
            Self::Vectors(_) | Self::SiluVectors(_) => "activation_vectors",
            Self::NativeSilu(_) | Self::NativeRow(_) => "activation_native",
        }
    }

    pub(super) fn shader(self) -> Shader {
        let own = match self {
            Self::Words(_) => WORDS.to_owned(),
            _ => [ACTIVATION_QUICK, ACTIVATION_NATIVE, VECTORS].concat(),
        };
        let only_silu = !matches!(self, Self::Words(_) | Self::Vectors(_));
        let mut constants = activation_constants(self.float(), only_silu);
        if let Self::NativeRow(_) = self {
            constants.push(("ONE_ROW", 1.0));
        }
        let shared = [NUMERIC, ELEMENT, OP, FUNCTIONS_TEXT, OPERATION, CALL];
        Shader {
            source: shared.concat() + WORKGROUP_TEXT + &own,
            entry: self.entry(),
            constants,
            checked: true,
        }
    }
}

impl fmt::Display for ActivationKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (entry, float) = (self.entry(), self.float());
        match self {
            Self::Words(_) | Self::Vectors(_) | Self::NativeSilu(_) => {
                write!(f, "{entry}({float})")
            }
            Self::SiluVectors(_) => write!(f, "{entry}({float}, silu)"),
            Self::NativeRow(_) => write!(f, "{entry}({float}, one row)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_by_their_index() {
        for (i, kernel) in ActivationKernel::ALL.into_iter().enumerate() {
            assert_eq!(kernel.index(), i, "{kernel}");
        }
    }
}
