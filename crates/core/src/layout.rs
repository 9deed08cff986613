use crate::{Error, GatedActivation, Result};

/// Where the rows of a matrix lie in a buffer. All figures count elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowLayout {
    /// How many rows; 0 is allowed.
    pub rows: usize,
    /// Elements in a row.
    pub cols: usize,
    /// From the start of a row to the start of the next; at least `cols`.
    pub stride: usize,
    /// From the start of the buffer to the start of row 0.
    pub offset: usize,
}

impl RowLayout {
    /// Rows one after another from the start of the buffer.
    pub const fn contiguous(rows: usize, cols: usize) -> Self {
        Self {
            rows,
            cols,
            stride: cols,
            offset: 0,
        }
    }

    /// The same rows `stride` elements apart.
    #[must_use]
    pub const fn with_stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    /// The same rows, `offset` elements into the buffer.
    #[must_use]
    pub const fn with_offset(self, offset: usize) -> Self {
        Self { offset, ..self }
    }

    /// One past the last element that the rows touch.
    ///
    /// # Errors
    /// A stride shorter than a row, or a size beyond the address space.
    pub fn end(&self, argument: &'static str) -> Result<usize> {
        if self.stride < self.cols {
            let expected = format!("a row stride of at least {} elements", self.cols);
            return Err(Error::argument(argument, expected, self.stride));
        }
        if self.rows == 0 {
            return Ok(self.offset);
        }
        (self.rows - 1)
            .checked_mul(self.stride)
            .and_then(|n| n.checked_add(self.cols))
            .and_then(|n| n.checked_add(self.offset))
            // Byte sizes must fit as well, and slices end at isize::MAX bytes.
            .filter(|&n| n <= isize::MAX as usize / 8)
            .ok_or_else(|| Error::argument(argument, "a matrix within the address space", self))
    }

    /// Checks that the rows lie inside a buffer of `len` elements.
    ///
    /// # Errors
    /// As [`Self::end`], or a buffer that is too short.
    pub fn check(&self, argument: &'static str, len: usize) -> Result<()> {
        let end = self.end(argument)?;
        if self.rows > 0 && end > len {
            let expected = format!("at least {end} elements for {self}");
            return Err(Error::argument(
                argument,
                expected,
                format!("{len} elements"),
            ));
        }
        Ok(())
    }

    /// The range of row `row` in the buffer. The layout must have passed [`Self::check`].
    pub const fn row(&self, row: usize) -> std::ops::Range<usize> {
        let start = self.offset + row * self.stride;
        start..start + self.cols
    }
}

impl std::fmt::Display for RowLayout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "[{}, {}] with row stride {} at offset {}",
            self.rows, self.cols, self.stride, self.offset
        )
    }
}

/// The shape of one call of an activation: [T, 2d] to [T, d].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActShape {
    /// Rows (T).
    pub rows: usize,
    /// Elements in a row of the output.
    pub d: usize,
}

impl ActShape {
    /// Checks the input of a call.
    ///
    /// # Errors
    /// An odd or zero last dimension, or a stride shorter than a row.
    pub fn of_input(layout: &RowLayout) -> Result<Self> {
        if layout.cols == 0 || layout.cols % 2 == 1 {
            let expected = "an even last dimension of at least 2";
            return Err(Error::argument("input", expected, layout.cols));
        }
        layout.end("input")?;
        Ok(Self {
            rows: layout.rows,
            d: layout.cols / 2,
        })
    }
}

impl GatedActivation {
    /// The layouts of a contiguous input of `input_len` elements and its output, rows of 2d and d.
    ///
    /// # Errors
    /// `d` = 0, or a length that is no multiple of 2d.
    pub fn contiguous(input_len: usize, d: usize) -> Result<(RowLayout, RowLayout)> {
        let cols = d.checked_mul(2).filter(|&c| c > 0);
        let Some(cols) = cols.filter(|c| input_len.is_multiple_of(*c)) else {
            let expected = format!("whole rows of 2d elements, d = {d} and at least 1");
            return Err(Error::argument("input", expected, input_len));
        };
        let rows = input_len / cols;
        Ok((
            RowLayout::contiguous(rows, cols),
            RowLayout::contiguous(rows, d),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let c = RowLayout::contiguous;
        let shape = |input| ActShape::of_input(&input);
        assert_eq!(shape(c(3, 8)).unwrap(), ActShape { rows: 3, d: 4 });
        let message = |r: Result<ActShape>| r.unwrap_err().to_string();
        assert!(message(shape(c(3, 7))).starts_with("input: expected an even"));
        assert!(message(shape(c(3, 0))).starts_with("input: expected an even"));
        assert!(message(shape(c(3, 8).with_stride(7))).starts_with("input: expected a row"));
        assert!(message(shape(c(usize::MAX, 8))).contains("address space"));
    }

    #[test]
    fn a_short_buffer_is_refused_and_the_last_row_needs_no_padding() {
        let layout = RowLayout::contiguous(3, 4).with_stride(6).with_offset(1);
        assert_eq!(layout.end("x").unwrap(), 1 + 2 * 6 + 4);
        assert!(layout.check("x", 17).is_ok());
        assert!(layout.check("x", 16).is_err());
        assert!(
            RowLayout::contiguous(0, 4)
                .with_offset(9)
                .check("x", 0)
                .is_ok()
        );
    }

    #[test]
    fn contiguous_layouts_follow_from_a_length() {
        let (input, output) = GatedActivation::contiguous(24, 4).unwrap();
        assert_eq!((input.rows, output.cols), (3, 4));
        assert!(GatedActivation::contiguous(25, 4).is_err());
        assert!(GatedActivation::contiguous(0, 0).is_err());
        assert_eq!(GatedActivation::contiguous(0, 4).unwrap().0.rows, 0);
    }
}
