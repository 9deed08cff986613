//! Which kernel multiplies some tokens by a weight in bf16 as it is stored: `mapped.cu`.

use std::fmt;

mod kernels;
pub(super) use kernels::MappedKernels;

/// Elements of k that a stage has.
const UNIT_K: usize = 64;

/// Rows of a group.
const GROUP: usize = 16;

/// Parts of k, and blocks of a cluster: those that were faster first.
const PARTS: [u32; 3] = [2, 4, 8];

/// Bytes of shared memory of a multiprocessor for the stages and sums of its blocks.
const SHARED: u32 = 225 * 1024;

/// Groups of the smaller kernels.
const FEW_GROUPS: u32 = 4;

/// Tokens of the largest kernels, of which each of two blocks adds up the sums of a half.
const MANY_TOKENS: u32 = 128;

/// Tokens of a call, at most: beyond, cublasLt is as fast.
const MOST_TOKENS: u32 = 256;

/// Tokens up to which blocks of all kinds, and clusters of more than two, are faster than cublasLt.
const FEW_TOKENS: u32 = 64;

/// A kernel of `mapped.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MappedKernel {
    /// Groups of a tile, at most: one for each warp that multiplies.
    groups: u32,
    /// Tokens of a tile, at most.
    tokens: u32,
}

const fn kernel(groups: u32, tokens: u32) -> MappedKernel {
    MappedKernel { groups, tokens }
}

impl MappedKernel {
    /// All of them: by groups, then by tokens.
    pub(super) const ALL: [Self; 9] = [
        kernel(4, 8),
        kernel(4, 16),
        kernel(4, 32),
        kernel(4, 64),
        kernel(4, 128),
        kernel(8, 16),
        kernel(8, 32),
        kernel(8, 64),
        kernel(8, 128),
    ];

    /// The most groups, and tokens, that a tile of any of them has.
    const MOST: Self = Self::ALL[Self::ALL.len() - 1];

    pub(super) fn name(self) -> String {
        let Self { groups, tokens } = self;
        format!("mapped_bf16_{groups}_groups_{tokens}_tokens")
    }

    /// Those of the warps that multiply, and of one that copies.
    pub(super) const fn threads(self) -> u32 {
        32 * (self.groups + 1)
    }

    /// Bytes of a stage of weights.
    const fn stage(self) -> u32 {
        2 * (UNIT_K * GROUP) as u32 * self.groups
    }

    /// Bytes of a stage of x.
    const fn x_stage(self) -> u32 {
        2 * UNIT_K as u32 * self.tokens
    }

    /// Whether a multiprocessor has two blocks, of which one waits with its weights for the kernel before.
    const fn in_twos(self) -> bool {
        self.groups == FEW_GROUPS || self.tokens == MANY_TOKENS
    }

    /// Stages of x that there is room for: of two blocks the one that waits has none of them, but all of its weights.
    pub(super) const fn x_stages(self) -> u32 {
        match (self.in_twos(), self.tokens) {
            (true, MANY_TOKENS) if self.groups == FEW_GROUPS => 4,
            (true, MANY_TOKENS) => 3,
            (true, 64) => 6,
            (true, _) => 8,
            (false, _) => SHARED / (self.stage() + self.x_stage()),
        }
    }

    /// Stages of weights.
    pub(super) const fn stages(self) -> u32 {
        let shared = if self.in_twos() { SHARED / 2 } else { SHARED };
        (shared - self.x_stages() * self.x_stage()) / self.stage()
    }

    /// Stages that a block has not asked for yet when the next kernel may start. Of two blocks the second one's weights are
    /// to come when those of the first have.
    pub(super) const fn ahead(self) -> u32 {
        match (self.in_twos(), self.tokens) {
            (true, MANY_TOKENS) => 2,
            (true, _) => 5,
            (false, _) => u32::MAX,
        }
    }

    /// Bytes of dynamic shared memory of a block: stages, whose place sums take, and barriers for each stage's arrival and
    /// end, for the room for sums and for the sums.
    pub(super) const fn shared(self) -> u32 {
        self.stages() * self.stage()
            + self.x_stages() * self.x_stage()
            + 8 * (2 * self.stages() + 2)
    }

    /// The places of the first stages of so many, of weights and of x, so that the last one comes to the last place.
    pub(super) const fn first(self, units: u32) -> [u32; 2] {
        let [stages, x_stages] = [self.stages(), self.x_stages()];
        [
            (stages - units % stages) % stages,
            (x_stages - units % x_stages) % x_stages,
        ]
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
    /// Tiles of tokens, and tokens of each but the last one.
    token_tiles: u32,
    tile_tokens: u32,
    /// Blocks of a cluster, which share k: a power of two.
    parts: u32,
}

impl MappedPlan {
    /// The plan of so many tokens by a weight \[n, k\] on a device of so many multiprocessors, a block each; none where
    /// there are too many tokens or rows, the rows are no whole groups, or do not begin at multiples of 16 bytes, or k is
    /// one stage.
    pub(super) fn new(t: usize, [n, k]: [usize; 2], multiprocessors: u32) -> Option<Self> {
        let most = MappedKernel::MOST;
        let whole = n > 0 && n.is_multiple_of(GROUP) && k > 0 && k.is_multiple_of(8);
        let groups = u32::try_from(n / GROUP).ok().filter(|_| whole)?;
        let units = u32::try_from(k.div_ceil(UNIT_K)).ok()?;
        let t = u32::try_from(t)
            .ok()
            .filter(|t| (1..=MOST_TOKENS).contains(t))?;
        let few = t <= FEW_TOKENS;
        let token_tiles = t.div_ceil(most.tokens);
        // As many each: of rows that are not there a map's copy takes longer.
        let tile_tokens = t.div_ceil(token_tiles);
        // The groups of a tile, by a part of k, that the largest block reads.
        let tile = |parts: u32| {
            let tiles = (multiprocessors / (parts * token_tiles)).max(1);
            let tile_groups = groups.div_ceil(tiles);
            let fits = parts <= units && tile_groups <= most.groups && (few || parts == 2);
            fits.then(|| (tile_groups * units.div_ceil(parts), tile_groups, parts))
        };
        let least = |a: (u32, u32, u32), b: (u32, u32, u32)| if b.0 < a.0 { b } else { a };
        let (_, tile_groups, parts) = PARTS.into_iter().filter_map(tile).reduce(least)?;
        let enough =
            |kernel: &MappedKernel| tile_groups <= kernel.groups && tile_tokens <= kernel.tokens;
        let place = MappedKernel::ALL.iter().position(enough)?;
        // A tile of tokens by more than 64 rows a block takes longer than in cublasLt.
        let faster = few || token_tiles > 1 || tile_groups <= 4;
        faster.then_some(Self {
            place,
            groups,
            tile_groups,
            token_tiles,
            tile_tokens,
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
        let (name, tiles, parts) = (
            self.kernel().name(),
            self.tiles() * self.token_tiles,
            self.parts,
        );
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

    /// What blocks may have on Hopper; a stage is given back when the next one's products are under way.
    #[test]
    fn blocks_fit_a_multiprocessor() {
        for kernel in MappedKernel::ALL {
            let blocks = if kernel.in_twos() { 2 } else { 1 };
            assert!(
                blocks * (kernel.shared() + 1024) <= 228 * 1024,
                "{kernel:?}"
            );
            assert!((2..=32).contains(&kernel.stages()), "{kernel:?}");
        }
        let rings = MappedKernel::ALL.map(|kernel| [kernel.stages(), kernel.x_stages()]);
        let want = [
            [13, 8],
            [12, 8],
            [10, 8],
            [8, 6],
            [6, 4],
            [12, 12],
            [11, 11],
            [9, 9],
            [4, 3],
        ];
        assert_eq!(rings, want);
        assert_eq!(kernel(4, 8).shared(), 13 * (8192 + 16) + 8 * 1024 + 16);
        let in_twos = MappedKernel::ALL.map(MappedKernel::in_twos);
        let want = [true, true, true, true, true, false, false, false, true];
        assert_eq!(in_twos, want);
    }

    /// Places that neither of the last two stages has: the first ones of weights, and of many tokens of x.
    #[test]
    fn sums_have_room_where_no_stage_is_at_the_end() {
        for kernel in MappedKernel::ALL {
            assert!(kernel.x_stages() <= kernel.stages(), "{kernel:?}");
            let sums = 4 * kernel.groups * GROUP as u32 * kernel.tokens;
            if kernel.tokens == MANY_TOKENS {
                // A quarter in each ring is the other block's; own sums and results take what no product reads any longer.
                assert!(
                    sums / 4 <= kernel.stage().min(kernel.x_stage()),
                    "{kernel:?}"
                );
                assert!(kernel.stages() >= 3 && kernel.x_stages() >= 3, "{kernel:?}");
                assert!(sums / 2 <= 2 * kernel.x_stage(), "{kernel:?}");
                assert!(
                    sums / 4 <= (kernel.stages() - 1) * kernel.stage(),
                    "{kernel:?}"
                );
            } else {
                assert!(sums <= (kernel.stages() - 2) * kernel.stage(), "{kernel:?}");
            }
            for units in 1..100 {
                let [first, first_x] = kernel.first(units);
                assert_eq!((first + units) % kernel.stages(), 0, "{kernel:?}");
                assert_eq!((first_x + units) % kernel.x_stages(), 0, "{kernel:?}");
            }
        }
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
    fn more_tokens_have_several_tiles() {
        let shape = |t, shape| {
            let plan = MappedPlan::new(t, shape, 132)?;
            Some([plan.tiles(), plan.tile_groups, plan.token_tiles, plan.parts])
        };
        assert_eq!(shape(128, [4096, 4096]), Some([64, 4, 1, 2]));
        assert_eq!(shape(64, [512, 4096]), Some([32, 1, 1, 4]));
        assert_eq!(shape(65, [512, 4096]), Some([32, 1, 1, 2]));
        assert_eq!(shape(64, [6144, 7168]), Some([64, 6, 1, 2]));
        assert_eq!(shape(65, [6144, 7168]), None);
        assert_eq!(shape(129, [4096, 4096]), Some([32, 8, 2, 2]));
        assert_eq!(shape(256, [4096, 2048]), Some([32, 8, 2, 2]));
        // Where a multiprocessor would have several, cublasLt takes the call.
        assert_eq!(shape(256, [6144, 7168]), None);
    }

    #[test]
    fn rows_are_whole_groups_and_vectors() {
        assert_eq!(shape(4096 + 8, 4096), None);
        assert_eq!(shape(4096, 4096 + 4), None);
        assert_eq!(shape(0, 4096), None);
        assert_eq!(shape(4096, 0), None);
        assert!(shape(4096 + 16, 4096 + 8).is_some());
        let most = |t| MappedPlan::new(t, [4096, 4096], 132).map(|plan| plan.kernel().tokens);
        assert_eq!([0, 257].map(most), [None; 2]);
        let tokens = [1, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 256].map(most);
        let want = [8, 8, 16, 16, 32, 32, 64, 64, 128, 128, 128, 128];
        assert_eq!(tokens, want.map(Some));
    }
}
