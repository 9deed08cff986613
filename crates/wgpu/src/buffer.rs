use swiglu_core::Error;

use crate::device::Device;
use crate::{Result, WgpuError};

/// Memory of a wgpu device.
///
/// Its size on the device is a multiple of 16, so that kernels can read whole vectors; its length
/// is what was asked for.
#[derive(Clone, Debug)]
pub struct Buffer {
    raw: wgpu::Buffer,
    len: usize,
}

/// The names of usages, as wgpu's documentation has them.
pub(crate) fn usage_names(usages: wgpu::BufferUsages) -> String {
    let names: Vec<_> = usages.iter_names().map(|(name, _)| name).collect();
    match names.as_slice() {
        [] => "no usage".to_owned(),
        names => names.join(" and "),
    }
}

impl Buffer {
    /// What a buffer needs to be an input or an output of a kernel, and to be copied.
    pub const USAGES: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE
        .union(wgpu::BufferUsages::COPY_SRC)
        .union(wgpu::BufferUsages::COPY_DST);

    /// `bytes` bytes of zeros.
    pub(crate) fn allocated(device: &Device, bytes: usize) -> Result<Self> {
        device.check()?;
        let size = bytes
            .max(1)
            .checked_next_multiple_of(16)
            .ok_or(WgpuError::OutOfMemory { bytes })?;
        let raw = device.create_buffer(size as u64, Self::USAGES)?;
        Ok(Self { raw, len: bytes })
    }

    /// A buffer of the caller's own. It stays the caller's: this is another handle to it. For a part
    /// of a buffer there is [`crate::View`].
    ///
    /// # Errors
    /// A buffer without `STORAGE` usage, or of a size that is no multiple of 16 bytes.
    pub fn wrap(raw: wgpu::Buffer) -> swiglu_core::Result<Self> {
        if !raw.usage().contains(wgpu::BufferUsages::STORAGE) {
            let got = usage_names(raw.usage());
            return Err(Error::argument("buffer", "the usage STORAGE", got));
        }
        let len = usize::try_from(raw.size()).ok().filter(|n| n % 16 == 0);
        let Some(len) = len else {
            let expected = "a size that is a multiple of 16 bytes";
            return Err(Error::argument("buffer", expected, raw.size()));
        };
        Ok(Self { raw, len })
    }

    /// The wgpu buffer.
    pub const fn raw(&self) -> &wgpu::Buffer {
        &self.raw
    }

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `bytes` bytes can be copied to or from it.
    pub(crate) fn check_copy(&self, bytes: usize) -> swiglu_core::Result<()> {
        if bytes <= self.len {
            return Ok(());
        }
        let expected = format!("at most the buffer's {} bytes", self.len);
        Err(Error::argument("data", expected, bytes))
    }
}
