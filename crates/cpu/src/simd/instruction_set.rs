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
    /// runs everything else: a matrix unit as far as numbers go. On a Zen 4 they do twice what fused
    /// multiply-adds do, on a Sapphire Rapids two thirds, so that none takes it by itself.
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

    /// Whether matmuls have a matrix unit.
    pub(crate) const fn has_matrix_unit(self) -> bool {
        match self {
            Self::Amx | Self::AmxEmulated => true,
            Self::Avx512Bf16 | Self::Avx512Bf16Emulated => true,
            Self::Scalar | Self::Avx2 | Self::Avx512 | Self::Neon => false,
        }
    }

    /// The fastest that this machine has, but for [`Self::Avx512Bf16`].
    pub fn detect() -> Self {
        Self::ALL
            .into_iter()
            .rev()
            .filter(|set| *set != Self::Avx512Bf16)
            .find(|set| set.available())
            .unwrap_or(Self::Scalar)
    }
}

impl fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
