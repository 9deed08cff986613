//! `swiglu act` and `swiglu probe` as a person runs them.
#![allow(clippy::unwrap_used)] // A helper of a test fails by panicking.

mod common;

use common::{Folder, expect, read, swiglu, write};
use safetensors::Dtype;
use swiglu::{
    Backend, E8M0, Element, GatedActivation, Operator, Parameter, Parameters, Quantization,
    ScaleFormat, bf16, f16, reference,
};

/// Values on both sides of ±10, in rows of 2d = 6, for shape [2, 3, 6].
const VALUES: [f32; 36] = [
    1.0, -30.0, 12.5, 0.25, -11.0, 40.0, 9.75, 10.25, -0.5, -9.0, 3.25, -12.0, 0.0, -0.0, 100.0,
    -100.0, 7.5, 8.0, 2.0, 4.0, -4.0, 30.0, -30.0, 0.125, 11.0, -1.25, 6.0, 5.5, 9.0, 10.0, -10.0,
    10.0, 0.75, -2.5, 13.0, 1.5,
];

fn values<T: Element>() -> Vec<T> {
    VALUES.iter().map(|&v| T::from_f32(v)).collect()
}

fn expected<T: Element>(op: &GatedActivation) -> Vec<T> {
    let row = |row: &[T]| -> Vec<T> {
        (0..3)
            .map(|j| op.positions(3, j))
            .map(|(g, u)| reference::gated(op, row[g], row[u]))
            .collect()
    };
    values::<T>().chunks(6).flat_map(row).collect()
}

fn check<T: Element>(dtype: Dtype, op: &GatedActivation, flags: &[&str]) {
    let folder = Folder::new();
    let (input, output) = (
        folder.path("in.safetensors"),
        folder.path("out.safetensors"),
    );
    let data = values::<T>();
    let other = [0_u8; 4];
    write(
        &input,
        &[
            ("x", dtype, &[2, 3, 6], bytemuck::cast_slice(&data)),
            ("other", Dtype::F32, &[1], &other),
        ],
    );
    let named = format!("{}:x", input.display());
    let mut arguments = vec![
        "act",
        "--input",
        &named,
        "--output",
        output.to_str().unwrap(),
    ];
    arguments.extend(flags);
    arguments.extend(["--platform", "cpu"]);
    let printed = expect(0, &arguments);
    assert!(printed.contains(&op.to_string()), "{printed}");
    let (written, shape, bytes) = read(&output, "y");
    assert_eq!((written, shape), (dtype, vec![2, 3, 3]));
    let y: Vec<T> = bytemuck::allocation::pod_collect_to_vec(&bytes);
    for (i, (y, e)) in y.iter().zip(expected::<T>(op)).enumerate() {
        assert!(y.ulps_between(e) <= 1, "{op} at {i}: {y:?}, expected {e:?}");
    }
}

#[test]
fn one_operation_in_each_type_and_rounding() {
    let op = GatedActivation::deepseek_v4();
    let eager = op.with_rounding(swiglu::Rounding::Eager);
    let flags = ["--op", "silu_and_mul_with_clamp", "--limit", "10"];
    check::<bf16>(Dtype::BF16, &op, &flags);
    check::<f16>(Dtype::F16, &op, &flags);
    check::<f32>(Dtype::F32, &op, &flags);
    check::<bf16>(
        Dtype::BF16,
        &eager,
        &["--op", "deepseek_v4", "--rounding", "eager"],
    );
    let step = GatedActivation::swiglustep_and_mul(0.5).unwrap();
    check::<f16>(
        Dtype::F16,
        &step,
        &["--op", "swiglustep_and_mul", "--limit", "0.5"],
    );
    let situ = GatedActivation::situ_and_mul(2.0, None).unwrap();
    let flags = ["--op", "situ_and_mul", "--beta", "2", "--up-bound", "none"];
    check::<bf16>(Dtype::BF16, &situ, &flags);
}

/// The flags are the table's: an operator's own parameters by their flags are its defaults.
#[test]
fn every_operator_takes_its_parameters_as_flags() {
    for operator in Operator::ALL {
        let op = GatedActivation::from_name(operator.name(), &Parameters::default()).unwrap();
        let given = operator.parameters().iter().flat_map(|(parameter, value)| {
            let flag = format!("--{}", parameter.name().replace('_', "-"));
            [flag, value.to_string()]
        });
        let given: Vec<_> = given.collect();
        let mut flags = vec!["--op", operator.name()];
        flags.extend(given.iter().map(String::as_str));
        check::<bf16>(Dtype::BF16, &op, &flags);
    }
    let help = expect(0, &["act", "--help"]);
    for parameter in Parameter::ALL {
        let flag = format!("--{} <NUMBER", parameter.name().replace('_', "-"));
        assert!(help.contains(&flag), "{flag}: {help}");
    }
}

/// Codes and scales are those of the plain output, group by group, the last of them short.
fn check_quantized<T: Element>(dtype: Dtype, flags: &[&str], quant: &Quantization) {
    const D: usize = 150;
    let folder = Folder::new();
    let (input, output) = (folder.path("in"), folder.path("out"));
    let data: Vec<T> = (0..6 * 2 * D)
        .map(|i| T::from_f32((i as f32 * 0.37).sin() * 30.0))
        .collect();
    let shape = [2, 3, 2 * D];
    write(&input, &[("x", dtype, &shape, bytemuck::cast_slice(&data))]);
    let run = |flags: &[&str]| {
        let (input, output) = (input.to_str().unwrap(), output.to_str().unwrap());
        let always = [
            "act",
            "--op",
            "deepseek_v4",
            "--input",
            input,
            "--output",
            output,
            "--platform",
            "cpu",
        ];
        expect(0, &[&always, flags].concat())
    };
    run(&[]);
    let y: Vec<T> = bytemuck::allocation::pod_collect_to_vec(&read(&output, "y").2);
    let printed = run(flags);
    assert!(printed.contains(&quant.to_string()), "{printed}");
    let (codes, scales) = (read(&output, "codes"), read(&output, "scales"));
    assert_eq!((codes.0, codes.1), (Dtype::F8_E4M3, vec![2, 3, D]));
    let (stored, size) = match quant.format() {
        ScaleFormat::F32 => (Dtype::F32, 4),
        ScaleFormat::E8M0 => (Dtype::F8_E8M0, 1),
    };
    let groups = quant.groups(D);
    assert_eq!((scales.0, scales.1), (stored, vec![2, 3, groups]));
    let rows = codes.2.chunks(D).zip(scales.2.chunks(groups * size));
    for (y, (codes, scales)) in y.chunks(D).zip(rows) {
        let y: Vec<f32> = y.iter().map(|y| y.to_f32()).collect();
        let mut expected = vec![0; D];
        reference::quantize_row(quant, &y, &mut expected, |g, scale| {
            let got = match quant.format() {
                ScaleFormat::F32 => bytemuck::pod_read_unaligned(&scales[4 * g..4 * g + 4]),
                ScaleFormat::E8M0 => E8M0(scales[g]).to_f32(),
            };
            assert_eq!(got, scale);
        });
        assert_eq!(codes, expected);
    }
}

#[test]
fn the_output_is_quantized_in_groups() {
    let v4 = Quantization::deepseek_v4();
    check_quantized::<bf16>(Dtype::BF16, &["--quant", "fp8"], &v4);
    // Both names of the format.
    let flags = ["--quant", "fp8", "--group", "128", "--scales", "e8m0"];
    check_quantized::<f16>(Dtype::F16, &flags, &v4);
    check_quantized::<f16>(Dtype::F16, &["--quant", "fp8", "--scales", "ue8m0"], &v4);
    let flags = [
        "--quant", "fp8", "--group", "32", "--scales", "f32", "--floor", "100",
    ];
    let high = Quantization::new(32, ScaleFormat::F32).unwrap();
    check_quantized::<bf16>(Dtype::BF16, &flags, &high.with_floor(100.0).unwrap());
    let flags = [
        "--quant",
        "fp8",
        "--group",
        "64",
        "--scales",
        "f32",
        "--materialize",
        "true",
    ];
    let middle = Quantization::new(64, ScaleFormat::F32).unwrap();
    check_quantized::<f32>(Dtype::F32, &flags, &middle);
}

#[test]
fn an_operator_that_is_switched_off_runs_the_reference_and_says_so() {
    let folder = Folder::new();
    let (input, output) = (folder.path("in"), folder.path("out"));
    let data = values::<bf16>();
    write(
        &input,
        &[("x", Dtype::BF16, &[6, 6], bytemuck::cast_slice(&data))],
    );
    let flags = ["act", "--op", "silu_and_mul", "--input"];
    let printed = swiglu(&flags)
        .args([&input, &"--output".into(), &output])
        .env("SWIGLU_OPS", "-silu_and_mul")
        .env("SWIGLU_PLATFORM", "cpu")
        .assert()
        .success()
        .get_output()
        .clone();
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert!(printed.contains("platform reference"), "{printed}");
    assert!(
        printed.contains("cpu (silu_and_mul is switched off)"),
        "{printed}"
    );
}

#[test]
fn mistakes_take_one_line_and_exit_code_2() {
    let folder = Folder::new();
    let input = folder.path("in.safetensors");
    let zeros = [0_u8; 64];
    write(
        &input,
        &[
            ("odd", Dtype::F32, &[2, 3], &zeros[..24]),
            ("codes", Dtype::U8, &[2, 4], &zeros[..8]),
            ("scalar", Dtype::F32, &[], &zeros[..4]),
            ("x", Dtype::F32, &[2, 4], &zeros[..32]),
        ],
    );
    let output = folder.path("out").display().to_string();
    let act = |op: &str, input: &str, more: &[&str]| {
        let mut arguments = vec!["act", "--op", op, "--input", input, "--output", &output];
        arguments.extend(more);
        expect(2, &arguments)
    };
    let file = input.display().to_string();
    let of = |name: &str| format!("{file}:{name}");
    assert!(act("silu_and_mul", &of("odd"), &[]).contains("expected shape [.., 2d]"));
    assert!(act("silu_and_mul", &of("scalar"), &[]).contains("expected shape [.., 2d]"));
    assert!(act("silu_and_mul", &of("codes"), &[]).contains("`codes`: expected F32, F16 or BF16"));
    assert!(act("silu_and_mul", &of("nothing"), &[]).contains("there are: codes, odd"));
    assert!(act("silu_and_mul", &file, &[]).contains("got 4 tensors"));
    assert!(act("silu_and_mul", "/nowhere", &[]).contains("/nowhere"));
    assert!(act("swish", &of("x"), &[]).contains("op: expected one of silu_and_mul"));
    assert!(act("silu_and_mul", &of("x"), &["--limit", "10"]).contains("limit: expected nothing"));
    let sparse = act("gelu_and_mul_sparse", &of("x"), &[]);
    assert!(
        sparse.contains("gelu_and_mul_sparse") && sparse.contains("whole row"),
        "{sparse}"
    );
    for bad in ["0", "-1", "nan", "inf"] {
        let message = act("deepseek_v4", &of("x"), &["--limit", bad]);
        assert!(message.contains("limit"), "{message}");
        let message = act("silu_and_mul_with_clamp", &of("x"), &["--limit", bad]);
        assert!(
            message.contains("limit: expected a finite number above 0"),
            "{message}"
        );
    }
    let quant = |more: &[&str]| {
        act(
            "silu_and_mul",
            &of("x"),
            &[&["--quant", "fp8"], more].concat(),
        )
    };
    assert!(quant(&["--group", "100"]).contains("group: expected 128, 64 or 32, got 100"));
    assert!(quant(&["--scales", "f16"]).contains("--scales"));
    for bad in ["0", "-1", "nan"] {
        assert!(quant(&["--floor", bad]).contains("floor: expected from 1e-30"));
    }
    let eager = quant(&["--materialize", "false", "--rounding", "eager"]);
    assert!(
        eager.contains("materialize: expected true in eager"),
        "{eager}"
    );
    assert!(act("silu_and_mul", &of("x"), &["--group", "128"]).contains("--quant"));
    assert!(act("silu_and_mul", &of("x"), &["--platform", "tpu"]).contains("`tpu`"));
    assert!(expect(2, &["act"]).contains("--op"));
    assert!(expect(2, &["frobnicate"]).contains("frobnicate"));
}

#[test]
fn probe_names_every_platform_and_what_is_chosen() {
    let printed = expect(0, &["probe"]);
    for platform in ["cuda", "wgpu", "cpu", "reference", "chosen"] {
        assert!(printed.contains(platform), "{printed}");
    }
    let json: serde_json::Value = serde_json::from_str(&expect(0, &["probe", "--json"])).unwrap();
    let platforms = json["platforms"].as_array().unwrap();
    assert!(
        platforms
            .iter()
            .any(|p| p["platform"] == "cpu" && p["available"] == true)
    );
    assert!(json["chosen"].is_string());
    for platform in platforms.iter().filter(|p| p["available"] == true) {
        assert!(platform["accuracy"]["f32_ulps"].as_u64().unwrap() >= 4);
        let sums = platform["accuracy"]["accumulation"].as_str().unwrap();
        assert!(
            swiglu::Accumulation::from_name(sums).is_ok(),
            "{platform:#}"
        );
        let plans = platform["mlp"].as_array().unwrap();
        let tokens: Vec<_> = plans
            .iter()
            .map(|p| p["tokens"].as_u64().unwrap())
            .collect();
        assert_eq!(tokens, [1, 16, 256], "{platform:#}");
    }
    let cpu = platforms.iter().find(|p| p["platform"] == "cpu").unwrap();
    let class = swiglu::cpu::CpuBackend::new().accuracy().accumulation;
    assert_eq!(cpu["accuracy"]["accumulation"], class.name());
    for plan in cpu["mlp"].as_array().unwrap() {
        let kernels = plan["kernels"].as_array().unwrap();
        assert!(!kernels.is_empty(), "{cpu:#}");
        for kernel in kernels {
            assert!(printed.contains(kernel.as_str().unwrap()), "{printed}");
        }
    }
    let forced = swiglu(&["probe", "--json"])
        .env("SWIGLU_PLATFORM", "reference")
        .assert()
        .success();
    let json: serde_json::Value = serde_json::from_slice(&forced.get_output().stdout).unwrap();
    assert_eq!(json["chosen"], "reference");
    let sums = swiglu(&["probe"])
        .env("SWIGLU_ACCUMULATION", "fast")
        .assert()
        .code(2);
    let message = String::from_utf8_lossy(&sums.get_output().stderr).into_owned();
    assert!(
        message.contains("accumulation: expected one of"),
        "{message}"
    );
}

/// A platform with matrix units says that it may use them unless it is told not to.
#[test]
fn ordered_sums_reach_every_device() {
    let ordered = swiglu(&["probe", "--json"])
        .env("SWIGLU_ACCUMULATION", "ordered")
        .assert()
        .success();
    let json: serde_json::Value = serde_json::from_slice(&ordered.get_output().stdout).unwrap();
    let platforms = json["platforms"].as_array().unwrap();
    for platform in platforms.iter().filter(|p| p["available"] == true) {
        let sums = &platform["accuracy"]["accumulation"];
        assert_eq!(sums, "ordered", "{platform:#}");
    }
}
