use std::fmt;

use crate::{Error, Result};

/// A clamp's limit: finite and above 0. "No limit" is `Option::None`, never a value of this type.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Limit(f32);

impl Limit {
    pub(super) const TEN: Self = Self(10.0);
    pub(super) const SEVEN: Self = Self(7.0);

    /// A limit.
    ///
    /// # Errors
    /// Anything but a finite number above 0.
    pub fn new(limit: f32) -> Result<Self> {
        super::number("limit", limit, true).map(Self)
    }

    /// The limit that a model's configuration means by `value`: absent, 0 and +inf are *off*.
    ///
    /// # Errors
    /// NaN and negative numbers, and numbers that f32 takes to 0 or to infinity.
    pub fn from_config(value: Option<f64>) -> Result<Option<Self>> {
        match value {
            None => Ok(None),
            Some(v) if v == 0.0 || v == f64::INFINITY => Ok(None),
            Some(v) if v > 0.0 => Self::new(v as f32).map(Some),
            Some(v) => Err(Error::argument(
                "limit",
                "a number above 0, or 0, null or infinity for none",
                v,
            )),
        }
    }

    /// The limit.
    pub const fn get(self) -> f32 {
        self.0
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_finite_and_positive() {
        for bad in [0.0, -0.0, -1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = Limit::new(bad).unwrap_err().to_string();
            assert!(error.starts_with("limit: expected"), "{error}");
        }
        assert_eq!(Limit::new(0.333).unwrap().get(), 0.333);
    }

    #[test]
    fn a_configuration_switches_the_limit_off_in_four_ways() {
        for off in [None, Some(0.0), Some(-0.0), Some(f64::INFINITY)] {
            assert_eq!(Limit::from_config(off).unwrap(), None);
        }
        assert_eq!(Limit::from_config(Some(10.0)).unwrap(), Some(Limit(10.0)));
        for bad in [-1.0, f64::NAN, f64::NEG_INFINITY, 1e300, 1e-300] {
            assert!(Limit::from_config(Some(bad)).is_err(), "{bad}");
        }
    }
}
