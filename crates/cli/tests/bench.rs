//! `swiglu bench` as a person runs it.
#![allow(clippy::unwrap_used)] // A helper of a test fails by panicking.

mod common;

use common::{Folder, expect};

const QUICK: [&str; 6] = [
    "bench",
    "--platform",
    "cpu",
    "--seconds",
    "0.001",
    "--tokens",
];

fn bench(code: i32, more: &[&str]) -> String {
    expect(code, &[&QUICK, more].concat())
}

#[test]
fn a_line_for_each_number_of_tokens_says_how_it_was_measured() {
    let printed = bench(0, &["1,3", "--shape", "96x64"]);
    for part in [
        "platform cpu",
        "limits   ",
        "in turn",
        "silu_and_mul_with_clamp(limit=10, official) d=64 in bf16",
        "mlp H=96 I=64, matmuls of bf16 in fp8",
    ] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    let lines = |tokens: &str| {
        let begins = |l: &&str| l.split_whitespace().next() == Some(tokens);
        printed.lines().filter(begins).count()
    };
    assert_eq!((lines("1"), lines("3")), (2, 2), "{printed}");
    let quantized = [
        "2",
        "--shape",
        "64x64",
        "--op",
        "silu_and_mul",
        "--quant",
        "fp8",
    ];
    let printed = bench(0, &quantized);
    assert!(
        printed.contains("fp8(group=128, scales=e8m0) in bf16"),
        "{printed}"
    );
    let printed = bench(
        0,
        &["2", "--shape", "64x64", "--mlp", "--activations", "fp8"],
    );
    assert!(printed.contains("matmuls of fp8(group=128"), "{printed}");
}

#[test]
fn the_values_are_well_formed_and_in_order() {
    let printed = bench(0, &["1,3", "--shape", "96x64", "--csv"]);
    let mut reader = csv::Reader::from_reader(printed.as_bytes());
    let names = reader.headers().unwrap().clone();
    let rows: Vec<_> = reader.records().map(|r| r.unwrap()).collect();
    assert_eq!(rows.len(), 4, "{printed}");
    for row in &rows {
        let field = |name: &str| &row[names.iter().position(|n| n == name).unwrap()];
        let number = |name: &str| field(name).parse::<f64>().unwrap();
        assert_eq!(field("platform"), "cpu");
        assert!(["1", "3"].contains(&field("tokens")));
        assert!(number("copies") >= 1.0 && number("batch") >= 1.0);
        assert!(0.0 < number("p10_us") && number("p10_us") <= number("median_us"));
        assert!(number("median_us") <= number("p90_us"));
        assert!(number("gb_per_s") > 0.0);
        let mlp = field("what").starts_with("mlp");
        assert_eq!(field("dtype"), if mlp { "fp8" } else { "bf16" });
        assert_eq!(field("gflop_per_s").is_empty(), !mlp);
    }
}

#[test]
fn the_plot_is_an_svg_with_every_line() {
    let folder = Folder::new();
    let path = folder.path("out.svg");
    let plot = path.display().to_string();
    bench(0, &["1,3,9", "--shape", "96x64", "--plot", &plot]);
    let svg = std::fs::read_to_string(&path).unwrap();
    let document = roxmltree::Document::parse(&svg).unwrap();
    assert_eq!(document.root_element().tag_name().name(), "svg");
    let texts: Vec<_> = document
        .descendants()
        .filter(|n| n.has_tag_name(("http://www.w3.org/2000/svg", "text")))
        .filter_map(|n| n.text())
        .map(str::trim)
        .collect();
    for label in [
        "tokens",
        "time of a pass",
        "mlp H=96 I=64, matmuls of bf16 in fp8",
    ] {
        assert!(texts.contains(&label), "{label}: {texts:?}");
    }
    // A hyphen is standard output, and then the table is elsewhere.
    let arguments = [
        "1",
        "--shape",
        "96x64",
        "--op",
        "silu_and_mul",
        "--plot",
        "-",
    ];
    let printed = bench(0, &arguments);
    assert!(roxmltree::Document::parse(&printed).is_ok(), "{printed}");
    for other in ["--csv", "--json"] {
        let message = bench(2, &[&arguments, &[other][..]].concat());
        assert!(
            message.contains("plot: expected a file with --"),
            "{message}"
        );
    }
    let missing = folder.path("no/such/folder.svg").display().to_string();
    let message = bench(2, &["1", "--shape", "96x64", "--plot", &missing]);
    assert!(message.contains("no/such/folder.svg"), "{message}");
}

#[test]
fn mistakes_take_one_line_and_exit_code_2() {
    let fails = |more: &[&str], part: &str| {
        let message = bench(2, &[&["1"], more].concat());
        assert!(message.contains(part), "{message}");
    };
    fails(&["--op", "swish"], "op: expected one of silu_and_mul");
    fails(&["--graph"], "graph: expected the platform cuda, got cpu");
    fails(
        &["--op", "silu_and_mul", "--dtype", "fp8"],
        "dtype: expected f32",
    );
    fails(&["--op", "silu_and_mul", "--mlp"], "--mlp");
    fails(&["--mlp", "--quant", "fp8"], "quant: expected --op");
    fails(
        &["--mlp", "--dtype", "bf16", "--activations", "fp8"],
        "activation_quant: expected none",
    );
    fails(&["--dtype", "bf16"], "--op");
    fails(&["--shape", "0x4"], "expected flash, pro, v41");
    fails(
        &["--quant", "fp8", "--group", "7"],
        "group: expected 128, 64 or 32",
    );
}

/// On lavapipe where there is no GPU: slow, but the same path.
#[cfg(feature = "wgpu")]
#[test]
fn what_a_device_through_wgpu_allows_is_measured_beside_it() {
    let arguments = [
        "bench",
        "--platform",
        "wgpu",
        "--shape",
        "96x64",
        "--tokens",
        "2",
        "--mlp",
        "--dtype",
        "bf16",
        "--seconds",
        "0.001",
        "--json",
    ];
    let output = common::swiglu(&arguments)
        .env("SWIGLU_ALLOW_SOFTWARE", "1")
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    if !output.status.success() {
        let required = std::env::var("SWIGLU_REQUIRE").unwrap_or_default();
        assert!(!required.contains("wgpu"), "{message}");
        println!("skipped: wgpu: {message}");
        return;
    }
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let (limits, row) = (&document["limits"], &document["rows"][0]);
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    for limit in ["read_gb_per_s", "read_and_write_gb_per_s", "gflop_per_s"] {
        assert!(number(&limits[limit]) > 0.0, "{document:#}");
    }
    // Matmuls by bf16 run on a matrix unit where the device has one.
    let unit = &limits["matrix_unit_gflop_per_s"];
    let peak = if unit.is_null() {
        &limits["gflop_per_s"]
    } else {
        unit
    };
    assert_eq!(&row["peak_gflop_per_s"], peak, "{document:#}");
    let part = number(&row["gflop_per_s"]) / number(peak);
    assert!(
        (number(&row["of_peak"]) / part - 1.0).abs() < 1e-9,
        "{document:#}"
    );
}
