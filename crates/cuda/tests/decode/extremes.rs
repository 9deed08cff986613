//! Numbers of extreme range, and those that are none, against f64 and against ordered sums.

use half::bf16;
use swiglu_conformance::inputs::Numbers;
use swiglu_core::{Accumulation, HostWeight, ScaleFormat};
use swiglu_cuda::{CudaBackend, Route};

use crate::common::sums::{fp8, matmul};
use crate::common::{open, open_with};
use crate::weights::has_steps;

const N: usize = 96;
const K: usize = 320;
/// Columns that a power of two is chosen for.
const UNIT: usize = 64;

/// Codes of every magnitude, and rows of them with zeros where others are: rows 8 to 15 in the first unit, 16
/// to 23 in all but the last. Scales of 2^-12 to 2^-10, so that no sum leaves f32.
fn weight(change: impl Fn(&mut [u8], &mut [u8])) -> HostWeight<'static> {
    let mut numbers = Numbers::new(8);
    let mut codes: Vec<u8> = (0..N * K)
        .map(|_| numbers.below(256) as u8)
        .map(|code| if code & 0x7f == 0x7f { 0x38 } else { code })
        .collect();
    for row in 8..16 {
        codes[row * K..][..UNIT].fill(0);
    }
    for row in 16..24 {
        codes[row * K..][..K - UNIT].fill(0x80);
    }
    let blocks = N / 32 * (K / 32);
    let mut scales: Vec<u8> = (0..blocks).map(|_| 115 + numbers.below(3) as u8).collect();
    change(&mut codes, &mut scales);
    let format = fp8(ScaleFormat::E8M0, [32, 32]);
    HostWeight::owned([N, K], format, codes, scales).unwrap()
}

/// Rows of x by their kinds.
const KINDS: [&str; 13] = [
    "ordinary",
    "zeros",
    "negative zeros",
    "subnormals",
    "tiny",
    "huge",
    "falling from unit to unit",
    "rising from unit to unit",
    "of 80 powers of two in each unit",
    "the largest among ones",
    "one in a unit of zeros",
    "zero units between",
    "ordinary again",
];

fn row(kind: usize) -> Vec<bf16> {
    let mut numbers = Numbers::new(kind as u64);
    let mut power = |at: usize| match kind {
        3 => 2f32.powi(-130),
        4 => 2f32.powi(-110),
        5 => 2f32.powi(115),
        6 => 2f32.powi(60 - 30 * (at / UNIT) as i32),
        7 => 2f32.powi(30 * (at / UNIT) as i32 - 60),
        8 => 2f32.powi(numbers.below(81) as i32 - 40),
        _ => 1.0,
    };
    let powers: Vec<f32> = (0..K).map(&mut power).collect();
    let value = |at: usize| match kind {
        1 => 0.0,
        2 => -0.0,
        9 if at == 70 => bf16::MAX.to_f32(),
        9 => 1.0,
        10 if at == 130 => 3.0,
        10 => 0.0,
        11 if (at / UNIT).is_multiple_of(2) => 0.0,
        _ => powers[at] * numbers.within(2.0),
    };
    (0..K).map(value).map(bf16::from_f32).collect()
}

/// How far a sum may be off: what f16 loses of elements far below the largest of their unit
/// (docs/numerics.md), what f32 loses in adding, and what lies below it.
fn allowed(x: &[bf16], w: &[f64]) -> f64 {
    let size = |x: &bf16| f64::from(x.to_f32()).abs();
    let pairs = || x.iter().zip(w);
    let terms: f64 = pairs().map(|(x, w)| size(x) * w.abs()).sum();
    let lost: f64 = x
        .chunks(UNIT)
        .zip(w.chunks(UNIT))
        .map(|(x, w)| {
            let top = x.iter().map(size).fold(0.0, f64::max);
            let of = |(x, w): (&bf16, &f64)| {
                let far = size(x) > 0.0 && size(x) < top * 2f64.powi(-32);
                if far {
                    top * 2f64.powi(-40) * w.abs()
                } else {
                    0.0
                }
            };
            x.iter().zip(w).map(of).sum::<f64>()
        })
        .sum();
    lost + 1e-6 * terms + 2f64.powi(-140)
}

fn steps() -> Option<(CudaBackend, std::sync::MutexGuard<'static, ()>)> {
    open("decode").filter(|(backend, _)| has_steps(backend))
}

/// The tokens of a call, so that each kind is at each place of a tile and alone.
fn calls() -> Vec<Vec<usize>> {
    let all = 0..KINDS.len();
    let alone = all.clone().map(|kind| vec![kind]);
    let of = |count: usize| {
        all.clone()
            .map(move |k| (0..count).map(|i| (k + 5 * i) % 13).collect())
    };
    alone.chain(of(2)).chain(of(8)).chain(of(13)).collect()
}

#[test]
fn sums_of_extreme_rows_are_within_the_bound() {
    let Some((backend, _turn)) = steps() else {
        return;
    };
    let weight = weight(|_, _| ());
    let mut rows = vec![vec![0.0; K]; N];
    for (n, row) in rows.iter_mut().enumerate() {
        weight.decode_row(n, row);
    }
    for call in calls() {
        let x: Vec<bf16> = call.iter().flat_map(|&kind| row(kind)).collect();
        let y = matmul((&backend, Route::Step), &x, &weight, 8).unwrap();
        for (t, (&kind, x)) in call.iter().zip(x.chunks(K)).enumerate() {
            for (n, w) in rows.iter().enumerate() {
                let want: f64 = x
                    .iter()
                    .zip(w)
                    .map(|(x, w)| f64::from(x.to_f32()) * w)
                    .sum();
                let got = y[t * N + n];
                let error = (f64::from(got) - want).abs();
                let kind = KINDS[kind];
                assert!(
                    error <= allowed(x, w),
                    "{kind}, [{t}, {n}]: {got} for {want} of {call:?}"
                );
            }
        }
    }
}

/// Infinities and NaN among x, codes and scales: the outputs that are not finite are those of ordered sums, and
/// no neighbour is touched.
#[test]
fn what_is_not_finite_stays_where_it_belongs() {
    let odd = |codes: &mut [u8], scales: &mut [u8]| {
        codes[5 * K + 70] = 0x7f;
        codes[44 * K + 319] = 0xff;
        // Of rows 64 to 95 and columns 32 to 63.
        scales[2 * (K / 32) + 1] = 0xff;
    };
    let (plain, odd) = (weight(|_, _| ()), weight(odd));
    let mut x: Vec<Vec<bf16>> = (0..9).map(|_| row(0)).collect();
    x[1][200] = bf16::NAN;
    x[2][3] = bf16::INFINITY;
    x[3][319] = bf16::NEG_INFINITY;
    (x[4][64], x[4][65]) = (bf16::INFINITY, bf16::NEG_INFINITY);
    x[5].fill(bf16::NAN);
    x[6].fill(bf16::ZERO);
    (x[6][100], x[7][0], x[7][1]) = (bf16::INFINITY, bf16::from_bits(0xffc1), bf16::INFINITY);
    let mut results = Vec::new();
    for weight in [&plain, &odd] {
        for tokens in [
            vec![0],
            vec![1],
            vec![2],
            vec![3],
            vec![4],
            vec![6],
            vec![0, 1, 2, 3, 4, 5, 6, 7, 8],
        ] {
            let rows: Vec<bf16> = tokens.iter().flat_map(|&t| x[t].clone()).collect();
            results.push((weight, rows));
        }
    }
    let run = |accumulation, route| -> Option<Vec<Vec<f32>>> {
        let (backend, _turn) = open_with("decode", accumulation)?;
        if accumulation != Accumulation::Ordered && !has_steps(&backend) {
            return None;
        }
        let run = |(weight, x): &(&HostWeight<'_>, Vec<bf16>)| {
            matmul((&backend, route), x, weight, 8).unwrap()
        };
        Some(results.iter().map(run).collect())
    };
    let Some(got) = run(Accumulation::MatrixUnit, Route::Step) else {
        return;
    };
    let want = run(Accumulation::Ordered, Route::Ordered).unwrap();
    let (mut nans, mut infinities) = (0, 0);
    for (i, (got, want)) in got.iter().flatten().zip(want.iter().flatten()).enumerate() {
        let same = if want.is_nan() {
            nans += 1;
            got.is_nan()
        } else if want.is_infinite() {
            infinities += 1;
            got == want
        } else {
            (got - want).abs() <= 1e-3
        };
        assert!(same, "output {i}: {got} for {want}");
    }
    assert!(nans > 500 && infinities > 100, "{nans} {infinities}");
}
