use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
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

/// Random activations, shapes, strides, offsets and values against the reference. The seed is
/// fixed, so that a failure is there the next time too; what is printed has been shrunk.
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
        let config = Config {
            cases: h.expectations.size.pick(96, 4096),
            failure_persistence: None,
            max_shrink_iters: 1024,
            ..Config::default()
        };
        let seed = [0x5a; 32];
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
        let outcome = TestRunner::new_with_rng(config, rng).run(&case, |case| {
            let (op, rows, d, [a, b, c, e], values) = case;
            let layouts = ActLayouts::contiguous(rows, d).spread([a, b], [c, e]);
            compare(h, &op, &values, d, layouts).map_err(|f| TestCaseError::fail(f.to_string()))
        });
        outcome.map_err(|error| match error {
            TestError::Fail(reason, (op, rows, d, gaps, _)) => Failure::new(format!(
                "{reason}; {op} on {rows} rows of d = {d}, gaps and offsets {gaps:?}, seed 0x5a…"
            )),
            TestError::Abort(reason) => Failure::new(reason.to_string()),
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
