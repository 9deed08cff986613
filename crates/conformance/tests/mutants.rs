//! Deliberately wrong backends, made of the reference: the suite catches each of them, with the
//! tolerance of shaders too.

use swiglu_conformance::mutant::{CAUGHT, Fault, failing_without_a_fault, missed};
use swiglu_conformance::{Harness, mutants};
use swiglu_core::Accuracy;
use swiglu_core::reference::Reference;

/// What a platform of shaders promises.
const SHADER: Accuracy = Accuracy {
    f32_ulps: 8,
    flushes_subnormals: true,
    ..Accuracy::EXACT
};

mutants!(reference, || Ok(Reference));

#[test]
fn every_fault_is_caught_with_the_tolerance_of_shaders() {
    assert_eq!(missed(Reference, SHADER), [""; 0]);
}

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
    for accuracy in [Accuracy::EXACT, SHADER] {
        assert_eq!(failing_without_a_fault(Reference, accuracy), [""; 0]);
    }
}
