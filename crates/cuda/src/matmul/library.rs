//! Matmuls through cublasLt.
//!
//! ## Method
//! 1. The library's first choice for a shape is asked for once, and kept with its descriptors.
//! 2. A call looks its shape up, sets the addresses of the scales if there are any, and enqueues.
//! 3. A shape that the library has no algorithm for is kept as such; the caller goes another way.
//! 4. Handle and algorithms serve every stream. The workspace is the stream's own: two matmuls that
//!    run at once must not share it.

use std::{
    collections::HashMap,
    ffi::c_void,
    sync::{Arc, Mutex, PoisonError},
};

use cudarc::driver::CudaContext;
use swiglu_core::Float;

use super::{
    cublaslt::{
        Algo, Answer, Functions, MatmulCall, Opaque, REDUCTION_IN_COMPUTE_TYPE, data_type, desc,
        preference,
    },
    plan::LibraryKind,
};
use crate::{
    buffer::CudaBuffer,
    error::{Doing, Result},
    weight::WeightType,
};

/// What the library's choice depends on. With [`WeightType::E4m3`] as the input, w has a scale for
/// each block of 128 x 128 and x one for each 128 of k, both f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct LibraryShape {
    pub(super) t: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    /// The type of x and of w.
    pub(super) input: WeightType,
    pub(super) output: Float,
    pub(super) x_stride: usize,
    pub(super) y_stride: usize,
    /// Powers of two that divide the addresses of w, x and y.
    pub(super) alignments: [u32; 3],
}

/// Addresses of w, x and y.
pub(super) type Addresses = [u64; 3];

/// Addresses of the scales of w and x, where they are FP8.
pub(super) type ScaleAddresses = Option<[u64; 2]>;

/// The largest power of two, up to 256, that divides an address.
pub(super) const fn alignment(address: u64) -> u32 {
    1 << if address == 0 || address.trailing_zeros() > 8 {
        8
    } else {
        address.trailing_zeros()
    }
}

/// An algorithm for a shape, with the descriptors that it is called with.
struct Algorithm {
    functions: Arc<Functions>,
    desc: Opaque,
    layouts: [Opaque; 3],
    algo: Option<Algo>,
}

impl Drop for Algorithm {
    fn drop(&mut self) {
        // SAFETY: `Algorithm::new` made them, and they are destroyed once.
        unsafe {
            for layout in self.layouts.into_iter().filter(|l| !l.is_null()) {
                self.functions.destroy_layout(layout);
            }
            self.functions.destroy_desc(self.desc);
        }
    }
}

/// A handle, and the algorithm of each shape seen so far; `None` where there is none.
pub(super) struct CublasLt {
    functions: Arc<Functions>,
    handle: Opaque,
    algorithms: Mutex<HashMap<LibraryShape, Option<Algorithm>>>,
}

// SAFETY: the library allows a handle to be used from several threads; the algorithms are locked.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

/// Bytes of a stream's workspace.
pub(super) const WORKSPACE: usize = 32 << 20;

const fn type_of(elements: WeightType) -> i32 {
    match elements {
        WeightType::F32 => data_type::F32,
        WeightType::F16 => data_type::F16,
        WeightType::Bf16 => data_type::BF16,
        WeightType::E4m3 => data_type::E4M3,
    }
}

/// `CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F` for A, which is w, and `..._VEC128_32F` for B.
const BLOCK_SCALING: [i32; 2] = [5, 4];
/// The version that has them.
const WITH_BLOCK_SCALING: usize = 12_09_00;

/// What a version can do.
const fn kind_of(version: usize) -> LibraryKind {
    if version >= WITH_BLOCK_SCALING {
        LibraryKind::BlockScaling
    } else {
        LibraryKind::Plain
    }
}

impl Algorithm {
    /// The library's first choice for a shape; an error where it has none.
    fn new(
        functions: &Arc<Functions>,
        handle: Opaque,
        s: &LibraryShape,
        scales: ScaleAddresses,
    ) -> Answer<Self> {
        let mut algorithm = Self {
            desc: functions.create_desc()?,
            functions: functions.clone(),
            layouts: [std::ptr::null_mut(); 3],
            algo: None,
        };
        // CUBLAS_OP_T.
        let transpose = 1_i32;
        // SAFETY: the descriptor lives, and the attribute has this type.
        unsafe { functions.set_desc(algorithm.desc, desc::TRANSPOSE_A, &transpose)? };
        if let Some(scales) = scales {
            for (attribute, mode) in desc::SCALE_MODES.into_iter().zip(BLOCK_SCALING) {
                // SAFETY: as above.
                unsafe { functions.set_desc(algorithm.desc, attribute, &mode)? };
            }
            algorithm.set_scales(scales)?;
        }
        // The library counts columns first: w is a [K, N] to be transposed, x a [K, T], y an [N, T].
        let (t, n, k) = (s.t as u64, s.n as u64, s.k as u64);
        let (input, output) = (type_of(s.input), type_of(WeightType::of(s.output)));
        algorithm.layouts[0] = functions.create_layout(input, k, n, s.k as i64)?;
        algorithm.layouts[1] = functions.create_layout(input, k, t, s.x_stride as i64)?;
        algorithm.layouts[2] = functions.create_layout(output, n, t, s.y_stride as i64)?;
        algorithm.algo = Some(algorithm.choose(handle, s)?);
        Ok(algorithm)
    }

    fn set_scales(&self, scales: [u64; 2]) -> Answer {
        for (attribute, address) in desc::SCALE_POINTERS.into_iter().zip(scales) {
            // SAFETY: the descriptor lives, and the attribute is an address on the device.
            unsafe { self.functions.set_desc(self.desc, attribute, &address)? };
        }
        Ok(())
    }

    fn choose(&self, handle: Opaque, s: &LibraryShape) -> Answer<Algo> {
        let [w, x, y] = &s.alignments;
        let set = |one: &dyn Fn(u32, *const c_void, usize) -> Answer| {
            let bytes = (&raw const WORKSPACE_BYTES).cast();
            one(preference::MAX_WORKSPACE_BYTES, bytes, size_of::<usize>())?;
            // Sums of parts stay in f32 until the one rounding.
            let mask = [REDUCTION_IN_COMPUTE_TYPE];
            one(preference::REDUCTION_SCHEME_MASK, mask.as_ptr().cast(), 4)?;
            for (attribute, bytes) in preference::MIN_ALIGNMENT_BYTES
                .into_iter()
                .zip([w, x, y, y])
            {
                one(attribute, std::ptr::from_ref(bytes).cast(), 4)?;
            }
            Ok(())
        };
        // SAFETY: everything given lives.
        unsafe { self.functions.choose(handle, self.desc, self.layouts, set) }
    }
}

static WORKSPACE_BYTES: usize = WORKSPACE;

impl CublasLt {
    /// Opens the newest library that the driver runs; the reason as text where there is none.
    pub(super) fn open(
        context: &Arc<CudaContext>,
        driver_major: i32,
    ) -> Result<std::result::Result<Self, String>> {
        context.bind_to_thread().doing("bind the context")?;
        let functions = match Functions::load(driver_major) {
            Ok(functions) => Arc::new(functions),
            Err(reasons) => return Ok(Err(format!("cublasLt was not found: {reasons}"))),
        };
        let handle = match functions.create() {
            Ok(handle) => handle,
            Err(status) => return Ok(Err(format!("cublasLt could not be opened: {status}"))),
        };
        Ok(Ok(Self {
            functions,
            handle,
            algorithms: Mutex::default(),
        }))
    }

    /// What the loaded version can do.
    pub(super) fn kind(&self) -> LibraryKind {
        kind_of(self.functions.version())
    }

    /// Enqueues the matmul; false where the library has no algorithm for the shape.
    ///
    /// # Safety
    /// The addresses hold the shape's matrices and scales, the workspace has [`WORKSPACE`] bytes
    /// and is the stream's own, the stream is valid and its context is bound.
    pub(super) unsafe fn matmul(
        &self,
        shape: LibraryShape,
        matrices: Addresses,
        scales: ScaleAddresses,
        workspace: &CudaBuffer,
        stream: cudarc::driver::sys::CUstream,
    ) -> Result<bool> {
        let algorithms = self.algorithms.lock();
        let mut algorithms = algorithms.unwrap_or_else(PoisonError::into_inner);
        let algorithm = algorithms
            .entry(shape)
            .or_insert_with(|| Algorithm::new(&self.functions, self.handle, &shape, scales).ok());
        let Some((algorithm, algo)) = algorithm.as_ref().and_then(|a| Some((a, a.algo.as_ref()?)))
        else {
            return Ok(false);
        };
        if let Some(scales) = scales {
            // The library reads the addresses when the matmul is enqueued, under this lock.
            algorithm.set_scales(scales).doing("set the scales")?;
        }
        let call = MatmulCall {
            handle: self.handle,
            desc: algorithm.desc,
            matrices,
            layouts: algorithm.layouts,
            workspace: (workspace.address(), workspace.len()),
            stream: stream.cast(),
        };
        // SAFETY: by this function's contract; the algorithm was chosen for this shape.
        unsafe { self.functions.matmul(&call, algo) }.doing("multiply")?;
        Ok(true)
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // SAFETY: made by `open`, destroyed once.
        unsafe { self.functions.destroy(self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_scaling_needs_its_version() {
        assert_eq!(kind_of(12_09_00), LibraryKind::BlockScaling);
        assert_eq!(kind_of(12_08_05), LibraryKind::Plain);
        assert_eq!(kind_of(13_00_00), LibraryKind::BlockScaling);
    }

    #[test]
    fn alignments_are_powers_of_two_up_to_256() {
        assert_eq!(
            [0, 256, 512, 48, 2, 3].map(alignment),
            [256, 256, 256, 16, 2, 1]
        );
    }
}
