//! Panels of FP4: codes with their scales in one stream.
//!
//! ## Method
//! 1. A panel is cut at every [`BLOCK`] of k into *spans*. A span begins with its scales, a cache
//!    line: for each of its four groups of 32 k the 16 outputs' bytes (a last span of fewer groups
//!    has the line all the same). Its codes follow.
//! 2. Codes come in units of 8 k: a word for each of the 16 outputs, a cache line in all. The lower
//!    half of a word holds the even k, its upper half the odd ones: bits 4j of either half are the
//!    code of k 2j and 2j + 1. So one lookup of 16 bits gives two k of bf16, side by side.
//! 3. Missing outputs have codes of 0 under scales of 1.

use swiglu_core::{E8M0, HostWeight, WeightFormat};

use super::BLOCK;
use crate::simd::LANES;

/// k that share a scale.
pub(crate) const GROUP: usize = WeightFormat::FP4_GROUP;
/// k of a unit.
pub(crate) const UNIT: usize = 8;
/// Bytes of a unit.
pub(crate) const UNIT_BYTES: usize = UNIT * LANES / 2;
/// Bytes of the scales that a span begins with.
pub(crate) const SCALE_BYTES: usize = BLOCK / GROUP * LANES;
/// Bytes of a whole span.
pub(crate) const SPAN_BYTES: usize = SCALE_BYTES + BLOCK / UNIT * UNIT_BYTES;

/// The bytes before the codes of a k that begins a unit.
pub(super) const fn offset(k: usize) -> usize {
    k / BLOCK * SPAN_BYTES + SCALE_BYTES + k % BLOCK / UNIT * UNIT_BYTES
}

/// The bytes before the scales of a group of k.
pub(crate) const fn scale_offset(group: usize) -> usize {
    let groups = BLOCK / GROUP;
    group / groups * SPAN_BYTES + group % groups * LANES
}

/// The size of a panel, whose k are whole groups.
pub(super) const fn panel_bytes(k: usize) -> usize {
    match k % BLOCK {
        0 => k / BLOCK * SPAN_BYTES,
        _ => offset(k),
    }
}

/// Whether scales between these bytes are all normal numbers.
pub(super) const fn are_normal([least, highest]: [u8; 2]) -> bool {
    least > 0 && highest < 255
}

/// Whether scales between these bytes times any code are normal bf16, far from their limits.
pub(super) const fn fold([least, highest]: [u8; 2]) -> bool {
    least >= 127 - 100 && highest <= 127 + 7
}

/// The scales of a panel's outputs in a group of k.
pub(super) fn scales(panel: &[u8], group: usize) -> [f32; LANES] {
    let bytes = &panel[scale_offset(group)..][..LANES];
    std::array::from_fn(|lane| E8M0(bytes[lane]).to_f32())
}

/// A unit's codes as they are stored in a row, in a panel's order.
fn unit(stored: u32) -> u32 {
    // Each byte has an even k in its lower half and the odd one after it in its upper half.
    let halves = |bytes: u32| {
        let pairs = (bytes | bytes >> 4) & 0x00ff_00ff;
        (pairs | pairs >> 8) & 0xffff
    };
    halves(stored & 0x0f0f_0f0f) | halves(stored >> 4 & 0x0f0f_0f0f) << 16
}

/// Packs the rows of a panel's outputs, and gives the least and the highest byte of their scales.
pub(super) fn pack(rows: &[(&HostWeight<'_>, usize)], panel: &mut [u8]) -> [u8; 2] {
    let mut range = [u8::MAX, 0];
    for lane in 0..LANES {
        let Some(&(part, row)) = rows.get(lane) else {
            let groups = rows.first().map_or(0, |(part, _)| part.cols() / GROUP);
            for group in 0..groups {
                panel[scale_offset(group) + lane] = E8M0::ONE.0;
            }
            continue;
        };
        let bytes = part.format().row_bytes(part.cols());
        let (units, _) = part.data()[row * bytes..][..bytes].as_chunks();
        let spans = units.chunks(BLOCK / UNIT).zip(panel.chunks_mut(SPAN_BYTES));
        for (units, span) in spans {
            let (places, _) = span[SCALE_BYTES..].as_chunks_mut();
            let places = places[lane..].iter_mut().step_by(LANES);
            for (&stored, place) in units.iter().zip(places) {
                *place = unit(u32::from_le_bytes(stored)).to_le_bytes();
            }
        }
        let groups = part.cols() / GROUP;
        for (group, &scale) in part.scales()[row * groups..][..groups].iter().enumerate() {
            panel[scale_offset(group) + lane] = scale;
            range = [range[0].min(scale), range[1].max(scale)];
        }
    }
    range
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weight::PackedWeight;

    #[test]
    fn a_panel_holds_its_scales_and_then_words_of_eight_k() {
        // Row n holds code (k + n) % 16 at k, under scales that count on.
        let (rows, cols) = (17, 160);
        let code = |n: usize, k: usize| ((k + n) % 16) as u8;
        let pair = |at: usize| code(at / 80, at % 80 * 2) | code(at / 80, at % 80 * 2 + 1) << 4;
        let data: Vec<u8> = (0..rows * cols / 2).map(pair).collect();
        let scales: Vec<u8> = (0..rows * 5).map(|at| 100 + at as u8).collect();
        let w = HostWeight::new([rows, cols], WeightFormat::Fp4, &data, &scales).unwrap();
        let packed = PackedWeight::stacked(&[w]).unwrap();
        let panel = packed.panel(0);
        assert_eq!(panel.len(), (64 + 1024) + (64 + 256));
        assert_eq!(
            (packed.bytes(), packed.shape().panels()),
            (2 * panel.len(), 2)
        );
        assert_eq!(panel[..3], [100, 105, 110]);
        assert_eq!(panel[LANES..][..2], [101, 106]);
        assert_eq!(panel[SPAN_BYTES..][..2], [104, 109]);
        let word = |at: usize| u32::from_le_bytes(panel[at..][..4].try_into().unwrap());
        assert_eq!(word(64), 0x7531_6420);
        assert_eq!(word(64 + 4), 0x8642_7531);
        assert_eq!(word(64 + UNIT_BYTES), 0xfdb9_eca8);
        assert_eq!(word(SPAN_BYTES + 64 + 4), 0x8642_7531);
        assert_eq!(packed.panel(1)[..2], [180, 127]);
        let second = packed.lane_scales(1, 4);
        assert_eq!(second[..2], [E8M0(184).to_f32(), 1.0]);
        assert!(packed.fp4_scales_are_normal() && !packed.scales_fold());
    }
}
