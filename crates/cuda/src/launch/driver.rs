//! Modules, functions and launches: what cudarc's safe layer lacks of the driver.

use std::{
    ffi::{CString, c_void},
    sync::Arc,
};

use cudarc::driver::{CudaContext, result, sys};

use crate::error::{Doing, Result};

/// A source's kernels, compiled for the devices of old drivers and for later devices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fatbins {
    /// Machine code for compute capabilities from 8.0 on, which drivers of CUDA 12.0 read.
    pub(crate) from_80: &'static [u8],
    /// From 10.0 on, whose drivers are of CUDA 12.8 at least.
    pub(crate) from_100: &'static [u8],
}

/// The [`Fatbins`] of a source in `kernels/`.
macro_rules! fatbins {
    ($source:literal) => {
        $crate::launch::driver::Fatbins {
            from_80: include_bytes!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/fatbin/",
                $source,
                ".80.fatbin"
            )),
            from_100: include_bytes!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/fatbin/",
                $source,
                ".100.fatbin"
            )),
        }
    };
}
pub(crate) use fatbins;

impl Fatbins {
    const fn of(&self, capability: Capability) -> &'static [u8] {
        if capability.major >= 10 {
            self.from_100
        } else {
            self.from_80
        }
    }
}

/// A loaded fatbin.
#[derive(Debug)]
pub(crate) struct Module {
    module: sys::CUmodule,
    context: Arc<CudaContext>,
}

// SAFETY: a module may be used from any thread that the context is bound to.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// What a module that does not load was to do, and what it takes.
const LOAD: &str =
    "load the kernels (of CUDA 12: driver R525 or newer, compute capability 8.0 or newer)";

/// The version of CUDA that the driver supports, such as (12, 2).
pub(crate) fn driver_version() -> Result<(i32, i32)> {
    let mut version = 0;
    // SAFETY: the pointer is to this frame's own integer.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }
        .result()
        .doing("ask for the driver's version")?;
    Ok((version / 1000, version % 1000 / 10))
}

impl Module {
    pub(crate) fn load(context: &Arc<CudaContext>, fatbins: &Fatbins) -> Result<Self> {
        let fatbin = fatbins.of(Capability::of(context)?);
        context.bind_to_thread().doing("bind the context")?;
        // SAFETY: the fatbin is one that nvcc wrote, and checked in.
        let module = unsafe { result::module::load_data(fatbin.as_ptr().cast()) };
        Ok(Self {
            module: module.doing(LOAD)?,
            context: context.clone(),
        })
    }

    /// A kernel, with its code loaded: by default the driver would put that off to the first
    /// launch, where it allocates.
    pub(crate) fn function(&self, name: &str) -> Result<Function> {
        let name = CString::new(name).unwrap_or_default();
        // SAFETY: the module is loaded.
        let function = unsafe { result::module::get_function(self.module, name) };
        let function = function.doing("find a kernel")?;
        let registers = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS;
        // SAFETY: the function is of this module.
        unsafe { result::function::get_function_attribute(function, registers) }
            .doing("load a kernel")?;
        Ok(Function(function))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        self.context.record_err(self.context.bind_to_thread());
        // SAFETY: the module was loaded by `load` and is unloaded once.
        let result = unsafe { result::module::unload(self.module) };
        self.context.record_err(result);
    }
}

/// A kernel. It lives as long as its module, which every owner of functions keeps beside them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function(sys::CUfunction);

// SAFETY: a function is a handle that any thread may launch.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// The size of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) blocks: [u32; 2],
    /// Threads of a block.
    pub(crate) threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub(crate) shared: u32,
    /// Programmatic dependent launch: the kernel may start while the one before it ends.
    pub(crate) programmatic: bool,
}

/// What of a device decides which kernels run and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capability {
    pub(crate) major: i32,
    pub(crate) minor: i32,
}

impl Capability {
    pub(crate) fn of(context: &CudaContext) -> Result<Self> {
        let (major, minor) = context.compute_capability().doing("ask for the device")?;
        Ok(Self { major, minor })
    }

    /// Whether a kernel may start before the one before it ends.
    pub(crate) const fn overlaps_launches(self) -> bool {
        self.major >= 9
    }

    /// Whether it is Hopper, for which alone some kernels are compiled.
    pub(crate) const fn is_hopper(self) -> bool {
        self.major == 9 && self.minor == 0
    }

    /// Whether 32 bytes are one access.
    pub(crate) const fn has_32_byte_accesses(self) -> bool {
        self.major >= 10
    }
}

impl Function {
    /// Opts in to more than 48 KB of dynamic shared memory a block.
    pub(crate) fn allow_shared(self, bytes: u32) -> Result<()> {
        let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function's module is loaded.
        unsafe { result::function::set_function_attribute(self.0, most, bytes as i32) }
            .doing("allow shared memory")
    }

    /// Asks for as much shared memory and as little cache as a multiprocessor has. By default the
    /// driver gives what one block takes, and the next kernel's have to wait.
    pub(crate) fn prefer_shared(self) -> Result<()> {
        let carveout =
            sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        // SAFETY: the function's module is loaded.
        unsafe { result::function::set_function_attribute(self.0, carveout, 100) }
            .doing("prefer shared memory")
    }

    /// Launches the kernel with its one parameter.
    ///
    /// # Safety
    /// `P` is the kernel's parameter, its pointers are valid for what the kernel reads and writes
    /// until it has run, the stream is valid and its context is bound.
    pub(crate) unsafe fn launch<P>(
        self,
        stream: sys::CUstream,
        grid: Grid,
        params: &P,
    ) -> Result<()> {
        // SAFETY: by this function's contract.
        unsafe { self.launch_clusters(stream, grid, None, params) }
    }

    /// The same in clusters of so many blocks, where the kernel is not compiled for a number.
    ///
    /// # Safety
    /// As [`Self::launch`].
    pub(crate) unsafe fn launch_clusters<P>(
        self,
        stream: sys::CUstream,
        grid: Grid,
        cluster: Option<u32>,
        params: &P,
    ) -> Result<()> {
        use sys::CUlaunchAttributeID as Id;
        let attribute = |id, value| sys::CUlaunchAttribute {
            id,
            pad: [0; 4],
            value,
        };
        let overlap = attribute(
            Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            sys::CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: i32::from(grid.programmatic),
            },
        );
        let blocks = attribute(
            Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            sys::CUlaunchAttributeValue {
                clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 {
                    x: cluster.unwrap_or(1),
                    y: 1,
                    z: 1,
                },
            },
        );
        let mut attributes = match (grid.programmatic, cluster) {
            (true, _) => [overlap, blocks],
            (false, _) => [blocks, overlap],
        };
        let count = u32::from(grid.programmatic) + u32::from(cluster.is_some());
        let config = sys::CUlaunchConfig {
            gridDimX: grid.blocks[0],
            gridDimY: grid.blocks[1],
            gridDimZ: 1,
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared,
            hStream: stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: count,
        };
        let mut arguments = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        // SAFETY: by this function's contract; the driver copies the parameter before it returns.
        unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                self.0,
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
        .doing("launch a kernel")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_gets_the_images_that_its_drivers_read() {
        let fatbins = fatbins!("matmul");
        let of = |major, minor| fatbins.of(Capability { major, minor }).as_ptr();
        assert_eq!(
            [of(8, 0), of(8, 9), of(9, 0)],
            [fatbins.from_80.as_ptr(); 3]
        );
        assert_eq!([of(10, 0), of(12, 1)], [fatbins.from_100.as_ptr(); 2]);
        // The magic number of fatbins.
        for fatbin in [fatbins.from_80, fatbins.from_100] {
            assert_eq!(fatbin[..4], 0xba55_ed50_u32.to_le_bytes());
        }
    }
}
