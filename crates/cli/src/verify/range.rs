//! Neighboring values of a storage type, by their places.

use swiglu::Element;

/// The place of a value among all of its type, -0 and +0 as one.
pub fn order<T: Element>(x: T) -> i64 {
    let sign = 1_u32 << (8 * T::FLOAT.size() - 1);
    let magnitude = i64::from(x.to_bits() & (sign - 1));
    if x.to_bits() & sign == 0 {
        magnitude
    } else {
        -magnitude
    }
}

/// The value at a place.
pub fn at_place<T: Element>(place: i64) -> f64 {
    let sign = 1_u32 << (8 * T::FLOAT.size() - 1);
    let magnitude = place.unsigned_abs() as u32;
    let bits = if place < 0 {
        magnitude | sign
    } else {
        magnitude
    };
    f64::from(T::from_bits(bits).to_f32())
}

/// Neighboring values of a type, and whether NaN is among them. Without values, `low` exceeds `high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub low: i64,
    pub high: i64,
    pub nan: bool,
}

impl Range {
    pub const NAN: Self = Self {
        low: i64::MAX,
        high: i64::MIN,
        nan: true,
    };
    pub const ZERO: Self = Self {
        low: 0,
        high: 0,
        nan: false,
    };

    /// One value.
    pub fn of<T: Element>(x: T) -> Self {
        if x.is_nan() {
            return Self::NAN;
        }
        Self {
            low: order(x),
            high: order(x),
            nan: false,
        }
    }

    /// Both, with what lies between them.
    pub fn and(self, other: Self) -> Self {
        Self {
            low: self.low.min(other.low),
            high: self.high.max(other.high),
            nan: self.nan || other.nan,
        }
    }

    /// What the ends become, for a function that is monotonic between them.
    pub fn map<T: Element>(self, f: impl Fn(f64) -> Self) -> Self {
        if self.low > self.high {
            return self;
        }
        let low = f(at_place::<T>(self.low));
        let both = if self.low == self.high {
            low
        } else {
            low.and(f(at_place::<T>(self.high)))
        };
        Self {
            nan: both.nan || self.nan,
            ..both
        }
    }

    /// How many values lie between the range and `x`: 0 within it, none where one is NaN and the
    /// other is not.
    pub fn distance<T: Element>(&self, x: T) -> Option<u32> {
        if x.is_nan() {
            return self.nan.then_some(0);
        }
        if self.low > self.high {
            return None;
        }
        let place = order(x);
        let away = (self.low - place).max(place - self.high).max(0);
        u32::try_from(away).ok()
    }

    /// Whether the two have no value in common.
    pub const fn excludes(&self, other: &Self) -> bool {
        let apart = self.low > other.high || other.low > self.high;
        apart && !(self.nan && other.nan)
    }
}
