//! FP4 weights that are read with a fault.

use swiglu_core::{E8M0, HostWeight, Result, WeightFormat};

use super::Fault;

/// The weight as a backend with the fault reads it; the same where it is no fault of FP4.
pub(super) fn altered<'a>(fault: Fault, weight: HostWeight<'a>) -> Result<HostWeight<'a>> {
    if weight.format() != WeightFormat::Fp4 {
        return Ok(weight);
    }
    let (mut data, mut scales) = (weight.data().to_vec(), weight.scales().to_vec());
    match fault {
        Fault::HighNibbleFirst => data.iter_mut().for_each(|b| *b = b.rotate_left(4)),
        Fault::Fp4ScalesIgnored => scales.fill(E8M0::ONE.0),
        Fault::Fp4GroupsShifted => scales.rotate_left(1),
        _ => return Ok(weight),
    }
    let shape = [weight.rows(), weight.cols()];
    HostWeight::owned(shape, weight.format(), data, scales)
}
