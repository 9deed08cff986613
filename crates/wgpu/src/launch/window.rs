//! Bindings: windows on a buffer that fit the device's limit and start where it allows.
//!
//! ## Method
//! 1. A [`RowSpan`] says where a matrix's rows lie in their buffer: its view's offset and its layout's
//!    are one number of elements. Plans are made from it, without a device.
//! 2. A window takes as many rows as fit into a binding. It starts at the multiple of the device's
//!    alignment that is before its first row; how many elements before, its offset tells the kernel.
//! 3. Alignments are multiples of 16 bytes, so that a row that starts with a whole vector in its
//!    buffer does so in every window.

use swiglu_core::{Error, RowLayout};

use crate::device::{BindingLimits, Facts};
use crate::{Result, View};

/// A part of each row of a matrix, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowSpan {
    /// Bytes of an element.
    size: usize,
    /// From the buffer's start to the first row's part.
    pub(crate) first: usize,
    /// Elements of the part.
    pub(crate) span: usize,
    /// From row to row.
    stride: usize,
}

impl RowSpan {
    /// Whole rows of a matrix in a view.
    ///
    /// # Errors
    /// A view that starts between two elements.
    pub(crate) fn of(
        argument: &'static str,
        view: &View<'_>,
        size: usize,
        layout: &RowLayout,
    ) -> Result<Self> {
        let before = elements_before(argument, view, size)?;
        Ok(Self {
            size,
            first: before + layout.offset,
            span: layout.cols,
            stride: layout.stride,
        })
    }

    /// Rows of `cols` elements without gaps, from a buffer's start: what is planned for where
    /// nothing is there yet.
    pub(crate) const fn contiguous(size: usize, cols: usize) -> Self {
        Self {
            size,
            first: 0,
            span: cols,
            stride: cols,
        }
    }

    /// The part of `span` elements from `from` on, counted from this part's start.
    pub(crate) const fn part(self, from: usize, span: usize) -> Self {
        Self {
            first: self.first + from,
            span,
            ..self
        }
    }

    /// Elements from row to row as the kernels take them. What is beyond u32 is multiplied by row 0
    /// only.
    pub(crate) fn stride(&self) -> u32 {
        u32::try_from(self.stride).unwrap_or(u32::MAX)
    }

    /// Elements in a vector of 16 bytes.
    pub(crate) const fn per_vector(&self) -> usize {
        16 / self.size
    }

    /// Whether every row starts with a whole vector.
    pub(crate) fn starts_vectors(&self) -> bool {
        let per_vector = self.per_vector();
        self.first.is_multiple_of(per_vector) && (self.stride() as usize).is_multiple_of(per_vector)
    }

    /// Whether a binding can start with the first row.
    pub(crate) const fn starts_binding(&self, limits: &BindingLimits) -> bool {
        ((self.first * self.size) as u64).is_multiple_of(limits.alignment)
    }

    /// How many rows fit into one binding: none where one row is too long.
    pub(crate) fn rows_per_window(&self, limits: &BindingLimits) -> usize {
        // The window may start this much earlier, and its end is rounded up.
        let slack = limits.alignment + 16;
        let room = limits.bytes.saturating_sub(slack) / self.size as u64;
        let Some(beyond) = room.checked_sub(self.span as u64) else {
            return 0;
        };
        let rows = beyond / (self.stride as u64).max(1) + 1;
        usize::try_from(rows).unwrap_or(usize::MAX)
    }

    /// The bytes of `rows` rows from `row` on, at least one and no more than fit, and the elements
    /// from their start to the first of them.
    ///
    /// # Errors
    /// More than a binding's bytes.
    fn range(&self, limits: &BindingLimits, row: usize, rows: usize) -> Result<([u64; 2], u32)> {
        let first = self.first + row * self.stride;
        let last = first + (rows - 1) * self.stride + self.span;
        let start = (first * self.size) as u64 / limits.alignment * limits.alignment;
        let end = ((last * self.size) as u64).next_multiple_of(16);
        match u32::try_from(first as u64 - start / self.size as u64) {
            Ok(offset) if end - start <= limits.bytes => Ok(([start, end], offset)),
            _ => {
                let expected = format!("rows within bindings of {} bytes", limits.bytes);
                let got = format!("{} elements at {}", self.span, self.first);
                Err(Error::argument("buffer", expected, got).into())
            }
        }
    }
}

fn elements_before(argument: &'static str, view: &View<'_>, size: usize) -> Result<usize> {
    let offset = view.offset();
    let before = usize::try_from(offset).unwrap_or(usize::MAX);
    if !before.is_multiple_of(size) {
        let expected = format!("a view that starts at a multiple of {size} bytes");
        return Err(Error::argument(argument, expected, offset).into());
    }
    Ok(before / size)
}

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
    /// The first bytes of a buffer, a multiple of 16.
    pub(crate) const fn first(buffer: &'a wgpu::Buffer, bytes: u64) -> Self {
        Self {
            buffer,
            start: 0,
            end: bytes,
            offset: 0,
        }
    }

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

/// A part of each row of a matrix, and the buffer that it is in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Columns<'a> {
    buffer: &'a wgpu::Buffer,
    pub(crate) rows: RowSpan,
}

impl<'a> Columns<'a> {
    /// Whole rows.
    ///
    /// # Errors
    /// As [`RowSpan::of`].
    pub(crate) fn of(
        argument: &'static str,
        view: View<'a>,
        size: usize,
        layout: &RowLayout,
    ) -> Result<Self> {
        Ok(Self {
            buffer: view.buffer(),
            rows: RowSpan::of(argument, &view, size, layout)?,
        })
    }

    /// As [`RowSpan::part`].
    pub(crate) const fn part(self, from: usize, span: usize) -> Self {
        Self {
            rows: self.rows.part(from, span),
            ..self
        }
    }

    /// The window of `rows` rows from `row` on; at least one, and no more than fit.
    pub(crate) fn window(
        &self,
        limits: &BindingLimits,
        row: usize,
        rows: usize,
    ) -> Result<Window<'a>> {
        let ([start, end], offset) = self.rows.range(limits, row, rows)?;
        Ok(Window {
            buffer: self.buffer,
            start,
            end,
            offset,
        })
    }
}

/// The first `bytes` bytes of a view in one window, its offset counted in elements of `size` bytes.
///
/// # Errors
/// A view that starts between two elements, or more than a binding's bytes.
pub(crate) fn whole_view<'a>(
    argument: &'static str,
    limits: &BindingLimits,
    view: View<'a>,
    size: usize,
    bytes: usize,
) -> Result<Window<'a>> {
    let before = elements_before(argument, &view, size)?;
    let start = view.offset() / limits.alignment * limits.alignment;
    let end = (view.offset() + bytes as u64).next_multiple_of(16);
    let offset = u32::try_from(before as u64 - start / size as u64);
    match offset {
        Ok(offset) if end - start <= limits.bytes => Ok(Window {
            buffer: view.buffer(),
            start,
            end,
            offset,
        }),
        _ => {
            let expected = format!("at most {} bytes", limits.bytes);
            Err(Error::argument(argument, expected, end - start).into())
        }
    }
}

/// Refuses a view to be written that a kernel cannot be given beside another of the same call.
///
/// # Errors
/// Views of one buffer; with [`Facts::shared_buffers`], views that overlap.
pub(crate) fn check_apart(
    facts: &Facts,
    (argument, written): (&'static str, View<'_>),
    other: View<'_>,
) -> Result<()> {
    if are_apart(facts, &written, &other) {
        return Ok(());
    }
    let expected = if facts.shared_buffers {
        "memory that no other argument is in"
    } else {
        "another buffer than the other arguments', as wgpu takes none to be read and written at once \
         unless Builder::shared_buffers is set"
    };
    let got = format!(
        "{} bytes at {} of the same",
        written.size(),
        written.offset()
    );
    Err(Error::argument(argument, expected, got).into())
}

/// Whether one kernel can be given both views, and write one of them.
pub(crate) fn are_apart(facts: &Facts, a: &View<'_>, b: &View<'_>) -> bool {
    if facts.shared_buffers {
        !a.shares_words_with(b)
    } else {
        a.buffer() != b.buffer()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BindingLimits = BindingLimits {
        bytes: 1024,
        alignment: 256,
        workgroups: 65_535,
    };

    #[test]
    fn a_window_starts_where_a_binding_may() {
        // Rows of 100 elements of bf16, 110 apart, from byte 300 of the buffer on.
        let rows = RowSpan {
            size: 2,
            first: 150,
            span: 100,
            stride: 110,
        };
        assert_eq!(rows.rows_per_window(&LIMITS), 3);
        // Byte 300 lies 44 bytes behind 256; the last row ends at byte 300 + 2 · 220 + 200.
        let expected = ([256, 944], 22);
        assert_eq!(rows.range(&LIMITS, 0, 3).unwrap(), expected);
        // Row 5 starts at byte 1400, 120 behind 1280.
        assert_eq!(rows.range(&LIMITS, 5, 1).unwrap(), ([1280, 1600], 60));
        assert!(rows.range(&LIMITS, 0, 6).is_err());
    }

    #[test]
    fn a_row_that_is_too_long_fits_no_window() {
        let rows = RowSpan::contiguous(4, 300);
        assert_eq!(rows.rows_per_window(&LIMITS), 0);
        assert!(rows.range(&LIMITS, 0, 1).is_err());
    }

    #[test]
    fn whole_vectors_are_told_by_their_place_in_the_buffer() {
        let rows = RowSpan::contiguous(2, 64);
        assert!(rows.starts_vectors() && rows.part(8, 8).starts_vectors());
        assert!(!rows.part(4, 8).starts_vectors());
        assert!(!RowSpan::contiguous(2, 60).starts_vectors());
        assert!(RowSpan::contiguous(4, 60).starts_vectors());
    }
}
