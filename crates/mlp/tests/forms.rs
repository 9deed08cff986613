//! The forms of checkpoints that load, each to the weights that it stands for. The document
//! `docs/checkpoints.md` names the same forms.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use std::collections::BTreeSet;

use safetensors::Dtype;
use swiglu_core::{E4M3, E8M0, Float, HostWeight, ScaleFormat, bf16, f16};
use swiglu_mlp::synthetic::{Names, SyntheticConfig, synthetic_input};
use swiglu_mlp::{Checkpoint, MlpConfig, OpenMode, SharedExpert};

mod common;
use common::{PREFIX, Tensors, error, forward, load, plainly, save, tensors, tiny};

/// What a form does to the small checkpoint, whose values stay the same.
type Change = fn(&mut MlpConfig, &mut Tensors);

/// Each form with its name in the document.
const FORMS: [(&str, &[Change]); 14] = [
    ("FP8 in blocks, scales E8M0", &[|_, _| ()]),
    ("FP8 in blocks, scales F32", &[|_, t| scales(t, Dtype::F32)]),
    (
        "FP8 in blocks, scales BF16 or F16",
        &[|_, t| scales(t, Dtype::BF16), |_, t| scales(t, Dtype::F16)],
    ),
    (
        "FP8 in blocks, scales E8M0 as U8",
        &[|config, t| {
            config.ue8m0 = true;
            t.iter_mut()
                .filter(|(n, _)| n.ends_with(".scale"))
                .for_each(|(_, t)| t.0 = Dtype::U8);
        }],
    ),
    (
        "FP8 in blocks that the configuration does not state",
        &[|config, _| config.block = None],
    ),
    (
        "FP8, a scale for each row",
        &[
            |config, t| per_row(config, t, |rows| vec![rows, 1]),
            |config, t| per_row(config, t, |rows| vec![rows]),
        ],
    ),
    (
        "FP8, a scale for the whole matrix",
        &[
            |config, t| per_matrix(config, t, vec![]),
            |config, t| per_matrix(config, t, vec![1]),
            |config, t| per_matrix(config, t, vec![1, 1]),
        ],
    ),
    (
        "BF16, F16 or F32 without scales",
        &[
            |_, t| MATRICES.iter().for_each(|m| plain(t, m, Float::BF16)),
            |_, t| MATRICES.iter().for_each(|m| plain(t, m, Float::F16)),
            |_, t| MATRICES.iter().for_each(|m| plain(t, m, Float::F32)),
        ],
    ),
    (
        "Hugging Face's names",
        &[
            |_, t| rename(t, ["gate_proj", "up_proj", "down_proj"], "weight_scale_inv"),
            |_, t| rename(t, ["gate_proj", "up_proj", "down_proj"], "weight_scale"),
        ],
    ),
    (
        "Names of both kinds",
        &[
            |_, t| rename(t, ["gate_proj", "up_proj", "down_proj"], "scale"),
            |_, t| rename(t, MATRICES, "weight_scale_inv"),
            |_, t| rename(t, ["w1", "up_proj", "w2"], "weight_scale"),
        ],
    ),
    (
        "Gate and up in one",
        &[
            |_, t| merge(t),
            |config, t| {
                config.block = None;
                per_row(config, t, |rows| vec![rows, 1]);
                merge(t);
            },
            |_, t| {
                MATRICES.iter().for_each(|m| plain(t, m, Float::BF16));
                merge(t);
            },
        ],
    ),
    (
        "Gate and up of different types",
        &[
            |_, t| plain(t, "w1", Float::BF16),
            |_, t| plain(t, "w3", Float::F32),
            |_, t| {
                plain(t, "w1", Float::F16);
                plain(t, "w3", Float::BF16);
            },
            |_, t| scale(t, "w1", Dtype::F32),
        ],
    ),
    (
        "Static scales of inputs beside the weights",
        &[|_, t| {
            let one = 1.0_f32.to_le_bytes().to_vec();
            t.insert(name("w1.input_scale"), (Dtype::F32, vec![], one));
        }],
    ),
    (
        "A dense MLP or a single expert",
        &[|config, t| {
            "layers.0.ffn".clone_into(&mut config.prefix);
            config.intermediate_size = 7777;
            let dense = |n: &String| n.replace(PREFIX, "layers.0.ffn");
            *t = t.iter().map(|(n, t)| (dense(n), t.clone())).collect();
        }],
    ),
];

const MATRICES: [&str; 3] = ["w1", "w3", "w2"];

fn name(rest: &str) -> String {
    format!("{PREFIX}.{rest}")
}

/// The scale of one matrix as another type: they are powers of two.
fn scale(t: &mut Tensors, matrix: &str, to: Dtype) {
    let (dtype, _, bytes) = t.get_mut(&name(&format!("{matrix}.scale"))).unwrap();
    assert_eq!(*dtype, Dtype::F8_E8M0);
    let values = bytes.iter().map(|&b| E8M0(b).to_f32());
    *bytes = match to {
        Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
        Dtype::BF16 => values
            .flat_map(|v| bf16::from_f32(v).to_le_bytes())
            .collect(),
        _ => values
            .flat_map(|v| f16::from_f32(v).to_le_bytes())
            .collect(),
    };
    *dtype = to;
}

fn scales(t: &mut Tensors, to: Dtype) {
    MATRICES.iter().for_each(|m| scale(t, m, to));
}

/// A scale for each row: that of the row's first block, so that other values follow.
fn per_row(config: &mut MlpConfig, t: &mut Tensors, shape: fn(usize) -> Vec<usize>) {
    config.block = None;
    for matrix in MATRICES {
        let rows = t[&name(&format!("{matrix}.weight"))].1[0];
        let (dtype, sides, bytes) = t.get_mut(&name(&format!("{matrix}.scale"))).unwrap();
        let value = |row: usize| 2_f32.powi(-4) * (1.0 + row as f32 / 64.0);
        *bytes = (0..rows).flat_map(|row| value(row).to_le_bytes()).collect();
        (*dtype, *sides) = (Dtype::F32, shape(rows));
    }
}

fn per_matrix(config: &mut MlpConfig, t: &mut Tensors, shape: Vec<usize>) {
    config.block = None;
    for (n, matrix) in MATRICES.iter().enumerate() {
        let value = 2_f32.powi(-4) * (1.0 + n as f32 / 8.0);
        let scale = (Dtype::F32, shape.clone(), value.to_le_bytes().to_vec());
        t.insert(name(&format!("{matrix}.scale")), scale);
    }
}

/// The matrix as plain numbers, which are the same: codes of a few bits times powers of two.
fn plain(t: &mut Tensors, matrix: &str, to: Float) {
    let scale = t.remove(&name(&format!("{matrix}.scale"))).unwrap();
    let (dtype, shape, codes) = t.get_mut(&name(&format!("{matrix}.weight"))).unwrap();
    let per_row = scale.1[1];
    let mut bytes = Vec::new();
    for (at, code) in codes.iter().enumerate() {
        let (row, col) = (at / shape[1] / 8, at % shape[1] / 8);
        let value = E4M3(*code).to_f32() * E8M0(scale.2[row * per_row + col]).to_f32();
        match to {
            Float::F32 => bytes.extend(value.to_le_bytes()),
            Float::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
            Float::BF16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
        }
    }
    *codes = bytes;
    *dtype = match to {
        Float::F32 => Dtype::F32,
        Float::F16 => Dtype::F16,
        Float::BF16 => Dtype::BF16,
    };
}

fn rename(t: &mut Tensors, matrices: [&str; 3], scale: &str) {
    for (from, to) in MATRICES.into_iter().zip(matrices) {
        for (part, new) in [("weight", "weight"), ("scale", scale)] {
            let tensor = t.remove(&name(&format!("{from}.{part}"))).unwrap();
            t.insert(name(&format!("{to}.{new}")), tensor);
        }
    }
}

/// Gate and up in one. Scales in blocks are made anew over both, as up begins within a block.
fn merge(t: &mut Tensors) {
    let take = |t: &mut Tensors, part: &str| {
        let [gate, up] = ["w1", "w3"].map(|m| t.remove(&name(&format!("{m}.{part}"))));
        let ((dtype, mut shape, mut bytes), up) = (gate?, up?);
        shape[0] += up.1[0];
        bytes.extend(up.2);
        Some((dtype, shape, bytes))
    };
    let weight = take(t, "weight").unwrap();
    if let Some((dtype, shape, mut bytes)) = take(t, "scale") {
        let mut shape = shape;
        if dtype == Dtype::F8_E8M0 {
            shape[0] = weight.1[0].div_ceil(8);
            bytes.truncate(shape[0] * shape[1]);
        }
        t.insert(name("gate_up_proj.scale"), (dtype, shape, bytes));
    }
    t.insert(name("gate_up_proj.weight"), weight);
}

/// The values of the matrix with these names, straight from the tensors: scales of any shape.
fn values(t: &Tensors, prefix: &str, block: usize, names: [&str; 2]) -> Vec<f64> {
    let named = |part: &str| names.map(|n| t.get(&format!("{prefix}.{n}.{part}")));
    let (dtype, shape, bytes) = named("weight").into_iter().flatten().next().unwrap();
    let parts = ["scale", "weight_scale", "weight_scale_inv"];
    let scale = parts.iter().flat_map(|part| named(part)).flatten().next();
    let value = |at: usize| match dtype {
        Dtype::F32 => f64::from(f32::from_le_bytes(bytes[4 * at..][..4].try_into().unwrap())),
        Dtype::F16 => f16::from_le_bytes(bytes[2 * at..][..2].try_into().unwrap()).to_f64(),
        Dtype::BF16 => bf16::from_le_bytes(bytes[2 * at..][..2].try_into().unwrap()).to_f64(),
        _ => f64::from(E4M3(bytes[at]).to_f32()),
    };
    let of = |at: usize| -> f64 {
        let Some((dtype, grid, bytes)) = scale else {
            return 1.0;
        };
        let (row, col) = (at / shape[1], at % shape[1]);
        let n = match grid.as_slice() {
            [] | [1] | [1, 1] => 0,
            [_] | [_, 1] if grid[0] == shape[0] => row,
            [_, cols] => row / block * cols + col / block,
            _ => panic!("{grid:?}"),
        };
        match dtype {
            Dtype::F32 => f32::from_le_bytes(bytes[4 * n..][..4].try_into().unwrap()).into(),
            Dtype::F16 => f16::from_le_bytes(bytes[2 * n..][..2].try_into().unwrap()).to_f64(),
            Dtype::BF16 => bf16::from_le_bytes(bytes[2 * n..][..2].try_into().unwrap()).to_f64(),
            _ => E8M0(bytes[n]).to_f32().into(),
        }
    };
    (0..shape[0] * shape[1])
        .map(|at| value(at) * of(at))
        .collect()
}

fn decoded(weight: &HostWeight<'_>) -> Vec<f64> {
    let rows = 0..weight.rows();
    rows.flat_map(|r| (0..weight.cols()).map(move |c| weight.get(r, c)))
        .collect()
}

#[test]
fn every_form_loads_as_what_it_stands_for_and_runs() {
    let x = synthetic_input(3, tiny().hidden, 9);
    for (form, changes) in FORMS {
        for (n, change) in changes.iter().enumerate() {
            let (mut config, mut all) = tensors(&tiny());
            change(&mut config, &mut all);
            let folder = tempfile::tempdir().unwrap();
            save(folder.path(), "model.safetensors", &all);
            for mode in [OpenMode::Map, OpenMode::Read] {
                let checkpoint = Checkpoint::open_with(folder.path(), mode).unwrap();
                let config = config.clone().with_tensors(&checkpoint).unwrap();
                assert_eq!(config.intermediate_size, 27, "{form}");
                let expert = SharedExpert::load(&checkpoint, &config);
                let expert = expert.unwrap_or_else(|e| panic!("{form} {n}: {e}"));
                let value = |names| values(&all, &config.prefix, 8, names);
                let (gate, up) = (decoded(expert.gate()), decoded(expert.up()));
                if all.keys().any(|name| name.contains("gate_up_proj")) {
                    let both = value(["gate_up_proj"; 2]);
                    assert_eq!([gate, up].concat(), both, "{form} {n}");
                } else {
                    assert_eq!(gate, value(["w1", "gate_proj"]), "{form} {n}");
                    assert_eq!(up, value(["w3", "up_proj"]), "{form} {n}");
                }
                assert_eq!(
                    decoded(expert.down()),
                    value(["w2", "down_proj"]),
                    "{form} {n}"
                );
                let y = forward(&load(&config, &expert), &x);
                let off = error(&y, &plainly(&expert, Some(10.0), &x));
                assert!(off < 1e-4, "{form} {n}: {off}");
            }
        }
    }
}

/// The forms that only layers have: moe_tensors.rs and moe.rs load them.
const OF_LAYERS: [&str; 2] = [
    "FP4 with a scale for each 32 columns of a row",
    "A whole layer",
];

/// The names of the forms in the rows of the document's tables whose second column says so.
fn documented(verdict: &str) -> BTreeSet<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/checkpoints.md");
    let text = std::fs::read_to_string(path).unwrap();
    let rows = text.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        let form = cells.next()?.trim().to_owned();
        cells.next()?.starts_with(verdict).then_some(form)
    });
    rows.collect()
}

#[test]
fn the_document_names_the_forms_that_load() {
    let tested = FORMS.iter().map(|(form, _)| *form).chain(OF_LAYERS);
    let tested: BTreeSet<_> = tested.map(str::to_owned).collect();
    assert_eq!(documented("loads"), tested);
    assert!(documented("refused").len() > 5);
}

#[test]
fn names_without_a_prefix_are_found() {
    let form = SyntheticConfig {
        names: Names::HuggingFace,
        scales: ScaleFormat::F32,
        ..tiny()
    };
    let (mut config, all) = tensors(&form);
    let bare = |n: &String| n[form.prefix().len() + 1..].to_owned();
    let all = all.iter().map(|(n, t)| (bare(n), t.clone())).collect();
    config.prefix = String::new();
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), "model.safetensors", &all);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert!(checkpoint.mlp_prefixes().contains(""));
    assert!(SharedExpert::load(&checkpoint, &config).is_ok());
}
