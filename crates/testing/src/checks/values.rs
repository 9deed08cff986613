use swiglu_core::{ActAndMul, DType, Element, GatedActivation, bf16, f16};

use super::in_every_type;
use crate::compare::{Tally, against_reference};
use crate::inputs::{Numbers, limit_of, pairs, special_values};
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

/// Every pair of gate and up from the values where the operation or the format turns.
///
/// # Errors
/// The first result that differs from the reference.
pub fn special_pairs<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    fn check<T: Element, B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
        for op in h.activations(T::DTYPE) {
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

/// Ups below every model's limit, in the upper half of their binade. Their last bit is set before
/// use: ups of few bits, and a limit is one, make products that lie exactly between two values,
/// where the oracle sees more than f32 can.
const UPS: [f32; 12] = [
    1.7031, -0.3547, 5.867, -2.917, 0.013_31, 6.89, -0.000_92, 0.709, -3.17, 3.353, -0.1111, 1.517,
];

/// All 65,536 gates of bf16 and of f16 with a spread of ups: within the ulps that the contract
/// allows, and nearly all correctly rounded.
///
/// # Errors
/// The first result that is too far off, or too many that are not correctly rounded.
pub fn every_16_bit_gate<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    fn check<T: Element, B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
        let ups = &UPS[..h.expectations.size.pick(3, UPS.len())];
        for op in h.activations(T::DTYPE) {
            let mut tally = Tally::default();
            for &up in ups {
                let up = T::from_bits(T::from_f32(up).to_bits() | 1);
                let pairs: Vec<_> = (0..=0xffff).map(|b| (T::from_bits(b), up)).collect();
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
    let mut numbers = Numbers::new(0xf32);
    let each = h.expectations.size.pick(24, 1024);
    let mut pairs: Vec<(f32, f32)> = Vec::new();
    for top in 0..512_u32 {
        for _ in 0..each {
            let bits = (top << 23) | numbers.below(1 << 23) as u32;
            let exponent = 117 + numbers.below(21) as u32;
            let up = (exponent << 23) | numbers.below(1 << 23) as u32;
            pairs.push((f32::from_bits(bits), f32::from_bits(up)));
        }
    }
    for _ in 0..512 * each {
        pairs.push((numbers.within(24.0), numbers.within(12.0)));
    }
    for op in h.activations(DType::F32) {
        let got = h.act_on_pairs(&op, &pairs)?;
        let tally = &mut Tally::default();
        against_reference(&op, &pairs, &got, &h.expectations, tally)?;
    }
    Ok(())
}
