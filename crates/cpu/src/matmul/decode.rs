//! How the stored elements of a panel become f32, or pairs of bf16, exactly.

use crate::cold::cold_path;
use crate::simd::{LANES, Simd};
use crate::weight::{GROUP, fp4};

/// A type of stored elements.
pub(super) trait Decode {
    /// Whether it is more than a shift and a mask.
    const IS_F8: bool = false;
    /// Bytes of a panel's group of k.
    const BYTES: usize;
}

/// One that becomes f32.
pub(super) trait Elements: Decode {
    /// The elements of the group's k number J, for [`LANES`] outputs.
    ///
    /// # Safety
    /// `group` points to [`Decode::BYTES`] bytes.
    unsafe fn element<S: Simd, const J: usize>(s: S, group: *const u8) -> S::F;
}

/// One that becomes pairs of bf16.
pub(super) trait Pairs: Decode {
    /// The group's two pairs of k, for [`LANES`] outputs: each a word, the first k in its lower half.
    ///
    /// # Safety
    /// `group` points to [`Decode::BYTES`] bytes.
    unsafe fn pairs<S: Simd>(s: S, group: *const u8) -> [S::I; 2];
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct BF16;
pub(super) struct E4M3;

impl Decode for F32 {
    const BYTES: usize = GROUP * LANES * 4;
}

impl Elements for F32 {
    #[inline(always)]
    unsafe fn element<S: Simd, const J: usize>(s: S, group: *const u8) -> S::F {
        // SAFETY: the caller vouches for the group; so below.
        unsafe { s.load_f32(group.cast::<f32>().add(J * LANES)) }
    }
}

impl Decode for F16 {
    const BYTES: usize = GROUP * LANES * 2;
}

impl Elements for F16 {
    #[inline(always)]
    unsafe fn element<S: Simd, const J: usize>(s: S, group: *const u8) -> S::F {
        // SAFETY: as above.
        unsafe { s.load_f16(group.cast::<u16>().add(J * LANES)) }
    }
}

/// Two k in a word: an f32's upper half each.
impl Decode for BF16 {
    const BYTES: usize = GROUP * LANES * 2;
}

impl Elements for BF16 {
    #[inline(always)]
    unsafe fn element<S: Simd, const J: usize>(s: S, group: *const u8) -> S::F {
        // SAFETY: as above.
        let words = s.bits(unsafe { s.load_f32(group.cast::<f32>().add(J / 2 * LANES)) });
        s.float(if J.is_multiple_of(2) {
            s.shl::<16>(words)
        } else {
            s.and(words, s.splat_u32(0xffff_0000))
        })
    }
}

impl Pairs for BF16 {
    #[inline(always)]
    unsafe fn pairs<S: Simd>(s: S, group: *const u8) -> [S::I; 2] {
        let group: *const f32 = group.cast();
        // SAFETY: as above.
        unsafe {
            [
                s.bits(s.load_f32(group)),
                s.bits(s.load_f32(group.add(LANES))),
            ]
        }
    }
}

/// Four k in a word. NaN is none of its business: see [`crate::weight`].
impl Decode for E4M3 {
    const IS_F8: bool = true;
    const BYTES: usize = GROUP * LANES;
}

impl Elements for E4M3 {
    #[inline(always)]
    unsafe fn element<S: Simd, const J: usize>(s: S, group: *const u8) -> S::F {
        // SAFETY: as above.
        let words = s.bits(unsafe { s.load_f32(group.cast()) });
        // The exponent's bias is 7 there and 127 here; multiplying mends it for subnormals too.
        let value = code::<S, J>(s, words);
        s.mul(value, s.splat(CODE_BIAS))
    }
}

impl Pairs for E4M3 {
    #[inline(always)]
    unsafe fn pairs<S: Simd>(s: S, group: *const u8) -> [S::I; 2] {
        // SAFETY: as above.
        let words = s.bits(unsafe { s.load_f32(group.cast()) });
        let by = s.splat(CODE_BIAS);
        match s.bf16_of_e4m3(words, exponents(s, by)) {
            Some(pairs) => pairs,
            None => {
                cold_path();
                e4m3_pairs(s, words, by)
            }
        }
    }
}

/// 1 as bf16.
const EXPONENT_OF_1: u32 = 0x3f80;

/// What a power of two adds to an exponent of bf16, in both halves of a lane.
#[inline(always)]
pub(super) fn exponents<S: Simd>(s: S, by: S::F) -> S::I {
    let exponents = s.shr::<16>(s.bits(by));
    let exponents = s.add_u32(exponents, s.splat_u32(EXPONENT_OF_1.wrapping_neg()));
    s.or(exponents, s.shl::<16>(exponents))
}

/// The pairs of bf16 that words of four codes are, times powers of two: exact where they are normal.
#[inline(always)]
pub(super) fn e4m3_pairs<S: Simd>(s: S, words: S::I, by: S::F) -> [S::I; 2] {
    [
        pair(s, [code::<S, 0>(s, words), code::<S, 1>(s, words)], by),
        pair(s, [code::<S, 2>(s, words), code::<S, 3>(s, words)], by),
    ]
}

/// Two numbers, times powers of two exact in bf16, as a word.
#[inline(always)]
pub(super) fn pair<S: Simd>(s: S, [even, odd]: [S::F; 2], by: S::F) -> S::I {
    let (even, odd) = (s.bits(s.mul(even, by)), s.bits(s.mul(odd, by)));
    s.or(s.shr::<16>(even), odd)
}

/// What takes a [`code`] to its value.
pub(super) const CODE_BIAS: f32 = f32::from_bits((127 + 120) << 23);

/// The code number J of words of four, its sign in place and its magnitude where the three bits of
/// mantissa are the highest of an f32's: its value times 2^-120.
#[inline(always)]
pub(super) fn code<S: Simd, const J: usize>(s: S, words: S::I) -> S::F {
    // The code in the upper byte of each half, its sign left there.
    let halves = if J.is_multiple_of(2) {
        s.shl::<8>(words)
    } else {
        words
    };
    let halves = s.and(s.sar_u16::<4>(halves), s.splat_u32(0x87f0_87f0));
    s.float(if J < 2 {
        s.shl::<16>(halves)
    } else {
        s.and(halves, s.splat_u32(0xffff_0000))
    })
}

/// Of a unit of FP4 the k number 2J and the one after it, for [`LANES`] outputs.
#[inline(always)]
pub(super) fn e2m1_pair<S: Simd, const J: u32>(s: S, unit: S::I) -> [S::F; 2] {
    let pair = e2m1_words::<S, J>(s, unit);
    [
        s.float(s.shl::<16>(pair)),
        s.float(s.and(pair, s.splat_u32(0xffff_0000))),
    ]
}

/// The same two as words of bf16, the first in the lower half.
#[inline(always)]
pub(super) fn e2m1_words<S: Simd, const J: u32>(s: S, unit: S::I) -> S::I {
    s.e2m1(match J {
        0 => unit,
        1 => s.shr::<4>(unit),
        2 => s.shr::<8>(unit),
        _ => s.shr::<12>(unit),
    })
}

/// A unit of FP4 as words.
///
/// # Safety
/// `unit` points to [`fp4::UNIT_BYTES`] bytes.
#[inline(always)]
pub(super) unsafe fn load_unit<S: Simd>(s: S, unit: *const u8) -> S::I {
    const { assert!(fp4::UNIT_BYTES == 4 * LANES) };
    // SAFETY: the caller vouches for it.
    s.bits(unsafe { s.load_f32(unit.cast()) })
}
