//! NCCL's library, loaded at run time: the same in every link mode of cudarc, and absent where
//! nobody asks for it.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys::CUstream;
use libloading::Library;

use crate::error::NcclError;

/// The names of the library.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// The oldest version with what is called here: communicators that do not block came with 2.14,
/// this form of their configuration with 2.18.
const WANTED: c_int = 21_800;

/// `ncclComm_t`.
pub(super) type Comm = *mut c_void;

/// `ncclUniqueId`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct UniqueId(pub(super) [u8; 128]);

/// `ncclResult_t`.
pub(super) type Status = c_int;
pub(super) const SUCCESS: Status = 0;
pub(super) const IN_PROGRESS: Status = 7;

/// `ncclFloat32`, `ncclBfloat16` and `ncclSum`.
pub(super) const FLOAT32: c_int = 7;
pub(super) const BFLOAT16: c_int = 9;
pub(super) const SUM: c_int = 0;

/// `ncclConfig_t` as of version 2.18; later ones only append to it, and read its size.
#[repr(C)]
pub(super) struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    /// A communicator whose calls return at once: only such a one can be given up.
    pub(super) const fn without_blocking() -> Self {
        const UNDEFINED: c_int = c_int::MIN;
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: WANTED as c_uint,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: std::ptr::null(),
            split_share: UNDEFINED,
        }
    }
}

/// NCCL's functions. Each returns a [`Status`], but for `error_string`.
pub(super) struct Nccl {
    pub(super) unique_id: unsafe extern "C" fn(*mut UniqueId) -> Status,
    pub(super) init_rank:
        unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int, *mut Config) -> Status,
    pub(super) async_error: unsafe extern "C" fn(Comm, *mut Status) -> Status,
    pub(super) all_reduce: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        c_int,
        c_int,
        Comm,
        CUstream,
    ) -> Status,
    pub(super) group_start: unsafe extern "C" fn() -> Status,
    pub(super) group_end: unsafe extern "C" fn() -> Status,
    pub(super) finalize: unsafe extern "C" fn(Comm) -> Status,
    pub(super) destroy: unsafe extern "C" fn(Comm) -> Status,
    pub(super) abort: unsafe extern "C" fn(Comm) -> Status,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    /// Keeps the functions loaded.
    _library: Library,
}

impl Nccl {
    /// The library of this process, loaded at the first call.
    ///
    /// # Errors
    /// Why it cannot be loaded, or that it is too old.
    pub(super) fn get() -> Result<&'static Self, NcclError> {
        static NCCL: OnceLock<Result<Nccl, NcclError>> = OnceLock::new();
        NCCL.get_or_init(Self::load).as_ref().map_err(Clone::clone)
    }

    fn load() -> Result<Self, NcclError> {
        let mut reason = String::new();
        for name in NAMES {
            // SAFETY: the library is NVIDIA's, whose initializers are made to run anywhere.
            match unsafe { Library::new(name) } {
                Ok(library) => return Self::with(library),
                Err(error) if reason.is_empty() => reason = error.to_string(),
                Err(_) => {}
            }
        }
        Err(NcclError::NotFound(reason))
    }

    fn with(library: Library) -> Result<Self, NcclError> {
        macro_rules! symbol {
            ($name:literal) => {{
                // SAFETY: the type is that of the function in nccl.h, 2.18 and later.
                let symbol = unsafe { library.get(concat!($name, "\0").as_bytes()) };
                *symbol.map_err(|error| NcclError::NotFound(error.to_string()))?
            }};
        }
        let version: unsafe extern "C" fn(*mut c_int) -> Status = symbol!("ncclGetVersion");
        let mut found = 0;
        // SAFETY: the pointer is to this frame's own integer.
        if unsafe { version(&raw mut found) } != SUCCESS || found < WANTED {
            return Err(NcclError::TooOld(found));
        }
        Ok(Self {
            unique_id: symbol!("ncclGetUniqueId"),
            init_rank: symbol!("ncclCommInitRankConfig"),
            async_error: symbol!("ncclCommGetAsyncError"),
            all_reduce: symbol!("ncclAllReduce"),
            group_start: symbol!("ncclGroupStart"),
            group_end: symbol!("ncclGroupEnd"),
            finalize: symbol!("ncclCommFinalize"),
            destroy: symbol!("ncclCommDestroy"),
            abort: symbol!("ncclCommAbort"),
            error_string: symbol!("ncclGetErrorString"),
            _library: library,
        })
    }

    /// NCCL's words for a status.
    pub(super) fn words(&self, status: Status) -> String {
        // SAFETY: NCCL returns a string of its own that lives forever.
        let text = unsafe { (self.error_string)(status) };
        if text.is_null() {
            return format!("status {status}");
        }
        // SAFETY: as above; it ends with 0.
        let text = unsafe { CStr::from_ptr(text) };
        text.to_string_lossy().into_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// The places of nccl.h's fields on 64-bit Linux.
    #[test]
    fn the_configuration_lies_as_nccl_reads_it() {
        assert_eq!(size_of::<Config>(), 48);
        assert_eq!(offset_of!(Config, blocking), 16);
        assert_eq!(offset_of!(Config, net_name), 32);
        assert_eq!(offset_of!(Config, split_share), 40);
        assert_eq!(size_of::<UniqueId>(), 128);
    }
}
