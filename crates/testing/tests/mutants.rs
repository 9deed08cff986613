//! Deliberately wrong backends, made of the reference: the suite catches each of them, with the
//! tolerance of shaders too.

use swiglu_core::reference::Reference;
use swiglu_testing::mutant::{CAUGHT, Fault, failing_without_a_fault};
use swiglu_testing::{Expectations, Harness, mutants};

mutants!(reference, || Ok(Reference));
mutants!(
    reference_as_a_shader,
    || Ok(Reference),
    Expectations::shader()
);

#[test]
fn no_fault_is_left_out_and_every_check_exists() {
    assert!(CAUGHT.iter().map(|(fault, _)| fault).eq(Fault::ALL));
    let known = Harness::<Reference>::checks();
    for name in CAUGHT.iter().flat_map(|(_, checks)| *checks) {
        assert!(known.iter().any(|(n, _)| n == name), "{name}");
    }
}

#[test]
fn without_a_fault_nothing_fails() {
    for expectations in [Expectations::exact(), Expectations::shader()] {
        assert_eq!(failing_without_a_fault(Reference, expectations), [""; 0]);
    }
}
