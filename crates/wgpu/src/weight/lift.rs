//! A power of two that keeps scales, and codes times scales, away from subnormal numbers, which
//! drivers may take for zero.

use swiglu_core::HostWeight;

/// The least scale whose product with the least code of E4M3, 2^-9, is a normal number: 2^-117.
const LEAST: f32 = f32::MIN_POSITIVE * 512.0;

/// What brings the least number of f32, 2^-149, to [`LEAST`].
const MOST: u8 = 32;

/// The logarithm of what a weight's scales are multiplied by when they are loaded. What a matmul
/// makes is divided by it, so that sums beyond 2^(128 - lift) overflow: at 2^96, if the weight has
/// the least of all scales. Everything else is exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lift(u8);

impl Lift {
    /// 0 where no scale asks for it.
    pub(super) fn of(parts: &[HostWeight<'_>]) -> Self {
        let scales = parts.iter().flat_map(|part| {
            let format = part.format().scaling().map(|(format, _)| format);
            format.into_iter().flat_map(move |format| {
                let count = part.scales().len() / format.size();
                (0..count).map(move |i| format.read(part.scales(), i).abs())
            })
        });
        Self::of_scales(scales)
    }

    fn of_scales(scales: impl Iterator<Item = f32>) -> Self {
        let nonzero = scales.filter(|&scale| scale > 0.0);
        let least = nonzero.fold(f32::INFINITY, f32::min);
        let enough = |lift: &u8| Self(*lift).lifted(least) >= LEAST;
        Self((0..MOST).find(enough).unwrap_or(MOST))
    }

    fn factor(self) -> f32 {
        (1_u64 << self.0) as f32
    }

    pub(super) fn logarithm(self) -> i32 {
        i32::from(self.0)
    }

    /// A scale as the device has it.
    pub(super) fn lifted(self, scale: f32) -> f32 {
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
            let got = Lift::of_scales(scales.iter().map(|s: &f32| s.abs()));
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
}
