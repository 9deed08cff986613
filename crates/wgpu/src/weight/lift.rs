//! A power of two that keeps scales, and codes times scales, away from subnormal numbers, which
//! drivers may take for zero.

use swiglu_core::{HostWeight, WeightFormat};

/// The least scale whose product with the least code of E4M3, 2^-9, is a normal number: 2^-117.
const LEAST: f32 = f32::MIN_POSITIVE * 512.0;

/// The same of E2M1, whose least code is 2^-1.
const LEAST_FP4: f32 = f32::MIN_POSITIVE * 2.0;

/// The largest scale whose product with 6, the largest code of E2M1, is a number of f32: 2^125.
const LARGEST_FP4: f32 = 1.0 / (f32::MIN_POSITIVE * 2.0);

/// What brings the largest scale, 2^127, there.
const LOWERED: Lift = Lift(-2);

/// What brings the least number of f32, 2^-149, to [`LEAST`].
const MOST: i8 = 32;

/// The logarithm of what a weight's scales are multiplied by when they are loaded, or FP4's by the kernels. What a
/// matmul makes is divided by it, so that sums beyond 2^(128 - lift) overflow: at 2^96, if the weight has the least of
/// all scales. Everything else is exact. FP4's is below 0 where codes times scales would overflow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lift(i8);

impl Lift {
    /// 0 where no scale asks for it.
    pub(crate) fn of(parts: &[HostWeight<'_>]) -> Self {
        let scales = parts.iter().flat_map(|part| {
            let format = part.format().scaling().map(|(format, _)| format);
            format.into_iter().flat_map(move |format| {
                let count = part.scales().len() / format.size();
                (0..count).map(move |i| format.read(part.scales(), i).abs())
            })
        });
        if parts.iter().any(|part| part.format() != WeightFormat::Fp4) {
            return Self::of_scales(scales, LEAST);
        }
        let largest = scales.clone().filter(|s| s.is_finite()).fold(0.0, f32::max);
        match Self::of_scales(scales, LEAST_FP4) {
            Self(0) if largest > LARGEST_FP4 => LOWERED,
            lift => lift,
        }
    }

    /// What does for the scales of both: those that are too small come first.
    pub(crate) fn and(self, other: Self) -> Self {
        match self.max(other) {
            Self(0) => self.min(other),
            higher => higher,
        }
    }

    fn of_scales(scales: impl Iterator<Item = f32>, enough: f32) -> Self {
        let nonzero = scales.filter(|&scale| scale > 0.0);
        let least = nonzero.fold(f32::INFINITY, f32::min);
        let enough = |lift: &i8| Self(*lift).lifted(least) >= enough;
        Self((0..MOST).find(enough).unwrap_or(MOST))
    }

    fn factor(self) -> f32 {
        2_f32.powi(self.0.into())
    }

    pub(super) fn logarithm(self) -> i32 {
        i32::from(self.0)
    }

    /// A scale as the device has it.
    pub(crate) fn lifted(self, scale: f32) -> f32 {
        scale * self.factor()
    }

    /// A weight, code times scale, as the device has it.
    pub(super) fn lifted_weight(self, weight: f64) -> f32 {
        (weight * f64::from(self.factor())) as f32
    }

    /// What results are multiplied by.
    pub(crate) fn undone(self) -> f32 {
        self.factor().recip()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_scale_is_subnormal_on_the_device_nor_its_product_with_the_least_code() {
        let least = f32::from_bits(1);
        for (scales, lift) in [
            (vec![1.0, 0.0, f32::NAN, f32::INFINITY], 0),
            (vec![LEAST, 3.0], 0),
            (vec![LEAST / 2.0, 3.0], 1),
            (vec![1.0, -f32::MIN_POSITIVE / 2.0], 10),
            (vec![1e-40, 1e-38], 16),
            (vec![least], 32),
            (vec![0.0], 0),
            (vec![], 0),
        ] {
            let got = Lift::of_scales(scales.iter().map(|s: &f32| s.abs()), LEAST);
            assert_eq!(got, Lift(lift), "{scales:?}");
            for &scale in scales.iter().filter(|s| s.is_finite() && **s != 0.0) {
                let lifted = got.lifted(scale);
                assert!((lifted * 2f32.powi(-9)).is_normal(), "{scale:e}");
                // Nothing is lost on the way there and back.
                assert_eq!(
                    f64::from(lifted) * f64::from(got.undone()),
                    f64::from(scale)
                );
            }
        }
    }

    #[test]
    fn codes_of_fp4_times_their_scales_are_normal_numbers() {
        let lift = |scales: &[u8]| {
            let mut bytes = scales.to_vec();
            bytes.resize(scales.len().next_multiple_of(4), 127);
            let data = vec![0; bytes.len() * 16];
            let w = HostWeight::new([1, 32 * bytes.len()], WeightFormat::Fp4, &data, &bytes);
            Lift::of(&[w.unwrap()])
        };
        for (scales, expected) in [
            (&[2, 252][..], 0),
            (&[1, 127], 1),
            (&[0, 254], 2),
            (&[2, 253], -2),
            (&[255], 0),
        ] {
            assert_eq!(lift(scales), Lift(expected), "{scales:?}");
        }
        let [low, none, high] = [-2, 0, 1].map(Lift);
        assert_eq!((low.and(none), none.and(low)), (low, low));
        assert_eq!((low.and(high), high.and(none)), (high, high));
    }
}
