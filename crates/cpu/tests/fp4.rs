//! FP4 weights on each instruction set of this machine, in both classes of sums.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test helper is no #[test] function"
)]

use fastrand::Rng;
use swiglu_core::{
    Accumulation, Backend, Float, GatedActivation, HostBuffer, HostWeight, Matmul, Quantization,
    Quantize, Quantized, QuantizedMut, RowLayout, ScaleFormat, ScaleLayout, ScaleOrder, Tensor,
    TensorMut, WeightFormat, bf16,
};
use swiglu_cpu::{CpuBackend, InstructionSet, Settings};

/// Those with a matrix unit.
const UNITS: [InstructionSet; 4] = [
    InstructionSet::AmxEmulated,
    InstructionSet::Amx,
    InstructionSet::Avx512Bf16Emulated,
    InstructionSet::Avx512Bf16,
];

/// Every instruction set with ordered sums, and every matrix unit, which takes all matmuls of bf16.
fn backends() -> Vec<(String, CpuBackend)> {
    let mut settings = Settings::default();
    (settings.matrix_unit_rows, settings.matrix_unit_rows_fp8) = (1, 1);
    let mut all = Vec::new();
    for set in InstructionSet::ALL {
        match CpuBackend::with_instruction_set(set) {
            Ok(cpu) => {
                let cpu = cpu.with_accumulation(Accumulation::Ordered);
                all.push((set.to_string(), cpu));
            }
            Err(error) => eprintln!("skipped: {set}: {error}"),
        }
    }
    for set in UNITS {
        if let Ok(cpu) = CpuBackend::with_instruction_set(set) {
            all.push((format!("unit of {set}"), cpu.with_settings(settings)));
        }
    }
    all
}

fn matmul(cpu: &CpuBackend, x: &[bf16], layout: RowLayout, w: &HostWeight<'_>) -> Vec<f32> {
    let (rows, n) = (layout.rows, w.rows());
    let w = cpu.load_weight(std::slice::from_ref(w)).unwrap();
    let mut y = vec![f32::NAN; rows * n];
    let to = TensorMut::from_slice(&mut y, RowLayout::contiguous(rows, n));
    cpu.matmul(Tensor::from_slice(x, layout), &w, to).unwrap();
    y
}

/// Any codes under scales between these bytes.
fn weight(
    random: &mut Rng,
    [n, k]: [usize; 2],
    scales: std::ops::Range<u8>,
) -> HostWeight<'static> {
    let data = (0..n * k / 2).map(|_| random.u8(..)).collect();
    let scales = (0..n * k / 32).map(|_| random.u8(scales.clone())).collect();
    HostWeight::owned([n, k], WeightFormat::Fp4, data, scales).unwrap()
}

fn rows(random: &mut Rng, count: usize) -> Vec<bf16> {
    let x = (0..count).map(|_| bf16::from_f32(8.0 * random.f32() - 4.0));
    x.collect()
}

fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|y| y.to_bits()).collect()
}

/// x is the identity, so that y is the weight itself, a scale for each of its rows.
#[test]
fn every_byte_under_every_scale_is_what_the_table_says() {
    const TABLE: [f64; 16] = [
        0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
    ];
    let data: Vec<u8> = (0..256).flat_map(|_| 0..=255_u8).collect();
    let scales: Vec<u8> = (0..=255).flat_map(|scale| [scale; 16]).collect();
    let w = HostWeight::new([256, 512], WeightFormat::Fp4, &data, &scales).unwrap();
    let mut x = vec![bf16::ZERO; 512 * 512];
    (0..512).for_each(|k| x[k * 513] = bf16::ONE);
    for (name, cpu) in backends() {
        for batch in [1, 2, 3, 4, 256] {
            let loaded = cpu.load_weight(std::slice::from_ref(&w)).unwrap();
            for first in (0..512).step_by(batch) {
                let rows = batch.min(512 - first);
                let mut y = vec![0.0_f32; rows * 256];
                let from = RowLayout::contiguous(rows, 512).with_offset(first * 512);
                let to = TensorMut::from_slice(&mut y, RowLayout::contiguous(rows, 256));
                cpu.matmul(Tensor::from_slice(&x, from), &loaded, to)
                    .unwrap();
                for (at, &got) in y.iter().enumerate() {
                    let (k, scale) = (first + at / 256, at % 256);
                    let byte = k / 2;
                    let code = if k % 2 == 0 { byte & 15 } else { byte >> 4 };
                    let want = (TABLE[code] * 2f64.powi(scale as i32 - 127)) as f32;
                    let same = if scale == 255 {
                        got.is_nan()
                    } else {
                        got == want
                    };
                    assert!(
                        same,
                        "{name}, {rows} rows: code {code} under {scale} is {got:e}"
                    );
                }
            }
        }
    }
}

/// Outputs that end within a panel, k that end within a span, rows with gaps and of any tile.
#[test]
fn any_shape_is_the_same_on_every_instruction_set_and_near_the_exact_sum() {
    let mut random = Rng::with_seed(7);
    let all = backends();
    for case in 0..60 {
        let [n, k] = [random.usize(1..80), 32 * random.usize(1..24)];
        let t = [1, 2, 3, 4, 5, 8, 9, 17, 40, 70][case % 10];
        let layout = RowLayout::contiguous(t, k)
            .with_stride(k + random.usize(..5))
            .with_offset(random.usize(..3));
        let x = rows(&mut random, layout.offset + t * layout.stride);
        // Ordinary scales, and such as no matrix unit multiplies into codes.
        let scales = [118..126, 0..20, 1..240][case % 3].clone();
        let w = weight(&mut random, [n, k], scales);
        let exact = |at: usize| {
            let row = &x[layout.row(at / n)];
            let terms = (0..k).map(|j| f64::from(row[j].to_f32()) * w.get(at % n, j));
            terms.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()))
        };
        let mut ordered: Option<Vec<u32>> = None;
        for (name, cpu) in &all {
            let y = matmul(cpu, &x, layout, &w);
            let what = format!(
                "{name}, {t} x {k} by {n} under {scales:?}",
                scales = case % 3
            );
            for (at, &y) in y.iter().enumerate() {
                let (sum, size) = exact(at);
                let error = (f64::from(y) - sum).abs();
                let least = f64::from(f32::from_bits(1)) * k as f64;
                assert!(
                    error <= 1e-6 * size + least,
                    "{what}: {error:e} of {size:e}"
                );
            }
            if cpu.accuracy().accumulation == Accumulation::Ordered {
                let first = ordered.get_or_insert_with(|| bits(&y));
                assert!(*first == bits(&y), "{what}");
            }
        }
    }
}

/// The sums are beyond every limit, and gates and ups are panels that take turns.
#[test]
fn the_gated_half_is_that_of_its_steps() {
    let mut random = Rng::with_seed(8);
    let op = GatedActivation::deepseek_v4();
    let k = 160;
    for (name, cpu) in backends() {
        for (t, d) in [(1, 16), (3, 37), (4, 64), (9, 50), (40, 33)] {
            let [gate, up] = [0, 1].map(|_| weight(&mut random, [d, k], 120..128));
            let x = rows(&mut random, t * k);
            let x = Tensor::from_slice(&x, RowLayout::contiguous(t, k));
            let run = |w| {
                let mut gate_up = HostBuffer::zeroed(t * 2 * d * 2).unwrap();
                let mut act = HostBuffer::zeroed(t * d * 2).unwrap();
                let between = TensorMut::contiguous(gate_up.bytes_mut(), Float::BF16, t, 2 * d);
                let to = TensorMut::contiguous(act.bytes_mut(), Float::BF16, t, d);
                cpu.matmul_act_and_mul(&op, x, &w, between, to).unwrap();
                act
            };
            let fused = run(cpu.load_gate_up(gate.clone(), up.clone()).unwrap());
            let steps = run(cpu.load_weight(&[gate, up]).unwrap());
            assert!(fused.bytes() == steps.bytes(), "{name}, {t} x {d}");
            assert!(fused.bytes().iter().any(|&byte| byte != 0));
        }
    }
}

/// DeepSeek's inputs: codes of FP8 with scales that are powers of two, which bf16 holds.
#[test]
fn quantized_rows_are_multiplied_as_what_they_stand_for() {
    let mut random = Rng::with_seed(9);
    let (t, n, k) = (6, 41, 256);
    let w = weight(&mut random, [n, k], 118..126);
    let x = rows(&mut random, t * k);
    for (name, cpu) in backends() {
        let loaded = cpu.load_weight(std::slice::from_ref(&w)).unwrap();
        for group in [128, 32] {
            let quant = Quantization::new(group, ScaleFormat::E8M0).unwrap();
            let layout = RowLayout::contiguous(t, k);
            let scale_layout =
                ScaleLayout::contiguous(ScaleFormat::E8M0, ScaleOrder::RowMajor, t, k / group);
            let (mut codes, mut scales) = (vec![0; t * k], vec![0; t * k / group]);
            let to = QuantizedMut {
                codes: &mut codes[..],
                layout,
                scales: &mut scales[..],
                scale_layout,
            };
            cpu.quantize(&quant, Tensor::from_slice(&x, layout), to)
                .unwrap();
            let from = Quantized::<CpuBackend> {
                codes: &codes[..],
                layout,
                scales: &scales[..],
                scale_layout,
            };
            let mut scratch = HostBuffer::zeroed(t * k * 2).unwrap();
            let mut y = vec![0.0_f32; t * n];
            let to = TensorMut::from_slice(&mut y, RowLayout::contiguous(t, n));
            cpu.matmul_quantized(&quant, from, &loaded, scratch.bytes_mut(), to)
                .unwrap();
            let widened: Vec<bf16> = (0..t * k)
                .map(|at| {
                    let scale = ScaleFormat::E8M0.read(&scales, at / group);
                    bf16::from_f32(swiglu_core::E4M3(codes[at]).to_f32() * scale)
                })
                .collect();
            let want = matmul(&cpu, &widened, layout, &w);
            assert!(bits(&y) == bits(&want), "{name}, groups of {group}");
            assert!(bits(&y) != bits(&matmul(&cpu, &x, layout, &w)), "{name}");
        }
    }
}
