use std::fmt;

/// The vector instructions that kernels are built for. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InstructionSet {
    /// Plain Rust; on every machine.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// x86-64 with the dot products of bf16 (AVX-512 BF16, VDPBF16PS) beside [`Self::Avx512`], which
    /// runs everything else: a matrix unit as far as numbers go. AMD's processors take it by
    /// themselves: on a Zen 4 dot products do twice what fused multiply-adds do. On Intel's a caller
    /// has to name it: they were measured at two thirds of fused multiply-adds on a Sapphire Rapids.
    Avx512Bf16,
    /// aarch64.
    Neon,
    /// x86-64 with the matrix unit AMX (AMX-TILE and AMX-BF16) beside [`Self::Avx512`], which runs
    /// everything else. Linux only, as the operating system has to give leave.
    Amx,
    /// AMX as plain Rust computes it, beside [`Self::Scalar`]: for tests, which name it. No machine
    /// takes it by itself.
    #[doc(hidden)]
    AmxEmulated,
    /// The same of [`Self::Avx512Bf16`].
    #[doc(hidden)]
    Avx512Bf16Emulated,
}

impl InstructionSet {
    /// All of them, slowest first.
    pub const ALL: [Self; 6] = [
        Self::Scalar,
        Self::Neon,
        Self::Avx2,
        Self::Avx512,
        Self::Avx512Bf16,
        Self::Amx,
    ];

    /// The name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Neon => "neon",
            Self::Amx => "amx",
            Self::AmxEmulated => "amx-emulated",
            Self::Avx512Bf16Emulated => "avx512-bf16-emulated",
        }
    }

    /// Whether this machine has it.
    pub fn available(self) -> bool {
        match self {
            Self::Scalar | Self::AmxEmulated | Self::Avx512Bf16Emulated => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                // The wrapper is compiled with AVX2's features as well.
                Self::Avx2.available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Self::Avx512.available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx => Self::Avx512.available() && super::amx::available(),
            #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
            Self::Amx => false,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 | Self::Avx512Bf16 => false,
            #[cfg(not(target_arch = "aarch64"))]
            Self::Neon => false,
        }
    }

    /// What matmuls have beside vectors.
    pub(crate) const fn matrix_unit(self) -> Option<MatrixUnit> {
        match self {
            Self::Amx | Self::AmxEmulated => Some(MatrixUnit::Tiles),
            Self::Avx512Bf16 | Self::Avx512Bf16Emulated => Some(MatrixUnit::Dots),
            Self::Scalar | Self::Avx2 | Self::Avx512 | Self::Neon => None,
        }
    }

    /// The fastest that this machine has: the last of [`Self::ALL`], but [`Self::Avx512Bf16`] only
    /// where the processor is AMD's.
    pub fn detect() -> Self {
        fastest(Self::available, has_fast_dots())
    }
}

fn fastest(available: impl Fn(InstructionSet) -> bool, fast_dots: bool) -> InstructionSet {
    let mut sets = InstructionSet::ALL.into_iter().rev();
    sets.find(|set| available(*set) && (fast_dots || *set != InstructionSet::Avx512Bf16))
        .unwrap_or(InstructionSet::Scalar)
}

/// Whether dot products of bf16 are faster than fused multiply-adds, where there are any: none but
/// AMD's processors were found to be so.
fn has_fast_dots() -> bool {
    #[cfg(target_arch = "x86_64")]
    return crate::cpuid::is_amd();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// What matmuls run on beside vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MatrixUnit {
    /// Products of tiles: see [`super::tiles`].
    Tiles,
    /// Dot products of bf16: see [`super::Dots`].
    Dots,
}

impl fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_products_are_taken_where_they_are_fast_and_there_are_no_tiles() {
        use InstructionSet::{Amx, Avx2, Avx512, Avx512Bf16, Scalar};
        let of = |sets: &[InstructionSet], fast| fastest(|set| sets.contains(&set), fast);
        let zen4 = [Scalar, Avx2, Avx512, Avx512Bf16];
        assert_eq!(of(&zen4, true), Avx512Bf16);
        assert_eq!(of(&zen4, false), Avx512);
        assert_eq!(of(&[Scalar, Avx2, Avx512, Avx512Bf16, Amx], false), Amx);
        assert_eq!(of(&zen4[..2], true), Avx2);
        assert_eq!(of(&[], true), Scalar);
        assert!(InstructionSet::detect().available());
    }
}
