//! Which kernel multiplies more tokens than a decode step's by a packed weight.

use std::fmt;

use super::step::StepKind;
use crate::{launch::params::Packing, weight::packing::unit_bytes};

/// A kernel of `warpgroups.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WarpgroupKernel {
    pub(super) kind: StepKind,
    /// Streams of a block.
    streams: u32,
    /// Groups of a stream, at most.
    slots: u32,
    /// Tokens of a block, at most.
    pub(super) tokens: u32,
    /// Blocks of a cluster, which share k.
    blocks: u32,
    stages: u32,
    /// Whether registers are dealt out, for which a whole warpgroup copies instead of two warps.
    deals: bool,
    /// Tokens of a call up to which the kernel was the fastest.
    most: usize,
    /// Groups of the largest stream from which on it was.
    fewest: usize,
}

/// A line of the table, of both kinds: streams, slots, tokens, blocks, stages, whether it deals, most, fewest.
type Line = (u32, u32, u32, u32, u32, bool, usize, usize);

/// By slots, then by tokens: the first one that takes a call is the fastest. A kernel that larger streams take for more tokens
/// has two lines.
const LINES: [Line; 14] = [
    (1, 4, 32, 2, 12, false, 32, 1),
    (1, 4, 64, 2, 8, false, 64, 1),
    (1, 4, 128, 2, 8, false, 128, 1),
    (2, 4, 128, 2, 8, false, 256, 1),
    (2, 4, 256, 2, 4, true, 512, 4),
    (2, 4, 256, 1, 5, true, 1024, 4),
    (1, 8, 32, 2, 14, false, 32, 5),
    (1, 8, 64, 2, 12, false, 64, 5),
    (1, 8, 128, 2, 8, false, 128, 5),
    (2, 6, 128, 2, 6, false, 256, 5),
    (2, 6, 128, 1, 7, false, 512, 5),
    (2, 6, 128, 1, 7, false, 1024, 6),
    (1, 8, 256, 2, 4, true, 256, 5),
    (1, 8, 256, 1, 5, true, 1024, 6),
];

impl WarpgroupKernel {
    const fn new(kind: StepKind, line: Line) -> Self {
        let (streams, slots, tokens, blocks, stages, deals, most, fewest) = line;
        Self {
            kind,
            streams,
            slots,
            tokens,
            blocks,
            stages,
            deals,
            most,
            fewest,
        }
    }

    /// All of them, a gated and a plain one a line.
    pub(super) const ALL: [Self; 2 * LINES.len()] = {
        let mut all = [Self::new(StepKind::Gated, LINES[0]); 2 * LINES.len()];
        let mut i = 0;
        while i < LINES.len() {
            all[2 * i] = Self::new(StepKind::Gated, LINES[i]);
            all[2 * i + 1] = Self::new(StepKind::Plain, LINES[i]);
            i += 1;
        }
        all
    };

    pub(super) fn name(&self) -> String {
        let kind = self.kind.name();
        let (streams, slots, tokens, blocks) = (self.streams, self.slots, self.tokens, self.blocks);
        format!("warpgroups_{kind}_{streams}x{slots}_{tokens}_tokens_{blocks}_blocks")
    }

    /// Warps that multiply.
    const fn warps(&self) -> u32 {
        self.streams * self.slots
    }

    pub(super) const fn threads(&self) -> u32 {
        32 * self.warps() + if self.deals { 128 } else { 64 }
    }

    /// Bytes of dynamic shared memory of a block: stages, what warps have of sums, and barriers.
    pub(super) fn shared(&self) -> u32 {
        let weights = self.streams * unit_bytes(self.slots as usize) as u32;
        let ring = self.stages * (128 * self.tokens + weights);
        // Eights of tokens, of 16 rows in f32: what other blocks send, or four at a time.
        let eights = match self.blocks {
            1 => 4,
            blocks => self.tokens / 8 / blocks * (blocks - 1),
        };
        ring + self.warps() * eights * 512 + 16 * self.stages + 8
    }
}

/// Tokens from which on these kernels are faster than decode steps.
const FEWEST_TOKENS: u32 = 17;

/// A launch of a kernel of warpgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WarpgroupPlan {
    /// The place in [`WarpgroupKernel::ALL`].
    pub(super) place: usize,
    /// Of streams, and of tokens.
    pub(super) tiles: [u32; 2],
    pub(super) blocks: u32,
    /// Tokens of a tile.
    pub(super) rows: u32,
}

impl WarpgroupPlan {
    /// The plan of so many tokens by a packed weight; none where they are too few or too many, the streams
    /// too large, or not of pairs of rows for a gated one.
    pub(super) fn new(
        t: usize,
        packing: Packing,
        kind: StepKind,
        multiprocessors: u32,
    ) -> Option<Self> {
        let groups = packing.most_groups();
        let takes = |k: &WarpgroupKernel| {
            let of_stream = k.fewest..=k.slots as usize;
            k.kind == kind && t <= k.most && of_stream.contains(&groups)
        };
        let place = WarpgroupKernel::ALL.iter().position(takes)?;
        let kernel = WarpgroupKernel::ALL[place];
        let pairs = kind == StepKind::Plain || packing.pairs();
        let t = u32::try_from(t).ok()?;
        // Tiles have as many tokens each, which are whole eights where there are several.
        let rows = match t.div_ceil(kernel.tokens) {
            0 | 1 => t,
            times => t.div_ceil(times).next_multiple_of(8),
        };
        if !pairs || t < FEWEST_TOKENS {
            return None;
        }
        let tiles = [packing.streams.div_ceil(kernel.streams), t.div_ceil(rows)];
        let all = tiles[0].checked_mul(tiles[1])?;
        // A block that has all of k takes one tile after another.
        let blocks = match kernel.blocks {
            1 => all.min(multiprocessors),
            _ => all.checked_mul(kernel.blocks)?,
        };
        Some(Self {
            place,
            tiles,
            blocks,
            rows,
        })
    }
}

impl fmt::Display for WarpgroupPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = WarpgroupKernel::ALL[self.place].name();
        let ([streams, tokens], blocks) = (self.tiles, self.blocks);
        write!(f, "{name}: {streams} x {tokens} tiles by {blocks} blocks")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_that_of_the_kernels() {
        let source = include_str!("../../kernels/matmul/warpgroups.cu");
        let lines: Vec<&str> = source
            .lines()
            .filter(|line| line.starts_with("KERNELS("))
            .collect();
        let mut of_kernels = LINES.to_vec();
        of_kernels.dedup_by_key(|line| (line.0, line.1, line.2, line.3));
        assert_eq!(lines.len(), of_kernels.len());
        for (line, (streams, slots, tokens, blocks, stages, deals, ..)) in
            lines.iter().zip(of_kernels)
        {
            let of = format!("KERNELS({streams}, {slots}, {tokens}, {blocks}, {stages}, ");
            assert!(line.starts_with(&of), "{line} is not {of}");
            let registers = line.split(", ").nth(5);
            assert_eq!(registers != Some("0"), deals, "{line}");
        }
    }

    /// What a block may have on Hopper.
    #[test]
    fn a_block_fits_a_multiprocessor() {
        for kernel in WarpgroupKernel::ALL {
            assert!(kernel.shared() <= 227 * 1024, "{kernel:?}");
            assert!(kernel.threads() <= 1024, "{kernel:?}");
        }
        // Stages of 32 and of 256 tokens, of one stream of four groups and of two.
        let stage = |tokens: u32, streams: u32| tokens * 128 + streams * 4224 + 16;
        // Warps have two eights from the other block, or sixteen, or four at a time.
        let [few, shared, whole] = [0, 8, 10].map(|at| WarpgroupKernel::ALL[at].shared());
        assert_eq!(few, 12 * stage(32, 1) + 4 * 2 * 512 + 8);
        assert_eq!(shared, 4 * stage(256, 2) + 8 * 16 * 512 + 8);
        assert_eq!(whole, 5 * stage(256, 2) + 8 * 4 * 512 + 8);
    }

    /// So that a multiprocessor begins with the next kernel's weights while it has the last one's block.
    #[test]
    fn blocks_for_few_tokens_go_in_twos() {
        for kernel in &WarpgroupKernel::ALL[..4] {
            assert!(2 * (kernel.shared() + 1024) <= 228 * 1024, "{kernel:?}");
        }
    }
}
