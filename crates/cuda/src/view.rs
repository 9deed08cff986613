//! Device memory as calls take it: addresses with a length and a lifetime, of whoever owns it.
//!
//! | memory | a view of it |
//! |---|---|
//! | [`CudaBuffer`] | `DeviceView::from(&buffer)`, or [`swiglu_core::Backend::view`] |
//! | cudarc's `CudaSlice` and `CudaView` | [`crate::CudaBackend::read_slice`], then [`ReadSlice::view`] |
//! | an address | [`DeviceView::from_raw`] |

use std::{marker::PhantomData, ops::Range};

use bytemuck::Pod;
use cudarc::driver::{CudaContext, CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};
use swiglu_core::{Error as CoreError, Float, RowLayout};

use crate::{buffer::CudaBuffer, error::Result};

/// A part of a device's memory, to be read.
#[derive(Clone, Copy, Debug)]
pub struct DeviceView<'a> {
    address: u64,
    len: usize,
    memory: PhantomData<&'a [u8]>,
}

/// A part of a device's memory, to be written. It is exclusive.
#[derive(Debug)]
pub struct DeviceViewMut<'a> {
    address: u64,
    len: usize,
    memory: PhantomData<&'a mut [u8]>,
}

/// Checks that a range lies inside of `len` bytes.
fn inside(range: &Range<usize>, len: usize) -> Result<()> {
    if range.start <= range.end && range.end <= len {
        return Ok(());
    }
    let expected = format!("a range of the {len} bytes");
    Err(CoreError::argument("range", expected, format!("{range:?}")).into())
}

impl<'a> DeviceView<'a> {
    /// `len` bytes from a bare address on.
    ///
    /// # Safety
    /// The memory is of the device of the backend that it is given to. As long as the view lives,
    /// and until the backend's stream has run the calls that it was given to, the memory stays
    /// allocated and nothing writes it but calls on that stream.
    pub const unsafe fn from_raw(address: u64, len: usize) -> Self {
        Self {
            address,
            len,
            memory: PhantomData,
        }
    }

    /// Where it begins on the device.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A range of its bytes.
    ///
    /// # Errors
    /// A range that does not lie inside of the view.
    pub fn slice(self, range: Range<usize>) -> Result<Self> {
        inside(&range, self.len)?;
        Ok(Self {
            address: self.address + range.start as u64,
            len: range.len(),
            memory: PhantomData,
        })
    }
}

impl<'a> DeviceViewMut<'a> {
    /// `len` bytes from a bare address on.
    ///
    /// # Safety
    /// As [`DeviceView::from_raw`], and nothing else reads the memory either.
    pub const unsafe fn from_raw(address: u64, len: usize) -> Self {
        Self {
            address,
            len,
            memory: PhantomData,
        }
    }

    /// Where it begins on the device.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The same memory, to be read.
    pub const fn as_view(&self) -> DeviceView<'_> {
        DeviceView {
            address: self.address,
            len: self.len,
            memory: PhantomData,
        }
    }

    /// The same memory, borrowed for one call.
    pub const fn reborrow(&mut self) -> DeviceViewMut<'_> {
        DeviceViewMut {
            address: self.address,
            len: self.len,
            memory: PhantomData,
        }
    }

    /// A range of its bytes.
    ///
    /// # Errors
    /// A range that does not lie inside of the view.
    pub fn slice(self, range: Range<usize>) -> Result<Self> {
        inside(&range, self.len)?;
        Ok(Self {
            address: self.address + range.start as u64,
            len: range.len(),
            memory: PhantomData,
        })
    }
}

impl<'a> From<&'a CudaBuffer> for DeviceView<'a> {
    fn from(buffer: &'a CudaBuffer) -> Self {
        Self {
            address: buffer.address(),
            len: buffer.len(),
            memory: PhantomData,
        }
    }
}

impl<'a> From<&'a mut CudaBuffer> for DeviceViewMut<'a> {
    fn from(buffer: &'a mut CudaBuffer) -> Self {
        Self {
            address: buffer.address(),
            len: buffer.len(),
            memory: PhantomData,
        }
    }
}

/// Checks that a stream is of a context.
pub(crate) fn same_context(stream: &CudaStream, context: &CudaContext) -> Result<()> {
    if stream.context().cu_ctx() == context.cu_ctx() {
        return Ok(());
    }
    let expected = "a stream of the context that the kernels were loaded into";
    Err(CoreError::argument("stream", expected, "another context's").into())
}

/// Checks that the stream that a slice was allocated on is of a context.
fn slice_of(owner: &CudaStream, context: &CudaContext) -> Result<()> {
    same_context(owner, context).map_err(|_| {
        let expected = "memory of the backend's context";
        CoreError::argument("slice", expected, "another context's").into()
    })
}

/// A slice of cudarc's that a backend reads.
///
/// The backend's stream has been made to wait for what wrote the slice, and when this is dropped
/// the reads so far are recorded in it, as cudarc does for its own kernels. Views borrow from this
/// value, so that it is dropped after the calls that they were given to.
pub struct ReadSlice<'a> {
    view: DeviceView<'a>,
    _recorded: SyncOnDrop<'a>,
}

impl<'a> ReadSlice<'a> {
    pub(crate) fn new<T: Pod>(
        slice: &'a impl DevicePtr<T>,
        stream: &'a CudaStream,
    ) -> Result<Self> {
        slice_of(slice.stream(), stream.context())?;
        let len = slice.num_bytes();
        let (address, recorded) = slice.device_ptr(stream);
        // SAFETY: the slice has these bytes of the stream's device, and cudarc orders this stream's
        // work and the slice's other uses by the events that `recorded` stands for.
        let view = unsafe { DeviceView::from_raw(address, len) };
        Ok(Self {
            view,
            _recorded: recorded,
        })
    }

    /// The whole slice.
    pub const fn view(&self) -> DeviceView<'_> {
        self.view
    }
}

/// A slice of cudarc's that a backend writes: as [`ReadSlice`].
pub struct WriteSlice<'a> {
    view: DeviceViewMut<'a>,
    _recorded: SyncOnDrop<'a>,
}

impl<'a> WriteSlice<'a> {
    pub(crate) fn new<T: Pod>(
        slice: &'a mut impl DevicePtrMut<T>,
        stream: &'a CudaStream,
    ) -> Result<Self> {
        slice_of(slice.stream(), stream.context())?;
        let len = slice.num_bytes();
        let (address, recorded) = slice.device_ptr_mut(stream);
        // SAFETY: as `ReadSlice::new`; the slice is borrowed exclusively.
        let view = unsafe { DeviceViewMut::from_raw(address, len) };
        Ok(Self {
            view,
            _recorded: recorded,
        })
    }

    /// The whole slice, to be read.
    pub const fn view(&self) -> DeviceView<'_> {
        self.view.as_view()
    }

    /// The whole slice, to be written.
    pub const fn view_mut(&mut self) -> DeviceViewMut<'_> {
        self.view.reborrow()
    }
}

/// A matrix in bare device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawMatrix {
    /// Address of the memory, aligned to the elements.
    pub address: u64,
    /// The type of the elements.
    pub float: Float,
    /// Where the rows lie, in elements from the address on.
    pub layout: RowLayout,
}

impl RawMatrix {
    /// Address of the first element.
    pub(crate) const fn first(&self) -> u64 {
        self.address + (self.layout.offset * self.float.size()) as u64
    }

    /// Checks that the address is aligned to the elements, which the hardware demands.
    pub(crate) fn check_aligned(&self, argument: &'static str) -> Result<()> {
        check_aligned(argument, self.address, self.float.size())
    }
}

/// Checks that an address is aligned to so many bytes.
pub(crate) fn check_aligned(argument: &'static str, address: u64, bytes: usize) -> Result<()> {
    if address.is_multiple_of(bytes as u64) {
        return Ok(());
    }
    let expected = format!("an address aligned to {bytes} bytes");
    Err(CoreError::argument(argument, expected, format!("{address:#x}")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_view_lies_inside_of_it() {
        // SAFETY: nothing is launched on it.
        let view = unsafe { DeviceView::from_raw(0x1000, 64) };
        let part = view.slice(16..48).unwrap();
        assert_eq!((part.address(), part.len()), (0x1010, 32));
        assert!(view.slice(64..64).unwrap().is_empty());
        for (from, to) in [(0, 65), (65, 65), (3, 2)] {
            let error = view.slice(from..to).unwrap_err().to_string();
            assert!(error.starts_with("range: expected"), "{error}");
        }
    }

    #[test]
    fn an_exclusive_view_is_lent_and_read() {
        // SAFETY: nothing is launched on it.
        let mut view = unsafe { DeviceViewMut::from_raw(0x2000, 8) };
        let lent = view.reborrow();
        assert_eq!((lent.address(), lent.len()), (0x2000, 8));
        assert_eq!(view.as_view().address(), 0x2000);
        assert!(view.slice(4..9).is_err());
    }

    #[test]
    fn addresses_between_two_elements_are_refused() {
        let matrix = RawMatrix {
            address: 0x1002,
            float: Float::F32,
            layout: RowLayout::contiguous(1, 1),
        };
        let error = matrix.check_aligned("x").unwrap_err().to_string();
        let expected = "x: expected an address aligned to 4 bytes, got 0x1002";
        assert_eq!(error, expected);
    }
}
