//! `swiglu verify --against`: what is wrong with an engine, on data that tell and on data that do not.
#![allow(clippy::unwrap_used)] // A helper of a test fails by panicking.

mod common;

use common::engine::{
    BF16, Cast, D, Engine, F16, F32, Formula, STORAGES, Storage, at_most, both, clamp_after, eager,
    explained_by, halves, input, interleaved, no_clamp, official, silu, swapped, with_nan,
};
use safetensors::Dtype;

const V4: [&str; 2] = ["--op", "deepseek_v4"];
const CLAMPED: [&str; 4] = ["--op", "silu_and_mul_with_clamp", "--limit", "0.5"];

/// Names that explain an engine's output, whatever else may be said of it.
fn names(engine: &Engine, s: &Storage, x: &[f32], flags: &[&str]) -> Vec<String> {
    let (code, verdict) = engine.judged(s, x, flags);
    let names = explained_by(&verdict);
    let right = names == ["official"] && verdict["outcome"] == "conforms";
    assert!(right || code == 1 || code == 3, "{verdict:#}");
    names.into_iter().map(str::to_owned).collect()
}

fn gelu(x: f32) -> f32 {
    (f64::from(x) * 0.5 * libm::erfc(f64::from(-x) / 2_f64.sqrt())) as f32
}

/// `f32::min` and `f32::max` swallow NaN as C's `fminf` and `fmaxf` do.
fn nan_swallowed(g: f32, u: f32, l: f32, _: &dyn Fn(f32) -> f32) -> f32 {
    silu(g.min(l)) * u.min(l).max(-l)
}

/// Engines with a clamp gone wrong, by name.
const FORMULAS: [(Formula, &str); 9] = [
    (no_clamp, "no clamp"),
    (clamp_after, "clamp after the activation"),
    (
        |g, u, l, _| silu(both(g, l)) * both(u, l),
        "gate clamped on both sides",
    ),
    (
        |g, u, l, _| silu(at_most(g, l)) * u,
        "only the gate clamped",
    ),
    (|g, u, l, _| silu(g) * both(u, l), "only up clamped"),
    (
        |g, u, l, _| silu(at_most(g, l)) * at_most(u, l),
        "up clamped from above only",
    ),
    (
        |g, u, l, _| silu(at_most(g, l)) * -at_most(-u, l),
        "up clamped from below only",
    ),
    (
        |g, u, l, _| gelu(at_most(g, l)) * both(u, l),
        "gelu for silu",
    ),
    (nan_swallowed, "NaN swallowed (becomes L)"),
];

#[test]
fn each_fault_has_its_name_in_every_type() {
    for s in &STORAGES {
        for (formula, name) in FORMULAS {
            for (spread, limit, flags) in [(3.0, 0.5, CLAMPED.as_slice()), (30.0, 10.0, &V4)] {
                let engine = Engine::new(formula, limit);
                let x = with_nan(input(spread));
                let found = names(&engine, s, &x, flags);
                assert_eq!(found, [format!("{name}, official")], "{:?}", s.dtype);
            }
        }
    }
}

#[test]
fn halves_at_the_wrong_place_have_their_names() {
    for s in &STORAGES {
        let x = input(30.0);
        for (places, formula, name) in [
            (
                interleaved as common::engine::Places,
                official as Formula,
                "read as interleaved",
            ),
            (swapped, official, "halves swapped"),
            (swapped, no_clamp, "halves swapped and no clamp"),
        ] {
            let engine = Engine {
                places,
                ..Engine::new(formula, 10.0)
            };
            let found = names(&engine, s, &x, &V4);
            assert_eq!(found, [format!("{name}, official")], "{:?}", s.dtype);
        }
        // Nothing beyond the limit: whether there is a clamp besides cannot be told, and is left out.
        let engine = Engine {
            places: swapped,
            ..Engine::new(no_clamp, 10.0)
        };
        assert_eq!(
            names(&engine, s, &input(9.0), &V4),
            ["halves swapped, official"]
        );
    }
}

#[test]
fn any_other_limit_is_read_off_the_output() {
    for s in &STORAGES {
        for limit in [7.0, 9.9, 10.03, 12.0, 0.5, 3.3] {
            let engine = Engine::new(official, limit);
            let (code, verdict) = engine.judged(s, &input(30.0), &V4);
            assert_eq!(code, 1, "{limit}: {}", verdict["verdict"]);
            let name = explained_by(&verdict);
            assert_eq!(
                name.len(),
                1,
                "{limit} in {:?}: {}",
                s.dtype,
                verdict["verdict"]
            );
            let found: f32 = name[0]
                .strip_prefix("limit ")
                .and_then(|n| n.strip_suffix(" for 10, official"))
                .unwrap_or_else(|| panic!("{name:?}"))
                .parse()
                .unwrap();
            // bf16 does not tell every limit from its neighbors, and then it says which do.
            let bounds = verdict["limits"].as_array().unwrap();
            let [low, high] = [0, 1].map(|i| bounds[i].as_f64().unwrap() as f32);
            assert!(
                (low..=high).contains(&limit) && high <= low * 1.01,
                "{low} to {high}"
            );
            assert!((low..=high).contains(&found));
            if s.dtype != Dtype::BF16 || limit == 7.0 || limit == 0.5 {
                assert_eq!(found, limit, "{:?}", s.dtype);
            }
        }
    }
    // As it is in eager rounding, after the activation, and with an offset.
    let engine = Engine::new(eager, 7.0);
    let flags = [V4.as_slice(), &["--rounding", "eager"]].concat();
    assert_eq!(
        names(&engine, F16, &input(30.0), &flags),
        ["limit 7 for 10, eager"]
    );
    let step = Engine::new(clamp_after, 9.0);
    assert_eq!(
        names(&step, F16, &input(30.0), &["--op", "step_3_5"]),
        ["limit 9 for 7, official"]
    );
    let oai = Engine {
        places: interleaved,
        ..Engine::new(
            |g, u, l, _| {
                let g = at_most(g, l);
                g / (1.0 + (-1.702 * g).exp()) * (both(u, l) + 1.0)
            },
            10.0,
        )
    };
    for s in &STORAGES {
        assert_eq!(
            names(&oai, s, &input(30.0), &["--op", "gpt_oss"]),
            ["limit 10 for 7, official"]
        );
    }
    let zero = Engine::new(|_, _, _, _| 0.0, 0.0);
    let expected = ["limit 0 for 10, official", "scaled by 0, official"];
    assert_eq!(names(&zero, BF16, &input(30.0), &V4), expected);
}

#[test]
fn a_limit_that_no_element_reaches_is_none() {
    // 12 is beyond the limit asked for, but of the data only 11.
    for s in &STORAGES {
        let found = names(&Engine::new(official, 12.0), s, &input(11.0), &V4);
        assert_eq!(found, ["no clamp, official"]);
    }
}

#[test]
fn alpha_and_beta_that_are_lost_are_named() {
    let formulas: [(Formula, &str); 3] = [
        (
            |g, u, l, _| silu(at_most(g, l)) * (both(u, l) + 1.0),
            "alpha lost, official",
        ),
        (
            |g, u, l, _| at_most(g, l) / (1.0 + (-1.702 * at_most(g, l)).exp()) * both(u, l),
            "beta lost, official",
        ),
        (
            |g, u, l, _| silu(at_most(g, l)) * both(u, l),
            "alpha and beta lost, official",
        ),
    ];
    for s in &STORAGES {
        for (op, places) in [
            ("gpt_oss", interleaved as common::engine::Places),
            ("minimax_m3", halves),
        ] {
            for (formula, name) in formulas {
                let engine = Engine {
                    places,
                    ..Engine::new(formula, 7.0)
                };
                assert_eq!(names(&engine, s, &input(20.0), &["--op", op]), [name]);
                // Large gates are their own function, so that they do not tell alpha.
                if name.starts_with("alpha lost") {
                    let x: Vec<f32> = input(1.0).iter().map(|x| 100.0 + 8.0 * x).collect();
                    let (code, verdict) = engine.judged(BF16, &x, &["--op", op]);
                    let found = explained_by(&verdict);
                    assert!(
                        code != 1 || !found.contains(&"beta lost, official"),
                        "{found:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_route_weight_is_read_off_for_all_rows_and_for_each() {
    for s in &STORAGES {
        let x = input(30.0);
        let all = Engine {
            route: |_| 2.5,
            ..Engine::new(official, 10.0)
        };
        assert_eq!(names(&all, s, &x, &V4), ["scaled by 2.5, official"]);
        let each = Engine {
            route: |t| [0.25, 0.40625, 1.0, 0.109_375][t % 4],
            ..Engine::new(official, 10.0)
        };
        let found = names(&each, s, &x, &V4);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("each row scaled, by 0.1"), "{found:?}");
        // Weights that only scale what no clamp touched are another fault.
        let other = Engine {
            route: |_| 2.5,
            ..Engine::new(|g, u, _, _| g + u, 10.0)
        };
        assert!(names(&other, s, &x, &V4).is_empty());
    }
    // After the rounding, as a separate kernel does.
    let after = Engine::new(|g, u, l, r| r(official(g, u, l, r)) * 0.3, 10.0);
    assert_eq!(
        names(&after, BF16, &input(30.0), &V4),
        ["scaled by 0.3 after rounding, official"]
    );
}

#[test]
fn a_row_of_one_element_is_no_evidence_of_a_factor() {
    // With one element a row any output is the definition's times something.
    let folder = common::Folder::new();
    let path = folder.path("thin.safetensors");
    let bytes =
        |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|x| x.to_le_bytes()).collect() };
    let x: Vec<f32> = input(30.0)[..64].to_vec();
    let y: Vec<f32> = x.chunks(2).map(|p| p[0] + p[1]).collect();
    common::write(
        &path,
        &[
            ("input", Dtype::F32, &[32, 2], &bytes(&x)),
            ("output", Dtype::F32, &[32, 1], &bytes(&y)),
        ],
    );
    let (code, verdict) = common::engine::judged(&path.display().to_string(), &V4);
    assert_eq!((code, explained_by(&verdict).len()), (1, 0), "{verdict:#}");
}

#[test]
fn results_that_are_cut_off_are_told_from_rounded_ones() {
    for s in [BF16, F16] {
        let engine = |formula| Engine {
            cast: Cast::CutOff,
            ..Engine::new(formula, 10.0)
        };
        assert_eq!(
            names(&engine(official), s, &input(30.0), &V4),
            ["official, truncated"]
        );
        let found = names(&engine(no_clamp), s, &input(30.0), &V4);
        assert_eq!(found, ["no clamp, official, truncated"]);
        // Powers of two times gates that are 0 leave nothing to cut off.
        let x: Vec<f32> = (0..2 * D * 32)
            .map(|i| if i % (2 * D) < D { 0.0 } else { (i % 5) as f32 })
            .collect();
        let (code, verdict) = engine(official).judged(s, &x, &V4);
        assert_eq!(code, 3, "{verdict:#}");
    }
}

#[test]
fn flushed_subnormals_are_told_where_there_are_some() {
    // Results from 2^-138 on in bf16 and f32, from 2^-25 on in f16.
    for (s, small) in [(BF16, 1e-40_f32), (F16, 1e-6), (F32, 1e-39)] {
        let mut x = input(30.0);
        for row in x.chunks_mut(2 * D) {
            for up in &mut row[D..D + 8] {
                *up = small * up.signum();
            }
        }
        let engine = Engine {
            cast: Cast::Flush,
            ..Engine::new(official, 10.0)
        };
        let found = names(&engine, s, &x, &V4);
        assert_eq!(
            found,
            ["official, subnormals flushed to zero"],
            "{:?}",
            s.dtype
        );
        let whole = Engine::new(official, 10.0);
        assert_eq!(names(&whole, s, &x, &V4), ["official"], "{:?}", s.dtype);
    }
}

#[test]
fn an_exponential_that_underflows_is_told_where_gates_are_low_enough() {
    let folded: Formula = |g, u, l, _| {
        let g = f64::from(at_most(g, l));
        (g / (1.0 + (-g).exp()) * f64::from(both(u, l))) as f32
    };
    let mut x = input(30.0);
    for row in x.chunks_mut(2 * D) {
        row[3] = -89.0;
        row[D + 3] = 9.0;
    }
    for s in [BF16, F32] {
        let found = names(&Engine::new(official, 10.0), s, &x, &V4);
        assert_eq!(
            found,
            ["the exponential underflows, official"],
            "{:?}",
            s.dtype
        );
        assert_eq!(names(&Engine::new(folded, 10.0), s, &x, &V4), ["official"]);
        // What else is wrong keeps its name.
        let found = names(&Engine::new(no_clamp, 10.0), s, &x, &V4);
        assert_eq!(found, ["no clamp, official"], "{:?}", s.dtype);
    }
}

#[test]
fn two_faults_that_explain_an_output_alike_are_both_named() {
    // No gate above the limit: whether the gate is clamped is open, that up is not is told.
    let mut x = input(30.0);
    for row in x.chunks_mut(2 * D) {
        row[..D].iter_mut().for_each(|g| *g = g.min(9.0));
    }
    for s in &STORAGES {
        let found = names(&Engine::new(no_clamp, 10.0), s, &x, &V4);
        let expected = ["no clamp, official", "only the gate clamped, official"];
        assert_eq!(found, expected, "{:?}", s.dtype);
    }
    // An output that the definition explains is not called a fault that the data do not try.
    let found = names(&Engine::new(official, 10.0), BF16, &x, &V4);
    assert_eq!(found, ["official"]);
}

#[test]
fn faults_of_other_functions_have_their_names() {
    let step: Formula = |g, u, l, _| silu(at_most(g, l)) * both(u, l);
    let plain: Formula = |g, u, _, _| silu(g) * u;
    let bounded: Formula = |g, u, _, _| 4.0 * (g / 4.0).tanh() / (1.0 + (-g).exp()) * u;
    let cases: [(&[&str], Formula, &str); 5] = [
        (
            &["--op", "step_3_5"],
            step,
            "clamp before the activation, official",
        ),
        (&["--op", "gelu_and_mul"], plain, "silu for gelu, official"),
        (
            &["--op", "silu_and_mul"],
            |g, u, _, _| gelu(g) * u,
            "gelu for silu, official",
        ),
        (&["--op", "kimi_k3"], bounded, "bound of up lost, official"),
        (
            &["--op", "fatrelu_and_mul", "--threshold", "0.5"],
            |g, u, _, _| g.max(0.0) * u,
            "threshold lost, official",
        ),
    ];
    for s in &STORAGES {
        for (flags, formula, name) in cases {
            let found = names(&Engine::new(formula, 7.0), s, &input(20.0), flags);
            assert_eq!(found, [name], "{:?}", s.dtype);
        }
    }
}
