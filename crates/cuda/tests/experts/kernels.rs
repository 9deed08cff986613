//! The kernels of experts against one another and against themselves.

use half::bf16;
use swiglu_core::{
    Accumulation, Backend, Experts, ExpertsShape, Float, GroupedMatmul, HostWeight, Matmul,
    Quantization, Tensor, TensorMut, WeightFormat,
};
use swiglu_cuda::CudaBackend;

use crate::common::{filled, open};
use crate::layer::{FORMATS, HostLayer, Layer, Pass};

/// More k than a block reads at once, and of no whole number of what it reads; of FP4 the first is packed for both
/// halves, the second for the first alone.
const SIDES: [[usize; 2]; 2] = [[4352, 1152], [4352, 1120]];
const EXPERTS: usize = 4;
const TOP_K: usize = 2;

const MORE_THAN_A_TILE: usize = 400;

/// Tokens, and the kernels that their rows go to, packed FP4's the second.
const CASES: [(usize, [&str; 2]); 5] = [
    (1, ["8_rows", "8_rows_packed_halves:"]),
    (14, ["32_rows", "8_rows_packed:"]),
    (24, ["32_rows", "16_rows_packed"]),
    (60, ["tiles", "warpgroups_packed"]),
    // FP4 alone: more rows of an expert than a tile of warpgroups has.
    (MORE_THAN_A_TILE, ["tiles", "warpgroups_packed"]),
];

/// Two experts of each token; now and then one, or none.
fn ids(tokens: usize) -> Vec<i32> {
    let of = |t: usize| match t % 7 {
        3 => [-1, (t % EXPERTS) as i32],
        5 => [-1, -1],
        _ => [0, 1].map(|slot| ((t * t + 3 * slot + slot * t) % EXPERTS) as i32),
    };
    (0..tokens).flat_map(of).collect()
}

fn weights(tokens: usize) -> Vec<f32> {
    (0..tokens * TOP_K)
        .map(|r| 0.3 + 0.01 * (r % 50) as f32)
        .collect()
}

fn run(
    backend: &CudaBackend,
    (host, layer): (&HostLayer, &Layer),
    quant: Option<Quantization>,
    ids: &[i32],
) -> (Vec<bf16>, Vec<f32>) {
    let tokens = ids.len() / TOP_K;
    let mut pass = Pass::new(backend, host, quant, tokens);
    pass.set_x(backend, &host.rows(tokens, 3));
    pass.routes.upload(backend, ids, &weights(tokens)).unwrap();
    pass.experts(backend, layer).unwrap();
    (pass.acts(backend), pass.sums(backend))
}

/// How far rows are from others, by norm; rows that nobody wrote are NaN in both.
fn farthest(got: &[f32], want: &[f32], cols: usize) -> f64 {
    let rows = got.chunks_exact(cols).zip(want.chunks_exact(cols));
    let far = |(got, want): (&[f32], &[f32])| {
        if want.iter().all(|w| w.is_nan()) {
            assert!(got.iter().all(|g| g.is_nan()));
            return 0.0;
        }
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
        let size = norm(&mut want.iter().map(|&w| f64::from(w)));
        let off = norm(&mut got.iter().zip(want).map(|(g, w)| f64::from(g - w)));
        if size == 0.0 { off } else { off / size }
    };
    rows.map(far)
        .fold(0.0, |most, far| if far <= most { most } else { far })
}

/// Quantized rows from sums of two orders: a number at the border between two codes may become the other one, of 16 to
/// an octave, and no more than few do.
fn close_codes(got: &[f32], want: &[f32], what: &str) {
    let (mut others, mut all) = (0, 0);
    for (got, want) in got.iter().zip(want) {
        assert_eq!(got.is_nan(), want.is_nan(), "{what}");
        if got.is_nan() {
            continue;
        }
        all += 1;
        if got != want {
            others += 1;
            let most = got.abs().max(want.abs());
            // Subnormal codes are farther apart than an eighth of themselves.
            let step = (most / 8.0).max(1e-4);
            assert!((got - want).abs() <= step, "{what}: {got}, not {want}");
        }
    }
    assert!(others * 100 <= all, "{what}: {others} of {all} codes");
}

#[test]
fn kernels_on_tensor_cores_agree_with_the_ordered_one() {
    let Some((mut backend, _turn)) = open("experts") else {
        return;
    };
    for (format, sides) in FORMATS
        .into_iter()
        .flat_map(|format| SIDES.map(|sides| (format, sides)))
    {
        backend = backend.with_accumulation(Accumulation::MatrixUnit);
        let host = HostLayer::new(sides, (EXPERTS, TOP_K), format);
        let layer = host.load(&backend);
        for ((tokens, kernels), quant) in CASES
            .into_iter()
            .flat_map(|case| [(case, None), (case, Some(Quantization::deepseek_v4()))])
        {
            if tokens == MORE_THAN_A_TILE && format != WeightFormat::Fp4 {
                continue;
            }
            let ids = ids(tokens);
            backend = backend.with_accumulation(Accumulation::MatrixUnit);
            let [_, first, second] = host.requests(quant);
            let [_, of_first, of_second] = host.shapes(tokens);
            for (request, shape) in [(first, of_first), (second, of_second)] {
                let plan = backend.plan(&request, &shape).unwrap();
                let one = kernels.iter().any(|kernel| plan.contains(kernel));
                assert!(one, "{tokens} tokens: {plan}");
            }
            let (act, sums) = run(&backend, (&host, &layer), quant, &ids);
            backend = backend.with_accumulation(Accumulation::Ordered);
            let (want, want_sums) = run(&backend, (&host, &layer), quant, &ids);
            let wide = |act: &[bf16]| act.iter().map(|a| a.to_f32()).collect::<Vec<_>>();
            let what = format!("{format}, {tokens} tokens, {quant:?}");
            if quant.is_some() {
                close_codes(&wide(&act), &wide(&want), &what);
                // Each row is as far as one code, of one element or two.
                let far = farthest(&sums, &want_sums, sides[0]);
                assert!(far < 1e-2, "{what}: sums {far}");
            } else {
                let far = farthest(&wide(&act), &wide(&want), sides[1]);
                assert!(far < 2e-3, "{what}: act {far}");
                let far = farthest(&sums, &want_sums, sides[0]);
                assert!(far < 4e-3, "{what}: sums {far}");
            }
            assert!(sums.iter().all(|s| s.is_finite()), "{what}");
        }
    }
}

/// The second half starts while the first runs, which must not show: twenty times each, one behind the other, the
/// routes of every other pass on their way while the pass before it still runs.
#[test]
fn both_halves_in_one_call_are_two_calls() {
    let Some((backend, _turn)) = open("experts") else {
        return;
    };
    for format in FORMATS {
        let host = HostLayer::new(SIDES[0], (EXPERTS, TOP_K), format);
        let layer = host.load(&backend);
        for ((tokens, _), quant) in CASES
            .into_iter()
            .flat_map(|case| [(case, None), (case, Some(Quantization::deepseek_v4()))])
        {
            let [few, many] = [ids(tokens), vec![1; tokens * TOP_K]];
            for ids in [few, many] {
                let (act, sums) = run(&backend, (&host, &layer), quant, &ids);
                let mut pass = Pass::new(&backend, &host, quant, tokens);
                pass.set_x(&backend, &host.rows(tokens, 3));
                for time in 0..20 {
                    let other: Vec<i32> = ids.iter().map(|id| (id + 2) % EXPERTS as i32).collect();
                    for ids in [&other, &ids] {
                        pass.routes.upload(&backend, ids, &weights(tokens)).unwrap();
                        pass.mlp(&backend, &layer).unwrap();
                    }
                    let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
                    let what = format!("{format}, {tokens} tokens, {quant:?}, pass {time}");
                    assert!(bits(&pass.sums(&backend)) == bits(&sums), "{what}");
                }
                let own = ids.iter().filter(|id| **id >= 0).count() * host.intermediate;
                let bits = |act: &[bf16]| act.iter().map(|a| a.to_bits()).collect::<Vec<_>>();
                assert!(bits(&pass.acts(&backend)[..own]) == bits(&act[..own]));
            }
        }
    }
}

/// Experts by themselves, the tokens of others having none, run the same kernel.
#[test]
fn experts_together_equal_experts_alone() {
    let Some((mut backend, _turn)) = open("experts") else {
        return;
    };
    for format in FORMATS {
        // Of FP4 the first half is packed, the second is not.
        let host = HostLayer::new([384, 352], (EXPERTS, TOP_K), format);
        backend = backend.with_accumulation(Accumulation::MatrixUnit);
        let layer = host.load(&backend);
        for class in [Accumulation::MatrixUnit, Accumulation::Ordered] {
            backend = backend.with_accumulation(class);
            for (tokens, _) in CASES {
                let ids = ids(tokens);
                let (all, _) = run(&backend, (&host, &layer), None, &ids);
                let mut row = 0;
                for e in 0..EXPERTS as i32 {
                    let own: Vec<i32> =
                        ids.iter().map(|&id| if id == e { e } else { -1 }).collect();
                    let count = own.iter().filter(|&&id| id == e).count();
                    let (alone, _) = run(&backend, (&host, &layer), None, &own);
                    let i = host.intermediate;
                    let bits = |act: &[bf16]| act.iter().map(|a| a.to_bits()).collect::<Vec<_>>();
                    assert!(
                        bits(&alone[..count * i]) == bits(&all[row * i..(row + count) * i]),
                        "{format}, {class}, {tokens} tokens, expert {e}"
                    );
                    row += count;
                }
                assert!(all[row * host.intermediate..].iter().all(|a| a.is_nan()));
            }
        }
    }
}

/// Rows of 512 codes, each byte once, under each scale that bf16 holds all products with, and under NaN: what a row of x
/// with a single 1 picks out is the table's value.
#[test]
fn every_code_times_every_scale() {
    let Some((mut backend, _turn)) = open("experts") else {
        return;
    };
    let bytes: Vec<u8> = (0..256).flat_map(|_| 0..=255).collect();
    // 253 and 254 take codes beyond bf16, and are left out: 0 times infinity is NaN.
    let scale_of = |row: usize| if row < 253 { row as u8 } else { 255 };
    let scales: Vec<u8> = (0..256).flat_map(|row| [scale_of(row); 16]).collect();
    let down = HostWeight::owned([256, 512], WeightFormat::Fp4, bytes, scales).unwrap();
    let zeros = HostWeight::owned(
        [512, 256],
        WeightFormat::Fp4,
        vec![0; 512 * 128],
        vec![127; 512 * 8],
    );
    let zeros = zeros.unwrap();
    let host = HostLayer::of_experts(
        [256, 512],
        WeightFormat::Fp4,
        vec![[zeros.clone(), zeros, down.clone()]],
    );
    // Where FP4 may be packed it is, unless sums are ordered when it is loaded.
    let [matrix_unit, ordered] = [Accumulation::MatrixUnit, Accumulation::Ordered];
    for (at_load, class) in [
        (matrix_unit, matrix_unit),
        (matrix_unit, ordered),
        (ordered, matrix_unit),
        (ordered, ordered),
    ] {
        backend = backend.with_accumulation(at_load);
        let layer = host.load(&backend);
        backend = backend.with_accumulation(class);
        // Tiles, 16 or 32 rows, and 8 rows.
        for tokens in [512, 16, 4] {
            for first in (0..512).step_by(tokens) {
                let mut act = vec![bf16::ZERO; tokens * 512];
                for (t, row) in act.chunks_exact_mut(512).enumerate() {
                    row[first + t] = bf16::ONE;
                }
                let mut pass = Pass::new(&backend, &host, None, tokens);
                let ids = vec![0; tokens];
                pass.routes
                    .upload(&backend, &ids, &vec![1.0; tokens])
                    .unwrap();
                backend
                    .upload(&mut pass.act, bytemuck::cast_slice(&act))
                    .unwrap();
                pass.second_half(&backend, &layer).unwrap();
                for (t, sums) in pass.sums(&backend).chunks_exact(256).enumerate() {
                    for (row, &got) in sums.iter().enumerate() {
                        let want = down.get(row, first + t) as f32;
                        // Tensor cores may take subnormal numbers for zero.
                        let lost = got == 0.0 && want.abs() < f32::MIN_POSITIVE;
                        let same = got == want || (got.is_nan() && want.is_nan());
                        assert!(
                            same || lost,
                            "{class}, loaded for {at_load}, [{row}, {}]: {got}, not {want}",
                            first + t
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn experts_are_no_weights_by_themselves() {
    let Some((backend, _turn)) = open("experts") else {
        return;
    };
    let host = HostLayer::new([160, 96], (2, 1), WeightFormat::Fp4);
    let layer = host.load(&backend);
    // 17 bytes for 32 weights.
    let bytes = 3 * 160 * 96 * 17 / 32;
    assert_eq!(backend.expert_bytes(&layer.experts), bytes);
    let x = filled(&backend, &[0; 2 * 160]);
    let mut y = filled(&backend, &[0; 2 * 192]);
    let from = Tensor::contiguous((&x).into(), Float::BF16, 1, 160);
    let to = TensorMut::contiguous((&mut y).into(), Float::BF16, 1, 192);
    let error = backend
        .matmul(from, &layer.experts.gate_up[0], to)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("weight: expected a weight by itself"),
        "{error}"
    );

    let shape: ExpertsShape = layer.experts.shape().clone();
    let mut without_memory = Experts::new(shape);
    let [gate, up, down] = host.expert(0);
    let error = backend
        .load_expert(&mut without_memory, gate, up, down)
        .unwrap_err();
    assert!(
        error.to_string().starts_with("experts: expected those of"),
        "{error}"
    );
}
