//! The golden vectors, which `golden/generate.py` computes without this library.
#![allow(clippy::unwrap_used)] // Helpers of tests may panic as tests may.

use std::path::Path;

use safetensors::SafeTensors;
use swiglu_core::{Element, GatedActivation, Rounding, bf16, f16, reference};

/// Input and output of every file of a type and mode, by the limit in its name.
fn check<T: Element>(rounding: Rounding, mode: &str) {
    for limit in [0.5, 10.0] {
        let name = format!("{}-limit-{limit}-{mode}.safetensors", T::FLOAT);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden");
        let bytes = std::fs::read(folder.join(&name)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let typed = |tensor: &str| -> Vec<T> {
            let view = file.tensor(tensor).unwrap();
            bytemuck::allocation::pod_collect_to_vec(view.data())
        };
        let d = file.tensor("output").unwrap().shape()[1];
        let op = GatedActivation::silu_and_mul_with_clamp(limit, 1.0, 0.0).unwrap();
        let op = op.with_rounding(rounding);
        let (input, output) = (typed("input"), typed("output"));
        assert_eq!(input.len(), 2 * output.len());
        assert!(!output.is_empty());
        for (at, want) in output.iter().enumerate() {
            let row = &input[at / d * 2 * d..][..2 * d];
            let (gate, up) = (row[at % d], row[d + at % d]);
            let got = reference::gated(&op, gate, up);
            let same = got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan());
            assert!(
                same,
                "{name}, {at}: {gate:?}, {up:?}: {got:?}, file {want:?}"
            );
        }
    }
}

#[test]
fn the_reference_equals_the_golden_vectors() {
    check::<bf16>(Rounding::Official, "official");
    check::<f16>(Rounding::Official, "official");
    check::<f32>(Rounding::Official, "official");
}

/// What PyTorch made of them.
#[test]
fn the_reference_equals_pytorchs_eager_mode() {
    check::<bf16>(Rounding::Eager, "eager");
    check::<f16>(Rounding::Eager, "eager");
}
