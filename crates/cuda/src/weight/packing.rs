//! FP8 weights in the order in which kernels for few tokens stream them: `kernels/matmul/packed.cuh`
//! has the layout. Packing only moves bytes: a packed weight is as large as it was, but for 128
//! bytes a stream for each 64 columns.

use std::ops::Range;

use swiglu_core::HostWeight;

use crate::launch::params::Packing;

/// Columns of a unit.
const UNIT: usize = 64;
/// Columns of a product of the tensor cores.
const PRODUCT: usize = 16;
/// Columns that share a scale, at least.
const SPAN: usize = 32;
/// Bytes of a unit's scales.
const HEAD: usize = 128;
/// Rows of a group, half of them.
const ROWS: usize = 16;
const HALF: usize = ROWS / 2;
/// Bytes of a group's codes in a unit.
const CODES: usize = ROWS * UNIT;
/// Blocks that read a stream.
const BLOCKS: usize = 2;
/// Groups of a stream, at most.
pub(crate) const MOST_GROUPS: usize = 7;

/// The bytes of a unit of so many groups, in shared memory too.
pub(crate) const fn unit_bytes(groups: usize) -> usize {
    HEAD + groups * CODES
}

/// A scale whose product with a sum of 64 of k is a normal f32, or 0: such sums are 0 or between
/// 2^-33 and 2^31 in magnitude.
fn keeps_sums_normal(scale: f32) -> bool {
    const MOST: f32 = (1_u128 << 90) as f32;
    let size = scale.abs();
    scale.is_nan() || size == 0.0 || (MOST.recip()..=MOST).contains(&size)
}

impl Packing {
    /// The packing of a weight of this shape in FP8 blocks for a device; none where its kernels do
    /// not take it. `pairs`: the rows are those of the gate, then as many of the up half.
    pub(crate) fn of_shape(
        [rows, cols]: [usize; 2],
        block: [usize; 2],
        pairs: bool,
        multiprocessors: u32,
    ) -> Option<Self> {
        let part = if pairs { rows / 2 } else { rows };
        let whole = rows.is_multiple_of(ROWS) && cols.is_multiple_of(UNIT);
        let of_rows = block[0].is_multiple_of(HALF) || block[0] >= part;
        let of_columns = block[1].is_multiple_of(SPAN) || block[1] >= cols;
        let groups = rows / ROWS;
        let streams = groups.min(multiprocessors as usize / BLOCKS);
        if !whole || !of_rows || !of_columns || streams == 0 {
            return None;
        }
        let fits = groups.div_ceil(streams) <= MOST_GROUPS;
        fits.then_some(Self {
            streams: streams as u32,
            groups: groups as u32,
            group_rows: if pairs { HALF } else { ROWS } as u32,
            half_rows: if pairs { part } else { HALF } as u32,
        })
    }

    /// The packing of parts one below the other, as [`Self::of_shape`].
    pub(crate) fn of_parts(
        parts: &[HostWeight<'_>],
        pairs: bool,
        multiprocessors: u32,
    ) -> Option<Self> {
        let (_, block) = parts.first()?.format().scaling()?;
        let rows = parts.iter().map(HostWeight::rows).sum();
        let pairs = pairs && parts.len() == 2 && parts[0].rows() == parts[1].rows();
        let cut = |part: &HostWeight<'_>| {
            let of_rows = block[0].is_multiple_of(HALF) || block[0] >= part.rows();
            part.rows().is_multiple_of(HALF) && of_rows
        };
        let normal = |part: &HostWeight<'_>| {
            let scales = (0..part.rows()).step_by(block[0]).flat_map(|row| {
                let columns = (0..part.cols()).step_by(block[1]);
                columns.map(move |column| part.scale(row, column))
            });
            scales.into_iter().all(keeps_sums_normal)
        };
        if !parts.iter().all(|part| cut(part) && normal(part)) {
            return None;
        }
        Self::of_shape([rows, parts[0].cols()], block, pairs, multiprocessors)
    }

    /// Whether rows of the gate and of the up half take turns.
    pub(crate) const fn pairs(&self) -> bool {
        self.group_rows == HALF as u32
    }

    /// The groups of the largest stream.
    pub(crate) const fn most_groups(&self) -> usize {
        self.groups.div_ceil(self.streams) as usize
    }

    /// The groups of a stream.
    fn stream(&self, stream: usize) -> Range<usize> {
        let (streams, groups) = (self.streams as usize, self.groups as usize);
        stream * groups / streams..(stream + 1) * groups / streams
    }

    /// The row of the weight that is a group's `r`-th.
    const fn row(&self, group: usize, r: usize) -> usize {
        let half = if r < HALF { 0 } else { self.half_rows as usize };
        group * self.group_rows as usize + r % HALF + half
    }

    /// The packed bytes of the parts that this packing is of.
    pub(crate) fn pack(&self, parts: &[HostWeight<'_>]) -> Vec<u8> {
        let cols = parts[0].cols();
        let units = cols / UNIT;
        let rows: Vec<(&HostWeight<'_>, usize)> = parts
            .iter()
            .flat_map(|part| (0..part.rows()).map(move |row| (part, row)))
            .collect();
        let streams = self.streams as usize;
        let mut packed =
            Vec::with_capacity(units * (streams * HEAD + self.groups as usize * CODES));
        for groups in (0..streams).map(|s| self.stream(s)) {
            for first in (0..cols).step_by(UNIT) {
                let end = packed.len() + HEAD;
                for group in groups.clone() {
                    for (column, r) in [(0, 0), (0, HALF), (SPAN, 0), (SPAN, HALF)] {
                        let (part, row) = rows[self.row(group, r)];
                        packed.extend(part.scale(row, first + column).to_le_bytes());
                    }
                }
                packed.resize(end, 0);
                for (group, r) in groups.clone().flat_map(|g| (0..ROWS).map(move |r| (g, r))) {
                    let (part, row) = rows[self.row(group, r)];
                    let codes = &part.data()[row * cols + first..][..UNIT];
                    for first in (0..8).step_by(2) {
                        for product in codes.chunks_exact(PRODUCT) {
                            packed.extend([0, 8, 1, 9].map(|at| product[first + at]));
                        }
                    }
                }
            }
        }
        packed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use swiglu_core::{ScaleFormat, WeightFormat};

    /// Of an H200.
    const MULTIPROCESSORS: u32 = 132;

    fn packing(shape: [usize; 2], block: usize, pairs: bool) -> Option<Packing> {
        Packing::of_shape(shape, [block; 2], pairs, MULTIPROCESSORS)
    }

    #[test]
    fn models_weights_are_dealt_out_to_all_multiprocessors() {
        for (rows, cols, block, pairs, groups) in [
            (2 * 2048, 4096, 128, true, 4),
            (4096, 2048, 128, false, 4),
            (2 * 3072, 7168, 128, true, 6),
            (7168, 3072, 128, false, 7),
            (2 * 2304, 5120, 32, true, 5),
            (5120, 2304, 32, false, 5),
        ] {
            let packing = packing([rows, cols], block, pairs).unwrap();
            assert_eq!((packing.streams, packing.most_groups()), (66, groups));
            assert_eq!(packing.pairs(), pairs);
            let all: Vec<usize> = (0..66).flat_map(|s| packing.stream(s)).collect();
            assert_eq!(all, (0..rows / 16).collect::<Vec<_>>());
            let mut of_groups: Vec<usize> = (0..rows)
                .map(|at| packing.row(at / ROWS, at % ROWS))
                .collect();
            of_groups.sort_unstable();
            assert_eq!(of_groups, (0..rows).collect::<Vec<_>>());
        }
        // Few groups are a stream each.
        let small = packing([2 * 192, 4096], 32, true).unwrap();
        assert_eq!((small.streams, small.most_groups()), (24, 1));
    }

    #[test]
    fn what_does_not_fit_is_not_packed() {
        let of = |rows, cols, block, pairs| packing([rows, cols], block, pairs).is_some();
        assert!(of(4096, 2048, 128, false));
        assert!(!of(4096, 2048 + 32, 128, false));
        assert!(!of(4096 + 8, 2048, 128, false));
        assert!(!of(2 * (2048 + 4), 4096, 128, true));
        assert!(!of(4096, 2048, 48, false));
        assert!(!of(4096, 2048, 4, false));
        // One scale for everything.
        assert!(of(4096, 2048, 5000, false));
        assert!(of(66 * 7 * 16, 64, 128, false));
        assert!(!of(66 * 7 * 16 + 16, 64, 128, false));
        assert_eq!(Packing::of_shape([64, 64], [128; 2], false, 1), None);
    }

    fn weight(rows: usize, cols: usize, seed: usize, scale: f32) -> HostWeight<'static> {
        let format = WeightFormat::Fp8 {
            scales: ScaleFormat::F32,
            block: [32, 32],
        };
        let code = |i: usize| (((i + seed) * 40_503) >> 5) as u8;
        let [r, c] = format.scale_grid([rows, cols]).unwrap();
        let scales = (0..r * c).flat_map(|i| (scale * (1 + i + seed) as f32).to_le_bytes());
        let codes = (0..rows * cols).map(code).collect();
        HostWeight::owned([rows, cols], format, codes, scales.collect()).unwrap()
    }

    /// Finds every element by the layout's words, which `packed.cuh` and the kernels follow too.
    #[test]
    fn every_code_and_scale_is_where_the_layout_has_it() {
        for (parts, pairs, streams) in [
            (
                vec![weight(64, 192, 1, 1.0), weight(64, 192, 900, 1.0)],
                true,
                3,
            ),
            (
                vec![weight(24, 128, 5, 1.0), weight(72, 128, 7, 1.0)],
                false,
                4,
            ),
        ] {
            let packing = Packing::of_parts(&parts, pairs, 2 * streams).unwrap();
            assert_eq!((packing.streams, packing.pairs()), (streams, pairs));
            let packed = packing.pack(&parts);
            let (cols, first_rows) = (parts[0].cols(), parts[0].rows());
            let units = cols / 64;
            let groups = packing.groups as usize;
            assert_eq!(
                packed.len(),
                units * (streams as usize * 128 + groups * 1024)
            );
            for group in 0..groups {
                let s = ((group + 1) * streams as usize - 1) / groups;
                let stream = packing.stream(s);
                let unit = unit_bytes(stream.len());
                let (r, k) = (0..16, 0..cols);
                for (r, k) in r.flat_map(|r| k.clone().map(move |k| (r, k))) {
                    let row = packing.row(group, r);
                    let (part, row) = match row.checked_sub(first_rows) {
                        None => (&parts[0], row),
                        Some(row) => (&parts[1], row),
                    };
                    let begin = units * (s * 128 + stream.start * 1024) + k / 64 * unit;
                    let in_stream = group - stream.start;
                    let (h, q) = (k / 32 % 2, k / 2 % 4);
                    let lane = 4 * (r % 8) + q;
                    let code = begin + 128 + in_stream * 1024 + r / 8 * 512 + lane * 16;
                    // A word has k and k + 8, then the same of k + 1.
                    let byte = k / 16 % 4 * 4 + k % 2 * 2 + k / 8 % 2;
                    assert_eq!(packed[code + byte], part.data()[row * cols + k]);
                    let scale = begin + 16 * in_stream + 8 * h + 4 * (r / 8);
                    let scale: [u8; 4] = packed[scale..scale + 4].try_into().unwrap();
                    assert_eq!(f32::from_le_bytes(scale), part.scale(row, k));
                }
            }
        }
    }

    #[test]
    fn scales_and_parts_decide_too() {
        let of = |parts: &[HostWeight<'_>]| Packing::of_parts(parts, false, MULTIPROCESSORS);
        let good = weight(64, 64, 0, 1.0);
        assert!(of(&[good.clone(), good.clone()]).is_some());
        for scale in [1e-28, 1e28, f32::INFINITY] {
            assert_eq!(
                of(&[good.clone(), weight(64, 64, 0, scale)]),
                None,
                "{scale}"
            );
        }
        assert!(of(&[weight(64, 64, 0, f32::NAN)]).is_some());
        assert!(of(&[weight(64, 64, 0, 0.0)]).is_some());
        assert!(of(&[weight(64, 64, 0, -1.0)]).is_some());
        // Parts end between two halves of a group.
        assert_eq!(of(&[weight(36, 64, 0, 1.0), weight(28, 64, 0, 1.0)]), None);
        assert!(of(&[weight(40, 64, 0, 1.0), weight(24, 64, 0, 1.0)]).is_some());
        // Halves of different heights are rows one below the other.
        let parts = [weight(40, 64, 0, 1.0), weight(24, 64, 0, 1.0)];
        let packing = Packing::of_parts(&parts, true, MULTIPROCESSORS).unwrap();
        assert!(!packing.pairs());
    }
}
