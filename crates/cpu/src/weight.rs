use rayon::prelude::*;
use swiglu_core::{DType, HostWeight, Result};

use crate::simd::LANES;

/// A weight [N, K] packed into panels of 16 outputs: for each k, the panel's weights side by
/// side, in the width that they were stored in. The last panel is filled up with zeros.
#[derive(Debug)]
pub struct PackedWeight {
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) elements: Elements,
    pub(crate) scales: Option<PackedScales>,
}

/// The panels' elements.
#[derive(Debug)]
pub(crate) enum Elements {
    F32(Vec<f32>),
    F16(Vec<u16>),
    BF16(Vec<u16>),
    E4M3(Vec<u8>),
}

/// The scales of FP8 panels: for each panel and each block of k, one for every output of the panel
/// or, where they are all the same, one.
#[derive(Debug)]
pub(crate) struct PackedScales {
    /// k's that share a scale.
    pub(crate) block: usize,
    /// 1 or [`LANES`].
    pub(crate) width: usize,
    pub(crate) values: Vec<f32>,
}

impl PackedWeight {
    /// Packs stacked weights; see [`swiglu_core::Matmul::load_weight`].
    pub(crate) fn pack(parts: &[HostWeight<'_>]) -> Result<Self> {
        HostWeight::check_parts(parts)?;
        let (k, dtype) = (parts[0].cols(), parts[0].dtype());
        let rows = Rows { parts };
        let n = rows.count();
        let panels = n.div_ceil(LANES);
        let elements = match dtype {
            DType::F32 => Elements::F32(rows.panels(panels, k, |b: [u8; 4]| f32::from_le_bytes(b))),
            DType::F16 => Elements::F16(rows.panels(panels, k, u16::from_le_bytes)),
            DType::BF16 => Elements::BF16(rows.panels(panels, k, u16::from_le_bytes)),
            DType::F8E4M3 | DType::E8M0 => Elements::E4M3(rows.panels(panels, k, |[b]: [u8; 1]| b)),
        };
        let scales = parts[0]
            .scales()
            .map(|s| rows.scales(panels, k, s.block[1]));
        Ok(Self {
            n,
            k,
            elements,
            scales,
        })
    }

    /// Outputs and inputs, [N, K].
    pub(crate) const fn shape(&self) -> [usize; 2] {
        [self.n, self.k]
    }

    /// The bytes that a product reads.
    pub(crate) fn bytes(&self) -> usize {
        let elements = match &self.elements {
            Elements::F32(v) => size_of_val(v.as_slice()),
            Elements::F16(v) | Elements::BF16(v) => size_of_val(v.as_slice()),
            Elements::E4M3(v) => v.len(),
        };
        let scales = self.scales.as_ref().map_or(0, |s| s.values.len() * 4);
        elements + scales
    }
}

/// The rows of stacked weights.
struct Rows<'a, 'b> {
    parts: &'a [HostWeight<'b>],
}

impl Rows<'_, '_> {
    fn count(&self) -> usize {
        self.parts.iter().map(HostWeight::rows).sum()
    }

    /// The part that holds row `n` and the row in it.
    fn find(&self, mut n: usize) -> Option<(&HostWeight<'_>, usize)> {
        for part in self.parts {
            if n < part.rows() {
                return Some((part, n));
            }
            n -= part.rows();
        }
        None
    }

    fn panels<const N: usize, T>(&self, panels: usize, k: usize, read: fn([u8; N]) -> T) -> Vec<T>
    where
        T: Copy + Default + Send + Sync,
    {
        let mut out = vec![T::default(); panels * k * LANES];
        out.par_chunks_mut(k * LANES)
            .enumerate()
            .for_each(|(p, panel)| {
                for lane in 0..LANES {
                    let Some((part, row)) = self.find(p * LANES + lane) else {
                        break;
                    };
                    let bytes = &part.data()[row * k * N..][..k * N];
                    let (bytes, _) = bytes.as_chunks::<N>();
                    for (place, bytes) in panel[lane..].iter_mut().step_by(LANES).zip(bytes) {
                        *place = read(*bytes);
                    }
                }
            });
        out
    }

    fn scales(&self, panels: usize, k: usize, block: usize) -> PackedScales {
        let blocks = k.div_ceil(block);
        let mut values = Vec::with_capacity(panels * blocks * LANES);
        let mut uniform = true;
        for p in 0..panels {
            for b in 0..blocks {
                let first = self
                    .find(p * LANES)
                    .map_or(0.0, |(w, r)| w.scale(r, b * block));
                for lane in 0..LANES {
                    let scale = self
                        .find(p * LANES + lane)
                        .map_or(first, |(w, r)| w.scale(r, b * block));
                    uniform &= scale.to_bits() == first.to_bits();
                    values.push(scale);
                }
            }
        }
        let width = if uniform { 1 } else { LANES };
        if uniform {
            values = values.into_iter().step_by(LANES).collect();
        }
        PackedScales {
            block,
            width,
            values,
        }
    }
}
