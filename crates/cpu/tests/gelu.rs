//! gelu and its tanh form in f32, on gates and ups of every size.
#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use swiglu_core::{Element, GatedActivation, Rounding, RowLayout, Tensor, TensorMut, reference};

/// Gates that a vector takes or that it leaves to the reference, of each exponent and sign.
fn gates() -> Vec<f32> {
    let step = 10_007;
    (0..=u32::MAX / step)
        .map(|i| f32::from_bits(i * step))
        .filter(|gate| gate.is_finite())
        .collect()
}

/// The largest error in units of the last place, and where it is.
fn worst(op: &GatedActivation, up: f32) -> (u64, f32) {
    let gates = gates();
    let d = gates.len();
    let mut input = gates.clone();
    input.resize(2 * d, up);
    let mut output = vec![0.0; d];
    let from = Tensor::from_slice(&input, RowLayout::contiguous(1, 2 * d));
    let to = TensorMut::from_slice(&mut output, RowLayout::contiguous(1, d));
    swiglu_cpu::act_and_mul(op, from.into(), to).unwrap();
    let error = |(gate, got): (&f32, &f32)| {
        let wanted = reference::gated(op, *gate, up);
        (u64::from(got.ulps_between(wanted)), *gate)
    };
    let errors = gates.iter().zip(&output).map(error);
    errors.max_by_key(|(ulps, _)| *ulps).unwrap()
}

#[test]
fn gelus_are_within_four_units_of_the_last_place() {
    for op in [
        GatedActivation::gelu_and_mul(),
        GatedActivation::gelu_tanh_and_mul(),
    ] {
        for rounding in [Rounding::Official, Rounding::Eager] {
            let op = op.with_rounding(rounding);
            for up in [1.0, -0.7, 3e20, 1.3e-20, 2e-38] {
                let (ulps, gate) = worst(&op, up);
                assert!(ulps <= 4, "{op} of {gate:e} and {up:e}: {ulps} ulp");
            }
        }
    }
}
