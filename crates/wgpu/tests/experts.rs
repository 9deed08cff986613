//! Layers of routed experts beyond what the suite asks.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

use swiglu_conformance::{Harness, Size, checks, may_skip};
use swiglu_core::Accumulation;
use swiglu_wgpu::WgpuBackend;

/// Without cooperative matrices an expert's rows are multiplied as a matmul by itself would: to the bit, by few rows
/// and by many.
#[test]
fn grouped_matmuls_in_order_equal_separate_ones() {
    let builder = WgpuBackend::builder()
        .allow_software(true)
        .accumulation(Accumulation::Ordered);
    match builder.open() {
        Ok(backend) => {
            let harness = Harness::new(backend, Size::Quick);
            checks::grouped_matmuls_equal_separate_ones(&harness).unwrap();
        }
        Err(reason) => may_skip("wgpu", &reason.to_string(), "ordered experts"),
    }
}
