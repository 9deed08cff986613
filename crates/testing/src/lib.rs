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
//! The checks are also plain functions over a [`Harness`], and [`Harness::survey`] counts, for
//! programs that report rather than panic.

pub mod checks;
mod compare;
mod expectations;
mod failure;
mod harness;
pub mod inputs;
mod suite;
mod survey;

pub use expectations::{Expectations, Size};
pub use failure::Failure;
pub use harness::{ActLayouts, Harness};
pub use suite::{AnySuite, Check, REQUIRE, open, run};
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
                let suite = SUITE.get_or_init(|| $crate::open($open, $expectations));
                $crate::run(stringify!($name), suite, name);
            }

            $crate::__for_each_check!($crate::__tests);
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
