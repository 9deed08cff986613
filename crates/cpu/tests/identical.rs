//! Results do not depend on the instruction set, nor on the number of threads, to the bit.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test helper is no #[test] function"
)]

use std::sync::{Arc, LazyLock};

use fastrand::Rng;
use swiglu_core::{
    Accumulation, ActAndMul, Backend, Float, GateUp, GatedActivation, HostBuffer, HostWeight,
    Matmul, Rounding, RowLayout, ScaleFormat, Tensor, TensorMut, WeightFormat,
};
use swiglu_cpu::{CpuBackend, InstructionSet, Settings};

/// Backends that must agree: every instruction set of this machine, and pools of several sizes.
static BACKENDS: LazyLock<Vec<(String, CpuBackend)>> = LazyLock::new(|| {
    let mut backends = Vec::new();
    for set in InstructionSet::ALL {
        match CpuBackend::with_instruction_set(set) {
            Ok(backend) => backends.push((set.to_string(), backend)),
            Err(error) => eprintln!("skipped: {set}: {error}"),
        }
    }
    for threads in [1, 2, 3, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let backend = CpuBackend::new().with_pool(Arc::new(pool.build().unwrap()));
        backends.push((format!("{threads} threads"), backend));
    }
    // Nothing on the caller's thread, and every activation past the caches.
    let mut low = Settings::default();
    (
        low.inline_outputs,
        low.inline_multiplications,
        low.stream_bytes,
    ) = (0, 0, 0);
    backends.push(("pool".to_owned(), CpuBackend::new().with_settings(low)));
    // A matrix unit's sums are of another class.
    let ordered =
        |(name, b): (String, CpuBackend)| (name, b.with_accumulation(Accumulation::Ordered));
    backends.into_iter().map(ordered).collect()
});

/// Bits of every class: any pattern, numbers of ordinary size, and small ones.
fn values(random: &mut Rng, float: Float, count: usize) -> HostBuffer {
    let mut buffer = HostBuffer::zeroed(count * float.size()).unwrap();
    for bytes in buffer.bytes_mut().chunks_exact_mut(float.size()) {
        let ordinary = (random.f32() - 0.5) * [2.0, 40.0, 400.0][random.usize(..3)];
        let bits = match (float, random.bool()) {
            (_, false) => random.u32(..).to_le_bytes(),
            (Float::F32, true) => ordinary.to_le_bytes(),
            (Float::F16, true) => {
                let half = swiglu_core::f16::from_f32(ordinary).to_bits();
                u32::from(half).to_le_bytes()
            }
            (_, true) => (ordinary.to_bits() >> 16).to_le_bytes(),
        };
        bytes.copy_from_slice(&bits[..float.size()]);
    }
    buffer
}

/// Runs on all backends and compares with the first.
fn all_agree(what: &str, run: impl Fn(&CpuBackend) -> HostBuffer) {
    let mut first: Option<(&str, HostBuffer)> = None;
    for (name, backend) in &*BACKENDS {
        let got = run(backend);
        match &first {
            None => first = Some((name, got)),
            Some((other, expected)) => {
                let differ = got.bytes().iter().zip(expected.bytes());
                let at = differ.clone().position(|(a, b)| a != b);
                assert_eq!(at, None, "{what}: {name} differs from {other} at this byte");
            }
        }
    }
}

#[test]
fn activations() {
    let mut random = Rng::with_seed(1);
    for op in GatedActivation::ALL {
        for rounding in [Rounding::Official, Rounding::Eager] {
            let op = op.with_rounding(rounding);
            for float in Float::ALL {
                // One that stays on its thread, one of many rows, one of long rows.
                for (rows, d) in [(3, 37), (700, 129), (2, 40_001)] {
                    let input = values(&mut random, float, rows * (2 * d + 3));
                    let from = RowLayout::contiguous(rows, 2 * d).with_stride(2 * d + 3);
                    let half = RowLayout { cols: d, ..from };
                    let tensor = |layout| Tensor::new(CpuBackend::view(&input), float, layout);
                    let inputs = [
                        GateUp::Merged(tensor(from)),
                        GateUp::Split {
                            gate: tensor(half),
                            up: tensor(half.with_offset(d + 1)),
                        },
                    ];
                    for input in inputs {
                        all_agree(&format!("{op} in {float}, {rows} x {d}"), |backend| {
                            let mut output = backend.alloc(rows * d * float.size()).unwrap();
                            let to = CpuBackend::view_mut(&mut output);
                            let to = TensorMut::contiguous(to, float, rows, d);
                            backend.act_and_mul(&op, input, to).unwrap();
                            output
                        });
                    }
                }
            }
        }
    }
}

/// Bytes of moderate elements, and for FP8 scales.
fn stored(random: &mut Rng, format: WeightFormat, [n, k]: [usize; 2]) -> HostWeight<'static> {
    let size = (format.bits() / 8).max(1);
    let mut data = vec![0_u8; n * format.row_bytes(k)];
    for (at, byte) in data.iter_mut().enumerate() {
        // The last byte of an element holds its sign and exponent: keep it moderate.
        let last = at % size == size - 1;
        *byte = random.u8(..) & if last { 0xbf } else { 0xff };
    }
    let [rows, columns] = format.scale_grid([n, k]).unwrap();
    let scales = (0..rows * columns).map(|_| random.u8(120..134)).collect();
    HostWeight::owned([n, k], format, data, scales).unwrap()
}

const fn fp8(block: [usize; 2]) -> WeightFormat {
    WeightFormat::Fp8 {
        scales: ScaleFormat::E8M0,
        block,
    }
}

/// Formats of weights, with blocks of scales that do and do not end with a panel, a word or a sum.
const FORMATS: [WeightFormat; 8] = [
    WeightFormat::Float(Float::F32),
    WeightFormat::Float(Float::F16),
    WeightFormat::Float(Float::BF16),
    WeightFormat::Fp4,
    fp8([32, 32]),
    fp8([128, 128]),
    fp8([5, 7]),
    fp8([48, 200]),
];

fn rows_of(random: &mut Rng, rows: usize, k: usize) -> HostBuffer {
    let x: Vec<f32> = (0..rows * k).map(|_| random.f32() - 0.5).collect();
    HostBuffer::from_slice(&x).unwrap()
}

#[test]
fn matmuls() {
    let mut random = Rng::with_seed(2);
    let n = 147;
    for format in FORMATS {
        let k = 301_usize.next_multiple_of(format.columns_step());
        let weight = stored(&mut random, format, [n, k]);
        for rows in [1, 2, 3, 4, 5, 7, 8, 13, 33, 300] {
            let x = rows_of(&mut random, rows, k);
            all_agree(&format!("{format} weights, {rows} rows"), |backend| {
                let weight = backend.load_weight(std::slice::from_ref(&weight)).unwrap();
                let mut y = backend.alloc(rows * n * 4).unwrap();
                let x = Tensor::contiguous(x.bytes(), Float::F32, rows, k);
                let to = TensorMut::contiguous(y.bytes_mut(), Float::F32, rows, n);
                backend.matmul(x, &weight, to).unwrap();
                y
            });
        }
    }
}

/// The activation on the way gives what it gives after the matmul, whose sums it was not given
/// exactly here, and whose gate and up are whole and cut panels.
#[test]
fn gated_matmuls() {
    let mut random = Rng::with_seed(4);
    for op in [
        GatedActivation::deepseek_v4(),
        GatedActivation::deepseek_v4().with_rounding(Rounding::Eager),
        GatedActivation::mul_and_silu(),
        GatedActivation::gpt_oss(),
    ] {
        for (i, &format) in [16, 77, 50, 144].into_iter().zip(&FORMATS[2..]) {
            let k = 301_usize.next_multiple_of(format.columns_step());
            let [gate, up] = [0, 1].map(|_| stored(&mut random, format, [i, k]));
            for rows in [1, 3, 6, 40, 300] {
                let x = rows_of(&mut random, rows, k);
                all_agree(
                    &format!("{op}, {format} weights, {rows} x {i}"),
                    |backend| {
                        let gated = backend.load_gate_up(gate.clone(), up.clone()).unwrap();
                        let stacked = backend.load_weight(&[gate.clone(), up.clone()]).unwrap();
                        let mut acts = [&gated, &stacked].map(|weight| {
                            let mut gate_up = backend.alloc(rows * 2 * i * 2).unwrap();
                            let mut act = backend.alloc(rows * i * 2).unwrap();
                            let x = Tensor::contiguous(x.bytes(), Float::F32, rows, k);
                            let between = gate_up.bytes_mut();
                            let between = TensorMut::contiguous(between, Float::BF16, rows, 2 * i);
                            let to = TensorMut::contiguous(act.bytes_mut(), Float::BF16, rows, i);
                            backend
                                .matmul_act_and_mul(&op, x, weight, between, to)
                                .unwrap();
                            act
                        });
                        assert_eq!(acts[0].bytes(), acts[1].bytes(), "{op}, {rows} x {i}");
                        std::mem::take(&mut acts[0])
                    },
                );
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    let mut random = Rng::with_seed(3);
    for format in [WeightFormat::DEEPSEEK_V4, WeightFormat::Fp4] {
        rows_of_a_batch(&mut random, format);
    }
}

fn rows_of_a_batch(random: &mut Rng, format: WeightFormat) {
    let (rows, n, k) = (301_usize, 64_usize, 704_usize);
    let weight = stored(random, format, [n, k]);
    let backend = CpuBackend::new();
    let weight = backend.load_weight(&[weight]).unwrap();
    let x = rows_of(random, rows, k);
    let product = |layout: RowLayout| {
        let mut y = vec![0.0_f32; layout.rows * n];
        let to = RowLayout::contiguous(layout.rows, n);
        let x = Tensor::new(x.bytes(), Float::F32, layout);
        let to = TensorMut::from_slice(&mut y, to);
        backend.matmul(x, &weight, to).unwrap();
        y
    };
    let together = product(RowLayout::contiguous(rows, k));
    for batch in [1, 2, 5, 40] {
        for first in (0..rows - batch).step_by(23) {
            let alone = product(RowLayout::contiguous(batch, k).with_offset(first * k));
            assert_eq!(alone, together[first * n..(first + batch) * n]);
        }
    }
}

#[test]
fn an_instruction_set_that_is_missing_is_an_error() {
    for set in InstructionSet::ALL.into_iter().filter(|s| !s.available()) {
        let error = CpuBackend::with_instruction_set(set).unwrap_err();
        assert!(error.to_string().contains(set.name()), "{error}");
    }
    assert!(InstructionSet::Scalar.available() && InstructionSet::detect().available());
}
