use swiglu_core::{ActAndMul, DType, Element, GatedActivation, bf16, f16};

use super::in_every_type;
use crate::compare::{Tally, against_reference};
use crate::inputs::{
    LIMITS, every_exponent, every_gate, limit_of, pairs, special_values, spread_of_ups,
};
use crate::{Failure, Harness};

/// Every activation runs in f32, f16 and bf16.
///
/// # Errors
/// The first that does not.
pub fn every_activation_is_supported<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    for dtype in DType::COMPUTE {
        for op in GatedActivation::ALL {
            let support = h.backend.supports(&op, dtype);
            if !support.runs() {
                return Err(Failure::new(format!("{op} in {dtype}: {support}")));
            }
        }
    }
    Ok(())
}

/// Every pair of gate and up from the values where the operation or the format turns, for every
/// activation and every limit.
///
/// # Errors
/// The first result that differs from the reference.
pub fn special_pairs<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    fn check<T: Element, B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
        let mut ops = h.activations(T::DTYPE);
        for limit in LIMITS {
            ops.extend(h.runs(
                GatedActivation::silu_and_mul_with_clamp(limit, 1.0, 0.0)?,
                T::DTYPE,
            ));
            ops.extend(h.runs(GatedActivation::swigluoai_and_mul(limit, 1.702)?, T::DTYPE));
            ops.extend(h.runs(GatedActivation::swiglustep_and_mul(limit)?, T::DTYPE));
        }
        for op in ops {
            let values = special_values::<T>(limit_of(&op));
            let pairs = pairs(&values, &values);
            let got = h.act_on_pairs(&op, &pairs)?;
            let tally = &mut Tally::default();
            against_reference(&op, &pairs, &got, &h.expectations, tally)?;
        }
        Ok(())
    }
    in_every_type!(check(h))
}

/// All 65,536 gates of bf16 and of f16 with a spread of ups: within the ulps that the contract
/// allows, and nearly all correctly rounded.
///
/// # Errors
/// The first result that is too far off, or too many that are not correctly rounded.
pub fn every_16_bit_gate<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    fn check<T: Element, B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
        let ups = spread_of_ups::<T>(h.expectations.size.pick(3, 12));
        for op in h.activations(T::DTYPE) {
            let mut tally = Tally::default();
            for &up in &ups {
                let pairs = every_gate(up);
                let got = h.act_on_pairs(&op, &pairs)?;
                against_reference(&op, &pairs, &got, &h.expectations, &mut tally)?;
            }
            tally.check(&op, T::DTYPE)?;
        }
        Ok(())
    }
    check::<bf16, B>(h)?;
    check::<f16, B>(h)
}

/// Gates of f32 with every exponent and random mantissas, with ups between 2^-10 and 2^10; and
/// densely those of ordinary size.
///
/// # Errors
/// The first result that is too far off.
pub fn f32_gates_of_every_exponent<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    let pairs = every_exponent(h.expectations.size.pick(24, 1024));
    for op in h.activations(DType::F32) {
        let got = h.act_on_pairs(&op, &pairs)?;
        let tally = &mut Tally::default();
        against_reference(&op, &pairs, &got, &h.expectations, tally)?;
    }
    Ok(())
}
