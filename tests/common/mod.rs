//! The platforms that tests run on.

use std::io::Write;
use std::sync::Arc;

use swiglu::{AnyBackend, built_in};
use swiglu_testing::REQUIRE;

/// The platforms of this build that open; the others are skipped by name.
pub fn platforms() -> Vec<(String, Arc<dyn AnyBackend>)> {
    let built = |name: &str| match name {
        "cpu" => cfg!(feature = "cpu"),
        "cuda" => cfg!(feature = "cuda"),
        "wgpu" => cfg!(feature = "wgpu"),
        _ => true,
    };
    let required = std::env::var(REQUIRE).unwrap_or_default();
    let mut here = Vec::new();
    for (name, opened) in built_in().probe_all() {
        match opened {
            Ok(backend) => here.push((name.to_owned(), backend)),
            Err(reason) if built(name) => {
                let required = required.split(',').any(|p| p.trim() == name);
                assert!(!required, "{name} is required but cannot run: {reason}");
                // Not `eprintln!`, which the test runner swallows.
                let _ = writeln!(std::io::stderr(), "skipped: {name}: {reason}");
            }
            Err(_) => {}
        }
    }
    here
}
