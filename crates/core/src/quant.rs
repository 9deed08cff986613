use std::fmt;

use crate::{E4M3, E8M0, Error, Result, Rounding, ScaleFormat};

/// How rows of numbers become [`E4M3`] codes: each group of elements along a row shares a scale,
/// and the last group of a row may be short.
///
/// ```text
/// amax  = max(|y| of the group, floor)        NaN if any element is
/// scale = amax/448, or that rounded up to a power of two
/// code  = e4m3(clamp(y/scale, ±448))          to nearest, ties to even
/// ```
///
/// A group with a NaN has a NaN scale and NaN codes throughout; other groups do not see it. The
/// formula is DeepSeek's; `materialize` and the floor are where engines differ.
///
/// ```
/// use swiglu_core::{Quantization, ScaleFormat};
/// # fn main() -> swiglu_core::Result<()> {
/// let vllm = Quantization::new(128, ScaleFormat::F32)?.with_floor(1e-10)?;
/// assert_eq!(vllm.groups(300), 3);
/// assert!(Quantization::new(100, ScaleFormat::F32).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantization {
    group: usize,
    format: ScaleFormat,
    floor: f32,
    materialize: bool,
}

impl Quantization {
    /// The groups' lengths that kernels exist for.
    pub const GROUPS: [usize; 3] = [128, 64, 32];
    /// DeepSeek's least amax.
    pub const FLOOR: f32 = 1e-4;
    /// The floors that are accepted: with them no scale is subnormal and no quotient overflows.
    pub const FLOORS: std::ops::RangeInclusive<f32> = 1e-30..=1e30;

    /// Groups of `group` elements, with [`Self::FLOOR`] and `materialize`.
    ///
    /// # Errors
    /// A group that is none of [`Self::GROUPS`].
    pub fn new(group: usize, format: ScaleFormat) -> Result<Self> {
        if !Self::GROUPS.contains(&group) {
            return Err(Error::argument("group", "128, 64 or 32", group));
        }
        Ok(Self {
            group,
            format,
            floor: Self::FLOOR,
            materialize: true,
        })
    }

    /// DeepSeek-V4: groups of 128, [`ScaleFormat::E8M0`].
    pub const fn deepseek_v4() -> Self {
        Self {
            group: 128,
            format: ScaleFormat::E8M0,
            floor: Self::FLOOR,
            materialize: true,
        }
    }

    /// DeepSeek-V4.1: as V4, in groups of 32.
    pub const fn deepseek_v4_1() -> Self {
        Self {
            group: 32,
            ..Self::deepseek_v4()
        }
    }

    /// This with another least amax: vLLM and `SGLang` take 1e-10.
    ///
    /// # Errors
    /// A floor outside [`Self::FLOORS`].
    pub fn with_floor(self, floor: f32) -> Result<Self> {
        if !Self::FLOORS.contains(&floor) {
            let expected = format!(
                "from {:e} to {:e}",
                Self::FLOORS.start(),
                Self::FLOORS.end()
            );
            return Err(Error::argument("floor", expected, floor));
        }
        Ok(Self { floor, ..self })
    }

    /// Whether a fused activation rounds y to the input's type before amax, as two passes would
    /// (DeepSeek's order, the default), or takes it in f32 (DeepGEMM's).
    #[must_use]
    pub const fn with_materialize(self, materialize: bool) -> Self {
        Self {
            materialize,
            ..self
        }
    }

    /// Checks that a fused activation in this rounding can be followed by it.
    ///
    /// # Errors
    /// `materialize` = false with [`Rounding::Eager`].
    pub fn check_rounding(&self, rounding: Rounding) -> Result<()> {
        if rounding == Rounding::Eager && !self.materialize {
            let expected = "true in eager rounding, whose result is rounded";
            return Err(Error::argument("materialize", expected, false));
        }
        Ok(())
    }

    /// Elements that share a scale.
    pub const fn group(&self) -> usize {
        self.group
    }

    /// How scales are stored.
    pub const fn format(&self) -> ScaleFormat {
        self.format
    }

    /// The least amax.
    pub const fn floor(&self) -> f32 {
        self.floor
    }

    /// Whether a fused activation rounds before amax: see [`Self::with_materialize`].
    pub const fn materialize(&self) -> bool {
        self.materialize
    }

    /// Groups in a row of `d` elements (G).
    pub const fn groups(&self, d: usize) -> usize {
        d.div_ceil(self.group)
    }

    /// The scale of a group whose largest magnitude is `amax`, and for [`ScaleFormat::E8M0`] its
    /// byte's value. NaN gives NaN, and so does infinity as a power of two.
    pub fn scale(&self, amax: f32) -> f32 {
        // Not `max`, which would swallow a NaN.
        let amax = if amax < self.floor { self.floor } else { amax };
        let scale = amax / E4M3::MAX;
        match self.format {
            ScaleFormat::F32 if scale.is_nan() => f32::from_bits(0x7fc0_0000),
            ScaleFormat::F32 => scale,
            ScaleFormat::E8M0 => E8M0::ceil(scale).to_f32(),
        }
    }

    /// The code of `y` under a scale.
    pub fn code(&self, y: f32, scale: f32) -> E4M3 {
        E4M3::from_f32_saturating(y / scale)
    }
}

/// The name and what is set, such as `fp8(group=128, scales=e8m0)`.
impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fp8(group={}, scales={}", self.group, self.format)?;
        if self.floor != Self::FLOOR {
            write!(f, ", floor={:e}", self.floor)?;
        }
        if !self.materialize {
            f.write_str(", not materialized")?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_floored_and_rounded_up_to_powers_of_two() {
        let v4 = Quantization::deepseek_v4();
        assert_eq!(v4.scale(448.0), 1.0);
        assert_eq!(v4.scale(448.0_f32.next_up()), 2.0);
        assert_eq!(v4.scale(448.0_f32.next_down()), 1.0);
        assert_eq!(v4.scale(224.0), 0.5);
        // 1e-4/448 = 2.2e-7 lies between 2^-23 and 2^-22.
        assert_eq!(v4.scale(0.0), 2f32.powi(-22));
        let f32s = Quantization::new(64, ScaleFormat::F32).unwrap();
        assert_eq!(f32s.scale(0.0), 1e-4 / 448.0);
        assert_eq!(f32s.with_floor(1e-10).unwrap().scale(0.0), 1e-10 / 448.0);
        assert_eq!(f32s.scale(100.0), 100.0 / 448.0);
    }

    #[test]
    fn a_group_that_is_not_finite_shows_it() {
        let v4 = Quantization::deepseek_v4();
        assert!(v4.scale(f32::NAN).is_nan());
        assert!(v4.scale(f32::INFINITY).is_nan());
        assert_eq!(v4.code(1.0, f32::NAN).0, 0x7f);
        assert_eq!(v4.code(-1.0, -f32::NAN).0, 0x7f);
        let f32s = Quantization::new(32, ScaleFormat::F32).unwrap();
        assert_eq!(f32s.scale(f32::INFINITY), f32::INFINITY);
        for nan in [0x7fc0_0000, 0x7fc0_1234, 0xffff_ffff] {
            assert_eq!(f32s.scale(f32::from_bits(nan)).to_bits(), 0x7fc0_0000);
        }
    }

    #[test]
    fn what_no_kernel_has_is_refused() {
        for group in [0, 1, 16, 100, 256] {
            assert!(Quantization::new(group, ScaleFormat::F32).is_err());
        }
        for floor in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-38] {
            assert!(Quantization::deepseek_v4().with_floor(floor).is_err());
        }
    }

    /// The exponent trick against exact arithmetic in f64, for one float in `step`.
    fn sweep(step: usize) -> u64 {
        let mut checked = 0;
        for bits in (0..=0x7f7f_ffff_u32).step_by(step) {
            let x = f32::from_bits(bits);
            let scale = E8M0::ceil(x);
            if scale.0 == 255 {
                assert!(f64::from(x) > 2f64.powi(127), "{x:e}");
            } else {
                let s = 2f64.powi(i32::from(scale.0) - 127);
                assert!(s >= f64::from(x), "{x:e} {s:e}");
                assert!(scale.0 == 0 || s / 2.0 < f64::from(x), "{x:e} {s:e}");
            }
            checked += 1;
        }
        checked
    }

    #[test]
    fn the_exponent_trick_is_exact_on_a_sample() {
        assert!(sweep(2_039) > 1_000_000);
        for exponent in 1..255_u32 {
            for bits in [-1, 0, 1].map(|n| (exponent << 23).wrapping_add_signed(n)) {
                let x = f32::from_bits(bits);
                let s = f64::from(E8M0::ceil(x).to_f32());
                assert!(
                    exponent == 254 && bits & 1 == 1 || s >= f64::from(x),
                    "{x:e}"
                );
            }
        }
    }

    #[test]
    #[ignore = "all 2^31 positive floats: minutes"]
    fn the_exponent_trick_is_exact_on_every_positive_float() {
        assert_eq!(sweep(1), 0x7f80_0000);
    }
}
