use swiglu_core::{ActAndMul, Element, Float, GatedActivation, bf16, f16};

use super::in_every_type;
use crate::compare::{Tally, against_reference};
use crate::inputs::{
    LIMITS, every_exponent, every_gate, limit_of, pairs, special_values, spread_of_ups,
};
use crate::skips::Skips;
use crate::{Failure, Harness};

/// Every pair of gate and up from the values where the operation or the format turns, for every
/// activation and every limit.
///
/// # Errors
/// The first result that differs from the reference.
pub fn special_pairs<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    fn check<T: Element, B: ActAndMul>(
        h: &Harness<B>,
        skips: &mut Skips<'_, B>,
    ) -> Result<(), Failure> {
        let mut ops = skips.activations(T::FLOAT);
        for limit in LIMITS {
            for op in [
                GatedActivation::silu_and_mul_with_clamp(limit, 1.0, 0.0)?,
                GatedActivation::swigluoai_and_mul(limit, 1.702)?,
                GatedActivation::swiglustep_and_mul(limit)?,
            ] {
                ops.extend(skips.roundings(op, T::FLOAT));
            }
        }
        for op in ops {
            let values = special_values::<T>(limit_of(&op));
            let pairs = pairs(&values, &values);
            let got = h.act_on_pairs(&op, &pairs)?;
            let tally = &mut Tally::default();
            against_reference(&op, &pairs, &got, &h.accuracy, tally)?;
        }
        Ok(())
    }
    let skips = &mut Skips::new(h, "special_pairs");
    in_every_type!(check(h, skips))
}

/// All 65,536 gates of bf16 and of f16 with a spread of ups: within the ulps that the contract
/// allows, and nearly all correctly rounded.
///
/// # Errors
/// The first result that is too far off, or too many that are not correctly rounded.
pub fn every_16_bit_gate<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    fn check<T: Element, B: ActAndMul>(
        h: &Harness<B>,
        skips: &mut Skips<'_, B>,
    ) -> Result<(), Failure> {
        let ups = spread_of_ups::<T>(h.size.pick(3, 12));
        for op in skips.activations(T::FLOAT) {
            let mut tally = Tally::default();
            for &up in &ups {
                let pairs = every_gate(up);
                let got = h.act_on_pairs(&op, &pairs)?;
                against_reference(&op, &pairs, &got, &h.accuracy, &mut tally)?;
            }
            tally.check(&op, T::FLOAT)?;
        }
        Ok(())
    }
    let skips = &mut Skips::new(h, "every_16_bit_gate");
    check::<bf16, B>(h, skips)?;
    check::<f16, B>(h, skips)
}

/// Gates of f32 with every exponent and random mantissas, with ups between 2^-10 and 2^10; and
/// densely those of ordinary size.
///
/// # Errors
/// The first result that is too far off.
pub fn f32_gates_of_every_exponent<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    let pairs = every_exponent(h.size.pick(24, 1024));
    let skips = &mut Skips::new(h, "f32_gates_of_every_exponent");
    for op in skips.activations(Float::F32) {
        let got = h.act_on_pairs(&op, &pairs)?;
        let tally = &mut Tally::default();
        against_reference(&op, &pairs, &got, &h.accuracy, tally)?;
    }
    Ok(())
}
