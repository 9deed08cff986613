//! Matmuls of codes by an FP8 weight in rows on FP8 tensor cores: which way one goes, and the call of our own kernels for
//! few tokens.

use std::{fmt, sync::Arc};

use cudarc::driver::{CudaContext, sys};

use super::{
    code_tiles::{CodeTilesKernel, CodeTilesStep},
    parameters::y_type,
    plan::MatmulFacts,
};
use crate::{
    error::Result,
    launch::{
        driver::{Fatbins, Function, Grid, Module, fatbins},
        tensor_map::TensorMap,
    },
    quant::RawQuantized,
    view::RawMatrix,
    weight::CudaWeight,
};

static CODES: Fatbins = fatbins!("codes");

/// Blocks of a cluster, which share k.
const CLUSTER: u32 = 2;

/// Columns of a stage, and of what shares a scale.
pub(super) const STAGE: usize = 128;

/// A kernel of `codes.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CodesKernel {
    /// Of the weight, of a block.
    rows: u32,
    /// Of a block, at most.
    tokens: u32,
    /// Sets of warpgroups, which take stages in turns.
    sets: u32,
    stages: u32,
    /// Whether it is for weights whose tiles of 64 rows are more than pairs of multiprocessors, for others, or for all.
    wide: Option<bool>,
}

const fn kernel(rows: u32, tokens: u32, sets: u32, stages: u32, wide: Option<bool>) -> CodesKernel {
    CodesKernel {
        rows,
        tokens,
        sets,
        stages,
        wide,
    }
}

impl CodesKernel {
    const ALL: [Self; 7] = [
        kernel(64, 8, 2, 12, None),
        kernel(64, 16, 2, 10, None),
        kernel(64, 32, 2, 9, None),
        kernel(64, 64, 2, 12, Some(false)),
        kernel(64, 128, 2, 8, Some(false)),
        kernel(128, 64, 1, 8, Some(true)),
        kernel(128, 128, 1, 6, Some(true)),
    ];

    fn name(&self) -> String {
        format!("codes_{}_rows_{}_tokens", self.rows, self.tokens)
    }

    /// Warpgroups of 64 rows, and a warp that copies.
    const fn threads(&self) -> u32 {
        128 * self.sets * (self.rows / 64) + 32
    }

    /// Bytes of dynamic shared memory of a block: stages, or the sums that take their place, barriers, and the
    /// scales of its part of k, of tokens and of the weight.
    fn shared(&self, k: usize) -> usize {
        let [rows, tokens] = [self.rows, self.tokens].map(|n| n as usize);
        let ring = self.stages as usize * (rows + tokens) * STAGE;
        let sums = self.sets as usize * tokens * (rows + 4) * 4;
        let units = k.div_ceil(STAGE).div_ceil(CLUSTER as usize);
        ring.max(sums) + 16 * self.stages as usize + units * (tokens + 1) * 4
    }
}

/// What a block may have on Hopper.
pub(super) const MOST_SHARED: usize = 227 * 1024;

/// Whether the tiles of 64 rows of a weight are more than pairs of multiprocessors.
const fn is_wide(n: usize, multiprocessors: u32) -> bool {
    n.div_ceil(64) > (multiprocessors / CLUSTER) as usize
}

/// A launch of a kernel of codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CodesStep {
    /// The place in [`CodesKernel::ALL`].
    place: usize,
    blocks: u32,
    shared: u32,
    /// Tokens of a block: all.
    rows: u32,
}

impl CodesStep {
    /// The plan of so many tokens; none where they are too many.
    pub(super) fn new(t: usize, [n, k]: [usize; 2], multiprocessors: u32) -> Option<Self> {
        let is_wide = is_wide(n, multiprocessors);
        let fits = |kernel: &CodesKernel| {
            let of_weight = kernel.wide.is_none_or(|wide| wide == is_wide);
            of_weight && t <= kernel.tokens as usize && kernel.shared(k) <= MOST_SHARED
        };
        let place = CodesKernel::ALL.iter().position(fits)?;
        let kernel = CodesKernel::ALL[place];
        let tiles = u32::try_from(n.div_ceil(kernel.rows as usize)).ok()?;
        (t > 0).then_some(Self {
            place,
            blocks: tiles.checked_mul(CLUSTER)?,
            shared: kernel.shared(k) as u32,
            rows: (t as u32).next_multiple_of(8),
        })
    }
}

impl fmt::Display for CodesStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, clusters) = (CodesKernel::ALL[self.place].name(), self.blocks / CLUSTER);
        write!(f, "{name}: {clusters} clusters of {CLUSTER} blocks")
    }
}

/// The kernels, loaded into the context of a device that has them.
pub(super) struct CodesKernels {
    kernels: [Function; CodesKernel::ALL.len()],
    /// By [`CodeTilesKernel::ALL`].
    pub(super) tiles: [Function; CodeTilesKernel::ALL.len()],
    _module: Module,
}

impl CodesKernels {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let module = Module::load(context, &CODES)?;
        let load = |name: String| {
            let function = module.function(&name)?;
            function.allow_shared(MOST_SHARED as u32)?;
            function.prefer_shared()?;
            Ok::<_, crate::Error>(function)
        };
        // All are loaded in the first one's place.
        let mut kernels = [load(CodesKernel::ALL[0].name())?; CodesKernel::ALL.len()];
        for (function, kernel) in kernels.iter_mut().zip(CodesKernel::ALL) {
            *function = load(kernel.name())?;
        }
        let mut tiles = [kernels[0]; CodeTilesKernel::ALL.len()];
        for (function, kernel) in tiles.iter_mut().zip(CodeTilesKernel::ALL) {
            *function = load(kernel.name())?;
        }
        Ok(Self {
            kernels,
            tiles,
            _module: module,
        })
    }

    /// Enqueues y = (code · scale) · wᵀ.
    ///
    /// # Safety
    /// The plan is of this call, which has been checked, its memory lives until the stream has run
    /// it, and the stream's context is bound. `blocks` is the address of the weight's scales as rows of a multiple of four.
    pub(super) unsafe fn multiply(
        &self,
        stream: sys::CUstream,
        plan: CodesStep,
        x: &RawQuantized,
        (weight, blocks): (&CudaWeight, u64),
        y: &RawMatrix,
    ) -> Result<()> {
        let kernel = CodesKernel::ALL[plan.place];
        let shape = [weight.rows, weight.cols];
        let map = TensorMap::of_codes(weight.data.address(), shape, weight.cols, kernel.rows)?;
        let to = (y.first(), y.layout.stride, y_type(y.float));
        let params = Self::params((plan.rows, map), x, (weight, blocks), to)?;
        let grid = Grid {
            blocks: [plan.blocks, 1],
            threads: kernel.threads(),
            shared: plan.shared,
            programmatic: true,
        };
        // SAFETY: by this function's contract, and the kernels stay inside of the call's shapes.
        unsafe { self.kernels[plan.place].launch(stream, grid, &params) }
    }
}

/// x as codes: what decides whether FP8 tensor cores multiply them as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CodesProblem {
    pub(crate) t: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    /// Elements of x that share a scale.
    pub(crate) group: usize,
    /// Whether w is FP8 in blocks of 128 x 128 that no part cuts.
    pub(crate) w_in_blocks: bool,
    /// Whether rows of codes and of y begin at multiples of 16 bytes.
    pub(crate) aligned: bool,
    /// Whether the scales of x are f32 in columns without gaps, at a multiple of 16 bytes.
    pub(crate) scales_in_columns: bool,
    /// Whether the scratch memory begins at a multiple of 16 bytes.
    pub(crate) scratch_aligned: bool,
}

/// A matmul of codes on FP8 tensor cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CodesPlan {
    /// By our own kernel, for few tokens: scales of x as they are.
    Own(CodesStep),
    /// By our own kernel, for more.
    Tiles(CodeTilesStep),
    /// The scales of x are read where they are.
    ScalesInPlace,
    /// They are written to the scratch memory first, as f32s in columns.
    ScalesInScratch,
}

impl CodesPlan {
    /// The plan of a call; none where the codes are to be widened.
    pub(crate) fn new(problem: &CodesProblem, facts: &MatmulFacts) -> Option<Self> {
        let CodesProblem { t, n, k, .. } = *problem;
        let whole = n.is_multiple_of(4) && k.is_multiple_of(16);
        let fits = problem.group == 128 && problem.w_in_blocks && problem.aligned && whole;
        if !fits || t == 0 || t > i32::MAX as usize {
            return None;
        }
        if facts.multiplies_few_codes() {
            let shape = [n, k];
            if let Some(step) = CodesStep::new(t, shape, facts.multiprocessors) {
                return Some(Self::Own(step));
            }
            let is_wide = is_wide(n, facts.multiprocessors);
            let is_faster = |step: &CodeTilesStep| match is_wide {
                false => t <= MOST_TILED,
                true => t > FEW_OF_WIDE && step.at_once(facts.multiprocessors),
            };
            let step = CodeTilesStep::new(t, shape, facts.multiprocessors);
            if let Some(step) = step.filter(is_faster) {
                return Some(Self::Tiles(step));
            }
        }
        if !facts.multiplies_codes() || !t.is_multiple_of(4) {
            return None;
        }
        if problem.scales_in_columns {
            return Some(Self::ScalesInPlace);
        }
        problem.scratch_aligned.then_some(Self::ScalesInScratch)
    }

    /// That of a matmul by a gate and its up half with the activation and the quantization of its results behind it: the
    /// sums are those of [`Self::new`]. None where these are several calls.
    pub(crate) fn activated(problem: &CodesProblem, facts: &MatmulFacts) -> Option<CodeTilesStep> {
        match Self::new(problem, facts)? {
            Self::Tiles(step) if problem.n.is_multiple_of(256) => Some(step),
            _ => None,
        }
    }
}

/// Tokens beyond which cublasLt was not slower on an H200.
const MOST_TILED: usize = 4096;

/// The same by wide weights, up to which cublasLt was faster; beyond it is where tiles do not run at once.
const FEW_OF_WIDE: usize = 256;

impl fmt::Display for CodesPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(step) => write!(f, "{step}"),
            Self::Tiles(step) => write!(f, "{step}"),
            Self::ScalesInPlace => f.write_str("cublasLt on FP8 tensor cores"),
            Self::ScalesInScratch => {
                f.write_str("scales_to_f32_columns, then cublasLt on FP8 tensor cores")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_that_of_the_kernels() {
        let source = include_str!("../../kernels/matmul/codes.cu");
        let lines: Vec<&str> = source
            .lines()
            .filter(|line| line.starts_with("KERNEL("))
            .collect();
        assert_eq!(lines.len(), CodesKernel::ALL.len());
        for (line, kernel) in lines.iter().zip(CodesKernel::ALL) {
            let (rows, tokens, sets) = (kernel.rows, kernel.tokens, kernel.sets);
            let of = format!("KERNEL({rows}, {tokens}, {sets}, {}, ", kernel.stages);
            assert!(line.starts_with(&of), "{line} is not {of}");
        }
    }

    #[test]
    fn a_block_has_all_tokens_and_its_share_of_k() {
        let named = |t: usize, shape: [usize; 2]| {
            CodesStep::new(t, shape, 132).map(|plan| plan.to_string())
        };
        let flash = |t| named(t, [4096, 4096]);
        let of = |name: &str| Some(format!("codes_{name}_tokens: 64 clusters of 2 blocks"));
        for (t, name) in [(1, "64_rows_8"), (9, "64_rows_16"), (32, "64_rows_32")] {
            assert_eq!(flash(t), of(name));
        }
        assert_eq!(flash(64), of("64_rows_64"));
        assert_eq!(flash(128), of("64_rows_128"));
        assert_eq!((flash(0), flash(129)), (None, None));
        let pro = |t| named(t, [6144, 7168]);
        let of =
            |name: &str, n: u32| Some(format!("codes_{name}_tokens: {n} clusters of 2 blocks"));
        assert_eq!(pro(32), of("64_rows_32", 96));
        assert_eq!(pro(33), of("128_rows_64", 48));
        assert_eq!(pro(128), of("128_rows_128", 48));
        assert_eq!(pro(129), None);
        // Whose scales do not fit beside the stages.
        assert!(named(64, [4096, 1 << 18]).is_none());
        // 12 stages of 64 rows and 64 tokens, and scales of 16 times 128 of k.
        let plan = CodesStep::new(64, [4096, 4096], 132).unwrap();
        assert_eq!(plan.shared, 12 * (128 * 128 + 16) + 16 * (64 + 1) * 4);
        assert_eq!(
            (plan.rows, CodesKernel::ALL[plan.place].threads()),
            (64, 288)
        );
        assert_eq!(CodesKernel::ALL[6].threads(), 288);
    }
}
