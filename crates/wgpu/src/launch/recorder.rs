//! What was recorded and waits for its submission.

use std::sync::Mutex;

use crate::Result;
use crate::device::{Device, STAGING};

/// A device, and the calls that were recorded for it one after another: one submission runs them
/// all.
#[derive(Debug)]
pub(crate) struct Recorder {
    device: Device,
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
    encoder: wgpu::CommandEncoder,
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
        Recording { pass, encoder }
    })?;
    Ok(&mut empty.insert(recording).pass)
}

impl Pending {
    /// The encoder of what was recorded, or a new one.
    fn take(&mut self, device: &Device) -> wgpu::CommandEncoder {
        match self.recording.take() {
            Some(Recording { pass, encoder }) => {
                drop(pass);
                encoder
            }
            None => device.encoder(),
        }
    }

    fn submit(&mut self, device: &Device) -> Result<()> {
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
    pub(crate) fn new(device: Device) -> Self {
        Self {
            device,
            pending: Mutex::default(),
        }
    }

    pub(crate) const fn device(&self) -> &Device {
        &self.device
    }

    /// The device; what was recorded for it is dropped.
    pub(crate) fn into_device(self) -> Device {
        self.device
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
                &mut recording.pass
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

    /// Waits for what was recorded and copies from byte `offset` on, a multiple of 4.
    pub(crate) fn read(&self, buffer: &wgpu::Buffer, offset: usize, data: &mut [u8]) -> Result<()> {
        let device = &self.device;
        device.check()?;
        let mut pending = self.pending.lock()?;
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
