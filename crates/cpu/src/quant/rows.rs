use std::ops::Range;

use swiglu_core::{DType, E4M3, Quantisation, ScaleFormat};

use super::TargetRow;
use crate::activation::{Lanes, Output, UNIT};
use crate::e4m3;
use crate::simd::{Kernel, Simd};

/// Columns that are quantised together: whole groups, and 4 KiB of f32.
pub(super) const CHUNK: usize = 1024;

/// The [`UNIT`] elements from `from[j]` on, of which only `count` are there; the others are the
/// default.
fn padded<T: Copy + Default>(from: &[T], j: usize, count: usize) -> [T; UNIT] {
    let mut unit = [T::default(); UNIT];
    unit[..count].copy_from_slice(&from[j..j + count]);
    unit
}

/// Where the values of a row come from. A trait and no closure, for the reason that
/// [`crate::activation::Visit`] gives.
pub(super) trait Load<S: Simd> {
    /// The values of a unit whose first column is `j` and that has `count` of them, zeros beyond.
    ///
    /// # Safety
    /// The columns are within the source's.
    unsafe fn load(&self, s: S, j: usize, count: usize) -> [S::F; 2];
}

/// Quantises a run of at most [`CHUNK`] columns, in whole groups but for a row's last, from units in
/// T's order.
///
/// # Safety
/// As [`super::Target::row`] and [`Load::load`] of the columns.
#[inline(always)]
pub(super) unsafe fn groups<S: Simd, T: Lanes, L: Load<S>>(
    s: S,
    quant: &Quantisation,
    range: Range<usize>,
    to: &TargetRow<'_>,
    from: &L,
) {
    let group = quant.group();
    let mut scales = [0.0; CHUNK / 32];
    // All scales first: each takes long, and they do not wait for one another.
    let starts = (range.start..range.end).step_by(group);
    for (start, scale) in starts.clone().zip(&mut scales) {
        let end = range.end.min(start + group);
        // Bits order magnitudes as their values do, with NaN above all.
        let mut amax = s.splat_u32(0);
        let mut j = start;
        while j < end {
            // SAFETY: as the caller says; so below.
            let [a, b] = unsafe { from.load(s, j, UNIT.min(end - j)) };
            let larger = s.max_u32(s.bits(s.abs(a)), s.bits(s.abs(b)));
            amax = s.max_u32(amax, larger);
            j += UNIT;
        }
        *scale = quant.scale(f32::from_bits(s.highest(amax)));
        // SAFETY: as above.
        unsafe { to.write_scale(start / group, *scale) };
    }
    for (start, &scale) in starts.zip(&scales) {
        let columns = start..range.end.min(start + group);
        // SAFETY: as above.
        unsafe {
            match quant.format() {
                _ if !scale.is_finite() => {
                    codes::<S, T, L, ANY>(s, columns, to, from, s.splat(scale));
                }
                // Scales are normal powers of two: so are their inverses.
                ScaleFormat::Ue8m0 => {
                    codes::<S, T, L, TIMES>(s, columns, to, from, s.splat(1.0 / scale));
                }
                ScaleFormat::F32 => codes::<S, T, L, OVER>(s, columns, to, from, s.splat(scale)),
            }
        }
    }
}

/// How values are scaled: divided, where anything may be among them and the scale; multiplied; or
/// divided, with results that are in E4M3's range.
const ANY: u8 = 0;
const TIMES: u8 = 1;
const OVER: u8 = 2;

/// Writes the codes of a group.
///
/// # Safety
/// As [`groups`].
#[inline(always)]
unsafe fn codes<S: Simd, T: Lanes, L: Load<S>, const HOW: u8>(
    s: S,
    group: Range<usize>,
    to: &TargetRow<'_>,
    from: &L,
    by: S::F,
) {
    let mut j = group.start;
    while j < group.end {
        let count = UNIT.min(group.end - j);
        // SAFETY: as the caller says.
        let [a, b] = unsafe { from.load(s, j, count) };
        let code = match HOW {
            ANY => [e4m3::encode(s, s.div(a, by)), e4m3::encode(s, s.div(b, by))],
            TIMES => [
                e4m3::encode_within(s, s.mul(a, by)),
                e4m3::encode_within(s, s.mul(b, by)),
            ],
            _ => [
                e4m3::encode_within(s, s.div(a, by)),
                e4m3::encode_within(s, s.div(b, by)),
            ],
        };
        // SAFETY: the columns are the caller's own; the array is a unit.
        unsafe {
            let to = to.codes.add(j);
            if count == UNIT {
                T::store_bytes(s, to, code);
            } else {
                let mut few = [0; UNIT];
                T::store_bytes(s, few.as_mut_ptr(), code);
                to.copy_from_nonoverlapping(few.as_ptr(), count);
            }
        }
        j += UNIT;
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
        assert!(
            self.range.end <= self.values.len(),
            "columns lie within their row"
        );
        for start in self.range.clone().step_by(CHUNK) {
            let range = start..self.range.end.min(start + CHUNK);
            // SAFETY: the range is within the values, and its columns are this call's own.
            unsafe { groups::<S, T, _>(s, self.quant, range, &self.to, &Row(self.values)) };
        }
    }
}

/// A row's values.
struct Row<'a, T>(&'a [T]);

impl<S: Simd, T: Lanes> Load<S> for Row<'_, T> {
    #[inline(always)]
    unsafe fn load(&self, s: S, j: usize, count: usize) -> [S::F; 2] {
        if count == UNIT {
            // SAFETY: the caller vouches for the columns.
            return unsafe { T::load(s, self.0.as_ptr().add(j)) };
        }
        let few = padded(self.0, j, count);
        // SAFETY: the array is a unit.
        unsafe { T::load(s, few.as_ptr()) }
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
            let by = s.splat(scale);
            for j in group.clone().step_by(UNIT) {
                let count = UNIT.min(group.end - j);
                let few;
                let from = if count == UNIT {
                    &self.codes[j..j + UNIT]
                } else {
                    few = padded(self.codes, j, count);
                    &few
                };
                // SAFETY: both are units.
                let [a, b] = unsafe { T::load_bytes(s, from.as_ptr()) };
                let y = [
                    product::<S, T>(s, e4m3::decode(s, a), by),
                    product::<S, T>(s, e4m3::decode(s, b), by),
                ];
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
    let nearest = s.canonical(s.mul(a, b));
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
