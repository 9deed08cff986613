//! Matmuls, quantization and the MLP of a platform against the reference, stage by stage.
//!
//! ## Method
//! What a stage gives is compared with what sums in f64 or the scalar reference make of the *same
//! stage's* input: the MLP's activation of its own gate and up, its output of its own activation. So
//! an error shows where it is made, and no stage is compared with its own code.
//! - Matmuls: each output within 1e-6 of the sum of its terms' magnitudes, and by norm within 1e-6
//!   where sums are ordered and 5e-6 on matrix units.
//! - Quantization: the reference's codes and scales to the bit; fused, those that the reference makes
//!   of the platform's own activation.
//! - The MLP: the matmuls' bounds, and one rounding to bf16; the fused pass against the stages.

use std::sync::Arc;

use swiglu::{OpenOptions, Request, Support, reference::Reference};
use swiglu_conformance::{Failure, FullBackend, Harness, Size};

use super::report::StageRow;

mod matmuls;
mod mlps;
mod quantizations;

/// How far a fused pass of the MLP may be from its stages, by norm: some results fall on the other
/// side of a tie. A lost clamp gives some hundred times as much.
const FUSED: f64 = 3e-3;

/// What came of a stage: what was measured, or what is wrong.
type Measured = Result<String, Failure>;

/// Opens a platform under its own type and checks its stages.
///
/// # Errors
/// Why it cannot be opened.
pub fn stages_of(platform: &str, options: &OpenOptions) -> Result<Vec<StageRow>, String> {
    // Only GPUs can sum in more than one way; a build may have none.
    let _ = options;
    match platform {
        #[cfg(feature = "cuda")]
        "cuda" => {
            let builder = swiglu::cuda::CudaBackend::builder();
            let opened = builder.accumulation(options.accumulation).open();
            Ok(stages(opened.map_err(|e| e.to_string())?))
        }
        #[cfg(feature = "wgpu")]
        "wgpu" => {
            let builder = swiglu::wgpu::WgpuBackend::builder();
            let opened = builder.accumulation(options.accumulation).open();
            Ok(stages(opened.map_err(|e| e.to_string())?))
        }
        #[cfg(feature = "cpu")]
        "cpu" => Ok(stages(swiglu::cpu::CpuBackend::new())),
        "reference" => Ok(stages(Reference)),
        other => Err(format!("{other}: its stages are not in this program")),
    }
}

/// Every stage, a row each.
pub fn stages<B: FullBackend>(backend: B) -> Vec<StageRow> {
    let harness = Harness::new(backend, Size::Quick);
    let mut rows = matmuls::rows(&harness.backend);
    rows.extend(quantizations::rows(&harness));
    rows.extend(mlps::rows(&Arc::new(harness.backend)));
    rows
}

/// A row of a stage that asks for these requests.
fn row<B: FullBackend>(
    backend: &B,
    stage: String,
    requests: &[Request],
    run: impl FnOnce() -> Measured,
) -> StageRow {
    let answers = requests.iter().map(|r| backend.supports(r));
    match answers.fold(Support::Native, Support::and) {
        Support::No(reason) => StageRow::skipped(stage, reason),
        Support::Native | Support::Emulated(_) => StageRow::new(stage, run()),
    }
}

#[cfg(test)]
mod tests {
    use swiglu_conformance::mutant::{Fault, Mutant};

    use super::*;

    /// The stages that fail on the reference with this fault.
    fn failing(fault: Fault) -> Vec<String> {
        let rows = stages(Mutant::new(Arc::new(Reference), fault));
        let failing = rows.into_iter().filter(|row| !row.passes);
        failing.map(|row| row.stage).collect()
    }

    #[test]
    fn every_stage_of_the_reference_passes_and_none_is_skipped() {
        let rows = stages(Reference);
        for row in &rows {
            assert!(row.passes && row.skipped.is_none(), "{row:?}");
        }
        // 8 formats, 10 pairs of codes and weights, 6 quantizations alone and fused, 4 MLPs.
        assert_eq!(rows.len(), 8 + 10 + 12 + 4);
    }

    #[test]
    fn a_stage_that_is_wrong_fails_and_says_where() {
        for (fault, stage) in [
            (Fault::ScalesIgnored, "matmul of bf16 by fp8"),
            (Fault::MatmulTruncates, "MLP of bf16 activations by bf16"),
            (Fault::PartsSwapped, "MLP of bf16 activations by bf16"),
            (Fault::FusedSkipsClamp, "MLP of bf16 activations by bf16"),
            (Fault::QuantSkipsClamp, "silu_and_mul_with_clamp to"),
            (Fault::QuantSkipsClamp, "MLP of FP8 activations"),
            (Fault::NoClamp, "MLP of bf16 activations by fp8"),
            (Fault::LastGroupSharesItsScale, "fp8"),
            (Fault::NanMissesTheScale, "fp8"),
        ] {
            let failing = failing(fault);
            let named = failing.iter().any(|name| name.starts_with(stage));
            assert!(named, "{fault:?}: {failing:?}");
        }
    }

    #[test]
    fn a_stage_that_is_not_supported_is_skipped_with_the_reason() {
        let row = StageRow::skipped("a matmul".to_owned(), "no weights".to_owned());
        assert!(row.passes && row.failure.is_none());
        assert!(stages_of("tpu", &OpenOptions::default()).is_err());
    }
}
