use std::ops::Range;

use swiglu_core::{DType, HostWeight, Result};

use crate::memory::Memory;
use crate::simd::LANES;

mod pack;

/// k's that lie together in a panel, and a multiple of which a panel holds.
pub(crate) const GROUP: usize = 4;
/// Sums are added to the total at every multiple of this in k, and where a scale's block ends.
pub(crate) const BLOCK: usize = 128;

/// A weight [N, K] packed into panels of 16 outputs, in the width that it was stored in.
///
/// A panel holds *units* of k: for each unit the 16 outputs' side by side. A unit is one k of f32
/// or f16, two of bf16 and four of f8: a word, so that decoding needs shifts and masks only, or a
/// half of one. The last unit, and the last panel's missing outputs, are filled up with zeros.
#[derive(Debug)]
pub struct PackedWeight {
    n: usize,
    k: usize,
    dtype: DType,
    gated: bool,
    panels: Memory,
    scales: Option<Scales>,
}

/// The scales of f8 panels: for each panel and each block of k, one for every output of the panel
/// or, where they are all the same, one.
#[derive(Debug)]
struct Scales {
    /// k's that share a scale.
    block: usize,
    /// 1 or [`LANES`].
    width: usize,
    values: Vec<f32>,
}

/// A run of k that is summed by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// Which block of scales it lies in.
    pub(crate) scale: usize,
    pub(crate) ks: Range<usize>,
}

impl PackedWeight {
    /// Outputs and inputs, [N, K].
    pub(crate) const fn shape(&self) -> [usize; 2] {
        [self.n, self.k]
    }

    pub(crate) const fn dtype(&self) -> DType {
        self.dtype
    }

    /// Whether panels alternate between the first half of the outputs (gate) and the second (up).
    pub(crate) const fn is_gated(&self) -> bool {
        self.gated
    }

    /// The bytes that a product reads.
    pub(crate) fn bytes(&self) -> usize {
        let scales = self.scales.as_ref().map_or(0, |s| s.values.len() * 4);
        self.panels.as_slice().len() + scales
    }

    /// How many panels there are.
    pub(crate) const fn count(&self) -> usize {
        if self.gated {
            2 * (self.n / 2).div_ceil(LANES)
        } else {
            self.n.div_ceil(LANES)
        }
    }

    /// The outputs that a panel makes.
    pub(crate) fn outputs(&self, panel: usize) -> Range<usize> {
        let (offset, panel, n) = if self.gated {
            let half = self.n / 2;
            (panel % 2 * half, panel / 2, half)
        } else {
            (0, panel, self.n)
        };
        offset + panel * LANES..offset + n.min((panel + 1) * LANES)
    }

    /// The elements of a panel.
    pub(crate) fn panel(&self, panel: usize) -> &[u8] {
        let bytes = panel_bytes(self.k, self.dtype);
        &self.panels.as_slice()[panel * bytes..][..bytes]
    }

    /// The scales of a panel's outputs in a block of scales: one or [`LANES`], or none.
    pub(crate) fn scales(&self, panel: usize, block: usize) -> Option<&[f32]> {
        let scales = self.scales.as_ref()?;
        let at = panel * self.k.div_ceil(scales.block) + block;
        Some(&scales.values[at * scales.width..][..scales.width])
    }

    /// The runs of k in the order that they are summed in.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = Block> {
        let (k, outer) = (self.k, self.scale_block());
        let mut start = 0;
        std::iter::from_fn(move || {
            let scale = start / outer;
            let end = k.min((scale + 1) * outer).min((start / BLOCK + 1) * BLOCK);
            let ks = start..end;
            start = end;
            (!ks.is_empty()).then_some(Block { scale, ks })
        })
    }

    /// Whether every block begins with a group.
    pub(crate) fn blocks_are_groups(&self) -> bool {
        let outer = self.scale_block();
        outer == self.k || outer.is_multiple_of(GROUP)
    }

    fn scale_block(&self) -> usize {
        let k = self.k;
        self.scales.as_ref().map_or(k, |s| s.block.min(k))
    }

    /// Packs stacked weights; see [`swiglu_core::Matmul::load_weight`].
    pub(crate) fn stacked(parts: &[HostWeight<'_>]) -> Result<Self> {
        HostWeight::check_parts(parts)?;
        Ok(Self::pack(parts, false))
    }

    /// Packs a gate and an up weight, their panels taking turns; see
    /// [`swiglu_core::GatedMatmul::load_gate_up`].
    pub(crate) fn gate_up(gate: HostWeight<'_>, up: HostWeight<'_>) -> Result<Self> {
        let parts = [gate, up];
        HostWeight::check_parts(&parts)?;
        Ok(Self::pack(&parts, gate.rows() == up.rows()))
    }

    fn pack(parts: &[HostWeight<'_>], gated: bool) -> Self {
        let mut weight = Self {
            n: parts.iter().map(HostWeight::rows).sum(),
            k: parts[0].cols(),
            dtype: parts[0].dtype(),
            gated,
            panels: Memory::zeroed(0),
            scales: None,
        };
        let packed = pack::panels(&weight, parts);
        weight.scales = pack::scales(&weight, parts, &packed.nans);
        weight.panels = packed.panels;
        weight
    }
}

/// The size of a panel.
const fn panel_bytes(k: usize, dtype: DType) -> usize {
    k.next_multiple_of(GROUP) * LANES * dtype.size()
}
