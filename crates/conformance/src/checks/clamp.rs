use swiglu_core::{ActAndMul, Element, GatedActivation, Rounding, bf16, f16};

use super::in_every_type;
use crate::compare::{Tally, against_reference, same_bits};
use crate::inputs::{LIMITS, Numbers, pairs};
use crate::skips::Skips;
use crate::{Failure, Harness};

const ROUNDINGS: [Rounding; 2] = [Rounding::Official, Rounding::Eager];

/// Pairs around a limit and well beyond it on both sides, all finite.
fn around<T: Element>(limit: f32) -> Vec<(T, T)> {
    let mut numbers = Numbers::new(u64::from(limit.to_bits()));
    let steps = [
        0.1, 0.5, 0.9, 0.99, 1.0, 1.01, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 20.0,
    ];
    let mut values: Vec<T> = steps
        .into_iter()
        .flat_map(|s: f32| [s, -s])
        .map(|s| T::from_f32(s * limit))
        .collect();
    values.extend(numbers.values::<T>(40, 4.0 * limit));
    pairs(&values, &values)
}

/// A pair clamped on the host.
fn clamped<T: Element>(pairs: &[(T, T)], limit: f32) -> Vec<(T, T)> {
    let clamp = |&(gate, up): &(T, T)| {
        let gate = T::from_f32(gate.to_f32().min(limit));
        (gate, T::from_f32(up.to_f32().clamp(-limit, limit)))
    };
    pairs.iter().map(clamp).collect()
}

/// The clamping operation equals, bit for bit, the one that does not clamp on inputs clamped
/// beforehand, at every limit that the type or the rounding mode represents.
///
/// No tolerance is involved: a clamp behind the activation, on both sides of the gate, on one side
/// of the up half or absent cannot pass.
///
/// # Errors
/// The first difference.
pub fn the_clamp_is_before_the_activation<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    fn check<T: Element, B: ActAndMul>(
        h: &Harness<B>,
        skips: &mut Skips<'_, B>,
    ) -> Result<(), Failure> {
        for (limit, rounding) in LIMITS.into_iter().flat_map(|l| ROUNDINGS.map(|r| (l, r))) {
            // `Eager` rounds the clamped values to the type, as clamping on the host does.
            if T::from_f32(limit).to_f32() != limit && rounding == Rounding::Official {
                continue;
            }
            let op = GatedActivation::silu_and_mul_with_clamp(limit, 1.0, 0.0)?;
            let op = op.with_rounding(rounding);
            let plain = GatedActivation::silu_and_mul().with_rounding(rounding);
            if !skips.activates(&op, T::FLOAT) || !skips.activates(&plain, T::FLOAT) {
                continue;
            }
            let pairs = around::<T>(limit);
            let got = h.act_on_pairs(&op, &pairs)?;
            let want = h.act_on_pairs(&plain, &clamped(&pairs, limit))?;
            same_bits(&op, &pairs, &got, &want)?;
        }
        Ok(())
    }
    let skips = &mut Skips::new(h, "the_clamp_is_before_the_activation");
    in_every_type!(check(h, skips))
}

/// `swiglustep_and_mul` clamps behind the activation: beyond the limit only the limit and the up
/// half are left, exactly.
///
/// # Errors
/// The first difference.
pub fn the_clamp_of_step_is_after_the_activation<B: ActAndMul>(
    h: &Harness<B>,
) -> Result<(), Failure> {
    fn check<T: Element, B: ActAndMul>(
        h: &Harness<B>,
        skips: &mut Skips<'_, B>,
    ) -> Result<(), Failure> {
        for (limit, rounding) in LIMITS.into_iter().flat_map(|l| ROUNDINGS.map(|r| (l, r))) {
            let op = GatedActivation::swiglustep_and_mul(limit)?.with_rounding(rounding);
            if T::from_f32(limit).to_f32() != limit || !skips.activates(&op, T::FLOAT) {
                continue;
            }
            let beyond = [2.0, 3.0, 20.0].map(|s| T::from_f32(s * limit + 1.0));
            let ups = Numbers::new(7).values::<T>(200, 3.0 * limit);
            let beyond = pairs(&beyond, &ups);
            let got = h.act_on_pairs(&op, &beyond)?;
            let product = |(_, up): &(T, T)| {
                // Exact in f64, then rounded once.
                T::from_f64(f64::from(limit) * f64::from(up.to_f32().clamp(-limit, limit)))
            };
            let want: Vec<T> = beyond.iter().map(product).collect();
            same_bits(&op, &beyond, &got, &want)?;

            let all = around::<T>(limit);
            let only_ups: Vec<_> = all
                .iter()
                .zip(clamped(&all, limit))
                .map(|(&(gate, _), (_, up))| (gate, up))
                .collect();
            let got = h.act_on_pairs(&op, &all)?;
            same_bits(&op, &all, &got, &h.act_on_pairs(&op, &only_ups)?)?;
        }
        Ok(())
    }
    let skips = &mut Skips::new(h, "the_clamp_of_step_is_after_the_activation");
    in_every_type!(check(h, skips))
}

/// Every limit, also those that no 16-bit type represents, against the reference.
///
/// # Errors
/// The first result that is too far off.
pub fn limits_against_the_reference<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    fn check<T: Element, B: ActAndMul>(
        h: &Harness<B>,
        skips: &mut Skips<'_, B>,
    ) -> Result<(), Failure> {
        for (limit, rounding) in LIMITS.into_iter().flat_map(|l| ROUNDINGS.map(|r| (l, r))) {
            for op in [
                GatedActivation::silu_and_mul_with_clamp(limit, 1.0, 0.0)?,
                GatedActivation::silu_and_mul_with_clamp(limit, 1.702, 1.0)?,
                GatedActivation::swigluoai_and_mul(limit, 1.702)?,
                GatedActivation::swiglustep_and_mul(limit)?,
            ] {
                compare(h, skips, &op.with_rounding(rounding), &around::<T>(limit))?;
            }
        }
        Ok(())
    }
    let skips = &mut Skips::new(h, "limits_against_the_reference");
    in_every_type!(check(h, skips))
}

fn compare<T: Element, B: ActAndMul>(
    h: &Harness<B>,
    skips: &mut Skips<'_, B>,
    op: &GatedActivation,
    pairs: &[(T, T)],
) -> Result<(), Failure> {
    if !skips.activates(op, T::FLOAT) {
        return Ok(());
    }
    let got = h.act_on_pairs(op, pairs)?;
    against_reference(op, pairs, &got, &h.accuracy, &mut Tally::default())
}

/// Slopes, offsets, thresholds and bounds other than the models' are taken from the operation.
///
/// # Errors
/// The first result that is too far off.
pub fn alpha_and_beta<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    let mut ops = Vec::new();
    for (alpha, beta) in [(0.5, 0.0), (1.0, -0.75), (3.25, 0.5), (1.702, 1.0)] {
        ops.push(GatedActivation::silu_and_mul_with_clamp(3.0, alpha, beta)?);
    }
    ops.push(GatedActivation::swigluoai_and_mul(3.0, 0.625)?);
    for threshold in [-1.5, 0.25, 2.0] {
        ops.push(GatedActivation::fatrelu_and_mul(threshold)?);
    }
    for (beta, bound) in [(1.5, Some(3.0)), (4.0, None), (0.25, Some(100.0))] {
        ops.push(GatedActivation::situ_and_mul(beta, bound)?);
    }
    let skips = &mut Skips::new(h, "alpha_and_beta");
    for (op, rounding) in ops.iter().flat_map(|op| ROUNDINGS.map(|r| (op, r))) {
        let op = op.with_rounding(rounding);
        compare(h, skips, &op, &around::<bf16>(3.0))?;
        compare(h, skips, &op, &around::<f16>(3.0))?;
        compare(h, skips, &op, &around::<f32>(3.0))?;
    }
    Ok(())
}
