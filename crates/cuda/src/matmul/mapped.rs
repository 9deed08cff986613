//! Which kernel multiplies a few tokens by a weight in bf16 as it is stored: `mapped.cu`.

use std::fmt;

mod kernels;
pub(super) use kernels::MappedKernels;

/// Elements of k that a stage has.
const UNIT_K: usize = 64;

/// Rows of a group.
const GROUP: usize = 16;

/// Parts of k, and blocks of a cluster: those that were faster first.
const PARTS: [u32; 3] = [2, 4, 8];

/// Shared memory of a block, at most. Two smaller ones a multiprocessor, of which one waits with its weights, were no
/// faster for V4-Flash up to 16 tokens, and slower else.
const SHARED: u32 = 226 * 1024;

/// A kernel of `mapped.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MappedKernel {
    /// Groups of a tile, at most: one for each warp that multiplies.
    groups: u32,
    /// Tokens of a call, at most.
    tokens: u32,
}

const fn kernel(groups: u32, tokens: u32) -> MappedKernel {
    MappedKernel { groups, tokens }
}

impl MappedKernel {
    /// All of them: by groups, then by tokens.
    pub(super) const ALL: [Self; 8] = [
        kernel(4, 8),
        kernel(4, 16),
        kernel(4, 32),
        kernel(4, 64),
        kernel(8, 8),
        kernel(8, 16),
        kernel(8, 32),
        kernel(8, 64),
    ];

    /// The most groups that a tile of any of them has.
    const MOST_GROUPS: u32 = Self::ALL[Self::ALL.len() - 1].groups;

    pub(super) fn name(self) -> String {
        let Self { groups, tokens } = self;
        format!("mapped_bf16_{groups}_groups_{tokens}_tokens")
    }

    /// Those of the warps that multiply, and of one that copies.
    pub(super) const fn threads(self) -> u32 {
        32 * (self.groups + 1)
    }

    /// Bytes of a stage: of a tile and of x.
    const fn stage(self) -> u32 {
        2 * UNIT_K as u32 * (self.groups * GROUP as u32 + self.tokens)
    }

    /// Bytes of a tile's sums, which lie behind the stages.
    const fn sums(self) -> u32 {
        4 * self.groups * GROUP as u32 * self.tokens
    }

    /// Stages that there is room for.
    pub(super) const fn stages(self) -> u32 {
        (SHARED - self.sums()) / self.stage()
    }

    /// Bytes of dynamic shared memory of a block: stages, sums, and barriers for each stage's arrival and end and for
    /// the sums.
    pub(super) const fn shared(self) -> u32 {
        self.stages() * self.stage() + self.sums() + 8 * (2 * self.stages() + 1)
    }
}

/// A launch of a kernel that reads a weight by a tensor map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MappedPlan {
    /// The place in [`MappedKernel::ALL`].
    place: usize,
    /// Groups of the weight, and of a tile.
    groups: u32,
    tile_groups: u32,
    /// Blocks of a cluster, which share k.
    parts: u32,
}

impl MappedPlan {
    /// The plan of so many tokens by a weight \[n, k\] on a device of so many multiprocessors, a block each; none where
    /// there are too many tokens or rows, the rows are no whole groups, or do not begin at multiples of 16 bytes, or k is
    /// one stage.
    pub(super) fn new(t: usize, [n, k]: [usize; 2], multiprocessors: u32) -> Option<Self> {
        let whole = n > 0 && n.is_multiple_of(GROUP) && k > 0 && k.is_multiple_of(8);
        let groups = u32::try_from(n / GROUP).ok().filter(|_| whole)?;
        let units = u32::try_from(k.div_ceil(UNIT_K)).ok()?;
        // The groups of a tile, by a part of k, that the largest block reads.
        let tile = |parts: u32| {
            let tiles = (multiprocessors / parts).max(1);
            let tile_groups = groups.div_ceil(tiles);
            let fits = parts <= units && tile_groups <= MappedKernel::MOST_GROUPS;
            fits.then(|| (tile_groups * units.div_ceil(parts), tile_groups, parts))
        };
        let least = |a: (u32, u32, u32), b: (u32, u32, u32)| if b.0 < a.0 { b } else { a };
        let (_, tile_groups, parts) = PARTS.into_iter().filter_map(tile).reduce(least)?;
        let enough =
            |kernel: &MappedKernel| tile_groups <= kernel.groups && t <= kernel.tokens as usize;
        let place = MappedKernel::ALL.iter().position(enough)?;
        (t > 0).then_some(Self {
            place,
            groups,
            tile_groups,
            parts,
        })
    }

    fn kernel(&self) -> MappedKernel {
        MappedKernel::ALL[self.place]
    }

    fn tiles(&self) -> u32 {
        self.groups.div_ceil(self.tile_groups)
    }
}

impl fmt::Display for MappedPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, tiles, parts) = (self.kernel().name(), self.tiles(), self.parts);
        write!(f, "{name}: {tiles} clusters of {parts} blocks")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_that_of_the_kernels() {
        let source = include_str!("../../kernels/matmul/mapped.cu");
        let lines: Vec<&str> = source
            .lines()
            .filter(|line| line.starts_with("KERNEL("))
            .collect();
        let all = MappedKernel::ALL;
        let want: Vec<String> = all
            .iter()
            .map(|kernel| format!("KERNEL({}, {})", kernel.groups, kernel.tokens))
            .collect();
        assert_eq!(lines, want);
    }

    /// What a block may have on Hopper; a stage is given back when the next one's products are under way.
    #[test]
    fn a_block_fits_a_multiprocessor() {
        for kernel in MappedKernel::ALL {
            assert!(kernel.shared() <= 227 * 1024, "{kernel:?}");
            assert!(kernel.stages() > 1, "{kernel:?}");
        }
        assert_eq!(kernel(4, 8).stages(), 24);
        assert_eq!(kernel(4, 8).shared(), 24 * (8192 + 1024 + 16) + 2048 + 8);
        assert_eq!(kernel(8, 64).stages(), 8);
    }

    /// Tiles, their groups and parts of k, on an H200.
    fn shape(n: usize, k: usize) -> Option<[u32; 3]> {
        let plan = MappedPlan::new(1, [n, k], 132)?;
        Some([plan.tiles(), plan.tile_groups, plan.parts])
    }

    #[test]
    fn a_multiprocessor_has_a_block() {
        // Gate and up, and down, of V4-Flash, V4-Pro and V4.1.
        assert_eq!(shape(4096, 4096), Some([64, 4, 2]));
        assert_eq!(shape(4096, 2048), Some([64, 4, 2]));
        assert_eq!(shape(6144, 7168), Some([64, 6, 2]));
        assert_eq!(shape(7168, 3072), Some([64, 7, 2]));
        assert_eq!(shape(4608, 5120), Some([58, 5, 2]));
        assert_eq!(shape(5120, 2304), Some([64, 5, 2]));
        // Of few rows more blocks share k, as far as it has stages.
        assert_eq!(shape(512, 4096), Some([32, 1, 4]));
        assert_eq!(shape(16, 4096), Some([1, 1, 8]));
        assert_eq!(shape(16, 72), Some([1, 1, 2]));
        assert_eq!(shape(16, 64), None);
        // Up to a full tile for two multiprocessors.
        assert_eq!(shape(66 * 128, 4096), Some([66, 8, 2]));
        assert_eq!(shape(66 * 128 + 16, 4096), None);
    }

    #[test]
    fn rows_are_whole_groups_and_vectors() {
        assert_eq!(shape(4096 + 8, 4096), None);
        assert_eq!(shape(4096, 4096 + 4), None);
        assert_eq!(shape(0, 4096), None);
        assert_eq!(shape(4096, 0), None);
        assert!(shape(4096 + 16, 4096 + 8).is_some());
        let most = |t| MappedPlan::new(t, [4096, 4096], 132).map(|plan| plan.kernel().tokens);
        assert_eq!([0, 65].map(most), [None; 2]);
        let tokens = [1, 8, 9, 16, 17, 32, 33, 64].map(most);
        assert_eq!(tokens, [8, 8, 16, 16, 32, 32, 64, 64].map(Some));
    }
}
