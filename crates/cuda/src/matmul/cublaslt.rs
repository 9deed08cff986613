//! The functions of cublasLt that matmuls call, loaded at run time whichever way cudarc is linked.
//!
//! cudarc's own bindings panic where the library is missing, and look for it under the names of
//! one version; what is called here has been the same since CUDA 11.

use std::ffi::{c_int, c_void};

use libloading::Library;

use crate::{error::CublasStatus, loader::loader_said};

pub(super) type Answer<T = ()> = Result<T, CublasStatus>;

const fn answer(status: c_int) -> Answer {
    match status {
        0 => Ok(()),
        status => Err(CublasStatus(status)),
    }
}

/// A pointer to something of the library's: a handle, a descriptor, a layout, a preference.
pub(super) type Opaque = *mut c_void;

/// `cublasLtMatmulAlgo_t`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Algo([u64; 8]);

/// `cublasLtMatmulHeuristicResult_t`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct HeuristicResult {
    algo: Algo,
    workspace: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

/// `cudaDataType_t`.
pub(super) mod data_type {
    pub(in super::super) const F32: i32 = 0;
    pub(in super::super) const F16: i32 = 2;
    pub(in super::super) const BF16: i32 = 14;
    pub(in super::super) const E4M3: i32 = 28;
}

/// `CUBLAS_COMPUTE_32F`.
const COMPUTE_F32: c_int = 68;

/// `cublasLtMatmulDescAttributes_t`, of w, which is A, and of x, which is B.
pub(super) mod desc {
    pub(in super::super) const TRANSPOSE_A: u32 = 3;
    pub(in super::super) const SCALE_POINTERS: [u32; 2] = [17, 18];
    /// From 12.8 on.
    pub(in super::super) const SCALE_MODES: [u32; 2] = [31, 32];
}

/// `cublasLtMatmulPreferenceAttributes_t`.
pub(super) mod preference {
    pub(in super::super) const MAX_WORKSPACE_BYTES: u32 = 1;
    pub(in super::super) const REDUCTION_SCHEME_MASK: u32 = 3;
    /// Of A, B, C and D.
    pub(in super::super) const MIN_ALIGNMENT_BYTES: [u32; 4] = [5, 6, 7, 8];
}

/// `CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE`.
pub(super) const REDUCTION_IN_COMPUTE_TYPE: u32 = 2;

/// What [`Functions::matmul`] multiplies, and how.
pub(super) struct MatmulCall {
    pub(super) handle: Opaque,
    pub(super) desc: Opaque,
    /// Addresses of A, B and D, and their layouts. C is D.
    pub(super) matrices: [u64; 3],
    pub(super) layouts: [Opaque; 3],
    pub(super) workspace: (u64, usize),
    pub(super) stream: *mut c_void,
}

macro_rules! functions {
    ($($field:ident: $symbol:literal, fn($($argument:ty),*) -> $result:ty;)*) => {
        /// The library and its functions.
        #[derive(Debug)]
        pub(super) struct Functions {
            $($field: unsafe extern "C" fn($($argument),*) -> $result,)*
            /// Unloaded after the functions are gone.
            _library: Library,
        }

        impl Functions {
            fn of(library: Library) -> Result<Self, libloading::Error> {
                Ok(Self {
                    $(
                        // SAFETY: the function of this name has this type.
                        $field: *unsafe {
                            library.get::<unsafe extern "C" fn($($argument),*) -> $result>(
                                concat!($symbol, "\0").as_bytes(),
                            )
                        }?,
                    )*
                    _library: library,
                })
            }
        }
    };
}

functions! {
    version: "cublasLtGetVersion", fn() -> usize;
    create: "cublasLtCreate", fn(*mut Opaque) -> c_int;
    destroy: "cublasLtDestroy", fn(Opaque) -> c_int;
    desc_create: "cublasLtMatmulDescCreate", fn(*mut Opaque, c_int, c_int) -> c_int;
    desc_destroy: "cublasLtMatmulDescDestroy", fn(Opaque) -> c_int;
    desc_set: "cublasLtMatmulDescSetAttribute", fn(Opaque, u32, *const c_void, usize) -> c_int;
    layout_create: "cublasLtMatrixLayoutCreate", fn(*mut Opaque, c_int, u64, u64, i64) -> c_int;
    layout_destroy: "cublasLtMatrixLayoutDestroy", fn(Opaque) -> c_int;
    preference_create: "cublasLtMatmulPreferenceCreate", fn(*mut Opaque) -> c_int;
    preference_destroy: "cublasLtMatmulPreferenceDestroy", fn(Opaque) -> c_int;
    preference_set: "cublasLtMatmulPreferenceSetAttribute",
        fn(Opaque, u32, *const c_void, usize) -> c_int;
    heuristic: "cublasLtMatmulAlgoGetHeuristic",
        fn(Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, c_int, *mut HeuristicResult,
            *mut c_int) -> c_int;
    matmul: "cublasLtMatmul",
        fn(Opaque, Opaque, *const c_void, *const c_void, Opaque, *const c_void, Opaque,
            *const c_void, *const c_void, Opaque, *mut c_void, Opaque, *const Algo, *mut c_void,
            usize, *mut c_void) -> c_int;
}

/// The names to look under, the newest version first, for a driver of this version of CUDA: a
/// library of a newer major version does not run on it.
fn names(driver_major: i32) -> Vec<String> {
    if cfg!(windows) {
        let of = |major| format!("cublasLt64_{major}.dll");
        return (12..=driver_major).rev().map(of).collect();
    }
    let of = |major| format!("libcublasLt.so.{major}");
    let versions = (12..=driver_major).rev().map(of);
    // A name that only a development package has: of any version.
    versions.chain(["libcublasLt.so".to_owned()]).collect()
}

/// The major version out of what `cublasLtGetVersion` gives, such as 12_09_01 or 13_00_00.
const fn major(version: usize) -> usize {
    version / 10_000
}

impl Functions {
    /// The newest library that a driver of this major version of CUDA runs, or what the loader
    /// said of each.
    pub(super) fn load(driver_major: i32) -> Result<Self, String> {
        let mut reasons = Vec::new();
        for name in names(driver_major) {
            // SAFETY: the library is NVIDIA's, whose initializers are made to run anywhere.
            let found = unsafe { Library::new(&name) };
            match found.and_then(Self::of) {
                Ok(found) if major(found.version()) <= driver_major.unsigned_abs() as usize => {
                    return Ok(found);
                }
                Ok(found) => reasons.push(format!(
                    "{name} is of CUDA {}, the driver of {driver_major}",
                    major(found.version())
                )),
                Err(error) => reasons.push(loader_said(&error)),
            }
        }
        Err(reasons.join("; "))
    }

    /// Such as 12_09_01.
    pub(super) fn version(&self) -> usize {
        // SAFETY: the function asks for nothing.
        unsafe { (self.version)() }
    }

    fn made(make: impl FnOnce(*mut Opaque) -> c_int) -> Answer<Opaque> {
        let mut made = std::ptr::null_mut();
        answer(make(&raw mut made))?;
        Ok(made)
    }

    pub(super) fn create(&self) -> Answer<Opaque> {
        // SAFETY: the pointer is to a place of the right type; the callers have bound a context.
        Self::made(|to| unsafe { (self.create)(to) })
    }

    /// # Safety
    /// The handle is of [`Self::create`], and not used again.
    pub(super) unsafe fn destroy(&self, handle: Opaque) {
        // SAFETY: by this function's contract. A failure leaves nothing to be done.
        let _ = unsafe { (self.destroy)(handle) };
    }

    /// A descriptor with sums in f32.
    pub(super) fn create_desc(&self) -> Answer<Opaque> {
        // SAFETY: the pointer is to a place of the right type.
        Self::made(|to| unsafe { (self.desc_create)(to, COMPUTE_F32, data_type::F32) })
    }

    /// # Safety
    /// The descriptor is of [`Self::create_desc`], and not used again.
    pub(super) unsafe fn destroy_desc(&self, desc: Opaque) {
        // SAFETY: by this function's contract. A failure leaves nothing to be done.
        let _ = unsafe { (self.desc_destroy)(desc) };
    }

    /// # Safety
    /// The descriptor is of [`Self::create_desc`], and T the attribute's type.
    pub(super) unsafe fn set_desc<T>(&self, desc: Opaque, attribute: u32, value: &T) -> Answer {
        let value = (std::ptr::from_ref(value).cast(), size_of::<T>());
        // SAFETY: by this function's contract.
        answer(unsafe { (self.desc_set)(desc, attribute, value.0, value.1) })
    }

    /// Columns of `rows` elements, so far apart.
    pub(super) fn create_layout(
        &self,
        of: i32,
        rows: u64,
        cols: u64,
        apart: i64,
    ) -> Answer<Opaque> {
        // SAFETY: the pointer is to a place of the right type.
        Self::made(|to| unsafe { (self.layout_create)(to, of, rows, cols, apart) })
    }

    /// # Safety
    /// The layout is of [`Self::create_layout`], and not used again.
    pub(super) unsafe fn destroy_layout(&self, layout: Opaque) {
        // SAFETY: by this function's contract. A failure leaves nothing to be done.
        let _ = unsafe { (self.layout_destroy)(layout) };
    }

    /// The library's first choice, under preferences that `set` sets.
    ///
    /// # Safety
    /// The handle, the descriptor and the layouts live.
    pub(super) unsafe fn choose(
        &self,
        handle: Opaque,
        desc: Opaque,
        [w, x, y]: [Opaque; 3],
        set: impl FnOnce(&dyn Fn(u32, *const c_void, usize) -> Answer) -> Answer,
    ) -> Answer<Algo> {
        // SAFETY: the pointer is to a place of the right type.
        let preference = Self::made(|to| unsafe { (self.preference_create)(to) })?;
        let one = |attribute, value, bytes| {
            // SAFETY: the preference lives, and `set` gives each attribute's own type.
            answer(unsafe { (self.preference_set)(preference, attribute, value, bytes) })
        };
        let mut found = HeuristicResult {
            algo: Algo([0; 8]),
            workspace: 0,
            state: 0,
            waves: 0.0,
            reserved: [0; 4],
        };
        let mut count = 0;
        let asked = set(&one).and_then(|()| {
            // SAFETY: everything given lives, and there is room for one result.
            answer(unsafe {
                (self.heuristic)(
                    handle,
                    desc,
                    w,
                    x,
                    y,
                    y,
                    preference,
                    1,
                    &raw mut found,
                    &raw mut count,
                )
            })
        });
        // SAFETY: made above, destroyed once. A failure leaves nothing to be done.
        let _ = unsafe { (self.preference_destroy)(preference) };
        asked?;
        // CUBLAS_STATUS_NOT_SUPPORTED, as where the library says so itself.
        if count == 0 {
            return Err(CublasStatus(15));
        }
        answer(found.state)?;
        Ok(found.algo)
    }

    /// Enqueues D = A · B.
    ///
    /// # Safety
    /// The algorithm was chosen for this descriptor and these layouts, everything that the call
    /// names lives until the stream has run it, and the stream's context is bound.
    pub(super) unsafe fn matmul(&self, call: &MatmulCall, algo: &Algo) -> Answer {
        let (one, zero) = (1.0_f32, 0.0_f32);
        let [a, b, d] = call.matrices;
        let [a_layout, b_layout, d_layout] = call.layouts;
        // SAFETY: by this function's contract.
        answer(unsafe {
            (self.matmul)(
                call.handle,
                call.desc,
                (&raw const one).cast(),
                a as *const c_void,
                a_layout,
                b as *const c_void,
                b_layout,
                (&raw const zero).cast(),
                d as *const c_void,
                d_layout,
                d as *mut c_void,
                d_layout,
                algo,
                call.workspace.0 as *mut c_void,
                call.workspace.1,
                call.stream,
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn a_driver_is_given_libraries_that_it_runs_the_newest_first() {
        if cfg!(windows) {
            assert_eq!(names(13), ["cublasLt64_13.dll", "cublasLt64_12.dll"]);
            return;
        }
        let of_13 = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];
        assert_eq!(names(13), of_13);
        assert_eq!(names(12), of_13[1..]);
        assert_eq!((major(12_09_01), major(13_00_00)), (12, 13));
    }

    #[test]
    fn a_missing_library_is_told_by_what_the_loader_said() {
        // No version below 12 is looked for, and nothing has the name of a development package
        // of CUDA 0.
        if let Err(reasons) = Functions::load(0) {
            assert!(
                reasons.contains("libcublasLt") || cfg!(windows),
                "{reasons}"
            );
        } else {
            panic!("a driver of CUDA 0 runs no library");
        }
    }

    #[test]
    fn a_result_of_the_heuristic_lies_as_the_library_writes_it() {
        assert_eq!(size_of::<HeuristicResult>(), 96);
        assert_eq!(offset_of!(HeuristicResult, workspace), 64);
        assert_eq!(offset_of!(HeuristicResult, state), 72);
        assert_eq!(offset_of!(HeuristicResult, waves), 76);
    }
}
