//! Layers of routed experts, on data that follow from a seed, against a token by token evaluation.

mod layer;
mod routing;
mod rows;

pub use layer::{
    experts_against_the_reference, offsets_of_experts_beyond_31_bits, the_sum_is_rounded_once,
    tokens_with_one_expert,
};
pub use routing::{
    logits_at_both_ends, routes_against_the_reference, tokens_choose_by_their_marks,
};
pub use rows::{
    a_permuted_batch_gives_permuted_rows, expert_arguments_are_named,
    grouped_matmuls_equal_separate_ones, shards_of_experts_sum_to_the_whole,
    untouched_experts_change_nothing,
};

use swiglu_core::{Float, GatedActivation, Quantization, WeightFormat};

use crate::experts_case::ExpertsCase;
use crate::skips::Skips;
use crate::{Failure, FullBackend};

/// Whether the backend runs all that a case asks of it.
fn runs<B: FullBackend>(case: &ExpertsCase, skips: &mut Skips<'_, B>) -> bool {
    skips.runs(&case.route_request())
        && skips.runs(&case.gated_request())
        && [Float::F32, Float::BF16]
            .into_iter()
            .all(|y| skips.runs(&case.sum_request(y)))
}

/// How experts are stored: DeepSeek-V4's formats, and plain numbers.
const FORMATS: [WeightFormat; 3] = [
    WeightFormat::Fp4,
    WeightFormat::DEEPSEEK_V4,
    WeightFormat::Float(Float::BF16),
];

/// Both modes in which matmuls read their inputs: as they are, and FP8 in groups.
fn modes() -> [Option<Quantization>; 3] {
    let (v4, v41) = (Quantization::deepseek_v4(), Quantization::deepseek_v4_1());
    [None, Some(v4), Some(v41)]
}

/// The two limits that tell clamps apart, and DeepSeek's.
fn activations() -> Result<[GatedActivation; 2], Failure> {
    let low = GatedActivation::silu_and_mul_with_clamp(0.5, 1.0, 0.0)?;
    Ok([low, GatedActivation::deepseek_v4()])
}
