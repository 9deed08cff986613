//! `swiglu verify --against`: files as eight engines would write them, by code of their own.
#![allow(clippy::unwrap_used)] // A helper of a test fails by panicking.

mod common;

use common::{Folder, expect, swiglu, write};
use safetensors::Dtype;
use serde_json::Value;
use swiglu::{bf16, f16};

const ROWS: usize = 32;
const D: usize = 48;

/// What an engine does with a gate and an up half.
type Engine = fn(gate: f64, up: f64, limit: f64, round: &dyn Fn(f64) -> f64) -> f64;

/// Where an engine finds gate and up j in a row.
type Places = fn(usize) -> (usize, usize);

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// min and clamp that keep NaN.
fn at_most(x: f64, limit: f64) -> f64 {
    if x > limit { limit } else { x }
}

fn official(g: f64, u: f64, l: f64, _: &dyn Fn(f64) -> f64) -> f64 {
    silu(at_most(g, l)) * u.clamp(-l, l)
}

fn eager(g: f64, u: f64, l: f64, round: &dyn Fn(f64) -> f64) -> f64 {
    round(silu(round(at_most(g, l)))) * round(u.clamp(-l, l))
}

fn no_clamp(g: f64, u: f64, _: f64, _: &dyn Fn(f64) -> f64) -> f64 {
    silu(g) * u
}

fn clamp_after(g: f64, u: f64, l: f64, _: &dyn Fn(f64) -> f64) -> f64 {
    at_most(silu(g), l) * u.clamp(-l, l)
}

fn both_sides(g: f64, u: f64, l: f64, _: &dyn Fn(f64) -> f64) -> f64 {
    silu(g.clamp(-l, l)) * u.clamp(-l, l)
}

/// `f64::min` and `f64::max` swallow NaN as C's `fmin` and `fmax` do.
fn nan_swallowed(g: f64, u: f64, l: f64, _: &dyn Fn(f64) -> f64) -> f64 {
    silu(g.min(l)) * u.min(l).max(-l)
}

fn halves(j: usize) -> (usize, usize) {
    (j, D + j)
}

fn interleaved(j: usize) -> (usize, usize) {
    (2 * j, 2 * j + 1)
}

fn swapped(j: usize) -> (usize, usize) {
    (D + j, j)
}

/// A storage type: its name, reading and writing of little-endian bytes, with one rounding.
struct Storage {
    dtype: Dtype,
    read: fn(&[u8]) -> f64,
    write: fn(f64) -> Vec<u8>,
}

const STORAGES: [Storage; 3] = [
    Storage {
        dtype: Dtype::BF16,
        read: |b| bf16::from_le_bytes([b[0], b[1]]).to_f64(),
        write: |x| bf16::from_f64(x).to_le_bytes().to_vec(),
    },
    Storage {
        dtype: Dtype::F16,
        read: |b| f16::from_le_bytes([b[0], b[1]]).to_f64(),
        write: |x| f16::from_f64(x).to_le_bytes().to_vec(),
    },
    Storage {
        dtype: Dtype::F32,
        read: |b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        write: |x| (x as f32).to_le_bytes().to_vec(),
    },
];

/// Numbers on both sides of ±`spread`, from a linear congruence; with `nan`, some NaN in each half.
fn input(spread: f64, nan: bool) -> Vec<f64> {
    let mut state = 12_345_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        ((state >> 33) as f64 / f64::from(1_u32 << 30) - 1.0) * spread
    };
    let mut values: Vec<f64> = (0..ROWS * 2 * D).map(|_| next()).collect();
    if nan {
        for at in (7..values.len()).step_by(61) {
            values[at] = f64::NAN;
        }
    }
    values
}

fn bytes(s: &Storage, values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|x| (s.write)(*x)).collect()
}

/// The file that an engine writes for an input.
fn engine(
    folder: &Folder,
    s: &Storage,
    input: &[f64],
    engine: Engine,
    places: Places,
    limit: f64,
) -> String {
    let round = |x: f64| (s.read)(&(s.write)(x));
    let stored: Vec<f64> = input.iter().map(|x| round(*x)).collect();
    let output: Vec<f64> = stored
        .chunks(2 * D)
        .flat_map(|row| (0..D).map(move |j| (row, places(j))))
        .map(|(row, (g, u))| engine(row[g], row[u], limit, &round))
        .collect();
    let path = folder.path("engine.safetensors");
    write(
        &path,
        &[
            ("input", s.dtype, &[4, ROWS / 4, 2 * D], &bytes(s, input)),
            ("output", s.dtype, &[4, ROWS / 4, D], &bytes(s, &output)),
        ],
    );
    path.display().to_string()
}

fn judged(code: i32, file: &str, flags: &[&str]) -> Value {
    let arguments = ["verify", "--against", file, "--json"];
    let output = swiglu(&[&arguments, flags].concat()).assert().code(code);
    serde_json::from_slice(&output.get_output().stdout).unwrap()
}

fn explained_by(verdict: &Value) -> Vec<&str> {
    let names = verdict["explained_by"].as_array().unwrap();
    names.iter().map(|n| n.as_str().unwrap()).collect()
}

const CLAMPED: [&str; 4] = ["--op", "silu_and_mul_with_clamp", "--limit", "0.5"];

/// The eight engines: what each does, where it reads, and the name of it.
const ENGINES: [(Engine, Places, &str); 8] = [
    (official, halves, "official"),
    (eager, halves, "eager"),
    (no_clamp, halves, "no clamp, official"),
    (clamp_after, halves, "clamp after the activation, official"),
    (both_sides, halves, "gate clamped on both sides, official"),
    (official, interleaved, "read as interleaved, official"),
    (official, swapped, "halves swapped, official"),
    (nan_swallowed, halves, "NaN swallowed (becomes L), official"),
];

#[test]
fn each_of_eight_files_is_named_for_what_it_is_in_every_type() {
    for s in &STORAGES {
        for (engine_, places, name) in ENGINES {
            let folder = Folder::new();
            let file = engine(&folder, s, &input(3.0, true), engine_, places, 0.5);
            // In f32 nothing is rounded between the steps of an evaluation, but here in f64 it is.
            if s.dtype == Dtype::F32 && name == "eager" {
                assert_eq!(explained_by(&judged(0, &file, &CLAMPED)), ["official"]);
                continue;
            }
            let right = name == "official";
            let verdict = judged(i32::from(!right), &file, &CLAMPED);
            assert_eq!(explained_by(&verdict), [name], "{:?}: {verdict:#}", s.dtype);
            assert_eq!(verdict["right"], right);
            assert_eq!(verdict["elements"], ROWS * D);
        }
    }
}

#[test]
fn the_models_limit_of_10_is_told_apart_where_the_type_can() {
    for s in &STORAGES {
        for (engine_, places, name) in ENGINES {
            if s.dtype == Dtype::F32 && name == "eager" {
                continue;
            }
            let folder = Folder::new();
            let file = engine(&folder, s, &input(30.0, true), engine_, places, 10.0);
            let verdict = judged(
                i32::from(name != "official"),
                &file,
                &["--op", "deepseek_v4"],
            );
            if name == "eager" {
                // silu(10) rounds to 10 in 16 bits, so that no value tells these apart.
                let both = ["eager", "clamp after the activation, eager"];
                assert_eq!(explained_by(&verdict), both);
                let sentence = verdict["verdict"].as_str().unwrap();
                assert!(sentence.contains("both explain it: no element distinguishes"));
            } else {
                assert_eq!(explained_by(&verdict), [name], "{:?}: {verdict:#}", s.dtype);
            }
        }
    }
}

#[test]
fn models_with_a_slope_an_offset_and_interleaved_rows_are_judged_too() {
    fn oai(f: f64, u: f64) -> f64 {
        f * (u + 1.0)
    }
    fn gate(x: f64) -> f64 {
        x / (1.0 + (-f64::from(1.702_f32) * x).exp())
    }
    let right: Engine = |g, u, l, _| oai(gate(at_most(g, l)), u.clamp(-l, l));
    let after: Engine = |g, u, l, _| oai(at_most(gate(g), l), u.clamp(-l, l));
    let without: Engine = |g, u, _, _| oai(gate(g), u);
    let cases: [(Engine, Places, &str); 4] = [
        (right, interleaved, "official"),
        (after, interleaved, "clamp after the activation, official"),
        (without, interleaved, "no clamp, official"),
        (right, halves, "read as concatenated, official"),
    ];
    let flags = ["--op", "swigluoai_and_mul", "--limit", "0.5"];
    for s in &STORAGES {
        for (engine_, places, name) in cases {
            let folder = Folder::new();
            let file = engine(&folder, s, &input(3.0, true), engine_, places, 0.5);
            let verdict = judged(i32::from(name != "official"), &file, &flags);
            assert_eq!(explained_by(&verdict), [name], "{:?}: {verdict:#}", s.dtype);
        }
    }
}

#[test]
fn inputs_that_never_reach_the_limit_decide_nothing_about_it() {
    let folder = Folder::new();
    let file = engine(
        &folder,
        &STORAGES[0],
        &input(0.4, false),
        no_clamp,
        halves,
        0.5,
    );
    let verdict = judged(0, &file, &CLAMPED);
    let names = explained_by(&verdict);
    for name in [
        "official",
        "no clamp, official",
        "gate clamped on both sides, official",
    ] {
        assert!(names.contains(&name), "{verdict:#}");
    }
    let sentence = verdict["verdict"].as_str().unwrap();
    assert!(
        sentence.ends_with("no element distinguishes them"),
        "{sentence}"
    );
}

#[test]
fn the_rounding_that_is_asked_for_is_the_right_one() {
    let folder = Folder::new();
    let file = engine(&folder, &STORAGES[0], &input(3.0, true), eager, halves, 0.5);
    let flags = [CLAMPED.as_slice(), &["--rounding", "eager"]].concat();
    assert_eq!(judged(0, &file, &flags)["right"], true);
    let file = engine(
        &folder,
        &STORAGES[0],
        &input(3.0, true),
        official,
        halves,
        0.5,
    );
    assert_eq!(judged(1, &file, &flags)["right"], false);
}

#[test]
fn what_nothing_explains_is_shown_by_its_first_mismatches() {
    let folder = Folder::new();
    let nonsense: Engine = |g, u, _, _| g + u;
    let file = engine(
        &folder,
        &STORAGES[0],
        &input(3.0, false),
        nonsense,
        halves,
        0.5,
    );
    let arguments = [["verify", "--against", &file].as_slice(), &CLAMPED].concat();
    let output = swiglu(&arguments).assert().code(1).get_output().clone();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("verdict  none explains it; nearest is"),
        "{text}"
    );
    assert!(text.contains("at [0, 0] of gate"), "{text}");
    assert!(expect(1, &arguments).contains("the output is not silu_and_mul_with_clamp(limit=0.5"));
}

#[test]
fn an_operation_without_a_limit_has_no_faults_of_a_clamp() {
    let folder = Folder::new();
    let file = engine(
        &folder,
        &STORAGES[0],
        &input(3.0, true),
        no_clamp,
        swapped,
        0.5,
    );
    let verdict = judged(1, &file, &["--op", "silu_and_mul"]);
    assert_eq!(explained_by(&verdict), ["halves swapped, official"]);
    assert_eq!(verdict["hypotheses"].as_array().unwrap().len(), 6);
    assert_eq!(judged(0, &file, &["--op", "mul_and_silu"])["right"], true);
}

#[test]
fn files_that_cannot_be_judged_are_mistakes() {
    let folder = Folder::new();
    let path = folder.path("bad.safetensors");
    let file = path.display().to_string();
    let zeros = [0_u8; 64];
    let fails = |tensors: &[(&str, Dtype, &[usize], &[u8])]| {
        write(&path, tensors);
        expect(2, &["verify", "--op", "deepseek_v4", "--against", &file])
    };
    let input = ("input", Dtype::BF16, [2, 4].as_slice(), &zeros[..16]);
    assert!(fails(&[input]).contains("no tensor `output`, there are: input"));
    let short = fails(&[input, ("output", Dtype::BF16, &[1, 2], &zeros[..4])]);
    assert!(
        short.contains("output: expected bf16 [2, 2], got bf16 [1, 2]"),
        "{short}"
    );
    let other = fails(&[input, ("output", Dtype::F16, &[2, 2], &zeros[..8])]);
    assert!(other.contains("got f16 [2, 2]"), "{other}");
    let output = ("output", Dtype::BF16, [2, 2].as_slice(), &zeros[..8]);
    let odd = fails(&[("input", Dtype::BF16, &[2, 3], &zeros[..12]), output]);
    assert!(odd.contains("expected shape [.., 2d]"), "{odd}");
    let codes = fails(&[("input", Dtype::U8, &[2, 4], &zeros[..8]), output]);
    assert!(
        codes.contains("`input`: expected F32, F16 or BF16"),
        "{codes}"
    );
    let none = fails(&[
        ("input", Dtype::F32, &[0, 4], &[]),
        ("output", Dtype::F32, &[0, 2], &[]),
    ]);
    assert!(none.contains("at least one row"), "{none}");
    for bytes in [b"".as_slice(), b"{}", &[0xff; 40], &zeros] {
        std::fs::write(&path, bytes).unwrap();
        expect(2, &["verify", "--op", "deepseek_v4", "--against", &file]);
    }
    let missing = expect(
        2,
        &["verify", "--op", "deepseek_v4", "--against", "/nowhere"],
    );
    assert!(missing.contains("/nowhere"), "{missing}");
}
