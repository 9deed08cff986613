//! Matmuls through cublasLt, over its bare functions: cudarc's safe wrapper asks for the
//! algorithm at every call.
//!
//! ## Method
//! 1. The library's first choice for a shape is asked for once, and kept with its descriptors.
//! 2. A call looks its shape up, sets the addresses of the scales if there are any, and enqueues.
//! 3. A shape that the library has no algorithm for is kept as such; the caller goes another way.

use std::{
    collections::HashMap,
    ffi::c_void,
    sync::{Arc, Mutex, PoisonError},
};

use cudarc::{
    cublaslt::{result, sys},
    driver::CudaContext,
};
use swiglu_core::Float;

use super::plan::LibraryKind;
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
    desc: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algo: sys::cublasLtMatmulAlgo_t,
}

impl Drop for Algorithm {
    fn drop(&mut self) {
        // SAFETY: `Algorithm::new` made them, and they are destroyed once. A failure leaves nothing to
        // be done.
        unsafe {
            for layout in self.layouts.into_iter().filter(|l| !l.is_null()) {
                let _ = result::destroy_matrix_layout(layout);
            }
            if !self.desc.is_null() {
                let _ = result::destroy_matmul_desc(self.desc);
            }
        }
    }
}

/// A handle, its workspace, and the algorithm of each shape seen so far; `None` where there is none.
pub(super) struct CublasLt {
    handle: sys::cublasLtHandle_t,
    workspace: CudaBuffer,
    set_attribute: Option<SetAttribute>,
    algorithms: Mutex<HashMap<LibraryShape, Option<Algorithm>>>,
}

// SAFETY: the library allows a handle to be used from several threads; the algorithms are locked.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

const WORKSPACE: usize = 32 << 20;

const fn data_type(elements: WeightType) -> sys::cudaDataType_t {
    match elements {
        WeightType::F32 => sys::cudaDataType_t::CUDA_R_32F,
        WeightType::F16 => sys::cudaDataType_t::CUDA_R_16F,
        WeightType::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        WeightType::E4m3 => sys::cudaDataType_t::CUDA_R_8F_E4M3,
    }
}

/// `cublasLtMatmulDescSetAttribute` with the attribute as a number: bindings made for a CUDA
/// before 12.8 lack the names of these, and the library that is loaded may be newer.
type SetAttribute = unsafe extern "C" fn(
    sys::cublasLtMatmulDesc_t,
    u32,
    *const c_void,
    usize,
) -> sys::cublasStatus_t;

/// Where the scales of w and x are, and how a descriptor is told.
type Scaling = Option<(SetAttribute, [u64; 2])>;

/// `CUBLASLT_MATMUL_DESC_{A,B}_SCALE_POINTER`.
const SCALE_POINTERS: [u32; 2] = [17, 18];
/// `CUBLASLT_MATMUL_DESC_{A,B}_SCALE_MODE`.
const SCALE_MODES: [u32; 2] = [31, 32];
/// `CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F` for A, which is w, and `..._VEC128_32F` for B.
const BLOCK_SCALING: [i32; 2] = [5, 4];
/// The version that has them.
const WITH_BLOCK_SCALING: usize = 12_09_00;

/// What a version can do, if attributes can be set by their numbers.
const fn kind_of(version: usize, sets_attributes: bool) -> LibraryKind {
    if sets_attributes && version >= WITH_BLOCK_SCALING {
        LibraryKind::BlockScaling
    } else {
        LibraryKind::Plain
    }
}

fn bytes_of<T>(value: &T) -> (*const c_void, usize) {
    (std::ptr::from_ref(value).cast(), size_of::<T>())
}

impl Algorithm {
    /// The library's first choice for a shape; an error where it has none.
    fn new(
        handle: sys::cublasLtHandle_t,
        s: &LibraryShape,
        scaling: Scaling,
    ) -> std::result::Result<Self, result::CublasError> {
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let mut algorithm = Self {
            desc: result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F)?,
            layouts: [std::ptr::null_mut(); 3],
            algo: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        // CUBLAS_OP_T of cublas_api.h, which the bindings leave out.
        let transpose = 1_i32;
        let (pointer, size) = bytes_of(&transpose);
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        // SAFETY: the descriptor lives, and the attribute has this type.
        unsafe { result::set_matmul_desc_attribute(algorithm.desc, attribute, pointer, size)? };
        if let Some((set_attribute, scales)) = scaling {
            for (attribute, mode) in SCALE_MODES.into_iter().zip(BLOCK_SCALING) {
                let (pointer, size) = bytes_of(&mode);
                // SAFETY: as above.
                unsafe { set_attribute(algorithm.desc, attribute, pointer, size) }.result()?;
            }
            algorithm.set_scales(set_attribute, scales)?;
        }
        // The library counts columns first: w is a [K, N] to be transposed, x a [K, T], y an [N, T].
        let (t, n, k) = (s.t as u64, s.n as u64, s.k as u64);
        let (input, output) = (data_type(s.input), data_type(WeightType::of(s.output)));
        algorithm.layouts[0] = result::create_matrix_layout(input, k, n, s.k as i64)?;
        algorithm.layouts[1] = result::create_matrix_layout(input, k, t, s.x_stride as i64)?;
        algorithm.layouts[2] = result::create_matrix_layout(output, n, t, s.y_stride as i64)?;
        algorithm.algo = algorithm.choose(handle, s)?;
        Ok(algorithm)
    }

    fn set_scales(
        &self,
        set_attribute: SetAttribute,
        scales: [u64; 2],
    ) -> std::result::Result<(), result::CublasError> {
        for (attribute, address) in SCALE_POINTERS.into_iter().zip(scales) {
            let (pointer, size) = bytes_of(&address);
            // SAFETY: the descriptor lives, and the attribute is an address on the device.
            unsafe { set_attribute(self.desc, attribute, pointer, size) }.result()?;
        }
        Ok(())
    }

    fn choose(
        &self,
        handle: sys::cublasLtHandle_t,
        s: &LibraryShape,
    ) -> std::result::Result<sys::cublasLtMatmulAlgo_t, result::CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as P;
        let preference = result::create_matmul_pref()?;
        // Sums of parts stay in f32 until the one rounding.
        let reductions = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
        let reductions = reductions as u32;
        let set = |attribute, (pointer, size)| {
            // SAFETY: the preference lives, and the attributes have these types.
            unsafe { result::set_matmul_pref_attribute(preference, attribute, pointer, size) }
        };
        let [w, x, y] = self.layouts;
        let choice = set(
            P::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            bytes_of(&WORKSPACE),
        )
        .and_then(|()| {
            set(
                P::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                bytes_of(&reductions),
            )
        })
        .and_then(|()| {
            set(
                P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                bytes_of(&s.alignments[0]),
            )
        })
        .and_then(|()| {
            set(
                P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                bytes_of(&s.alignments[1]),
            )
        })
        .and_then(|()| {
            set(
                P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                bytes_of(&s.alignments[2]),
            )
        })
        .and_then(|()| {
            set(
                P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
                bytes_of(&s.alignments[2]),
            )
        })
        .and_then(|()| {
            // SAFETY: everything given lives.
            unsafe { result::get_matmul_algo_heuristic(handle, self.desc, w, x, y, y, preference) }
        });
        // SAFETY: made above, destroyed once.
        unsafe { result::destroy_matmul_pref(preference)? };
        Ok(choice?.algo)
    }
}

impl CublasLt {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self> {
        context.bind_to_thread().doing("bind the context")?;
        // SAFETY: the function has this type, but for the name of the integer's.
        let set_attribute = unsafe {
            let library = sys::culib();
            library.get::<SetAttribute>(b"cublasLtMatmulDescSetAttribute\0")
        };
        let set_attribute = set_attribute.ok().map(|f| *f);
        Ok(Self {
            workspace: CudaBuffer::new(context, WORKSPACE)?,
            set_attribute,
            handle: result::create_handle().doing("open cublasLt")?,
            algorithms: Mutex::default(),
        })
    }

    /// What the loaded version can do.
    pub(super) fn kind(&self) -> LibraryKind {
        // SAFETY: the library is there, as it has been opened.
        let version = unsafe { sys::cublasLtGetVersion() };
        kind_of(version, self.set_attribute.is_some())
    }

    /// Enqueues the matmul; false where the library has no algorithm for the shape.
    ///
    /// # Safety
    /// The addresses hold the shape's matrices and scales, the stream is valid and its context is
    /// bound.
    pub(super) unsafe fn matmul(
        &self,
        shape: LibraryShape,
        [w, x, y]: Addresses,
        scales: ScaleAddresses,
        stream: cudarc::driver::sys::CUstream,
    ) -> Result<bool> {
        let scaling = match (scales, self.set_attribute) {
            (None, _) => None,
            (Some(scales), Some(set_attribute)) => Some((set_attribute, scales)),
            (Some(_), None) => return Ok(false),
        };
        let algorithms = self.algorithms.lock();
        let mut algorithms = algorithms.unwrap_or_else(PoisonError::into_inner);
        let algorithm = algorithms
            .entry(shape)
            .or_insert_with(|| Algorithm::new(self.handle, &shape, scaling).ok());
        let Some(algorithm) = algorithm else {
            return Ok(false);
        };
        if let Some((set_attribute, scales)) = scaling {
            // The library reads the addresses when the matmul is enqueued, under this lock.
            algorithm
                .set_scales(set_attribute, scales)
                .doing("set the scales")?;
        }
        let (one, zero) = (1.0_f32, 0.0_f32);
        // SAFETY: by this function's contract; the algorithm was chosen for this shape.
        unsafe {
            result::matmul(
                self.handle,
                algorithm.desc,
                bytes_of(&one).0,
                bytes_of(&zero).0,
                w as *const c_void,
                algorithm.layouts[0],
                x as *const c_void,
                algorithm.layouts[1],
                y as *const c_void,
                algorithm.layouts[2],
                y as *mut c_void,
                algorithm.layouts[2],
                &raw const algorithm.algo,
                self.workspace.address() as *mut c_void,
                WORKSPACE,
                stream.cast(),
            )
        }
        .doing("multiply")?;
        Ok(true)
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_scaling_needs_its_version_and_its_setter() {
        assert_eq!(kind_of(12_09_00, true), LibraryKind::BlockScaling);
        assert_eq!(kind_of(12_08_05, true), LibraryKind::Plain);
        assert_eq!(kind_of(13_00_00, false), LibraryKind::Plain);
    }

    #[test]
    fn alignments_are_powers_of_two_up_to_256() {
        assert_eq!(
            [0, 256, 512, 48, 2, 3].map(alignment),
            [256, 256, 256, 16, 2, 1]
        );
    }
}
