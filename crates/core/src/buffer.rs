use bytemuck::{Pod, Zeroable};

use crate::{Element, Error, Result};

/// Host memory of untyped bytes, aligned to cache lines.
#[derive(Clone, Debug, Default)]
pub struct HostBuffer {
    lines: Vec<Line>,
    len: usize,
}

/// A cache line, and the longest vector.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl HostBuffer {
    /// `len` zero bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], where a plain vector would abort.
    pub fn zeroed(len: usize) -> Result<Self> {
        let count = len.div_ceil(size_of::<Line>());
        let mut lines = Vec::new();
        lines
            .try_reserve_exact(count)
            .map_err(|_| Error::OutOfMemory {
                platform: "host",
                bytes: len,
            })?;
        lines.resize(count, Line::zeroed());
        Ok(Self { lines, len })
    }

    /// A copy of typed elements.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn from_slice<T: Element>(data: &[T]) -> Result<Self> {
        let mut buffer = Self::zeroed(size_of_val(data))?;
        buffer
            .bytes_mut()
            .copy_from_slice(bytemuck::cast_slice(data));
        Ok(buffer)
    }

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }

    /// The bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }

    /// Copies `data` into the first bytes.
    ///
    /// # Errors
    /// More data than the buffer holds.
    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        self.fits(data.len())?;
        self.bytes_mut()[..data.len()].copy_from_slice(data);
        Ok(())
    }

    /// Copies the first bytes into `data`.
    ///
    /// # Errors
    /// More room than the buffer holds bytes.
    pub fn read(&self, data: &mut [u8]) -> Result<()> {
        self.fits(data.len())?;
        data.copy_from_slice(&self.bytes()[..data.len()]);
        Ok(())
    }

    fn fits(&self, bytes: usize) -> Result<()> {
        if bytes <= self.len {
            return Ok(());
        }
        let expected = format!("at most the buffer's {} bytes", self.len);
        Err(Error::argument("data", expected, bytes))
    }

    /// As elements; a remainder shorter than one is left out.
    pub fn typed<T: Element>(&self) -> &[T] {
        let whole = self.len - self.len % size_of::<T>();
        bytemuck::cast_slice(&self.bytes()[..whole])
    }

    /// As elements to be written; a remainder shorter than one is left out.
    pub fn typed_mut<T: Element>(&mut self) -> &mut [T] {
        let whole = self.len - self.len % size_of::<T>();
        bytemuck::cast_slice_mut(&mut self.bytes_mut()[..whole])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_views_leave_a_short_remainder_out() {
        let mut buffer = HostBuffer::zeroed(7).unwrap();
        buffer.bytes_mut().fill(0x3f);
        assert_eq!(buffer.typed::<f32>().len(), 1);
        assert_eq!(buffer.typed_mut::<half::bf16>().len(), 3);
        assert!(HostBuffer::zeroed(0).unwrap().is_empty());
        assert!(HostBuffer::zeroed(usize::MAX).is_err());
    }
}
