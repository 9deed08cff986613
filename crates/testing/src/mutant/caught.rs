use std::sync::Arc;

use swiglu_core::{DType, GatedMatmul, Quantization, Support};

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
const MATRICES: &str = "matrices_are_quantized";
const TWO_STEPS: &str = "fused_quantization_equals_two_steps";
const EXACT_QUANT: &str = "quantized_activations_of_exact_products";
const QUANT: &str = "quantized_activations_against_the_reference";
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
    (Fault::CountsIgnored, &[LOOP, "random_quantized_batches"]),
    (Fault::RouteIgnored, &[QUANT, EXACT_QUANT]),
    (Fault::RouteAfterRounding, &[QUANT]),
    (Fault::HitsOverwritten, &[TWO_STEPS]),
    (Fault::WidenedWithoutScales, &["codes_are_widened"]),
    (
        Fault::QuantArgumentsUnchecked,
        &["quantization_arguments_are_named"],
    ),
];

/// Whether this is a fault under these expectations: what shaders may do is none of theirs.
fn is_fault(fault: Fault, expectations: &Expectations) -> bool {
    let of_flushing = matches!(fault, Fault::SubnormalsFlushed | Fault::ZeroLosesItsSign);
    !(of_flushing && expectations.flushes_subnormals)
}

/// Whether a check of a backend with a fault fails.
fn fails<B: GatedMatmul>(
    backend: &Arc<B>,
    fault: Fault,
    name: &str,
    expectations: Expectations,
) -> bool {
    let harness = Harness::new(Mutant::new(Arc::clone(backend), fault), expectations);
    let mut checks = Harness::<Mutant<B>>::checks().iter();
    checks.any(|(n, check)| *n == name && check(&harness).is_err())
}

/// The faults of the backend that a check made for them did not see.
pub fn missed<B: GatedMatmul>(backend: B, expectations: Expectations) -> Vec<String> {
    let backend = Arc::new(backend);
    let quantizes = backend.supports_quant(&Quantization::deepseek_v4(), DType::BF16);
    let mut missed = Vec::new();
    let mut skipped = 0;
    for (fault, checks) in CAUGHT.iter().filter(|(f, _)| is_fault(*f, &expectations)) {
        if fault.is_of_quantization() && !quantizes.runs() {
            skipped += 1;
            continue;
        }
        let seen = |name: &&&str| fails(&backend, *fault, name, expectations);
        let unseen = checks.iter().filter(|name| !seen(name));
        missed.extend(unseen.map(|name| format!("{fault:?} passed {name}")));
    }
    if let Support::No(reason) = quantizes {
        let what = format!("{skipped} faults of quantization");
        skip(backend.platform(), &reason, &what);
    }
    missed
}

/// The checks that fail where a backend is wrapped as mutants are, but has no fault.
pub fn failing_without_a_fault<B: GatedMatmul>(
    backend: B,
    expectations: Expectations,
) -> Vec<&'static str> {
    let backend = Arc::new(backend);
    let mut names: Vec<&str> = CAUGHT
        .iter()
        .flat_map(|(_, checks)| *checks)
        .copied()
        .collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|name| fails(&backend, Fault::None, name, expectations));
    names
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
