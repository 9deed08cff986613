//! Which kernels the halves of a layer of routed experts run: a pure function of their shape, their types, where x lies, and
//! the device.
//!
//! ## Method
//! 1. Experts with few rows on average: the kernels that stream weights, for tiles of 8, 16 or 32 rows; of packed FP4 two
//!    warps share a group where there are warps enough. More rows: tiles of 128 rows of a weight by 64; by packed FP4 Hopper's
//!    warpgroups, once rows are gathered. How many an expert really has is known to the device alone, so that each of these
//!    takes any number, an expert's rows in several tiles.
//! 2. Ordered sums, other types, and what is not in whole 16-byte vectors: the kernel of any rows.
//! 3. A launch has the blocks that the device holds at once, or as many as there can be work for.

use std::fmt;

use swiglu_core::{Accumulation, Float};

use crate::{matmul::MatmulFacts, weight::stack::ExpertFormat};

/// Experts that are here, at most: each block keeps a word for each.
pub(crate) const MOST_EXPERTS: usize = 4096;

/// Threads of a block of the kernels of a layer, but for those of packed experts.
pub(super) const THREADS: u32 = 256;

/// A half of the experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    /// The first, with the activation.
    Gated,
    /// The second.
    Down,
}

impl Half {
    pub(super) const ALL: [Self; 2] = [Self::Gated, Self::Down];

    const fn name(self) -> &'static str {
        match self {
            Self::Gated => "gated",
            Self::Down => "down",
        }
    }
}

/// A kernel of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExpertsKernel {
    /// Tiles of 8 rows, weights streamed, FP4 packed; two warps share k, as there are few rows.
    Rows8Halves,
    /// Tiles of 8 rows, weights streamed.
    Rows8,
    /// Of 16, FP4 packed.
    Rows16,
    /// Of 32.
    Rows32,
    /// Tiles of 64 rows by 128 of the weight, through shared memory.
    Tiles,
    /// Of up to 128 rows by 256 of packed FP4 for each of the two blocks of a cluster.
    Warpgroups,
    /// f32 fused multiply-adds in the order of k, of any types at any place.
    Any,
}

impl ExpertsKernel {
    /// Those of a format on tensor cores, for ever more rows.
    pub(super) const fn of_format(format: ExpertFormat) -> &'static [Self] {
        match format {
            ExpertFormat::PackedE2m1 => &[
                Self::Rows8Halves,
                Self::Rows8,
                Self::Rows16,
                Self::Warpgroups,
            ],
            ExpertFormat::E2m1 | ExpertFormat::E4m3 | ExpertFormat::Bf16 => {
                &[Self::Rows8, Self::Rows32, Self::Tiles]
            }
            ExpertFormat::F32 | ExpertFormat::F16 => &[],
        }
    }

    /// The kernel's name.
    pub(super) fn name(self, half: Half, format: ExpertFormat) -> String {
        let (half, format) = (half.name(), format.name());
        match self {
            Self::Rows8Halves => format!("experts_{half}_8_rows_{format}_halves"),
            Self::Rows8 => format!("experts_{half}_8_rows_{format}"),
            Self::Rows16 => format!("experts_{half}_16_rows_{format}"),
            Self::Rows32 => format!("experts_{half}_32_rows_{format}"),
            Self::Tiles => format!("experts_{half}_tiles_{format}"),
            Self::Warpgroups => format!("experts_{half}_warpgroups_{format}"),
            Self::Any => format!("experts_{half}_any"),
        }
    }

    /// Rows of x of a tile.
    const fn rows(self) -> usize {
        match self {
            Self::Rows8Halves | Self::Rows8 | Self::Any => 8,
            Self::Rows16 => 16,
            Self::Rows32 => 32,
            Self::Tiles => 64,
            Self::Warpgroups => 128,
        }
    }

    /// Outputs of an item: groups are half a gate and half an up in the first half. Of warpgroups a cluster takes one.
    const fn outputs(self, half: Half) -> usize {
        let gated = matches!(half, Half::Gated);
        match self {
            Self::Rows8Halves | Self::Rows8 | Self::Rows16 | Self::Rows32 => {
                if gated {
                    8
                } else {
                    16
                }
            }
            Self::Tiles => {
                if gated {
                    64
                } else {
                    128
                }
            }
            Self::Warpgroups => {
                if gated {
                    256
                } else {
                    512
                }
            }
            Self::Any => 32,
        }
    }

    /// Blocks of a cluster, which share items.
    const fn cluster(self) -> usize {
        if matches!(self, Self::Warpgroups) {
            2
        } else {
            1
        }
    }

    /// Experts that shared memory has words for.
    pub(super) const fn most_experts(self) -> usize {
        if matches!(self, Self::Warpgroups) {
            MOST_EXPERTS / 2
        } else {
            MOST_EXPERTS
        }
    }

    /// Blocks that a multiprocessor holds.
    const fn resident(self, format: ExpertFormat) -> usize {
        match (self, format) {
            (Self::Rows8Halves | Self::Rows8, ExpertFormat::PackedE2m1) => 2,
            (_, ExpertFormat::PackedE2m1) => 1,
            (Self::Rows8Halves | Self::Rows8, _) => 3,
            (Self::Rows16 | Self::Rows32 | Self::Tiles | Self::Warpgroups, _) => 2,
            (Self::Any, _) => 4,
        }
    }

    /// Threads of a block.
    pub(super) const fn threads(self, format: ExpertFormat) -> u32 {
        match (self, format) {
            (Self::Rows8Halves | Self::Rows8, ExpertFormat::PackedE2m1) => 384,
            (Self::Rows16, ExpertFormat::PackedE2m1) => 512,
            (Self::Warpgroups, _) => 2 * 128 + 128,
            _ => THREADS,
        }
    }

    /// Bytes of dynamic shared memory of a block: a word for each expert, of tiles `STAGES` of `experts_tiles.cu`, and of
    /// packed experts the rings and one more word for each of `experts_packed.cu`, or the ring of `experts_warpgroups.cuh` with its barriers and sums.
    pub(super) const fn shared(self, format: ExpertFormat, experts: usize) -> u32 {
        let begins = 4 * (experts + 1);
        let stages = match (self, format) {
            (Self::Tiles, _) => 6 * 32 * (128 * format.bits() / 8 + 64 * 2),
            (Self::Rows8Halves | Self::Rows8, ExpertFormat::PackedE2m1) => {
                12 * 2 * 2 * (1024 + 64) + begins
            }
            (Self::Rows16, ExpertFormat::PackedE2m1) => 16 * 2 * 2 * (1024 + 64) + begins,
            (Self::Warpgroups, _) => 3 * (128 * 128 * 2 + 16 * (1024 + 64) + 16) + 8 * 128 * 64,
            _ => 0,
        };
        (stages + 4 * experts) as u32
    }

    /// Columns of which a block of FP8's scales must be a multiple.
    const fn step(self) -> usize {
        match self {
            Self::Rows8Halves | Self::Rows8 | Self::Rows16 | Self::Rows32 => 64,
            Self::Tiles | Self::Warpgroups => 32,
            Self::Any => 1,
        }
    }
}

/// The formats that have kernels on tensor cores; packed ones on Hopper alone.
pub(super) const FORMATS: [ExpertFormat; 4] = [
    ExpertFormat::E2m1,
    ExpertFormat::E4m3,
    ExpertFormat::Bf16,
    ExpertFormat::PackedE2m1,
];

/// What the plan of a half depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ExpertsProblem {
    pub(super) half: Half,
    /// T · k.
    pub(super) routes: usize,
    /// All experts that tokens choose from.
    pub(super) all_experts: usize,
    /// Those that are here.
    pub(super) experts: usize,
    /// Of a row: I, or H.
    pub(super) outputs: usize,
    /// H, or I.
    pub(super) k: usize,
    pub(super) x: Float,
    pub(super) format: ExpertFormat,
    /// FP8: the columns of a block of scales, where a row has several.
    pub(super) block_columns: Option<usize>,
    /// Whether rows of x begin at multiples of 16 bytes.
    pub(super) x_aligned: bool,
    /// Whether those of what comes of it do.
    pub(super) y_aligned: bool,
}

impl ExpertsProblem {
    /// Whether a kernel takes it.
    fn fits(&self, kernel: ExpertsKernel, facts: &MatmulFacts) -> bool {
        let row_bytes = self.k * self.format.bits() / 8;
        let vectors = self.x == Float::BF16 && self.x_aligned && self.k.is_multiple_of(8);
        let whole = row_bytes.is_multiple_of(16) && vectors;
        let blocks = self
            .block_columns
            .is_none_or(|b| b.is_multiple_of(kernel.step()));
        let any_order = facts.accumulation != Accumulation::Ordered;
        let stored = kernel != ExpertsKernel::Warpgroups
            || (self.y_aligned && self.all_experts <= kernel.most_experts());
        // Enough warps for halves of all groups there can be, on every rank.
        let resident = kernel.resident(self.format) * facts.multiprocessors.max(1) as usize;
        let warps = resident * kernel.threads(self.format) as usize / 32;
        let groups = self.outputs.div_ceil(kernel.outputs(self.half));
        let halves = self.routes.saturating_mul(groups).saturating_mul(2);
        let by_halves = kernel == ExpertsKernel::Rows8Halves;
        kernel == ExpertsKernel::Any
            || (ExpertsKernel::of_format(self.format).contains(&kernel)
                && whole
                && stored
                && blocks
                && any_order
                && (!by_halves || halves <= warps))
    }

    /// The kernels for so many rows of an expert, the best first.
    fn kernels(&self) -> &'static [ExpertsKernel] {
        use ExpertsKernel::{Any, Rows8, Rows8Halves, Rows16, Rows32, Tiles, Warpgroups};
        // The same on every rank: all experts count.
        let rows = self.routes.div_ceil(self.all_experts.max(1));
        match (self.format, rows) {
            (ExpertFormat::PackedE2m1, 0..=8) => &[Rows8Halves, Rows8, Any],
            (ExpertFormat::PackedE2m1, 9..=12) => &[Rows16, Any],
            (ExpertFormat::PackedE2m1, _) => &[Warpgroups, Rows16, Any],
            (_, 0..=4) => &[Rows8, Any],
            (_, 5..=16) => &[Rows32, Any],
            _ => &[Tiles, Any],
        }
    }

    /// Tiles that there are at most: one for each expert with a row, and one more for so many rows.
    fn most_tiles(&self, rows: usize) -> usize {
        let touched = self.routes.min(self.experts);
        touched + (self.routes - touched) / rows
    }
}

/// How a half of the experts runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ExpertsPlan {
    pub(super) kernel: ExpertsKernel,
    pub(super) half: Half,
    pub(super) format: ExpertFormat,
    pub(super) blocks: u32,
    /// Items of a tile of rows.
    pub(super) pieces: u32,
}

impl ExpertsPlan {
    /// The plan of a call; none for more experts than blocks keep words for, or more items than 31 bits count.
    pub(super) fn new(problem: &ExpertsProblem, facts: &MatmulFacts) -> Option<Self> {
        let kernels = problem.kernels().iter();
        let kernel = *kernels.into_iter().find(|k| problem.fits(**k, facts))?;
        let pieces = problem.outputs.div_ceil(kernel.outputs(problem.half));
        let items = problem.most_tiles(kernel.rows()).checked_mul(pieces)?;
        let resident = kernel.resident(problem.format) * facts.multiprocessors.max(1) as usize;
        let cluster = kernel.cluster();
        let fits = problem.experts <= MOST_EXPERTS && items < 1 << 31;
        fits.then(|| Self {
            kernel,
            half: problem.half,
            format: problem.format,
            blocks: (cluster * items.min(resident / cluster)) as u32,
            pieces: pieces as u32,
        })
    }

    /// Whether rows of x are gathered first, in scratch memory.
    pub(super) fn gathers(&self) -> bool {
        self.kernel == ExpertsKernel::Warpgroups
    }

    /// Whether its kernel waits for the one before it before it lets the next one start.
    pub(super) fn starts_next_late(&self) -> bool {
        use ExpertsKernel::{Rows8, Rows8Halves, Rows16};
        let streams = matches!(self.kernel, Rows8Halves | Rows8 | Rows16);
        self.format == ExpertFormat::PackedE2m1 && streams
    }
}

impl fmt::Display for ExpertsPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.kernel.name(self.half, self.format);
        if self.gathers() {
            f.write_str("experts_gather, then ")?;
        }
        write!(f, "{name}: {} blocks", self.blocks)
    }
}

#[cfg(test)]
mod tests;
