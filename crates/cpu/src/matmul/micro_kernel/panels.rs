//! The panels that a tile is multiplied with, and what a thread needs after them: weights come from
//! memory, and sums in registers leave little for the processor to run ahead to.

use super::Multiply;
use crate::matmul::decode::Decode;
use crate::simd;
use crate::weight::{Block, GROUP};

impl<X> Multiply<'_, X> {
    /// What follows a block in P panels from `first` on: the next block of each or, after the last, the
    /// first of the panel so many further on. So many tiles share it.
    #[inline(always)]
    pub(super) fn after<const P: usize>(
        &self,
        first: usize,
        block: &Block,
        further: usize,
        tiles: usize,
    ) -> Next<P> {
        let (last, shape) = (self.panels.end - 1, self.weight.shape());
        let [start, end] =
            [block.ks.start, block.ks.end].map(|k| shape.format.offset(k.next_multiple_of(GROUP)));
        let ends = block.ks.end == shape.k;
        Next {
            panels: std::array::from_fn(|p| {
                let panel = self.weight.panel(last.min(first + p));
                let bytes = if ends { further * panel.len() } else { end };
                panel.as_ptr().wrapping_add(bytes)
            }),
            of_tile: (end - start).div_ceil(tiles),
            of_group: (end - start).div_ceil(tiles * block.ks.len().div_ceil(GROUP)),
        }
    }
}

/// What follows in some panels.
pub(super) struct Next<const P: usize> {
    panels: [*const u8; P],
    /// Bytes of a tile's share, and of a group's of k.
    of_tile: usize,
    of_group: usize,
}

/// A tile's share of them, which it asks for group by group.
pub(super) struct Share<const P: usize> {
    panels: [*const u8; P],
    of_group: usize,
    lines: usize,
}

impl<const P: usize> Next<P> {
    #[inline(always)]
    pub(super) fn share(&self, tile: usize) -> Share<P> {
        Share {
            panels: self.panels.map(|p| p.wrapping_add(tile * self.of_tile)),
            of_group: self.of_group,
            lines: self.of_group.div_ceil(LINE),
        }
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;

impl<const P: usize> Share<P> {
    /// The share of one panel.
    #[inline(always)]
    pub(super) fn of(&self, panel: usize) -> Share<1> {
        let Self {
            of_group, lines, ..
        } = *self;
        Share {
            panels: [self.panels[panel]],
            of_group,
            lines,
        }
    }

    /// What is left from a group on.
    #[inline(always)]
    pub(super) fn from(&self, group: usize) -> Self {
        Self {
            panels: self.panels.map(|p| p.wrapping_add(group * self.of_group)),
            ..*self
        }
    }

    /// Prefetches a group's.
    #[inline(always)]
    pub(super) fn prefetch(&self, group: usize) {
        for line in 0..self.lines {
            unrolled!(p < P, {
                let at = group * self.of_group + line * LINE;
                simd::prefetch_second_level(self.panels[p].wrapping_add(at));
            });
        }
    }
}

/// Panels side by side, at some k.
pub(super) struct Panels<const P: usize> {
    pub(super) first: usize,
    /// Where the k lies in each.
    pub(super) w: [*const u8; P],
    /// What to ask for meanwhile.
    pub(super) next: Share<P>,
}

impl<const P: usize> Panels<P> {
    /// One of them.
    #[inline(always)]
    pub(super) fn one(&self, p: usize) -> Panels<1> {
        Panels {
            first: self.first + p,
            w: [self.w[p]],
            next: self.next.of(p),
        }
    }

    /// So many k further on, whole groups.
    #[inline(always)]
    pub(super) fn at<D: Decode>(&self, ks: usize) -> Self {
        Self {
            first: self.first,
            w: self.w.map(|w| w.wrapping_add(ks / GROUP * D::BYTES)),
            next: self.next.from(ks / GROUP),
        }
    }
}
