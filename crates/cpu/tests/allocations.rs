//! A second call allocates nothing: neither on the caller's thread nor in the pool.
#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use swiglu_core::{
    ActAndMul, Backend, ExpertsShape, Float, GateUp, GatedActivation, GroupedMatmul, HostBuffer,
    HostGate, HostWeight, Matmul, QuantOptions, Quantization, Quantize, QuantizedMut, Router,
    Routes, Routing, RowLayout, ScaleLayout, ScaleOrder, Selection, Tensor, TensorMut, Tokens,
    WeightFormat,
};
use swiglu_cpu::CpuBackend;

/// The system's allocator, and how often it was asked for memory on threads that count.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Whether what this thread allocates counts: not what the test harness does beside the test.
    static COUNTS: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: all calls go to the system's allocator as they come.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTS.get() {
            ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        }
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

/// Calls before the first that counts, and how many count.
#[derive(Clone, Copy)]
struct Calls {
    first: usize,
    counted: usize,
}

impl Calls {
    /// Allocations of those that count.
    fn allocations(self, mut call: impl FnMut()) -> usize {
        (0..self.first).for_each(|_| call());
        let before = ALLOCATIONS.load(Ordering::SeqCst);
        (0..self.counted).for_each(|_| call());
        ALLOCATIONS.load(Ordering::SeqCst) - before
    }
}

const FLOAT: Float = Float::BF16;

fn zeros(elements: usize) -> HostBuffer {
    HostBuffer::zeroed(elements * FLOAT.size()).unwrap()
}

/// Allocations of second calls of an activation, alone and quantized, on T rows of d results.
fn activations(backend: &CpuBackend, rows: usize, d: usize, calls: Calls) -> [usize; 3] {
    let op = GatedActivation::deepseek_v4();
    let (input, mut output) = (zeros(rows * 2 * d), zeros(rows * d));
    let merged = Tensor::contiguous(input.bytes(), FLOAT, rows, 2 * d);
    let halves = Tensor::contiguous(input.bytes(), FLOAT, rows, d);
    let split = GateUp::Split {
        gate: halves,
        up: halves,
    };
    let [merged, split] = [merged.into(), split].map(|input: GateUp<'_, CpuBackend>| {
        calls.allocations(|| {
            let to = TensorMut::contiguous(output.bytes_mut(), FLOAT, rows, d);
            backend.act_and_mul(&op, input, to).unwrap();
        })
    });
    let quant = Quantization::deepseek_v4();
    let scale_layout =
        ScaleLayout::contiguous(quant.format(), ScaleOrder::RowMajor, rows, quant.groups(d));
    let mut scales = HostBuffer::zeroed(scale_layout.bytes().unwrap()).unwrap();
    let quantized = calls.allocations(|| {
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
fn matmuls(backend: &CpuBackend, rows: usize, [n, k]: [usize; 2], calls: Calls) -> [usize; 2] {
    let data = vec![0; n * k];
    let ones = vec![127; n.div_ceil(128) * k.div_ceil(128)];
    let part = || HostWeight::new([n, k], WeightFormat::DEEPSEEK_V4, &data, &ones).unwrap();
    let down = backend.load_weight(&[part()]).unwrap();
    let gate_up = backend.load_gate_up(part(), part()).unwrap();
    let (x, mut y, mut act) = (zeros(rows * k), zeros(rows * 2 * n), zeros(rows * n));
    let x = Tensor::contiguous(CpuBackend::view(&x), FLOAT, rows, k);
    let plain = calls.allocations(|| {
        let to = TensorMut::contiguous(act.bytes_mut(), FLOAT, rows, n);
        backend.matmul(x, &down, to).unwrap();
    });
    let op = GatedActivation::deepseek_v4();
    let gated = calls.allocations(|| {
        let between = TensorMut::contiguous(y.bytes_mut(), FLOAT, rows, 2 * n);
        let to = TensorMut::contiguous(act.bytes_mut(), FLOAT, rows, n);
        backend
            .matmul_act_and_mul(&op, x, &gate_up, between, to)
            .unwrap();
    });
    [plain, gated]
}

/// Allocations of second calls of a layer of routed experts: the choice, its two halves in bf16, and
/// the same with FP8 inputs.
fn experts(backend: &CpuBackend, tokens: usize, calls: Calls) -> [usize; 3] {
    let (e, h, i) = (8, 128, 64);
    let routing = Routing::new(e, 2, 1.5, true, Selection::Score).unwrap();
    let format = WeightFormat::Float(FLOAT);
    let data = vec![0; 2 * h * i];
    let wide = || HostWeight::new([i, h], format, &data, &[]).unwrap();
    let down = || HostWeight::new([h, i], format, &data, &[]).unwrap();
    let shape = ExpertsShape {
        range: 0..e,
        hidden: h,
        intermediate: i,
        gate_up: format,
        down: format,
    };
    let mut experts = backend.alloc_experts(shape).unwrap();
    for _ in 0..e {
        backend
            .load_expert(&mut experts, wide(), wide(), down())
            .unwrap();
    }
    let weight = vec![0; 2 * e * h];
    let weight = HostWeight::new([e, h], format, &weight, &[]).unwrap();
    let gate = HostGate::new(routing, weight, Some(vec![0.0; e]), None, None).unwrap();
    let gate = backend.load_gate(&gate).unwrap();
    let (x, mut act, mut y) = (zeros(tokens * h), zeros(tokens * 2 * i), zeros(tokens * h));
    let x = Tensor::contiguous(CpuBackend::view(&x), FLOAT, tokens, h);
    let mut routes = Routes::new(backend, &routing, tokens).unwrap();
    let mut scratch = HostBuffer::zeroed(1 << 22).unwrap();
    let routed = calls.allocations(|| {
        let scratch = scratch.bytes_mut();
        let tokens = Tokens::default();
        backend
            .route(&gate, x, tokens, scratch, &mut routes)
            .unwrap();
    });
    let op = GatedActivation::deepseek_v4();
    let v4 = Quantization::deepseek_v4();
    let [plain, quantized] = [None, Some(&v4)].map(|quant| {
        calls.allocations(|| {
            let to = TensorMut::contiguous(act.bytes_mut(), FLOAT, tokens * 2, i);
            let memory = scratch.bytes_mut();
            backend
                .grouped_matmul_act_and_mul(&op, quant, x, &experts, &routes, memory, to)
                .unwrap();
            let act = Tensor::contiguous(act.bytes(), FLOAT, tokens * 2, i);
            let to = TensorMut::contiguous(y.bytes_mut(), FLOAT, tokens, h);
            let memory = scratch.bytes_mut();
            backend
                .grouped_matmul_sum(quant, act, &experts, &routes, Some(x), memory, to)
                .unwrap();
        })
    });
    [routed, plain, quantized]
}

/// Makes both threads of a pool take a task from the other, which rayon allocates for once a thread.
fn take_a_task_each() {
    let [first, second] = [Barrier::new(2), Barrier::new(2)];
    rayon::join(
        || first.wait(),
        || {
            first.wait();
            rayon::join(|| second.wait(), || second.wait())
        },
    );
}

/// One test, as the allocator counts what all threads do.
#[test]
fn a_second_call_allocates_nothing() {
    COUNTS.set(true);
    let second = Calls {
        first: 1,
        counted: 1,
    };
    // On the caller's thread, where no pool hears of it.
    let backend = CpuBackend::new();
    assert_eq!(activations(&backend, 4, 2048, second), [0; 3]);
    assert_eq!(matmuls(&backend, 2, [16, 128], second), [0; 2]);
    assert_eq!(experts(&backend, 1, second), [0; 3]);

    let threads = rayon::ThreadPoolBuilder::new()
        .num_threads(2)
        .start_handler(|_| COUNTS.set(true));
    let pool = Arc::new(threads.build().unwrap());
    // From a thread of the pool.
    let warm = Calls {
        first: 1,
        counted: 200,
    };
    pool.install(|| {
        take_a_task_each();
        assert_eq!(activations(&backend, 64, 2048, warm), [0; 3]);
        assert_eq!(matmuls(&backend, 8, [256, 512], warm), [0; 2]);
        assert_eq!(experts(&backend, 64, warm), [0; 3]);
    });
    // From a thread outside of it. A call is handed over in rayon's queue, whose blocks have room for
    // some sixty: nothing else is allocated.
    let backend = CpuBackend::new().with_pool(pool);
    let most = warm.counted / 50;
    let counts = activations(&backend, 64, 2048, warm);
    assert!(counts.iter().all(|&count| count <= most), "{counts:?}");
    let counts = matmuls(&backend, 8, [256, 512], warm);
    assert!(counts.iter().all(|&count| count <= most), "{counts:?}");
}
