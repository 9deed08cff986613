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
    /// Sets of warpgroups, which take stages in turns.
    sets: u32,
    stages: u32,
    /// Whether registers are dealt out, for which a whole warpgroup copies.
    deals: bool,
    /// Tokens of a call up to which the kernel was the fastest.
    most: usize,
    /// Groups of the largest stream from which on it was.
    fewest: usize,
}

/// A line of the table, of both kinds: streams, slots, tokens, blocks, sets, stages, whether it deals, most,
/// fewest.
type Line = (u32, u32, u32, u32, u32, u32, bool, usize, usize);

/// By slots, then by tokens.
const LINES: [Line; 10] = [
    (1, 4, 32, 2, 2, 12, false, 32, 1),
    (1, 4, 64, 2, 2, 8, false, 64, 1),
    (1, 4, 128, 2, 2, 10, false, 128, 1),
    (1, 4, 256, 2, 2, 6, true, 256, 1),
    (2, 4, 256, 2, 1, 5, true, 512, 4),
    (1, 8, 32, 2, 2, 12, false, 32, 1),
    (1, 8, 64, 2, 2, 12, false, 64, 1),
    (1, 8, 128, 2, 1, 8, false, 128, 1),
    (1, 8, 256, 2, 1, 5, true, 256, 1),
    (1, 8, 256, 1, 1, 5, true, 512, 6),
];

impl WarpgroupKernel {
    const fn new(kind: StepKind, line: Line) -> Self {
        let (streams, slots, tokens, blocks, sets, stages, deals, most, fewest) = line;
        Self {
            kind,
            streams,
            slots,
            tokens,
            blocks,
            sets,
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
        self.streams * self.slots * self.sets
    }

    pub(super) const fn threads(&self) -> u32 {
        32 * self.warps() + if self.deals { 128 } else { 32 }
    }

    /// Bytes of dynamic shared memory of a block: stages, or the sums that take their place, and barriers.
    pub(super) fn shared(&self) -> u32 {
        let weights = self.streams * unit_bytes(self.slots as usize) as u32;
        let ring = self.stages * (128 * self.tokens + weights);
        let sums = self.warps() * (self.tokens / 8) * 32 * 16;
        ring.max(sums) + 16 * self.stages
    }
}

/// Tokens from which on these kernels are faster than decode steps.
const FEWEST_TOKENS: u32 = 17;

/// A launch of a kernel of warpgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WarpgroupPlan {
    /// The place in [`WarpgroupKernel::ALL`].
    pub(super) place: usize,
    pub(super) blocks: [u32; 2],
    /// Tokens of a block.
    pub(super) rows: u32,
}

impl WarpgroupPlan {
    /// The plan of so many tokens by a packed weight; none where they are too few or too many, the streams
    /// too large, or not of pairs of rows for a gated one.
    pub(super) fn new(t: usize, packing: Packing, kind: StepKind) -> Option<Self> {
        let groups = packing.most_groups();
        let slots = if groups <= 4 { 4 } else { 8 };
        let fits = |k: &WarpgroupKernel| k.kind == kind && k.slots == slots;
        let place = WarpgroupKernel::ALL
            .iter()
            .position(|k| fits(k) && t <= k.most && groups >= k.fewest)?;
        let kernel = WarpgroupKernel::ALL[place];
        let pairs = kind == StepKind::Plain || packing.pairs();
        let tiles = packing.streams.div_ceil(kernel.streams);
        // Blocks have as many tokens each, which are whole eights where there are several.
        let (t, times) = (t as u32, (t as u32).div_ceil(kernel.tokens));
        let rows = if times == 1 {
            t
        } else {
            t.div_ceil(times).next_multiple_of(8)
        };
        (pairs && t >= FEWEST_TOKENS).then(|| Self {
            place,
            blocks: [tiles * kernel.blocks, t.div_ceil(rows)],
            rows,
        })
    }
}

impl fmt::Display for WarpgroupPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kernel = WarpgroupKernel::ALL[self.place];
        let [x, y] = self.blocks;
        let clusters = x / kernel.blocks;
        let (name, blocks) = (kernel.name(), kernel.blocks);
        write!(f, "{name}: {clusters} x {y} clusters of {blocks} blocks")
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
        assert_eq!(lines.len(), LINES.len());
        for (line, (streams, slots, tokens, blocks, sets, stages, deals, ..)) in
            lines.iter().zip(LINES)
        {
            let of = format!("KERNELS({streams}, {slots}, {tokens}, {blocks}, {sets}, {stages}, ");
            assert!(line.starts_with(&of), "{line} is not {of}");
            let registers = line.split(", ").nth(7);
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
        // Stages of 32 and of 256 tokens, with a stream of four groups.
        let stage = |tokens: u32| tokens * 128 + 4224 + 16;
        assert_eq!(WarpgroupKernel::ALL[0].shared(), 12 * stage(32));
        assert_eq!(WarpgroupKernel::ALL[6].shared(), 6 * stage(256));
    }
}
