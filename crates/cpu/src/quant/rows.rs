use std::ops::Range;

use swiglu_core::{DType, E4M3, Quantisation, ScaleFormat};

use super::TargetRow;
use crate::activation::{Lanes, Output};
use crate::e4m3;
use crate::simd::{Kernel, LANES, Simd};

/// A range in vectors: the first column of each and how many it has.
fn vectors(range: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
    let Range { start, end } = range;
    (start..end)
        .step_by(LANES)
        .map(move |j| (j, LANES.min(end - j)))
}

/// The [`LANES`] elements from `from[j]` on, of which only `count` are there; the others are the
/// default.
fn padded<T: Copy + Default>(from: &[T], j: usize, count: usize) -> [T; LANES] {
    let mut lanes = [T::default(); LANES];
    lanes[..count].copy_from_slice(&from[j..j + count]);
    lanes
}

/// Quantises a run of columns, in whole groups but for a row's last. `load` gives the values of the
/// columns from its first argument on, zeros beyond the count that is its second.
///
/// # Safety
/// As [`super::Target::row`] of the columns.
#[inline(always)]
pub(super) unsafe fn groups<S: Simd>(
    s: S,
    quant: &Quantisation,
    range: Range<usize>,
    to: &TargetRow<'_>,
    load: impl Fn(usize, usize) -> S::F,
) {
    for start in range.clone().step_by(quant.group()) {
        let group = start..range.end.min(start + quant.group());
        // Bits order magnitudes as their values do, with NaN above all.
        let mut amax = s.splat_u32(0);
        for (j, count) in vectors(group.clone()) {
            amax = s.max_u32(amax, s.bits(s.abs(load(j, count))));
        }
        let scale = quant.scale(f32::from_bits(s.highest(amax)));
        // SAFETY: as the caller says; so below.
        unsafe { to.write_scale(start / quant.group(), scale) };
        if !scale.is_finite() {
            let code = |y| e4m3::encode(s, s.div(y, s.splat(scale)));
            // SAFETY: as above.
            unsafe { codes(s, group, to, &load, code) };
            continue;
        }
        match quant.format() {
            ScaleFormat::Ue8m0 => {
                // Scales are normal powers of two: so are their inverses.
                let by = s.splat(1.0 / scale);
                let code = |y| e4m3::encode_within(s, s.mul(y, by));
                // SAFETY: as above.
                unsafe { codes(s, group, to, &load, code) };
            }
            ScaleFormat::F32 => {
                let by = s.splat(scale);
                let code = |y| e4m3::encode_within(s, s.div(y, by));
                // SAFETY: as above.
                unsafe { codes(s, group, to, &load, code) };
            }
        }
    }
}

/// Writes the codes of a group.
///
/// # Safety
/// As [`groups`].
#[inline(always)]
unsafe fn codes<S: Simd>(
    s: S,
    group: Range<usize>,
    to: &TargetRow<'_>,
    load: impl Fn(usize, usize) -> S::F,
    code: impl Fn(S::F) -> S::I,
) {
    for (j, count) in vectors(group) {
        let code = code(load(j, count));
        // SAFETY: the columns are the caller's own; the array has LANES elements.
        unsafe {
            let to = to.codes.add(j);
            if count == LANES {
                s.store_u8(to, code);
            } else {
                let mut last = [0; LANES];
                s.store_u8(last.as_mut_ptr(), code);
                to.copy_from_nonoverlapping(last.as_ptr(), count);
            }
        }
    }
}

/// The quantisation of a run of a row's values.
pub(super) struct Quantise<'a, T> {
    pub(super) quant: &'a Quantisation,
    pub(super) values: &'a [T],
    pub(super) range: Range<usize>,
    pub(super) to: TargetRow<'a>,
}

impl<T: Lanes> Kernel for Quantise<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { values, range, .. } = self;
        let load = |j, count| {
            let last;
            let from = if count == LANES {
                &values[j..j + LANES]
            } else {
                last = padded(values, j, count);
                &last
            };
            // SAFETY: both have LANES elements.
            unsafe { T::load(s, from.as_ptr()) }
        };
        // SAFETY: the range is this call's own.
        unsafe { groups(s, self.quant, range, &self.to, load) }
    }
}

/// The values of a run of a row's codes.
pub(super) struct Dequantise<'a, T, F> {
    pub(super) group: usize,
    pub(super) codes: &'a [u8],
    pub(super) range: Range<usize>,
    /// The scale of a group of the row.
    pub(super) scale: F,
    /// The row.
    pub(super) to: *mut T,
}

/// Scales from which products with codes, and what those lose in rounding, are normal numbers.
const LEAST: f32 = f32::from_bits((127 - 80) << 23);

impl<T: Lanes, F: Fn(usize) -> f32> Kernel for Dequantise<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for start in self.range.clone().step_by(self.group) {
            let group = start..self.range.end.min(start + self.group);
            let scale = (self.scale)(start / self.group);
            if scale.abs() < LEAST {
                for j in group {
                    let y = f64::from(E4M3(self.codes[j]).to_f32()) * f64::from(scale);
                    // SAFETY: the columns are this call's own; so below.
                    unsafe { self.to.add(j).write(T::from_f64(y)) };
                }
                continue;
            }
            for (j, count) in vectors(group) {
                let last;
                let from = if count == LANES {
                    &self.codes[j..j + LANES]
                } else {
                    last = padded(self.codes, j, count);
                    &last
                };
                // SAFETY: both have LANES elements.
                let code = unsafe { s.load_u8(from.as_ptr()) };
                let y = product::<S, T>(s, e4m3::decode(s, code), s.splat(scale));
                // SAFETY: as above.
                unsafe { self.to.store(s, j, y, count) };
            }
        }
    }
}

/// a · b as it is rounded to T in one rounding afterwards: to odd where T is narrower than f32. The
/// product's rounding error must be a normal number.
#[inline(always)]
fn product<S: Simd, T: Lanes>(s: S, a: S::F, b: S::F) -> S::F {
    let nearest = s.mul(a, b);
    if T::DTYPE == DType::F32 {
        return nearest;
    }
    let magnitude = s.abs(nearest);
    let error = s.fma(s.abs(a), s.abs(b), s.neg(magnitude));
    let bits = s.bits(magnitude);
    // An inexact product that is even gives way to its neighbour on the other side.
    let (zero, up) = (s.splat(0.0), s.float(s.splat_u32(1)));
    let down = s.float(s.splat_u32(u32::MAX));
    let step = s.select(
        s.lt(zero, error),
        up,
        s.select(s.lt(error, zero), down, zero),
    );
    let is_even = s.add_u32(s.and(bits, s.splat_u32(1)), s.splat_u32(u32::MAX));
    let step = s.and(s.bits(step), is_even);
    let sign = s.and(s.bits(nearest), s.splat_u32(1 << 31));
    s.float(s.or(s.add_u32(bits, step), sign))
}
