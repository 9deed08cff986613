//! Whole layers as a person runs them.
#![allow(clippy::unwrap_used)] // A helper of a test fails by panicking.

mod common;

use common::{Folder, expect, read, swiglu, write};
use safetensors::Dtype;
use swiglu::bf16;
use swiglu::mlp::ExpertDtype;
use swiglu::mlp::synthetic::{
    SyntheticConfig, SyntheticMoe, synthetic_input, write_moe_checkpoint,
};

const TOKENS: usize = 5;
const HIDDEN: usize = 96;
const PREFIX: &str = "layers.3.ffn";
const IDS: [i64; TOKENS] = [0, 8, -1, 9, 3];

/// A folder with a layer of 7 experts and an input with token ids, of which two are none.
fn layer(dtype: ExpertDtype, vocabulary: Option<usize>) -> Folder {
    let folder = Folder::new();
    let form = SyntheticMoe {
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
    };
    write_moe_checkpoint(folder.path("").as_path(), &form).unwrap();
    let x = synthetic_input(TOKENS, HIDDEN, 7);
    let tensors: [(&str, Dtype, &[usize], &[u8]); 2] = [
        (
            "x",
            Dtype::BF16,
            &[TOKENS, HIDDEN],
            bytemuck::cast_slice(&x),
        ),
        (
            "token_ids",
            Dtype::I64,
            &[TOKENS],
            bytemuck::cast_slice(&IDS),
        ),
    ];
    write(&folder.path("x"), &tensors);
    folder
}

fn run(code: i32, folder: &Folder, more: &[&str]) -> String {
    let path = |name| folder.path(name).display().to_string();
    let (checkpoint, input, output) = (path(""), path("x"), path("y"));
    let fixed = ["run", "--checkpoint", &checkpoint, "--output", &output];
    let mut arguments = fixed.to_vec();
    if !more.contains(&"--input") {
        arguments.extend(["--input", &input]);
    }
    arguments.extend(["--prefix", PREFIX]);
    arguments.extend(more);
    expect(code, &arguments)
}

fn values<T: bytemuck::Pod>(folder: &Folder, name: &str, dtype: Dtype, cols: usize) -> Vec<T> {
    let (found, shape, bytes) = read(&folder.path("y"), name);
    assert_eq!((found, shape), (dtype, vec![TOKENS, cols]), "{name}");
    bytemuck::allocation::pod_collect_to_vec(&bytes)
}

#[test]
fn the_cpu_agrees_with_the_reference_stage_by_stage() {
    for (dtype, vocabulary, mode) in [
        (ExpertDtype::Fp4, None, "bf16"),
        (ExpertDtype::Fp4, Some(9), "fp8"),
        (ExpertDtype::Fp8, Some(9), "bf16"),
        (ExpertDtype::Bf16, None, "bf16"),
    ] {
        let folder = layer(dtype, vocabulary);
        let output = |platform| {
            let flags = ["--platform", platform, "--activations", mode, "--stages"];
            let printed = run(0, &folder, &flags);
            assert!(printed.contains("routing  3 of 7 experts by "), "{printed}");
            let ids: Vec<i32> = values(&folder, "ids", Dtype::I32, 3);
            let weights: Vec<f32> = values(&folder, "weights", Dtype::F32, 3);
            let routed: Vec<f32> = values(&folder, "routed", Dtype::F32, HIDDEN);
            let shared: Vec<bf16> = values(&folder, "shared", Dtype::BF16, HIDDEN);
            let y: Vec<bf16> = values(&folder, "y", Dtype::BF16, HIDDEN);
            (ids, weights, routed, shared, y)
        };
        let (ids, weights, routed, shared, y) = output("reference");
        let got = output("cpu");
        assert_eq!(ids, got.0);
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * a.abs();
        assert!(weights.iter().zip(&got.1).all(near));
        for (t, &id) in IDS.iter().enumerate() {
            let none = vocabulary.is_some_and(|rows| !(0..rows as i64).contains(&id));
            let own = t * HIDDEN..(t + 1) * HIDDEN;
            assert_eq!(ids[3 * t..3 * t + 3] == [-1; 3], none);
            if none {
                assert!(routed[own.clone()].iter().all(|&r| r == 0.0));
                assert_eq!(got.4[own.clone()], got.3[own.clone()]);
            }
            let error = |a: &[bf16], b: &[bf16]| swiglu_conformance::relative_error(a, b);
            let of_y = error(&got.4[own.clone()], &y[own.clone()]);
            assert!(of_y < 4e-3, "{dtype:?} {mode} token {t}: {of_y}");
            assert!(error(&got.3[own.clone()], &shared[own]) < 4e-3);
        }
        // Without the stages y is the same.
        run(0, &folder, &["--platform", "cpu", "--activations", mode]);
        let alone: Vec<bf16> = values(&folder, "y", Dtype::BF16, HIDDEN);
        assert_eq!(alone, got.4);
    }
}

#[test]
fn what_a_layer_cannot_take_is_named() {
    let folder = layer(ExpertDtype::Fp4, Some(9));
    let said = |more: &[&str], what: &str| {
        let error = run(2, &folder, more);
        assert!(error.contains(what), "{more:?}: {error}");
    };
    said(&["--ranks", "2"], "ranks: expected 1 for a whole layer");
    said(
        &["--communicator", "mpi"],
        "communicator: expected none for a whole layer",
    );
    said(&["--intermediate", "64"], "intermediate: ");
    said(&["--rounding", "eager"], "rounding: ");
    // A layer that hashes must know its tokens.
    let x = synthetic_input(TOKENS, HIDDEN, 7);
    let data = bytemuck::cast_slice(&x);
    let alone = folder.path("alone");
    write(&alone, &[("x", Dtype::BF16, &[TOKENS, HIDDEN], data)]);
    said(&["--input", alone.to_str().unwrap()], "token_ids: ");
    let wrong: [(&str, Dtype, &[usize], &[u8]); 2] = [
        ("x", Dtype::BF16, &[TOKENS, HIDDEN], data),
        ("token_ids", Dtype::I64, &[2], &[0; 16]),
    ];
    write(&alone, &wrong);
    said(
        &["--input", alone.to_str().unwrap()],
        "`token_ids`: expected one for each of 5 rows",
    );
    let marked: [(&str, Dtype, &[usize], &[u8]); 3] = [
        ("x", Dtype::BF16, &[TOKENS, HIDDEN], data),
        (
            "token_ids",
            Dtype::I64,
            &[TOKENS],
            bytemuck::cast_slice(&IDS),
        ),
        ("image", Dtype::U8, &[TOKENS], &[0, 1, 0, 0, 0]),
    ];
    write(&alone, &marked);
    said(
        &["--input", alone.to_str().unwrap()],
        "image: expected none",
    );
    // Rows of padding have no experts, and a file may come by standard input.
    let padded: [(&str, Dtype, &[usize], &[u8]); 3] = [
        ("x", Dtype::BF16, &[TOKENS, HIDDEN], data),
        (
            "token_ids",
            Dtype::I64,
            &[TOKENS],
            bytemuck::cast_slice(&IDS),
        ),
        ("padding", Dtype::U8, &[TOKENS], &[1, 0, 0, 0, 0]),
    ];
    write(&alone, &padded);
    let path = |name: &str| folder.path(name).display().to_string();
    let (checkpoint, output) = (path(""), path("y"));
    let command = [
        "run",
        "--checkpoint",
        &checkpoint,
        "--output",
        &output,
        "--stages",
    ];
    let command = [&command[..], &["--prefix", PREFIX, "--input", "-"]].concat();
    let bytes = std::fs::read(&alone).unwrap();
    swiglu(&command).write_stdin(bytes).assert().success();
    let ids: Vec<i32> = values(&folder, "ids", Dtype::I32, 3);
    assert!(ids[..3] == [-1; 3] && ids[3..6] != [-1; 3], "{ids:?}");
}

#[test]
fn layers_are_listed_and_inspected() {
    let folder = layer(ExpertDtype::Fp4, None);
    let whole = folder.path("").display().to_string();
    let printed = expect(0, &["inspect", &whole]);
    let line =
        "layers.3.ffn: layer of 3 of 7 experts by score, normalized, times 1.5, H=96 I=64 fp4";
    assert!(printed.contains(line), "{printed}");
    assert!(
        printed.contains("layers.3.ffn.experts.0 and 6 alike: H=96 I=64 fp4"),
        "{printed}"
    );
    let printed = expect(
        0,
        &["inspect", &whole, "--prefix", PREFIX, "--platform", "cpu"],
    );
    assert!(printed.contains("router [1, 96] x [7, 96]: "), "{printed}");
    let json = expect(0, &["inspect", &whole, "--prefix", PREFIX, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["layers"][0]["experts"], 7);
    let config = folder.path("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"fp4\"", "\"fp8\"")).unwrap();
    let error = expect(1, &["inspect", &whole, "--prefix", PREFIX]);
    assert!(error.contains("expert_dtype: expected fp4"), "{error}");
}
