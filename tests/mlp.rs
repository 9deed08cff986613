//! The MLP on every platform of this build, with bf16 and with FP8 activations, against the scalar
//! reference.
#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use std::sync::Arc;

use swiglu::mlp::synthetic::{SyntheticConfig, synthetic_input, write_checkpoint};
use swiglu::mlp::{ActivationQuant, Checkpoint, MlpConfig, ModelConfig, Shard, SharedExpert};
use swiglu::{AnyBackend, ScaleFormat, bf16};
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
