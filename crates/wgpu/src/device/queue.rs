//! Submission, waiting, and the copies to and from the host.

use std::hint;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::handle::Device;
use crate::{Result, WgpuError};

/// The largest staging buffer that copies to and from the host go through, in bytes.
pub(crate) const STAGING: usize = 64 << 20;

/// How long to wait for another thread to call back before asking the device again.
const PATIENCE: Duration = Duration::from_millis(100);

/// How long to ask a GPU again and again before sleeping until it is done: to wake up takes longer
/// than most calls.
const IMPATIENCE: Duration = Duration::from_millis(2);

/// How long to leave the device, and its locks, alone between.
const BETWEEN_QUESTIONS: Duration = Duration::from_nanos(500);

impl Device {
    /// An encoder with nothing in it.
    pub(crate) fn encoder(&self) -> wgpu::CommandEncoder {
        self.raw()
            .create_command_encoder(&wgpu::CommandEncoderDescriptor {
                label: Some("swiglu"),
            })
    }

    /// Waits for everything that was submitted.
    pub(crate) fn wait_for_submitted(&self) -> Result<()> {
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

    /// Copies `data`, whole words, into the buffer from byte `offset` on, a multiple of 4: behind
    /// all that was submitted.
    pub(crate) fn write_words(
        &self,
        buffer: &wgpu::Buffer,
        offset: usize,
        data: &[u8],
    ) -> Result<()> {
        for (i, chunk) in data.chunks(STAGING).enumerate() {
            let at = (offset + i * STAGING) as u64;
            self.scoped_alloc("uploading", chunk.len(), || {
                self.queue().write_buffer(buffer, at, chunk);
                self.queue().submit([]);
            })?;
        }
        Ok(())
    }

    /// Waits for what was submitted and copies the first bytes of a staging buffer. After a failure
    /// it may still be mapped.
    pub(crate) fn read_staging(&self, staging: &wgpu::Buffer, data: &mut [u8]) -> Result<()> {
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
}
