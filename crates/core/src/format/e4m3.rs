//! FP8 as weights and quantized activations store it.

use std::fmt;

use bytemuck::{Pod, Zeroable};

/// An eight-bit float: sign, four bits of exponent (bias 7), three of mantissa, in the "fn" form
/// of the OCP specification: no infinity, `0x7f` and `0xff` are NaN, the largest value is 448.
#[derive(Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
#[repr(transparent)]
pub struct E4M3(pub u8);

impl E4M3 {
    /// The largest finite value.
    pub const MAX: f32 = 448.0;

    /// The value of every code.
    pub const TABLE: [f32; 256] = {
        let mut table = [0.0; 256];
        let mut code = 0;
        while code < 256 {
            table[code] = decode(code as u8);
            code += 1;
        }
        table
    };

    /// The value, exactly.
    pub const fn to_f32(self) -> f32 {
        Self::TABLE[self.0 as usize]
    }

    /// The nearest code, ties to even; values beyond ±448 become ±448, and every NaN `0x7f`.
    pub fn from_f32_saturating(x: f32) -> Self {
        if x.is_nan() {
            return Self(0x7f);
        }
        let sign = ((x.to_bits() >> 31) as u8) << 7;
        let magnitude = x.abs();
        if magnitude >= Self::MAX {
            return Self(sign | 0x7e);
        }
        let code = if magnitude < 2f32.powi(-6) {
            // Subnormal: a multiple of 2^-9. Adding 2^14 leaves exactly those bits, rounded.
            ((magnitude + 16384.0).to_bits() & 0xf) as u8
        } else {
            let bits = magnitude.to_bits();
            let rounded = bits + 0x7_ffff + ((bits >> 20) & 1);
            ((rounded >> 20) - ((127 - 7) << 3)) as u8
        };
        Self(sign | code)
    }
}

const fn decode(code: u8) -> f32 {
    let sign = ((code & 0x80) as u32) << 24;
    let exponent = ((code >> 3) & 0xf) as u32;
    let mantissa = (code & 7) as u32;
    if code & 0x7f == 0x7f {
        return f32::from_bits(sign | 0x7fc0_0000);
    }
    let magnitude = if exponent == 0 {
        mantissa as f32 / 512.0
    } else {
        f32::from_bits(((exponent + 127 - 7) << 23) | (mantissa << 20))
    };
    f32::from_bits(sign | magnitude.to_bits())
}

impl fmt::Debug for E4M3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#04x} ({})", self.0, self.to_f32())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_has_the_values_of_the_fn_format() {
        let value = |code| E4M3(code).to_f32();
        assert_eq!(value(0x7e), 448.0);
        assert_eq!(value(0xfe), -448.0);
        assert_eq!(value(0x01), 2f32.powi(-9));
        assert_eq!(value(0x08), 2f32.powi(-6));
        assert_eq!(value(0x38), 1.0);
        assert_eq!(value(0x80).to_bits(), (-0.0_f32).to_bits());
        assert!(value(0x7f).is_nan() && value(0xff).is_nan());
        assert_eq!((0..=255).filter(|&c| value(c).is_nan()).count(), 2);
        assert_eq!((0..=255).filter(|&c| value(c).is_infinite()).count(), 0);
    }

    #[test]
    fn every_code_survives_and_midpoints_go_to_even() {
        for code in (0..=255).filter(|c| c & 0x7f != 0x7f) {
            assert_eq!(E4M3::from_f32_saturating(E4M3(code).to_f32()).0, code);
        }
        for code in 0..0x7e {
            let (a, b) = (E4M3(code).to_f32(), E4M3(code + 1).to_f32());
            let mid = (a + b) / 2.0;
            let even = code + code % 2;
            assert_eq!(E4M3::from_f32_saturating(mid).0, even, "{mid}");
            assert_eq!(E4M3::from_f32_saturating(mid.next_up()).0, code + 1);
            assert_eq!(E4M3::from_f32_saturating(mid.next_down()).0, code);
            assert_eq!(E4M3::from_f32_saturating(-mid).0, even | 0x80);
        }
        assert_eq!(E4M3::from_f32_saturating(1e30).0, 0x7e);
        assert_eq!(E4M3::from_f32_saturating(f32::NEG_INFINITY).0, 0xfe);
        assert!(E4M3::from_f32_saturating(f32::NAN).to_f32().is_nan());
    }
}
