//! Every example runs, and docs/integrating.md shows it as it is with what it prints.
#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

#[cfg(any(feature = "cpu", feature = "cuda"))]
use std::path::Path;

#[cfg(feature = "cpu")]
#[path = "../examples/checkpoint_layer.rs"]
#[allow(dead_code, reason = "its `main` is for cargo run")]
mod checkpoint_layer;
#[cfg(feature = "cuda")]
#[path = "../examples/cuda_graph.rs"]
#[allow(dead_code, reason = "its `main` is for cargo run")]
mod cuda_graph;
#[cfg(feature = "cpu")]
#[path = "../examples/moe_layer.rs"]
#[allow(dead_code, reason = "its `main` is for cargo run")]
mod moe_layer;
#[cfg(feature = "cpu")]
#[path = "../examples/rayon_pool.rs"]
#[allow(dead_code, reason = "its `main` is for cargo run")]
mod rayon_pool;
#[cfg(feature = "cpu")]
#[path = "../examples/server.rs"]
#[allow(dead_code, reason = "its `main` is for cargo run")]
mod server;
#[cfg(feature = "cpu")]
#[path = "../examples/slices.rs"]
#[allow(dead_code, reason = "its `main` is for cargo run")]
mod slices;

#[cfg(any(feature = "cpu", feature = "cuda"))]
const PAGE: &str = "docs/integrating.md";

/// The page holds the program, and behind it what it prints.
#[cfg(any(feature = "cpu", feature = "cuda"))]
fn shown(name: &str, printed: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let code = read(&format!("examples/{name}.rs"));
    let block = format!("```rust\n{code}```\n\n```text\n{printed}```\n");
    assert!(
        read(PAGE).contains(&block),
        "{PAGE} does not hold examples/{name}.rs and its output; expected\n{block}"
    );
}

#[cfg(feature = "cpu")]
#[test]
fn slices_prints_what_the_page_shows() {
    shown("slices", &slices::run().unwrap());
}

#[cfg(feature = "cpu")]
#[test]
fn rayon_pool_prints_what_the_page_shows() {
    shown("rayon_pool", &rayon_pool::run().unwrap());
}

#[cfg(feature = "cpu")]
#[test]
fn server_prints_what_the_page_shows() {
    shown("server", &server::run().unwrap());
}

#[cfg(feature = "cpu")]
#[test]
fn checkpoint_layer_prints_what_the_page_shows() {
    shown("checkpoint_layer", &checkpoint_layer::run().unwrap());
}

#[cfg(feature = "cpu")]
#[test]
fn moe_layer_prints_what_the_page_shows() {
    shown("moe_layer", &moe_layer::run().unwrap());
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_graph_prints_what_the_page_shows() {
    match swiglu::cuda::probe() {
        Ok(_) => shown("cuda_graph", &cuda_graph::run().unwrap()),
        Err(reason) => swiglu_conformance::may_skip("cuda", &reason.to_string(), "cuda_graph"),
    }
}
