//! Parameters of any size that f32 has: results that are normal numbers lose nothing to them.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

mod common;

use common::open;
use swiglu_core::{Backend, Element, Float, GatedActivation, Rounding, bf16, f16, reference};
use swiglu_wgpu::WgpuBackend;

const SUBNORMAL: f32 = 1e-39;

fn operations() -> Vec<GatedActivation> {
    let clamped = GatedActivation::silu_and_mul_with_clamp;
    let mut all = Vec::new();
    for alpha in [
        SUBNORMAL,
        1e-30,
        1e-9,
        1e-4,
        0.5,
        1e4,
        3e4,
        1e9,
        1e30,
        f32::MAX,
    ] {
        all.push(clamped(f32::MAX, alpha, 0.0).unwrap());
    }
    for limit in [SUBNORMAL, 1e-36, 1e-20, 10.0, 1e30, f32::MAX] {
        for add in [
            0.0,
            1.0,
            SUBNORMAL,
            -SUBNORMAL,
            1e-30,
            1e6,
            -1e20,
            3e38,
            -f32::MAX,
        ] {
            all.push(clamped(limit, 1.0, add).unwrap());
        }
        all.push(GatedActivation::swiglustep_and_mul(limit).unwrap());
    }
    for beta in [SUBNORMAL, 1e-20, 1e-3, 4.0, 1e20, f32::MAX] {
        for bound in [
            None,
            Some(SUBNORMAL),
            Some(1e-9),
            Some(25.0),
            Some(f32::MAX),
        ] {
            all.push(GatedActivation::situ_and_mul(beta, bound).unwrap());
        }
    }
    all
}

/// Numbers of every size, on both sides of 0.
fn numbers<T: Element>() -> Vec<T> {
    let of_size = (-38..=38).step_by(2).map(|e| 1.7 * 10_f32.powi(e));
    let others = [0.0, 1e-41, 3.0, 9.9, 60.0, 88.8, 120.0, 600.0, 800.0];
    let all = of_size.chain(others).flat_map(|x| [x, -x]);
    all.map(T::from_f32)
        .filter(|x| x.to_f32().is_finite())
        .collect()
}

fn holds<T: Element>(backend: &WgpuBackend, op: &GatedActivation) {
    // As many by each of two roundings, of which the first may be on the other side of a tie.
    let ulps = match op.rounding() {
        Rounding::Official => backend.accuracy().ulps(T::FLOAT),
        Rounding::Eager => 2 * backend.accuracy().ulps(T::FLOAT),
    };
    let least = match T::FLOAT {
        Float::F16 => 2_f32.powi(-14),
        Float::F32 | Float::BF16 => f32::MIN_POSITIVE,
    };
    let numbers = numbers::<T>();
    let gates = numbers.iter().flat_map(|g| numbers.iter().map(move |_| *g));
    let ups = numbers.iter().flat_map(|_| numbers.iter().copied());
    let row: Vec<T> = gates.chain(ups).collect();
    let d = row.len() / 2;
    let got = backend.act_and_mul_slice(op, &row, d).unwrap();
    for (j, got) in got.into_iter().enumerate() {
        let (gate, up) = (row[j], row[d + j]);
        let want = reference::gated(op, gate, up);
        let [x, y] = [got, want].map(T::to_f32);
        let near = match y.abs() >= least {
            true => !got.is_nan() && got.ulps_between(want) <= ulps,
            false => x.abs() <= least,
        };
        assert!(
            near || x.is_nan() && y.is_nan(),
            "{op} in {}: of gate {:e} and up {:e} came {x:e}, not {y:e}",
            T::FLOAT,
            gate.to_f32(),
            up.to_f32(),
        );
    }
}

#[test]
fn parameters_of_any_size_lose_nothing() {
    let Some(backend) = open(false) else {
        return;
    };
    for op in operations() {
        holds::<f32>(backend, &op);
        holds::<f16>(backend, &op);
        holds::<bf16>(backend, &op);
    }
    // In `Eager` what a limit becomes is rounded before and after the function.
    for limit in [SUBNORMAL, 1e-36, 1e-20, 1e30] {
        let op = GatedActivation::silu_and_mul_with_clamp(limit, 1.0, 3e38).unwrap();
        holds::<bf16>(backend, &op.with_rounding(Rounding::Eager));
        let op = GatedActivation::swiglustep_and_mul(limit).unwrap();
        holds::<bf16>(backend, &op.with_rounding(Rounding::Eager));
    }
}
