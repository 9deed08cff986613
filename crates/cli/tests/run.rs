//! `swiglu run` and `swiglu demo` as a person runs them.
#![allow(clippy::unwrap_used)] // A helper of a test fails by panicking.

mod common;

use common::{Folder, expect, read, write};
use safetensors::Dtype;
use swiglu::cpu::CpuBackend;
use swiglu::mlp::synthetic::{SyntheticConfig, synthetic_input, write_checkpoint};
use swiglu::{Accumulation, Backend, GatedActivation, bf16, reference};
use swiglu_conformance::relative_error;

const TOKENS: usize = 5;
const HIDDEN: usize = 200;
const INTERMEDIATE: usize = 136;
const PREFIX: &str = "layers.3.ffn.shared_experts";

/// A folder with a ragged checkpoint of partial blocks and an input.
fn checkpoint() -> Folder {
    let folder = Folder::new();
    let config = SyntheticConfig {
        hidden: HIDDEN,
        intermediate: INTERMEDIATE,
        ..SyntheticConfig::flash(7)
    };
    write_checkpoint(folder.path("").as_path(), &config).unwrap();
    let x = synthetic_input(TOKENS, HIDDEN, 7);
    let data = bytemuck::cast_slice(&x);
    write(
        &folder.path("x"),
        &[("x", Dtype::BF16, &[TOKENS, HIDDEN], data)],
    );
    folder
}

fn run(code: i32, folder: &Folder, more: &[&str]) -> String {
    let path = |name| folder.path(name).display().to_string();
    let (checkpoint, input, output) = (path(""), path("x"), path("y"));
    let mut arguments = vec!["run", "--checkpoint", &checkpoint, "--output", &output];
    if !more.contains(&"--prefix") {
        arguments.extend(["--prefix", PREFIX]);
    }
    if !more.contains(&"--input") {
        arguments.extend(["--input", &input]);
    }
    arguments.extend(more);
    expect(code, &arguments)
}

fn tensor(folder: &Folder, name: &str, shape: [usize; 2]) -> Vec<bf16> {
    let (dtype, found, bytes) = read(&folder.path("y"), name);
    assert_eq!((dtype, found), (Dtype::BF16, shape.to_vec()));
    bytemuck::allocation::pod_collect_to_vec(&bytes)
}

#[test]
fn the_cpu_agrees_with_the_reference_stage_by_stage() {
    let folder = checkpoint();
    let output = |platform| {
        let printed = run(0, &folder, &["--platform", platform, "--stages"]);
        assert!(
            printed.contains(&format!("platform {platform}")),
            "{printed}"
        );
        assert!(printed.contains("limit=10"), "{printed}");
        [
            tensor(&folder, "gate_up", [TOKENS, 2 * INTERMEDIATE]),
            tensor(&folder, "act", [TOKENS, INTERMEDIATE]),
            tensor(&folder, "y", [TOKENS, HIDDEN]),
        ]
    };
    let expected = output("reference");
    let got = output("cpu");
    for (stage, (got, expected)) in got.iter().zip(&expected).enumerate() {
        let error = relative_error(got, expected);
        assert!(error < 3e-3, "stage {stage}: {error}");
    }
    // The activation that the stages show is the clamped one, and the limit is alive.
    let op = GatedActivation::deepseek_v4();
    let mut beyond = 0;
    for (gate_up, act) in got[0]
        .chunks(2 * INTERMEDIATE)
        .zip(got[1].chunks(INTERMEDIATE))
    {
        for j in 0..INTERMEDIATE {
            let (gate, up) = (gate_up[j], gate_up[INTERMEDIATE + j]);
            let y = reference::gated(&op, gate, up);
            assert!(swiglu::Element::ulps_between(y, act[j]) <= 1);
            beyond += u32::from(gate.to_f32() > 10.0);
        }
    }
    assert!(beyond > 0);
}

/// Rows are rows, however they are stacked: the output has the input's leading shape.
#[test]
fn any_leading_shape_is_kept() {
    let folder = checkpoint();
    let x = synthetic_input(6, HIDDEN, 7);
    let output = |leading: &[usize]| {
        let shape = [leading, &[HIDDEN]].concat();
        let rows = leading.iter().product::<usize>();
        let data = bytemuck::cast_slice(&x[..rows * HIDDEN]);
        write(&folder.path("x"), &[("x", Dtype::BF16, &shape, data)]);
        run(0, &folder, &["--platform", "cpu", "--stages"]);
        let of = |name, cols| {
            let (dtype, found, bytes) = read(&folder.path("y"), name);
            assert_eq!((dtype, found), (Dtype::BF16, [leading, &[cols]].concat()));
            bytes
        };
        let stages = [of("gate_up", 2 * INTERMEDIATE), of("act", INTERMEDIATE)];
        (stages, of("y", HIDDEN))
    };
    let plain = output(&[6]);
    assert_eq!(output(&[2, 3]), plain);
    assert_eq!(output(&[3, 1, 2]), plain);
    let one = output(&[]);
    assert_eq!(one, output(&[1]));
    assert_eq!(one.1, plain.1[..2 * HIDDEN]);
    assert_eq!(output(&[2, 0, 3]).1, [0_u8; 0]);
}

/// F32 and F16 are rounded to the nearest BF16, ties to even, and the output is BF16.
#[test]
fn wider_inputs_are_rounded_to_bf16() {
    let folder = checkpoint();
    let output = |dtype, bytes: &[u8]| {
        write(&folder.path("x"), &[("x", dtype, &[1, HIDDEN], bytes)]);
        run(0, &folder, &["--platform", "cpu"]);
        let (dtype, _, bytes) = read(&folder.path("y"), "y");
        assert_eq!(dtype, Dtype::BF16);
        bytes
    };
    // Between neighbours 1 and 1 + 2^-7: below, in and above the middle, and a tie to the odd one.
    let (step, even) = (
        1.0 / 128.0,
        [1.0, 1.0, 1.0 + 1.0 / 128.0, 1.0 + 2.0 / 128.0],
    );
    let wide = [
        1.0 + step * 0.25,
        1.0 + step * 0.5,
        1.0 + step * 0.75,
        1.0 + step * 1.5_f32,
    ];
    let f32s: Vec<u8> = (0..HIDDEN)
        .flat_map(|i| wide[i % 4].to_le_bytes())
        .collect();
    let f16s = (0..HIDDEN).flat_map(|i| swiglu::f16::from_f32(wide[i % 4]).to_le_bytes());
    let f16s: Vec<u8> = f16s.collect();
    let rounded = (0..HIDDEN).flat_map(|i| bf16::from_f32(even[i % 4]).to_le_bytes());
    let rounded: Vec<u8> = rounded.collect();
    let expected = output(Dtype::BF16, &rounded);
    assert_eq!(output(Dtype::F32, &f32s), expected);
    assert_eq!(output(Dtype::F16, &f16s), expected);
    let ones = bf16::ONE.to_le_bytes().repeat(HIDDEN);
    assert_ne!(output(Dtype::BF16, &ones), expected);
}

/// The kernels of a pass, a line a stage, under the report.
#[test]
fn the_plan_is_shown_under_the_platform() {
    let folder = checkpoint();
    let printed = run(0, &folder, &["--platform", "cpu"]);
    let mut lines = printed
        .lines()
        .skip_while(|l| !l.starts_with("platform cpu"));
    let plan: Vec<_> = lines
        .by_ref()
        .skip(1)
        .take_while(|l| l.starts_with("  "))
        .collect();
    assert!(plan.len() >= 2, "{printed}");
}

#[test]
fn the_class_of_sums_is_said_and_an_unknown_one_refused() {
    let folder = checkpoint();
    for class in ["ordered", "matrix-unit"] {
        let printed = run(0, &folder, &["--platform", "cpu", "--accumulation", class]);
        // The best of what is allowed that this CPU has.
        let cpu = CpuBackend::new().with_accumulation(Accumulation::from_name(class).unwrap());
        let class = cpu.accuracy().accumulation.name();
        assert!(printed.contains(&format!("sums     {class}")), "{printed}");
    }
    let message = run(2, &folder, &["--accumulation", "fast"]);
    assert!(
        message.contains("fast") && message.contains("fp8-tensor-core"),
        "{message}"
    );
    for command in ["bench", "demo"] {
        let message = expect(2, &[command, "--accumulation", "fast"]);
        assert!(message.contains("fast"), "{message}");
    }
}

#[test]
fn the_limit_is_the_configurations_unless_given() {
    let folder = checkpoint();
    let y = |flags: &[&str]| {
        let printed = run(0, &folder, &[&["--platform", "cpu"], flags].concat());
        (printed, tensor(&folder, "y", [TOKENS, HIDDEN]))
    };
    let (_, ten) = y(&[]);
    let (_, same) = y(&["--limit", "10"]);
    let (printed, without) = y(&["--limit", "none"]);
    assert!(printed.contains("silu_and_mul("), "{printed}");
    assert_eq!(ten, same);
    let error = relative_error(&without, &ten);
    assert!(error > 1e-2, "{error}");
    let (printed, _) = y(&["--rounding", "eager"]);
    assert!(printed.contains("eager"), "{printed}");
}

#[test]
fn matmuls_of_fp8_are_the_references_and_not_those_of_bf16() {
    let folder = checkpoint();
    let y = |platform: &[&str], activations| {
        let flags = [platform, &["--stages", "--activations", activations]].concat();
        let printed = run(0, &folder, &flags);
        let act = tensor(&folder, "act", [TOKENS, INTERMEDIATE]);
        (printed, act, tensor(&folder, "y", [TOKENS, HIDDEN]))
    };
    let reference = ["--platform", "reference"];
    let (printed, act, expected) = y(&reference, "fp8");
    let matmuls = "matmuls  of fp8(group=128, scales=e8m0)";
    assert!(printed.contains(matmuls), "{printed}");
    let cpu = ["--platform", "cpu"];
    let (_, got_act, got) = y(&cpu, "fp8");
    assert!(relative_error(&got_act, &act) < 3e-3);
    assert!(relative_error(&got, &expected) < 3e-3);
    let (printed, _, plain) = y(&cpu, "bf16");
    assert!(printed.contains("matmuls  of bf16"), "{printed}");
    let between = relative_error(&got, &plain);
    assert!((1e-2..1e-1).contains(&between), "{between}");
}

#[test]
fn fp8_activations_take_fp8_weights() {
    let folder = Folder::new();
    let config = SyntheticConfig {
        hidden: HIDDEN,
        intermediate: INTERMEDIATE,
        weights: Some(swiglu::Float::BF16),
        ..SyntheticConfig::flash(7)
    };
    write_checkpoint(folder.path("").as_path(), &config).unwrap();
    let x = synthetic_input(TOKENS, HIDDEN, 7);
    let shape = [TOKENS, HIDDEN];
    write(
        &folder.path("x"),
        &[("x", Dtype::BF16, &shape, bytemuck::cast_slice(&x))],
    );
    run(0, &folder, &["--activations", "bf16"]);
    let message = run(2, &folder, &["--activations", "fp8"]);
    assert!(
        message.contains("activation_quant: expected none"),
        "{message}"
    );
    let message = run(2, &folder, &["--activations", "fp4"]);
    assert!(message.contains("fp4"), "{message}");
}

#[test]
fn mistakes_take_one_line_and_exit_code_2() {
    let folder = checkpoint();
    let path = |name| folder.path(name).display().to_string();
    let message = run(2, &folder, &["--prefix", "layers.4.ffn.shared_experts"]);
    assert!(message.contains("layers.4.ffn.shared_experts"), "{message}");
    for bad in ["0", "-1", "nan", "inf", "ten"] {
        let message = run(2, &folder, &[&format!("--limit={bad}")]);
        assert!(message.contains("limit"), "{message}");
    }
    let message = run(2, &folder, &["--platform", "tpu"]);
    assert!(
        message.contains("platform: expected auto or one of"),
        "{message}"
    );
    let message = run(2, &folder, &["--config", &path("nothing.json")]);
    assert!(message.contains("nothing.json"), "{message}");

    let zeros = vec![0; 2 * TOKENS * HIDDEN];
    write(
        &folder.path("wide"),
        &[("x", Dtype::BF16, &[HIDDEN, TOKENS], &zeros)],
    );
    let message = run(2, &folder, &["--input", &path("wide")]);
    assert!(
        message.contains("input: expected shape [.., 200], got bf16 [200, 5]"),
        "{message}"
    );
    write(
        &folder.path("scalar"),
        &[("x", Dtype::BF16, &[], &zeros[..2])],
    );
    let message = run(2, &folder, &["--input", &path("scalar")]);
    assert!(message.contains("got bf16 []"), "{message}");
    write(
        &folder.path("u8"),
        &[("x", Dtype::U8, &[2, HIDDEN], &zeros[..2 * HIDDEN])],
    );
    let message = run(2, &folder, &["--input", &path("u8")]);
    assert!(message.contains("expected F32, F16 or BF16"), "{message}");

    std::fs::remove_file(folder.path("config.json")).unwrap();
    let message = run(2, &folder, &[]);
    assert!(message.contains("expected config.json in"), "{message}");
}

#[test]
fn the_demo_runs_and_checks_every_platform() {
    let printed = expect(0, &["demo", "--tokens", "1,3"]);
    let rows = |mode: &str| {
        let begins = |l: &&str| l.split_whitespace().take(2).eq(["cpu", mode]);
        printed.lines().filter(begins).count()
    };
    assert_eq!((rows("bf16"), rows("fp8")), (2, 2), "{printed}");
    assert!(
        printed.contains("from bf16 to fp8 activations"),
        "{printed}"
    );
    assert!(
        printed.contains("every result agrees with the reference"),
        "{printed}"
    );
    let message = expect(2, &["demo", "--platform", "tpu"]);
    assert!(message.contains("`tpu`"), "{message}");
    expect(2, &["demo", "--tokens", "0"]);
}
