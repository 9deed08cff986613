//! Views: a part of a wgpu buffer, whoever owns it.

use std::marker::PhantomData;

use swiglu_core::Error;

use crate::Buffer;
use crate::buffer::usage_names;

/// A part of a wgpu buffer, to be read: a [`Buffer`], or a place in a pool of the caller's.
///
/// ```
/// use swiglu_core::{Float, Tensor};
/// use swiglu_wgpu::{View, WgpuBackend, wgpu};
/// /// Two rows of 128 bf16 elements from byte 4096 of a pool on.
/// fn rows(pool: &wgpu::Buffer) -> swiglu_core::Result<Tensor<'_, WgpuBackend>> {
///     let view = View::new(pool, 4096, 512)?;
///     Ok(Tensor::contiguous(view, Float::BF16, 2, 128))
/// }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    buffer: &'a wgpu::Buffer,
    offset: u64,
    size: u64,
}

/// A part of a wgpu buffer, to be written. It cannot be copied; that nothing else uses the part at
/// the same time is up to the caller where the buffer is the caller's.
#[derive(Debug)]
pub struct ViewMut<'a> {
    view: View<'a>,
    exclusive: PhantomData<&'a mut Buffer>,
}

impl<'a> View<'a> {
    /// `size` bytes from byte `offset` of a buffer on. The offset is any multiple of the element's
    /// size: kernels take what a device asks of the start of a binding upon themselves.
    ///
    /// # Errors
    /// A buffer without `STORAGE` usage, or that ends before the view, rounded up to a multiple of
    /// 16 bytes, does: kernels read whole vectors.
    pub fn new(buffer: &'a wgpu::Buffer, offset: u64, size: u64) -> swiglu_core::Result<Self> {
        if !buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            let got = usage_names(buffer.usage());
            return Err(Error::argument(
                "view",
                "a buffer of the usage STORAGE",
                got,
            ));
        }
        let end = offset.checked_add(size);
        let end = end.and_then(|end| end.checked_next_multiple_of(16));
        if end.is_none_or(|end| end > buffer.size()) {
            let expected = format!(
                "a part of {} bytes that ends in whole vectors of 16",
                buffer.size()
            );
            let got = format!("{size} bytes from {offset} on");
            return Err(Error::argument("view", expected, got));
        }
        Ok(Self {
            buffer,
            offset,
            size,
        })
    }

    /// The buffer.
    pub const fn buffer(&self) -> &'a wgpu::Buffer {
        self.buffer
    }

    /// The first byte.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Length in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Whether a word of four bytes, in which kernels write, has bytes of both views.
    pub(crate) fn shares_words_with(&self, other: &View<'_>) -> bool {
        let words = |v: &View<'_>| [v.offset / 4, (v.offset + v.size).div_ceil(4)];
        let ([start, end], [other_start, other_end]) = (words(self), words(other));
        self.buffer == other.buffer && start < other_end && other_start < end
    }
}

impl<'a> From<&'a Buffer> for View<'a> {
    fn from(buffer: &'a Buffer) -> Self {
        Self {
            buffer: buffer.raw(),
            offset: 0,
            size: buffer.len() as u64,
        }
    }
}

impl<'a> ViewMut<'a> {
    /// As [`View::new`], to be written.
    ///
    /// # Errors
    /// As [`View::new`].
    pub fn new(buffer: &'a wgpu::Buffer, offset: u64, size: u64) -> swiglu_core::Result<Self> {
        Ok(Self {
            view: View::new(buffer, offset, size)?,
            exclusive: PhantomData,
        })
    }

    /// The same part, to be read.
    pub const fn as_view(&self) -> View<'_> {
        self.view
    }

    /// The same part, borrowed for one call.
    pub const fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut {
            view: self.view,
            exclusive: PhantomData,
        }
    }
}

impl<'a> From<&'a mut Buffer> for ViewMut<'a> {
    fn from(buffer: &'a mut Buffer) -> Self {
        Self {
            view: View::from(&*buffer),
            exclusive: PhantomData,
        }
    }
}
