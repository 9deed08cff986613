//! Our own kernels of matmuls, of every pair of types.

use std::sync::Arc;

use cudarc::driver::{CudaContext, sys};
use swiglu_core::{Float, RowLayout};

use super::{
    parameters::{THREADS, of_call},
    plan::{OwnKernel, OwnPlan, X_ROWS},
};
use crate::{
    buffer::CudaBuffer,
    error::Result,
    launch::{
        driver::{Capability, Fatbins, Function, Grid, Module, fatbins},
        params::MatmulParams,
    },
    view::RawMatrix,
    weight::{CudaWeight, WeightType},
};

static ANY: Fatbins = fatbins!("matmul");
static ROWS: Fatbins = fatbins!("matmul_rows");
static TILES: Fatbins = fatbins!("matmul_tiles");

/// The kernels of a pair of types.
#[derive(Clone, Copy, Debug)]
struct Pair {
    rows: [Function; X_ROWS.len()],
    /// For blocks of scales of 32 columns: FP8 alone.
    narrow: Option<[Function; X_ROWS.len()]>,
    tiles: Function,
    ordered: Function,
}

impl Pair {
    fn load([any, rows, tiles]: [&Module; 3], x: Float, weight: WeightType) -> Result<Self> {
        let few = |narrow| -> Result<_> {
            let one = |place| rows.function(&OwnKernel::Rows { place, narrow }.name(x, weight));
            Ok([one(0)?, one(1)?, one(2)?, one(3)?])
        };
        let is_fp8 = weight == WeightType::E4m3;
        let tiles = tiles.function(&OwnKernel::Tiles.name(x, weight))?;
        tiles.allow_shared(OwnKernel::Tiles.shared(x, weight))?;
        Ok(Self {
            rows: few(false)?,
            narrow: is_fp8.then(|| few(true)).transpose()?,
            tiles,
            ordered: any.function(&OwnKernel::Ordered.name(x, weight))?,
        })
    }

    fn kernel(&self, kernel: OwnKernel) -> Function {
        match kernel {
            OwnKernel::Rows { place, narrow } => {
                self.narrow.filter(|_| narrow).unwrap_or(self.rows)[place]
            }
            OwnKernel::Tiles => self.tiles,
            OwnKernel::Ordered => self.ordered,
        }
    }
}

/// The kernels, loaded into a context.
pub(super) struct MatmulKernels {
    /// By [`Float::ALL`]'s and then [`WeightType::ALL`]'s order.
    pairs: Vec<[Pair; WeightType::ALL.len()]>,
    decode: Function,
    /// Whether the device lets a kernel start before the last one ends. Ours read w meanwhile.
    overlaps: bool,
    _modules: [Module; 3],
}

impl MatmulKernels {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let [any, rows, tiles] = [ANY, ROWS, TILES].map(|fatbins| Module::load(context, &fatbins));
        let (any, rows, tiles) = (any?, rows?, tiles?);
        let of_x = |x| -> Result<_> {
            let load = |weight| Pair::load([&any, &rows, &tiles], x, weight);
            let [a, b, c, d] = WeightType::ALL.map(load);
            Ok([a?, b?, c?, d?])
        };
        Ok(Self {
            pairs: Float::ALL.into_iter().map(of_x).collect::<Result<_>>()?,
            decode: any.function("decode_e4m3_to_bf16")?,
            overlaps: Capability::of(context)?.overlaps_launches(),
            _modules: [any, rows, tiles],
        })
    }

    /// Enqueues y = x · wᵀ, rows of w one behind the other at the given address.
    ///
    /// # Safety
    /// The plan is of this call, which has been checked, its memory lives until the stream has run
    /// it, and the stream's context is bound.
    pub(super) unsafe fn matmul(
        &self,
        stream: sys::CUstream,
        plan: &OwnPlan,
        x: &RawMatrix,
        (weight, address): (&CudaWeight, u64),
        y: &RawMatrix,
    ) -> Result<()> {
        let pair = &self.pairs[plan.x as usize][plan.weight as usize];
        let grid = Grid {
            blocks: plan.blocks,
            threads: THREADS,
            shared: plan.kernel.shared(plan.x, plan.weight),
            programmatic: self.overlaps,
        };
        let kernel = pair.kernel(plan.kernel);
        let params = MatmulParams {
            w: address,
            ..of_call(x, weight, y)
        };
        // SAFETY: by this function's contract, and the kernels stay inside of the call's shapes.
        unsafe { kernel.launch(stream, grid, &params) }
    }

    /// Enqueues the decoding of an FP8 weight to bf16: rows of a multiple of 16, blocks likewise.
    ///
    /// # Safety
    /// As [`Self::matmul`]; the buffer has room for the decoded weight.
    pub(super) unsafe fn decode(
        &self,
        stream: sys::CUstream,
        weight: &CudaWeight,
        into: &CudaBuffer,
    ) -> Result<()> {
        let matrix = RawMatrix {
            address: into.address(),
            float: Float::BF16,
            layout: RowLayout::contiguous(weight.rows, weight.cols),
        };
        let vectors = weight.rows * weight.cols / 16;
        let grid = Grid {
            blocks: [vectors.div_ceil(THREADS as usize) as u32, 1],
            threads: THREADS,
            shared: 0,
            programmatic: self.overlaps,
        };
        let params = of_call(&matrix, weight, &matrix);
        // SAFETY: by this function's contract.
        unsafe { self.decode.launch(stream, grid, &params) }
    }
}
