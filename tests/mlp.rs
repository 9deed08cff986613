//! The MLP on every platform of this build, with bf16 and with FP8 activations, against the scalar
//! reference.
#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use std::sync::Arc;

use swiglu::mlp::synthetic::{SyntheticConfig, synthetic_input, write_checkpoint};
use swiglu::mlp::{ActivationQuant, Checkpoint, MlpConfig, ModelConfig, Shard, SharedExpert};
use swiglu::{AnyBackend, HostWeight, ScaleFormat, WeightFormat, bf16};
use swiglu_conformance::relative_error;

mod common;
use common::platforms;

/// As the demo's: without a quantization, or with another, the error is ten times as large.
const TOLERANCE: f64 = 3e-3;

fn form(hidden: usize, intermediate: usize, block: usize, scales: ScaleFormat) -> SyntheticConfig {
    SyntheticConfig {
        hidden,
        intermediate,
        block,
        scales,
        ..SyntheticConfig::flash(11)
    }
}

/// Whole blocks, partial blocks, V4.1's blocks.
fn forms() -> [SyntheticConfig; 4] {
    [
        form(256, 128, 128, ScaleFormat::E8M0),
        form(200, 136, 128, ScaleFormat::F32),
        form(160, 96, 32, ScaleFormat::E8M0),
        form(75, 147, 32, ScaleFormat::F32),
    ]
}

const MODES: [ActivationQuant; 2] = [ActivationQuant::None, ActivationQuant::Fp8Block];

fn with(form: &SyntheticConfig, test: impl Fn(&MlpConfig, &SharedExpert<'_>)) {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), form).unwrap();
    let model = ModelConfig::from_file(&folder.path().join("config.json")).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    for activation_quant in MODES {
        let config = MlpConfig {
            activation_quant,
            ..model.mlp_config(&form.prefix()).unwrap()
        };
        test(&config, &SharedExpert::load(&checkpoint, &config).unwrap());
    }
}

#[test]
fn every_platform_gives_what_the_reference_gives() {
    let platforms = platforms();
    for form in forms() {
        with(&form, |config, expert| {
            let load = |backend: &Arc<AnyBackend>| backend.load_mlp(config, expert).unwrap();
            let reference = platforms.iter().find(|(name, _)| name == "reference");
            let mut reference = load(&reference.unwrap().1);
            for (_, backend) in platforms.iter().filter(|(name, _)| name != "reference") {
                let mut mlp = load(backend);
                for tokens in [1, 5, 8, 64, 3] {
                    let x = synthetic_input(tokens, form.hidden, 3);
                    let off =
                        relative_error(&mlp.forward(&x).unwrap(), &reference.forward(&x).unwrap());
                    let what = (backend.platform(), config.activation_quant, tokens);
                    assert!(off <= TOLERANCE, "{what:?} {form:?}: {off:.1e}");
                }
            }
        });
    }
}

#[test]
fn nan_stays_in_its_row_on_every_platform() {
    for (_, backend) in platforms() {
        for form in forms() {
            with(&form, |config, expert| {
                let mut mlp = backend.load_mlp(config, expert).unwrap();
                let mut x = synthetic_input(8, form.hidden, 3);
                let clean = mlp.forward(&x).unwrap();
                x[2 * form.hidden + form.hidden / 2] = bf16::NAN;
                let y = mlp.forward(&x).unwrap();
                let rows = y.chunks(form.hidden).zip(clean.chunks(form.hidden));
                for (row, (y, clean)) in rows.enumerate() {
                    let what = (backend.platform(), config.activation_quant, row);
                    match row {
                        2 => assert!(y.iter().all(|v| v.is_nan()), "{what:?} {form:?}"),
                        _ => assert_eq!(y, clean, "{what:?} {form:?}"),
                    }
                }
            });
        }
    }
}

/// The scales of FP8 weights in one block a row, or in one for all, of f32.
fn rescaled(weight: &HostWeight<'_>, block: [usize; 2]) -> HostWeight<'static> {
    let shape = [weight.rows(), weight.cols()];
    let format = WeightFormat::Fp8 {
        scales: ScaleFormat::F32,
        block,
    };
    let [rows, cols] = format.scale_grid(shape).unwrap();
    let scale = |n: usize| (2_f32.powi(-5) * (1.0 + n as f32 / 512.0)).to_le_bytes();
    let scales = (0..rows * cols).flat_map(scale).collect();
    HostWeight::owned(shape, format, weight.data().to_vec(), scales).unwrap()
}

/// A scale for each row and one for the whole matrix, and a gate that is stored otherwise than up.
#[test]
fn every_platform_runs_scales_of_any_shape_and_halves_of_two_formats() {
    let platforms = platforms();
    let form = form(75, 147, 32, ScaleFormat::E8M0);
    with(&form, |config, expert| {
        if config.activation_quant != ActivationQuant::None {
            return;
        }
        let config = &MlpConfig {
            reduce_results: false,
            ..config.clone()
        };
        let all = [expert.gate(), expert.up(), expert.down()];
        let rows = all.map(|w| rescaled(w, [1, w.cols()]));
        let whole = all.map(|w| rescaled(w, [w.rows(), w.cols()]));
        let mixed = [rows[0].clone(), expert.up().clone(), whole[2].clone()];
        for (name, [gate, up, down]) in [("rows", rows), ("whole", whole), ("mixed", mixed)] {
            let expert = SharedExpert::new(gate, up, down);
            let x = synthetic_input(5, form.hidden, 3);
            let stages = |backend: &Arc<AnyBackend>, shard| {
                let config = MlpConfig {
                    shard,
                    ..config.clone()
                };
                let mut mlp = backend.load_mlp(&config, &expert).unwrap();
                let y = mlp.forward(&x).unwrap();
                (mlp.stages(&x).unwrap().1, y)
            };
            let reference = platforms.iter().find(|(name, _)| name == "reference");
            let expected = stages(&reference.unwrap().1, Shard::WHOLE);
            for (platform, backend) in platforms {
                let (act, y) = stages(backend, Shard::WHOLE);
                let off = relative_error(&y, &expected.1);
                assert!(off <= TOLERANCE, "{platform} {name}: {off:.1e}");
                let mut side_by_side = vec![Vec::<bf16>::new(); 5];
                for rank in 0..3 {
                    let shard = Shard {
                        rank,
                        world: 3,
                        disable_tp: false,
                    };
                    let (part, _) = stages(backend, shard);
                    let parts = part.chunks(part.len() / 5);
                    let rows = side_by_side.iter_mut().zip(parts);
                    rows.for_each(|(row, part)| row.extend(part));
                }
                for (row, act) in side_by_side.iter().zip(act.chunks(form.intermediate)) {
                    assert_eq!(row[..form.intermediate], *act, "{platform} {name}");
                }
            }
        }
    });
}

/// The ranks' activations side by side are the unsplit ones, bit for bit.
#[test]
fn shards_are_cut_where_no_group_is() {
    for (_, backend) in platforms() {
        for (form, world) in [
            (form(200, 300, 128, ScaleFormat::E8M0), 3),
            (form(75, 147, 32, ScaleFormat::F32), 2),
        ] {
            with(&form, |config, expert| {
                let x = synthetic_input(5, form.hidden, 3);
                let act = |shard| {
                    let config = MlpConfig {
                        shard,
                        reduce_results: false,
                        ..config.clone()
                    };
                    let mut mlp = backend.load_mlp(&config, expert).unwrap();
                    mlp.stages(&x).unwrap().1
                };
                let whole = act(Shard::WHOLE);
                let mut rows = vec![Vec::<bf16>::new(); 5];
                for rank in 0..world {
                    let part = act(Shard {
                        rank,
                        world,
                        disable_tp: false,
                    });
                    let width = part.len() / 5;
                    rows.iter_mut()
                        .zip(part.chunks(width))
                        .for_each(|(row, p)| row.extend(p));
                }
                for (row, whole) in rows.iter().zip(whole.chunks(form.intermediate)) {
                    let what = (backend.platform(), config.activation_quant);
                    assert_eq!(row[..form.intermediate], *whole, "{what:?} {form:?}");
                }
            });
        }
    }
}
