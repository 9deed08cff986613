//! How the stored elements of a panel become f32, exactly.

use crate::simd::{LANES, Simd};
use crate::weight::{GROUP, fp4};

/// A type of stored elements.
pub(super) trait Decode {
    /// Whether it is more than a shift and a mask.
    const IS_F8: bool = false;
    /// Bytes of a panel's group of k.
    const BYTES: usize;

    /// The elements of the group's k number J, for [`LANES`] outputs.
    ///
    /// # Safety
    /// `group` points to [`Self::BYTES`] bytes.
    unsafe fn element<S: Simd, const J: usize>(s: S, group: *const u8) -> S::F;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct BF16;
pub(super) struct E4M3;

impl Decode for F32 {
    const BYTES: usize = GROUP * LANES * 4;

    #[inline(always)]
    unsafe fn element<S: Simd, const J: usize>(s: S, group: *const u8) -> S::F {
        // SAFETY: the caller vouches for the group; so below.
        unsafe { s.load_f32(group.cast::<f32>().add(J * LANES)) }
    }
}

impl Decode for F16 {
    const BYTES: usize = GROUP * LANES * 2;

    #[inline(always)]
    unsafe fn element<S: Simd, const J: usize>(s: S, group: *const u8) -> S::F {
        // SAFETY: as above.
        unsafe { s.load_f16(group.cast::<u16>().add(J * LANES)) }
    }
}

/// Two k in a word: an f32's upper half each.
impl Decode for BF16 {
    const BYTES: usize = GROUP * LANES * 2;

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

/// Four k in a word. NaN is none of its business: see [`crate::weight`].
impl Decode for E4M3 {
    const IS_F8: bool = true;
    const BYTES: usize = GROUP * LANES;

    #[inline(always)]
    unsafe fn element<S: Simd, const J: usize>(s: S, group: *const u8) -> S::F {
        // SAFETY: as above.
        let words = s.bits(unsafe { s.load_f32(group.cast()) });
        // The exponent's bias is 7 there and 127 here; multiplying mends it for subnormals too.
        let value = code::<S, J>(s, words);
        s.mul(value, s.splat(CODE_BIAS))
    }
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
