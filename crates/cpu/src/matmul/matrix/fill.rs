//! The vectors around a matrix unit: codes to tiles of bf16, and sums times their scales.

use std::ops::Range;

use crate::cold::cold_path;
use crate::matmul::decode::{
    CODE_BIAS, e2m1_pair, e2m1_words, e4m3_pairs, exponents, load_unit, pair,
};
use crate::simd::tiles::{DEPTH, TILE};
use crate::simd::{self, Kernel, LANES, Simd};
use crate::weight::{GROUP, PackedWeight, PanelFormat, fp4};

/// Bytes of a cache line.
pub(super) const LINE_BYTES: usize = 64;

/// Fills tiles with some steps of a panel, and with zeros where k ends.
pub(super) struct Fill<'a> {
    pub(super) weight: &'a PackedWeight,
    pub(super) panel: usize,
    pub(super) steps: Range<usize>,
    /// Whether scales are multiplied into the codes.
    pub(super) folds: bool,
    /// What is decoded after this.
    pub(super) later: Option<*const u8>,
    /// Whether only the first half of that is asked for.
    pub(super) half: bool,
    pub(super) to: &'a mut [u16],
}

impl Kernel for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let shape = self.weight.shape();
        if shape.format == PanelFormat::Fp4 {
            return self.fp4(s);
        }
        let panel = self.weight.panel(self.panel);
        // Panels hold whole groups of k, of zeros where k ends.
        let end = shape.k.next_multiple_of(GROUP);
        let ks = self.steps.start * DEPTH..end.min(self.steps.end * DEPTH);
        let (groups, rest) = self.to.split_at_mut(ks.len() * LANES);
        rest.fill(0);
        if shape.format != PanelFormat::E4M3 {
            let stored = &panel[ks.start * LANES * 2..ks.end * LANES * 2];
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(groups);
            bytes.copy_from_slice(stored);
            return;
        }
        let (mut k, mut later, mut group) = (ks.start, self.later, 0_usize);
        let codes = panel[ks.start * LANES..ks.end * LANES].as_chunks::<{ GROUP * LANES }>();
        let mut pairs = codes
            .0
            .iter()
            .zip(groups.as_chunks_mut::<{ GROUP * LANES }>().0);
        while k < ks.end {
            let block = k / shape.scale_block();
            let by = match self.folds {
                true => self
                    .weight
                    .lane_scales(self.panel, block)
                    .map(|x| x * CODE_BIAS),
                false => [CODE_BIAS; LANES],
            };
            // SAFETY: the array has LANES elements.
            let by = unsafe { s.load_f32(by.as_ptr()) };
            // As what it adds to an exponent of bf16, unless a lane is NaN.
            let exponents = exponents(s, by);
            let are_powers = s.all(s.lt(by, s.splat(f32::INFINITY)));
            // What fills the last group up belongs to the last block.
            let last = match (block + 1) * shape.scale_block() {
                next if self.folds && next < shape.k => ks.end.min(next),
                _ => ks.end,
            };
            for (from, to) in pairs.by_ref().take((last - k).div_ceil(GROUP)) {
                // A group of codes is a cache line.
                group += 1;
                if let Some(line) = &mut later
                    && !(self.half && group % 2 == 0)
                {
                    simd::prefetch_second_level(*line);
                    *line = line.wrapping_add(LINE_BYTES);
                }
                // SAFETY: a group of codes is a vector, and one of bf16 is two.
                unsafe {
                    let words = s.bits(s.load_f32(from.as_ptr().cast()));
                    let to: *mut f32 = to.as_mut_ptr().cast();
                    let short = match are_powers {
                        true => s.bf16_of_e4m3(words, exponents),
                        false => None,
                    };
                    let [a, b] = match short {
                        Some(pairs) => pairs,
                        None => {
                            cold_path();
                            e4m3_pairs(s, words, by)
                        }
                    };
                    s.store_f32(to, s.float(a));
                    s.store_f32(to.add(LANES), s.float(b));
                }
            }
            k = last;
        }
    }
}

impl Fill<'_> {
    /// The same for FP4: a step is a group of k, a unit four words of bf16 for each output.
    #[inline(always)]
    fn fp4<S: Simd>(self, s: S) {
        let panel = self.weight.panel(self.panel);
        let mut later = self.later;
        for (step, to) in self.steps.zip(self.to.as_chunks_mut::<TILE>().0) {
            let scales = self.weight.lane_scales(self.panel, step);
            // SAFETY: the array has LANES elements.
            let by = unsafe { s.load_f32(scales.as_ptr()) };
            let codes = &panel[self.weight.shape().format.offset(step * DEPTH)..];
            let units = codes.chunks_exact(fp4::UNIT_BYTES);
            for (from, to) in units.zip(to.as_chunks_mut::<{ fp4::UNIT * LANES }>().0) {
                // A unit is a cache line; the scales' line is left to the processor.
                if let Some(line) = &mut later {
                    simd::prefetch_second_level(*line);
                    *line = line.wrapping_add(LINE_BYTES);
                }
                let to: *mut f32 = to.as_mut_ptr().cast();
                // SAFETY: a unit of codes is a vector, and one of bf16 is four.
                unsafe {
                    let unit = load_unit(s, from.as_ptr());
                    if self.folds {
                        s.store_f32(to, s.float(pair(s, e2m1_pair::<S, 0>(s, unit), by)));
                        s.store_f32(
                            to.add(LANES),
                            s.float(pair(s, e2m1_pair::<S, 1>(s, unit), by)),
                        );
                        s.store_f32(
                            to.add(2 * LANES),
                            s.float(pair(s, e2m1_pair::<S, 2>(s, unit), by)),
                        );
                        s.store_f32(
                            to.add(3 * LANES),
                            s.float(pair(s, e2m1_pair::<S, 3>(s, unit), by)),
                        );
                    } else {
                        s.store_f32(to, s.float(e2m1_words::<S, 0>(s, unit)));
                        s.store_f32(to.add(LANES), s.float(e2m1_words::<S, 1>(s, unit)));
                        s.store_f32(to.add(2 * LANES), s.float(e2m1_words::<S, 2>(s, unit)));
                        s.store_f32(to.add(3 * LANES), s.float(e2m1_words::<S, 3>(s, unit)));
                    }
                }
            }
        }
    }
}

/// Adds a block's sums, times its scales, to the totals.
pub(super) struct AddScaled<'a> {
    pub(super) scales: [f32; LANES],
    pub(super) from: &'a [f32],
    pub(super) to: &'a mut [f32],
    pub(super) begins: bool,
}

impl Kernel for AddScaled<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: the array has LANES elements; so do the chunks.
        let scales = unsafe { s.load_f32(self.scales.as_ptr()) };
        let totals = self.to.as_chunks_mut::<LANES>().0;
        for (from, to) in self.from.as_chunks::<LANES>().0.iter().zip(totals) {
            // SAFETY: as above.
            unsafe {
                let before = match self.begins {
                    true => s.splat(0.0),
                    false => s.load_f32(to.as_ptr()),
                };
                let total = s.fma(scales, s.load_f32(from.as_ptr()), before);
                s.store_f32(to.as_mut_ptr(), total);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use swiglu_core::{HostWeight, ScaleFormat, WeightFormat};

    use super::*;
    use crate::InstructionSet;

    /// Every code in every place of a group, beside each of these, at scales of both ends.
    fn filled(set: InstructionSet, others: [u8; 3], nan: bool) -> Vec<u16> {
        let (n, k) = (LANES, 256);
        let mut codes = vec![0; n * k];
        for (row, codes) in codes.chunks_exact_mut(k).enumerate() {
            for (i, code) in codes.iter_mut().enumerate() {
                *code = match (i / GROUP + i + row) % GROUP {
                    0 => (i / GROUP * 16 + row) as u8,
                    at => others[at - 1],
                };
            }
        }
        codes[0] = if nan { 0x7f } else { codes[0] };
        codes.iter_mut().skip(1).for_each(|code| {
            if *code & 0x7f == 0x7f {
                *code &= 0x80;
            }
        });
        let format = WeightFormat::Fp8 {
            scales: ScaleFormat::E8M0,
            block: [8, 64],
        };
        let scales = [27, 134, 100, 120, 127, 128, 99, 126];
        let host = HostWeight::new([n, k], format, &codes, &scales).unwrap();
        let weight = PackedWeight::stacked(std::slice::from_ref(&host)).unwrap();
        assert!(weight.scales_fold());
        let mut to = vec![0xa5a5; n * k];
        let fill = Fill {
            weight: &weight,
            panel: 0,
            steps: 0..k / DEPTH,
            folds: true,
            later: None,
            half: false,
            to: &mut to,
        };
        // SAFETY: the set is available.
        unsafe { simd::dispatch(set, fill) };
        for (i, &bits) in to.iter().enumerate() {
            let (row, k) = (i / 2 % LANES, i / (2 * LANES) * 2 + i % 2);
            let y = f32::from_bits(u32::from(bits) << 16);
            let scale = host.scale(row, k);
            if nan && row == 0 && k < 64 {
                assert!(y.is_nan(), "{set}: {y}");
            } else {
                let code = swiglu_core::E4M3(codes[row * 256 + k]);
                assert_eq!(
                    y.to_bits(),
                    (code.to_f32() * scale).to_bits(),
                    "{set}: {code:?}"
                );
            }
        }
        to
    }

    #[test]
    fn codes_are_bf16_to_the_bit_on_every_set() {
        // Normal numbers, none but zeros, and subnormal ones among others.
        for others in [[0x38, 0xfe, 0x08], [0; 3], [0x80, 0x87, 0x40]] {
            for nan in [false, true] {
                for set in InstructionSet::ALL.into_iter().filter(|s| s.available()) {
                    filled(set, others, nan);
                }
            }
        }
    }
}
