//! The test suite that every backend of swiglu passes.
//!
//! The author of a backend adds this crate as a dev-dependency and writes one line in `tests/`:
//!
//! ```
//! swiglu_testing::suite!(reference, || Ok(swiglu_core::reference::Reference));
//! # fn main() {}
//! ```
//!
//! That makes one `#[test]` of each function in [`checks`]. A backend that cannot be opened is
//! skipped by name on standard error, unless [`REQUIRE`] names it.
//!
//! Random cases that fail leave their seeds in `proptest-regressions/` beside the package's
//! manifest, where the next run tries them first: keep the file. [`SEED`] asks for other cases.
//!
//! The checks are also plain functions over a [`Harness`], and [`Harness::survey`] counts, for
//! programs that report rather than panic.

pub mod checks;
mod compare;
mod expectations;
mod failure;
mod harness;
pub mod inputs;
pub mod mutant;
mod quant_case;
mod suite;
mod survey;

pub use checks::SEED;
pub use compare::relative_error;
pub use expectations::{Expectations, Size};
pub use failure::Failure;
pub use harness::{ActLayouts, Harness, contents, filled};
pub use quant_case::{Outcome, QuantCase};
pub use suite::{AnySuite, Check, REQUIRE, may_skip, open, run};
pub use survey::Survey;

/// Makes a module of tests of a backend: `suite!(name, constructor)`, or
/// `suite!(name, constructor, expectations)`.
///
/// The constructor is a closure that returns `Result<B, String>`, the error being the reason why
/// the backend cannot run here; `B` implements all of core's traits. It is called once.
#[macro_export]
macro_rules! suite {
    ($name:ident, $open:expr $(,)?) => {
        $crate::suite!($name, $open, $crate::Expectations::exact());
    };
    ($name:ident, $open:expr, $expectations:expr $(,)?) => {
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
                let suite = SUITE.get_or_init(|| $crate::open($open, $expectations, REGRESSIONS));
                $crate::run(stringify!($name), suite, name);
            }

            $crate::__for_each_check!($crate::__tests);
        }
    };
}

/// Makes a test that wraps a backend in every [`mutant::Fault`] and sees that the checks made for
/// it fail: `mutants!(name, constructor)`, or `mutants!(name, constructor, expectations)`, as
/// [`suite!`].
#[macro_export]
macro_rules! mutants {
    ($name:ident, $open:expr $(,)?) => {
        $crate::mutants!($name, $open, $crate::Expectations::exact());
    };
    ($name:ident, $open:expr, $expectations:expr $(,)?) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            #[test]
            fn every_fault_is_caught() {
                $crate::mutant::assert_caught(stringify!($name), $open, $expectations);
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
            every_activation_is_supported
            special_pairs
            every_16_bit_gate
            f32_gates_of_every_exponent
            the_clamp_is_before_the_activation
            the_clamp_of_step_is_after_the_activation
            limits_against_the_reference
            alpha_and_beta
            shapes_and_strides
            rows_alone_equal_the_batch
            layouts_agree
            no_rows_write_nothing
            arguments_are_named
            random_shapes_and_values
            products_of_exact_sums
            products_within_the_bound
            a_nan_scale_stays_in_its_block
            product_arguments_are_named
            fused_equals_unfused
            shards_equal_the_whole
            matrices_are_quantized
            quotients_are_rounded_once
            codes_are_widened
            quantized_activations_of_exact_products
            quantized_activations_against_the_reference
            fused_quantization_equals_two_steps
            batches_equal_a_loop
            random_quantized_batches
            quantization_arguments_are_named
            products_of_codes
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
