//! Results do not depend on the instruction set, nor on the number of threads, to the bit.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test helper is no #[test] function"
)]

use std::sync::{Arc, LazyLock};

use fastrand::Rng;
use swiglu_core::{
    ActAndMul, Backend, BlockScales, DType, GatedActivation, GatedMatmul, HostBuffer, HostWeight,
    Matmul, Rounding, RowLayout, Tensor, TensorMut,
};
use swiglu_cpu::{CpuBackend, InstructionSet};

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
    backends
});

/// Bits of every class: any pattern, numbers of ordinary size, and small ones.
fn values(random: &mut Rng, dtype: DType, count: usize) -> HostBuffer {
    let mut buffer = HostBuffer::zeroed(count * dtype.size()).unwrap();
    for bytes in buffer.bytes_mut().chunks_exact_mut(dtype.size()) {
        let ordinary = (random.f32() - 0.5) * [2.0, 40.0, 400.0][random.usize(..3)];
        let bits = match (dtype, random.bool()) {
            (_, false) => random.u32(..).to_le_bytes(),
            (DType::F32, true) => ordinary.to_le_bytes(),
            (DType::F16, true) => {
                let half = swiglu_core::f16::from_f32(ordinary).to_bits();
                u32::from(half).to_le_bytes()
            }
            (_, true) => (ordinary.to_bits() >> 16).to_le_bytes(),
        };
        bytes.copy_from_slice(&bits[..dtype.size()]);
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
            for dtype in DType::COMPUTE {
                // One that stays on its thread, one of many rows, one of long rows.
                for (rows, d) in [(3, 37), (700, 129), (2, 40_001)] {
                    let input = values(&mut random, dtype, rows * (2 * d + 3));
                    let from = RowLayout::contiguous(rows, 2 * d).with_stride(2 * d + 3);
                    all_agree(&format!("{op} in {dtype}, {rows} x {d}"), |backend| {
                        let mut output = backend.alloc(rows * d * dtype.size()).unwrap();
                        let tensor = Tensor {
                            buffer: &input,
                            dtype,
                            layout: from,
                        };
                        let to = TensorMut::contiguous(&mut output, dtype, rows, d);
                        backend.act_and_mul(&op, tensor, to).unwrap();
                        output
                    });
                }
            }
        }
    }
}

/// Bytes of moderate elements, and for f8 scales of these blocks.
struct Stored {
    dtype: DType,
    shape: [usize; 2],
    data: Vec<u8>,
    scales: Vec<u8>,
    block: [usize; 2],
}

impl Stored {
    fn new(random: &mut Rng, dtype: DType, [n, k]: [usize; 2], block: [usize; 2]) -> Self {
        let mut data = vec![0_u8; n * k * dtype.size()];
        for (at, byte) in data.iter_mut().enumerate() {
            // The last byte of an element holds its sign and exponent: keep it moderate.
            let last = at % dtype.size() == dtype.size() - 1;
            *byte = random.u8(..) & if last { 0xbf } else { 0xff };
        }
        let count = n.div_ceil(block[0]) * k.div_ceil(block[1]);
        Self {
            dtype,
            shape: [n, k],
            data,
            scales: (0..count).map(|_| random.u8(120..134)).collect(),
            block,
        }
    }

    fn view(&self) -> HostWeight<'_> {
        let scales = (self.dtype == DType::F8E4M3).then_some(BlockScales {
            data: &self.scales,
            dtype: DType::E8M0,
            block: self.block,
        });
        let [n, k] = self.shape;
        HostWeight::new(n, k, self.dtype, &self.data, scales).unwrap()
    }
}

/// Types of weights, with blocks of scales that do and do not end with a panel, a word or a sum.
const FORMATS: [(DType, [usize; 2]); 7] = [
    (DType::F32, [1, 1]),
    (DType::F16, [1, 1]),
    (DType::BF16, [1, 1]),
    (DType::F8E4M3, [32, 32]),
    (DType::F8E4M3, [128, 128]),
    (DType::F8E4M3, [5, 7]),
    (DType::F8E4M3, [48, 200]),
];

#[test]
fn products() {
    let mut random = Rng::with_seed(2);
    let (n, k) = (147, 301);
    for (dtype, block) in FORMATS {
        let weight = Stored::new(&mut random, dtype, [n, k], block);
        for rows in [1, 2, 3, 4, 5, 7, 8, 13, 33, 300] {
            let x: Vec<f32> = (0..rows * k).map(|_| random.f32() - 0.5).collect();
            let x = HostBuffer::from_slice(&x).unwrap();
            all_agree(&format!("{dtype} weights, {rows} rows"), |backend| {
                let weight = backend.load_weight(&[weight.view()]).unwrap();
                let mut y = backend.alloc(rows * n * 4).unwrap();
                let x = Tensor::contiguous(&x, DType::F32, rows, k);
                let to = TensorMut::contiguous(&mut y, DType::F32, rows, n);
                backend.matmul(x, &weight, to).unwrap();
                y
            });
        }
    }
}

/// The activation on the way gives what it gives after the product, whose sums it was not given
/// exactly here, and whose gate and up are whole and cut panels.
#[test]
fn gated_products() {
    let mut random = Rng::with_seed(4);
    let k = 301;
    for op in [
        GatedActivation::deepseek_v4(),
        GatedActivation::deepseek_v4().with_rounding(Rounding::Eager),
        GatedActivation::mul_and_silu(),
        GatedActivation::gpt_oss(),
    ] {
        for (i, &(dtype, block)) in [16, 77, 144].into_iter().zip(&FORMATS[2..]) {
            let [gate, up] = [0, 1].map(|_| Stored::new(&mut random, dtype, [i, k], block));
            for rows in [1, 3, 6, 40, 300] {
                let x: Vec<f32> = (0..rows * k).map(|_| random.f32() - 0.5).collect();
                let x = HostBuffer::from_slice(&x).unwrap();
                all_agree(&format!("{op}, {dtype} weights, {rows} x {i}"), |backend| {
                    let gated = backend.load_gate_up(gate.view(), up.view()).unwrap();
                    let stacked = backend.load_weight(&[gate.view(), up.view()]).unwrap();
                    let mut acts = [&gated, &stacked].map(|weight| {
                        let mut gate_up = backend.alloc(rows * 2 * i * 2).unwrap();
                        let mut act = backend.alloc(rows * i * 2).unwrap();
                        let x = Tensor::contiguous(&x, DType::F32, rows, k);
                        let between = TensorMut::contiguous(&mut gate_up, DType::BF16, rows, 2 * i);
                        let to = TensorMut::contiguous(&mut act, DType::BF16, rows, i);
                        backend
                            .matmul_act_and_mul(&op, x, weight, between, to)
                            .unwrap();
                        act
                    });
                    assert_eq!(acts[0].bytes(), acts[1].bytes(), "{op}, {rows} x {i}");
                    std::mem::take(&mut acts[0])
                });
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    let mut random = Rng::with_seed(3);
    let (rows, n, k) = (301_usize, 64_usize, 700_usize);
    let data: Vec<u8> = (0..n * k).map(|_| random.u8(..) & 0xbf).collect();
    let ones = vec![127; n.div_ceil(128) * k.div_ceil(128)];
    let scales = BlockScales {
        data: &ones,
        dtype: DType::E8M0,
        block: [128, 128],
    };
    let weight = HostWeight::new(n, k, DType::F8E4M3, &data, Some(scales)).unwrap();
    let backend = CpuBackend::new();
    let weight = backend.load_weight(&[weight]).unwrap();
    let x: Vec<f32> = (0..rows * k).map(|_| random.f32() - 0.5).collect();
    let x = HostBuffer::from_slice(&x).unwrap();
    let product = |layout: RowLayout| {
        let mut y = backend.alloc(layout.rows * n * 4).unwrap();
        let x = Tensor {
            buffer: &x,
            dtype: DType::F32,
            layout,
        };
        let to = TensorMut::contiguous(&mut y, DType::F32, layout.rows, n);
        backend.matmul(x, &weight, to).unwrap();
        y.typed::<f32>().to_vec()
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
