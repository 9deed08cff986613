//! Products: which way one goes, and the kernels of our own.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaStream, sys};
use swiglu_core::{
    DType, Error as CoreError, Quantisation, RowLayout, ScaleFormat, ScaleLayout, ScaleOrder,
};

use crate::{
    CudaBuffer, CudaWeight, Quantisers, RawQuantised, Result,
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
    block_scaling: bool,
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
        let (major, _) = context.compute_capability().doing("ask for the device")?;
        Ok(Self {
            context: context.clone(),
            kernels,
            // The library has these kernels for Hopper alone.
            block_scaling: major == 9 && lt.as_ref().is_some_and(CublasLt::knows_block_scaling),
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
        unsafe { lt.product(shape, addresses, None, stream) }
    }

    /// Whether FP8 tensor cores may multiply codes as they are, with a scale for each 128 of k and
    /// for each block of 128 x 128 of the weight.
    pub(crate) const fn multiplies_codes(&self) -> bool {
        self.block_scaling
    }

    /// Enqueues y = (code · scale) · wᵀ on FP8 tensor cores, where cublasLt can; else false, and
    /// `room` may hold anything.
    ///
    /// It needs Hopper; cublasLt 12.9; groups of 128; a weight of FP8 with blocks of 128 x 128; T
    /// and N that are multiples of 4, and K of 16; and codes and outputs aligned to 16 bytes. The
    /// scales are read where they are if they are f32 in columns without gaps, else from f32s that
    /// a kernel writes to `room`.
    ///
    /// # Safety
    /// As [`Self::product`]; `room` is \[T, K\] of at least 16 bits.
    #[allow(clippy::too_many_arguments)]
    pub(crate) unsafe fn quantised_product(
        &self,
        stream: sys::CUstream,
        quantisers: &Quantisers,
        quant: &Quantisation,
        x: &RawQuantised,
        weight: &CudaWeight,
        room: &RawMatrix,
        y: &RawMatrix,
    ) -> Result<bool> {
        let (Some(lt), true) = (&self.lt, self.block_scaling && quant.group() == 128) else {
            return Ok(false);
        };
        let Some(blocks) = weight.scales.as_ref().and_then(|s| s.blocks.as_ref()) else {
            return Ok(false);
        };
        let (t, n, k) = (x.codes_layout.rows, weight.rows, weight.cols);
        let codes = x.codes + x.codes_layout.offset as u64;
        let whole = t.is_multiple_of(4) && n.is_multiple_of(4) && k.is_multiple_of(16);
        let y_stride = y.layout.stride * y.dtype.size();
        let starts = codes | y.first() | (x.codes_layout.stride | y_stride) as u64;
        let aligned = starts.is_multiple_of(16);
        if t == 0 || t > i32::MAX as usize || !whole || !aligned {
            return Ok(false);
        }
        let columns = ScaleLayout::contiguous(
            ScaleFormat::F32,
            ScaleOrder::ColumnMajor,
            t,
            x.scales_layout.groups,
        );
        let scales = if x.scales_layout == columns && x.scales.is_multiple_of(16) {
            x.scales
        } else {
            let fits = room.layout.stride == k && room.first().is_multiple_of(16);
            // SAFETY: by this function's contract; T · K / 128 floats are less than T · K halves.
            if !fits || !unsafe { quantisers.scales_to_columns(stream, quant, x, room)? } {
                return Ok(false);
            }
            room.first()
        };
        let addresses = [weight.data.address(), codes, y.first()];
        let shape = Shape {
            t,
            n,
            k,
            input: DType::F8E4M3,
            output: y.dtype,
            x_stride: x.codes_layout.stride,
            y_stride: y.layout.stride,
            alignments: addresses.map(alignment),
        };
        self.context.bind_to_thread().doing("bind the context")?;
        // SAFETY: by this function's contract.
        unsafe { lt.product(shape, addresses, Some([blocks.address(), scales]), stream) }
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
