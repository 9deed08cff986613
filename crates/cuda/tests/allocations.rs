//! Calls allocate nothing on the host once their shape has been seen.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use swiglu_core::{
    Accumulation, ActAndMul, ExpertsShape, Float, GateUp, GatedActivation, GroupedMatmul, HostGate,
    HostWeight, Matmul, QuantOptions, Quantization, Quantize, Quantized, QuantizedMut, Router,
    Routes, Routing, RowLayout, ScaleLayout, ScaleOrder, Selection, Tensor, TensorMut, Tokens,
    WeightFormat,
};
use swiglu_cuda::{CudaBackend, CudaBuffer, CudaWeight};

mod common;
use common::open;

thread_local! {
    /// Allocations of this thread: the driver's threads and other tests have their own.
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is the system allocator's; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: by this function's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        // SAFETY: by this function's contract.
        unsafe { System.dealloc(address, layout) }
    }

    unsafe fn realloc(&self, address: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: by this function's contract.
        unsafe { System.realloc(address, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs a call twice; the second time it must not allocate.
fn second_call_allocates_nothing(what: &str, mut call: impl FnMut() -> swiglu_core::Result<()>) {
    call().unwrap();
    let before = COUNT.with(Cell::get);
    let result = call();
    let allocations = COUNT.with(Cell::get) - before;
    result.unwrap();
    assert_eq!(allocations, 0, "{what}");
}

const T: usize = 96;
const H: usize = 256;
const I: usize = 128;

/// The memory of an MLP of width [`H`] and its inner width [`I`].
struct Memory {
    x: CudaBuffer,
    gate_up: CudaBuffer,
    act: CudaBuffer,
    y: CudaBuffer,
    codes: CudaBuffer,
    scales: CudaBuffer,
    scratch: CudaBuffer,
}

impl Memory {
    fn new(backend: &CudaBackend) -> Self {
        let zeros = |bytes: usize| common::filled(backend, &vec![0; bytes]);
        Self {
            x: zeros(2 * T * H),
            gate_up: zeros(2 * T * 2 * I),
            act: zeros(2 * T * I),
            y: zeros(2 * T * H),
            codes: zeros(T * H),
            scales: zeros(T * H),
            scratch: zeros(2 * T * H),
        }
    }
}

fn read(buffer: &CudaBuffer, cols: usize) -> Tensor<'_, CudaBackend> {
    Tensor::contiguous(buffer.into(), Float::BF16, T, cols)
}

fn write(buffer: &mut CudaBuffer, cols: usize) -> TensorMut<'_, CudaBackend> {
    TensorMut::contiguous(buffer.into(), Float::BF16, T, cols)
}

const fn scale_layout(quant: &Quantization, cols: usize) -> ScaleLayout {
    ScaleLayout::contiguous(quant.format(), ScaleOrder::RowMajor, T, quant.groups(cols))
}

/// Both matmuls and the activation between them, of so many rows.
fn forward(
    backend: &CudaBackend,
    rows: usize,
    [gate_up, down]: [&CudaWeight; 2],
    m: &mut Memory,
) -> swiglu_core::Result<()> {
    let op = GatedActivation::deepseek_v4();
    let half = |buffer| TensorMut::contiguous(buffer, Float::BF16, rows, I);
    let read = |buffer, cols| Tensor::contiguous(buffer, Float::BF16, rows, cols);
    let between = TensorMut::contiguous((&mut m.gate_up).into(), Float::BF16, rows, 2 * I);
    let x = read((&m.x).into(), H);
    backend.matmul_act_and_mul(&op, x, gate_up, between, half((&mut m.act).into()))?;
    let y = TensorMut::contiguous((&mut m.y).into(), Float::BF16, rows, H);
    backend.matmul(read((&m.act).into(), I), down, y)
}

/// x to codes, the matmul of codes, and the activation to codes.
fn forward_on_codes(
    backend: &CudaBackend,
    gate_up: &CudaWeight,
    m: &mut Memory,
) -> swiglu_core::Result<()> {
    let (op, quant) = (GatedActivation::deepseek_v4(), Quantization::deepseek_v4());
    let to = QuantizedMut {
        codes: (&mut m.codes).into(),
        layout: RowLayout::contiguous(T, H),
        scales: (&mut m.scales).into(),
        scale_layout: scale_layout(&quant, H),
    };
    backend.quantize(&quant, read(&m.x, H), to)?;
    let from = Quantized {
        codes: (&m.codes).into(),
        layout: RowLayout::contiguous(T, H),
        scales: (&m.scales).into(),
        scale_layout: scale_layout(&quant, H),
    };
    let (scratch, wide) = ((&mut m.scratch).into(), write(&mut m.gate_up, 2 * I));
    backend.matmul_quantized(&quant, from, gate_up, scratch, wide)?;
    let to = QuantizedMut {
        codes: (&mut m.codes).into(),
        layout: RowLayout::contiguous(T, I),
        scales: (&mut m.scales).into(),
        scale_layout: scale_layout(&quant, I),
    };
    let options = QuantOptions::default();
    let input = read(&m.gate_up, 2 * I).into();
    backend.act_and_mul_quant(&op, &quant, input, to, options)
}

#[test]
fn a_second_call_of_a_shape_allocates_nothing() {
    let Some((mut backend, _turn)) = open("allocations") else {
        return;
    };
    let mut m = Memory::new(&backend);
    for op in GatedActivation::ALL {
        second_call_allocates_nothing(&op.to_string(), || {
            backend.act_and_mul(&op, read(&m.gate_up, 2 * I).into(), write(&mut m.act, I))
        });
        second_call_allocates_nothing("two halves", || {
            let half = |buffer| Tensor::contiguous(buffer, Float::BF16, T, I);
            let input = GateUp::Split {
                gate: half((&m.gate_up).into()),
                up: half((&m.x).into()),
            };
            backend.act_and_mul(&op, input, write(&mut m.act, I))
        });
    }
    for accumulation in Accumulation::ALL {
        backend = backend.with_accumulation(accumulation);
        for format in [WeightFormat::Float(Float::BF16), WeightFormat::DEEPSEEK_V4] {
            let host = |n: usize, k: usize| {
                let data = vec![0x38; n * format.row_bytes(k)];
                let [r, c] = format.scale_grid([n, k]).unwrap();
                HostWeight::owned([n, k], format, data, vec![127; r * c]).unwrap()
            };
            let gate_up = backend.load_gate_up(host(I, H), host(I, H)).unwrap();
            let down = backend.load_weight(&[host(H, I)]).unwrap();
            let what = format!("{format}, {accumulation}");
            for rows in [1, 4, 40, T] {
                let weights = [&gate_up, &down];
                let what = format!("{what}, {rows} rows");
                second_call_allocates_nothing(&what, || forward(&backend, rows, weights, &mut m));
            }
            second_call_allocates_nothing(&what, || forward_on_codes(&backend, &gate_up, &mut m));
        }
    }
}

/// Rows of bf16 without gaps.
fn read_rows(buffer: &CudaBuffer, rows: usize, cols: usize) -> Tensor<'_, CudaBackend> {
    Tensor::contiguous(buffer.into(), Float::BF16, rows, cols)
}

fn write_rows(buffer: &mut CudaBuffer, rows: usize, cols: usize) -> TensorMut<'_, CudaBackend> {
    TensorMut::contiguous(buffer.into(), Float::BF16, rows, cols)
}

/// A router and both halves of its experts, of so many tokens, with x quantized or not.
#[test]
fn a_second_pass_of_routed_experts_allocates_nothing() {
    let Some((mut backend, _turn)) = open("allocations") else {
        return;
    };
    let op = GatedActivation::deepseek_v4();
    let routing = Routing::new(4, 2, 1.5, true, Selection::Score).unwrap();
    let format = WeightFormat::Fp4;
    let host = |n: usize, k: usize| {
        let data = vec![0x38; n * format.row_bytes(k)];
        HostWeight::owned([n, k], format, data, vec![120; n * k / 32]).unwrap()
    };
    let shape = ExpertsShape {
        range: 0..4,
        hidden: H,
        intermediate: I,
        gate_up: format,
        down: format,
    };
    let mut experts = backend.alloc_experts(shape).unwrap();
    for _ in 0..4 {
        let (gate, up, down) = (host(I, H), host(I, H), host(H, I));
        backend.load_expert(&mut experts, gate, up, down).unwrap();
    }
    let bf16 = WeightFormat::Float(Float::BF16);
    let gate = HostWeight::owned([4, H], bf16, vec![0; 4 * H * 2], Vec::new()).unwrap();
    let gate = HostGate::new(routing, gate, Some(vec![0.0; 4]), None, None).unwrap();
    let gate = backend.load_gate(&gate).unwrap();
    let zeros = |bytes: usize| common::filled(&backend, &vec![0; bytes]);
    let (x, mut act, mut y) = (zeros(2 * T * H), zeros(2 * 2 * T * I), zeros(2 * T * H));
    // Logits, x quantized, or what experts give: all are less.
    // Outputs, and the rows that are gathered.
    let mut scratch = zeros(2 * 2 * T * (H + I) + 1024);
    for accumulation in [Accumulation::MatrixUnit, Accumulation::Ordered] {
        backend = backend.with_accumulation(accumulation);
        for (rows, quant) in [1, 20, T]
            .into_iter()
            .flat_map(|rows| [None, Some(Quantization::deepseek_v4())].map(|quant| (rows, quant)))
        {
            let quant = quant.as_ref();
            let mut routes = Routes::new(&backend, &routing, rows).unwrap();
            second_call_allocates_nothing(&format!("{accumulation}, {rows} rows"), || {
                let from = read_rows(&x, rows, H);
                let tokens = Tokens::default();
                backend.route(&gate, from, tokens, (&mut scratch).into(), &mut routes)?;
                let from = read_rows(&x, rows, H);
                let to = write_rows(&mut act, 2 * rows, I);
                let (memory, routes) = ((&mut scratch).into(), &routes);
                backend
                    .grouped_matmul_act_and_mul(&op, quant, from, &experts, routes, memory, to)?;
                let from = read_rows(&act, 2 * rows, I);
                let to = write_rows(&mut y, rows, H);
                let memory = (&mut scratch).into();
                backend.grouped_matmul_sum(quant, from, &experts, routes, None, memory, to)
            });
        }
    }
}
