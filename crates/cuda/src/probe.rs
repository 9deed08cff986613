use std::ffi::{c_char, c_int, c_uint};

use libloading::Library;

/// The oldest CUDA version of a driver that loads the fatbins.
const WANTED: c_int = 13_000;

/// The names of the driver's library.
const NAMES: &[&str] = if cfg!(windows) {
    &["nvcuda.dll"]
} else {
    &["libcuda.so.1", "libcuda.so"]
};

/// A device that the backend can use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The device's number, for `CudaContext::new`.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Its compute capability, such as (9, 0).
    pub compute_capability: (i32, i32),
    /// The CUDA version of the driver, such as (13, 0).
    pub driver: (i32, i32),
}

/// Why CUDA cannot be used here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotAvailable {
    /// There is no driver.
    #[error("no NVIDIA driver: {0}")]
    NoDriver(String),
    /// The driver refused, with this code.
    #[error("the NVIDIA driver answered {code} to {call}")]
    Refused {
        /// The driver's function.
        call: &'static str,
        /// A `CUresult`.
        code: i32,
    },
    /// The driver is too old.
    #[error("the NVIDIA driver supports CUDA {0}.{1}, at least 13.0 is needed")]
    OldDriver(i32, i32),
    /// There is no device.
    #[error("the NVIDIA driver sees no device")]
    NoDevice,
    /// No device is new enough.
    #[error("{0} has compute capability {1}.{2}, at least 8.0 is needed")]
    OldDevice(String, i32, i32),
}

fn call(name: &'static str, code: c_int) -> Result<(), NotAvailable> {
    match code {
        0 => Ok(()),
        code => Err(NotAvailable::Refused { call: name, code }),
    }
}

/// The first device that the backend can use, or why there is none. Never panics, and touches
/// nothing of cudarc, which panics where the driver or one of its functions is missing.
///
/// # Errors
/// The reason why CUDA cannot be used here.
pub fn probe() -> Result<DeviceInfo, NotAvailable> {
    let mut missing = String::new();
    for name in NAMES {
        // SAFETY: the library is NVIDIA's driver, whose initializers are made to run anywhere.
        match unsafe { Library::new(*name) } {
            Ok(library) => return with(&library),
            Err(error) => missing = error.to_string(),
        }
    }
    Err(NotAvailable::NoDriver(missing))
}

fn with(library: &Library) -> Result<DeviceInfo, NotAvailable> {
    macro_rules! symbol {
        ($name:literal, fn($($arg:ty),*)) => {{
            type Function = unsafe extern "system" fn($($arg),*) -> c_int;
            let name = concat!($name, "\0").as_bytes();
            // SAFETY: the type is that of the function in cuda.h.
            let symbol = unsafe { library.get::<Function>(name) };
            symbol.map_err(|e| NotAvailable::NoDriver(e.to_string()))?
        }};
    }
    let init = symbol!("cuInit", fn(c_uint));
    let version = symbol!("cuDriverGetVersion", fn(*mut c_int));
    let count = symbol!("cuDeviceGetCount", fn(*mut c_int));
    let get = symbol!("cuDeviceGet", fn(*mut c_int, c_int));
    let name = symbol!("cuDeviceGetName", fn(*mut c_char, c_int, c_int));
    let attribute = symbol!("cuDeviceGetAttribute", fn(*mut c_int, c_int, c_int));
    symbol!("cuLaunchKernelEx", fn());

    let (mut driver, mut devices) = (0, 0);
    // SAFETY: the pointers are to this frame's own integers.
    unsafe {
        call("cuDriverGetVersion", version(&raw mut driver))?;
        if driver < WANTED {
            return Err(NotAvailable::OldDriver(driver / 1000, driver % 1000 / 10));
        }
        call("cuInit", init(0))?;
        call("cuDeviceGetCount", count(&raw mut devices))?;
    }
    let mut refused = NotAvailable::NoDevice;
    for ordinal in 0..devices {
        let (mut device, mut major, mut minor) = (0, 0, 0);
        let mut text = [0_u8; 128];
        // SAFETY: as above; the name's length is that of its buffer, less the final 0.
        unsafe {
            call("cuDeviceGet", get(&raw mut device, ordinal))?;
            // 75 and 76: the compute capability, major and minor.
            call(
                "cuDeviceGetAttribute",
                attribute(&raw mut major, 75, device),
            )?;
            call(
                "cuDeviceGetAttribute",
                attribute(&raw mut minor, 76, device),
            )?;
            call(
                "cuDeviceGetName",
                name(text.as_mut_ptr().cast(), 127, device),
            )?;
        }
        let end = text.iter().position(|&b| b == 0).unwrap_or(0);
        let name = String::from_utf8_lossy(&text[..end]).into_owned();
        if major < 8 {
            refused = NotAvailable::OldDevice(name, major, minor);
            continue;
        }
        return Ok(DeviceInfo {
            ordinal: ordinal as usize,
            name,
            compute_capability: (major, minor),
            driver: (driver / 1000, driver % 1000 / 10),
        });
    }
    Err(refused)
}

/// Whether cublasLt can be loaded: cudarc panics where it cannot.
pub(crate) fn has_cublaslt() -> bool {
    // SAFETY: cudarc looks for the library by its names; its initializers are made to run anywhere.
    unsafe { cudarc::cublaslt::sys::is_culib_present() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_answers_and_says_why_not() {
        match probe() {
            Ok(info) => assert!(info.compute_capability >= (8, 0)),
            Err(reason) => assert!(!reason.to_string().is_empty()),
        }
    }
}
