//! FP4 as weights store it.

use std::fmt;

/// A four-bit float: sign, two bits of exponent (bias 1), one of mantissa, as the OCP
/// specification has it. The magnitudes are 0, 0.5, 1, 1.5, 2, 3, 4 and 6; there is no infinity
/// and no NaN. Only the lower four bits count.
///
/// ```
/// use swiglu_core::E2M1;
/// let [even, odd] = E2M1::unpack(0xf2);
/// assert_eq!((even.to_f32(), odd.to_f32()), (1.0, -6.0));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct E2M1(pub u8);

impl E2M1 {
    /// The largest value.
    pub const MAX: f32 = 6.0;

    /// The value of every code.
    pub const TABLE: [f32; 16] = [
        0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
    ];

    /// The value, exactly.
    pub const fn to_f32(self) -> f32 {
        Self::TABLE[(self.0 & 0xf) as usize]
    }

    /// The two codes of a byte: the lower half, which is the even column, comes first.
    pub const fn unpack(byte: u8) -> [Self; 2] {
        [Self(byte & 0xf), Self(byte >> 4)]
    }

    /// The byte of two codes, as [`Self::unpack`] takes it apart.
    pub const fn pack([even, odd]: [Self; 2]) -> u8 {
        (even.0 & 0xf) | odd.0 << 4
    }

    /// The nearest code, ties to even; values beyond ±6 become ±6. NaN, which has no code, becomes
    /// 6: in a weight it is its group's scale that says NaN.
    pub fn from_f32_saturating(x: f32) -> Self {
        // Midpoints between neighbors; at each of them the even code is taken.
        const MIDPOINTS: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];
        if x.is_nan() {
            return Self(7);
        }
        let above = |(code, &midpoint): (u8, &f32)| {
            x.abs() > midpoint || x.abs() == midpoint && code % 2 == 1
        };
        let code = (0..7).zip(&MIDPOINTS).filter(|&m| above(m)).count() as u8;
        Self(code | u8::from(x.is_sign_negative()) << 3)
    }
}

impl fmt::Debug for E2M1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#03x} ({})", self.0, self.to_f32())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e2m1_has_the_values_of_its_bits() {
        for code in 0..16_u8 {
            let (exponent, mantissa) = (code >> 1 & 3, f32::from(code & 1));
            let magnitude = match exponent {
                0 => mantissa / 2.0,
                e => 2f32.powi(i32::from(e) - 1) * (1.0 + mantissa / 2.0),
            };
            let value = if code & 8 == 0 { magnitude } else { -magnitude };
            assert_eq!(E2M1(code).to_f32().to_bits(), value.to_bits());
            // Bits above the code's have no say.
            assert_eq!(E2M1(code | 0x50).to_f32().to_bits(), value.to_bits());
        }
    }

    #[test]
    fn bytes_are_two_codes_of_which_the_lower_half_is_first() {
        assert_eq!(E2M1::unpack(0x1f), [E2M1(0xf), E2M1(1)]);
        for byte in 0..=255 {
            assert_eq!(E2M1::pack(E2M1::unpack(byte)), byte);
        }
    }

    #[test]
    fn every_code_survives_and_midpoints_go_to_even() {
        for code in 0..16 {
            assert_eq!(E2M1::from_f32_saturating(E2M1(code).to_f32()).0, code);
        }
        for code in 0..7 {
            let middle = (E2M1(code).to_f32() + E2M1(code + 1).to_f32()) / 2.0;
            let even = code + code % 2;
            assert_eq!(E2M1::from_f32_saturating(middle).0, even, "{middle}");
            assert_eq!(E2M1::from_f32_saturating(middle.next_up()).0, code + 1);
            assert_eq!(E2M1::from_f32_saturating(middle.next_down()).0, code);
            assert_eq!(E2M1::from_f32_saturating(-middle).0, even | 8);
        }
        assert_eq!(E2M1::from_f32_saturating(1e30).0, 7);
        assert_eq!(E2M1::from_f32_saturating(f32::NEG_INFINITY).0, 15);
        assert_eq!(E2M1::from_f32_saturating(f32::NAN).0, 7);
    }
}
