//! `swiglu verify --against`: engines that are right, data that cannot tell, and files that cannot be
//! judged. What is wrong with an engine is told in `verify_diagnoses.rs`.
#![allow(clippy::unwrap_used)] // A helper of a test fails by panicking.

mod common;

use common::engine::{
    BF16, Cast, D, Engine, F16, F32, Formula, Places, STORAGES, at_most, both, clamp_after, eager,
    explained_by, fast, fast_silu, halves, input, interleaved, no_clamp, not_tried, official,
    swapped, with_nan,
};
use common::{Folder, expect, swiglu, write};
use safetensors::Dtype;

const V4: [&str; 2] = ["--op", "deepseek_v4"];
const CLAMPED: [&str; 4] = ["--op", "silu_and_mul_with_clamp", "--limit", "0.5"];

#[test]
fn an_engine_that_is_right_conforms_in_every_type_also_with_a_fast_exponential() {
    for s in &STORAGES {
        for formula in [official, fast] {
            for (spread, limit, flags) in [(30.0, 10.0, V4.as_slice()), (3.0, 0.5, &CLAMPED)] {
                let engine = Engine::new(formula, limit);
                let (code, verdict) = engine.judged(s, &with_nan(input(spread)), flags);
                assert_eq!(
                    (code, &verdict["outcome"]),
                    (0, &"conforms".into()),
                    "{verdict:#}"
                );
                assert_eq!(explained_by(&verdict), ["official"]);
                // No gate is below -88 and no result subnormal.
                let rest = not_tried(&verdict);
                assert!(
                    rest.contains(&"the exponential underflows, official"),
                    "{rest:?}"
                );
                assert!(
                    !rest
                        .iter()
                        .any(|n| n.contains("clamp") || n.contains("NaN")),
                    "{rest:?}"
                );
                let low = verdict["limits"][0].as_f64().unwrap() as f32;
                let high = verdict["limits"][1].as_f64().unwrap() as f32;
                assert!(
                    (low..=high).contains(&limit) && high < limit * 1.01,
                    "{low} to {high}"
                );
            }
        }
    }
}

#[test]
fn an_output_that_conforms_takes_two_lines_of_which_the_second_says_what_was_not_tried() {
    let folder = Folder::new();
    let file = Engine::new(official, 10.0).file(&folder, BF16, &input(30.0));
    let text = expect(0, &["verify", "--against", &file, "--op", "deepseek_v4"]);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].starts_with("conforms: silu_and_mul_with_clamp(limit=10, official) in bf16"));
    assert!(
        lines[1].starts_with("not tried: ") && lines[1].contains("(needs NaN)"),
        "{text}"
    );
    assert!(!lines[1].contains("clamp"), "{text}");
}

#[test]
fn few_rows_beyond_the_limit_are_enough() {
    for s in &STORAGES {
        let mut x = input(3.0);
        x[..4 * 2 * D].iter_mut().for_each(|x| *x *= 8.0);
        let (code, verdict) = Engine::new(official, 10.0).judged(s, &x, &V4);
        assert_eq!(code, 0, "{verdict:#}");
        let (code, verdict) = Engine::new(no_clamp, 10.0).judged(s, &x, &V4);
        assert_eq!(
            (code, explained_by(&verdict)),
            (1, vec!["no clamp, official"])
        );
    }
}

#[test]
fn data_that_never_reach_the_limit_cannot_tell() {
    for s in &STORAGES {
        for formula in [official, no_clamp, clamp_after] {
            let folder = Folder::new();
            let file = Engine::new(formula, 10.0).file(&folder, s, &input(9.0));
            let arguments = ["verify", "--against", &file, "--op", "deepseek_v4"];
            let message = expect(3, &arguments);
            assert!(message.contains("nothing is beyond the limit"), "{message}");
            let text = swiglu(&arguments).output().unwrap().stdout;
            assert!(text.starts_with(b"cannot tell: "));
            let (code, verdict) = common::engine::judged(&file, &V4);
            assert_eq!((code, &verdict["outcome"]), (3, &"cannot tell".into()));
            let names = explained_by(&verdict);
            for name in [
                "official",
                "no clamp, official",
                "only up clamped, official",
            ] {
                assert!(names.contains(&name), "{names:?}");
            }
            assert!(
                !names
                    .iter()
                    .any(|n| n.contains("swapped") || n.contains("gelu"))
            );
        }
    }
}

#[test]
fn a_half_of_the_clamp_that_was_not_tried_is_named() {
    let mut x = input(30.0);
    for row in x.chunks_mut(2 * D) {
        row[D..].iter_mut().for_each(|u| *u *= 0.3);
    }
    let (code, verdict) = Engine::new(official, 10.0).judged(BF16, &x, &V4);
    assert_eq!(code, 0);
    let rest = not_tried(&verdict);
    assert!(
        rest.contains(&"only the gate clamped, official"),
        "{rest:?}"
    );
    assert!(!rest.contains(&"only up clamped, official"), "{rest:?}");
}

#[test]
fn a_function_that_no_element_tells_from_another_cannot_be_told() {
    // silu, gelu and the identity are one for large gates.
    let x: Vec<f32> = input(1.0).iter().map(|x| 60.0 + 8.0 * x).collect();
    let engine = Engine::new(no_clamp, 1.0);
    let (code, verdict) = engine.judged(BF16, &x, &["--op", "silu_and_mul"]);
    assert_eq!(code, 3, "{verdict:#}");
    let (code, _) = engine.judged(BF16, &input(6.0), &["--op", "silu_and_mul"]);
    assert_eq!(code, 0);
}

#[test]
fn the_rounding_that_is_asked_for_is_the_right_one() {
    let eager_asked = [V4.as_slice(), &["--rounding", "eager"]].concat();
    for s in [BF16, F16] {
        let x = input(30.0);
        let judged = |formula, flags: &[&str]| {
            let (code, verdict) = Engine::new(formula, 10.0).judged(s, &x, flags);
            let names = explained_by(&verdict).join("; ");
            (code, names)
        };
        assert_eq!(judged(eager, &eager_asked), (0, "eager".to_owned()));
        assert_eq!(judged(official, &eager_asked), (1, "official".to_owned()));
        assert_eq!(judged(eager, &V4), (1, "eager".to_owned()));
    }
    // In f32 nothing is rounded between the steps.
    let engine = Engine::new(official, 10.0);
    assert_eq!(engine.judged(F32, &input(30.0), &eager_asked).0, 0);
}

#[test]
fn noise_of_one_unit_in_the_last_place_makes_no_wrong_name() {
    // One result in thirty off by one.
    fn noisy(x: f32, y: f32) -> f32 {
        if x.to_bits().is_multiple_of(30) {
            return f32::from_bits((y.to_bits() & 0xffff_0000) + 0x1_0000);
        }
        y
    }
    for (formula, name) in [
        (
            (|g, u, l, r| noisy(r(g + u), r(official(g, u, l, r)))) as Formula,
            "",
        ),
        (
            |g, u, l, r| noisy(r(g + u), r(no_clamp(g, u, l, r))),
            "no clamp, official",
        ),
        (|g, u, l, r| noisy(r(g + u), r(eager(g, u, l, r))), "eager"),
    ] {
        let (code, verdict) = Engine::new(formula, 10.0).judged(BF16, &input(30.0), &V4);
        assert_eq!(code, 1);
        if name.is_empty() {
            assert_eq!(explained_by(&verdict), ["official"]);
            let why = verdict["verdict"].as_str().unwrap();
            assert!(why.contains("less exact arithmetic"), "{why}");
        } else {
            assert_eq!(explained_by(&verdict), [name], "{verdict:#}");
        }
    }
}

#[test]
fn f32_results_further_off_than_a_fast_exponential_explains_are_not_the_definitions() {
    let rough: Formula = |g, u, l, _| {
        let sign = if g.to_bits().is_multiple_of(3) {
            1.0
        } else {
            -1.0
        };
        official(g, u, l, &|x| x) * (1.0 + sign * 40.0 * f32::EPSILON)
    };
    let (code, verdict) = Engine::new(rough, 10.0).judged(F32, &input(30.0), &V4);
    assert_eq!((code, explained_by(&verdict).len()), (1, 0), "{verdict:#}");
    let why = verdict["verdict"].as_str().unwrap();
    assert!(
        why.contains("nearest is official") && why.contains("ulp off"),
        "{why}"
    );
}

#[test]
fn every_operator_of_the_family_is_judged() {
    fn gelu(x: f32) -> f32 {
        (f64::from(x) * 0.5 * libm::erfc(f64::from(-x) / 2_f64.sqrt())) as f32
    }
    fn gelu_tanh(x: f32) -> f32 {
        let x = f64::from(x);
        (x / (1.0 + (-1.595_769_121_605_731 * (x + 0.044715 * x * x * x)).exp())) as f32
    }
    fn quick(x: f32) -> f32 {
        x / (1.0 + (-1.702 * x).exp())
    }
    let cases: [(Formula, Places, &str); 9] = [
        (no_clamp, halves, "silu_and_mul"),
        (no_clamp, swapped, "mul_and_silu"),
        (|g, u, _, _| gelu(g) * u, halves, "gelu_and_mul"),
        (|g, u, _, _| gelu_tanh(g) * u, halves, "gelu_tanh_and_mul"),
        (|g, u, _, _| quick(g) * u, halves, "gelu_quick_and_mul"),
        (|g, u, _, _| g.max(0.0) * u, halves, "fatrelu_and_mul"),
        (
            |g, u, _, _| quick(at_most(g, 7.0)) * (both(u, 7.0) + 1.0),
            interleaved,
            "gpt_oss",
        ),
        (
            |g, u, _, _| at_most(fast_silu(g), 7.0) * both(u, 7.0),
            halves,
            "step_3_5",
        ),
        (
            |g, u, _, _| {
                let silu = 4.0 * (g / 4.0).tanh() / (1.0 + (-g).exp());
                silu * 25.0 * (u / 25.0).tanh()
            },
            halves,
            "kimi_k3",
        ),
    ];
    for s in &STORAGES {
        for (formula, places, op) in cases {
            let engine = Engine {
                places,
                ..Engine::new(formula, 0.0)
            };
            let (code, verdict) = engine.judged(s, &input(20.0), &["--op", op]);
            assert_eq!(code, 0, "{op} in {:?}: {}", s.dtype, verdict["verdict"]);
            // The others are not it.
            if s.dtype != Dtype::BF16 {
                continue;
            }
            for (_, _, other) in cases.iter().filter(|(_, _, other)| *other != op) {
                let (code, _) = engine.judged(s, &input(20.0), &["--op", other]);
                assert_eq!(code, 1, "{op} taken for {other} in {:?}", s.dtype);
            }
        }
    }
}

#[test]
fn what_nothing_explains_is_shown_with_what_is_nearest_and_the_first_mismatches() {
    let folder = Folder::new();
    let file = Engine::new(|g, u, _, _| g + u, 0.5).file(&folder, BF16, &input(3.0));
    let arguments = [["verify", "--against", &file].as_slice(), &CLAMPED].concat();
    let output = swiglu(&arguments).assert().code(1).get_output().clone();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("none explains it; nearest is"), "{text}");
    assert!(text.contains("at [0, 0] of gate"), "{text}");
    assert!(expect(1, &arguments).contains("the output is not silu_and_mul_with_clamp(limit=0.5"));
}

#[test]
fn subnormals_that_are_not_there_are_not_tried() {
    let engine = Engine {
        cast: Cast::Flush,
        ..Engine::new(official, 10.0)
    };
    let (code, verdict) = engine.judged(BF16, &input(30.0), &V4);
    assert_eq!(code, 0);
    let rest = not_tried(&verdict);
    assert!(
        rest.contains(&"official, subnormals flushed to zero"),
        "{rest:?}"
    );
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
    // All zeros: a function of zeros tells nothing.
    write(&path, &[input, output]);
    expect(3, &["verify", "--op", "deepseek_v4", "--against", &file]);
}
