//! The platforms that tests run on.

use std::sync::{Arc, LazyLock};

use swiglu::{AnyBackend, OpenOptions, built_in};
use swiglu_conformance::may_skip;

/// The platforms of this build that open; the others are skipped by name. All tests of a program
/// share them: to open one may mean to compile its kernels.
pub fn platforms() -> &'static [(String, Arc<AnyBackend>)] {
    static HERE: LazyLock<Vec<(String, Arc<AnyBackend>)>> = LazyLock::new(open);
    &HERE
}

fn open() -> Vec<(String, Arc<AnyBackend>)> {
    let built = |name: &str| match name {
        "cpu" => cfg!(feature = "cpu"),
        "cuda" => cfg!(feature = "cuda"),
        "wgpu" => cfg!(feature = "wgpu"),
        _ => true,
    };
    let mut here = Vec::new();
    for (name, opened) in built_in().probe(&OpenOptions::default(), |_| true) {
        match opened {
            Ok(backend) => here.push((name.to_owned(), backend)),
            Err(reason) if built(name) => may_skip(name, &reason, "its part of a test"),
            Err(_) => {}
        }
    }
    here
}
