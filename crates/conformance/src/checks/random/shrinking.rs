//! Random cases from proptest: those of the harness's file of regressions first, then as many as
//! asked for. What is told has been shrunk.

use std::fmt;

use proptest::prelude::*;
use proptest::test_runner::{
    Config, FileFailurePersistence, RngAlgorithm, TestError, TestRng, TestRunner,
};
use swiglu_core::{Element, GatedActivation, Quantization, ScaleOrder};

use super::{ActCase, BatchCase, SEED, seed};
use crate::inputs::special_values;
use crate::{Failure, Harness};

/// Any bits, special values, and values of ordinary size, in like shares.
fn element<T: Element>() -> impl Strategy<Value = T> {
    prop_oneof![
        any::<u32>().prop_map(|b| T::from_bits(b >> (32 - 8 * T::FLOAT.size()))),
        proptest::sample::select(special_values::<T>(10.0)),
        (-25.0_f32..25.0).prop_map(T::from_f32),
    ]
}

fn on_random_cases<S: Strategy, B>(
    h: &Harness<B>,
    cases: u32,
    strategy: &S,
    check: impl Fn(S::Value) -> Result<(), Failure>,
) -> Result<(), Failure>
where
    S::Value: fmt::Debug,
{
    let seed = seed();
    let config = Config {
        cases,
        failure_persistence: h
            .regressions
            .map(|file| Box::new(FileFailurePersistence::Direct(file)) as _),
        max_shrink_iters: 1024,
        ..Config::default()
    };
    let bytes: [u8; 32] = std::array::from_fn(|i| seed.to_le_bytes()[i % 8] ^ 0x5a);
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let outcome = TestRunner::new_with_rng(config, rng).run(strategy, |case| {
        check(case).map_err(|f| TestCaseError::fail(f.to_string()))
    });
    outcome.map_err(|error| match error {
        TestError::Fail(reason, _) => Failure::new(format!("{reason}; {SEED}={seed}")),
        TestError::Abort(reason) => Failure::new(reason.to_string()),
    })
}

pub(super) fn on_activations<T: Element, B>(
    h: &Harness<B>,
    cases: u32,
    ops: &[GatedActivation],
    check: impl Fn(ActCase<T>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let gap = || 0_usize..20;
    let op = proptest::sample::select(ops.to_vec());
    let gaps = [gap(), gap(), gap(), gap()];
    let case = (op, 0_usize..6, 1_usize..70, gaps).prop_flat_map(|(op, rows, d, gaps)| {
        let values = proptest::collection::vec(element::<T>(), rows * 2 * d);
        values.prop_map(move |values| ActCase {
            op,
            rows,
            d,
            gaps,
            values,
        })
    });
    on_random_cases(h, cases, &case, check)
}

pub(super) fn on_batches<B>(
    h: &Harness<B>,
    cases: u32,
    (ops, kinds): (&[GatedActivation], &[(Quantization, ScaleOrder)]),
    check: impl Fn(BatchCase) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let case = (
        proptest::sample::select(ops.to_vec()),
        proptest::sample::select(kinds.to_vec()),
        1_usize..5,
        proptest::collection::vec(-1_i32..6, 1..5),
        1_usize..300,
        0_usize..20,
        0_usize..9,
        (any::<bool>(), any::<u64>()),
    );
    let case = case.prop_map(
        |(op, kind, batch, counts, d, gap, offset, (routed, seed))| BatchCase {
            op,
            kind,
            batch,
            counts,
            d,
            gap,
            offset,
            routed,
            seed,
        },
    );
    on_random_cases(h, cases, &case, check)
}
