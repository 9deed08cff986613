//! Products: which way one goes, and the kernels of our own.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaStream, sys};
use swiglu_core::{
    DType, Error as CoreError, Quantization, RowLayout, ScaleFormat, ScaleLayout, ScaleOrder,
};

use crate::{
    CudaBuffer, CudaWeight, Quantizers, RawQuantized, Result,
    error::Doing,
    lt::{Addresses, CublasLt, Shape, alignment},
    probe::has_cublaslt,
    product_kernels::{Own, OwnKernels},
};

/// Up to this many rows of x, reading a weight once is less than decoding it for cublasLt.
const FEW_ROWS: usize = 64;

/// Up to this many, reading it once for every 64 is less than what too few tiles take.
const MORE_ROWS: usize = 256;

/// A way that a product goes.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// cublasLt, for equal types.
    Library,
    /// An FP8 weight decoded to bf16, then cublasLt.
    Decode,
    /// The kernels for few rows of x.
    Rows,
    /// The kernels of tiles.
    Tiles,
    /// The kernels for any alignment.
    Any,
}

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

pub(crate) struct Products {
    context: Arc<CudaContext>,
    own: OwnKernels,
    lt: Option<CublasLt>,
    block_scaling: bool,
    /// Room for the largest FP8 weight loaded so far, decoded.
    decoded: Mutex<Option<Arc<CudaBuffer>>>,
}

impl Products {
    pub(crate) fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let lt = if has_cublaslt() {
            Some(CublasLt::new(context)?)
        } else {
            None
        };
        let (major, _) = context.compute_capability().doing("ask for the device")?;
        Ok(Self {
            context: context.clone(),
            own: OwnKernels::new(context)?,
            // The library has these kernels for Hopper alone.
            block_scaling: major == 9 && lt.as_ref().is_some_and(CublasLt::knows_block_scaling),
            lt,
            decoded: Mutex::new(None),
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
        let vectors = w.rows * w.cols / 16 < 1 << 31;
        self.lt.is_some()
            && vectors
            && w.cols.is_multiple_of(16)
            && w.scales.as_ref().is_some_and(whole)
    }

    /// Enqueues y = x · wᵀ, the given way or the best.
    ///
    /// # Safety
    /// The call has been checked, and its memory lives until the stream has run it.
    pub(crate) unsafe fn product(
        &self,
        stream: sys::CUstream,
        x: RawMatrix,
        weight: &CudaWeight,
        y: RawMatrix,
        route: Option<Route>,
    ) -> Result<()> {
        if x.layout.rows == 0 {
            return Ok(());
        }
        if x.layout.rows > i32::MAX as usize {
            return Err(CoreError::argument("x", "fewer than 2^31 rows", x.layout.rows).into());
        }
        self.context.bind_to_thread().doing("bind the context")?;
        let routes = match route {
            Some(route) => &[route][..],
            None => Self::routes(&x, weight),
        };
        for &route in routes {
            // SAFETY: by this function's contract.
            if unsafe { self.go(route, stream, &x, weight, &y)? } {
                return Ok(());
            }
        }
        let expected = "a shape and types that the chosen way takes";
        Err(CoreError::argument("x", expected, format!("{x:?}")).into())
    }

    /// The ways of a product, the best first; the last one takes all.
    const fn routes(x: &RawMatrix, weight: &CudaWeight) -> &'static [Route] {
        use Route::{Any, Decode, Library, Rows, Tiles};
        match x.layout.rows {
            _ if x.dtype as usize == weight.dtype as usize => &[Library, Tiles, Any],
            t if t <= FEW_ROWS => &[Rows, Tiles, Any],
            t if t <= MORE_ROWS => &[Decode, Rows, Tiles, Any],
            _ => &[Decode, Tiles, Any],
        }
    }

    /// Enqueues the product, if it can go this way.
    unsafe fn go(
        &self,
        route: Route,
        stream: sys::CUstream,
        x: &RawMatrix,
        weight: &CudaWeight,
        y: &RawMatrix,
    ) -> Result<bool> {
        let addresses = [weight.data.address(), x.first(), y.first()];
        let own = match route {
            Route::Library if x.dtype != weight.dtype => return Ok(false),
            Route::Library => {
                // SAFETY: by the caller's contract.
                return unsafe { self.library_product(stream, x, weight, y, addresses) };
            }
            Route::Decode => {
                if x.dtype != DType::BF16 || !self.decodes(weight) {
                    return Ok(false);
                }
                let decoded = self.decoded.lock().unwrap_or_else(PoisonError::into_inner);
                let room = decoded.as_ref();
                let Some(buffer) = room.filter(|b| b.len() >= 2 * weight.rows * weight.cols) else {
                    return Ok(false);
                };
                let addresses = [buffer.address(), addresses[1], addresses[2]];
                // SAFETY: by the caller's contract; the buffer has room.
                return unsafe {
                    self.own.decode(stream, weight, buffer)?;
                    self.library_product(stream, x, weight, y, addresses)
                };
            }
            Route::Rows => Own::Rows,
            Route::Tiles => Own::Tiles,
            Route::Any => Own::Any,
        };
        if !OwnKernels::runs(own, x, weight) {
            return Ok(false);
        }
        // SAFETY: by the caller's contract.
        unsafe { self.own.product(stream, own, x, weight, y) }?;
        Ok(true)
    }

    unsafe fn library_product(
        &self,
        stream: sys::CUstream,
        x: &RawMatrix,
        weight: &CudaWeight,
        y: &RawMatrix,
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
    pub(crate) unsafe fn quantized_product(
        &self,
        stream: sys::CUstream,
        quantizers: &Quantizers,
        quant: &Quantization,
        x: &RawQuantized,
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
            if !fits || !unsafe { quantizers.scales_to_columns(stream, quant, x, room)? } {
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
}
