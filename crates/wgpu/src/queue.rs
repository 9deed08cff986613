//! What was recorded and waits for its submission, and the copies to and from the host.

use std::hint;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::device::Device;
use crate::{Buffer, Result, WgpuError};

/// The largest staging buffer that copies to and from the host go through, in bytes.
const STAGING: usize = 64 << 20;

/// How long to wait for another thread to call back before asking the device again.
const PATIENCE: Duration = Duration::from_millis(100);

/// How long to ask a GPU again and again before sleeping until it is done: to wake up takes longer
/// than most calls.
const IMPATIENCE: Duration = Duration::from_millis(2);

/// How long to leave the device, and its locks, alone between.
const BETWEEN_QUESTIONS: Duration = Duration::from_nanos(500);

/// Kernels recorded one after another into one pass; one submission runs them all.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    recording: Option<Recording>,
    staging: Option<wgpu::Buffer>,
}

#[derive(Debug)]
struct Recording {
    pass: wgpu::ComputePass<'static>,
    encoder: wgpu::CommandEncoder,
}

fn encoder(device: &Device) -> wgpu::CommandEncoder {
    device
        .raw()
        .create_command_encoder(&wgpu::CommandEncoderDescriptor {
            label: Some("swiglu"),
        })
}

/// A recording where there was none.
fn begin<'a>(
    empty: &'a mut Option<Recording>,
    device: &Device,
) -> Result<&'a mut wgpu::ComputePass<'static>> {
    let recording = device.scoped("recording", || {
        let mut encoder = encoder(device);
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
            None => encoder(device),
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

impl Device {
    /// Records with `f` into the pass that is submitted next.
    pub(crate) fn record(
        &self,
        f: impl FnOnce(&mut wgpu::ComputePass<'static>) -> Result<()>,
    ) -> Result<()> {
        let mut pending = self.pending.lock()?;
        // What joins a recording need not ask the device again. wgpu tells what is wrong with the
        // commands in a pass when the encoder is finished.
        let pass = match &mut pending.recording {
            Some(recording) => {
                self.check()?;
                &mut recording.pass
            }
            empty => {
                self.poll(wgpu::PollType::Poll)?;
                begin(empty, self)?
            }
        };
        f(pass)
    }

    /// Submits what was recorded, without waiting for it.
    pub(crate) fn flush(&self) -> Result<()> {
        self.check()?;
        self.pending.lock()?.submit(self)
    }

    /// Submits what was recorded and waits for everything submitted.
    pub(crate) fn wait(&self) -> Result<()> {
        self.flush()?;
        self.wait_for_submitted()
    }

    fn wait_for_submitted(&self) -> Result<()> {
        // A software rasteriser needs the processor that asking would take.
        let asks = !self.is_software();
        let start = Instant::now();
        while asks && start.elapsed() < IMPATIENCE {
            if self.poll(wgpu::PollType::Poll)? {
                return Ok(());
            }
            let asked = Instant::now();
            while asked.elapsed() < BETWEEN_QUESTIONS {
                hint::spin_loop();
            }
        }
        self.poll(wgpu::PollType::wait_indefinitely())?;
        Ok(())
    }

    /// Copies `data` into the buffer from byte `offset`, a multiple of 4, on, behind what was
    /// recorded before.
    pub(crate) fn write(&self, buffer: &wgpu::Buffer, offset: usize, data: &[u8]) -> Result<()> {
        self.flush()?;
        let whole = data.len() & !3;
        for (i, chunk) in data[..whole].chunks(STAGING).enumerate() {
            let at = (offset + i * STAGING) as u64;
            self.scoped_alloc("uploading", chunk.len(), || {
                self.queue().write_buffer(buffer, at, chunk);
                self.queue().submit([]);
            })?;
        }
        if whole == data.len() {
            return Ok(());
        }
        // Copies move whole words: the rest of the last one must keep its value.
        let mut last = [0; 4];
        self.read(buffer, offset + whole, &mut last)?;
        last[..data.len() - whole].copy_from_slice(&data[whole..]);
        let at = (offset + whole) as u64;
        self.scoped("uploading", || self.queue().write_buffer(buffer, at, &last))
    }

    /// Waits for what was recorded and copies from `offset`, a multiple of 4, on.
    pub(crate) fn read(&self, buffer: &wgpu::Buffer, offset: usize, data: &mut [u8]) -> Result<()> {
        self.check()?;
        let mut pending = self.pending.lock()?;
        for (i, chunk) in data.chunks_mut(STAGING).enumerate() {
            let bytes = chunk.len().next_multiple_of(4);
            let staging = pending.staging(self, bytes.next_multiple_of(16))?;
            let from = (offset + i * STAGING) as u64;
            self.scoped("downloading", || {
                let mut encoder = pending.take(self);
                encoder.copy_buffer_to_buffer(buffer, from, &staging, 0, bytes as u64);
                self.queue().submit([encoder.finish()]);
            })?;
            self.read_staging(&staging, chunk)?;
            pending.keep(staging);
        }
        Ok(())
    }

    fn read_staging(&self, staging: &wgpu::Buffer, data: &mut [u8]) -> Result<()> {
        let slice = staging.slice(..data.len().next_multiple_of(4) as u64);
        let (tell, told) = mpsc::channel();
        self.scoped("mapping", || {
            // Nobody listens any more if this call has failed since.
            slice.map_async(wgpu::MapMode::Read, move |result| drop(tell.send(result)));
        })?;
        // Another thread's poll may be the one that calls back, and later than ours returns.
        let mapped = loop {
            self.wait_for_submitted()?;
            match told.recv_timeout(PATIENCE) {
                Err(RecvTimeoutError::Timeout) => {}
                Err(error) => return Err(WgpuError::failed("mapping", error)),
                Ok(mapped) => break mapped,
            }
        };
        mapped.map_err(|error| WgpuError::failed("mapping", error))?;
        let copied = match slice.get_mapped_range() {
            Ok(view) => {
                data.copy_from_slice(&view[..data.len()]);
                Ok(())
            }
            Err(error) => Err(WgpuError::failed("mapping", error)),
        };
        staging.unmap();
        copied
    }

    /// A buffer of `bytes` bytes for kernels.
    pub(crate) fn alloc(&self, bytes: usize) -> Result<Buffer> {
        self.check()?;
        let size = bytes
            .max(1)
            .checked_next_multiple_of(16)
            .ok_or(WgpuError::OutOfMemory { bytes })?;
        let raw = self.create_buffer(size as u64, Buffer::USAGES)?;
        Ok(Buffer::new(raw, bytes))
    }
}
