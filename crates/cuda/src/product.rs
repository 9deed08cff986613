//! Products: which way one goes, and the kernels of our own.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaStream, sys};
use swiglu_core::{DType, Error as CoreError, RowLayout};

use crate::{
    CudaBuffer, CudaWeight, Result,
    driver::{Function, Grid, Module},
    error::Doing,
    lt::{Addresses, CublasLt, Shape, alignment},
    params::ProductParams,
    probe::has_cublaslt,
};

static FATBIN: &[u8] = include_bytes!("../fatbin/product.fatbin");

/// Up to this many rows of x, an FP8 weight is read once for every four rows, which is less than
/// decoding it first.
const FEW_ROWS: usize = 16;

/// A matrix in bare device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawMatrix {
    /// Address of the buffer, aligned to its elements.
    pub address: u64,
    /// The type of the elements.
    pub dtype: DType,
    /// Where the rows lie in the buffer.
    pub layout: RowLayout,
}

impl RawMatrix {
    pub(crate) fn first(&self) -> u64 {
        self.address + (self.layout.offset * self.dtype.size()) as u64
    }
}

/// Kernels for each pair of types, by [`DType::COMPUTE`]'s and then [`WEIGHTS`]' order.
#[derive(Clone, Copy, Debug)]
struct Kernels {
    row: Function,
    rows: Function,
    tiles: Function,
}

const WEIGHTS: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::F8E4M3];

pub(crate) struct Products {
    context: Arc<CudaContext>,
    kernels: Vec<Kernels>,
    decode: Function,
    lt: Option<CublasLt>,
    /// Room for the largest FP8 weight loaded so far, decoded.
    decoded: Mutex<Option<Arc<CudaBuffer>>>,
    _module: Module,
}

impl Products {
    pub(crate) fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let module = Module::load(context, FATBIN)?;
        let mut kernels = Vec::new();
        for x in DType::COMPUTE {
            for w in WEIGHTS {
                let w = if w == DType::F8E4M3 { "e4m3" } else { w.name() };
                kernels.push(Kernels {
                    row: module.function(&format!("product_row_{x}_{w}"))?,
                    rows: module.function(&format!("product_rows_{x}_{w}"))?,
                    tiles: module.function(&format!("product_tiles_{x}_{w}"))?,
                });
            }
        }
        let lt = if has_cublaslt() {
            Some(CublasLt::new(context)?)
        } else {
            None
        };
        Ok(Self {
            context: context.clone(),
            kernels,
            decode: module.function("decode_e4m3_to_bf16")?,
            lt,
            decoded: Mutex::new(None),
            _module: module,
        })
    }

    /// How products of equal types run.
    pub(crate) const fn library(&self) -> &'static str {
        if self.lt.is_some() {
            "cublasLt"
        } else {
            "own kernels: cublasLt was not found"
        }
    }

    /// Sees to it that there is room to decode this weight.
    pub(crate) fn make_room(&self, stream: &CudaStream, weight: &CudaWeight) -> Result<()> {
        if !self.decodes(weight) {
            return Ok(());
        }
        let bytes = 2 * weight.rows * weight.cols;
        let mut decoded = self.decoded.lock().unwrap_or_else(PoisonError::into_inner);
        if decoded.as_ref().is_none_or(|b| b.len() < bytes) {
            // What is enqueued still uses the smaller one.
            stream.synchronize().doing("wait")?;
            *decoded = Some(Arc::new(CudaBuffer::new(&self.context, bytes)?));
        }
        Ok(())
    }

    /// Whether the weight can be decoded to bf16 without loss, in whole vectors.
    fn decodes(&self, w: &CudaWeight) -> bool {
        let whole = |s: &crate::weight::Scales| {
            s.exact_in_bf16 && (s.columns == 1 || s.block_columns.is_multiple_of(16))
        };
        self.lt.is_some() && w.cols.is_multiple_of(16) && w.scales.as_ref().is_some_and(whole)
    }

    /// Enqueues y = x · wᵀ.
    ///
    /// # Safety
    /// The call has been checked, and its memory lives until the stream has run it.
    pub(crate) unsafe fn product(
        &self,
        stream: sys::CUstream,
        x: RawMatrix,
        weight: &CudaWeight,
        y: RawMatrix,
    ) -> Result<()> {
        if x.layout.rows == 0 {
            return Ok(());
        }
        if x.layout.rows > i32::MAX as usize {
            return Err(CoreError::argument("x", "fewer than 2^31 rows", x.layout.rows).into());
        }
        self.context.bind_to_thread().doing("bind the context")?;
        let addresses = [weight.data.address(), x.first(), y.first()];
        // SAFETY: by this function's contract.
        unsafe {
            if weight.dtype == x.dtype && self.library_product(stream, x, weight, y, addresses)? {
                return Ok(());
            }
            let many = x.layout.rows > FEW_ROWS;
            if many && x.dtype == DType::BF16 && self.decodes(weight) {
                let decoded = self.decoded.lock().unwrap_or_else(PoisonError::into_inner);
                let room = decoded
                    .as_ref()
                    .filter(|b| b.len() >= 2 * weight.rows * weight.cols);
                if let Some(buffer) = room {
                    self.decode(stream, weight, buffer)?;
                    let addresses = [buffer.address(), addresses[1], addresses[2]];
                    if self.library_product(stream, x, weight, y, addresses)? {
                        return Ok(());
                    }
                }
            }
            self.own_product(stream, x, weight, y)
        }
    }

    unsafe fn library_product(
        &self,
        stream: sys::CUstream,
        x: RawMatrix,
        weight: &CudaWeight,
        y: RawMatrix,
        addresses: Addresses,
    ) -> Result<bool> {
        let Some(lt) = &self.lt else { return Ok(false) };
        if y.dtype != x.dtype && y.dtype != DType::F32 {
            return Ok(false);
        }
        let shape = Shape {
            t: x.layout.rows,
            n: weight.rows,
            k: weight.cols,
            input: x.dtype,
            output: y.dtype,
            x_stride: x.layout.stride,
            y_stride: y.layout.stride,
            alignments: addresses.map(alignment),
        };
        // SAFETY: by the caller's contract.
        unsafe { lt.product(shape, addresses, stream) }
    }

    fn params(x: RawMatrix, weight: &CudaWeight, y: RawMatrix) -> ProductParams {
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
            block_columns: scales.map_or(1, |s| s.block_columns as u32),
            y_type: match y.dtype {
                DType::F16 => 1,
                DType::BF16 => 2,
                DType::F32 | DType::F8E4M3 | DType::E8M0 => 0,
            },
        }
    }

    unsafe fn decode(
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
        let vectors = (weight.rows * weight.cols / 16).div_ceil(256);
        let grid = Grid {
            blocks: [vectors as u32, 1],
            threads: 256,
            programmatic: false,
        };
        // SAFETY: the buffer has room for the decoded weight.
        unsafe {
            self.decode
                .launch(stream, grid, &Self::params(matrix, weight, matrix))
        }
    }

    unsafe fn own_product(
        &self,
        stream: sys::CUstream,
        x: RawMatrix,
        weight: &CudaWeight,
        y: RawMatrix,
    ) -> Result<()> {
        let place = |of: &[DType], dtype| of.iter().position(|d| *d == dtype).unwrap_or(0);
        let pair = place(&DType::COMPUTE, x.dtype) * WEIGHTS.len() + place(&WEIGHTS, weight.dtype);
        let kernels = self.kernels[pair];
        let (t, n) = (x.layout.rows, weight.rows);
        let params = Self::params(x, weight, y);
        // Vectors of 16 bytes of w, with as many elements of x, within one block of scales.
        let lanes = 16 / weight.dtype.size();
        let x_bytes = (lanes * x.dtype.size()).min(16) as u64;
        let x_stride = (x.layout.stride * x.dtype.size()) as u64;
        let whole = weight.cols.is_multiple_of(lanes)
            && weight
                .scales
                .as_ref()
                .is_none_or(|s| s.columns == 1 || s.block_columns.is_multiple_of(lanes));
        let vectors = whole
            && x.first().is_multiple_of(x_bytes)
            && (t == 1 || x_stride.is_multiple_of(x_bytes));
        let of_rows = |per: usize| [(n as u32).div_ceil(4), t.div_ceil(per) as u32];
        let (kernel, blocks, threads) = match t {
            1 if vectors => (kernels.row, of_rows(1), 128),
            2..=FEW_ROWS if vectors => (kernels.rows, of_rows(4), 128),
            _ => (
                kernels.tiles,
                [(n as u32).div_ceil(64), t.div_ceil(64) as u32],
                256,
            ),
        };
        if blocks[1] > 65_535 {
            let got = format!("{t} rows");
            let expected = "at most 4,194,240 rows for these types";
            return Err(CoreError::argument("x", expected, got).into());
        }
        let grid = Grid {
            blocks,
            threads,
            programmatic: false,
        };
        // SAFETY: the call has been checked, and the kernels stay inside of its shapes.
        unsafe { kernel.launch(stream, grid, &params) }
    }
}
