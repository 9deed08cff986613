use std::fmt;

use bytemuck::Pod;
use half::{bf16, f16};

/// A type that activations and matmuls compute on: they read it, widen to f32 and round back.
///
/// How *weights* are stored is [`crate::WeightFormat`], how *scales* are is
/// [`crate::ScaleFormat`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Float {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
}

impl Float {
    /// All of them, in the order that suites iterate.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::BF16];

    /// Bytes of an element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// The name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        }
    }

    /// Takes a name back.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.name() == name)
    }
}

impl fmt::Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Evaluates an expression with a name for the type that a [`Float`] stands for.
///
/// ```
/// use swiglu_core::{Element, Float, with_float};
/// fn rounded<T: Element>(x: f32) -> f32 {
///     T::from_f32(x).to_f32()
/// }
/// let round = |float: Float| with_float!(float, T => rounded::<T>(1.001));
/// assert_eq!([round(Float::F32), round(Float::BF16)], [1.001, 1.0]);
/// ```
#[macro_export]
macro_rules! with_float {
    ($float:expr, $T:ident => $value:expr) => {
        match $float {
            $crate::Float::F32 => {
                type $T = f32;
                $value
            }
            $crate::Float::F16 => {
                type $T = $crate::f16;
                $value
            }
            $crate::Float::BF16 => {
                type $T = $crate::bf16;
                $value
            }
        }
    };
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// A type that an activation reads and writes: `f32`, [`f16`](struct@f16) or [`bf16`].
///
/// All rounding is to nearest, ties to even, and every NaN becomes the type's one canonical quiet
/// NaN (`0x7fc00000`, `0x7e00`, `0x7fc0`), so that equal results have equal bits.
pub trait Element: Pod + Default + PartialEq + fmt::Debug + Send + Sync + sealed::Sealed {
    /// This type as a value.
    const FLOAT: Float;
    /// The value, exactly.
    fn to_f32(self) -> f32;
    /// The nearest value of this type.
    fn from_f32(x: f32) -> Self;
    /// The nearest value of this type, in one rounding.
    fn from_f64(x: f64) -> Self;
    /// The bits, widened with zeros.
    fn to_bits(self) -> u32;
    /// The value with these bits; bits that the type does not have are dropped.
    fn from_bits(bits: u32) -> Self;
    /// The number of representable values between two non-NaN values, counting -0 and +0 as one.
    fn ulps_between(self, other: Self) -> u32 {
        let sign = 1_u32 << (8 * Self::FLOAT.size() - 1);
        let order = |x: Self| {
            let b = x.to_bits();
            let magnitude = i64::from(b & (sign - 1));
            if b & sign == 0 { magnitude } else { -magnitude }
        };
        order(self).abs_diff(order(other)) as u32
    }
    /// Whether this is a NaN.
    fn is_nan(self) -> bool {
        self.to_f32().is_nan()
    }
}

/// `x` to f32 by rounding to odd: a second rounding to 22 bits or fewer is then as good as one.
fn round_to_odd(x: f64) -> f32 {
    let nearest = x as f32;
    if f64::from(nearest) == x || x.is_nan() {
        return nearest;
    }
    let bits = nearest.to_bits();
    // The neighbour on the other side of x; of the two, the odd one.
    let other = if (f64::from(nearest) > x) == (x > 0.0) {
        bits - 1
    } else {
        bits + 1
    };
    f32::from_bits(if bits & 1 == 1 { bits } else { other })
}

impl Element for f32 {
    const FLOAT: Float = Float::F32;
    fn to_f32(self) -> f32 {
        self
    }
    fn from_f32(x: f32) -> Self {
        if x.is_nan() {
            f32::from_bits(0x7fc0_0000)
        } else {
            x
        }
    }
    fn from_f64(x: f64) -> Self {
        Self::from_f32(x as f32)
    }
    fn to_bits(self) -> u32 {
        f32::to_bits(self)
    }
    fn from_bits(bits: u32) -> Self {
        f32::from_bits(bits)
    }
}

impl Element for f16 {
    const FLOAT: Float = Float::F16;
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    fn from_f32(x: f32) -> Self {
        if x.is_nan() {
            f16::from_bits(0x7e00)
        } else {
            f16::from_f32(x)
        }
    }
    fn from_f64(x: f64) -> Self {
        <Self as Element>::from_f32(round_to_odd(x))
    }
    fn to_bits(self) -> u32 {
        u32::from(f16::to_bits(self))
    }
    fn from_bits(bits: u32) -> Self {
        f16::from_bits(bits as u16)
    }
}

impl Element for bf16 {
    const FLOAT: Float = Float::BF16;
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
    fn from_f32(x: f32) -> Self {
        if x.is_nan() {
            bf16::from_bits(0x7fc0)
        } else {
            bf16::from_f32(x)
        }
    }
    fn from_f64(x: f64) -> Self {
        <Self as Element>::from_f32(round_to_odd(x))
    }
    fn to_bits(self) -> u32 {
        u32::from(bf16::to_bits(self))
    }
    fn from_bits(bits: u32) -> Self {
        bf16::from_bits(bits as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_rounding_from_f64_differs_from_two_where_it_should() {
        // Just above the tie between 1 and 1 + 2^-7: f32 would round it onto the tie.
        let x = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        assert_eq!(<bf16 as Element>::from_f64(x).to_f32(), 1.0 + 2f32.powi(-7));
        assert_eq!(bf16::from_f32(x as f32).to_f32(), 1.0);
        let h = 1.0 + 2f64.powi(-11) + 2f64.powi(-40);
        assert_eq!(<f16 as Element>::from_f64(h).to_f32(), 1.0 + 2f32.powi(-10));
        assert_eq!(
            <f16 as Element>::from_f64(-h).to_f32(),
            -1.0 - 2f32.powi(-10)
        );
    }

    #[test]
    fn every_16_bit_value_and_midpoint_rounds_to_nearest_even() {
        fn sweep<T: Element>(inf: u32) {
            for bits in 0..inf {
                let (lo, hi) = (T::from_bits(bits), T::from_bits(bits + 1));
                let (a, b) = (f64::from(lo.to_f32()), f64::from(hi.to_f32()));
                assert_eq!(T::from_f64(a).to_bits(), bits);
                if bits + 1 == inf {
                    continue;
                }
                let mid = (a + b) / 2.0;
                let even = if bits % 2 == 0 { bits } else { bits + 1 };
                assert_eq!(T::from_f64(mid).to_bits(), even, "{mid}");
                assert_eq!(T::from_f64(mid.next_up()).to_bits(), bits + 1);
                assert_eq!(T::from_f64(mid.next_down()).to_bits(), bits);
            }
        }
        sweep::<bf16>(0x7f80);
        sweep::<f16>(0x7c00);
    }

    #[test]
    fn nan_is_canonical_and_zeros_are_one_place() {
        assert_eq!(
            Element::to_bits(<bf16 as Element>::from_f64(-f64::NAN)),
            0x7fc0
        );
        assert_eq!(
            Element::to_bits(<f16 as Element>::from_f32(-f32::NAN)),
            0x7e00
        );
        assert_eq!(0.0_f32.ulps_between(-0.0), 0);
        assert_eq!(1.0_f32.ulps_between(1.0 + f32::EPSILON), 1);
    }
}
