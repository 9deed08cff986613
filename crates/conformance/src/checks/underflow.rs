use swiglu_core::{ActAndMul, Element, Function, GatedActivation, bf16, f16};

use super::in_every_type;
use crate::compare::{Tally, against_reference, against_reference_where_normal};
use crate::inputs::{Numbers, pairs};
use crate::skips::Skips;
use crate::{Failure, Harness};

/// Slopes, limits and what is added to up, at which a gate's side underflows while its product with
/// the up half does not; beside the family's own.
fn with_parameters() -> Result<Vec<GatedActivation>, Failure> {
    let clamped = GatedActivation::silu_and_mul_with_clamp;
    Ok(vec![
        clamped(10.0, 1.0, 0.0)?,
        clamped(80.0, 1.0, 0.0)?,
        clamped(f32::MAX, 1.0, 0.0)?,
        clamped(f32::MAX, 1e-20, -3.5)?,
        clamped(f32::MAX, 6e-37, 1.0)?,
        clamped(f32::MAX, 3e4, 0.0)?,
        clamped(1e-30, 1.0, 3e38)?,
        GatedActivation::swigluoai_and_mul(1e30, 1.702)?,
        GatedActivation::swiglustep_and_mul(1e30)?,
        GatedActivation::fatrelu_and_mul(1e-41)?,
        GatedActivation::situ_and_mul(1e-39, Some(1e-39))?,
        GatedActivation::situ_and_mul(1e30, Some(1e30))?,
        GatedActivation::situ_and_mul(4.0, None)?,
    ])
}

/// Gates from where exp(-alpha · |gate|) is an ordinary number to where f32 and f64 have it no more,
/// those whose half is subnormal, and the largest.
fn gates<T: Element>(op: &GatedActivation) -> Vec<T> {
    let alpha = match op.function() {
        Function::Silu { alpha } => alpha,
        _ => 1.0,
    };
    let depths = [
        4.4, 4.6, 4.9, 5.1, 8.9, 9.5, 10.7, 12.5, 12.7, 13.9, 26.0, 60.0, 78.9, 79.1, 80.0, 85.0,
        87.0, 87.4, 88.0, 88.8, 90.0, 92.5, 95.0, 99.0, 103.0, 104.5, 108.0, 113.0, 120.0, 128.0,
        140.0, 150.0, 165.0, 171.0, 180.0, 200.0, 260.0, 340.0, 440.0, 600.0, 700.0,
    ];
    let mut gates: Vec<T> = depths
        .into_iter()
        .flat_map(|z: f32| [z, -z])
        .map(|z| T::from_f32(z / alpha))
        .collect();
    let tiny = [1, 2, 3, 5, 0x33, 0x7f, 0x80, 0x81, 0x3ff, 0x0123_4567];
    let bits = tiny
        .into_iter()
        .filter(|bits| bits >> (8 * T::FLOAT.size() - 1) == 0);
    gates.extend(bits.map(T::from_bits));
    gates.extend([1e-44, -2e-39, 1.3e-38, -1e-30, 1e-9, 3e38, 1.1e20].map(T::from_f32));
    gates
}

fn ups<T: Element>() -> Vec<T> {
    let ups = [
        1.0,
        0.7031,
        6.3,
        1.9e5,
        1.1e10,
        7.7e19,
        1.3e29,
        2.2e30,
        4e37,
        3.3e38,
        f32::INFINITY,
        1e-3,
        1.7e-10,
        3.1e-30,
        1.3e-38,
        2e-40,
        0.0,
    ];
    ups.into_iter()
        .flat_map(|up: f32| [up, -up])
        .map(T::from_f32)
        .collect()
}

/// Where the exponential, the gate's side or its product underflows or overflows on the way, nothing
/// is lost that the result can hold: bf16 gate -128 with up 4e37 is -1.32e-16, not 0.
///
/// # Errors
/// The first result that differs from the reference.
pub fn nothing_is_lost_where_exp_underflows<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    fn check<T: Element, B: ActAndMul>(
        h: &Harness<B>,
        skips: &mut Skips<'_, B>,
    ) -> Result<(), Failure> {
        let mut ops = skips.activations(T::FLOAT);
        for op in with_parameters()? {
            ops.extend(skips.roundings(op, T::FLOAT));
        }
        for op in ops {
            // Padded by ordinary pairs, so that a vector holds both kinds.
            let mut pairs = pairs(&gates::<T>(&op), &ups::<T>());
            let ordinary = (T::from_f32(0.75), T::from_f32(-1.5));
            let spread: Vec<_> = pairs.iter().step_by(7).copied().collect();
            for pair in spread {
                pairs.extend([pair, ordinary, ordinary, ordinary, ordinary]);
            }
            let got = h.act_on_pairs(&op, &pairs)?;
            against_reference_where_normal(&op, &pairs, &got, &h.accuracy)?;
        }
        Ok(())
    }
    let skips = &mut Skips::new(h, "nothing_is_lost_where_exp_underflows");
    in_every_type!(check(h, skips))
}

/// Gates and ups from a normal distribution: 99.9 % of the results in 16 bits are correctly rounded,
/// for every activation in both roundings.
///
/// # Errors
/// The first result that is too far off, or too many that are not correctly rounded.
pub fn normal_inputs_are_correctly_rounded<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    fn check<T: Element, B: ActAndMul>(
        h: &Harness<B>,
        skips: &mut Skips<'_, B>,
    ) -> Result<(), Failure> {
        let mut numbers = Numbers::new(0x0707);
        let count = h.size.pick(1 << 15, 1 << 20);
        for deviation in [1.0, 3.0] {
            let mut next = || T::from_f32(deviation * numbers.normal());
            let pairs: Vec<(T, T)> = (0..count).map(|_| (next(), next())).collect();
            for op in skips.activations(T::FLOAT) {
                let got = h.act_on_pairs(&op, &pairs)?;
                let mut tally = Tally::default();
                against_reference(&op, &pairs, &got, &h.accuracy, &mut tally)?;
                tally.check(&op, T::FLOAT)?;
            }
        }
        Ok(())
    }
    let skips = &mut Skips::new(h, "normal_inputs_are_correctly_rounded");
    check::<bf16, B>(h, skips)?;
    check::<f16, B>(h, skips)
}
