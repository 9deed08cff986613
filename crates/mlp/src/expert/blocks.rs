//! Which block the scales of a weight are for, where no configuration says it.
//!
//! ## Method
//! A side n with g scales has blocks of b where ceil(n / b) = g.
//! 1. One scale is for the whole side, and n scales are one each.
//! 2. Else b is a power of two or divides n evenly, as every block in use does.
//! 3. Where several are left, those stay that could be the block of the same side of all matrices
//!    of the MLP, and then of every side.
//! 4. Where still several are left, nobody knows: they are named.

use std::collections::BTreeSet;

/// A weight's shape and that of its scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaledShape {
    pub shape: [usize; 2],
    pub grid: [usize; 2],
}

impl ScaledShape {
    fn side(&self, axis: usize) -> Side {
        Side {
            length: self.shape[axis],
            scales: self.grid[axis],
        }
    }
}

#[derive(Clone, Copy)]
struct Side {
    length: usize,
    scales: usize,
}

impl Side {
    fn fits(&self, block: usize) -> bool {
        self.length.div_ceil(block) == self.scales
    }

    /// Whether blocks have neither one element nor all of them.
    const fn is_cut(&self) -> bool {
        1 < self.scales && self.scales < self.length
    }

    fn candidates(&self) -> BTreeSet<usize> {
        let powers = (0..usize::BITS - 1).map(|n| 1 << n);
        let divisor = self.length / self.scales.max(1);
        let even = (divisor * self.scales == self.length).then_some(divisor);
        powers.chain(even).filter(|&b| self.fits(b)).collect()
    }
}

/// The block of `of`, one of the MLP's weights `all` with scales.
///
/// # Errors
/// What is wrong, in words: a shape that no block explains, or that several do.
pub fn derive(of: ScaledShape, all: &[ScaledShape]) -> Result<[usize; 2], String> {
    let [rows, columns] = [0, 1].map(|axis| side(of.side(axis), axis, all));
    Ok([rows?, columns?])
}

fn side(side: Side, axis: usize, all: &[ScaledShape]) -> Result<usize, String> {
    let Side { length, scales } = side;
    if scales == 1 {
        // A block that reaches beyond the side is named as the other matrices have it.
        let common = common(None, axis, all);
        return Ok(common.filter(|&b| b >= length).unwrap_or(length));
    }
    if scales == length {
        return Ok(1);
    }
    let candidates = side.candidates();
    if candidates.is_empty() {
        return Err(format!(
            "no block explains {scales} scales for a side of {length}"
        ));
    }
    common(Some(&candidates), axis, all).ok_or_else(|| {
        let named: Vec<_> = candidates.iter().map(usize::to_string).collect();
        let named = named.join(" or ");
        format!(
            "{scales} scales for a side of {length} may be blocks of {named}: the configuration's \
             weight_block_size must say which"
        )
    })
}

/// The one block that is left.
fn common(own: Option<&BTreeSet<usize>>, axis: usize, all: &[ScaledShape]) -> Option<usize> {
    let one = |set: &BTreeSet<usize>| (set.len() == 1).then(|| set.first().copied()).flatten();
    if let Some(one) = own.and_then(one) {
        return Some(one);
    }
    [&[axis][..], &[0, 1]].into_iter().find_map(|axes| {
        let sides = || {
            all.iter()
                .flat_map(|s| axes.iter().map(|&axis| s.side(axis)))
        };
        let cut = sides().filter(Side::is_cut);
        let from = match own {
            Some(own) => own.clone(),
            None => cut.flat_map(|s| s.candidates()).collect(),
        };
        let single = |s: &Side| s.scales == s.length;
        let allows = |s: Side, b: usize| match s.is_cut() {
            true => s.candidates().contains(&b),
            false => s.fits(b),
        };
        let fits = |b: usize| sides().filter(|s| !single(s)).all(|s| allows(s, b));
        one(&from.into_iter().filter(|&b| fits(b)).collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shapes of an MLP's gate and down with the scales of a block.
    fn mlp([hidden, intermediate]: [usize; 2], block: [usize; 2]) -> [ScaledShape; 2] {
        [[intermediate, hidden], [hidden, intermediate]].map(|shape| ScaledShape {
            shape,
            grid: [0, 1].map(|axis| shape[axis].div_ceil(block[axis])),
        })
    }

    #[test]
    fn the_blocks_of_released_models_are_found() {
        for (sizes, block) in [
            ([4096, 2048], 128),
            ([7168, 3072], 128),
            ([5120, 2304], 32),
            ([200, 136], 128),
            ([160, 96], 32),
            ([40, 27], 32),
        ] {
            let all = mlp(sizes, [block; 2]);
            for one in all {
                assert_eq!(derive(one, &all), Ok([block; 2]), "{sizes:?}");
            }
        }
    }

    #[test]
    fn scales_of_a_row_or_of_all_are_no_blocks_of_the_others() {
        let [gate, down] = mlp([4096, 2048], [1, 1 << 40]);
        assert_eq!(derive(gate, &[gate, down]), Ok([1, 4096]));
        assert_eq!(derive(down, &[gate, down]), Ok([1, 2048]));
        let [gate, down] = mlp([4096, 2048], [1 << 40; 2]);
        assert_eq!(derive(gate, &[gate, down]), Ok([2048, 4096]));
        let [groups, _] = mlp([4096, 2048], [1, 128]);
        assert_eq!(derive(groups, &[groups]), Ok([1, 128]));
        // A gate in blocks beside an up with a scale a row.
        let [blocks, _] = mlp([4096, 2048], [128; 2]);
        let [rows, _] = mlp([4096, 2048], [1, 1 << 40]);
        assert_eq!(derive(blocks, &[blocks, rows]), Ok([128; 2]));
        assert_eq!(derive(rows, &[blocks, rows]), Ok([1, 4096]));
    }

    #[test]
    fn what_several_blocks_explain_is_refused_by_their_names() {
        let one = ScaledShape {
            shape: [400, 400],
            grid: [4, 4],
        };
        let error = derive(one, &[one]).unwrap_err();
        assert!(error.contains("blocks of 100 or 128: "), "{error}");
        let other = ScaledShape {
            shape: [400, 1000],
            grid: [4, 8],
        };
        assert_eq!(derive(one, &[one, other]), Ok([128, 128]));
        let other = ScaledShape {
            shape: [400, 1000],
            grid: [4, 10],
        };
        assert_eq!(derive(one, &[one, other]), Ok([100, 100]));
        for grid in [[0, 4], [401, 4], [300, 4]] {
            let wrong = ScaledShape { grid, ..one };
            let error = derive(wrong, &[wrong]).unwrap_err();
            assert!(error.starts_with("no block explains"), "{error}");
        }
    }
}
