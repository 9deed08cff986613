//! Powers of two as scales.

use std::fmt;

use bytemuck::{Pod, Zeroable};

/// A power of two as a scale: byte `b` is 2^(b-127), and 255 is NaN. There is no sign and no zero.
#[derive(Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
#[repr(transparent)]
pub struct E8M0(pub u8);

impl E8M0 {
    /// The scale 1.
    pub const ONE: Self = Self(127);
    /// Not a number.
    pub const NAN: Self = Self(255);

    /// The least power of two that is not below `x` ≥ 0: the exponent's bits, plus one if any bit
    /// of the mantissa is set. Subnormals give 2^-126 or 2^-127; beyond 2^127 there is none: NaN.
    pub const fn ceil(x: f32) -> Self {
        let bits = x.to_bits() & 0x7fff_ffff;
        // Byte 0 is 2^-127, a subnormal float with a mantissa.
        if bits <= 0x0040_0000 {
            return Self(0);
        }
        let byte = (bits >> 23) + (bits & 0x7f_ffff != 0) as u32;
        Self(if byte > 255 { 255 } else { byte as u8 })
    }

    /// The value, exactly: byte 0 is the subnormal 2^-127.
    pub const fn to_f32(self) -> f32 {
        f32::from_bits(match self.0 {
            0 => 0x0040_0000,
            255 => 0x7fc0_0000,
            b => (b as u32) << 23,
        })
    }
}

impl fmt::Debug for E8M0 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#04x} ({:e})", self.0, self.to_f32())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e8m0_is_a_power_of_two() {
        assert_eq!(E8M0(127).to_f32(), 1.0);
        assert_eq!(E8M0(0).to_f32(), 2f32.powi(-127));
        assert_eq!(E8M0(254).to_f32(), 2f32.powi(127));
        assert!(E8M0(255).to_f32().is_nan());
        assert_eq!(E8M0::ceil(f32::NAN), E8M0::NAN);
        assert_eq!(E8M0::ceil(f32::INFINITY), E8M0::NAN);
        assert_eq!(E8M0::ceil(2f32.powi(-127)).0, 0);
        assert_eq!(E8M0::ceil(2f32.powi(-127).next_up()).0, 1);
    }
}
