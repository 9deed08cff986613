//! Every two platforms that are here give the same results, as far as the contract goes.
#![allow(clippy::unwrap_used)] // A helper of a test fails by panicking.

use std::sync::Arc;

use swiglu::{
    AnyBackend, Element, Float, GatedActivation, Request, Rounding, RowLayout, Tensor, TensorMut,
    bf16, f16,
};
use swiglu_conformance::inputs::{
    every_exponent, every_gate, limit_of, pairs, special_values, spread_of_ups,
};

mod common;
use common::platforms;

fn run<T: Element>(backend: &AnyBackend, op: &GatedActivation, pairs: &[(T, T)]) -> Vec<T> {
    let d = pairs.len();
    let mut row = vec![T::default(); 2 * d];
    for (j, &(gate, up)) in pairs.iter().enumerate() {
        let (g, u) = op.positions(d, j);
        (row[g], row[u]) = (gate, up);
    }
    let mut y = vec![T::default(); d];
    let input = Tensor::from_slice(&row, RowLayout::contiguous(1, 2 * d));
    let output = TensorMut::from_slice(&mut y, RowLayout::contiguous(1, d));
    backend.act_and_mul(op, input.into(), output).unwrap();
    y
}

/// How far apart two platforms may be: both within their bounds of the exact value, in f32 those
/// that they promise.
fn ulps(float: Float, rounding: Rounding, platforms: [&AnyBackend; 2]) -> u32 {
    match (float, rounding) {
        (Float::F32, _) => platforms.map(|p| p.accuracy().f32_ulps).iter().sum(),
        (_, Rounding::Official) => 1,
        (_, Rounding::Eager) => 2,
    }
}

/// Below this f32's exponential underflows, or is flushed.
const NEGLIGIBLE: f32 = 1e-30;

fn agree<T: Element>(all: impl Fn(&GatedActivation) -> Vec<(T, T)>, identical_of_1000: usize) {
    let platforms = platforms();
    for op in GatedActivation::ALL {
        for rounding in [Rounding::Official, Rounding::Eager] {
            let op = op.with_rounding(rounding);
            let mut pairs = all(&op);
            // Half of a subnormal gate lies between two values of the type, where it is rounded.
            let of_subnormal = |gate: &T| {
                let smallest = if T::FLOAT == Float::F16 {
                    2f32.powi(-14)
                } else {
                    f32::MIN_POSITIVE
                };
                rounding == Rounding::Eager && gate.to_f32().abs() < smallest
            };
            pairs.retain(|(gate, _)| !of_subnormal(gate));
            let request = Request::Activation {
                op,
                float: T::FLOAT,
            };
            let run = |(_, b): &'static (String, Arc<AnyBackend>)| {
                b.supports(&request)
                    .runs()
                    .then(|| (&**b, run(b, &op, &pairs)))
            };
            let results: Vec<_> = platforms.iter().filter_map(run).collect();
            for (i, (a, of_a)) in results.iter().enumerate() {
                for (b, of_b) in &results[i + 1..] {
                    let bar = ulps(T::FLOAT, rounding, [a, b]);
                    let (a, b) = (a.platform(), b.platform());
                    let mut identical = 0;
                    for ((x, y), (gate, up)) in of_a.iter().zip(of_b).zip(&pairs) {
                        let tiny = |x: &T| x.to_f32().abs() < NEGLIGIBLE;
                        let same = x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan());
                        let nans = x.is_nan() || y.is_nan();
                        assert!(
                            same || !nans && (x.ulps_between(*y) <= bar || tiny(x) && tiny(y)),
                            "{op} in {}, gate {gate:?} ({:#x}), up {up:?} ({:#x}): \
                             {a} gives {x:?} ({:#x}), {b} {y:?} ({:#x})",
                            T::FLOAT,
                            gate.to_bits(),
                            up.to_bits(),
                            x.to_bits(),
                            y.to_bits(),
                        );
                        identical += usize::from(same || tiny(x) && tiny(y));
                    }
                    let count = pairs.len();
                    assert!(
                        identical * 1000 >= identical_of_1000 * count,
                        "{op} in {}: {identical} of {count} are the same on {a} and {b}",
                        T::FLOAT
                    );
                }
            }
        }
    }
}

/// All gates with ups whose products are no ties; each platform rounds 99.9 % of them right.
fn gates<T: Element>(_: &GatedActivation) -> Vec<(T, T)> {
    spread_of_ups::<T>(3)
        .into_iter()
        .flat_map(every_gate)
        .collect()
}

/// Where the operation and the format turn; of ups only those that do not lift what has underflown.
fn special<T: Element>(op: &GatedActivation) -> Vec<(T, T)> {
    let values = special_values::<T>(limit_of(op));
    let moderate = |x: &T| x.is_nan() || x.to_f32().abs() < 1e3;
    let ups: Vec<T> = values.iter().copied().filter(moderate).collect();
    pairs(&values, &ups)
}

#[test]
fn on_every_gate_of_16_bits() {
    agree::<bf16>(gates, 998);
    agree::<f16>(gates, 998);
}

#[test]
fn on_gates_of_f32() {
    agree::<f32>(|_| every_exponent(16), 0);
}

#[test]
fn on_special_values() {
    agree::<bf16>(special, 0);
    agree::<f16>(special, 0);
    agree::<f32>(special, 0);
}
