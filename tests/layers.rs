//! Whole layers of routed experts on every platform of this build, against the scalar reference.
#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use std::sync::Arc;

use swiglu::mlp::synthetic::{
    SyntheticConfig, SyntheticMoe, synthetic_input, write_moe_checkpoint,
};
use swiglu::mlp::{ActivationQuant, Checkpoint, ExpertDtype, ModelConfig, MoeWeights};
use swiglu::{AnyBackend, HostTokens};
use swiglu_conformance::relative_error;

mod common;
use common::platforms;

const HIDDEN: usize = 96;
const VOCABULARY: usize = 9;

/// As the layer's definition has it for one token.
const TOLERANCE: f64 = 1.5e-3;
/// Where matmuls read FP8, a code may fall on the other side of a tie.
const TOLERANCE_QUANT: f64 = 4e-3;

fn layer(dtype: ExpertDtype, vocabulary: Option<usize>) -> SyntheticMoe {
    SyntheticMoe {
        shared: SyntheticConfig {
            hidden: HIDDEN,
            intermediate: 64,
            block: 32,
            ..SyntheticConfig::flash(7)
        },
        top_k: 3,
        dtype,
        vocabulary,
        ..SyntheticMoe::flash(7, 7)
    }
}

/// Token by token: a norm over all tokens would hide one with a wrong route.
#[test]
fn every_platform_gives_what_the_reference_gives() {
    let platforms = platforms();
    let reference = platforms.iter().find(|(name, _)| name == "reference");
    let (_, reference) = reference.unwrap();
    let (none, fp8) = (ActivationQuant::None, ActivationQuant::Fp8Block);
    for (dtype, vocabulary, mode) in [
        (ExpertDtype::Fp4, None, none),
        (ExpertDtype::Fp4, Some(VOCABULARY), fp8),
        (ExpertDtype::Fp8, Some(VOCABULARY), none),
        (ExpertDtype::Fp8, None, fp8),
        (ExpertDtype::Bf16, None, none),
    ] {
        let form = layer(dtype, vocabulary);
        let folder = tempfile::tempdir().unwrap();
        write_moe_checkpoint(folder.path(), &form).unwrap();
        let model = ModelConfig::from_file(&folder.path().join("config.json")).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let mut config = model.moe_config(&form.prefix()).unwrap();
        config.shared.activation_quant = mode;
        let weights = MoeWeights::load(&checkpoint, &config).unwrap();
        let runs = |backend: &Arc<AnyBackend>| {
            let requests = weights.requests(&config).unwrap();
            requests
                .iter()
                .all(|request| backend.supports(request).runs())
        };
        let mut expected = reference.load_moe(&config, &weights).unwrap();
        for (platform, backend) in platforms.iter().filter(|(_, backend)| runs(backend)) {
            let mut moe = backend.load_moe(&config, &weights).unwrap();
            // Fewer than before, too, and none.
            for tokens in [5, 40, 1, 0] {
                let x = synthetic_input(tokens, HIDDEN, 3);
                let ids: Vec<i32> = (0..tokens).map(|t| (5 * t % 11) as i32 - 1).collect();
                let marks = HostTokens {
                    ids: Some(&ids),
                    ..HostTokens::default()
                };
                let (y, want) = (
                    moe.forward(&x, marks).unwrap(),
                    expected.forward(&x, marks).unwrap(),
                );
                let tolerance = if mode == none {
                    TOLERANCE
                } else {
                    TOLERANCE_QUANT
                };
                for (t, (y, want)) in y.chunks(HIDDEN).zip(want.chunks(HIDDEN)).enumerate() {
                    let off = relative_error(y, want);
                    let what = (platform, dtype, mode, tokens, t);
                    assert!(off <= tolerance, "{what:?}: {off:.1e}");
                }
            }
        }
    }
}

/// FP4 is a format of the layers that are released: wgpu and the CPU run it by kernels of their own.
#[test]
fn the_cpu_and_wgpu_have_layers_of_their_own() {
    let form = layer(ExpertDtype::Fp4, None);
    let folder = tempfile::tempdir().unwrap();
    write_moe_checkpoint(folder.path(), &form).unwrap();
    let model = ModelConfig::from_file(&folder.path().join("config.json")).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let config = model.moe_config(&form.prefix()).unwrap();
    let weights = MoeWeights::load(&checkpoint, &config).unwrap();
    for request in weights.requests(&config).unwrap() {
        for (platform, backend) in platforms() {
            if ["cpu", "wgpu"].contains(&platform.as_str()) {
                let support = backend.supports(&request);
                assert_eq!(support, swiglu::Support::Native, "{platform}: {request}");
            }
        }
    }
}
