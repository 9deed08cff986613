//! gelu, its tanh form and SiTU in f32, on gates and ups of every size.
#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use swiglu_core::{
    Element, GateUp, GatedActivation, Rounding, RowLayout, Tensor, TensorMut, reference,
};

/// Gates that a vector takes or that it leaves to the reference, of each exponent and sign.
fn gates() -> Vec<f32> {
    let step = 10_007;
    (0..=u32::MAX / step)
        .map(|i| f32::from_bits(i * step))
        .filter(|gate| gate.is_finite())
        .collect()
}

/// The largest error in units of the last place, and the gate and the up that have it.
fn worst(op: &GatedActivation, gates: &[f32], ups: &[f32]) -> (u64, [f32; 2]) {
    let d = gates.len();
    let mut output = vec![0.0; d];
    let row = RowLayout::contiguous(1, d);
    let (gate, up) = (Tensor::from_slice(gates, row), Tensor::from_slice(ups, row));
    let to = TensorMut::from_slice(&mut output, row);
    swiglu_cpu::act_and_mul(op, GateUp::Split { gate, up }, to).unwrap();
    let error = |((&gate, &up), got): ((&f32, &f32), &f32)| {
        let wanted = reference::gated(op, gate, up);
        (u64::from(got.ulps_between(wanted)), [gate, up])
    };
    let errors = gates.iter().zip(ups).zip(&output).map(error);
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
                let gates = gates();
                let (ulps, [gate, up]) = worst(&op, &gates, &vec![up; gates.len()]);
                assert!(ulps <= 4, "{op} of {gate:e} and {up:e}: {ulps} ulp");
            }
        }
    }
}

/// Bounds that vectors take, at both ends of their range too, and others.
#[test]
fn situ_is_within_two_units_of_the_last_place() {
    let small = 2f32.powi(-80);
    for (beta, bound) in [
        (4.0, Some(25.0)),
        (4.0, None),
        (0.37, Some(1e-3)),
        (3e6, Some(0.9)),
        (small, Some(small)),
        (small.next_down(), Some(25.0)),
        (4.0, Some(1e37)),
        (1e30, Some(1e30)),
    ] {
        for rounding in [Rounding::Official, Rounding::Eager] {
            let op = GatedActivation::situ_and_mul(beta, bound).unwrap();
            let op = op.with_rounding(rounding);
            let values = gates();
            for other in [0.0, -0.7, 11.0, 3e20, 1.3e-20, 2e-38] {
                let others = vec![other; values.len()];
                for (gates, ups) in [(&values, &others), (&others, &values)] {
                    let (ulps, [gate, up]) = worst(&op, gates, ups);
                    assert!(ulps <= 2, "{op} of {gate:e} and {up:e}: {ulps} ulp");
                }
            }
        }
    }
}

/// Gates and ups of usual sizes are computed by vectors: an ulp now and then tells.
#[test]
fn situ_of_usual_numbers_is_nearly_exact() {
    let op = GatedActivation::situ_and_mul(4.0, Some(25.0)).unwrap();
    let gates: Vec<f32> = (-400_000..400_000).map(|i| i as f32 * 1e-4).collect();
    let ups = (0..gates.len()).map(|i| (i * 7919 % 400_000) as f32 * 3e-4);
    let (ulps, at) = worst(&op, &gates, &ups.collect::<Vec<_>>());
    assert!((1..=2).contains(&ulps), "{ulps} ulp at {at:?}");
}
