//! The operation in scalar code: what every backend is checked against, and what runs where an
//! operator is switched off.
//!
//! [`gated`] evaluates one output in f64 and rounds where the [`Rounding`] mode says, each time in
//! one rounding to the storage type; [`gated_f32`] does the same in f32 arithmetic, as a kernel
//! would, by the plain formulas.

use crate::{Clamp, Element, Function, GatedActivation, Result, Rounding, Rows, RowsMut};

mod backend;
mod quant;

pub use backend::{Reference, ReferenceWeight};
pub use quant::{clamp_hits, gated_routed, quantize_row};

/// The arithmetic of the formulas, in f64 or in f32.
trait Real: Copy + PartialOrd {
    const ZERO: Self;
    const HALF: Self;
    const ONE: Self;
    const SQRT_2: Self;
    /// 2·√(2/π), of the tanh form of gelu.
    const TWO_SQRT_2_OVER_PI: Self;
    /// 0.044715, of the tanh form of gelu.
    const GELU_CUBIC: Self;
    fn from_f32(x: f32) -> Self;
    fn round<T: Element>(self) -> T;
    fn neg(self) -> Self;
    fn add(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    fn abs(self) -> Self;
    fn exp(self) -> Self;
    fn tanh(self) -> Self;
    fn erfc(self) -> Self;
}

macro_rules! real {
    ($type:ident, $round:ident, $exp:path, $tanh:path, $erfc:path) => {
        impl Real for $type {
            const ZERO: Self = 0.0;
            const HALF: Self = 0.5;
            const ONE: Self = 1.0;
            const SQRT_2: Self = std::$type::consts::SQRT_2;
            // FRAC_2_SQRT_PI is 2/√π.
            const TWO_SQRT_2_OVER_PI: Self =
                std::$type::consts::FRAC_2_SQRT_PI * std::$type::consts::SQRT_2;
            const GELU_CUBIC: Self = 0.044715;
            fn from_f32(x: f32) -> Self {
                Self::from(x)
            }
            fn round<T: Element>(self) -> T {
                T::$round(self)
            }
            fn neg(self) -> Self {
                -self
            }
            fn add(self, other: Self) -> Self {
                self + other
            }
            fn mul(self, other: Self) -> Self {
                self * other
            }
            fn div(self, other: Self) -> Self {
                self / other
            }
            fn abs(self) -> Self {
                self.abs()
            }
            fn exp(self) -> Self {
                $exp(self)
            }
            fn tanh(self) -> Self {
                $tanh(self)
            }
            fn erfc(self) -> Self {
                $erfc(self)
            }
        }
    };
}
real!(f64, from_f64, libm::exp, libm::tanh, libm::erfc);
real!(f32, from_f32, libm::expf, libm::tanhf, libm::erfcf);

/// x · sigmoid(z), with no overflow anywhere: e = exp(-|z|).
fn times_sigmoid<R: Real>(x: R, z: R) -> R {
    let e = z.abs().neg().exp();
    let numerator = if z < R::ZERO { x.mul(e) } else { x };
    numerator.div(R::ONE.add(e))
}

/// min(x, limit) that lets NaN through.
fn clamp_above<R: Real>(x: R, limit: R) -> R {
    if x > limit { limit } else { x }
}

/// clamp(x, -limit, limit) that lets NaN through.
fn clamp_both<R: Real>(x: R, limit: R) -> R {
    let x = clamp_above(x, limit);
    if x < limit.neg() { limit.neg() } else { x }
}

fn of_gate<R: Real>(f: Function, x: R) -> R {
    match f {
        Function::Silu { alpha } => times_sigmoid(x, R::from_f32(alpha).mul(x)),
        // x/2 · erfc(-x/√2) keeps its precision where 1 + erf(x/√2) cancels.
        Function::Gelu => x.mul(R::HALF).mul(x.neg().div(R::SQRT_2).erfc()),
        // (1 + tanh z)/2 is sigmoid(2z), which does not cancel either.
        Function::GeluTanh => {
            let cubic = R::GELU_CUBIC.mul(x.mul(x).mul(x));
            times_sigmoid(x, R::TWO_SQRT_2_OVER_PI.mul(x.add(cubic)))
        }
        // Not `if x > threshold`, which would take a NaN to 0.
        Function::FatRelu { threshold } => {
            if x <= R::from_f32(threshold) {
                R::ZERO
            } else {
                x
            }
        }
        Function::Situ { beta, .. } => {
            let beta = R::from_f32(beta);
            times_sigmoid(beta.mul(x.div(beta).tanh()), x)
        }
    }
}

fn of_up<R: Real>(f: Function, x: R) -> R {
    match f {
        Function::Situ {
            up_bound: Some(bound),
            ..
        } => {
            let bound = R::from_f32(bound);
            bound.mul(x.div(bound).tanh())
        }
        Function::Situ { up_bound: None, .. }
        | Function::Silu { .. }
        | Function::Gelu
        | Function::GeluTanh
        | Function::FatRelu { .. } => x,
    }
}

/// f(g) · (u + beta) before its last rounding.
fn product_in<R: Real, T: Element>(op: &GatedActivation, gate: T, up: T) -> R {
    let round = |x: R| match op.rounding() {
        Rounding::Official => x,
        Rounding::Eager => R::from_f32(x.round::<T>().to_f32()),
    };
    let (gate, up) = (R::from_f32(gate.to_f32()), R::from_f32(up.to_f32()));
    let (f, up) = match op.clamp() {
        Clamp::None => (round(of_gate(op.function(), gate)), up),
        Clamp::Before(limit) => {
            let limit = R::from_f32(limit.get());
            let gate = round(clamp_above(gate, limit));
            (round(of_gate(op.function(), gate)), clamp_both(up, limit))
        }
        Clamp::After(limit) => {
            let limit = R::from_f32(limit.get());
            let f = round(of_gate(op.function(), gate));
            (round(clamp_above(f, limit)), clamp_both(up, limit))
        }
    };
    // Adding an offset of 0 would take an up of -0 to +0.
    let up = match op.up_offset() {
        0.0 => of_up(op.function(), up),
        offset => of_up(op.function(), up).add(R::from_f32(offset)),
    };
    f.mul(round(up))
}

/// One output of the operation, evaluated in f64: the oracle.
///
/// ```
/// use swiglu_core::{GatedActivation, bf16, reference};
/// let y = reference::gated(
///     &GatedActivation::deepseek_v4(),
///     bf16::from_f32(20.0),
///     bf16::from_f32(-30.0),
/// );
/// assert_eq!(y, bf16::from_f32(-99.9955)); // silu(10) · -10
/// ```
pub fn gated<T: Element>(op: &GatedActivation, gate: T, up: T) -> T {
    Real::round(product_in::<f64, T>(op, gate, up))
}

/// One output of the operation, evaluated in f32 by the plain formulas.
pub fn gated_f32<T: Element>(op: &GatedActivation, gate: T, up: T) -> T {
    Real::round(product_in::<f32, T>(op, gate, up))
}

/// The operation on rows in slices, by [`gated`]: input \[T, 2d\], output \[T, d\].
///
/// # Errors
/// As [`crate::ActShape::new`].
pub fn act_and_mul<T: Element>(
    op: &GatedActivation,
    input: Rows<'_, T>,
    mut output: RowsMut<'_, T>,
) -> Result<()> {
    let shape = crate::ActShape::new((T::DTYPE, input.layout()), (T::DTYPE, output.layout()))?;
    for t in 0..shape.rows {
        let row = input.row(t);
        for (j, y) in output.row_mut(t).iter_mut().enumerate() {
            let (gate, up) = op.positions(shape.d, j);
            *y = gated(op, row[gate], row[up]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Parameters, bf16};

    fn y(op: &GatedActivation, gate: f32, up: f32) -> f32 {
        gated(op, gate, up)
    }

    #[test]
    fn the_clamp_comes_before_the_activation_and_the_gate_has_no_floor() {
        let op = GatedActivation::silu_and_mul_with_clamp(0.5, 1.0, 0.0).unwrap();
        let silu = |x: f64| x / (1.0 + (-x).exp());
        assert_eq!(y(&op, 3.0, 2.0), (silu(0.5) * 0.5) as f32);
        assert_eq!(y(&op, -3.0, -2.0), (silu(-3.0) * -0.5) as f32);
        let step = GatedActivation::swiglustep_and_mul(0.5).unwrap();
        assert_eq!(y(&step, 3.0, 2.0), 0.25);
    }

    #[test]
    fn the_offset_is_added_to_up_and_the_threshold_is_not_passed() {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let oai = GatedActivation::gpt_oss();
        let expected = 2.0 * sigmoid(f64::from(1.702_f32) * 2.0) * (3.0 + 1.0);
        assert_eq!(y(&oai, 2.0, 3.0), expected as f32);
        // The offset comes after the clamp.
        let expected = 7.0 * sigmoid(f64::from(1.702_f32) * 7.0) * (7.0 + 1.0);
        assert_eq!(y(&oai, 20.0, 20.0), expected as f32);
        let fatrelu = GatedActivation::fatrelu_and_mul(0.5).unwrap();
        let gates = [0.25, 0.5, 0.75, -1.0];
        assert_eq!(gates.map(|g| y(&fatrelu, g, 2.0)), [0.0, 0.0, 1.5, 0.0]);
    }

    #[test]
    fn bounds_are_those_of_the_definition() {
        let op = GatedActivation::deepseek_v4();
        assert!((y(&op, 1e30, 1e30) - 99.99546).abs() < 1e-4);
        let plain = GatedActivation::silu_and_mul();
        assert!((y(&plain, -1.27846, 1.0) + 0.278_464_54).abs() < 1e-7);
    }

    #[test]
    fn nan_and_infinity_are_as_the_definition_says() {
        for op in GatedActivation::ALL {
            for rounding in [Rounding::Official, Rounding::Eager] {
                let op = op.with_rounding(rounding);
                assert!(y(&op, f32::NAN, 1.0).is_nan(), "{op}");
                assert!(y(&op, 1.0, f32::NAN).is_nan(), "{op}");
            }
        }
        assert!(y(&GatedActivation::deepseek_v4(), f32::NEG_INFINITY, 1.0).is_nan());
        assert_eq!(
            y(&GatedActivation::deepseek_v4(), f32::INFINITY, 1.0),
            y(&GatedActivation::deepseek_v4(), 10.0, 1.0)
        );
        assert_eq!(
            y(&GatedActivation::silu_and_mul(), f32::INFINITY, -2.0),
            f32::NEG_INFINITY
        );
        assert_eq!(
            y(&GatedActivation::silu_and_mul(), -0.0, 1.0).to_bits(),
            (-0.0_f32).to_bits()
        );
        let tiny = f32::from_bits(5);
        assert_eq!(
            y(&GatedActivation::silu_and_mul(), 30.0, tiny).to_bits(),
            150
        );
    }

    #[test]
    fn f32_and_f64_agree_to_an_ulp_of_bf16() {
        let mut differ = 0;
        for op in GatedActivation::ALL {
            for bits in (0..0x7f80).chain(0x8000..0xff80) {
                let gate = bf16::from_bits(bits);
                let up = bf16::from_f32(1.7);
                let (a, b) = (gated(&op, gate, up), gated_f32(&op, gate, up));
                assert!(a.ulps_between(b) <= 1, "{op} {gate}: {a} {b}");
                differ += u32::from(a != b);
            }
        }
        // Of 650,000; what is left are products that f32 sees exactly between two values of bf16.
        assert!(differ < 650, "{differ}");
    }

    #[test]
    fn eager_rounds_three_times() {
        let op = GatedActivation::silu_and_mul();
        let eager = op.with_rounding(Rounding::Eager);
        let mut differ = 0;
        for bits in 0x3f00..0x4100 {
            let (gate, up) = (bf16::from_bits(bits), bf16::from_f32(1.7));
            let silu = bf16::from_f32(gated(&op, gate.to_f32(), 1.0));
            let expected = bf16::from_f32(silu.to_f32() * up.to_f32());
            assert_eq!(gated(&eager, gate, up), expected);
            differ += u32::from(gated(&op, gate, up) != expected);
        }
        assert!(differ > 64, "{differ}");
    }

    #[test]
    fn layouts_find_their_halves() {
        let input = [1.0_f32, 2.0, 3.0, 4.0];
        let run = |op: &GatedActivation| {
            let (i, o) = GatedActivation::contiguous(4, 2).unwrap();
            let mut out = [0.0; 2];
            let rows = Rows::new(&input, i).unwrap();
            act_and_mul(op, rows, RowsMut::new(&mut out, o).unwrap()).unwrap();
            out
        };
        let plain = GatedActivation::silu_and_mul();
        assert_eq!(run(&plain), [y(&plain, 1.0, 3.0), y(&plain, 2.0, 4.0)]);
        let swapped = GatedActivation::mul_and_silu();
        assert_eq!(run(&swapped), [y(&plain, 3.0, 1.0), y(&plain, 4.0, 2.0)]);
        let p = Parameters::default();
        let oai = GatedActivation::from_name("swigluoai_and_mul", &p).unwrap();
        assert_eq!(run(&oai), [y(&oai, 1.0, 2.0), y(&oai, 3.0, 4.0)]);
    }
}
