//! What one element of an output may be, if an engine computes by a certain recipe.
//!
//! ## Method
//! 1. A [`Recipe`] is a formula with everything that engines get wrong as a setting of its own: the
//!    bounds before and after the function, the offset, the places of the halves, what a NaN becomes.
//! 2. It is evaluated in f64. An engine computes in f32, and its exponential may be off by some
//!    units in the last place, more so for large arguments. So a prediction is a range: all values
//!    of the storage type that what lies within that error rounds to. In 16 bits that is one value,
//!    but for exact values close to the middle between two.
//! 3. A finish says where results are rounded, and how.
//!
//! Two recipes differ at an element only where their ranges have no value in common: what noise
//! could explain tells nothing.

use swiglu::{Element, Float, Function, GatedActivation, Layout, Order, Rounding, reference};

/// The error of an engine's f32 arithmetic, relative: a few steps, and an exponential whose own
/// error grows with its argument, as those of GPUs do.
const F32_NOISE: f64 = 8.0 * F32_ROUNDING;
const F32_NOISE_OF_EXP: f64 = 2.0 * F32_ROUNDING;
/// The error of one operation in f32.
pub const F32_ROUNDING: f64 = 1.0 / (1 << 23) as f64;

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

    pub fn apply(self, x: f64) -> f64 {
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
            noise_of_f: F32_NOISE + F32_NOISE_OF_EXP * argument,
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

pub fn smallest_normal<T: Element>() -> f32 {
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
    pub f: f64,
    pub unbounded: f64,
    pub value: Bounds,
    pub up: f64,
    pub offset: f64,
    /// Whether f is an element or a limit, and not what an exponential gave.
    exact: bool,
    /// The relative error of f in f32, with room for a product.
    pub noise_of_f: f64,
    /// What of f an engine may lose.
    pub lost: f64,
    /// Whether exp(-x) overflows in f32.
    pub overflows: bool,
    /// Whether a flush of subnormals may have made one of the factors 0.
    pub flushable: bool,
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
            false => self.noise_of_f,
        }
    }

    /// The up half with its offset. Adding one of 0 would take -0 to +0.
    pub fn up_side(&self) -> f64 {
        match self.offset {
            0.0 => self.up,
            offset => self.up + offset,
        }
    }
}
