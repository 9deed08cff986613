//! Matmuls of the class of matrix units: on AMX's tiles and by AVX-512's dot products where the machine
//! has them, and everywhere the same in plain Rust.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test helper is no #[test] function"
)]

use std::sync::Arc;

use fastrand::Rng;
use swiglu_conformance::{Harness, Size, inputs::Numbers};
use swiglu_core::{
    Accumulation, Backend, Float, GatedActivation, HostBuffer, HostWeight, Matmul, Request,
    RowLayout, ScaleFormat, Shape, Tensor, TensorMut, WeightFormat, bf16,
};
use swiglu_cpu::{CpuBackend, InstructionSet, Settings};

const BF16: WeightFormat = WeightFormat::Float(Float::BF16);

const fn fp8(scales: ScaleFormat, block: [usize; 2]) -> WeightFormat {
    WeightFormat::Fp8 { scales, block }
}

/// Formats that tiles take: scales that fold into codes, and such as multiply sums.
const FORMATS: [WeightFormat; 7] = [
    BF16,
    fp8(ScaleFormat::E8M0, [64, 8192]),
    fp8(ScaleFormat::F32, [64, 8192]),
    fp8(ScaleFormat::E8M0, [128, 128]),
    fp8(ScaleFormat::E8M0, [32, 32]),
    fp8(ScaleFormat::F32, [128, 128]),
    fp8(ScaleFormat::F32, [7, 64]),
];

/// A unit in plain Rust, and the one whose bits it gives.
const UNITS: [[InstructionSet; 2]; 2] = [
    [InstructionSet::AmxEmulated, InstructionSet::Amx],
    [
        InstructionSet::Avx512Bf16Emulated,
        InstructionSet::Avx512Bf16,
    ],
];

/// The matrix units to test.
fn units() -> Vec<InstructionSet> {
    let mut units = Vec::new();
    for [emulated, unit] in UNITS {
        units.push(emulated);
        if unit.available() {
            units.push(unit);
        } else {
            eprintln!("skipped: {unit}: this machine lacks it");
        }
    }
    units
}

/// Whether it multiplies tiles; the others make dot products.
fn has_tiles(set: InstructionSet) -> bool {
    UNITS[0].contains(&set)
}

/// Every matmul of bf16 on the unit.
fn open(set: InstructionSet) -> CpuBackend {
    let mut settings = Settings::default();
    (settings.matrix_unit_rows, settings.matrix_unit_rows_fp8) = (1, 1);
    CpuBackend::with_instruction_set(set)
        .unwrap()
        .with_settings(settings)
}

fn on_threads(set: InstructionSet, threads: usize) -> CpuBackend {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    let mut settings = Settings::default();
    (settings.matrix_unit_rows, settings.matrix_unit_rows_fp8) = (1, 1);
    settings.inline_multiplications = 0;
    open(set)
        .with_settings(settings)
        .with_pool(Arc::new(pool.build().unwrap()))
}

/// About normal numbers with eight significant bits.
fn rows(seed: u64, count: usize, deviation: f32) -> Vec<bf16> {
    let mut numbers = Numbers::new(seed);
    let next = |_| bf16::from_f32(deviation * numbers.normal());
    (0..count).map(next).collect()
}

/// A weight of moderate numbers.
fn weight(seed: u64, format: WeightFormat, [n, k]: [usize; 2]) -> HostWeight<'static> {
    let mut random = Rng::with_seed(seed);
    if format == BF16 {
        let data = bytemuck::cast_slice(&rows(seed, n * k, 0.05)).to_vec();
        return HostWeight::owned([n, k], format, data, Vec::new()).unwrap();
    }
    // No NaN, and every exponent.
    let code = |random: &mut Rng| random.u8(..) & 0x80 | random.u8(..0x7f);
    let data = (0..n * k).map(|_| code(&mut random)).collect();
    let [rows, cols] = format.scale_grid([n, k]).unwrap();
    let scales = match format.scaling().unwrap().0 {
        ScaleFormat::E8M0 => (0..rows * cols).map(|_| random.u8(118..126)).collect(),
        ScaleFormat::F32 => (0..rows * cols)
            .flat_map(|_| (0.001 + random.f32() / 100.0).to_le_bytes())
            .collect(),
    };
    HostWeight::owned([n, k], format, data, scales).unwrap()
}

fn matmul(cpu: &CpuBackend, x: &[bf16], w: &HostWeight<'_>) -> Vec<f32> {
    let [n, k] = [w.rows(), w.cols()];
    let rows = x.len() / k;
    let w = cpu.load_weight(std::slice::from_ref(w)).unwrap();
    let mut y = vec![f32::NAN; rows * n];
    let from = Tensor::from_slice(x, RowLayout::contiguous(rows, k));
    let to = TensorMut::from_slice(&mut y, RowLayout::contiguous(rows, n));
    cpu.matmul(from, &w, to).unwrap();
    y
}

fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|y| y.to_bits()).collect()
}

#[test]
fn the_suite_of_matmuls_passes_on_emulated_tiles() {
    let harnesses = UNITS.map(|[emulated, _]| Harness::new(open(emulated), Size::Quick));
    let of_matmuls = [
        "matmuls_of_exact_sums",
        "matmuls_within_the_bound",
        "a_nan_scale_stays_in_its_block",
        "matmul_arguments_are_named",
        "fused_equals_unfused",
        "shards_equal_the_whole",
        "matmuls_of_codes",
    ];
    for name in of_matmuls {
        let checks = Harness::<CpuBackend>::checks();
        let (_, check) = checks.iter().find(|(n, _)| *n == name).unwrap();
        for harness in &harnesses {
            check(harness).unwrap_or_else(|failure| panic!("{name}: {failure}"));
        }
    }
}

/// Sums against f64: each within 1e-6 of the magnitudes of its terms, all within 5e-6 by norm.
#[test]
fn sums_are_within_the_class_s_bound() {
    for set in units() {
        for format in FORMATS {
            for (t, n, k) in [(17, 20, 2048), (3, 9, 7168), (33, 35, 300), (2, 16, 301)] {
                let (x, w) = (rows(1, t * k, 1.0), weight(2, format, [n, k]));
                let y = matmul(&open(set), &x, &w);
                let (mut difference, mut norm) = (0.0, 0.0);
                for (at, y) in y.iter().enumerate() {
                    let terms = (0..k).map(|j| {
                        let x = f64::from(x[at / n * k + j].to_f32());
                        x * value(&w, at % n, j)
                    });
                    let (sum, size) = terms.fold((0.0, 0.0), |(s, a), p| (s + p, a + p.abs()));
                    let error = (f64::from(*y) - sum).abs();
                    assert!(
                        error <= 1e-6 * size,
                        "{set}, {format}: {error:e} of {size:e}"
                    );
                    difference += error * error;
                    norm += sum * sum;
                }
                let error = (difference / norm).sqrt();
                assert!(error <= 5e-6, "{set}, {format}: {error:e} by norm");
                assert!(error > 0.0, "{set}, {format}: nothing was rounded");
            }
        }
    }
}

/// An element of a weight, with its scale.
fn value(w: &HostWeight<'_>, row: usize, col: usize) -> f64 {
    let at = row * w.cols() + col;
    if w.format() == BF16 {
        return f64::from(bytemuck::cast_slice::<_, bf16>(w.data())[at].to_f32());
    }
    f64::from(swiglu_core::E4M3(w.data()[at]).to_f32()) * f64::from(w.scale(row, col))
}

#[test]
fn bits_depend_neither_on_threads_nor_on_other_rows_nor_on_the_unit() {
    let (t, n, k) = (75, 147, 1104);
    for format in FORMATS {
        let (x, w) = (rows(3, t * k, 1.0), weight(4, format, [n, k]));
        let expected = UNITS.map(|[emulated, _]| bits(&matmul(&open(emulated), &x, &w)));
        assert!(expected[0] != expected[1], "{format}: the units differ");
        for set in units() {
            let which = UNITS.iter().position(|unit| unit.contains(&set)).unwrap();
            let expected = &expected[which];
            for threads in [1, 2, 7] {
                let y = matmul(&on_threads(set, threads), &x, &w);
                assert!(bits(&y) == *expected, "{set}, {format}, {threads} threads");
            }
            for (first, last) in [(0, 1), (1, 17), (40, 75)] {
                let y = matmul(&open(set), &x[first * k..last * k], &w);
                let same = bits(&y) == expected[first * n..last * n];
                assert!(same, "{set}, {format}, rows {first} to {last}");
            }
        }
    }
}

/// More rows than a task takes, and than are copied at a time.
#[test]
fn rows_of_every_chunk_are_summed_alike() {
    let (t, n, k) = (1093, 33, 68);
    let format = fp8(ScaleFormat::F32, [32, 32]);
    for (set, format) in units().into_iter().flat_map(|u| [(u, BF16), (u, format)]) {
        let (x, w) = (rows(12, t * k, 1.0), weight(13, format, [n, k]));
        let all = bits(&matmul(&on_threads(set, 3), &x, &w));
        for (first, last) in [(0, 40), (190, 420), (1000, 1093)] {
            let y = matmul(&open(set), &x[first * k..last * k], &w);
            let same = bits(&y) == all[first * n..last * n];
            assert!(same, "{set}, {format}, rows {first} to {last}");
        }
    }
}

#[test]
fn ordered_sums_are_to_be_had_and_the_plan_and_the_accuracy_name_the_class() {
    let shape = Shape {
        rows: 64,
        cols: 64,
        depth: 256,
    };
    let request = Request::Matmul {
        x: Float::BF16,
        weight: BF16,
        y: Float::F32,
    };
    let (x, w) = (rows(5, 64 * 256, 1.0), weight(6, BF16, [64, 256]));
    let scalar = CpuBackend::with_instruction_set(InstructionSet::Scalar).unwrap();
    let expected = bits(&matmul(&scalar, &x, &w));
    for set in units() {
        let tiles = open(set);
        assert_eq!(tiles.accuracy().accumulation, Accumulation::MatrixUnit);
        let plan = tiles.plan(&request, &shape).unwrap();
        let name = match has_tiles(set) {
            true => "tiles of the matrix unit",
            false => "dot products of bf16",
        };
        assert!(plan.contains(name), "{plan}");
        assert!(bits(&matmul(&tiles, &x, &w)) != expected, "{set}");
        let ordered = open(set).with_accumulation(Accumulation::Ordered);
        assert_eq!(ordered.accuracy().accumulation, Accumulation::Ordered);
        let plan = ordered.plan(&request, &shape).unwrap();
        assert!(!plan.contains(name), "{plan}");
        assert!(bits(&matmul(&ordered, &x, &w)) == expected, "{set}");
    }
    assert_eq!(scalar.accuracy().accumulation, Accumulation::Ordered);
}

/// Subnormal numbers are zero to the unit.
#[test]
fn subnormal_operands_flush() {
    let x = vec![bf16::from_bits(1); 32];
    let data = bytemuck::cast_slice(&[bf16::from_f32(1e30); 32]).to_vec();
    let w = HostWeight::owned([1, 32], BF16, data, Vec::new()).unwrap();
    for set in units() {
        assert_eq!(matmul(&open(set), &x, &w), [0.0], "{set}");
        let ordered = open(set).with_accumulation(Accumulation::Ordered);
        assert!(matmul(&ordered, &x, &w)[0] > 0.0);
    }
}

/// On tiles codes meet their scale before they are summed: x of 1e34 and a scale of 2^-27 do not
/// overflow. Dot products sum them first, as fused multiply-adds do.
#[test]
fn sums_of_codes_do_not_overflow_on_tiles_before_their_scale() {
    let format = fp8(ScaleFormat::E8M0, [128, 128]);
    let w = HostWeight::owned([1, 128], format, vec![0x7e; 128], vec![100]).unwrap();
    let x = vec![bf16::from_f32(1e34); 128];
    for set in units() {
        let y = matmul(&open(set), &x, &w)[0];
        let expected = 128.0 * 448.0 * 2f64.powi(-27) * f64::from(x[0].to_f32());
        if !has_tiles(set) {
            assert_eq!(y, f32::INFINITY, "{set}");
            continue;
        }
        assert!((f64::from(y) / expected - 1.0).abs() < 1e-6, "{set}: {y:e}");
    }
}

/// Threads that never asked for leave use tiles, and signals between and within calls take nothing.
#[test]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_survives_signals_on_threads_that_never_asked() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static SIGNALS: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn count(_: libc::c_int) {
        SIGNALS.fetch_add(1, Ordering::Relaxed);
    }
    if !InstructionSet::Amx.available() {
        eprintln!("skipped: amx: this machine lacks it");
        return;
    }
    let (x, w) = (rows(7, 64 * 1024, 1.0), weight(8, BF16, [256, 1024]));
    let expected = bits(&matmul(&open(InstructionSet::AmxEmulated), &x, &w));
    let handler = count as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler only counts.
    unsafe { libc::signal(libc::SIGUSR1, handler) };
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let cpu = on_threads(InstructionSet::Amx, 2);
            (0..200).all(|_| bits(&matmul(&cpu, &x, &w)) == expected)
        });
        let me = std::process::id() as libc::pid_t;
        while !worker.is_finished() {
            // SAFETY: the signal has a handler.
            unsafe { libc::kill(me, libc::SIGUSR1) };
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
        assert!(worker.join().unwrap());
    });
    assert!(SIGNALS.load(Ordering::Relaxed) > 0);
}

/// The gated half on tiles: the activation of both matmuls' sums, with partial panels and odd k.
#[test]
fn the_gated_half_is_that_of_its_steps() {
    let op = GatedActivation::deepseek_v4();
    let (t, d, k) = (37, 43, 1030);
    for (set, format) in units().into_iter().flat_map(|u| FORMATS.map(|f| (u, f))) {
        let cpu = on_threads(set, 2);
        let [gate, up] = [9, 10].map(|seed| weight(seed, format, [d, k]));
        let x = rows(11, t * k, 1.0);
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
        assert!(fused.bytes() == steps.bytes(), "{set}, {format}");
    }
}
