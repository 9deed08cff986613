//! Contexts and streams that are not this cudarc's, as values of it.

use std::{ffi::c_void, sync::Arc};

use cudarc::driver::{CudaContext, CudaStream, result, sys};
use swiglu_core::Error as CoreError;

use crate::error::{Doing, Result};

/// Checks that a device is the one that was asked for.
pub(crate) fn check_device(wanted: Option<usize>, ordinal: usize) -> Result<()> {
    match wanted {
        Some(wanted) if wanted != ordinal => {
            let expected = format!("{ordinal}, the stream's device");
            Err(CoreError::argument("device", expected, wanted).into())
        }
        _ => Ok(()),
    }
}

/// The device of a context, found by making it current for a moment.
///
/// # Safety
/// It is a context.
unsafe fn device_of(context: sys::CUcontext) -> Result<sys::CUdevice> {
    let before = result::ctx::get_current().doing("ask for the context")?;
    // SAFETY: by this function's contract.
    unsafe { result::ctx::set_current(context) }.doing("bind the context")?;
    let mut device = 0;
    // SAFETY: the pointer is to this frame's own integer.
    let asked = unsafe { sys::cuCtxGetDevice(&raw mut device) }.result();
    // SAFETY: it was current before; null is none.
    unsafe { result::ctx::set_current(before.unwrap_or(std::ptr::null_mut())) }
        .doing("bind the context")?;
    asked.doing("ask for the device")?;
    Ok(device)
}

/// The number of a device.
fn ordinal_of(device: sys::CUdevice) -> Result<usize> {
    let count = result::device::get_count().doing("count the devices")?;
    for ordinal in 0..count {
        if result::device::get(ordinal).doing("ask for the device")? == device {
            return Ok(ordinal as usize);
        }
    }
    let expected = "a context of a device that the driver counts";
    Err(CoreError::argument("context", expected, device).into())
}

/// A context of somebody else's. A device's primary context, which nearly all have, is retained as
/// its own users do; another one stays its maker's.
///
/// # Safety
/// It is a `CUcontext` that lives as long as what is made of this.
pub(crate) unsafe fn context(context: *mut c_void) -> Result<Arc<CudaContext>> {
    let context: sys::CUcontext = context.cast();
    if context.is_null() {
        return Err(CoreError::argument("context", "a CUcontext", "null").into());
    }
    // SAFETY: by this function's contract.
    let device = unsafe { device_of(context)? };
    let ordinal = ordinal_of(device)?;
    let (mut flags, mut is_active) = (0, 0);
    // SAFETY: the pointers are to this frame's own integers.
    unsafe { sys::cuDevicePrimaryCtxGetState(device, &raw mut flags, &raw mut is_active) }
        .result()
        .doing("ask for the context")?;
    // One that nobody uses is not this, and would be made by retaining it.
    if is_active != 0 {
        let primary = CudaContext::new(ordinal).doing("open the device")?;
        if primary.cu_ctx() == context {
            return Ok(primary);
        }
    }
    // SAFETY: it is a context of this device. That cudarc would destroy it with the last `Arc` does
    // not come about: one is never dropped.
    let foreign = unsafe { CudaContext::from_raw_context(ordinal, device, context) };
    let foreign = foreign.doing("use the context")?;
    std::mem::forget(foreign.clone());
    Ok(foreign)
}

/// A stream of somebody else's.
///
/// # Safety
/// It is a `CUstream`, or null for the context's default stream, that lives as long as what is made
/// of this.
pub(crate) unsafe fn stream(
    context: &Arc<CudaContext>,
    stream: *mut c_void,
) -> Result<Arc<CudaStream>> {
    let stream: sys::CUstream = stream.cast();
    context.bind_to_thread().doing("bind the context")?;
    let mut of = std::ptr::null_mut();
    // SAFETY: by this function's contract; of a default stream the answer is the current context.
    unsafe { sys::cuStreamGetCtx(stream, &raw mut of) }
        .result()
        .doing("ask for the stream's context")?;
    if of != context.cu_ctx() {
        let expected = "a stream of the backend's context";
        return Err(CoreError::argument("stream", expected, "another context's").into());
    }
    // SAFETY: it is a stream of this context, and lives long enough.
    Ok(unsafe { context.wrap_borrowed_stream(stream) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_must_be_that_of_the_streams_device() {
        check_device(None, 3).unwrap();
        check_device(Some(3), 3).unwrap();
        let error = check_device(Some(1), 3).unwrap_err().to_string();
        assert_eq!(error, "device: expected 3, the stream's device, got 1");
    }

    #[test]
    fn a_null_context_is_refused_without_a_driver() {
        // SAFETY: null is looked at, and refused.
        let error = unsafe { context(std::ptr::null_mut()) }.unwrap_err();
        assert_eq!(error.to_string(), "context: expected a CUcontext, got null");
    }
}
