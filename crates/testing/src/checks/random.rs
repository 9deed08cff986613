use std::fmt;

use proptest::prelude::*;
use proptest::test_runner::{
    Config, FileFailurePersistence, RngAlgorithm, TestError, TestRng, TestRunner,
};
use swiglu_core::{ActAndMul, Element, GatedActivation, Rounding};

use super::in_every_type;
use crate::compare::{Tally, against_reference, pairs_of_rows};
use crate::inputs::special_values;
use crate::{ActLayouts, Failure, Harness};

/// Any bits, special values, and values of ordinary size, in like shares.
fn element<T: Element>() -> impl Strategy<Value = T> {
    prop_oneof![
        any::<u32>().prop_map(|b| T::from_bits(b >> (32 - 8 * T::DTYPE.size()))),
        proptest::sample::select(special_values::<T>(10.0)),
        (-25.0_f32..25.0).prop_map(T::from_f32),
    ]
}

fn activation() -> impl Strategy<Value = GatedActivation> {
    let op = proptest::sample::select(GatedActivation::ALL.to_vec());
    let rounding = proptest::sample::select(vec![Rounding::Official, Rounding::Eager]);
    (op, rounding).prop_map(|(op, rounding)| op.with_rounding(rounding))
}

/// The environment variable with a number that random cases follow from, 0 unless given.
pub const SEED: &str = "SWIGLU_SEED";

/// Runs a check on random cases: those of the harness's file of regressions first, then as many
/// as asked for. The seed is fixed, so that a failure is there the next time too; what is told has
/// been shrunk.
pub(super) fn on_random_cases<S: Strategy, B>(
    h: &Harness<B>,
    cases: u32,
    strategy: &S,
    check: impl Fn(S::Value) -> Result<(), Failure>,
) -> Result<(), Failure>
where
    S::Value: fmt::Debug,
{
    let text = std::env::var(SEED).unwrap_or_default();
    let seed: u64 = text.parse().unwrap_or(0);
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

/// Random activations, shapes, strides, offsets and values against the reference.
///
/// # Errors
/// The smallest failing case found.
pub fn random_shapes_and_values<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    fn check<T: Element, B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
        let gap = || 0_usize..20;
        let case = (
            activation(),
            0_usize..6,
            1_usize..70,
            [gap(), gap(), gap(), gap()],
        )
            .prop_flat_map(|(op, rows, d, gaps)| {
                let values = proptest::collection::vec(element::<T>(), rows * 2 * d);
                (Just(op), Just(rows), Just(d), Just(gaps), values)
            });
        let cases = h.expectations.size.pick(96, 4096);
        on_random_cases(h, cases, &case, |(op, rows, d, gaps, values)| {
            let [a, b, c, e] = gaps;
            let layouts = ActLayouts::contiguous(rows, d).spread([a, b], [c, e]);
            compare(h, &op, &values, d, layouts)
                .map_err(|f| f.within(format!("{rows} rows of d = {d}, gaps and offsets {gaps:?}")))
        })
    }
    in_every_type!(check(h))
}

fn compare<T: Element, B: ActAndMul>(
    h: &Harness<B>,
    op: &GatedActivation,
    values: &[T],
    d: usize,
    layouts: ActLayouts,
) -> Result<(), Failure> {
    if !h.backend.supports(op, T::DTYPE).runs() {
        return Ok(());
    }
    let got = h.act_on_rows(op, values, layouts)?;
    let pairs = pairs_of_rows(op, values, d);
    against_reference(op, &pairs, &got, &h.expectations, &mut Tally::default())
}
