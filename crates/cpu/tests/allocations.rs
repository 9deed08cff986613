//! A second call allocates nothing: neither on the caller's thread nor in the pool.
#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use swiglu_core::{
    ActAndMul, Backend, Float, GateUp, GatedActivation, HostBuffer, HostWeight, Matmul,
    QuantOptions, Quantization, Quantize, QuantizedMut, RowLayout, ScaleLayout, ScaleOrder, Tensor,
    TensorMut, WeightFormat,
};
use swiglu_cpu::CpuBackend;

/// The system's allocator, and how often it was asked for memory on any thread.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all calls go to the system's allocator as they come.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller answers for the layout; so below.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of `calls` calls after a first.
fn of_later_calls(calls: usize, mut call: impl FnMut()) -> usize {
    call();
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    (0..calls).for_each(|_| call());
    ALLOCATIONS.load(Ordering::SeqCst) - before
}

const FLOAT: Float = Float::BF16;

fn zeros(elements: usize) -> HostBuffer {
    HostBuffer::zeroed(elements * FLOAT.size()).unwrap()
}

/// Allocations of second calls of an activation, alone and quantized, on T rows of d results.
fn activations(backend: &CpuBackend, rows: usize, d: usize, calls: usize) -> [usize; 3] {
    let op = GatedActivation::deepseek_v4();
    let (input, mut output) = (zeros(rows * 2 * d), zeros(rows * d));
    let merged = Tensor::contiguous(input.bytes(), FLOAT, rows, 2 * d);
    let halves = Tensor::contiguous(input.bytes(), FLOAT, rows, d);
    let split = GateUp::Split {
        gate: halves,
        up: halves,
    };
    let [merged, split] = [merged.into(), split].map(|input: GateUp<'_, CpuBackend>| {
        of_later_calls(calls, || {
            let to = TensorMut::contiguous(output.bytes_mut(), FLOAT, rows, d);
            backend.act_and_mul(&op, input, to).unwrap();
        })
    });
    let quant = Quantization::deepseek_v4();
    let scale_layout =
        ScaleLayout::contiguous(quant.format(), ScaleOrder::RowMajor, rows, quant.groups(d));
    let mut scales = HostBuffer::zeroed(scale_layout.bytes().unwrap()).unwrap();
    let quantized = of_later_calls(calls, || {
        let to = QuantizedMut {
            codes: output.bytes_mut(),
            layout: RowLayout::contiguous(rows, d),
            scales: scales.bytes_mut(),
            scale_layout,
        };
        let input = Tensor::contiguous(input.bytes(), FLOAT, rows, 2 * d).into();
        let options = QuantOptions::default();
        backend
            .act_and_mul_quant(&op, &quant, input, to, options)
            .unwrap();
    });
    [merged, split, quantized]
}

/// Allocations of second calls of a matmul, and of one with an activation.
fn matmuls(backend: &CpuBackend, rows: usize, [n, k]: [usize; 2], calls: usize) -> [usize; 2] {
    let data = vec![0; n * k];
    let ones = vec![127; n.div_ceil(128) * k.div_ceil(128)];
    let part = || HostWeight::new([n, k], WeightFormat::DEEPSEEK_V4, &data, &ones).unwrap();
    let down = backend.load_weight(&[part()]).unwrap();
    let gate_up = backend.load_gate_up(part(), part()).unwrap();
    let (x, mut y, mut act) = (zeros(rows * k), zeros(rows * 2 * n), zeros(rows * n));
    let x = Tensor::contiguous(CpuBackend::view(&x), FLOAT, rows, k);
    let plain = of_later_calls(calls, || {
        let to = TensorMut::contiguous(act.bytes_mut(), FLOAT, rows, n);
        backend.matmul(x, &down, to).unwrap();
    });
    let op = GatedActivation::deepseek_v4();
    let gated = of_later_calls(calls, || {
        let between = TensorMut::contiguous(y.bytes_mut(), FLOAT, rows, 2 * n);
        let to = TensorMut::contiguous(act.bytes_mut(), FLOAT, rows, n);
        backend
            .matmul_act_and_mul(&op, x, &gate_up, between, to)
            .unwrap();
    });
    [plain, gated]
}

/// One test, as the allocator counts what all threads do.
#[test]
fn a_second_call_allocates_nothing() {
    let backend = CpuBackend::new();
    // On the caller's thread, which a pool never hears of.
    assert_eq!(activations(&backend, 4, 2048, 100), [0; 3]);
    assert_eq!(matmuls(&backend, 2, [16, 128], 100), [0; 2]);

    let threads = rayon::ThreadPoolBuilder::new().num_threads(2);
    let pool = Arc::new(threads.build().unwrap());
    // In a pool that the caller is a thread of.
    let [acts, sums] = pool.install(|| {
        let [a, b, c] = activations(&backend, 64, 2048, 100);
        let [d, e] = matmuls(&backend, 8, [256, 512], 100);
        [a + b + c, d + e]
    });
    eprintln!("inside: {acts} {sums}");
    // In a pool that calls are handed to.
    let backend = CpuBackend::new().with_pool(pool);
    let [a, b, c] = activations(&backend, 64, 2048, 1000);
    let [d, e] = matmuls(&backend, 8, [256, 512], 1000);
    eprintln!("from outside: {a} {b} {c} {d} {e}");
}
