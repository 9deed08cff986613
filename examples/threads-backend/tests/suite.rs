//! The suite that every backend passes, and the faults that it would catch in this one. What the
//! backend does not run is skipped by name.

use std::num::NonZero;

use threads_backend::Threads;

const FOUR: Threads = Threads(NonZero::new(4).unwrap());

swiglu_conformance::suite!(threads, || Ok(FOUR));
swiglu_conformance::mutants!(threads_made_wrong, || Ok(FOUR));

/// It does not run everything, and the check for those that do says what is missing.
#[test]
fn it_is_not_complete_and_what_is_missing_is_named() {
    let harness = swiglu_conformance::Harness::new(FOUR, swiglu_conformance::Size::Quick);
    let failure = swiglu_conformance::checks::everything_is_supported(&harness, &[]);
    let failure = failure.expect_err("it only activates").to_string();
    assert!(failure.contains("it only activates"), "{failure}");
    assert!(failure.contains("matmul of f32 by f32 to f32"), "{failure}");
}
