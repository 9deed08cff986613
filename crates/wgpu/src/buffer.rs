use swiglu_core::Error;

/// Memory of a wgpu device.
///
/// Its size on the device is a multiple of 16, so that kernels can read whole vectors; its length
/// is what was asked for.
#[derive(Clone, Debug)]
pub struct Buffer {
    raw: wgpu::Buffer,
    len: usize,
}

impl Buffer {
    /// What a buffer needs to be an input or an output of a kernel, and to be copied.
    pub const USAGES: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE
        .union(wgpu::BufferUsages::COPY_SRC)
        .union(wgpu::BufferUsages::COPY_DST);

    pub(crate) const fn new(raw: wgpu::Buffer, len: usize) -> Self {
        Self { raw, len }
    }

    /// A buffer of the caller's own. It stays the caller's: this is another handle to it.
    ///
    /// # Errors
    /// A buffer without `STORAGE` usage, or of a size that is no multiple of 16 bytes.
    pub fn wrap(raw: wgpu::Buffer) -> swiglu_core::Result<Self> {
        if !raw.usage().contains(wgpu::BufferUsages::STORAGE) {
            let got = format!("{:?}", raw.usage());
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
}
