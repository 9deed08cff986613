//! An engine that knows nothing of cudarc: the driver's own functions, and no more.

use std::ffi::{c_int, c_uint, c_void};

use libloading::Library;

use super::Result;

/// A device's primary context. Its memory lives as long as the process.
pub struct Engine {
    driver: Library,
    context: *mut c_void,
}

macro_rules! call {
    ($driver:expr, $name:literal, fn($($type:ty),*), $($value:expr),*) => {{
        // SAFETY: the type is that of the function in cuda.h, and the callers give it what it asks.
        let code = unsafe {
            let function = $driver
                .get::<unsafe extern "system" fn($($type),*) -> c_int>(concat!($name, "\0").as_bytes())?;
            function($($value),*)
        };
        if code != 0 {
            return Err(format!("{} answered {code}", $name).into());
        }
    }};
}

impl Engine {
    /// On the first device.
    pub fn new() -> Result<Self> {
        let name = if cfg!(windows) {
            "nvcuda.dll"
        } else {
            "libcuda.so.1"
        };
        // SAFETY: the library is NVIDIA's driver, whose initializers are made to run anywhere.
        let driver = unsafe { Library::new(name)? };
        let (mut device, mut context) = (0, std::ptr::null_mut());
        call!(driver, "cuInit", fn(c_uint), 0);
        call!(
            driver,
            "cuDeviceGet",
            fn(*mut c_int, c_int),
            &raw mut device,
            0
        );
        call!(
            driver,
            "cuDevicePrimaryCtxRetain",
            fn(*mut *mut c_void, c_int),
            &raw mut context,
            device
        );
        let engine = Self { driver, context };
        engine.bind()?;
        Ok(engine)
    }

    /// On another context of the same device, which is no primary one.
    #[allow(dead_code, reason = "the tests use it")]
    pub fn with_a_context_of_its_own() -> Result<Self> {
        let first = Self::new()?;
        let mut context = std::ptr::null_mut();
        call!(
            first.driver,
            "cuCtxCreate_v2",
            fn(*mut *mut c_void, c_uint, c_int),
            &raw mut context,
            0,
            0
        );
        Ok(Self { context, ..first })
    }

    fn bind(&self) -> Result<()> {
        call!(
            self.driver,
            "cuCtxSetCurrent",
            fn(*mut c_void),
            self.context
        );
        Ok(())
    }

    /// The context's handle.
    pub fn context(&self) -> *mut c_void {
        self.context
    }

    /// A stream of its own, which does not wait for the default one.
    pub fn stream(&self) -> Result<*mut c_void> {
        let mut stream = std::ptr::null_mut();
        self.bind()?;
        call!(
            self.driver,
            "cuStreamCreate",
            fn(*mut *mut c_void, c_uint),
            &raw mut stream,
            1
        );
        Ok(stream)
    }

    /// Waits for a stream.
    pub fn synchronize(&self, stream: *mut c_void) -> Result<()> {
        self.bind()?;
        call!(self.driver, "cuStreamSynchronize", fn(*mut c_void), stream);
        Ok(())
    }

    /// Device memory of so many bytes.
    pub fn allocate(&self, bytes: usize) -> Result<u64> {
        let mut address = 0;
        self.bind()?;
        call!(
            self.driver,
            "cuMemAlloc_v2",
            fn(*mut u64, usize),
            &raw mut address,
            bytes
        );
        Ok(address)
    }

    /// Copies to the device.
    pub fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.bind()?;
        call!(
            self.driver,
            "cuMemcpyHtoD_v2",
            fn(u64, *const u8, usize),
            to,
            bytes.as_ptr(),
            bytes.len()
        );
        Ok(())
    }

    /// Copies from the device.
    pub fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.bind()?;
        call!(
            self.driver,
            "cuMemcpyDtoH_v2",
            fn(*mut u8, u64, usize),
            bytes.as_mut_ptr(),
            from,
            bytes.len()
        );
        Ok(())
    }
}
