//! Which kernel a matmul runs: a pure function of its shape, its types, where x lies, and the
//! device.
//!
//! ## Method
//! 1. Ordered sums are asked for: the kernel whose sums have one order, which takes everything.
//! 2. x and w of one type: cublasLt, but for few tokens in bf16 on Hopper, where a kernel reads the weight by a tensor
//!    map ([`super::mapped`]).
//! 3. Other types, few rows of x: the kernels that stream a packed weight ([`super::step`]), or those
//!    that read w once for every 64 rows or fewer. Some more: Hopper's warpgroups ([`super::warpgroups`]).
//! 4. More rows: an FP8 weight that is exact in bf16 is decoded to it, and then cublasLt.
//! 5. Where these do not take the call, tiles of 128 x 128; and where x or w is not in whole
//!    16-byte vectors, the ordered kernel again. A packed weight is unpacked for both.

use std::fmt;

use swiglu_core::{Accumulation, Float, Shape, WeightFormat};

use super::{
    mapped::MappedPlan,
    step::{StepKind, StepPlan},
    warpgroups::WarpgroupPlan,
};
use crate::{
    launch::{driver::Capability, params::Packing},
    weight::WeightType,
};

#[cfg(test)]
mod tests;

/// Up to this many rows of x, reading a weight once is less than decoding it for cublasLt.
const FEW_ROWS: usize = 64;

/// Up to this many, reading it once for every 64 is less than what too few tiles take.
const MORE_ROWS: usize = 256;

/// Rows of x that a block of each kernel for few rows multiplies.
pub(super) const X_ROWS: [usize; 4] = [8, 16, 32, 64];

/// Rows of w of such a block.
const W_ROWS: [usize; 4] = [16, 16, 32, 32];

/// The side of the tiles of y.
const TILE: usize = 128;

/// The side of the ordered kernel's tiles.
const ORDERED_TILE: usize = 64;

/// A way that a matmul goes.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The kernels that read a weight in bf16 by a tensor map, for few tokens.
    Mapped,
    /// cublasLt, for equal types.
    Library,
    /// An FP8 weight decoded to bf16, then cublasLt.
    Decode,
    /// The kernels that stream a packed weight, for few tokens.
    Step,
    /// Hopper's warpgroups on a packed weight, for more tokens.
    Warpgroups,
    /// The kernels for few rows of x.
    Rows,
    /// The kernels of tiles.
    Tiles,
    /// The ordered kernel, for any alignment.
    Ordered,
}

/// What cublasLt can do, where it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LibraryKind {
    /// Matmuls of one type.
    Plain,
    /// Of FP8 as well, with a scale for each block.
    BlockScaling,
}

/// What of the device and its libraries decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MatmulFacts {
    pub(crate) capability: Capability,
    /// Of the device.
    pub(crate) multiprocessors: u32,
    pub(crate) library: Option<LibraryKind>,
    pub(crate) accumulation: Accumulation,
}

impl MatmulFacts {
    /// Whether there are kernels of packed weights: for Hopper alone.
    pub(super) fn has_packed_kernels(&self) -> bool {
        self.capability.is_hopper()
    }

    /// The multiprocessors that weights are packed for. None with ordered sums, for which there is no
    /// such kernel, and where cublasLt is to multiply codes, which it does by rows.
    pub(crate) fn packs_for(&self) -> Option<u32> {
        let packs = self.has_packed_kernels() && self.accumulation == Accumulation::MatrixUnit;
        packs.then_some(self.multiprocessors)
    }

    /// The same where cublasLt does not take the call.
    pub(super) const fn without_library(self) -> Self {
        Self {
            library: None,
            ..self
        }
    }

    /// Whether FP8 tensor cores may multiply codes as they are, of any number of tokens. The library
    /// has these kernels for Hopper alone.
    pub(crate) fn multiplies_codes(&self) -> bool {
        let there = self.library == Some(LibraryKind::BlockScaling);
        there && self.capability.major == 9 && self.accumulation == Accumulation::Fp8TensorCore
    }

    /// The same of few tokens, by our own kernels.
    pub(super) fn multiplies_few_codes(&self) -> bool {
        self.has_packed_kernels() && self.accumulation == Accumulation::Fp8TensorCore
    }
}

/// The scales of an FP8 weight, as far as a plan depends on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ScalesShape {
    /// Of a row of the weight.
    pub(crate) columns: usize,
    /// Columns of the weight that share one.
    pub(crate) block_columns: usize,
    /// Whether every code times its scale is a value of bf16.
    pub(crate) exact_in_bf16: bool,
    /// Whether the kernels of warpgroups can multiply by it.
    pub(crate) factors: bool,
}

/// y = x · wᵀ: x \[t, k\], w \[n, k\].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MatmulProblem {
    pub(crate) t: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) x: Float,
    pub(crate) weight: WeightType,
    pub(crate) y: Float,
    /// Whether the rows of x begin at multiples of 16 bytes.
    pub(crate) x_aligned: bool,
    pub(crate) scales: Option<ScalesShape>,
    /// How the weight is packed, if it is.
    pub(crate) packing: Option<Packing>,
}

impl MatmulProblem {
    /// That of a shape, x without gaps and the weight as it would be loaded, of `pairs` of rows or
    /// not; none for a format that is not known here. Scales that are powers of two are taken for
    /// exact.
    pub(crate) fn of_shape(
        shape: &Shape,
        (x, format, y): (Float, WeightFormat, Float),
        pairs: bool,
        facts: &MatmulFacts,
    ) -> Option<Self> {
        let (n, k) = (shape.cols, shape.depth);
        // FP4 is decoded when it is loaded.
        let format = match format {
            WeightFormat::Fp4 => WeightFormat::Float(Float::BF16),
            format => format,
        };
        n.checked_mul(k.checked_mul(4)?)?;
        let scales = format.scaling().map(|(scales, block)| ScalesShape {
            columns: k.div_ceil(block[1].max(1)),
            block_columns: block[1].min(k),
            exact_in_bf16: scales == swiglu_core::ScaleFormat::E8M0,
            factors: scales == swiglu_core::ScaleFormat::E8M0,
        });
        Some(Self {
            t: shape.rows,
            n,
            k,
            x,
            weight: WeightType::from_format(format).ok()?,
            y,
            x_aligned: (k * x.size()).is_multiple_of(16),
            scales,
            packing: format
                .scaling()
                .and_then(|(_, block)| Packing::of_shape([n, k], block, pairs, facts.packs_for()?)),
        })
    }

    /// Whether the blocks of the scales are whole steps of k.
    fn blocks_are_whole(&self, step: usize) -> bool {
        let whole = |s: ScalesShape| s.columns == 1 || s.block_columns.is_multiple_of(step);
        self.scales.is_none_or(whole)
    }

    /// Whether kernels on tensor cores can read both matrices, 16 bytes at a time.
    fn is_aligned(&self) -> bool {
        self.x_aligned && (self.k * self.weight.size()).is_multiple_of(16)
    }

    /// The kernel that streams the weight, for few tokens in bf16 by a packed one.
    pub(super) fn step(&self, facts: &MatmulFacts, kind: StepKind) -> Option<StepPlan> {
        let reads_x = self.x == Float::BF16 && self.x_aligned;
        let packing = self.packing.filter(|_| reads_x)?;
        let any_order = facts.accumulation != Accumulation::Ordered;
        any_order.then(|| StepPlan::new(self.t, packing, kind))?
    }

    /// The kernel of warpgroups, for tokens in bf16 by a packed weight whose codes become bf16 by a factor.
    pub(super) fn warpgroups(&self, facts: &MatmulFacts, kind: StepKind) -> Option<WarpgroupPlan> {
        let has_factors = self.scales.is_some_and(|s| s.factors);
        let takes = self.t > 0 && self.x == Float::BF16 && self.x_aligned && has_factors;
        let packing = self.packing.filter(|_| takes)?;
        let any_order = facts.accumulation != Accumulation::Ordered;
        any_order.then(|| WarpgroupPlan::new(self.t, packing, kind, facts.multiprocessors))?
    }

    /// The kernel that reads a weight in bf16 as it is stored, for few tokens in bf16.
    pub(super) fn mapped(&self, facts: &MatmulFacts) -> Option<MappedPlan> {
        let reads = self.x == Float::BF16 && self.x_aligned && self.weight == WeightType::Bf16;
        // The library rounds to the same types.
        let writes = self.y != Float::F16;
        let there = facts.has_packed_kernels() && facts.accumulation != Accumulation::Ordered;
        let takes = reads && writes && there;
        takes.then(|| MappedPlan::new(self.t, [self.n, self.k], facts.multiprocessors))?
    }

    /// The kernel that multiplies and activates.
    pub(super) fn gated(&self, facts: &MatmulFacts) -> Option<GatedPlan> {
        let packed = |plan| GatedPlan::Packed(plan);
        let warpgroups = self.warpgroups(facts, StepKind::Gated);
        let warpgroups = warpgroups.map(PackedPlan::Warpgroups).map(packed);
        let step = self.step(facts, StepKind::Gated);
        let step = step.map(PackedPlan::Step).map(packed);
        let mapped = self.mapped(facts).map(GatedPlan::Mapped);
        warpgroups.or(step).or(mapped)
    }

    /// Whether the weight can be decoded to bf16 without loss, in whole vectors, for cublasLt.
    pub(super) fn decodes(&self, facts: &MatmulFacts) -> bool {
        let exact = self.scales.is_some_and(|s| s.exact_in_bf16);
        let fits = self.k.is_multiple_of(16) && self.n * self.k / 16 < 1 << 31;
        facts.library.is_some() && exact && fits && self.blocks_are_whole(16)
    }
}

/// Elements of k that the threads of a row take at a time, in the kernels for few rows.
const fn step(weight: WeightType, narrow: bool) -> usize {
    4 * if narrow { 8 } else { 16 / weight.size() }
}

/// One of our own kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnKernel {
    /// For few rows of x: the place in [`X_ROWS`], and whether it is for blocks of scales of 32
    /// columns. On tensor cores, exact products added in f32.
    Rows { place: usize, narrow: bool },
    /// Tiles of 128 x 128 of y, as exact.
    Tiles,
    /// f32 fused multiply-adds in the order of k, at any alignment and of any block of scales.
    Ordered,
}

impl OwnKernel {
    /// The name of the kernel of [`Self::Rows`] for a packed weight.
    pub(super) fn packed_name(place: usize, x: Float) -> String {
        format!("matmul_{}_rows_{x}_packed", X_ROWS[place])
    }

    /// The kernel's name for a pair of types.
    pub(super) fn name(self, x: Float, weight: WeightType) -> String {
        let weight = weight.name();
        match self {
            Self::Rows { place, narrow } => {
                let end = if narrow { "_narrow" } else { "" };
                format!("matmul_{}_rows_{x}_{weight}{end}", X_ROWS[place])
            }
            Self::Tiles => format!("matmul_tiles_{x}_{weight}"),
            Self::Ordered => format!("matmul_any_{x}_{weight}"),
        }
    }

    /// Rows of w and of x that a block multiplies.
    const fn tile(self) -> [usize; 2] {
        match self {
            Self::Rows { place, .. } => [W_ROWS[place], X_ROWS[place]],
            Self::Tiles => [TILE; 2],
            Self::Ordered => [ORDERED_TILE; 2],
        }
    }

    /// Bytes of dynamic shared memory of a block: for tiles, `stages` of `matmul_tiles.cu`.
    pub(super) fn shared(self, x: Float, weight: WeightType) -> u32 {
        match self {
            Self::Rows { .. } | Self::Ordered => 0,
            Self::Tiles => {
                let stage = (TILE * 32 * (x.size() + weight.size())) as u32;
                stage * (96 * 1024 / stage).min(8)
            }
        }
    }
}

/// A launch of one of our own kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnPlan {
    pub(crate) kernel: OwnKernel,
    pub(crate) x: Float,
    pub(crate) weight: WeightType,
    pub(crate) blocks: [u32; 2],
    /// Whether the weight is packed, which [`OwnKernel::Rows`] alone can read.
    pub(crate) packed: bool,
}

/// A launch of a kernel that streams a packed weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PackedPlan {
    Step(StepPlan),
    Warpgroups(WarpgroupPlan),
}

impl fmt::Display for PackedPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(step) => write!(f, "{step}"),
            Self::Warpgroups(plan) => write!(f, "{plan}"),
        }
    }
}

/// A launch of a kernel that multiplies and activates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GatedPlan {
    Packed(PackedPlan),
    Mapped(MappedPlan),
}

impl fmt::Display for GatedPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packed(plan) => write!(f, "{plan}"),
            Self::Mapped(plan) => write!(f, "{plan}"),
        }
    }
}

/// How a matmul is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MatmulPlan {
    /// cublasLt on the weight as it was stored.
    Library,
    /// The weight decoded to bf16, then cublasLt.
    Decode {
        /// Whether it is packed.
        packed: bool,
    },
    /// A kernel that streams a packed weight.
    Packed(PackedPlan),
    /// A kernel that reads a weight in bf16 by a tensor map.
    Mapped(MappedPlan),
    /// One of our own kernels.
    Own(OwnPlan),
}

impl MatmulPlan {
    /// The plan of a call, or of the given route alone. None where that route does not take the
    /// call, and for more rows than a grid has.
    pub(crate) fn new(
        problem: &MatmulProblem,
        facts: &MatmulFacts,
        route: Option<Route>,
    ) -> Option<Self> {
        let one = route.map(|route| [route]);
        let routes = match &one {
            Some(route) => route,
            None => Self::routes(problem, facts.accumulation),
        };
        routes.iter().find_map(|&r| Self::by(r, problem, facts))
    }

    /// The routes of a matmul, the best first; the last one takes all alignments.
    fn routes(problem: &MatmulProblem, accumulation: Accumulation) -> &'static [Route] {
        use Route::{Decode, Library, Mapped, Ordered, Rows, Step, Tiles, Warpgroups};
        match problem.t {
            _ if accumulation == Accumulation::Ordered => &[Ordered],
            _ if WeightType::of(problem.x) == problem.weight => &[Mapped, Library, Tiles, Ordered],
            t if t <= FEW_ROWS => &[Warpgroups, Step, Rows, Tiles, Ordered],
            t if t <= MORE_ROWS => &[Warpgroups, Decode, Rows, Tiles, Ordered],
            _ => &[Warpgroups, Decode, Tiles, Ordered],
        }
    }

    /// The plan by one route, if that takes the matmul.
    fn by(route: Route, problem: &MatmulProblem, facts: &MatmulFacts) -> Option<Self> {
        let MatmulProblem { t, n, k, x, .. } = *problem;
        let (weight, packed) = (problem.weight, problem.packing.is_some());
        // What cublasLt takes: x and y of one type, or y in f32.
        let library = facts.library.is_some() && (problem.y == x || problem.y == Float::F32);
        let kernel = match route {
            Route::Mapped => return problem.mapped(facts).map(Self::Mapped),
            Route::Library => {
                return (library && WeightType::of(x) == weight).then_some(Self::Library);
            }
            Route::Decode => {
                let decodes = x == Float::BF16 && problem.decodes(facts);
                return (library && decodes).then_some(Self::Decode { packed });
            }
            Route::Step => {
                let step = problem.step(facts, StepKind::Plain);
                return step.map(|step| Self::Packed(PackedPlan::Step(step)));
            }
            Route::Warpgroups => {
                let plan = problem.warpgroups(facts, StepKind::Plain);
                return plan.map(|plan| Self::Packed(PackedPlan::Warpgroups(plan)));
            }
            Route::Rows => {
                let is_fp8 = weight == WeightType::E4m3;
                let fits = problem.is_aligned() && problem.blocks_are_whole(step(weight, is_fp8));
                let last = X_ROWS.len() - 1;
                fits.then(|| OwnKernel::Rows {
                    place: X_ROWS.iter().position(|&rows| t <= rows).unwrap_or(last),
                    narrow: is_fp8 && !packed && !problem.blocks_are_whole(step(weight, false)),
                })?
            }
            Route::Tiles => {
                let whole = (k * x.size()).is_multiple_of(16) && problem.blocks_are_whole(32);
                (problem.is_aligned() && whole).then_some(OwnKernel::Tiles)?
            }
            Route::Ordered => OwnKernel::Ordered,
        };
        let [w_rows, x_rows] = kernel.tile();
        let blocks = [n.div_ceil(w_rows), t.div_ceil(x_rows)];
        (blocks[1] <= 65_535).then_some(Self::Own(OwnPlan {
            kernel,
            x,
            weight,
            blocks: blocks.map(|b| b as u32),
            packed,
        }))
    }
}

impl fmt::Display for MatmulPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Library => f.write_str("cublasLt"),
            Self::Decode { packed: false } => f.write_str("decode_e4m3_to_bf16, then cublasLt"),
            Self::Decode { packed: true } => f.write_str("unpack_e4m3_to_bf16, then cublasLt"),
            Self::Packed(plan) => write!(f, "{plan}"),
            Self::Mapped(plan) => write!(f, "{plan}"),
            Self::Own(own) => {
                let [w, x] = own.blocks;
                let name = match own.kernel {
                    OwnKernel::Rows { place, .. } if own.packed => {
                        OwnKernel::packed_name(place, own.x)
                    }
                    kernel if own.packed => {
                        format!("unpack_e4m3, then {}", kernel.name(own.x, own.weight))
                    }
                    kernel => kernel.name(own.x, own.weight),
                };
                write!(f, "{name}: {w} x {x} blocks")
            }
        }
    }
}
