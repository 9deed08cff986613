//! Matmuls of codes of more tokens than `codes.rs` has kernels for: `code_tiles.cuh` and `large_code_tiles.cuh`, in the module of
//! `codes.cu`.

use std::fmt;

use cudarc::driver::sys;
use swiglu_core::{GatedActivation, Quantization, ScaleFormat};

use super::{
    codes::{CodesKernels, STAGE},
    step::StepActivation,
};
use crate::{
    activation::scalars,
    error::Result,
    launch::{
        driver::Grid,
        params::{CodeTilesParams, CodesParams, Scalars},
        tensor_map::TensorMap,
    },
    quant::RawQuantized,
    view::RawMatrix,
    weight::CudaWeight,
};

/// Rows of the weight that a block has.
const ROWS: usize = 128;

/// Rows of a group: eight of the gate and eight of the up half.
const GROUP: usize = 16;

/// Blocks of a cluster, which of a gate and its up half have a group of 128 activations.
const CLUSTER: usize = 2;

/// Cycles of a block beside its stages, about: it starts, waits for the first stage, and stores its sums.
const AROUND: usize = 5000;

/// A kernel of `code_tiles.cuh`, or of `large_code_tiles.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CodeTilesKernel {
    /// Of a block, at most.
    tokens: usize,
    stages: usize,
}

impl CodeTilesKernel {
    pub(super) const ALL: [Self; 4] = [
        Self {
            tokens: 64,
            stages: 8,
        },
        Self {
            tokens: 128,
            stages: 6,
        },
        Self {
            tokens: 192,
            stages: 5,
        },
        Self {
            tokens: 256,
            stages: 4,
        },
    ];

    pub(super) fn name(self) -> String {
        format!("code_tiles_{}_tokens", self.tokens)
    }

    /// Whether it is of `large_code_tiles.cuh`.
    const fn is_large(self) -> bool {
        self.tokens > 128
    }

    /// Two warpgroups, which take the stages in turns or have 64 tokens each, and a warp that copies. Of large tiles two
    /// or three, of 64 tokens once or twice, and one that copies and leaves them its registers.
    const fn threads(self) -> u32 {
        match self.tokens {
            192 => 4 * 128,
            256 => 3 * 128,
            _ => 2 * 128 + 32,
        }
    }

    /// Sets of warpgroups, which take stages in turns.
    const fn sets(self) -> usize {
        128 / self.tokens
    }

    /// Bytes of dynamic shared memory of a block: stages, or the sums that take their place, barriers, the largest
    /// magnitudes of the other block's tokens, and the scales of the weight and of tokens. Large tiles leave sums and scales
    /// of tokens in registers.
    const fn shared(self, k: usize) -> usize {
        let ring = self.stages * (self.tokens + ROWS) * STAGE;
        let barriers = 16 * self.stages + 16;
        let units = k.div_ceil(STAGE);
        if self.is_large() {
            return ring + barriers + 4 * self.tokens + 8 * units;
        }
        let sums = self.sets() * self.tokens * (ROWS + 8) * 4;
        let first = if ring > sums { ring } else { sums };
        first + barriers + 4 * self.tokens + (8 + 4 * (self.tokens + 1)) * units
    }

    /// Cycles that a stage keeps shared memory busy: it is written, and 64 tokens' products read both operands.
    const fn stage(self) -> usize {
        let products = self.tokens / 64 * 4 * (16 + ROWS / 4);
        self.tokens + ROWS + products
    }
}

/// A launch of a kernel of tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CodeTilesStep {
    /// The place in [`CodeTilesKernel::ALL`].
    place: usize,
    blocks: [u32; 2],
    shared: u32,
    /// Tokens that a copy brings: those of a block, which has all where they are fewer than the kernel's. The blocks of a
    /// cluster of large tiles bring half of their tokens each.
    rows: u32,
}

impl CodeTilesStep {
    /// Whether all blocks run at once.
    pub(super) const fn at_once(&self, multiprocessors: u32) -> bool {
        self.blocks[0] as u64 * self.blocks[1] as u64 <= multiprocessors as u64
    }

    /// The plan of so many tokens; none where there are none, or k is too long.
    pub(super) fn new(t: usize, [n, k]: [usize; 2], multiprocessors: u32) -> Option<Self> {
        let clusters = n.div_ceil(ROWS * CLUSTER);
        let at_once = (multiprocessors as usize / CLUSTER).max(1);
        let cycles = |kernel: &CodeTilesKernel| {
            let rounds = (clusters * t.div_ceil(kernel.tokens)).div_ceil(at_once);
            rounds * (k.div_ceil(STAGE) * kernel.stage() + AROUND)
        };
        let kernels = CodeTilesKernel::ALL.iter().enumerate();
        let fits = |kernel: &CodeTilesKernel| {
            let whole = !kernel.is_large() || n.is_multiple_of(8);
            whole && kernel.shared(k) <= super::codes::MOST_SHARED
        };
        let fitting = kernels.filter(|(_, kernel)| fits(kernel));
        let (place, kernel) = fitting.min_by_key(|(_, kernel)| cycles(kernel))?;
        let rows = if kernel.is_large() {
            kernel.tokens / 2
        } else {
            kernel.tokens.min(t.next_multiple_of(8))
        };
        let blocks = [clusters.checked_mul(CLUSTER)?, t.div_ceil(kernel.tokens)];
        let [columns, tiles] = blocks.map(u32::try_from);
        // As many rows of blocks as a launch may have.
        let tiles = tiles.ok().filter(|&tiles| tiles < 1 << 16)?;
        (t > 0 && n > 0 && k > 0).then_some(Self {
            place,
            blocks: [columns.ok()?, tiles],
            shared: kernel.shared(k) as u32,
            rows: rows as u32,
        })
    }
}

impl fmt::Display for CodeTilesStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [columns, tiles] = self.blocks;
        let name = CodeTilesKernel::ALL[self.place].name();
        write!(f, "{name}: {columns} x {tiles} blocks")
    }
}

/// What is done with a gate and its up half.
pub(super) struct ActivatedCodes<'a> {
    op: &'a GatedActivation,
    clamped: bool,
    floor: f32,
    y: &'a RawQuantized,
}

impl<'a> ActivatedCodes<'a> {
    /// Of results whose rows are `outputs` long; none where there is no kernel for it.
    pub(super) fn new(
        op: &'a GatedActivation,
        quant: &Quantization,
        outputs: usize,
        y: &'a RawQuantized,
    ) -> Option<Self> {
        let stride = y.codes_layout.stride as u64;
        let words = (y.first() | stride).is_multiple_of(4);
        let takes = Self::takes(op, quant, outputs) && words;
        takes.then_some(Self {
            op,
            clamped: StepActivation::of(op)?.clamped,
            floor: quant.floor(),
            y,
        })
    }

    /// Whether there is a kernel for it, wherever its results lie.
    pub(super) fn takes(op: &GatedActivation, quant: &Quantization, outputs: usize) -> bool {
        let powers = quant.format() == ScaleFormat::E8M0 && quant.materialize();
        // No block of the weight's scales is cut between the halves, and groups are whole.
        let whole = quant.group() == ROWS && outputs.is_multiple_of(ROWS);
        powers && whole && StepActivation::of(op).is_some_and(|of| !of.eager)
    }
}

impl CodesKernels {
    /// Enqueues y = (code · scale) · wᵀ.
    ///
    /// # Safety
    /// As [`Self::multiply`].
    pub(super) unsafe fn multiply_tiles(
        &self,
        stream: sys::CUstream,
        plan: CodeTilesStep,
        x: &RawQuantized,
        (weight, blocks): (&CudaWeight, u64),
        y: &RawMatrix,
    ) -> Result<()> {
        let to = (
            y.first(),
            y.layout.stride,
            super::parameters::y_type(y.float),
        );
        let rows = ROWS as u32;
        let map = TensorMap::of_codes(
            weight.data.address(),
            [weight.rows, weight.cols],
            weight.cols,
            rows,
        )?;
        let codes = Self::params((plan.rows, map), x, (weight, blocks), to)?;
        let params = CodeTilesParams {
            codes,
            y_scales: 0,
            y_scale_row: 0,
            y_scale_word: 0,
            y_word_log: 0,
            gated: 0,
            up_scales: 0,
            floor: 0.0,
            scalars: Scalars::default(),
        };
        // SAFETY: by this function's contract.
        unsafe { self.launch_tiles(stream, plan, &params) }
    }

    /// Enqueues y = quantized op((code · scale) · wᵀ), of which the rows of the gate are the weight's first half.
    ///
    /// # Safety
    /// As [`Self::multiply`].
    pub(super) unsafe fn activate_tiles(
        &self,
        stream: sys::CUstream,
        plan: CodeTilesStep,
        x: &RawQuantized,
        (weight, blocks): (&CudaWeight, u64),
        activated: &ActivatedCodes<'_>,
    ) -> Result<()> {
        let ActivatedCodes {
            op,
            clamped,
            floor,
            y,
        } = *activated;
        let half = weight.rows / 2;
        let groups = ((weight.rows / GROUP) as u32, [GROUP / 2, half]);
        let place = (weight.data.address(), weight.cols);
        let map = TensorMap::of_code_groups(place, groups, (ROWS / GROUP) as u32)?;
        let to = (y.first(), y.codes_layout.stride, 0);
        let codes = Self::params((plan.rows, map), x, (weight, blocks), to)?;
        let [y_scale_row, y_scale_word] = y.scale_steps();
        let mut scalars = scalars(op);
        if !clamped {
            scalars.limit = f32::INFINITY;
        }
        let params = CodeTilesParams {
            codes,
            y_scales: y.scales,
            y_scale_row,
            y_scale_word,
            y_word_log: y.word_log(),
            gated: 1,
            up_scales: (half / ROWS) as u32 * codes.scale_columns,
            floor,
            scalars,
        };
        // SAFETY: by this function's contract.
        unsafe { self.launch_tiles(stream, plan, &params) }
    }

    unsafe fn launch_tiles(
        &self,
        stream: sys::CUstream,
        plan: CodeTilesStep,
        params: &CodeTilesParams,
    ) -> Result<()> {
        let grid = Grid {
            blocks: plan.blocks,
            threads: CodeTilesKernel::ALL[plan.place].threads(),
            shared: plan.shared,
            programmatic: true,
        };
        // SAFETY: by the callers' contracts, and the kernels stay inside of the call's shapes.
        unsafe { self.tiles[plan.place].launch(stream, grid, params) }
    }

    /// What all kernels of codes take, by a map of the weight.
    pub(super) fn params(
        (rows, w): (u32, TensorMap),
        x: &RawQuantized,
        (weight, blocks): (&CudaWeight, u64),
        (y, y_stride, y_type): (u64, usize, u32),
    ) -> Result<CodesParams> {
        let (codes, [scale_row, scale_word]) = (&x.codes_layout, x.scale_steps());
        let (n, k) = (weight.rows, weight.cols);
        Ok(CodesParams {
            x: TensorMap::of_codes(x.first(), [codes.rows, k], codes.stride, rows)?,
            w,
            x_scales: x.scales,
            w_scales: blocks,
            y,
            y_stride: y_stride as u64,
            scale_row,
            scale_word,
            word_log: x.word_log(),
            power_of_two: x.has_powers(),
            scale_columns: k.div_ceil(STAGE).next_multiple_of(4) as u32,
            t: codes.rows as u32,
            n: n as u32,
            k: k as u32,
            rows,
            y_type,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_that_of_the_kernels() {
        let source = include_str!("../../kernels/matmul/codes.cu");
        let is_entry = |line: &&str| {
            ["TILES(", "LARGE_TILES("]
                .iter()
                .any(|of| line.starts_with(of))
        };
        let lines: Vec<&str> = source.lines().filter(is_entry).collect();
        assert_eq!(lines.len(), CodeTilesKernel::ALL.len());
        for (line, kernel) in lines.iter().zip(CodeTilesKernel::ALL) {
            let large = if kernel.is_large() { "LARGE_" } else { "" };
            let of = format!("{large}TILES({}, {}, ", kernel.tokens, kernel.stages);
            assert!(line.starts_with(&of), "{line} is not {of}");
        }
    }

    #[test]
    fn tiles_are_those_that_take_the_fewest_cycles() {
        let named = |t: usize, shape: [usize; 2]| {
            CodeTilesStep::new(t, shape, 132).map(|plan| plan.to_string())
        };
        let of = |tokens: u32, blocks: &str| {
            Some(format!("code_tiles_{tokens}_tokens: {blocks} blocks"))
        };
        let flash = |t| named(t, [4096, 4096]);
        assert_eq!(flash(65), of(64, "32 x 2"));
        assert_eq!(flash(256), of(64, "32 x 4"));
        assert_eq!(flash(257), of(128, "32 x 3"));
        assert_eq!(flash(512), of(128, "32 x 4"));
        // One round of large tiles is less than two of others.
        assert_eq!(flash(513), of(192, "32 x 3"));
        assert_eq!(flash(768), of(192, "32 x 4"));
        assert_eq!(flash(769), of(256, "32 x 4"));
        assert_eq!(flash(1024), of(256, "32 x 4"));
        assert_eq!(flash(1025), of(192, "32 x 6"));
        assert_eq!(flash(1536), of(192, "32 x 8"));
        assert_eq!(flash(2048), of(256, "32 x 8"));
        assert_eq!(flash(0), None);
        // Large ones store eight rows of the weight at once.
        assert_eq!(named(1024, [4092, 4096]), of(128, "32 x 8"));
        // 24 clusters' tiles of 64 tokens are two rounds from 129 tokens on.
        let pro = |t| named(t, [6144, 7168]);
        assert_eq!(pro(128), of(64, "48 x 2"));
        assert_eq!(pro(256), of(128, "48 x 2"));
        // The second block of the last cluster has no rows.
        assert_eq!(named(64, [128, 128]), of(64, "2 x 1"));
    }

    #[test]
    fn a_block_fits_a_multiprocessor() {
        let [small, large, three, four] = CodeTilesKernel::ALL;
        assert_eq!(
            small.shared(4096),
            8 * (192 * 128 + 16) + 16 + 256 + 32 * (8 + 260)
        );
        assert_eq!(
            large.shared(4096),
            6 * (256 * 128 + 16) + 16 + 512 + 32 * (8 + 516)
        );
        assert_eq!(
            [three, four].map(|kernel| kernel.shared(4096)),
            [
                5 * (320 * 128 + 16) + 16 + 768 + 32 * 8,
                4 * (384 * 128 + 16) + 16 + 1024 + 32 * 8
            ]
        );
        let stages = CodeTilesKernel::ALL.map(CodeTilesKernel::stage);
        assert_eq!(stages, [384, 640, 896, 1152]);
        let threads = CodeTilesKernel::ALL.map(CodeTilesKernel::threads);
        assert_eq!(threads, [288, 288, 512, 384]);
        // So much k that the scales of the weight do not fit beside the stages.
        assert_eq!(CodeTilesStep::new(64, [128, 1 << 20], 132), None);
    }
}
