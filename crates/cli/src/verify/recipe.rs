//! What one element of an output may be, if an engine computes by a certain recipe.
//!
//! ## Method
//! 1. A [`Recipe`] is a formula with everything that engines get wrong as a setting of its own: the
//!    bounds before and after the function, the offset, the places of the halves, what a NaN becomes.
//! 2. It is evaluated in f64. An engine computes in f32, and its exponential may be off by some
//!    units in the last place, more so for large arguments. So a prediction is a [`Range`]: all values
//!    of the storage type that what lies within that error rounds to. In 16 bits that is one value,
//!    but for exact values close to the middle between two.
//! 3. A [`Finish`] says where results are rounded, and how.
//!
//! Two recipes differ at an element only where their ranges have no value in common: what noise
//! could explain tells nothing.

use swiglu::{Element, Float, Function, GatedActivation, Layout, Order, Rounding, reference};

/// The error of an engine's f32 arithmetic, relative: a few steps, and an exponential whose own
/// error grows with its argument, as those of GPUs do.
const F32_NOISE: f64 = 8.0 * F32_ROUNDING;
const F32_NOISE_OF_EXP: f64 = 2.0 * F32_ROUNDING;
/// The error of one operation in f32.
const F32_ROUNDING: f64 = 1.0 / (1 << 23) as f64;

/// Where the exponential of a gate leaves f32's normal numbers: e^-87.3 = 2^-126.
const EXP_UNDERFLOWS: f64 = 87.0;
/// Where PyTorch's exp(-x) overflows, so that x/(1 + exp(-x)) is -0.
const EXP_OVERFLOWS: f64 = 88.7;

/// Bounds on a value; those of NaN are NaN.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bounds {
    pub below: Option<f64>,
    pub above: Option<f64>,
}

impl Bounds {
    pub const NONE: Self = Self {
        below: None,
        above: None,
    };

    pub const fn above(limit: f64) -> Self {
        Self {
            below: None,
            above: Some(limit),
        }
    }

    pub const fn both(limit: f64) -> Self {
        Self {
            below: Some(-limit),
            above: Some(limit),
        }
    }

    fn apply(self, x: f64) -> f64 {
        match self {
            Self { above: Some(l), .. } if x > l => l,
            Self { below: Some(l), .. } if x < l => l,
            _ => x,
        }
    }
}

/// Where the halves are looked for in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Places {
    /// Where the operation has them.
    AsAsked,
    /// Gate and up changed places.
    Swapped,
    /// Interleaved taken for concatenated, or the other way round.
    LayoutMixedUp,
}

/// What a NaN becomes, in the gate and in the up half; `None` stays NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NanBecomes {
    pub gate: Option<f64>,
    pub up: Option<f64>,
}

/// A formula for an output of a gate and an up half.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recipe {
    pub function: Function,
    /// Of the gate, before the function.
    pub gate: Bounds,
    /// Of the function's value.
    pub value: Bounds,
    pub up: Bounds,
    /// Added to the bounded up half.
    pub offset: f64,
    pub places: Places,
    pub nan: NanBecomes,
    /// Whether the engine may lose what f32 loses where the exponential underflows or 1 + erf
    /// cancels. The definition does not.
    pub may_underflow: bool,
}

impl Recipe {
    /// The operation as it is defined.
    pub fn defined(op: &GatedActivation) -> Self {
        use swiglu::Clamp;
        let limit = |l: swiglu::Limit| f64::from(l.get());
        let (gate, value, up) = match op.clamp() {
            Clamp::Before(l) => (
                Bounds::above(limit(l)),
                Bounds::NONE,
                Bounds::both(limit(l)),
            ),
            Clamp::After(l) => (
                Bounds::NONE,
                Bounds::above(limit(l)),
                Bounds::both(limit(l)),
            ),
            // Of clamps that core adds later this program knows none.
            _ => (Bounds::NONE, Bounds::NONE, Bounds::NONE),
        };
        Self {
            function: op.function(),
            gate,
            value,
            up,
            offset: f64::from(op.up_offset()),
            places: Places::AsAsked,
            nan: NanBecomes {
                gate: None,
                up: None,
            },
            may_underflow: false,
        }
    }

    /// The same with another limit, at the places that have one.
    #[must_use]
    pub fn with_limit(self, limit: f64) -> Self {
        let set = |b: Bounds| Bounds {
            below: b.below.map(|_| -limit),
            above: b.above.map(|_| limit),
        };
        Self {
            gate: set(self.gate),
            value: set(self.value),
            up: set(self.up),
            ..self
        }
    }

    /// The places of gate and up of output `j` in a row of 2d elements.
    pub fn positions(&self, op: &GatedActivation, d: usize, j: usize) -> (usize, usize) {
        let (gate, up) = op.positions(d, j);
        match (self.places, op.layout()) {
            (Places::AsAsked, _) => (gate, up),
            (Places::Swapped, _) => (up, gate),
            (Places::LayoutMixedUp, layout) => {
                let (first, second) = match layout {
                    Layout::Concatenated => (2 * j, 2 * j + 1),
                    Layout::Interleaved => (j, d + j),
                };
                match op.order() {
                    Order::GateFirst => (first, second),
                    Order::UpFirst => (second, first),
                }
            }
        }
    }

    /// The factors of an element, before the roundings that concern them; `Eager` rounds a clamped
    /// gate.
    pub fn factors<T: Element>(&self, rounding: Rounding, gate: T, up: T) -> Factors {
        let subnormal = |x: T| x.to_f32() != 0.0 && x.to_f32().abs() < smallest_normal::<T>();
        let or = |x: T, nan: Option<f64>| match nan {
            Some(value) if x.is_nan() => value,
            _ => f64::from(x.to_f32()),
        };
        let mut g = self.gate.apply(or(gate, self.nan.gate));
        if rounding == Rounding::Eager {
            g = to::<T>(g);
        }
        let f = reference::of_gate(self.function, g);
        // The sigmoid, erf or tanh is about f/g, and its exponential's argument its logarithm.
        let argument = match g != 0.0 && f.is_finite() {
            true => -(f / g).abs().ln(),
            false => 0.0,
        };
        let argument = argument.clamp(0.0, 128.0);
        let bounded = self.value.apply(f);
        Factors {
            f: bounded,
            exact: bounded != f || matches!(self.function, Function::FatRelu { .. }),
            unbounded: f,
            value: self.value,
            up: reference::of_up(self.function, self.up.apply(or(up, self.nan.up))),
            offset: self.offset,
            noise: F32_NOISE + F32_NOISE_OF_EXP * argument,
            lost: match self.function {
                _ if g >= 0.0 || g.is_nan() => 0.0,
                Function::Gelu | Function::GeluTanh if self.may_underflow => {
                    g.abs() * f64::from(f32::EPSILON)
                }
                _ if self.may_underflow && argument > EXP_UNDERFLOWS => f.abs(),
                _ => 0.0,
            },
            overflows: argument > EXP_OVERFLOWS && g < 0.0,
            flushable: subnormal(gate) || subnormal(up) || f.abs() < f64::from(f32::MIN_POSITIVE),
        }
    }
}

fn smallest_normal<T: Element>() -> f32 {
    match T::FLOAT {
        Float::F16 => 2f32.powi(-14),
        Float::F32 | Float::BF16 => f32::MIN_POSITIVE,
    }
}

/// Rounded to T.
fn to<T: Element>(x: f64) -> f64 {
    f64::from(T::from_f64(x).to_f32())
}

/// What an output is the product of.
#[derive(Clone, Copy, Debug)]
pub struct Factors {
    f: f64,
    unbounded: f64,
    value: Bounds,
    up: f64,
    offset: f64,
    /// Whether f is an element or a limit, and not what an exponential gave.
    exact: bool,
    /// The relative error of a product in f32.
    noise: f64,
    /// What of f an engine may lose.
    lost: f64,
    /// Whether exp(-x) overflows in f32.
    overflows: bool,
    /// Whether a flush of subnormals may have made one of the factors 0.
    flushable: bool,
}

impl Factors {
    /// Their product, which `Official` rounds once.
    pub fn product(&self) -> f64 {
        self.f * self.up_side()
    }

    /// The error of the product in f32, relative: none where neither factor has one and f32 holds
    /// it, so that a tie between two values is one for the engine too.
    pub fn noise(&self) -> f64 {
        let product = self.product();
        match self.exact && self.offset == 0.0 {
            true if f64::from(product as f32) == product => 0.0,
            true => F32_ROUNDING,
            false => self.noise,
        }
    }

    /// The up half with its offset. Adding one of 0 would take -0 to +0.
    fn up_side(&self) -> f64 {
        match self.offset {
            0.0 => self.up,
            offset => self.up + offset,
        }
    }
}

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
        let f = self.around::<T>(x.unbounded, x.noise);
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
                range = range.and(self.around::<T>((x.f + lost) * up * by, x.noise));
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
    const NAN: Self = Self {
        low: i64::MAX,
        high: i64::MIN,
        nan: true,
    };
    const ZERO: Self = Self {
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
    fn and(self, other: Self) -> Self {
        Self {
            low: self.low.min(other.low),
            high: self.high.max(other.high),
            nan: self.nan || other.nan,
        }
    }

    /// What the ends become, for a function that is monotonic between them.
    fn map<T: Element>(self, f: impl Fn(f64) -> Self) -> Self {
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

#[cfg(test)]
mod tests {
    use swiglu::{bf16, f16};

    use super::*;

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
