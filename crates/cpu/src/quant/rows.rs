use std::marker::PhantomData;
use std::ops::Range;

use swiglu_core::{E4M3, Element, Float, Quantization, ScaleFormat};

use super::TargetRow;
use crate::element::{UNIT, VectorElement};
use crate::math::e4m3;
use crate::simd::{Kernel, Outlined, Simd};

/// Columns that are quantized together: whole groups, and 4 KiB of f32.
pub(super) const CHUNK: usize = 1024;

/// Memory on the stack in whole cache lines: a vector that crosses from one into the next takes two
/// accesses.
#[repr(C, align(64))]
pub(super) struct Room<T, const N: usize>(pub(super) [T; N]);

/// The [`UNIT`] elements from `from[j]` on, of which only `count` are there; the others are the
/// default.
fn padded<T: Copy + Default>(from: &[T], j: usize, count: usize) -> [T; UNIT] {
    let mut unit = [T::default(); UNIT];
    unit[..count].copy_from_slice(&from[j..j + count]);
    unit
}

/// Where the values of a row come from.
pub(super) trait Values {
    type Of: VectorElement;

    /// A unit whose first column is `j` and that has `count` of them, zeros beyond, in `room` if it is
    /// not anywhere yet.
    ///
    /// # Safety
    /// The columns are within the source's.
    unsafe fn unit(&self, j: usize, count: usize, room: &mut [Self::Of; UNIT]) -> *const Self::Of;
}

/// The quantization of a run of at most [`CHUNK`] columns, in whole groups but for a row's last, from
/// units in T's order.
pub(super) struct Groups<'a, 'b, T, V> {
    quant: &'a Quantization,
    range: Range<usize>,
    to: &'a TargetRow<'b>,
    from: &'a V,
    order: PhantomData<T>,
}

impl<'a, 'b, T, V> Groups<'a, 'b, T, V> {
    /// # Safety
    /// As [`super::Target::row`] and [`Values::unit`] of the columns.
    pub(super) const unsafe fn new(
        quant: &'a Quantization,
        range: Range<usize>,
        to: &'a TargetRow<'b>,
        from: &'a V,
    ) -> Self {
        Self {
            quant,
            range,
            to,
            from,
            order: PhantomData,
        }
    }
}

impl<S: Simd, T: VectorElement, V: Values> Outlined<S> for Groups<'_, '_, T, V> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        let Self {
            quant,
            range,
            to,
            from,
            ..
        } = self;
        // SAFETY: the caller of `new` vouches for the columns.
        unsafe { groups::<S, T, V>(s, quant, range, to, from) }
    }
}

/// # Safety
/// As [`Groups::new`].
#[inline(always)]
unsafe fn groups<S: Simd, T: VectorElement, V: Values>(
    s: S,
    quant: &Quantization,
    range: Range<usize>,
    to: &TargetRow<'_>,
    from: &V,
) {
    let group = quant.group();
    let mut scales = [0.0; CHUNK / 32];
    // For each unit, where its scale is a power of two as usual.
    let mut inverses = [0.0; CHUNK / UNIT];
    let mut usual = V::Of::FLOAT == Float::BF16;
    // All scales first: each takes long, and they do not wait for one another.
    let (mut number, mut start, mut unit) = (range.start / group, range.start, 0);
    for place in &mut scales {
        if start >= range.end {
            break;
        }
        let end = range.end.min(start + group);
        // SAFETY: as the caller says; so below.
        unsafe {
            let amax = amax::<S, V>(s, start..end, from);
            let scale = if let Some(byte) = e8m0_byte(quant, amax) {
                to.write_e8m0(number, byte as u8);
                f32::from_bits(byte << 23)
            } else {
                let scale = quant.scale(amax);
                to.write_scale(number, scale);
                usual = false;
                scale
            };
            *place = scale;
        }
        for _ in (0..group).step_by(UNIT) {
            inverses[unit % (CHUNK / UNIT)] = inverse(*place);
            unit += 1;
        }
        (number, start) = (number + 1, end);
    }
    let mut rest = range.clone();
    if usual {
        rest.start = rest.end - range.len() % UNIT;
        // SAFETY: as above.
        unsafe { codes_of_bf16::<S, V>(s, range.start..rest.start, to, from, &inverses) };
    }
    if rest.is_empty() {
        return;
    }
    let starts = (range.start..range.end).step_by(group);
    for (start, &scale) in starts.zip(&scales) {
        let columns = start.max(rest.start)..rest.end.min(start + group);
        // SAFETY: as above.
        unsafe {
            match quant.format() {
                _ if !scale.is_finite() => {
                    codes::<S, T, V, ANY>(s, columns, to, from, scale);
                }
                ScaleFormat::E8M0 => codes::<S, T, V, TIMES>(s, columns, to, from, inverse(scale)),
                ScaleFormat::F32 => codes::<S, T, V, OVER>(s, columns, to, from, scale),
            }
        }
    }
}

/// The inverse of a scale that is a normal power of two, as those of E8M0 are: so is its inverse, of the
/// opposite exponent.
#[inline(always)]
const fn inverse(scale: f32) -> f32 {
    f32::from_bits((254_u32 << 23).wrapping_sub(scale.to_bits()))
}

/// The largest magnitude of some columns.
///
/// # Safety
/// As [`Groups::new`].
#[inline(always)]
unsafe fn amax<S: Simd, V: Values>(s: S, columns: Range<usize>, from: &V) -> f32 {
    let mut room = [V::Of::default(); UNIT];
    let mut amax = s.splat_u32(0);
    let (mut j, rest) = (columns.start, columns.len() % UNIT);
    while j < columns.end - rest {
        // SAFETY: as the caller says; so below.
        amax = unsafe { V::Of::larger(s, amax, from.unit(j, UNIT, &mut room)) };
        j += UNIT;
    }
    if rest > 0 {
        // SAFETY: as above.
        amax = unsafe { V::Of::larger(s, amax, from.unit(j, rest, &mut room)) };
    }
    V::Of::largest(s, amax)
}

/// Writes the codes of whole units of bf16 whose scales are powers of two: whatever the groups, in one
/// loop.
///
/// # Safety
/// As [`groups`].
#[inline(always)]
unsafe fn codes_of_bf16<S: Simd, V: Values>(
    s: S,
    columns: Range<usize>,
    to: &TargetRow<'_>,
    from: &V,
    inverses: &[f32; CHUNK / UNIT],
) {
    let (codes, mut room) = (to.codes, [V::Of::default(); UNIT]);
    let (mut j, mut unit) = (columns.start, 0);
    while j < columns.end {
        // SAFETY: as the caller says.
        unsafe {
            let values = V::Of::load(s, from.unit(j, UNIT, &mut room));
            e4m3::store_of_bf16(s, codes.add(j), values, inverses[unit % (CHUNK / UNIT)]);
        }
        (j, unit) = (j + UNIT, unit + 1);
    }
}

/// The byte of the scale of a group whose largest magnitude is that, by its bits and without the
/// divisions of [`Quantization::scale`]: the least power of two that is not below a 448th of it, and 448
/// is 1.75 · 2^8. Both agree, as a quotient by 448 rounds to a power of two only where it is one. None
/// near the ends of f32's powers, and for scales in another format.
#[inline(always)]
fn e8m0_byte(quant: &Quantization, amax: f32) -> Option<u32> {
    const LARGEST_MANTISSA: u32 = 0x60_0000;
    // On bits, which are ordered as numbers are that have no sign, with NaN above all.
    let amax = amax.to_bits().max(quant.floor().to_bits());
    let usual = (20 << 23..240 << 23).contains(&amax);
    let above = amax + (0x7f_ffff - LARGEST_MANTISSA);
    (usual && quant.format() == ScaleFormat::E8M0).then_some((above >> 23).wrapping_sub(8))
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
unsafe fn codes<S: Simd, T: VectorElement, V: Values, const HOW: u8>(
    s: S,
    group: Range<usize>,
    to: &TargetRow<'_>,
    from: &V,
    by: f32,
) {
    let mut room = [V::Of::default(); UNIT];
    let mut j = group.start;
    while j < group.end {
        let count = UNIT.min(group.end - j);
        // SAFETY: as the caller says; the columns are the caller's own, and the array is a unit.
        unsafe {
            let unit = V::Of::load(s, from.unit(j, count, &mut room));
            let to = to.codes.add(j);
            if count == UNIT {
                store_codes::<S, T, V, HOW>(s, to, unit, by);
            } else {
                let mut few = [0; UNIT];
                store_codes::<S, T, V, HOW>(s, few.as_mut_ptr(), unit, by);
                to.copy_from_nonoverlapping(few.as_ptr(), count);
            }
        }
        j += UNIT;
    }
}

/// Writes the codes of a unit in T's order.
///
/// # Safety
/// [`UNIT`] bytes can be written.
#[inline(always)]
unsafe fn store_codes<S: Simd, T: VectorElement, V: Values, const HOW: u8>(
    s: S,
    to: *mut u8,
    [a, b]: [S::F; 2],
    by: f32,
) {
    let by = s.splat(by);
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
    // SAFETY: the caller vouches for it.
    unsafe { T::store_bytes(s, to, code) }
}

/// The quantization of a run of a row's values.
pub(super) struct Quantize<'a, T> {
    pub(super) quant: &'a Quantization,
    pub(super) values: &'a [T],
    pub(super) range: Range<usize>,
    pub(super) to: TargetRow<'a>,
}

impl<T: VectorElement> Kernel for Quantize<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        assert!(
            self.range.end <= self.values.len(),
            "columns lie within their row"
        );
        let row = Row {
            values: self.values,
            first: 0,
        };
        for start in self.range.clone().step_by(CHUNK) {
            let range = start..self.range.end.min(start + CHUNK);
            // SAFETY: the range is within the values, and its columns are this call's own.
            s.call(unsafe { Groups::<T, _>::new(self.quant, range, &self.to, &row) });
        }
    }
}

/// Some of a row's values, from column `first` on.
pub(super) struct Row<'a, T> {
    pub(super) values: &'a [T],
    pub(super) first: usize,
}

impl<T: VectorElement> Values for Row<'_, T> {
    type Of = T;

    #[inline(always)]
    unsafe fn unit(&self, j: usize, count: usize, room: &mut [T; UNIT]) -> *const T {
        let j = j - self.first;
        if count == UNIT {
            // SAFETY: the caller vouches for the columns.
            return unsafe { self.values.as_ptr().add(j) };
        }
        *room = padded(self.values, j, count);
        room.as_ptr()
    }
}

/// The values of a run of a row's codes.
pub(super) struct Dequantize<'a, T, F> {
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

impl<T: VectorElement, F: Fn(usize) -> f32> Kernel for Dequantize<'_, T, F> {
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
                unsafe { store(s, self.to.add(j), y, count) };
            }
        }
    }
}

/// Stores the first `count` of a unit.
///
/// # Safety
/// So many elements can be written.
#[inline(always)]
unsafe fn store<S: Simd, T: VectorElement>(s: S, to: *mut T, y: [S::F; 2], count: usize) {
    if count == UNIT {
        // SAFETY: the caller vouches for a unit; so below.
        return unsafe { T::store(s, to, y) };
    }
    let mut few = [T::default(); UNIT];
    // SAFETY: the array is a unit, of which `count` are copied.
    unsafe {
        T::store(s, few.as_mut_ptr(), y);
        to.copy_from_nonoverlapping(few.as_ptr(), count);
    }
}

/// a · b as it is rounded to T in one rounding afterwards: to odd where T is narrower than f32. The
/// product's rounding error must be a normal number.
#[inline(always)]
fn product<S: Simd, T: VectorElement>(s: S, a: S::F, b: S::F) -> S::F {
    let nearest = s.canonical(s.mul(a, b));
    if T::FLOAT == Float::F32 {
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
