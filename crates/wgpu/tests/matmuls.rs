//! Matmuls in whole vectors, which have kernels of their own, and the gated half in one kernel.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

use std::sync::OnceLock;

use swiglu_conformance::inputs::Numbers;
use swiglu_core::reference::Reference;
use swiglu_core::{
    ActAndMul, Backend, E4M3, Element, Float, GatedActivation, HostWeight, Matmul, Rounding,
    RowLayout, ScaleFormat, Tensor, TensorMut, WeightFormat, bf16, f16,
};
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
    match builder.allow_software(true).open() {
        Ok(backend) => Some(backend),
        Err(reason) => {
            swiglu_conformance::may_skip("wgpu", &reason.to_string(), "matmuls");
            None
        }
    }
}

fn filled<B: Backend>(backend: &B, bytes: &[u8]) -> B::Buffer {
    swiglu_conformance::filled(backend, bytes).unwrap()
}

fn bytes<B: Backend>(backend: &B, buffer: &B::Buffer) -> Vec<u8> {
    swiglu_conformance::contents(backend, buffer).unwrap()
}

fn poisoned<B: Backend>(backend: &B, float: Float, layout: RowLayout) -> B::Buffer {
    let elements = layout.offset + layout.rows * layout.stride + 3;
    filled(backend, &vec![POISON; elements * float.size()])
}

/// What a weight is stored in, and the type of x that goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stored {
    Plain(Float),
    /// In blocks of that side.
    Fp8(usize),
}

impl Stored {
    fn usual_x(self) -> Float {
        match self {
            Self::Plain(float) => float,
            Self::Fp8(_) => Float::BF16,
        }
    }

    fn format(self) -> WeightFormat {
        match self {
            Self::Plain(float) => WeightFormat::Float(float),
            Self::Fp8(block) => WeightFormat::Fp8 {
                scales: ScaleFormat::E8M0,
                block: [block; 2],
            },
        }
    }

    /// A weight of [`COLS`] columns. `number` makes values that every type holds.
    fn weight(self, rows: usize, mut number: impl FnMut() -> f32) -> HostWeight<'static> {
        let format = self.format();
        let values = (0..rows * COLS).map(|_| number());
        let data: Vec<u8> = match self {
            Self::Plain(Float::F32) => values.flat_map(f32::to_le_bytes).collect(),
            Self::Plain(Float::F16) => values
                .flat_map(|x| f16::from_f32(x).to_le_bytes())
                .collect(),
            Self::Plain(Float::BF16) => values
                .flat_map(|x| bf16::from_f32(x).to_le_bytes())
                .collect(),
            Self::Fp8(_) => values.map(|x| E4M3::from_f32_saturating(x).0).collect(),
        };
        let [r, c] = format.scale_grid([rows, COLS]).unwrap();
        let scales = (0..r * c).map(|i| 126 + (i % 3) as u8).collect();
        HostWeight::owned([rows, COLS], format, data, scales).unwrap()
    }
}

/// y, with what lies around its rows.
fn multiplied<B: Matmul>(
    backend: &B,
    weight: &HostWeight<'_>,
    (x, x_float, from): (&[u8], Float, RowLayout),
    (y_float, to): (Float, RowLayout),
) -> Vec<u8> {
    let loaded = backend.load_weight(std::slice::from_ref(weight)).unwrap();
    let on_device = filled(backend, x);
    let x = Tensor::new(B::view(&on_device), x_float, from);
    let mut y = poisoned(backend, y_float, to);
    let output = TensorMut::new(B::view_mut(&mut y), y_float, to);
    backend.matmul(x, &loaded, output).unwrap();
    bytes(backend, &y)
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
    let plain = Float::ALL.map(Stored::Plain);
    for stored in plain.into_iter().chain([128, 32].map(Stored::Fp8)) {
        let mut numbers = Numbers::new(128);
        let weight = stored.weight(ROWS, || numbers.below(7) as f32 - 3.0);
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
            let usual = stored.usual_x();
            let x = match usual {
                Float::F32 => bytemuck::cast_slice(&whole_numbers::<f32>(elements)).to_vec(),
                Float::F16 => bytemuck::cast_slice(&whole_numbers::<f16>(elements)).to_vec(),
                Float::BF16 => bytemuck::cast_slice(&whole_numbers::<bf16>(elements)).to_vec(),
            };
            for y in [Float::F32, usual] {
                let x = (x.as_slice(), usual, from);
                let got = multiplied(backend, &weight, x, (y, to));
                let want = multiplied(&Reference, &weight, x, (y, to));
                assert_eq!(got, want, "{tokens} tokens by {stored:?}, to {y}");
            }
        }
    }
}

/// The gated half of an MLP: of what, and to where.
struct Gated<'a> {
    op: &'a GatedActivation,
    x: &'a [u8],
    float: Float,
    tokens: usize,
    between: RowLayout,
    to: RowLayout,
}

impl Gated<'_> {
    /// The bytes of `gate_up` and of `act`, by one call or by two.
    fn run(&self, b: &WgpuBackend, parts: &[HostWeight<'_>; 2], fused: bool) -> [Vec<u8>; 2] {
        let [gate, up] = parts.clone();
        let float = self.float;
        let weight = b.load_gate_up(gate, up).unwrap();
        let on_device = filled(b, self.x);
        let x = Tensor::contiguous(WgpuBackend::view(&on_device), float, self.tokens, COLS);
        let mut between = poisoned(b, float, self.between);
        let mut act = poisoned(b, float, self.to);
        let view = WgpuBackend::view_mut(&mut between);
        let mut gate_up = TensorMut::<WgpuBackend>::new(view, float, self.between);
        let output = TensorMut::new(WgpuBackend::view_mut(&mut act), float, self.to);
        if fused {
            b.matmul_act_and_mul(self.op, x, &weight, gate_up, output)
                .unwrap();
        } else {
            b.matmul(x, &weight, gate_up.reborrow()).unwrap();
            b.act_and_mul(self.op, gate_up.as_tensor().into(), output)
                .unwrap();
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
    let plain = Float::ALL.map(Stored::Plain);
    for stored in plain.into_iter().chain([16, 32].map(Stored::Fp8)) {
        let halves = [7, 8].map(|seed| stored.weight(D, sixteenths(seed)));
        let float = stored.usual_x();
        for (op, fuses) in &ops {
            for (tokens, offset) in [(1, 0), (3, 8), (8, 0), (11, 0), (16, 8), (33, 0), (1, 1)] {
                let x = match float {
                    Float::F32 => tokens_to_activate::<f32>(tokens),
                    Float::F16 => tokens_to_activate::<f16>(tokens),
                    Float::BF16 => tokens_to_activate::<bf16>(tokens),
                };
                let to = RowLayout::contiguous(tokens, D).with_stride(D + 8);
                let case = Gated {
                    op,
                    x: &x,
                    float,
                    tokens,
                    between: RowLayout::contiguous(tokens, 2 * D),
                    to: to.with_offset(offset),
                };
                let what = format!("{op}, {tokens} tokens from {offset} by {stored:?}");
                let [_, want] = case.run(backend, &halves, false);
                let [between, got] = case.run(backend, &halves, true);
                assert_eq!(got, want, "{what}");
                let untouched = between.iter().all(|byte| *byte == POISON);
                let one_buffer = stored != Stored::Fp8(32);
                let whole = float != Float::F32 && one_buffer && offset % 8 == 0;
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
    let stored = Stored::Plain(Float::BF16);
    let halves = [3, 4].map(|seed| stored.weight(24, sixteenths(seed)));
    let x = tokens_to_activate::<bf16>(8);
    let case = Gated {
        op: &GatedActivation::deepseek_v4(),
        x: &x,
        float: Float::BF16,
        tokens: 8,
        between: RowLayout::contiguous(8, 48),
        to: RowLayout::contiguous(8, 24),
    };
    let [between, got] = case.run(&small, &halves, true);
    assert!(between.iter().any(|byte| *byte != POISON));
    assert_eq!(got, case.run(whole, &halves, true)[1]);
}

/// A weight remembers what it was used with, and notices what is new.
#[test]
fn a_weight_takes_other_buffers_and_other_places() {
    let Some(backend) = open() else {
        return;
    };
    const ROWS: usize = 8;
    let mut numbers = Numbers::new(1);
    let host = Stored::Plain(Float::F32).weight(ROWS, || numbers.below(7) as f32 - 3.0);
    let weight = backend.load_weight(std::slice::from_ref(&host)).unwrap();
    let values = whole_numbers::<f32>(3 * COLS);
    let from = |row: usize| bytemuck::cast_slice(&values[row * COLS..]);
    let buffers = [0, 1].map(|row| filled(backend, from(row)));
    for (buffer, row) in [(0, 0), (1, 0), (1, 1), (0, 0), (0, 2), (0, 1)] {
        let mut y = backend.alloc(4 * ROWS).unwrap();
        let layout = RowLayout::contiguous(1, COLS).with_offset(row * COLS);
        let x = Tensor::new(WgpuBackend::view(&buffers[buffer]), Float::F32, layout);
        let y_out = TensorMut::contiguous(WgpuBackend::view_mut(&mut y), Float::F32, 1, ROWS);
        backend.matmul(x, &weight, y_out).unwrap();
        let [one, to] = [COLS, ROWS].map(|cols| RowLayout::contiguous(1, cols));
        let x = (from(buffer + row), Float::F32, one);
        let want = multiplied(&Reference, &host, x, (Float::F32, to));
        assert_eq!(bytes(backend, &y), want[..4 * ROWS], "{buffer} {row}");
    }
}
