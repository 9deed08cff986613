//! The operation in scalar code: what every backend is checked against, and what runs where an
//! operator is switched off.
//!
//! [`gated`] evaluates one output in f64 and rounds where the [`Rounding`] mode says, each time in
//! one rounding to the storage type.

use crate::{Clamp, Element, Function, GatedActivation, Rounding};

mod backend;
mod grouped;
mod quant;

pub use backend::{Reference, ReferenceWeight};
pub use quant::{clamp_hits, gated_routed, quantize_row};

/// x · sigmoid(z), with no overflow anywhere: e = exp(-|z|).
fn times_sigmoid(x: f64, z: f64) -> f64 {
    let e = libm::exp(-z.abs());
    (if z < 0.0 { x * e } else { x }) / (1.0 + e)
}

/// min(x, limit) that lets NaN through.
fn clamp_above(x: f64, limit: f64) -> f64 {
    if x > limit { limit } else { x }
}

/// clamp(x, -limit, limit) that lets NaN through.
fn clamp_both(x: f64, limit: f64) -> f64 {
    let x = clamp_above(x, limit);
    if x < -limit { -limit } else { x }
}

/// What `f` makes of a gate, in f64 and without clamp or rounding: for tools that compare an output
/// with other formulas than an operation's own.
pub fn of_gate(f: Function, x: f64) -> f64 {
    use std::f64::consts::{FRAC_2_SQRT_PI, SQRT_2};
    match f {
        Function::Silu { alpha } => times_sigmoid(x, f64::from(alpha) * x),
        // x/2 · erfc(-x/√2) keeps its precision where 1 + erf(x/√2) cancels.
        Function::Gelu => x * 0.5 * libm::erfc(-x / SQRT_2),
        // (1 + tanh z)/2 is sigmoid(2z), which does not cancel either; 2·√(2/π) is 2/√π · √2.
        Function::GeluTanh => {
            let cubic = 0.044715 * (x * x * x);
            times_sigmoid(x, FRAC_2_SQRT_PI * SQRT_2 * (x + cubic))
        }
        // Not `if x > threshold`, which would take a NaN to 0.
        Function::FatRelu { threshold } => {
            if x <= f64::from(threshold) {
                0.0
            } else {
                x
            }
        }
        Function::Situ { beta, .. } => {
            let beta = f64::from(beta);
            times_sigmoid(beta * libm::tanh(x / beta), x)
        }
    }
}

/// What `f` makes of the up half, as [`of_gate`]: itself but for a bound of SiTU's.
pub fn of_up(f: Function, x: f64) -> f64 {
    match f {
        Function::Situ {
            up_bound: Some(bound),
            ..
        } => {
            let bound = f64::from(bound);
            bound * libm::tanh(x / bound)
        }
        Function::Situ { up_bound: None, .. }
        | Function::Silu { .. }
        | Function::Gelu
        | Function::GeluTanh
        | Function::FatRelu { .. } => x,
    }
}

/// f(g) · (u + beta) before its last rounding.
fn unrounded<T: Element>(op: &GatedActivation, gate: T, up: T) -> f64 {
    let round = |x: f64| match op.rounding() {
        Rounding::Official => x,
        Rounding::Eager => f64::from(T::from_f64(x).to_f32()),
    };
    let (gate, up) = (f64::from(gate.to_f32()), f64::from(up.to_f32()));
    let (f, up) = match op.clamp() {
        Clamp::None => (round(of_gate(op.function(), gate)), up),
        Clamp::Before(limit) => {
            let limit = f64::from(limit.get());
            let gate = round(clamp_above(gate, limit));
            (round(of_gate(op.function(), gate)), clamp_both(up, limit))
        }
        Clamp::After(limit) => {
            let limit = f64::from(limit.get());
            let f = round(of_gate(op.function(), gate));
            (round(clamp_above(f, limit)), clamp_both(up, limit))
        }
    };
    // Adding an offset of 0 would take an up of -0 to +0.
    let up = match op.up_offset() {
        0.0 => of_up(op.function(), up),
        offset => of_up(op.function(), up) + f64::from(offset),
    };
    f * round(up)
}

/// One output of the operation, evaluated in f64 and rounded to the storage type.
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
    T::from_f64(unrounded(op, gate, up))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ActAndMul, Parameters, RowLayout, Tensor, TensorMut, bf16};

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

    /// Values by mpmath, 30 digits.
    #[test]
    fn the_functions_of_the_family_are_what_their_names_say() {
        let near = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 1e-14, "{got} {want}");
        near(
            of_gate(Function::Silu { alpha: 1.702 }, 1.5),
            1.391_662_201_754_134_2,
        );
        near(of_gate(Function::Gelu, 1.5), 1.399_789_198_096_713);
        near(of_gate(Function::Gelu, -6.0), -5.919_525_870_226_188_5e-9);
        near(of_gate(Function::GeluTanh, 1.5), 1.399_571_576_980_232_8);
        near(of_gate(Function::GeluTanh, -0.5), -0.154_285_990_174_856_09);
        let situ = Function::Situ {
            beta: 4.0,
            up_bound: Some(25.0),
        };
        near(of_gate(situ, 3.0), 2.420_105_834_890_013_5);
        near(of_up(situ, -30.0), -20.841_365_175_303_88);
        assert_eq!(of_up(Function::Gelu, -30.0), -30.0);
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
            let mut out = [0.0; 2];
            let rows = Tensor::from_slice(&input, RowLayout::contiguous(1, 4));
            let output = TensorMut::from_slice(&mut out, RowLayout::contiguous(1, 2));
            Reference.act_and_mul(op, rows.into(), output).unwrap();
            out
        };
        let plain = GatedActivation::silu_and_mul();
        assert_eq!(run(&plain), [y(&plain, 1.0, 3.0), y(&plain, 2.0, 4.0)]);
        let swapped = GatedActivation::mul_and_silu();
        assert_eq!(run(&swapped), [y(&plain, 3.0, 1.0), y(&plain, 4.0, 2.0)]);
        let p = Parameters::default();
        let oai = GatedActivation::from_name("swigluoai_and_mul", &p).unwrap();
        assert_eq!(run(&oai), [y(&oai, 1.0, 2.0), y(&oai, 3.0, 4.0)]);
        // In two matrices the order and the layout have no say.
        for op in [plain, swapped, oai] {
            let (gate, up) = input.split_at(2);
            let half = |data| Tensor::from_slice(data, RowLayout::contiguous(1, 2));
            let (gate, up) = (half(gate), half(up));
            let mut out = [0.0; 2];
            let output = TensorMut::from_slice(&mut out, RowLayout::contiguous(1, 2));
            Reference
                .act_and_mul(&op, crate::GateUp::Split { gate, up }, output)
                .unwrap();
            assert_eq!(out, [y(&op, 1.0, 3.0), y(&op, 2.0, 4.0)]);
        }
    }
}
