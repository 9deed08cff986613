//! The test suite that every backend of swiglu passes.
//!
//! The author of a backend adds this crate as a dev-dependency and writes one line in `tests/`:
//!
//! ```
//! swiglu_conformance::suite!(reference, || Ok(swiglu_core::reference::Reference));
//! # fn main() {}
//! ```
//!
//! That makes one `#[test]` of each function in [`checks`]. How exact results must be, the backend
//! says itself ([`swiglu_core::Backend::accuracy`]); what it does not run
//! ([`swiglu_core::Backend::supports`]) is skipped by name on standard error. A backend that cannot
//! be opened is skipped as a whole, unless [`REQUIRE`] names it. [`Size::VARIABLE`] asks for more
//! values.
//!
//! - [`mutants!`] sees that the suite catches some fifty faults on this backend;
//! - [`complete!`] is for backends that are to run all that the library has;
//! - [`Case`] lists the shapes of models, with their bytes and operations, for tests and benches;
//! - [`timing`] is the timer of benches.
//!
//! Random cases that fail leave their seeds in `proptest-regressions/` beside the package's
//! manifest, where the next run tries them first: keep the file. [`SEED`] asks for other cases.
//! Without the feature `proptest` random cases are drawn from the seed, neither shrunk nor kept.
//!
//! The checks are also plain functions over a [`Harness`], and [`Harness::survey`] counts, for
//! programs that report rather than panic.

mod case;
pub mod checks;
mod compare;
mod experts_case;
mod failure;
mod harness;
pub mod inputs;
pub mod mutant;
mod quant_case;
mod size;
mod skips;
mod suite;
mod survey;
pub mod timing;

pub use case::{Case, MlpShape};
pub use checks::SEED;
pub use compare::relative_error;
pub use failure::Failure;
pub use harness::{ActLayouts, Harness, SplitLayouts, contents, filled};
pub use quant_case::{Outcome, QuantCase};
pub use size::Size;
pub use suite::{AnySuite, Check, FullBackend, REQUIRE, assert_complete, may_skip, open, run};
pub use survey::Survey;

/// Makes a module of tests of a backend: `suite!(name, constructor)`.
///
/// The constructor is a closure that returns `Result<B, String>`, the error being the reason why
/// the backend cannot run here; `B` implements all of core's traits, of which `Quantize` and
/// `Matmul` refuse by default. It is called once.
#[macro_export]
macro_rules! suite {
    ($name:ident, $open:expr $(,)?) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            static SUITE: std::sync::OnceLock<Result<Box<dyn $crate::AnySuite>, String>> =
                std::sync::OnceLock::new();

            fn check(name: &str) {
                const REGRESSIONS: &str = concat!(
                    env!("CARGO_MANIFEST_DIR"),
                    "/proptest-regressions/",
                    stringify!($name),
                    ".txt"
                );
                let suite = SUITE.get_or_init(|| $crate::open($open, REGRESSIONS));
                $crate::run(stringify!($name), suite, name);
            }

            $crate::__for_each_check!($crate::__tests);
        }
    };
}

/// Makes a test that wraps a backend in every [`mutant::Fault`] and sees that the checks made for
/// it fail: `mutants!(name, constructor)`, as [`suite!`].
#[macro_export]
macro_rules! mutants {
    ($name:ident, $open:expr $(,)?) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            #[test]
            fn every_fault_is_caught() {
                $crate::mutant::assert_caught(stringify!($name), $open);
            }
        }
    };
}

/// Makes a test that a backend lacks nothing that the library has: every activation, type,
/// rounding, weight format and quantization. `complete!(name, constructor)`, as [`suite!`]; what
/// is known to be lacking follows: `complete!(name, constructor, lacking: [WeightFormat::Fp4])`.
#[macro_export]
macro_rules! complete {
    ($name:ident, $open:expr $(,)?) => {
        $crate::complete!($name, $open, lacking: []);
    };
    ($name:ident, $open:expr, lacking: [$($format:expr),* $(,)?] $(,)?) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            #[test]
            fn everything_is_supported() {
                $crate::assert_complete(stringify!($name), $open, &[$($format),*]);
            }
        }
    };
}

/// Hands the names of all checks to a macro: the one place where they are listed.
#[doc(hidden)]
#[macro_export]
macro_rules! __for_each_check {
    ($($callback:tt)*) => {
        $($callback)* ! {
            what_is_not_supported_is_refused
            special_pairs
            every_16_bit_gate
            f32_gates_of_every_exponent
            nothing_is_lost_where_exp_underflows
            normal_inputs_are_correctly_rounded
            the_clamp_is_before_the_activation
            the_clamp_of_step_is_after_the_activation
            limits_against_the_reference
            alpha_and_beta
            shapes_and_strides
            rows_alone_equal_the_batch
            layouts_agree
            split_halves_equal_merged
            parts_of_host_memory
            no_rows_write_nothing
            arguments_are_named
            split_arguments_are_named
            random_shapes_and_values
            matmuls_of_exact_sums
            matmuls_within_the_bound
            a_nan_scale_stays_in_its_block
            matmul_arguments_are_named
            fused_equals_unfused
            shards_equal_the_whole
            standard_cases
            matrices_are_quantized
            quotients_are_rounded_once
            codes_are_widened
            quantized_activations_of_exact_products
            quantized_activations_against_the_reference
            fused_quantization_equals_two_steps
            split_quantization_equals_merged
            batches_equal_a_loop
            random_quantized_batches
            quantization_arguments_are_named
            matmuls_of_codes
            routes_against_the_reference
            logits_at_both_ends
            tokens_choose_by_their_marks
            experts_against_the_reference
            the_sum_is_rounded_once
            tokens_with_one_expert
            grouped_matmuls_equal_separate_ones
            a_permuted_batch_gives_permuted_rows
            shards_of_experts_sum_to_the_whole
            untouched_experts_change_nothing
            expert_arguments_are_named
            offsets_of_experts_beyond_31_bits
            offsets_beyond_31_bits
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __tests {
    ($($check:ident)*) => {
        $(#[test]
        fn $check() {
            check(stringify!($check));
        })*
    };
}
