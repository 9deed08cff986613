use std::sync::Arc;

use swiglu_core::{DType, GatedMatmul, Quantisation, Support};

use super::{Fault, Mutant};
use crate::suite::{may_skip, skip};
use crate::{Expectations, Harness};

const CLAMP: &str = "the_clamp_is_before_the_activation";
const LIMITS: &str = "limits_against_the_reference";
const SPECIAL: &str = "special_pairs";
const SHAPES: &str = "shapes_and_strides";
const RANDOM: &str = "random_shapes_and_values";
const GATES: &str = "every_16_bit_gate";
const ALPHA: &str = "alpha_and_beta";
const ALONE: &str = "rows_alone_equal_the_batch";
const EXACT: &str = "products_of_exact_sums";
const FUSED: &str = "fused_equals_unfused";
const MATRICES: &str = "matrices_are_quantised";
const TWO_STEPS: &str = "fused_quantisation_equals_two_steps";
const EXACT_QUANT: &str = "quantised_activations_of_exact_products";
const QUANT: &str = "quantised_activations_against_the_reference";
const LOOP: &str = "batches_equal_a_loop";

/// Every fault with the checks that are made for it. The list is that of the enumeration, so that
/// a fault without checks does not go unseen.
pub const CAUGHT: &[(Fault, &[&str])] = &[
    (Fault::NoClamp, &[CLAMP, LIMITS, SPECIAL, GATES]),
    (Fault::ClampAfter, &[CLAMP, LIMITS]),
    (Fault::GateClampedOnBothSides, &[CLAMP, LIMITS, GATES]),
    (Fault::UpClampedAboveOnly, &[CLAMP, LIMITS, SPECIAL]),
    (Fault::NanSwallowed, &[SPECIAL, GATES]),
    (Fault::LayoutsMixedUp, &[SHAPES, SPECIAL]),
    (Fault::HalvesSwapped, &[SHAPES, SPECIAL, GATES]),
    (Fault::TailNotWritten, &[SHAPES, RANDOM]),
    (Fault::TailBeginsLate, &[SHAPES, RANDOM]),
    (Fault::TailReadsItsNeighbour, &[SHAPES, RANDOM]),
    (Fault::OneRoundingTooMany, &[GATES]),
    (Fault::OneRoundingTooFew, &[GATES]),
    (Fault::RoundedTwice, &[GATES]),
    (Fault::BetaIgnored, &[ALPHA, LIMITS, SPECIAL]),
    (Fault::AlphaIgnored, &[ALPHA, LIMITS, SPECIAL]),
    (Fault::InputStrideIgnored, &[SHAPES]),
    (Fault::OutputStrideIgnored, &[SHAPES]),
    (Fault::InputOffsetIgnored, &[SHAPES, ALONE]),
    (Fault::OutputOffsetIgnored, &[SHAPES, ALONE]),
    (Fault::WritesPastTheRow, &[SHAPES]),
    (Fault::WritesForNoRows, &["no_rows_write_nothing"]),
    (Fault::InputIndexWraps, &[SHAPES]),
    (Fault::OutputIndexWraps, &[SHAPES]),
    (Fault::SubnormalsFlushed, &[SPECIAL]),
    (Fault::ZeroLosesItsSign, &[SPECIAL]),
    (Fault::NanIsNotCanonical, &[SPECIAL, GATES]),
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
    (Fault::QuantSkipsClamp, &[TWO_STEPS, QUANT]),
    (Fault::MaterializeReversed, &[EXACT_QUANT]),
    (Fault::FloorIgnored, &[MATRICES, EXACT_QUANT]),
    (Fault::NanMissesTheScale, &[MATRICES]),
    (Fault::QuotientByReciprocal, &["quotients_are_rounded_once"]),
    (Fault::SaturatesToNan, &[MATRICES, EXACT_QUANT]),
    (Fault::LastGroupSharesItsScale, &[MATRICES, QUANT]),
    (Fault::ScaleOrderIgnored, &[MATRICES, EXACT_QUANT]),
    (Fault::PackedPaddingLeft, &[MATRICES, EXACT_QUANT]),
    (Fault::CountsIgnored, &[LOOP, "random_quantised_batches"]),
    (Fault::RouteIgnored, &[QUANT, EXACT_QUANT]),
    (Fault::RouteAfterRounding, &[QUANT]),
    (Fault::HitsOverwritten, &[TWO_STEPS]),
    (Fault::WidenedWithoutScales, &["codes_are_widened"]),
    (
        Fault::QuantArgumentsUnchecked,
        &["quantisation_arguments_are_named"],
    ),
];

/// Whether this is a fault under these expectations: what shaders may do is none of theirs.
fn is_fault(fault: Fault, expectations: &Expectations) -> bool {
    let of_flushing = matches!(fault, Fault::SubnormalsFlushed | Fault::ZeroLosesItsSign);
    !(of_flushing && expectations.flushes_subnormals)
}

/// The faults of the backend, and the checks made for them, that did not see them; and the checks
/// that fail without a fault.
pub fn missed<B: GatedMatmul>(backend: B, expectations: Expectations) -> Vec<String> {
    let backend = Arc::new(backend);
    let fails = |fault, name: &str| {
        let harness = Harness::new(Mutant::new(Arc::clone(&backend), fault), expectations);
        let checks = Harness::<Mutant<B>>::checks().iter();
        let mut checks = checks.filter(|(n, _)| *n == name);
        checks
            .next()
            .is_some_and(|(_, check)| check(&harness).is_err())
    };
    let quantises = backend.supports_quant(&Quantisation::deepseek_v4(), DType::BF16);
    let mut missed = Vec::new();
    let mut used: Vec<&str> = Vec::new();
    for (fault, checks) in CAUGHT.iter().filter(|(f, _)| is_fault(*f, &expectations)) {
        let of_quant = Fault::ALL.iter().position(|f| f == fault)
            >= Fault::ALL.iter().position(|f| *f == Fault::QuantSkipsClamp);
        if let (true, Support::No(reason)) = (of_quant, &quantises) {
            skip(backend.platform(), reason, &format!("{fault:?}"));
            continue;
        }
        for name in *checks {
            if !fails(*fault, name) {
                missed.push(format!("{fault:?} passed {name}"));
            }
        }
        used.extend(*checks);
    }
    used.sort_unstable();
    used.dedup();
    for name in used {
        if fails(Fault::None, name) {
            missed.push(format!("{name} fails without a fault"));
        }
    }
    missed
}

/// The test that [`crate::mutants!`] makes.
///
/// # Panics
/// Where a fault is missed, or the platform is required and could not be opened.
pub fn assert_caught<B: GatedMatmul>(
    platform: &str,
    backend: impl FnOnce() -> Result<B, String>,
    expectations: Expectations,
) {
    match backend() {
        Ok(backend) => {
            let missed = missed(backend, expectations);
            assert!(missed.is_empty(), "{platform}: {}", missed.join("; "));
        }
        Err(reason) => may_skip(platform, &reason, "mutants"),
    }
}
