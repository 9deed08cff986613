//! Activations whose results are stored past the caches: at a size that tests reach.
#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use swiglu_conformance::{Check, Harness, Size, checks};
use swiglu_core::{Backend, Float, GatedActivation, Request, Shape};
use swiglu_cpu::{CpuBackend, InstructionSet, Settings};

/// A backend that stores every result past the caches, in the pool or on the caller's thread.
fn streaming(set: InstructionSet, inline_outputs: usize) -> CpuBackend {
    let mut settings = Settings::default();
    (settings.stream_bytes, settings.inline_outputs) = (0, inline_outputs);
    let backend = CpuBackend::with_instruction_set(set).unwrap();
    backend.with_settings(settings)
}

fn available() -> impl Iterator<Item = InstructionSet> {
    InstructionSet::ALL
        .into_iter()
        .filter(|set| set.available())
}

#[test]
fn the_size_is_a_setting_that_reaches_the_plan() {
    let shape = Shape {
        rows: 1,
        cols: 1,
        depth: 0,
    };
    for float in Float::ALL {
        let op = GatedActivation::deepseek_v4();
        let plan = |backend: CpuBackend| {
            let request = Request::Activation { op, float };
            backend.plan(&request, &shape).unwrap()
        };
        for set in available() {
            let (low, usual) = (streaming(set, 0), CpuBackend::new());
            assert!(plan(low).contains("stored past the caches"));
            assert!(!plan(usual).contains("stored past the caches"));
        }
    }
}

/// Rows that start between two vectors, gaps that nobody may touch, every operator and type.
#[test]
fn results_past_the_caches_are_the_references_and_nothing_else_is_touched() {
    let all: [(&str, Check<CpuBackend>); 6] = [
        ("shapes_and_strides", checks::shapes_and_strides),
        ("layouts_agree", checks::layouts_agree),
        ("special_pairs", checks::special_pairs),
        (
            "split_halves_equal_merged",
            checks::split_halves_equal_merged,
        ),
        (
            "rows_alone_equal_the_batch",
            checks::rows_alone_equal_the_batch,
        ),
        ("alpha_and_beta", checks::alpha_and_beta),
    ];
    for set in available() {
        // On the caller's thread as well, on the set that runs by default.
        let inline: &[usize] = match set == InstructionSet::detect() {
            true => &[0, usize::MAX],
            false => &[0],
        };
        for &inline in inline {
            let harness = Harness::new(streaming(set, inline), Size::Quick);
            for (name, check) in all {
                check(&harness).unwrap_or_else(|failure| panic!("{set}: {name}: {failure}"));
            }
        }
    }
}
