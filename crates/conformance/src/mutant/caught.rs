use std::sync::Arc;

use swiglu_core::{
    Accuracy, Float, GatedActivation, Quantization, Request, Routing, Selection, Support,
    WeightFormat,
};

use super::{Capability, Fault, Mutant};
use crate::skips::tell;
use crate::suite::may_skip;
use crate::{FullBackend, Harness, Size};

const CLAMP: &str = "the_clamp_is_before_the_activation";
const LIMITS: &str = "limits_against_the_reference";
const SPECIAL: &str = "special_pairs";
const SHAPES: &str = "shapes_and_strides";
const RANDOM: &str = "random_shapes_and_values";
const GATES: &str = "every_16_bit_gate";
const ALPHA: &str = "alpha_and_beta";
const ALONE: &str = "rows_alone_equal_the_batch";
const SPLIT: &str = "split_halves_equal_merged";
const SPLIT_QUANT: &str = "split_quantization_equals_merged";
const EXACT: &str = "matmuls_of_exact_sums";
const FUSED: &str = "fused_equals_unfused";
const MATRICES: &str = "matrices_are_quantized";
const TWO_STEPS: &str = "fused_quantization_equals_two_steps";
const EXACT_QUANT: &str = "quantized_activations_of_exact_products";
const QUANT: &str = "quantized_activations_against_the_reference";
const LOOP: &str = "batches_equal_a_loop";
const ROUTES: &str = "routes_against_the_reference";
const ENDS: &str = "logits_at_both_ends";
const MARKS: &str = "tokens_choose_by_their_marks";
const EXPERTS: &str = "experts_against_the_reference";
const ONE_EXPERT: &str = "tokens_with_one_expert";
const SEPARATE: &str = "grouped_matmuls_equal_separate_ones";
const ONCE: &str = "the_sum_is_rounded_once";

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
    (
        Fault::ExpUnderflows,
        &["nothing_is_lost_where_exp_underflows"],
    ),
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
    (Fault::SplitHalvesSwapped, &[SPLIT]),
    (Fault::SplitUpStrideIsTheGates, &[SPLIT]),
    (Fault::SplitOffsetsIgnored, &[SPLIT]),
    (
        Fault::ArgumentsUnchecked,
        &["arguments_are_named", "split_arguments_are_named"],
    ),
    (Fault::PartsSwapped, &[EXACT, "matmuls_within_the_bound"]),
    (
        Fault::ScalesIgnored,
        &[EXACT, "a_nan_scale_stays_in_its_block"],
    ),
    (Fault::XStrideIgnored, &[EXACT]),
    (Fault::MatmulTruncates, &[EXACT]),
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
    (Fault::QuantSplitHalvesSwapped, &[SPLIT_QUANT]),
    (Fault::QuantSplitUpStrideIsTheGates, &[SPLIT_QUANT]),
    (
        Fault::QuantArgumentsUnchecked,
        &["quantization_arguments_are_named"],
    ),
    (Fault::BiasIgnored, &[ROUTES, MARKS]),
    (Fault::BiasInTheWeights, &[ROUTES, MARKS]),
    (Fault::ImageBiasIgnored, &[MARKS]),
    (Fault::RouteScaleIgnored, &[ROUTES, MARKS, ENDS]),
    (Fault::NormalizeIgnored, &[ROUTES, MARKS, ENDS]),
    (Fault::EpsilonMissing, &[ENDS]),
    (Fault::UniformHashWeights, &[ROUTES, MARKS]),
    (Fault::TokenClamped, &[MARKS]),
    (Fault::PaddingRouted, &[MARKS]),
    (Fault::LogitsRounded, &[ROUTES]),
    (Fault::SoftplusUnstable, &[ENDS]),
    (Fault::NanHidden, &[ENDS]),
    (Fault::TiesToTheHigher, &[ENDS]),
    (Fault::ExpertsSkipClamp, &[EXPERTS, SEPARATE]),
    (Fault::ExpertHalvesSwapped, &[EXPERTS, ONE_EXPERT]),
    (Fault::WeightAfterDown, &[EXPERTS, SEPARATE]),
    (Fault::SharedLeftOut, &[EXPERTS, ONCE]),
    (Fault::RoutesRounded, &[ONCE]),
    (Fault::HighNibbleFirst, &[EXACT, EXPERTS, ONE_EXPERT]),
    (Fault::Fp4ScalesIgnored, &[EXACT, EXPERTS, ONE_EXPERT]),
    (Fault::Fp4GroupsShifted, &[EXACT, EXPERTS, ONE_EXPERT]),
];

/// Whether this is a fault under this accuracy: what shaders may do is none of theirs.
const fn is_fault(fault: Fault, accuracy: &Accuracy) -> bool {
    let of_flushing = matches!(fault, Fault::SubnormalsFlushed | Fault::ZeroLosesItsSign);
    !(of_flushing && accuracy.flushes_subnormals)
}

/// What stands for a capability as a whole: what every backend that has it runs.
fn request(capability: Capability) -> swiglu_core::Result<Request> {
    let (op, float) = (GatedActivation::deepseek_v4(), Float::BF16);
    Ok(match capability {
        Capability::Activation => Request::Activation { op, float },
        Capability::Matmul => Request::GatedMatmul {
            op,
            x: float,
            weight: WeightFormat::DEEPSEEK_V4,
            act: float,
        },
        Capability::Quantization => Request::ActivationQuant {
            op,
            quant: Quantization::deepseek_v4(),
            float,
        },
        Capability::Experts => Request::GroupedGatedMatmul {
            op,
            quant: None,
            routing: Routing::new(8, 2, 1.0, true, Selection::Score)?,
            x: float,
            weight: WeightFormat::Float(float),
        },
        Capability::Fp4 => Request::Matmul {
            x: float,
            weight: WeightFormat::Fp4,
            y: float,
        },
    })
}

/// Whether a check of a backend with a fault fails.
fn fails<B: FullBackend>(backend: &Arc<B>, fault: Fault, name: &str, accuracy: Accuracy) -> bool {
    let mutant = Mutant::new(Arc::clone(backend), fault);
    let harness = Harness::new(mutant, Size::from_env()).with_accuracy(accuracy);
    let mut checks = Harness::<Mutant<B>>::checks().iter();
    checks.any(|(n, check)| *n == name && check(&harness).is_err())
}

/// The faults of the backend that a check made for them did not see, under an accuracy that may be
/// another than its own. Faults of what the backend does not run are skipped by name.
pub fn missed<B: FullBackend>(backend: B, accuracy: Accuracy) -> Vec<String> {
    let backend = Arc::new(backend);
    let mut missed = Vec::new();
    for capability in [
        Capability::Activation,
        Capability::Matmul,
        Capability::Quantization,
        Capability::Experts,
        Capability::Fp4,
    ] {
        let of_it = CAUGHT.iter().filter(|(f, _)| f.capability() == capability);
        let runs = match request(capability) {
            Ok(request) => backend.supports(&request),
            Err(error) => Support::No(error.to_string()),
        };
        if let Support::No(reason) = runs {
            let what = format!("{} faults of {capability}: {reason}", of_it.count());
            tell(backend.platform(), &what, "mutants");
            continue;
        }
        for (fault, checks) in of_it.filter(|(fault, _)| is_fault(*fault, &accuracy)) {
            let seen = |name: &&&str| fails(&backend, *fault, name, accuracy);
            let unseen = checks.iter().filter(|name| !seen(name));
            missed.extend(unseen.map(|name| format!("{fault:?} passed {name}")));
        }
    }
    missed
}

/// The checks that fail where a backend is wrapped as mutants are, but has no fault.
pub fn failing_without_a_fault<B: FullBackend>(
    backend: B,
    accuracy: Accuracy,
) -> Vec<&'static str> {
    let backend = Arc::new(backend);
    let mut names: Vec<&str> = CAUGHT
        .iter()
        .flat_map(|(_, checks)| *checks)
        .copied()
        .collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|name| fails(&backend, Fault::None, name, accuracy));
    names
}

/// The test that [`crate::mutants!`] makes.
///
/// # Panics
/// Where a fault is missed, or the platform is required and could not be opened.
pub fn assert_caught<B: FullBackend>(platform: &str, backend: impl FnOnce() -> Result<B, String>) {
    match backend() {
        Ok(backend) => {
            let accuracy = backend.accuracy();
            let missed = missed(backend, accuracy);
            assert!(missed.is_empty(), "{platform}: {}", missed.join("; "));
        }
        Err(reason) => may_skip(platform, &reason, "mutants"),
    }
}
