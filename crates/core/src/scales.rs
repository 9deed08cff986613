use std::fmt;

use crate::{Error, Result, ScaleFormat};

/// In what order the scales of [T, G] groups lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleOrder {
    /// The scales of a row one after another.
    RowMajor,
    /// The scales of a group of columns one after another, a row each.
    ColumnMajor,
    /// [`ScaleFormat::E8M0`] only: four groups of a row in one little-endian 32-bit word, the
    /// words column-major, as TMA reads them. Groups past the last are zero bytes.
    Packed,
}

impl ScaleOrder {
    /// All orders, as suites iterate.
    pub const ALL: [Self; 3] = [Self::RowMajor, Self::ColumnMajor, Self::Packed];

    /// The name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RowMajor => "row_major",
            Self::ColumnMajor => "column_major",
            Self::Packed => "packed",
        }
    }
}

impl fmt::Display for ScaleOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where the scales of \[rows, groups\] lie, from the start of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaleLayout {
    /// How a scale is stored.
    pub format: ScaleFormat,
    /// Which scale comes next.
    pub order: ScaleOrder,
    /// Rows (T).
    pub rows: usize,
    /// Groups in a row (G).
    pub groups: usize,
    /// Row-major: scales from a row to the next, at least G. Else: scales (packed: words) from a
    /// column to the next, at least T.
    pub stride: usize,
}

impl ScaleLayout {
    /// Without gaps.
    pub const fn contiguous(
        format: ScaleFormat,
        order: ScaleOrder,
        rows: usize,
        groups: usize,
    ) -> Self {
        let stride = match order {
            ScaleOrder::RowMajor => groups,
            ScaleOrder::ColumnMajor | ScaleOrder::Packed => rows,
        };
        Self {
            format,
            order,
            rows,
            groups,
            stride,
        }
    }

    /// The same with another stride.
    #[must_use]
    pub const fn with_stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    /// Bytes from the start of the buffer to the end of the last scale or word.
    ///
    /// # Errors
    /// Packed f32 scales, a stride that is too short, or a size beyond the address space.
    pub fn bytes(&self) -> Result<usize> {
        let (lines, length, size) = match (self.order, self.format) {
            (ScaleOrder::RowMajor, f) => (self.rows, self.groups, f.size()),
            (ScaleOrder::ColumnMajor, f) => (self.groups, self.rows, f.size()),
            (ScaleOrder::Packed, ScaleFormat::E8M0) => (self.groups.div_ceil(4), self.rows, 4),
            (ScaleOrder::Packed, ScaleFormat::F32) => {
                return Err(Error::argument("scales", "e8m0 where packed", self.format));
            }
        };
        if self.stride < length {
            let expected = format!("a stride of at least {length} for {} scales", self.order);
            return Err(Error::argument("scales", expected, self.stride));
        }
        if self.rows == 0 || self.groups == 0 {
            return Ok(0);
        }
        (lines - 1)
            .checked_mul(self.stride)
            .and_then(|n| n.checked_add(length))
            .and_then(|n| n.checked_mul(size))
            .filter(|&n| n <= isize::MAX as usize)
            .ok_or_else(|| Error::argument("scales", "scales within the address space", self))
    }

    /// Checks that the scales lie inside a buffer of `len` bytes.
    ///
    /// # Errors
    /// As [`Self::bytes`], or a buffer that is too short.
    pub fn check(&self, len: usize) -> Result<()> {
        let bytes = self.bytes()?;
        if bytes > len {
            let expected = format!("at least {bytes} bytes for {self}");
            return Err(Error::argument("scales", expected, format!("{len} bytes")));
        }
        Ok(())
    }

    /// The scale's place, counted in scales of [`Self::format`]. A packed scale's byte is this one,
    /// since the words are little-endian.
    pub const fn position(&self, row: usize, group: usize) -> usize {
        match self.order {
            ScaleOrder::RowMajor => row * self.stride + group,
            ScaleOrder::ColumnMajor => group * self.stride + row,
            ScaleOrder::Packed => (group / 4 * self.stride + row) * 4 + group % 4,
        }
    }
}

impl fmt::Display for ScaleLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, groups, .. } = self;
        let (format, order, stride) = (self.format, self.order, self.stride);
        write!(
            f,
            "[{rows}, {groups}] {format} scales, {order} with stride {stride}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scale_has_its_own_place_inside_the_buffer() {
        for order in ScaleOrder::ALL {
            for (rows, groups, gap) in [(1, 1, 0), (3, 5, 0), (5, 3, 2), (2, 4, 1), (7, 9, 3)] {
                let tight = ScaleLayout::contiguous(ScaleFormat::E8M0, order, rows, groups);
                let layout = tight.with_stride(tight.stride + gap);
                let bytes = layout.bytes().unwrap();
                let mut seen = vec![false; bytes];
                for (t, g) in (0..rows).flat_map(|t| (0..groups).map(move |g| (t, g))) {
                    assert!(!std::mem::replace(&mut seen[layout.position(t, g)], true));
                }
                assert!(layout.check(bytes).is_ok() && layout.check(bytes - 1).is_err());
                assert!(tight.with_stride(tight.stride - 1).bytes().is_err());
            }
        }
    }

    #[test]
    fn packed_words_hold_four_groups_of_a_row() {
        let layout = ScaleLayout::contiguous(ScaleFormat::E8M0, ScaleOrder::Packed, 3, 5);
        assert_eq!(layout.bytes().unwrap(), 2 * 3 * 4);
        assert_eq!(layout.position(2, 3), 2 * 4 + 3);
        assert_eq!(layout.position(0, 4), 3 * 4);
        let f32s = ScaleLayout::contiguous(ScaleFormat::F32, ScaleOrder::Packed, 3, 5);
        assert!(f32s.bytes().unwrap_err().to_string().starts_with("scales"));
        let huge = ScaleLayout::contiguous(ScaleFormat::F32, ScaleOrder::RowMajor, usize::MAX, 2);
        assert!(huge.bytes().is_err());
    }
}
