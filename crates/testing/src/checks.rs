//! The checks. Each takes a [`crate::Harness`] and returns what it found wrong first.

mod arguments;
mod clamp;
mod fused;
mod products;
mod random;
mod shapes;
mod values;
mod weights;

pub use arguments::{arguments_are_named, product_arguments_are_named};
pub use clamp::{
    alpha_and_beta, limits_against_the_reference, the_clamp_is_before_the_activation,
    the_clamp_of_step_is_after_the_activation,
};
pub use fused::fused_equals_unfused;
pub use products::{
    a_nan_scale_stays_in_its_block, products_of_exact_sums, products_within_the_bound,
};
pub use random::random_shapes_and_values;
pub use shapes::{
    layouts_agree, no_rows_write_nothing, rows_alone_equal_the_batch, shapes_and_strides,
};
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
