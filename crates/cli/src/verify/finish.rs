//! Where and how an engine rounds, and what values of the storage type that allows.

use swiglu::{Element, Float, Rounding};

use super::range::{Range, order};
use super::recipe::{F32_ROUNDING, Factors, smallest_normal};

/// How results are brought to the storage type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// To nearest, ties to even.
    Rounded,
    /// The low bits cut off.
    Truncated,
    /// As the first, with 0 for subnormals.
    Flushed,
}

/// Where and how an engine rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finish {
    pub rounding: Rounding,
    pub store: Store,
}

/// What a result is multiplied by afterwards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factor {
    pub by: f64,
    /// Whether the result is rounded before. `Eager` always does.
    pub after_rounding: bool,
}

impl Finish {
    /// The values that an element may have.
    pub fn range<T: Element>(self, x: &Factors, factor: Option<Factor>) -> Range {
        let plain = match self.rounding {
            Rounding::Official => {
                let by = factor.filter(|f| !f.after_rounding).map_or(1.0, |f| f.by);
                self.around::<T>(x.product() * by, x.noise())
            }
            Rounding::Eager => self.eager::<T>(x),
        };
        let multiplied = match factor {
            Some(f) if f.after_rounding || self.rounding == Rounding::Eager => {
                plain.map::<T>(|y| self.around::<T>(y * f.by, F32_ROUNDING))
            }
            _ => plain,
        };
        self.with_losses::<T>(x, factor, self.with_subnormals::<T>(x, multiplied))
    }

    /// R(R(f) · R(up + offset)).
    fn eager<T: Element>(self, x: &Factors) -> Range {
        let f = self.around::<T>(x.unbounded, x.noise_of_f);
        let f = f.map::<T>(|f| self.around::<T>(x.value.apply(f), 0.0));
        let up = self.around::<T>(
            x.up_side(),
            if x.offset == 0.0 { 0.0 } else { F32_ROUNDING },
        );
        f.map::<T>(|f| up.map::<T>(|up| self.around::<T>(f * up, F32_ROUNDING)))
    }

    /// Widens a range by what may be lost where the exponential underflows and where subnormals are
    /// flushed.
    fn with_losses<T: Element>(self, x: &Factors, factor: Option<Factor>, range: Range) -> Range {
        let up = x.up_side();
        let by = factor.map_or(1.0, |f| f.by);
        let mut range = range;
        let eager_overflows =
            x.overflows && self.rounding == Rounding::Eager && T::FLOAT != Float::F32;
        if eager_overflows || (x.lost > 0.0 && x.lost >= x.f.abs()) {
            range = range.and(Range::ZERO);
            range.nan |= up.is_infinite();
        }
        if x.lost > 0.0 {
            for lost in [-x.lost, x.lost] {
                range = range.and(self.around::<T>((x.f + lost) * up * by, x.noise_of_f));
            }
        }
        if self.store == Store::Flushed && x.flushable {
            range = range.and(Range::ZERO);
            range.nan |= up.is_infinite();
        }
        range
    }

    /// Widens the range of a subnormal result by what a subnormal factor of it loses in f32: there
    /// nothing is promised.
    fn with_subnormals<T: Element>(self, x: &Factors, range: Range) -> Range {
        let (y, least) = (x.product(), f64::from(f32::MIN_POSITIVE));
        if y.is_nan() || y.abs() >= least {
            return range;
        }
        let lost = (f64::from(f32::from_bits(1)) * (2.0 + x.up.abs())).min(least);
        let [low, high] = [-lost, lost].map(|lost| self.around::<T>(y + lost, x.noise()));
        range.and(low).and(high)
    }

    /// What values within a relative error of `x` become.
    fn around<T: Element>(self, x: f64, error: f64) -> Range {
        if x.is_nan() {
            return Range::NAN;
        }
        if x.is_infinite() {
            return Range::of(T::from_f64(x));
        }
        let error = x.abs() * error;
        Range {
            low: order(self.store::<T>(x - error)),
            high: order(self.store::<T>(x + error)),
            nan: false,
        }
    }

    fn store<T: Element>(self, x: f64) -> T {
        let nearest = T::from_f64(x);
        match self.store {
            Store::Rounded => nearest,
            Store::Flushed if x.abs() < f64::from(smallest_normal::<T>()) => T::default(),
            Store::Flushed => nearest,
            // What is cut off is an f32.
            Store::Truncated if (x as f32).is_infinite() => nearest,
            Store::Truncated if f64::from(nearest.to_f32()).abs() > x.abs() => {
                T::from_bits(nearest.to_bits() - 1)
            }
            Store::Truncated => nearest,
        }
    }
}

#[cfg(test)]
mod tests {
    use swiglu::{GatedActivation, bf16, f16, reference};

    use super::*;
    use crate::verify::recipe::Recipe;

    fn specials<T: Element>(limit: f32) -> Vec<T> {
        swiglu_conformance::inputs::special_values(limit)
    }

    fn holds<T: Element>() {
        for op in GatedActivation::ALL {
            let values = specials::<T>(op.limit().map_or(10.0, |l| l.get()));
            for rounding in [Rounding::Official, Rounding::Eager] {
                let op = op.with_rounding(rounding);
                let recipe = Recipe::defined(&op);
                let finish = Finish {
                    rounding,
                    store: Store::Rounded,
                };
                for (gate, up) in swiglu_conformance::inputs::pairs(&values, &values) {
                    let want = reference::gated(&op, gate, up);
                    let range = finish.range::<T>(&recipe.factors(rounding, gate, up), None);
                    let place = range.distance(want);
                    assert_eq!(
                        place,
                        Some(0),
                        "{op} of {gate:?}, {up:?}: {want:?}, {range:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_definitions_range_holds_the_reference_everywhere() {
        holds::<f32>();
        holds::<f16>();
        holds::<bf16>();
    }

    #[test]
    fn in_16_bits_a_range_is_one_value_but_near_a_tie() {
        let op = GatedActivation::deepseek_v4();
        let recipe = Recipe::defined(&op);
        let finish = Finish {
            rounding: Rounding::Official,
            store: Store::Rounded,
        };
        let all = swiglu_conformance::inputs::every_gate(bf16::from_f32(1.7031));
        let ordinary = all
            .iter()
            .filter(|(g, _)| (0.01..80.0).contains(&g.to_f32().abs()));
        let wide = ordinary.clone().filter(|&&(gate, up)| {
            let range = finish.range::<bf16>(&recipe.factors(op.rounding(), gate, up), None);
            range.low != range.high
        });
        let (wide, all) = (wide.count(), ordinary.count());
        assert!(wide * 50 < all, "{wide} of {all}");
    }

    #[test]
    fn what_is_cut_off_is_towards_zero() {
        let finish = Finish {
            rounding: Rounding::Official,
            store: Store::Truncated,
        };
        for x in [1.999_f64, -1.999] {
            let y: bf16 = finish.store(x);
            assert_eq!(y.to_f32(), (1.992_187_5 * x.signum()) as f32);
        }
        assert_eq!(finish.store::<f16>(1e6), f16::MAX);
        assert_eq!(finish.store::<bf16>(1e39), bf16::INFINITY);
    }
}
