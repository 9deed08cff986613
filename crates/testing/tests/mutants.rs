//! Deliberately wrong backends: the suite must catch each of them.
#![allow(clippy::unwrap_used)] // Helpers of tests may panic as tests may.

mod mutant;

use std::fmt::Write;

use mutant::{Fault, Mutant};
use swiglu_core::reference::Reference;
use swiglu_testing::{Expectations, Harness};

/// The checks that catch a fault.
fn caught_by(fault: Fault, expectations: Expectations) -> Vec<&'static str> {
    let harness = Harness::new(Mutant(fault), expectations);
    let checks = Harness::<Mutant>::checks().iter();
    checks
        .filter(|(_, check)| check(&harness).is_err())
        .map(|(name, _)| *name)
        .collect()
}

/// Looks for a fault in the checks that should see it, and says which of these did not.
fn assert_caught(faults: &[(Fault, &[&str])], expectations: Expectations) {
    let mut missed = String::new();
    for (fault, by) in faults {
        let harness = Harness::new(Mutant(*fault), expectations);
        for (name, check) in Harness::<Mutant>::checks() {
            if by.contains(name) && check(&harness).is_ok() {
                writeln!(missed, "{fault:?} passed {name}").unwrap();
            }
        }
    }
    assert!(missed.is_empty(), "{missed}");
}

const CLAMP: &str = "the_clamp_is_before_the_activation";
const LIMITS: &str = "limits_against_the_reference";
const SPECIAL: &str = "special_pairs";
const SHAPES: &str = "shapes_and_strides";
const GATES: &str = "every_16_bit_gate";
const EXACT: &str = "products_of_exact_sums";
const FUSED: &str = "fused_equals_unfused";

/// Every fault with the checks that are made for it. The list is that of the enumeration, so that
/// a fault without checks does not go unseen.
const CAUGHT: &[(Fault, &[&str])] = &[
    (Fault::NoClamp, &[CLAMP, LIMITS, SPECIAL, GATES]),
    (Fault::ClampAfter, &[CLAMP, LIMITS]),
    (Fault::GateClampedOnBothSides, &[CLAMP, LIMITS, GATES]),
    (Fault::UpClampedAboveOnly, &[CLAMP, LIMITS, SPECIAL]),
    (Fault::NanSwallowed, &[SPECIAL, GATES]),
    (Fault::LayoutsMixedUp, &[SHAPES, SPECIAL]),
    (Fault::HalvesSwapped, &[SHAPES, SPECIAL, GATES]),
    (Fault::TailNotWritten, &[SHAPES, "random_shapes_and_values"]),
    (Fault::OneRoundingTooMany, &[GATES]),
    (Fault::OneRoundingTooFew, &[GATES]),
    (Fault::BetaIgnored, &["alpha_and_beta", LIMITS, SPECIAL]),
    (Fault::AlphaIgnored, &["alpha_and_beta", LIMITS, SPECIAL]),
    (Fault::InputStrideIgnored, &[SHAPES]),
    (Fault::OutputStrideIgnored, &[SHAPES]),
    (
        Fault::InputOffsetIgnored,
        &[SHAPES, "rows_alone_equal_the_batch"],
    ),
    (
        Fault::OutputOffsetIgnored,
        &[SHAPES, "rows_alone_equal_the_batch"],
    ),
    (Fault::WritesPastTheRow, &[SHAPES]),
    (Fault::WritesForNoRows, &["no_rows_write_nothing"]),
    (Fault::IndexWraps, &[SHAPES]),
    (Fault::SubnormalsFlushed, &[SPECIAL]),
    (Fault::ZeroLosesItsSign, &[SPECIAL]),
    (Fault::ArgumentsUnchecked, &["arguments_are_named"]),
    (Fault::PartsSwapped, &[EXACT, "products_within_the_bound"]),
    (
        Fault::ScalesIgnored,
        &[EXACT, "a_nan_scale_stays_in_its_block"],
    ),
    (Fault::XStrideIgnored, &[EXACT]),
    (Fault::ProductTruncates, &[EXACT]),
    (Fault::FusedSkipsRounding, &[FUSED]),
    (Fault::FusedSkipsClamp, &[FUSED]),
];

#[test]
fn every_fault_is_caught_by_the_checks_made_for_it() {
    assert!(CAUGHT.iter().map(|(fault, _)| fault).eq(Fault::ALL));
    assert_caught(CAUGHT, Expectations::exact());
}

/// With the tolerance of shaders too, but for the two faults that are none there.
#[test]
fn the_tolerance_of_shaders_hides_no_fault() {
    let flushing = [Fault::SubnormalsFlushed, Fault::ZeroLosesItsSign];
    let faults = CAUGHT.iter().filter(|(f, _)| !flushing.contains(f));
    assert_caught(&faults.copied().collect::<Vec<_>>(), Expectations::shader());
}

#[test]
fn the_right_backend_passes_under_every_expectation() {
    for expectations in [Expectations::exact(), Expectations::shader()] {
        let harness = Harness::new(Reference, expectations);
        for name in [CLAMP, LIMITS, SPECIAL] {
            let checks = Harness::<Reference>::checks();
            let (_, check) = checks.iter().find(|(n, _)| *n == name).unwrap();
            check(&harness).unwrap();
        }
    }
    assert_eq!(caught_by(Fault::None, Expectations::exact()), [""; 0]);
}
