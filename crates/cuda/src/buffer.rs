use std::sync::Arc;

use cudarc::driver::{CudaContext, result, sys};

use crate::error::{Doing, Result};

/// Device memory of untyped bytes, aligned to 256.
#[derive(Debug)]
pub struct CudaBuffer {
    address: sys::CUdeviceptr,
    len: usize,
    context: Arc<CudaContext>,
}

impl CudaBuffer {
    pub(crate) fn new(context: &Arc<CudaContext>, len: usize) -> Result<Self> {
        context.bind_to_thread().doing("bind the context")?;
        // The driver refuses to allocate nothing.
        // SAFETY: the memory is untyped bytes, any value is one.
        let address = unsafe { result::malloc_sync(len.max(1)) }.doing("allocate")?;
        Ok(Self {
            address,
            len,
            context: context.clone(),
        })
    }

    /// The context that it belongs to.
    pub(crate) const fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Where the memory begins on the device.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for CudaBuffer {
    fn drop(&mut self) {
        self.context.record_err(self.context.bind_to_thread());
        // SAFETY: `new` allocated it, and the driver waits for the work that uses it.
        let freed = unsafe { result::free_sync(self.address) };
        self.context.record_err(freed);
    }
}
