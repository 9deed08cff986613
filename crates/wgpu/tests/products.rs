//! Products in whole vectors, which have kernels of their own, and the gated half in one kernel.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

use std::sync::OnceLock;

use swiglu_core::reference::Reference;
use swiglu_core::{
    ActAndMul, Backend, BlockScales, DType, Element, GatedActivation, GatedMatmul, HostWeight,
    Matmul, Rounding, RowLayout, Tensor, TensorMut, bf16, f16,
};
use swiglu_testing::inputs::{Numbers, push};
use swiglu_wgpu::{Builder, WgpuBackend, wgpu};

const POISON: u8 = 0xa5;

/// Several vectors for each lane, and some for a few: in every type of weight.
const COLS: usize = 2064;

/// One backend for all tests: to open one is to compile its kernels.
fn open() -> Option<&'static WgpuBackend> {
    static BACKEND: OnceLock<Option<WgpuBackend>> = OnceLock::new();
    let open = || build(WgpuBackend::builder());
    BACKEND.get_or_init(open).as_ref()
}

/// The backend of a builder, or a skip by name.
fn build(builder: Builder) -> Option<WgpuBackend> {
    match builder.allow_software(true).build() {
        Ok(backend) => Some(backend),
        Err(reason) => {
            swiglu_testing::may_skip("wgpu", &reason.to_string(), "products");
            None
        }
    }
}

fn filled<B: Backend>(backend: &B, bytes: &[u8]) -> B::Buffer {
    swiglu_testing::filled(backend, bytes).unwrap()
}

fn bytes<B: Backend>(backend: &B, buffer: &B::Buffer) -> Vec<u8> {
    swiglu_testing::contents(backend, buffer).unwrap()
}

fn poisoned<B: Backend>(backend: &B, dtype: DType, layout: RowLayout) -> B::Buffer {
    let elements = layout.offset + layout.rows * layout.stride + 3;
    filled(backend, &vec![POISON; elements * dtype.size()])
}

/// A weight's bytes, and its scales in blocks of that side.
struct Stored {
    rows: usize,
    dtype: DType,
    data: Vec<u8>,
    scales: Vec<u8>,
    block: usize,
}

impl Stored {
    /// `number` makes values that every type holds.
    fn new(rows: usize, dtype: DType, block: usize, mut number: impl FnMut() -> f32) -> Self {
        let mut data = Vec::new();
        for _ in 0..rows * COLS {
            push(&mut data, dtype, number());
        }
        let blocks = rows.div_ceil(block) * COLS.div_ceil(block);
        Self {
            rows,
            dtype,
            data,
            scales: (0..blocks).map(|i| 126 + (i % 3) as u8).collect(),
            block,
        }
    }

    fn view(&self) -> HostWeight<'_> {
        let scales = (self.dtype == DType::F8E4M3).then_some(BlockScales {
            data: &self.scales,
            dtype: DType::E8M0,
            block: [self.block; 2],
        });
        HostWeight::new(self.rows, COLS, self.dtype, &self.data, scales).unwrap()
    }
}

/// y, with what lies around its rows.
fn product<B: Matmul>(
    backend: &B,
    weight: &Stored,
    (x, from): (&[u8], RowLayout),
    (dtype, to): (DType, RowLayout),
) -> Vec<u8> {
    let loaded = backend.load_weight(&[weight.view()]).unwrap();
    let x_dtype = usual(weight.dtype);
    let x = Tensor {
        buffer: &filled(backend, x),
        dtype: x_dtype,
        layout: from,
    };
    let mut y = poisoned(backend, dtype, to);
    let output = TensorMut {
        buffer: &mut y,
        dtype,
        layout: to,
    };
    backend.matmul(x, &loaded, output).unwrap();
    bytes(backend, &y)
}

fn usual(weight: DType) -> DType {
    if weight == DType::F8E4M3 {
        DType::BF16
    } else {
        weight
    }
}

fn whole_numbers<T: Element>(count: usize) -> Vec<T> {
    let mut numbers = Numbers::new(count as u64);
    let mut value = || T::from_f32(numbers.below(9) as f32 - 4.0);
    (0..count).map(|_| value()).collect()
}

/// Every number of tokens that has kernels of its own, and those beside; sums are exact in f32.
#[test]
fn rows_of_whole_vectors_give_exact_sums() {
    let Some(backend) = open() else {
        return;
    };
    const ROWS: usize = 37;
    let formats = [
        (DType::F32, 128),
        (DType::F16, 128),
        (DType::BF16, 128),
        (DType::F8E4M3, 128),
        (DType::F8E4M3, 32),
    ];
    for (dtype, block) in formats {
        let mut numbers = Numbers::new(block as u64);
        let weight = Stored::new(ROWS, dtype, block, || numbers.below(7) as f32 - 3.0);
        for tokens in [1, 2, 4, 5, 8, 9, 16, 33] {
            // Whole vectors in either case; outputs that share words with others.
            let apart = usize::from(tokens % 2 == 0);
            let from = RowLayout::contiguous(tokens, COLS)
                .with_stride(COLS + 16 * apart)
                .with_offset(8 * apart);
            let to = RowLayout::contiguous(tokens, ROWS)
                .with_stride(ROWS + 4 * apart)
                .with_offset(apart);
            let elements = from.offset + tokens * from.stride;
            let x = match usual(dtype) {
                DType::F32 => bytemuck::cast_slice(&whole_numbers::<f32>(elements)).to_vec(),
                DType::F16 => bytemuck::cast_slice(&whole_numbers::<f16>(elements)).to_vec(),
                _ => bytemuck::cast_slice(&whole_numbers::<bf16>(elements)).to_vec(),
            };
            for y in [DType::F32, usual(dtype)] {
                let got = product(backend, &weight, (&x, from), (y, to));
                let want = product(&Reference, &weight, (&x, from), (y, to));
                assert_eq!(
                    got, want,
                    "{tokens} tokens by {dtype}, block {block}, to {y}"
                );
            }
        }
    }
}

/// The gated half of an MLP: of what, and to where.
struct Gated<'a> {
    op: &'a GatedActivation,
    x: &'a [u8],
    tokens: usize,
    between: RowLayout,
    to: RowLayout,
}

impl Gated<'_> {
    /// The bytes of `gate_up` and of `act`, by one call or by two.
    fn run(&self, b: &WgpuBackend, parts: [&Stored; 2], fused: bool) -> [Vec<u8>; 2] {
        let [gate, up] = parts;
        let weight = b.load_gate_up(gate.view(), up.view()).unwrap();
        let dtype = usual(gate.dtype);
        let on_device = filled(b, self.x);
        let x = Tensor::contiguous(&on_device, dtype, self.tokens, COLS);
        let mut between = poisoned(b, dtype, self.between);
        let mut act = poisoned(b, dtype, self.to);
        let mut gate_up = TensorMut {
            buffer: &mut between,
            dtype,
            layout: self.between,
        };
        let output = TensorMut {
            buffer: &mut act,
            dtype,
            layout: self.to,
        };
        if fused {
            b.matmul_act_and_mul(self.op, x, &weight, gate_up, output)
                .unwrap();
        } else {
            b.matmul(x, &weight, gate_up.reborrow()).unwrap();
            b.act_and_mul(self.op, gate_up.as_ref(), output).unwrap();
        }
        [bytes(b, &between), bytes(b, &act)]
    }
}

/// Multiples of a 32nd, whose sums with [`sixteenths`] are exact in f32 and reach beyond every
/// limit: two kernels have the same sums, however a driver orders them. A token of zeros, and one
/// that holds a NaN and an infinity.
fn tokens_to_activate<T: Element>(tokens: usize) -> Vec<u8> {
    let mut numbers = Numbers::new(tokens as u64);
    let mut value = || T::from_f32((numbers.below(17) as f32 - 8.0) / 32.0);
    let mut x: Vec<T> = (0..tokens * COLS).map(|_| value()).collect();
    if tokens > 2 {
        x[COLS..2 * COLS].fill(T::from_f32(0.0));
        x[2 * COLS] = T::from_f32(f32::NAN);
        x[2 * COLS + 1] = T::from_f32(f32::INFINITY);
    }
    if tokens > 5 {
        // Gates and ups whose results are subnormal, and ups that are infinite.
        for (token, exponent) in [(3, -100), (4, -14), (5, 122)] {
            for x in &mut x[token * COLS..(token + 1) * COLS] {
                *x = T::from_f32(x.to_f32() * 2_f32.powi(exponent));
            }
        }
    }
    bytemuck::cast_slice(&x).to_vec()
}

/// Weights from -3 to 3.
fn sixteenths(seed: u64) -> impl FnMut() -> f32 {
    let mut numbers = Numbers::new(seed);
    move || (numbers.below(97) as f32 - 48.0) / 16.0
}

/// One kernel computes the gated half, and what two would, bit for bit; where it cannot, two do.
#[test]
fn the_gated_half_is_one_kernel_and_equals_two() {
    let Some(backend) = open() else {
        return;
    };
    const D: usize = 48;
    let description = backend.description();
    let left_out = ["exp2 of our own", "in two kernels"]
        .iter()
        .any(|note| description.contains(note));
    let ops = [
        (GatedActivation::deepseek_v4(), true),
        (GatedActivation::mul_and_silu(), true),
        (GatedActivation::minimax_m3(), true),
        (
            GatedActivation::deepseek_v4().with_rounding(Rounding::Eager),
            false,
        ),
        (GatedActivation::gpt_oss(), false),
        (GatedActivation::gelu_and_mul(), false),
    ];
    // Blocks of 32 rows are cut where the gates end, and the weight with them.
    for (dtype, block) in [
        (DType::F16, 16),
        (DType::BF16, 16),
        (DType::F8E4M3, 16),
        (DType::F8E4M3, 32),
        (DType::F32, 16),
    ] {
        let [gate, up] = [7, 8].map(|seed| Stored::new(D, dtype, block, sixteenths(seed)));
        for (op, fuses) in &ops {
            for (tokens, offset) in [(1, 0), (3, 8), (8, 0), (11, 0), (16, 8), (33, 0), (1, 1)] {
                let x = match usual(dtype) {
                    DType::F32 => tokens_to_activate::<f32>(tokens),
                    DType::F16 => tokens_to_activate::<f16>(tokens),
                    _ => tokens_to_activate::<bf16>(tokens),
                };
                let to = RowLayout::contiguous(tokens, D).with_stride(D + 8);
                let case = Gated {
                    op,
                    x: &x,
                    tokens,
                    between: RowLayout::contiguous(tokens, 2 * D),
                    to: to.with_offset(offset),
                };
                let what = format!("{op}, {tokens} tokens from {offset} by {dtype} in {block}");
                let [_, want] = case.run(backend, [&gate, &up], false);
                let [between, got] = case.run(backend, [&gate, &up], true);
                assert_eq!(got, want, "{what}");
                let untouched = between.iter().all(|byte| *byte == POISON);
                let whole = dtype != DType::F32 && block == 16 && offset % 8 == 0;
                let one = *fuses && tokens <= 16 && whole;
                assert_eq!(untouched, one && !left_out, "{what}: {description}");
            }
        }
    }
}

/// A device with small workgroups takes two kernels.
#[test]
fn small_workgroups_take_two_kernels() {
    let limits = wgpu::Limits {
        max_immediate_size: 128,
        ..wgpu::Limits::downlevel_defaults()
    };
    let small = build(WgpuBackend::builder().limits(limits));
    let (Some(whole), Some(small)) = (open(), small) else {
        return;
    };
    let [gate, up] = [3, 4].map(|seed| Stored::new(24, DType::BF16, 8, sixteenths(seed)));
    let x = tokens_to_activate::<bf16>(8);
    let case = Gated {
        op: &GatedActivation::deepseek_v4(),
        x: &x,
        tokens: 8,
        between: RowLayout::contiguous(8, 48),
        to: RowLayout::contiguous(8, 24),
    };
    let [between, got] = case.run(&small, [&gate, &up], true);
    assert!(between.iter().any(|byte| *byte != POISON));
    assert_eq!(got, case.run(whole, [&gate, &up], true)[1]);
}

/// A weight remembers what it was used with, and notices what is new.
#[test]
fn a_weight_takes_other_buffers_and_other_places() {
    let Some(backend) = open() else {
        return;
    };
    const ROWS: usize = 8;
    let mut numbers = Numbers::new(1);
    let stored = Stored::new(ROWS, DType::F32, 8, || numbers.below(7) as f32 - 3.0);
    let weight = backend.load_weight(&[stored.view()]).unwrap();
    let values = whole_numbers::<f32>(3 * COLS);
    let from = |row: usize| bytemuck::cast_slice(&values[row * COLS..]);
    let buffers = [0, 1].map(|row| filled(backend, from(row)));
    for (buffer, row) in [(0, 0), (1, 0), (1, 1), (0, 0), (0, 2), (0, 1)] {
        let mut y = backend.alloc(4 * ROWS).unwrap();
        let x = Tensor {
            buffer: &buffers[buffer],
            dtype: DType::F32,
            layout: RowLayout::contiguous(1, COLS).with_offset(row * COLS),
        };
        let y_out = TensorMut::contiguous(&mut y, DType::F32, 1, ROWS);
        backend.matmul(x, &weight, y_out).unwrap();
        let [one, to] = [COLS, ROWS].map(|cols| RowLayout::contiguous(1, cols));
        let want = product(
            &Reference,
            &stored,
            (from(buffer + row), one),
            (DType::F32, to),
        );
        assert_eq!(bytes(backend, &y), want[..4 * ROWS], "{buffer} {row}");
    }
}
