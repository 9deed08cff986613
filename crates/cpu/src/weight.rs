use std::ops::Range;

use swiglu_core::{Error, Float, HostWeight, Result, WeightFormat};

use crate::buffer::PageBuffer;
use crate::simd::LANES;
use crate::simd::tiles::DEPTH;

pub(crate) mod fp4;
mod pack;
mod transpose;

/// k's that lie together in a panel, and a multiple of which a panel holds.
pub(crate) const GROUP: usize = 4;
/// Sums are added to the total at every multiple of this in k, and where a scale's block ends.
pub(crate) const BLOCK: usize = 128;

/// Why a weight is refused that a later core may describe.
pub(crate) const UNKNOWN_FORMAT: &str = "this backend does not know the format";

/// How the elements of panels are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PanelFormat {
    F32,
    F16,
    BF16,
    E4M3,
    /// E2M1 with its scales in between: see [`fp4`].
    Fp4,
}

impl PanelFormat {
    /// The only place where core's description is read; none for what kernels here do not decode.
    pub(crate) const fn of(format: WeightFormat) -> Option<Self> {
        Some(match format {
            WeightFormat::Float(Float::F32) => Self::F32,
            WeightFormat::Float(Float::F16) => Self::F16,
            WeightFormat::Float(Float::BF16) => Self::BF16,
            WeightFormat::Fp8 { .. } => Self::E4M3,
            WeightFormat::Fp4 => Self::Fp4,
            _ => return None,
        })
    }

    /// Where the elements of a k that begins a group, or a panel's end, lie in a panel: the bytes
    /// before them.
    pub(crate) const fn offset(self, k: usize) -> usize {
        match self {
            Self::F32 => k * LANES * 4,
            Self::F16 | Self::BF16 => k * LANES * 2,
            Self::E4M3 => k * LANES,
            Self::Fp4 => fp4::offset(k),
        }
    }
}

/// What a matmul's plan asks of a weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedShape {
    /// Outputs.
    pub(crate) n: usize,
    /// Inputs.
    pub(crate) k: usize,
    pub(crate) format: PanelFormat,
    /// k's that share a scale.
    scale_block: usize,
    /// Whether panels alternate between gate and up.
    gated: bool,
}

impl PackedShape {
    /// The shape of a weight [n, k] once it is packed; none for a format that is not known.
    pub(crate) fn new([n, k]: [usize; 2], format: WeightFormat, gated: bool) -> Option<Self> {
        let block = format.scaling().map_or(k, |(_, [_, block])| block);
        Some(Self {
            n,
            k,
            format: PanelFormat::of(format)?,
            scale_block: block.min(k),
            gated,
        })
    }

    /// How many panels there are.
    pub(crate) const fn panels(&self) -> usize {
        if self.gated {
            2 * (self.n / 2).div_ceil(LANES)
        } else {
            self.n.div_ceil(LANES)
        }
    }

    /// Whether dot products of bf16 can multiply it: in 16 bits or fewer that bf16 holds, and with
    /// scales that whole groups share.
    pub(crate) const fn fills_dots(&self) -> bool {
        match self.format {
            PanelFormat::F32 | PanelFormat::F16 => false,
            PanelFormat::BF16 | PanelFormat::E4M3 | PanelFormat::Fp4 => self.blocks_are_groups(),
        }
    }

    /// Whether tiles can: in 16 bits or fewer that bf16 holds, and with scales that
    /// whole steps share.
    pub(crate) const fn fills_tiles(&self) -> bool {
        match self.format {
            PanelFormat::F32 | PanelFormat::F16 => false,
            PanelFormat::BF16 => true,
            PanelFormat::E4M3 | PanelFormat::Fp4 => {
                self.scale_block == self.k || self.scale_block.is_multiple_of(DEPTH)
            }
        }
    }

    /// k's that share a scale.
    pub(crate) const fn scale_block(&self) -> usize {
        self.scale_block
    }

    /// Whether every block begins with a group.
    pub(crate) const fn blocks_are_groups(&self) -> bool {
        self.scale_block == self.k || self.scale_block.is_multiple_of(GROUP)
    }
}

/// A weight [N, K] packed into panels of 16 outputs, in the width that it was stored in.
///
/// A panel holds *units* of k: for each unit the 16 outputs' side by side. A unit is one k of f32
/// or f16, two of bf16 and four of f8: a word, so that decoding needs shifts and masks only, or a
/// half of one. The last unit, and the last panel's missing outputs, are filled up with zeros.
/// Panels of FP4 hold their scales too.
#[derive(Debug)]
pub struct PackedWeight {
    shape: PackedShape,
    panels: PageBuffer,
    scales: Option<Scales>,
    /// The least and the highest byte among the scales of FP4.
    fp4_scales: [u8; 2],
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
    /// Whether codes times any of the values that are numbers are normal bf16.
    fold: bool,
    /// Where the width is 1 and codes are NaN: for each panel and block the outputs whose scale is
    /// NaN, a bit each.
    nans: Vec<u16>,
}

impl Scales {
    /// The place of a panel's block.
    fn place(&self, k: usize, panel: usize, block: usize) -> usize {
        panel * k.div_ceil(self.block) + block
    }
}

/// A run of k that is summed by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// Which block of scales it lies in.
    pub(crate) scale: usize,
    pub(crate) ks: Range<usize>,
}

impl PackedWeight {
    pub(crate) const fn shape(&self) -> &PackedShape {
        &self.shape
    }

    /// Whether panels alternate between the first half of the outputs (gate) and the second (up).
    pub(crate) const fn is_gated(&self) -> bool {
        self.shape.gated
    }

    /// The bytes that a matmul reads.
    pub(crate) fn bytes(&self) -> usize {
        let scales = self.scales.as_ref();
        let scales = scales.map_or(0, |s| s.values.len() * 4 + s.nans.len() * 2);
        self.panels.as_slice().len() + scales
    }

    /// The outputs that a panel makes.
    pub(crate) fn outputs(&self, panel: usize) -> Range<usize> {
        let PackedShape { n, gated, .. } = self.shape;
        let (offset, panel, n) = if gated {
            let half = n / 2;
            (panel % 2 * half, panel / 2, half)
        } else {
            (0, panel, n)
        };
        offset + panel * LANES..offset + n.min((panel + 1) * LANES)
    }

    /// The elements of a panel.
    pub(crate) fn panel(&self, panel: usize) -> &[u8] {
        let bytes = panel_bytes(self.shape.k, self.shape.format);
        &self.panels.as_slice()[panel * bytes..][..bytes]
    }

    /// The scales of a panel's outputs in a block of scales: one or [`LANES`], or none.
    pub(crate) fn scales(&self, panel: usize, block: usize) -> Option<&[f32]> {
        let scales = self.scales.as_ref()?;
        let at = scales.place(self.shape.k, panel, block);
        Some(&scales.values[at * scales.width..][..scales.width])
    }

    /// The outputs of a panel whose scale in a block is NaN where [`Self::scales`] gives one for all.
    pub(crate) fn nans(&self, panel: usize, block: usize) -> u16 {
        match &self.scales {
            Some(scales) if !scales.nans.is_empty() => {
                scales.nans[scales.place(self.shape.k, panel, block)]
            }
            _ => 0,
        }
    }

    /// Whether codes times their scales are exact in bf16, so that no sum needs to be scaled.
    pub(crate) fn scales_fold(&self) -> bool {
        match self.shape.format {
            PanelFormat::Fp4 => fp4::fold(self.fp4_scales),
            _ => self.scales.as_ref().is_some_and(|scales| scales.fold),
        }
    }

    /// Whether every scale of FP4 is a normal number.
    pub(crate) const fn fp4_scales_are_normal(&self) -> bool {
        fp4::are_normal(self.fp4_scales)
    }

    /// The scales of a panel's outputs in a block of scales, NaN where a code is; 1 without scales.
    pub(crate) fn lane_scales(&self, panel: usize, block: usize) -> [f32; LANES] {
        if self.shape.format == PanelFormat::Fp4 {
            return fp4::scales(self.panel(panel), block);
        }
        match (self.scales(panel, block), self.nans(panel, block)) {
            (None, _) => [1.0; LANES],
            (Some(&[one]), nans) => std::array::from_fn(|lane| match nans >> lane & 1 {
                0 => one,
                _ => f32::NAN,
            }),
            (Some(lanes), _) => std::array::from_fn(|lane| lanes[lane]),
        }
    }

    /// The runs of k in the order that they are summed in; with FP4 several at a time: see
    /// [`Self::groups`].
    pub(crate) fn blocks(&self) -> impl Iterator<Item = Block> {
        let (k, outer) = match self.shape.format {
            PanelFormat::Fp4 => (self.shape.k, BLOCK),
            _ => (self.shape.k, self.shape.scale_block),
        };
        let mut start = 0;
        std::iter::from_fn(move || {
            let scale = start / outer;
            let end = k.min((scale + 1) * outer).min((start / BLOCK + 1) * BLOCK);
            let ks = start..end;
            start = end;
            (!ks.is_empty()).then_some(Block { scale, ks })
        })
    }

    /// What of a block is summed by itself: FP4's groups, or all of it.
    pub(crate) fn groups(&self, block: &Block) -> impl Iterator<Item = Block> {
        let (scale, ks) = (block.scale, block.ks.clone());
        let (step, first) = match self.shape.format {
            PanelFormat::Fp4 => (fp4::GROUP, ks.start / fp4::GROUP),
            _ => (ks.len(), scale),
        };
        ks.clone()
            .step_by(step)
            .enumerate()
            .map(move |(g, start)| Block {
                scale: first + g,
                ks: start..ks.end.min(start + step),
            })
    }

    /// Packs stacked weights; see [`swiglu_core::Matmul::load_weight`].
    pub(crate) fn stacked(parts: &[HostWeight<'_>]) -> Result<Self> {
        Self::pack(parts, false)
    }

    /// Packs a gate and an up weight, their panels taking turns; see
    /// [`swiglu_core::GatedMatmul::load_gate_up`].
    pub(crate) fn gate_up(gate: HostWeight<'_>, up: HostWeight<'_>) -> Result<Self> {
        let gated = gate.rows() == up.rows();
        Self::pack(&[gate, up], gated)
    }

    fn pack(parts: &[HostWeight<'_>], gated: bool) -> Result<Self> {
        HostWeight::check_parts(parts)?;
        let (format, k) = (parts[0].format(), parts[0].cols());
        let n = parts.iter().map(HostWeight::rows).sum();
        let Some(shape) = PackedShape::new([n, k], format, gated) else {
            let what = format!("weights of {format}");
            return Err(Error::unsupported(crate::PLATFORM, what, UNKNOWN_FORMAT));
        };
        let mut weight = Self {
            shape,
            panels: PageBuffer::zeroed(0),
            scales: None,
            fp4_scales: [0; 2],
        };
        let packed = pack::panels(&weight, parts);
        match shape.format {
            PanelFormat::Fp4 => weight.fp4_scales = packed.fp4_scales,
            _ => weight.scales = pack::scales(&weight, parts, &packed.nans),
        }
        weight.panels = packed.panels;
        Ok(weight)
    }
}

/// The size of a panel.
const fn panel_bytes(k: usize, format: PanelFormat) -> usize {
    match format {
        PanelFormat::Fp4 => fp4::panel_bytes(k),
        _ => format.offset(k.next_multiple_of(GROUP)),
    }
}

#[cfg(test)]
mod tests {
    use swiglu_core::ScaleFormat;

    use super::*;

    fn f8(codes: &[u8], shape: [usize; 2], block: [usize; 2], scales: &[u8]) -> PackedWeight {
        let format = WeightFormat::Fp8 {
            scales: ScaleFormat::E8M0,
            block,
        };
        let weight = HostWeight::new(shape, format, codes, scales).unwrap();
        PackedWeight::stacked(&[weight]).unwrap()
    }

    #[test]
    fn a_panel_holds_words_of_k_side_by_side() {
        let codes: Vec<u8> = (0..17 * 6).collect();
        let weight = f8(&codes, [17, 6], [128, 128], &[127]);
        assert_eq!(weight.shape().panels(), 2);
        assert_eq!(weight.outputs(1), 16..17);
        let panel = weight.panel(0);
        assert_eq!(panel.len(), 8 * LANES);
        assert_eq!(panel[..8], [0, 1, 2, 3, 6, 7, 8, 9]);
        assert_eq!(panel[4 * LANES..][..8], [4, 5, 0, 0, 10, 11, 0, 0]);
        assert_eq!(weight.panel(1)[..8], [96, 97, 98, 99, 0, 0, 0, 0]);
        assert_eq!(weight.scales(1, 0), Some(&[1.0][..]));
    }

    #[test]
    fn a_nan_becomes_its_block_s_scale_for_its_output() {
        let mut codes = vec![0x38; 3 * 8];
        codes[8 + 5] = 0xff;
        let weight = f8(&codes, [3, 8], [2, 4], &[127, 128, 129, 130]);
        assert_eq!(weight.scales(0, 0).unwrap()[..3], [1.0, 1.0, 4.0]);
        let second = weight.scales(0, 1).unwrap();
        assert!(second[1].is_nan() && [second[0], second[2]] == [2.0, 8.0]);
    }

    #[test]
    fn nans_cost_a_weight_no_more_than_a_hundredth_beside_its_scales() {
        let scales = [127; 2 * 8];
        let clean = f8(&[0x38; 64 * 256], [64, 256], [32, 32], &scales);
        let mut codes = [0x38; 64 * 256];
        codes.iter_mut().step_by(9).for_each(|code| *code = 0x7f);
        let weight = f8(&codes, [64, 256], [32, 32], &scales);
        assert!((weight.bytes() - clean.bytes()) * 100 <= clean.bytes());
        assert!(weight.bytes() * 20 <= codes.len() * 21);
        assert_eq!(weight.scales(0, 0), Some(&[1.0][..]));
        assert_eq!((weight.nans(0, 0), clean.nans(0, 0)), (0xffff, 0));
        codes.fill(0x38);
        codes[20 * 256 + 100] = 0xff;
        let weight = f8(&codes, [64, 256], [32, 32], &scales);
        assert_eq!(
            [weight.nans(1, 3), weight.nans(1, 2), weight.nans(0, 3)],
            [16, 0, 0]
        );
    }

    #[test]
    fn sums_end_at_multiples_and_with_scales() {
        let weight = f8(&[0; 300], [1, 300], [1, 200], &[127; 2]);
        let ends: Vec<_> = weight.blocks().map(|b| (b.scale, b.ks.end)).collect();
        assert_eq!(ends, [(0, 128), (0, 200), (1, 256), (1, 300)]);
    }

    #[test]
    fn panels_of_gate_and_up_take_turns() {
        let [gate, up] = [1_u8, 2].map(|byte| vec![byte; 20 * 2 * 4]);
        let part =
            |data| HostWeight::new([20, 2], WeightFormat::Float(Float::F32), data, &[]).unwrap();
        let weight = PackedWeight::gate_up(part(&gate), part(&up)).unwrap();
        assert!(
            weight.is_gated()
                && (weight.shape().n, weight.shape().k) == (40, 2)
                && weight.shape().panels() == 4
        );
        let outputs = [0..16, 20..36, 16..20, 36..40];
        assert_eq!([0, 1, 2, 3].map(|p| weight.outputs(p)), outputs);
        assert_eq!([0, 1, 2, 3].map(|p| weight.panel(p)[0]), [1, 2, 1, 2]);
    }
}
