//! The kernels that multiply: what each takes, and where each is faster.

use std::fmt;

use swiglu_core::Float;

use super::cooperative::CooperativeKernel;
use crate::launch::float_code;

/// How a weight's elements lie on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceFormat {
    F32,
    F16,
    BF16,
    E4m3,
    /// Codes of E2M1, two in a byte, under a byte of E8M0 for each vector.
    Fp4,
}

impl DeviceFormat {
    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Self; 5] = [Self::F32, Self::F16, Self::BF16, Self::E4m3, Self::Fp4];

    /// Bits of an element.
    const fn bits(self) -> usize {
        match self {
            Self::F32 => 32,
            Self::F16 | Self::BF16 => 16,
            Self::E4m3 => 8,
            Self::Fp4 => 4,
        }
    }

    /// Elements in a vector of 16 bytes.
    pub(crate) const fn per_vector(self) -> usize {
        128 / self.bits()
    }

    /// Bytes of so many elements, whole ones.
    pub(crate) const fn bytes(self, elements: usize) -> usize {
        match self {
            Self::Fp4 => elements.div_ceil(2),
            _ => elements.saturating_mul(self.bits() / 8),
        }
    }

    /// The type of x that GEMV and large tiles are made for.
    pub(crate) const fn usual_x(self) -> Float {
        match self {
            Self::F32 => Float::F32,
            Self::F16 => Float::F16,
            Self::BF16 | Self::E4m3 | Self::Fp4 => Float::BF16,
        }
    }

    /// The number that stands for it in the shaders.
    pub(super) fn code(self) -> u32 {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => float_code(self.usual_x()),
            Self::E4m3 => 3,
            Self::Fp4 => 4,
        }
    }

    const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for DeviceFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::E4m3 => "e4m3",
            Self::Fp4 => "fp4",
        })
    }
}

/// Lanes that share a row of the weight in a GEMV.
pub(super) const LANES: u32 = 32;

/// Rows of the weight in a workgroup of a GEMV.
pub(crate) const ROWS: u32 = 4;

/// Rows of the weight in a workgroup that also activates: a vector of gates and one of ups.
pub(super) const GATED_ROWS: u32 = 16;

/// Invocations in a workgroup that also activates.
pub(super) const GATED_INVOCATIONS: u32 = LANES * GATED_ROWS;

/// Up to so many tokens GEMVs of the usual type, which read the weight once for each eight, are faster
/// than tiles; in software up to half as many.
pub(crate) const FEW_USUAL: usize = 32;

/// Up to so many tokens GEMVs of any type, which read it once for each four, are faster than tiles.
pub(crate) const FEW_ANY: usize = 8;

/// The most tokens of any type at a time.
pub(crate) const ANY_TOKENS: usize = 4;

/// The number of large tiles from which on they pay: fewer leave parts of a large device idle, which four times
/// as many small ones do not.
pub(super) const MANY_TILES: u32 = 96;

/// How the lanes that share a row of a GEMV add up what they have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LaneSums {
    /// Through the workgroup's memory.
    Workgroup,
    /// By subgroups of any size, and then through that memory.
    AnySubgroup,
    /// By subgroups of as many lanes.
    Subgroup,
}

/// Which kernels are built, where there is a choice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tier {
    /// How sums over lanes are made.
    pub(crate) sums: LaneSums,
    /// E4M3 decoded as f16.
    pub(crate) e4m3_as_f16: bool,
    /// Tiles kept twice in a workgroup's memory.
    pub(crate) two_buffers: bool,
    /// How many buffers of experts a kernel binds.
    pub(crate) expert_buffers: u32,
}

/// The numbers of tokens that a GEMV of the usual type is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GemvTokens {
    One,
    Four,
    Eight,
}

impl GemvTokens {
    /// All of them, the fewest first.
    pub(crate) const ALL: [Self; 3] = [Self::One, Self::Four, Self::Eight];

    /// The most at a time.
    pub(crate) const MOST: usize = Self::Eight.count() as usize;

    pub(crate) const fn count(self) -> u32 {
        match self {
            Self::One => 1,
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// The fewest that so many tokens fit into.
    pub(crate) const fn holding(tokens: usize) -> Option<Self> {
        match tokens {
            0..=1 => Some(Self::One),
            2..=4 => Some(Self::Four),
            5..=8 => Some(Self::Eight),
            _ => None,
        }
    }
}

/// What a GEMV takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GemvKind {
    /// Up to so many tokens of the usual type in whole vectors.
    Usual(GemvTokens),
    /// Up to [`ANY_TOKENS`] of any type.
    Any { aligned: bool },
}

impl GemvKind {
    /// All of them, by their index.
    pub(crate) const ALL: [Self; 5] = [
        Self::Usual(GemvTokens::One),
        Self::Usual(GemvTokens::Four),
        Self::Usual(GemvTokens::Eight),
        Self::Any { aligned: true },
        Self::Any { aligned: false },
    ];

    const fn index(self) -> usize {
        match self {
            Self::Usual(tokens) => tokens as usize,
            Self::Any { aligned: true } => 3,
            Self::Any { aligned: false } => 4,
        }
    }
}

/// What a tiled kernel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TileKind {
    /// Any x and any depth.
    Small { aligned: bool },
    /// x of the usual type in whole vectors, and whole depths.
    Large,
}

impl TileKind {
    /// All of them, by their index.
    pub(crate) const ALL: [Self; 3] = [
        Self::Small { aligned: true },
        Self::Large,
        Self::Small { aligned: false },
    ];

    const fn index(self) -> usize {
        match self {
            Self::Small { aligned: true } => 0,
            Self::Large => 1,
            Self::Small { aligned: false } => 2,
        }
    }

    /// The tiles' side in tokens and rows of the weight.
    pub(crate) const fn side(self) -> u32 {
        match self {
            Self::Small { .. } => 64,
            Self::Large => 128,
        }
    }

    /// Elements of a row that a tile takes at a time.
    pub(crate) const fn depth(self) -> u32 {
        match self {
            Self::Small { .. } => 16,
            Self::Large => 8,
        }
    }

    /// Bytes of a workgroup's memory that two tiles take, kept twice: their lines are a vector longer
    /// than the tile.
    const fn two_buffers(self) -> u32 {
        2 * 2 * 4 * (self.side() + 4) * self.depth()
    }
}

/// Bytes of a workgroup's memory that tiles of either size take, kept twice.
pub(crate) const TWO_BUFFERS: u32 = {
    let (small, large) = (
        TileKind::Small { aligned: true }.two_buffers(),
        TileKind::Large.two_buffers(),
    );
    if small > large { small } else { large }
};

/// A kernel that multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MatmulKernel {
    Gemv(DeviceFormat, GemvKind),
    Tiles(DeviceFormat, TileKind),
    /// On cooperative matrices, maybe of dense rows of x with a pipeline for their length.
    Cooperative {
        kernel: CooperativeKernel,
        dense: bool,
    },
}

impl MatmulKernel {
    /// Its place among the shaders of its sort.
    pub(super) const fn index(self) -> usize {
        match self {
            Self::Gemv(format, kind) => format.index() * GemvKind::ALL.len() + kind.index(),
            Self::Tiles(format, kind) => format.index() * TileKind::ALL.len() + kind.index(),
            Self::Cooperative { kernel, .. } => kernel.index(),
        }
    }

    /// Whether x comes to it in f16, in rows that end with their exponents.
    pub(crate) const fn takes_rows_as_f16(self) -> bool {
        matches!(self, Self::Cooperative { kernel, .. } if kernel.weight.is_scaled())
    }
}

impl fmt::Display for MatmulKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gemv(format, GemvKind::Usual(tokens)) => {
                let (x, tokens) = (format.usual_x(), tokens.count());
                write!(f, "gemv({x} by {format}, T <= {tokens})")
            }
            Self::Gemv(format, GemvKind::Any { aligned }) => {
                write!(f, "gemv_any(by {format}, {})", vectors(*aligned))
            }
            Self::Tiles(format, kind) => {
                let side = kind.side();
                write!(f, "matmul_tiles({side} x {side}, ")?;
                match kind {
                    TileKind::Small { aligned } => write!(f, "by {format}, {})", vectors(*aligned)),
                    TileKind::Large => write!(f, "{} by {format})", format.usual_x()),
                }
            }
            Self::Cooperative { kernel, .. } => write!(f, "{kernel}"),
        }
    }
}

const fn vectors(aligned: bool) -> &'static str {
    if aligned {
        "whole vectors"
    } else {
        "any place"
    }
}

/// A GEMV of 16-bit x that also activates, by the native kernel's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GatedKernel {
    pub(crate) weight: GatedFormat,
    pub(crate) tokens: GemvTokens,
}

/// The formats of weights that have kernels which also activate: those whose usual x has 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GatedFormat {
    F16,
    BF16,
    E4m3,
    Fp4,
}

impl GatedFormat {
    pub(super) const ALL: [Self; 4] = [Self::F16, Self::BF16, Self::E4m3, Self::Fp4];

    const fn of(format: DeviceFormat) -> Option<Self> {
        match format {
            DeviceFormat::F32 => None,
            DeviceFormat::F16 => Some(Self::F16),
            DeviceFormat::BF16 => Some(Self::BF16),
            DeviceFormat::E4m3 => Some(Self::E4m3),
            DeviceFormat::Fp4 => Some(Self::Fp4),
        }
    }

    pub(super) const fn format(self) -> DeviceFormat {
        match self {
            Self::F16 => DeviceFormat::F16,
            Self::BF16 => DeviceFormat::BF16,
            Self::E4m3 => DeviceFormat::E4m3,
            Self::Fp4 => DeviceFormat::Fp4,
        }
    }
}

impl GatedKernel {
    /// All of them, by [`Self::index`].
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let formats = GatedFormat::ALL.into_iter();
        formats.flat_map(|weight| GemvTokens::ALL.map(|tokens| Self { weight, tokens }))
    }

    /// The kernel for so many tokens, if there is one.
    pub(crate) const fn of(weight: DeviceFormat, tokens: usize) -> Option<Self> {
        match (GatedFormat::of(weight), GemvTokens::holding(tokens)) {
            (Some(weight), Some(tokens)) => Some(Self { weight, tokens }),
            _ => None,
        }
    }

    /// Its place among the shaders.
    pub(super) const fn index(self) -> usize {
        self.weight as usize * GemvTokens::ALL.len() + self.tokens as usize
    }
}

impl fmt::Display for GatedKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let format = self.weight.format();
        let (x, tokens) = (format.usual_x(), self.tokens.count());
        write!(f, "gemv_gated({x} by {format}, T <= {tokens})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_by_their_index() {
        let all = DeviceFormat::ALL.into_iter();
        let gemvs = all.clone().flat_map(|w| GemvKind::ALL.map(|k| (w, k)));
        for (i, (weight, kind)) in gemvs.enumerate() {
            assert_eq!(MatmulKernel::Gemv(weight, kind).index(), i);
        }
        let tiles = all.clone().flat_map(|w| TileKind::ALL.map(|k| (w, k)));
        for (i, (weight, kind)) in tiles.enumerate() {
            assert_eq!(MatmulKernel::Tiles(weight, kind).index(), i);
        }
        let gated = all.flat_map(|w| [1, 4, 8].map(|tokens| GatedKernel::of(w, tokens)));
        for (i, kernel) in gated.flatten().enumerate() {
            assert_eq!(kernel.index(), i);
        }
    }
}
