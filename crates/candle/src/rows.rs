//! Where the rows of a tensor lie: candle's layout as core's.

use candle_core::{Layout, Result, Shape};
use swiglu_core::RowLayout;

use crate::error::argument;

/// The last dimension as rows, of any number of outer ones: the elements of a row side by side, and
/// one distance from each row to the next.
pub(crate) fn rows(name: &'static str, layout: &Layout) -> Result<RowLayout> {
    let (dims, strides) = (layout.dims(), layout.stride());
    let (Some((&cols, outer)), Some((&step, strides))) = (dims.split_last(), strides.split_last())
    else {
        return Err(argument(name, "at least one dimension", "a scalar"));
    };
    let refused = || {
        let expected = "rows at one distance from each other, their elements side by side (call \
                        .contiguous())";
        let got = format!("shape {dims:?} with strides {:?}", layout.stride());
        argument(name, expected, got)
    };
    if outer.contains(&0) {
        return Ok(RowLayout::contiguous(0, cols));
    }
    if cols > 1 && step != 1 {
        return Err(refused());
    }
    // From the innermost dimension outwards, each must go on where the one inside of it ends; one
    // of a single entry lies anywhere.
    let (mut rows, mut stride, mut next) = (1_usize, cols, None);
    for (&dim, &distance) in outer.iter().zip(strides).rev() {
        if dim == 1 {
            continue;
        }
        match next {
            None => stride = distance,
            Some(next) if next == distance => {}
            Some(_) => return Err(refused()),
        }
        rows = rows.checked_mul(dim).ok_or_else(refused)?;
        next = Some(distance.checked_mul(dim).ok_or_else(refused)?);
    }
    if stride < cols {
        return Err(refused());
    }
    Ok(RowLayout {
        rows,
        cols,
        stride,
        offset: layout.start_offset(),
    })
}

/// The same shape with another last dimension.
pub(crate) fn with_last(layout: &Layout, last: usize) -> Shape {
    let mut dims = layout.dims().to_vec();
    if let Some(dim) = dims.last_mut() {
        *dim = last;
    }
    Shape::from(dims)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]
mod tests {
    use super::*;

    fn of(dims: &[usize], strides: &[usize]) -> Result<RowLayout> {
        rows("x", &Layout::new(Shape::from(dims), strides.to_vec(), 5))
    }

    /// The text of a refusal, without the backtrace that candle may add.
    fn refusal(dims: &[usize], strides: &[usize]) -> String {
        let error = of(dims, strides).unwrap_err().to_string();
        error.lines().next().unwrap().to_owned()
    }

    const fn at(rows: usize, cols: usize, stride: usize) -> RowLayout {
        RowLayout {
            rows,
            cols,
            stride,
            offset: 5,
        }
    }

    #[test]
    fn outer_dimensions_that_go_on_are_one() {
        for (dims, strides, expected) in [
            (vec![8], vec![1], at(1, 8, 8)),
            (vec![3, 8], vec![8, 1], at(3, 8, 8)),
            (vec![3, 8], vec![20, 1], at(3, 8, 20)),
            (vec![2, 3, 8], vec![60, 20, 1], at(6, 8, 20)),
            (vec![4, 2, 3, 8], vec![120, 60, 20, 1], at(24, 8, 20)),
            // Strides of single entries mean nothing.
            (vec![2, 1, 8], vec![60, 7, 1], at(2, 8, 60)),
            (vec![1, 3, 8], vec![0, 20, 1], at(3, 8, 20)),
            (vec![1, 1, 8], vec![0, 0, 1], at(1, 8, 8)),
            (vec![3, 1], vec![4, 9], at(3, 1, 4)),
        ] {
            assert_eq!(of(&dims, &strides).unwrap(), expected, "{dims:?}");
        }
        assert_eq!(of(&[0, 8], &[8, 1]).unwrap().rows, 0);
        assert_eq!(of(&[2, 0, 8], &[0, 8, 1]).unwrap().rows, 0);
    }

    #[test]
    fn what_has_no_rows_is_told_to_become_contiguous() {
        for (dims, strides) in [
            (vec![3, 8], vec![1, 3]),
            (vec![8], vec![2]),
            (vec![2, 3, 8], vec![80, 20, 1]),
            (vec![3, 2, 8], vec![20, 60, 1]),
            (vec![3, 8], vec![0, 1]),
            (vec![3, 8], vec![7, 1]),
            (vec![2, 3, 8], vec![0, 8, 1]),
            (vec![usize::MAX, 4, 8], vec![32, 8, 1]),
        ] {
            let error = refusal(&dims, &strides);
            assert!(
                error.starts_with("x: expected rows at one distance"),
                "{error}"
            );
            assert!(error.contains(".contiguous()"), "{error}");
            assert!(
                error.ends_with(&format!("{dims:?} with strides {strides:?}")),
                "{error}"
            );
        }
        let error = refusal(&[], &[]);
        assert_eq!(error, "x: expected at least one dimension, got a scalar");
    }
}
