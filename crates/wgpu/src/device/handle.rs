use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock};

use super::adapter::describe;
use super::facts::BindingLimits;
use super::needs::Needs;
use crate::{Result, WgpuError};

fn invocations(limits: &wgpu::Limits) -> u32 {
    limits
        .max_compute_invocations_per_workgroup
        .min(limits.max_compute_workgroup_size_x)
}

/// Why a device is gone.
fn loss(reason: wgpu::DeviceLostReason, message: &str) -> String {
    match reason {
        wgpu::DeviceLostReason::Destroyed => format!("it was destroyed: {message}"),
        wgpu::DeviceLostReason::Unknown => message.to_owned(),
    }
}

/// A wgpu device and its queue.
#[derive(Debug)]
pub struct Device {
    info: wgpu::AdapterInfo,
    raw: wgpu::Device,
    queue: wgpu::Queue,
    limits: wgpu::Limits,
    lost: Arc<OnceLock<String>>,
    uncaptured: Arc<Mutex<Option<String>>>,
    cooperative: bool,
}

impl Device {
    /// A device of this crate's own: its loss and its stray errors are heard here.
    ///
    /// `cooperative` says that its subgroups multiply matrices of f16, 16 by 16 by 16, to sums in
    /// f32, which only an adapter tells.
    pub(crate) fn own(
        raw: wgpu::Device,
        queue: wgpu::Queue,
        (needs, cooperative): (Needs, bool),
    ) -> Result<Self> {
        let device = Self::callers(raw, queue, (needs, cooperative))?;
        let lost = Arc::clone(&device.lost);
        device.raw.set_device_lost_callback(move |reason, message| {
            // The first reason is the one that counts.
            drop(lost.set(loss(reason, &message)));
        });
        let uncaptured = Arc::clone(&device.uncaptured);
        device.raw.on_uncaptured_error(Arc::new(move |error| {
            if let Ok(mut slot) = uncaptured.lock() {
                slot.get_or_insert_with(|| error.to_string());
            }
        }));
        Ok(device)
    }

    /// A device of the caller's, whose callbacks stay as the caller set them; `cooperative` as in
    /// [`Self::own`].
    pub(crate) fn callers(
        raw: wgpu::Device,
        queue: wgpu::Queue,
        (needs, cooperative): (Needs, bool),
    ) -> Result<Self> {
        let (info, limits) = (raw.adapter_info(), raw.limits());
        if let Some(what) = needs.lacking(raw.features(), &limits) {
            let adapter = info.name;
            return Err(WgpuError::Lacks { adapter, what });
        }
        Ok(Self {
            info,
            limits,
            raw,
            queue,
            lost: Arc::default(),
            uncaptured: Arc::default(),
            cooperative,
        })
    }

    /// The wgpu device.
    pub const fn raw(&self) -> &wgpu::Device {
        &self.raw
    }

    /// The wgpu queue.
    pub const fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    /// What wgpu knows of the adapter.
    pub const fn info(&self) -> &wgpu::AdapterInfo {
        &self.info
    }

    /// Name, kind, interface and driver, on one line.
    pub fn description(&self) -> String {
        describe(&self.info)
    }

    pub(crate) fn is_software(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    /// Bytes that one binding can have, and where it can start.
    pub(crate) fn bindings(&self) -> BindingLimits {
        BindingLimits::of(&self.limits)
    }

    /// Storage buffers that one kernel can have.
    pub(crate) const fn storage_buffers(&self) -> u32 {
        self.limits.max_storage_buffers_per_shader_stage
    }

    /// Bytes of memory that a workgroup can have.
    pub(crate) const fn workgroup_storage(&self) -> u32 {
        self.limits.max_compute_workgroup_storage_size
    }

    /// Invocations that a workgroup can have in a line.
    pub(crate) fn invocations(&self) -> u32 {
        invocations(&self.limits)
    }

    /// Whether matrices of f16 can be multiplied by a subgroup.
    pub(crate) const fn has_cooperative_matrices(&self) -> bool {
        self.cooperative
    }

    /// Whether a call can succeed: the device's loss, or an error that no scope caught, if not.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(reason) = self.lost.get() {
            return Err(WgpuError::Lost(reason.clone()));
        }
        match self.uncaptured.lock()?.take() {
            Some(message) => Err(WgpuError::failed("an earlier call", message)),
            None => Ok(()),
        }
    }

    /// Runs `f` with wgpu's errors caught.
    pub(crate) fn scoped<T>(&self, action: &'static str, f: impl FnOnce() -> T) -> Result<T> {
        self.scoped_alloc(action, 0, f)
    }

    /// As [`Self::scoped`], where `bytes` are being allocated.
    pub(crate) fn scoped_alloc<T>(
        &self,
        action: &'static str,
        bytes: usize,
        f: impl FnOnce() -> T,
    ) -> Result<T> {
        let memory = self.raw.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = self.raw.push_error_scope(wgpu::ErrorFilter::Internal);
        let validation = self.raw.push_error_scope(wgpu::ErrorFilter::Validation);
        let value = f();
        let validation = pollster::block_on(validation.pop());
        let internal = pollster::block_on(internal.pop());
        let memory = pollster::block_on(memory.pop());
        if memory.is_some() {
            return Err(WgpuError::OutOfMemory { bytes });
        }
        match validation.or(internal) {
            None => Ok(value),
            Some(error) => {
                // On a lost device other calls fail in ways that hide the cause.
                self.poll(wgpu::PollType::Poll)?;
                Err(WgpuError::failed(action, error))
            }
        }
    }

    /// Lets wgpu do what is due; waits, if asked to. Whether all that was submitted is done.
    pub(crate) fn poll(&self, how: wgpu::PollType) -> Result<bool> {
        // wgpu panics in poll where the device was lost in it.
        let polled = catch_unwind(AssertUnwindSafe(|| self.raw.poll(how)));
        self.check()?;
        match polled {
            Ok(Ok(status)) => Ok(status.is_queue_empty()),
            Ok(Err(error)) => Err(WgpuError::failed("waiting for the device", error)),
            Err(_) => Err(WgpuError::Lost("wgpu gave up waiting for it".to_owned())),
        }
    }

    /// A buffer of `bytes`, which must be a multiple of 16.
    pub(crate) fn create_buffer(
        &self,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer> {
        let as_usize = usize::try_from(bytes).unwrap_or(usize::MAX);
        if bytes > self.limits.max_buffer_size {
            return Err(WgpuError::OutOfMemory { bytes: as_usize });
        }
        self.scoped_alloc("creating a buffer", as_usize, || {
            self.raw.create_buffer(&wgpu::BufferDescriptor {
                label: Some("swiglu"),
                size: bytes,
                usage,
                mapped_at_creation: false,
            })
        })
    }
}
