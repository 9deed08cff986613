//! The checks. Each takes a [`crate::Harness`] and returns what it found wrong first. What the
//! backend says that it does not run is left out, and told by name.

mod act_quant;
mod arguments;
mod cases;
mod clamp;
mod complete;
mod experts;
mod fused;
mod matmuls;
mod quant_arguments;
mod quant_matmuls;
mod quantize;
mod random;
mod refusals;
mod shapes;
mod shards;
mod split;
mod underflow;
mod values;
mod views;

pub use act_quant::{
    batches_equal_a_loop, fused_quantization_equals_two_steps,
    quantized_activations_against_the_reference, quantized_activations_of_exact_products,
};
pub use arguments::{arguments_are_named, matmul_arguments_are_named};
pub use cases::standard_cases;
pub use clamp::{
    alpha_and_beta, limits_against_the_reference, the_clamp_is_before_the_activation,
    the_clamp_of_step_is_after_the_activation,
};
pub use complete::everything_is_supported;
pub use experts::{
    a_permuted_batch_gives_permuted_rows, expert_arguments_are_named,
    experts_against_the_reference, grouped_matmuls_equal_separate_ones, logits_at_both_ends,
    offsets_of_experts_beyond_31_bits, routes_against_the_reference,
    shards_of_experts_sum_to_the_whole, the_sum_is_rounded_once, tokens_choose_by_their_marks,
    tokens_with_one_expert, untouched_experts_change_nothing,
};
pub use fused::fused_equals_unfused;
pub use matmuls::{
    a_nan_scale_stays_in_its_block, matmuls_of_exact_sums, matmuls_within_the_bound,
};
pub use quant_arguments::quantization_arguments_are_named;
pub use quant_matmuls::matmuls_of_codes;
pub use quantize::{codes_are_widened, matrices_are_quantized, quotients_are_rounded_once};
pub use random::{SEED, random_quantized_batches, random_shapes_and_values};
pub use refusals::what_is_not_supported_is_refused;
pub use shapes::{
    layouts_agree, no_rows_write_nothing, offsets_beyond_31_bits, rows_alone_equal_the_batch,
    shapes_and_strides,
};
pub use shards::shards_equal_the_whole;
pub use split::{
    split_arguments_are_named, split_halves_equal_merged, split_quantization_equals_merged,
};
pub use underflow::{normal_inputs_are_correctly_rounded, nothing_is_lost_where_exp_underflows};
pub use values::{every_16_bit_gate, f32_gates_of_every_exponent, special_pairs};
pub use views::parts_of_host_memory;

/// Runs a generic function in each of the three types.
macro_rules! in_every_type {
    ($check:ident($($argument:expr),*)) => {
        $check::<f32, _>($($argument),*)
            .and_then(|()| $check::<swiglu_core::f16, _>($($argument),*))
            .and_then(|()| $check::<swiglu_core::bf16, _>($($argument),*))
    };
}
use in_every_type;
