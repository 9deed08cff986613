//! Bindings: windows on a buffer that fit the device's limit and start where it allows.

use swiglu_core::{DType, Error, RowLayout, Tensor};

use crate::device::Device;
use crate::{Buffer, Result};

/// A window on a buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window<'a> {
    buffer: &'a wgpu::Buffer,
    start: u64,
    end: u64,
    /// Elements from the window's start to the first of its rows.
    pub(crate) offset: u32,
}

impl<'a> Window<'a> {
    pub(crate) const fn binding(&self) -> wgpu::BufferBinding<'a> {
        wgpu::BufferBinding {
            buffer: self.buffer,
            offset: self.start,
            size: wgpu::BufferSize::new(self.end - self.start),
        }
    }

    pub(crate) const fn buffer(&self) -> &'a wgpu::Buffer {
        self.buffer
    }

    /// The first byte, and the one behind the last.
    pub(crate) const fn range(&self) -> [u64; 2] {
        [self.start, self.end]
    }
}

/// A part of each row of a matrix: `span` elements from `first` on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Columns<'a> {
    pub(crate) buffer: &'a Buffer,
    pub(crate) dtype: DType,
    pub(crate) layout: RowLayout,
    pub(crate) first: usize,
    pub(crate) span: usize,
}

impl<'a> Columns<'a> {
    pub(crate) const fn new(matrix: &Tensor<'a, Buffer>, first: usize, span: usize) -> Self {
        Self {
            buffer: matrix.buffer,
            dtype: matrix.dtype,
            layout: matrix.layout,
            first,
            span,
        }
    }

    /// How many rows fit into one binding: none where one row is too long.
    pub(crate) fn rows_per_window(&self, device: &Device) -> usize {
        let size = self.dtype.size() as u64;
        // The window may start this much earlier, and its end is rounded up.
        let slack = device.binding_alignment() + 16;
        let room = device.binding_limit().saturating_sub(slack) / size;
        let Some(beyond) = room.checked_sub(self.span as u64) else {
            return 0;
        };
        let rows = beyond / (self.layout.stride as u64).max(1) + 1;
        usize::try_from(rows).unwrap_or(usize::MAX)
    }

    /// The window of `rows` rows from `row` on; at least one, and no more than fit.
    pub(crate) fn window(&self, device: &Device, row: usize, rows: usize) -> Result<Window<'a>> {
        let size = self.dtype.size();
        let first = self.layout.offset + row * self.layout.stride + self.first;
        let last = first + (rows - 1) * self.layout.stride + self.span;
        let start = (first * size) as u64 / device.binding_alignment() * device.binding_alignment();
        let end = ((last * size) as u64).next_multiple_of(16);
        let offset = u32::try_from(first as u64 - start / size as u64);
        let fits = end - start <= device.binding_limit() && end <= self.buffer.raw().size();
        match offset {
            Ok(offset) if fits => Ok(Window {
                buffer: self.buffer.raw(),
                start,
                end,
                offset,
            }),
            _ => {
                let expected = format!("rows within bindings of {} bytes", device.binding_limit());
                Err(Error::argument("buffer", expected, self.layout).into())
            }
        }
    }
}

/// A stride as the kernels take it. One beyond u32 is multiplied by row 0 only.
pub(crate) fn stride(elements: usize) -> u32 {
    u32::try_from(elements).unwrap_or(u32::MAX)
}

/// The workgroups of a call in two dimensions, so that neither exceeds the limit.
pub(crate) fn workgroups(device: &Device, count: u32) -> (u32, u32) {
    let x = count.clamp(1, device.workgroups_per_dimension());
    (x, count.div_ceil(x))
}

/// Buffers as the bindings 0, 1, ….
///
/// # Errors
/// What wgpu finds wrong with them.
pub(crate) fn bind<const N: usize>(
    device: &Device,
    layout: &wgpu::BindGroupLayout,
    bindings: [wgpu::BufferBinding<'_>; N],
) -> Result<wgpu::BindGroup> {
    let mut binding = 0;
    let entries = bindings.map(|buffer| {
        let entry = wgpu::BindGroupEntry {
            binding,
            resource: wgpu::BindingResource::Buffer(buffer),
        };
        binding += 1;
        entry
    });
    device.scoped("binding buffers", || {
        device.raw().create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout,
            entries: &entries,
        })
    })
}
