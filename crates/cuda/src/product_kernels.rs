//! The kernels of products of our own, of every pair of types.

use std::sync::Arc;

use cudarc::driver::{CudaContext, sys};
use swiglu_core::{DType, Error as CoreError, RowLayout};

use crate::{
    CudaBuffer, CudaWeight, RawMatrix, Result,
    driver::{Function, Grid, Module},
    error::Doing,
    params::{Divisor, ProductParams},
};

static ANY: &[u8] = include_bytes!("../fatbin/product.fatbin");
static ROWS: &[u8] = include_bytes!("../fatbin/product_rows.fatbin");
static TILES: &[u8] = include_bytes!("../fatbin/product_tiles.fatbin");

const WEIGHTS: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::F8E4M3];

/// Rows of x that a block of each kernel for few rows multiplies.
const FEW: [usize; 4] = [8, 16, 32, 64];

/// The side of the tiles of y.
const TILE: usize = 128;

/// Rows of w of such a block.
const OF_W: [usize; 4] = [16, 16, 32, 32];

/// Which kernel a product runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Own {
    /// Reads w once for every 64 rows of x or fewer. On tensor cores, exact products added in f32.
    Rows,
    /// Tiles of 128 x 128 of y, as exact.
    Tiles,
    /// Any alignment and any block of scales, without tensor cores.
    Any,
}

/// The kernels of a pair of types.
#[derive(Clone, Copy, Debug)]
struct Pair {
    rows: [Function; FEW.len()],
    /// For blocks of scales of 32 columns: FP8 alone.
    narrow: Option<[Function; FEW.len()]>,
    tiles: Function,
    any: Function,
}

/// By [`DType::COMPUTE`]'s and then [`WEIGHTS`]' order.
pub(crate) struct OwnKernels {
    pairs: Vec<Pair>,
    decode: Function,
    /// Whether the device lets a kernel start before the last one ends. Ours read w meanwhile.
    overlaps: bool,
    _modules: [Module; 3],
}

/// Elements of k that a thread of the kernels for few rows takes at a time, and a step's.
const fn step(weight: DType, narrow: bool) -> usize {
    4 * if narrow { 8 } else { 16 / weight.size() }
}

/// Bytes of the stages of the kernels of tiles: `stages` of `product_tiles.cu`.
fn shared(x: DType, w: DType) -> u32 {
    let stage = (TILE * 32 * (x.size() + w.size())) as u32;
    stage * (96 * 1024 / stage).min(8)
}

/// Whether the blocks of a weight's scales are whole steps of k.
fn blocks_are_whole(weight: &CudaWeight, step: usize) -> bool {
    let whole = |s: &crate::weight::Scales| s.columns == 1 || s.block_columns.is_multiple_of(step);
    weight.scales.as_ref().is_none_or(whole)
}

impl OwnKernels {
    pub(crate) fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let [any, rows, tiles] = [ANY, ROWS, TILES].map(|fatbin| Module::load(context, fatbin));
        let (any, rows, tiles) = (any?, rows?, tiles?);
        let (major, _) = context.compute_capability().doing("ask for the device")?;
        let mut pairs = Vec::new();
        for x in DType::COMPUTE {
            for w in WEIGHTS {
                let is_fp8 = w == DType::F8E4M3;
                let types = format!("{x}_{}", if is_fp8 { "e4m3" } else { w.name() });
                let few = |end: &str| -> Result<_> {
                    let mut kernels = [rows.function(&format!("product_8_rows_{types}{end}"))?; 4];
                    for (kernel, rows_of_x) in kernels.iter_mut().zip(FEW) {
                        *kernel =
                            rows.function(&format!("product_{rows_of_x}_rows_{types}{end}"))?;
                    }
                    Ok(kernels)
                };
                let tiles = tiles.function(&format!("product_tiles_{types}"))?;
                tiles.allow_shared(shared(x, w))?;
                pairs.push(Pair {
                    rows: few("")?,
                    narrow: is_fp8.then(|| few("_narrow")).transpose()?,
                    tiles,
                    any: any.function(&format!("product_any_{types}"))?,
                });
            }
        }
        Ok(Self {
            pairs,
            decode: any.function("decode_e4m3_to_bf16")?,
            overlaps: major >= 9,
            _modules: [any, rows, tiles],
        })
    }

    /// Whether a kernel runs this product: those on tensor cores read 16 bytes at a time, within
    /// one block of scales.
    pub(crate) fn runs(own: Own, x: &RawMatrix, weight: &CudaWeight) -> bool {
        let (k, w) = (weight.cols, weight.dtype);
        let x_stride = match x.layout.rows {
            1 => 0,
            _ => x.layout.stride * x.dtype.size(),
        };
        let starts = x.first() | x_stride as u64 | (k * w.size()) as u64;
        let aligned = starts.is_multiple_of(16);
        match own {
            Own::Rows => {
                let narrow = step(w, w == DType::F8E4M3);
                aligned && blocks_are_whole(weight, narrow)
            }
            Own::Tiles => {
                let row = (k * x.dtype.size()).is_multiple_of(16);
                aligned && row && blocks_are_whole(weight, 32)
            }
            Own::Any => true,
        }
    }

    /// Enqueues y = x · wᵀ.
    ///
    /// # Safety
    /// [`Self::runs`] says so, the call has been checked, its memory lives until the stream has
    /// run it, and the stream's context is bound.
    pub(crate) unsafe fn product(
        &self,
        stream: sys::CUstream,
        own: Own,
        x: &RawMatrix,
        weight: &CudaWeight,
        y: &RawMatrix,
    ) -> Result<()> {
        let place = |of: &[DType], dtype| of.iter().position(|d| *d == dtype).unwrap_or(0);
        let pair = place(&DType::COMPUTE, x.dtype) * WEIGHTS.len() + place(&WEIGHTS, weight.dtype);
        let pair = self.pairs[pair];
        let (t, n) = (x.layout.rows, weight.rows);
        let (kernel, tile, threads, shared): (_, [usize; 2], _, _) = match own {
            Own::Rows => {
                let wide = blocks_are_whole(weight, step(weight.dtype, false));
                let few = pair.narrow.filter(|_| !wide).unwrap_or(pair.rows);
                let at = FEW.iter().position(|&rows| t <= rows).unwrap_or(3);
                (few[at], [OF_W[at], FEW[at]], 256, 0)
            }
            Own::Tiles => (pair.tiles, [TILE; 2], 256, shared(x.dtype, weight.dtype)),
            Own::Any => (pair.any, [64, 64], 256, 0),
        };
        let blocks = [n.div_ceil(tile[0]) as u32, t.div_ceil(tile[1]) as u32];
        if blocks[1] > 65_535 {
            let got = format!("{t} rows");
            let expected = "at most 4,194,240 rows for these types";
            return Err(CoreError::argument("x", expected, got).into());
        }
        let grid = Grid {
            blocks,
            threads,
            shared,
            programmatic: self.overlaps,
        };
        // SAFETY: the call has been checked, and the kernels stay inside of its shapes.
        unsafe { kernel.launch(stream, grid, &params(x, weight, y)) }
    }

    /// Enqueues the decoding of an FP8 weight to bf16: rows of a multiple of 16, blocks likewise.
    ///
    /// # Safety
    /// As [`Self::product`]; the buffer has room for the decoded weight.
    pub(crate) unsafe fn decode(
        &self,
        stream: sys::CUstream,
        weight: &CudaWeight,
        into: &CudaBuffer,
    ) -> Result<()> {
        let matrix = RawMatrix {
            address: into.address(),
            dtype: DType::BF16,
            layout: RowLayout::contiguous(weight.rows, weight.cols),
        };
        let vectors = weight.rows * weight.cols / 16;
        let grid = Grid {
            blocks: [vectors.div_ceil(256) as u32, 1],
            threads: 256,
            shared: 0,
            programmatic: self.overlaps,
        };
        let params = params(&matrix, weight, &matrix);
        // SAFETY: by this function's contract.
        unsafe { self.decode.launch(stream, grid, &params) }
    }
}

fn params(x: &RawMatrix, weight: &CudaWeight, y: &RawMatrix) -> ProductParams {
    let scales = weight.scales.as_ref();
    ProductParams {
        x: x.first(),
        w: weight.data.address(),
        y: y.first(),
        scales: scales.map_or(0, |s| s.values.address()),
        scale_rows: scales.map_or(0, |s| s.rows.address()),
        x_stride: x.layout.stride as u64,
        y_stride: y.layout.stride as u64,
        t: x.layout.rows as u32,
        n: weight.rows as u32,
        k: weight.cols as u32,
        scale_columns: scales.map_or(0, |s| s.columns as u32),
        by_block: Divisor::new(scales.map_or(1, |s| s.block_columns as u32)),
        y_type: match y.dtype {
            DType::F16 => 1,
            DType::BF16 => 2,
            DType::F32 | DType::F8E4M3 | DType::E8M0 => 0,
        },
    }
}
