//! The checks. Each takes a [`crate::Harness`] and returns what it found wrong first.

mod act_quant;
mod arguments;
mod clamp;
mod fused;
mod products;
mod quant_arguments;
mod quant_products;
mod quantize;
mod random;
mod shapes;
mod shards;
mod values;
mod weights;

pub use act_quant::{
    batches_equal_a_loop, fused_quantization_equals_two_steps,
    quantized_activations_against_the_reference, quantized_activations_of_exact_products,
    random_quantized_batches,
};
pub use arguments::{arguments_are_named, product_arguments_are_named};
pub use clamp::{
    alpha_and_beta, limits_against_the_reference, the_clamp_is_before_the_activation,
    the_clamp_of_step_is_after_the_activation,
};
pub use fused::fused_equals_unfused;
pub use products::{
    a_nan_scale_stays_in_its_block, products_of_exact_sums, products_within_the_bound,
};
pub use quant_arguments::quantization_arguments_are_named;
pub use quant_products::products_of_codes;
pub use quantize::{codes_are_widened, matrices_are_quantized, quotients_are_rounded_once};
pub use random::{SEED, random_shapes_and_values};
pub use shapes::{
    layouts_agree, no_rows_write_nothing, offsets_beyond_31_bits, rows_alone_equal_the_batch,
    shapes_and_strides,
};
pub use shards::shards_equal_the_whole;
pub use values::{
    every_16_bit_gate, every_activation_is_supported, f32_gates_of_every_exponent, special_pairs,
};

/// Runs a generic function in each of the three types.
macro_rules! in_every_type {
    ($check:ident($($argument:expr),*)) => {
        $check::<f32, _>($($argument),*)
            .and_then(|()| $check::<swiglu_core::f16, _>($($argument),*))
            .and_then(|()| $check::<swiglu_core::bf16, _>($($argument),*))
    };
}
use in_every_type;
