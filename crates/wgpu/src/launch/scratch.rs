//! Memory between two dispatches of one call.

use std::sync::Mutex;

use crate::Result;
use crate::device::Device;

/// The least that is allocated, in bytes.
const LEAST: u64 = 1 << 18;

/// A buffer that a dispatch writes for the next one, and that all calls share: a queue runs them one
/// after another. It grows to what is asked for and stays.
#[derive(Debug, Default)]
pub(crate) struct Scratch(Mutex<Option<wgpu::Buffer>>);

impl Scratch {
    /// The most that is asked for at a time, in bytes.
    pub(crate) const MOST: u64 = 1 << 27;

    /// At least so many bytes.
    pub(crate) fn of(&self, device: &Device, bytes: u64) -> Result<wgpu::Buffer> {
        let mut kept = self.0.lock()?;
        if let Some(buffer) = &*kept
            && buffer.size() >= bytes
        {
            return Ok(buffer.clone());
        }
        let bytes = bytes
            .max(LEAST)
            .checked_next_power_of_two()
            .unwrap_or(bytes);
        let buffer = device.create_buffer(bytes, wgpu::BufferUsages::STORAGE)?;
        *kept = Some(buffer.clone());
        Ok(buffer)
    }
}
