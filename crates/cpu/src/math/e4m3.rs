//! [`swiglu_core::E4M3`] codes in vectors, a code in the lowest byte of each lane.

use swiglu_core::E4M3;

use crate::simd::Simd;

/// The values of codes.
#[inline(always)]
pub(crate) fn decode<S: Simd>(s: S, code: S::I) -> S::F {
    let sign = s.shl::<24>(s.and(code, s.splat_u32(0x80)));
    let magnitude = s.and(code, s.splat_u32(0x7f));
    // The exponent's bias is 7 there and 127 here; multiplying mends it for subnormals too.
    let small = s.float(s.or(sign, s.shl::<20>(magnitude)));
    let value = s.mul(small, s.splat(f32::from_bits((127 + 120) << 23)));
    // 0x7f is the one magnitude of 480.
    let nan = s.lt(s.splat(E4M3::MAX), s.abs(value));
    s.select(nan, s.splat(f32::NAN), value)
}

/// The codes of values: [`E4M3::from_f32_saturating`].
#[inline(always)]
pub(crate) fn encode<S: Simd>(s: S, value: S::F) -> S::I {
    let max = s.splat(E4M3::MAX);
    let bounded = s.clamp_below(s.clamp_above(value, max), s.neg(max));
    let code = s.float(encode_within(s, bounded));
    s.bits(s.select(s.is_nan(value), s.float(s.splat_u32(0x7f)), code))
}

/// The same of values that are rounded to at most [`E4M3::MAX`]: magnitudes below 464.
#[inline(always)]
pub(crate) fn encode_within<S: Simd>(s: S, value: S::F) -> S::I {
    let magnitude = s.abs(value);
    let bits = s.bits(magnitude);
    // To nearest even at the 20th bit, and the exponent's bias from 127 to 7.
    let odd = s.and(s.shr::<20>(bits), s.splat_u32(1));
    let half = s.splat_u32(0x7_ffff_u32.wrapping_sub(120 << 23));
    let normal = s.shr::<20>(s.add_u32(bits, s.add_u32(odd, half)));
    // Below 2^-6 codes are multiples of 2^-9, the last bit of a float near 2^14.
    let shift = 16_384.0_f32;
    let rounded = s.bits(s.add(magnitude, s.splat(shift)));
    let subnormal = s.add_u32(rounded, s.splat_u32(shift.to_bits().wrapping_neg()));
    let is_subnormal = s.lt(magnitude, s.splat(0.015_625));
    let code = s.select(is_subnormal, s.float(subnormal), s.float(normal));
    let sign = s.and(s.shr::<24>(s.bits(value)), s.splat_u32(0x80));
    s.or(s.bits(code), sign)
}

/// Stores the codes of values of bf16 times `by`, the first's at even places and the second's at odd
/// ones. `by` is a power of two, and the products are at most 448.
///
/// # Safety
/// Two bytes a lane can be written.
#[inline(always)]
pub(crate) unsafe fn store_of_bf16<S: Simd>(s: S, to: *mut u8, a: [S::F; 2], by: f32) {
    // SAFETY: the caller vouches for the bytes; so below.
    if unsafe { s.store_e4m3_of_bf16(to, a, by) } {
        return;
    }
    let by = s.splat(by);
    let even = encode_within(s, s.mul(a[0], by));
    let odd = encode_within(s, s.mul(a[1], by));
    // SAFETY: a word of two codes a lane.
    unsafe { s.store_u16(to.cast(), s.or(even, s.shl::<8>(odd))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InstructionSet;
    use crate::simd::{self, Kernel, LANES};

    struct Encode([f32; LANES]);

    impl Kernel for Encode {
        type Output = [u8; LANES];
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [u8; LANES] {
            let mut codes = [0; LANES];
            // SAFETY: both arrays have LANES elements.
            unsafe { s.store_u8(codes.as_mut_ptr(), encode(s, s.load_f32(self.0.as_ptr()))) };
            codes
        }
    }

    struct Decode([u8; LANES]);

    impl Kernel for Decode {
        type Output = [f32; LANES];
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [f32; LANES] {
            let mut values = [0.0; LANES];
            // SAFETY: both arrays have LANES elements.
            unsafe { s.store_f32(values.as_mut_ptr(), decode(s, s.load_u8(self.0.as_ptr()))) };
            values
        }
    }

    fn sets() -> impl Iterator<Item = InstructionSet> {
        InstructionSet::ALL.into_iter().filter(|s| s.available())
    }

    #[test]
    fn every_code_is_decoded_and_encoded_as_by_the_definition() {
        for set in sets() {
            for first in (0..=255_u8).step_by(LANES) {
                let codes = std::array::from_fn(|i| first + i as u8);
                // SAFETY: the set is available.
                let values = unsafe { simd::dispatch(set, Decode(codes)) };
                // SAFETY: as above.
                let back = unsafe { simd::dispatch(set, Encode(values)) };
                for ((code, value), back) in codes.into_iter().zip(values).zip(back) {
                    let expected = E4M3(code).to_f32();
                    assert!(value == expected || value.is_nan() && expected.is_nan());
                    assert_eq!(back, if value.is_nan() { 0x7f } else { code }, "{set}");
                }
            }
        }
    }

    #[test]
    fn values_around_every_boundary_are_encoded_as_by_the_definition() {
        let mut values = vec![
            f32::INFINITY,
            f32::MAX,
            1e-40,
            f32::NAN,
            -f32::NAN,
            0.0,
            -0.0,
        ];
        for code in 0..0x7e {
            let (a, b) = (E4M3(code).to_f32(), E4M3(code + 1).to_f32());
            let middle = (a + b) / 2.0;
            for x in [a, middle, b, 0.3 * a + 0.7 * b] {
                values.extend([x, x.next_up(), x.next_down()]);
            }
        }
        values.extend((0..u32::MAX - 65_537).step_by(65_537).map(f32::from_bits));
        values.resize(values.len().next_multiple_of(LANES), 1.0);
        for set in sets() {
            for &values in values.as_chunks::<LANES>().0 {
                for values in [values, values.map(|x| -x)] {
                    // SAFETY: the set is available.
                    let codes = unsafe { simd::dispatch(set, Encode(values)) };
                    assert_eq!(
                        codes,
                        values.map(|x| E4M3::from_f32_saturating(x).0),
                        "{set}"
                    );
                }
            }
        }
    }
}
