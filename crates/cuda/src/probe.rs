//! What devices there are, asked of the driver itself: cudarc panics where the driver, or one of
//! its functions, is missing.

use std::{
    ffi::{c_char, c_int, c_uint},
    fmt,
};

use libloading::Library;

use crate::loader::loader_said;

/// The oldest version of CUDA whose drivers load the fatbins: they are CUDA 12.9's, and what one
/// major version compiles runs on all of its drivers.
const WANTED: c_int = 12_000;

/// The oldest compute capability that there is machine code for.
const OLDEST: (i32, i32) = (8, 0);

/// The names of the driver's library.
const NAMES: &[&str] = if cfg!(windows) {
    &["nvcuda.dll"]
} else {
    &["libcuda.so.1", "libcuda.so"]
};

/// Functions of the driver that calls need, ours and cudarc's. All are in CUDA 12.0.
const NEEDED: [&str; 29] = [
    "cuCtxGetCurrent",
    "cuCtxGetDevice",
    "cuCtxSetCurrent",
    "cuDevicePrimaryCtxGetState",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuLaunchKernelEx",
    "cuMemAllocAsync",
    "cuMemAlloc_v2",
    "cuMemFreeAsync",
    "cuMemFree_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamGetCtx",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// A device that the driver sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The device's number, for [`crate::CudaBuilder::device`] and `CudaContext::new`.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Its compute capability, such as (9, 0).
    pub compute_capability: (i32, i32),
    /// The CUDA version of the driver, such as (13, 0).
    pub driver: (i32, i32),
}

impl DeviceInfo {
    /// Whether the backend runs on it.
    pub fn is_supported(&self) -> bool {
        self.compute_capability >= OLDEST
    }
}

/// Such as `0: NVIDIA H200, sm_90`.
impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((major, minor), name) = (self.compute_capability, &self.name);
        write!(f, "{}: {name}, sm_{major}{minor}", self.ordinal)
    }
}

/// Why CUDA cannot be used here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotAvailable {
    /// There is no driver.
    #[error("no NVIDIA driver (R525, CUDA 12.0, or newer is needed): {0}")]
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
    #[error("the NVIDIA driver supports CUDA {0}.{1}: driver R525 (CUDA 12.0) or newer is needed")]
    OldDriver(i32, i32),
    /// There is no device.
    #[error("the NVIDIA driver sees no device")]
    NoDevice,
    /// No device is new enough.
    #[error("{0} has compute capability {1}.{2}, at least 8.0 is needed")]
    OldDevice(String, i32, i32),
    /// The device of the number that was asked for is too old, or there is none.
    #[error("device: expected {}, got {wanted}", numbers(.devices))]
    NotThisDevice {
        /// The number.
        wanted: usize,
        /// All devices that there are.
        devices: Vec<DeviceInfo>,
    },
}

/// The devices of a message.
fn numbers(devices: &[DeviceInfo]) -> String {
    let one = |device: &DeviceInfo| match device.is_supported() {
        true => format!("{device}"),
        false => format!("{device} (too old)"),
    };
    match devices {
        [] => "a device, of which there are none".to_owned(),
        devices => {
            let list: Vec<String> = devices.iter().map(one).collect();
            format!("the number of a device from sm_80 on ({})", list.join("; "))
        }
    }
}

fn call(name: &'static str, code: c_int) -> Result<(), NotAvailable> {
    match code {
        0 => Ok(()),
        code => Err(NotAvailable::Refused { call: name, code }),
    }
}

/// All devices that the driver sees, by their numbers. Never panics, and touches nothing of
/// cudarc, which panics where the driver or one of its functions is missing.
///
/// # Errors
/// The reason why CUDA cannot be used here. No device is an empty list.
///
/// ```no_run
/// for device in swiglu_cuda::devices()? {
///     println!("{device}"); // 0: NVIDIA H200, sm_90
/// }
/// # Ok::<(), swiglu_cuda::NotAvailable>(())
/// ```
pub fn devices() -> Result<Vec<DeviceInfo>, NotAvailable> {
    let mut missing = Vec::new();
    for name in NAMES {
        // SAFETY: the library is NVIDIA's driver, whose initializers are made to run anywhere.
        match unsafe { Library::new(*name) } {
            Ok(library) => return with(&library),
            Err(error) => missing.push(loader_said(&error)),
        }
    }
    Err(NotAvailable::NoDriver(missing.join("; ")))
}

/// The first device that the backend can use, or why there is none. Never panics.
///
/// # Errors
/// The reason why CUDA cannot be used here.
pub fn probe() -> Result<DeviceInfo, NotAvailable> {
    choose(devices()?, None)
}

/// The device of a number, or the first that can be used.
pub(crate) fn choose(
    devices: Vec<DeviceInfo>,
    wanted: Option<usize>,
) -> Result<DeviceInfo, NotAvailable> {
    let found = devices.iter().find(|device| match wanted {
        Some(number) => device.ordinal == number && device.is_supported(),
        None => device.is_supported(),
    });
    match (found, wanted, devices.last()) {
        (Some(device), _, _) => Ok(device.clone()),
        (None, Some(wanted), _) => Err(NotAvailable::NotThisDevice { wanted, devices }),
        (None, None, Some(old)) => {
            let (major, minor) = old.compute_capability;
            Err(NotAvailable::OldDevice(old.name.clone(), major, minor))
        }
        (None, None, None) => Err(NotAvailable::NoDevice),
    }
}

fn with(library: &Library) -> Result<Vec<DeviceInfo>, NotAvailable> {
    macro_rules! symbol {
        ($name:literal, fn($($arg:ty),*)) => {{
            type Function = unsafe extern "system" fn($($arg),*) -> c_int;
            let name = concat!($name, "\0").as_bytes();
            // SAFETY: the type is that of the function in cuda.h.
            let symbol = unsafe { library.get::<Function>(name) };
            symbol.map_err(|e| NotAvailable::NoDriver(loader_said(&e)))?
        }};
    }
    let init = symbol!("cuInit", fn(c_uint));
    let version = symbol!("cuDriverGetVersion", fn(*mut c_int));
    let count = symbol!("cuDeviceGetCount", fn(*mut c_int));
    let get = symbol!("cuDeviceGet", fn(*mut c_int, c_int));
    let name = symbol!("cuDeviceGetName", fn(*mut c_char, c_int, c_int));
    let attribute = symbol!("cuDeviceGetAttribute", fn(*mut c_int, c_int, c_int));

    let (mut driver, mut devices) = (0, 0);
    // SAFETY: the pointer is to this frame's own integer.
    unsafe { call("cuDriverGetVersion", version(&raw mut driver))? };
    let driver_version = (driver / 1000, driver % 1000 / 10);
    if driver < WANTED {
        let (major, minor) = driver_version;
        return Err(NotAvailable::OldDriver(major, minor));
    }
    for name in NEEDED {
        // SAFETY: nothing is called.
        let symbol = unsafe { library.get::<unsafe extern "system" fn()>(name) };
        symbol.map_err(|e| NotAvailable::NoDriver(loader_said(&e)))?;
    }
    // SAFETY: as above.
    unsafe {
        call("cuInit", init(0))?;
        call("cuDeviceGetCount", count(&raw mut devices))?;
    }
    let mut found = Vec::new();
    for ordinal in 0..devices {
        let (mut device, mut major, mut minor) = (0, 0, 0);
        let mut text = [0_u8; 128];
        // SAFETY: as above; the name's length is that of its buffer, less the final 0.
        unsafe {
            call("cuDeviceGet", get(&raw mut device, ordinal))?;
            // 75 and 76: the compute capability, major and minor.
            let major = &raw mut major;
            call("cuDeviceGetAttribute", attribute(major, 75, device))?;
            let minor = &raw mut minor;
            call("cuDeviceGetAttribute", attribute(minor, 76, device))?;
            let text = text.as_mut_ptr().cast();
            call("cuDeviceGetName", name(text, 127, device))?;
        }
        let end = text.iter().position(|&b| b == 0).unwrap_or(0);
        found.push(DeviceInfo {
            ordinal: ordinal as usize,
            name: String::from_utf8_lossy(&text[..end]).into_owned(),
            compute_capability: (major, minor),
            driver: driver_version,
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(ordinal: usize, name: &str, compute_capability: (i32, i32)) -> DeviceInfo {
        DeviceInfo {
            ordinal,
            name: name.to_owned(),
            compute_capability,
            driver: (12, 2),
        }
    }

    fn three() -> Vec<DeviceInfo> {
        vec![
            device(0, "Tesla T4", (7, 5)),
            device(1, "NVIDIA H200", (9, 0)),
            device(2, "NVIDIA A100", (8, 0)),
        ]
    }

    #[test]
    fn a_probe_answers_and_says_why_not() {
        match probe() {
            Ok(info) => assert!(info.compute_capability >= (8, 0)),
            Err(reason) => assert!(!reason.to_string().is_empty()),
        }
    }

    #[test]
    fn without_a_number_the_first_that_can_be_used_is_taken() {
        assert_eq!(choose(three(), None).unwrap().ordinal, 1);
        assert_eq!(choose(three(), Some(2)).unwrap().name, "NVIDIA A100");
        assert_eq!(choose(Vec::new(), None), Err(NotAvailable::NoDevice));
        let old = choose(vec![device(0, "Tesla T4", (7, 5))], None).unwrap_err();
        let message = "Tesla T4 has compute capability 7.5, at least 8.0 is needed";
        assert_eq!(old.to_string(), message);
    }

    #[test]
    fn a_number_that_is_missing_or_too_old_lists_the_devices() {
        let list = "device: expected the number of a device from sm_80 on (0: Tesla T4, sm_75 \
            (too old); 1: NVIDIA H200, sm_90; 2: NVIDIA A100, sm_80), got";
        for wanted in [0, 3] {
            let error = choose(three(), Some(wanted)).unwrap_err();
            assert_eq!(error.to_string(), format!("{list} {wanted}"));
        }
        let none = choose(Vec::new(), Some(0)).unwrap_err().to_string();
        assert_eq!(
            none,
            "device: expected a device, of which there are none, got 0"
        );
    }

    #[test]
    fn messages_name_the_driver_that_is_needed_and_keep_what_the_loader_said() {
        let old = NotAvailable::OldDriver(11, 8).to_string();
        assert!(old.contains("CUDA 11.8") && old.contains("R525"), "{old}");
        let said = "libcuda.so.1: cannot open shared object file";
        let none = NotAvailable::NoDriver(said.to_owned()).to_string();
        assert!(none.contains(said) && none.contains("R525"), "{none}");
    }
}
