//! What was recorded and waits for its submission.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use crate::device::{Device, STAGING};
use crate::{Result, WgpuError};

/// A device, and the calls that were recorded for it one after another: one submission runs them
/// all.
#[derive(Debug)]
pub(crate) struct Recorder {
    device: Arc<Device>,
    pending: Mutex<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    recording: Option<Recording>,
    staging: Option<wgpu::Buffer>,
}

#[derive(Debug)]
struct Recording {
    pass: wgpu::ComputePass<'static>,
    target: Target,
}

/// What a recording's pass belongs to.
#[derive(Debug)]
enum Target {
    Own(wgpu::CommandEncoder),
    /// An encoder of the caller's, which this thread records into.
    Callers(ThreadId),
}

/// What cannot be done while calls go into the caller's encoder.
fn refusal(action: &'static str) -> WgpuError {
    WgpuError::failed(action, "calls are being recorded into a caller's encoder")
}

/// A recording where there was none.
fn begin<'a>(
    empty: &'a mut Option<Recording>,
    device: &Device,
) -> Result<&'a mut wgpu::ComputePass<'static>> {
    let recording = device.scoped("recording", || {
        let mut encoder = device.encoder();
        let pass = encoder
            .begin_compute_pass(&wgpu::ComputePassDescriptor::default())
            .forget_lifetime();
        let target = Target::Own(encoder);
        Recording { pass, target }
    })?;
    Ok(&mut empty.insert(recording).pass)
}

impl Pending {
    /// Refuses what cannot be done while calls go into the caller's encoder.
    fn check_own(&self, action: &'static str) -> Result<()> {
        match &self.recording {
            Some(Recording {
                target: Target::Callers(_),
                ..
            }) => Err(refusal(action)),
            _ => Ok(()),
        }
    }

    /// The encoder of what was recorded, or a new one.
    fn take(&mut self, device: &Device) -> wgpu::CommandEncoder {
        match self.recording.take() {
            Some(Recording {
                pass,
                target: Target::Own(encoder),
            }) => {
                drop(pass);
                encoder
            }
            // Callers have checked that there is no other.
            _ => device.encoder(),
        }
    }

    fn submit(&mut self, device: &Device) -> Result<()> {
        self.check_own("submitting")?;
        if self.recording.is_none() {
            return Ok(());
        }
        device.scoped("submitting", || {
            let encoder = self.take(device);
            device.queue().submit([encoder.finish()]);
        })
    }

    /// A staging buffer of at least `bytes`. It is the caller's until [`Self::keep`]: one that a
    /// failure left mapped must not come back.
    fn staging(&mut self, device: &Device, bytes: usize) -> Result<wgpu::Buffer> {
        let wanted = bytes as u64;
        match self.staging.take() {
            Some(buffer) if buffer.size() >= wanted => Ok(buffer),
            _ => {
                let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
                device.create_buffer(wanted, usage)
            }
        }
    }

    fn keep(&mut self, staging: wgpu::Buffer) {
        self.staging = Some(staging);
    }
}

impl Recorder {
    pub(crate) fn new(device: Arc<Device>) -> Self {
        Self {
            device,
            pending: Mutex::default(),
        }
    }

    /// The device; what was recorded for it is dropped.
    pub(crate) fn into_device(self) -> Arc<Device> {
        self.device
    }

    /// Another for the same device.
    pub(crate) fn share(&self) -> Self {
        Self::new(Arc::clone(&self.device))
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// Submits what was recorded; until what is returned is dropped, this thread's calls go into
    /// the caller's encoder, and other threads' calls are refused.
    pub(crate) fn divert(&self, encoder: &mut wgpu::CommandEncoder) -> Result<Diverted<'_>> {
        let device = &self.device;
        device.check()?;
        let mut pending = self.pending.lock()?;
        pending.submit(device)?;
        let pass = device.scoped("recording", || {
            let pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.forget_lifetime()
        })?;
        let target = Target::Callers(thread::current().id());
        pending.recording = Some(Recording { pass, target });
        Ok(Diverted(self))
    }

    /// Records with `f` into the pass that is submitted next.
    pub(crate) fn record(
        &self,
        f: impl FnOnce(&mut wgpu::ComputePass<'static>) -> Result<()>,
    ) -> Result<()> {
        let device = &self.device;
        let mut pending = self.pending.lock()?;
        // What joins a recording need not ask the device again. wgpu tells what is wrong with the
        // commands in a pass when the encoder is finished.
        let pass = match &mut pending.recording {
            Some(recording) => {
                device.check()?;
                match recording.target {
                    Target::Callers(thread) if thread != thread::current().id() => {
                        return Err(refusal("another thread's call"));
                    }
                    Target::Own(_) | Target::Callers(_) => &mut recording.pass,
                }
            }
            empty => {
                device.poll(wgpu::PollType::Poll)?;
                begin(empty, device)?
            }
        };
        f(pass)
    }

    /// Submits what was recorded, without waiting for it.
    pub(crate) fn flush(&self) -> Result<()> {
        self.device.check()?;
        self.pending.lock()?.submit(&self.device)
    }

    /// Submits what was recorded and waits for everything submitted.
    pub(crate) fn wait(&self) -> Result<()> {
        self.flush()?;
        self.device.wait_for_submitted()
    }

    /// Copies `data` into the buffer's first bytes, behind what was recorded before.
    pub(crate) fn write(&self, buffer: &wgpu::Buffer, data: &[u8]) -> Result<()> {
        self.flush()?;
        let (whole, rest) = data.split_at(data.len() & !3);
        self.device.write_words(buffer, 0, whole)?;
        if rest.is_empty() {
            return Ok(());
        }
        // Copies move whole words: the rest of the last one must keep its value.
        let mut last = [0; 4];
        self.read(buffer, whole.len(), &mut last)?;
        last[..rest.len()].copy_from_slice(rest);
        self.device.write_words(buffer, whole.len(), &last)
    }

    /// Copies `data` into the bytes from `offset` on, behind what was recorded before: whole words,
    /// of which those that are not wholly written keep the rest.
    pub(crate) fn write_at(&self, buffer: &wgpu::Buffer, offset: usize, data: &[u8]) -> Result<()> {
        let lead = offset % 4;
        let mut words = vec![0; (lead + data.len()).next_multiple_of(4)];
        self.read(buffer, offset - lead, &mut words)?;
        words[lead..lead + data.len()].copy_from_slice(data);
        self.device.write_words(buffer, offset - lead, &words)
    }

    /// Waits for what was recorded and copies from byte `offset` on, of any multiple.
    pub(crate) fn read_at(
        &self,
        buffer: &wgpu::Buffer,
        offset: usize,
        data: &mut [u8],
    ) -> Result<()> {
        let lead = offset % 4;
        let mut words = vec![0; lead + data.len()];
        self.read(buffer, offset - lead, &mut words)?;
        data.copy_from_slice(&words[lead..]);
        Ok(())
    }

    /// Waits for what was recorded and copies from byte `offset` on, a multiple of 4.
    pub(crate) fn read(&self, buffer: &wgpu::Buffer, offset: usize, data: &mut [u8]) -> Result<()> {
        let device = &self.device;
        device.check()?;
        let mut pending = self.pending.lock()?;
        pending.check_own("downloading")?;
        for (i, chunk) in data.chunks_mut(STAGING).enumerate() {
            let bytes = chunk.len().next_multiple_of(4);
            let staging = pending.staging(device, bytes.next_multiple_of(16))?;
            let from = (offset + i * STAGING) as u64;
            device.scoped("downloading", || {
                let mut encoder = pending.take(device);
                encoder.copy_buffer_to_buffer(buffer, from, &staging, 0, bytes as u64);
                device.queue().submit([encoder.finish()]);
            })?;
            device.read_staging(&staging, chunk)?;
            pending.keep(staging);
        }
        Ok(())
    }
}

/// While it lives, calls go into a caller's encoder.
#[derive(Debug)]
pub(crate) struct Diverted<'a>(&'a Recorder);

impl Drop for Diverted<'_> {
    fn drop(&mut self) {
        let pending = self.0.pending.lock();
        // A call that panicked leaves a pass that ends all the same.
        let mut pending = pending.unwrap_or_else(PoisonError::into_inner);
        pending.recording = None;
    }
}
