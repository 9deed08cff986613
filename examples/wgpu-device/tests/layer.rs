//! The example's result is the reference's.

use swiglu_core::{GatedActivation, reference};
use wgpu_device::gated_layer;

#[test]
fn two_operations_in_one_pass_give_the_layer() {
    let (tokens, d, k) = (3, 40, 64);
    let values = |count: usize, step: usize| -> Vec<f32> {
        let small = |i: usize| (i * step % 9) as f32 - 4.0;
        (0..count).map(small).collect()
    };
    let (x, w) = (values(tokens * k, 5), values(2 * d * k, 7));
    let got = match gated_layer(&x, &w, [tokens, k]) {
        Ok(got) => got,
        Err(reason) => {
            return swiglu_conformance::may_skip("wgpu", &reason.to_string(), "wgpu-device");
        }
    };
    // Sums of small integers: exact in any order.
    let dot = |token: usize, row: usize| -> f32 {
        let (x, w) = (&x[token * k..], &w[row * k..(row + 1) * k]);
        w.iter().zip(x).map(|(w, x)| w * x).sum()
    };
    assert_eq!(got.len(), tokens * d);
    for (i, got) in got.iter().enumerate() {
        let (token, j) = (i / d, i % d);
        let (gate, up) = (dot(token, j), dot(token, d + j));
        let want = reference::gated(&GatedActivation::deepseek_v4(), gate, up);
        let near = (got - want).abs() <= 8.0 * f32::EPSILON * want.abs();
        assert!(near, "{i}: silu({gate}) * {up} is {want}, not {got}");
    }
}
