//! Decode steps behind one another: in graphs, on two streams, again and again.

use half::bf16;
use swiglu_conformance::inputs::Numbers;
use swiglu_core::{Backend, Float, GatedActivation, Matmul, Tensor, TensorMut, WeightFormat};
use swiglu_cuda::cudarc::driver::sys;
use swiglu_cuda::{CudaBackend, CudaBuffer, CudaWeight};

use crate::common::{bytes, filled, open};
use crate::mapped::BF16;
use crate::weights::{has_steps, random};

const H: usize = 1088;
const I: usize = 1056;

/// Tokens of a call, at most.
const MOST: usize = 300;

/// An MLP of a backend's own memory.
struct Mlp {
    gate_up: CudaWeight,
    down: CudaWeight,
    x: CudaBuffer,
    between: CudaBuffer,
    act: CudaBuffer,
    y: CudaBuffer,
}

impl Mlp {
    fn new(backend: &CudaBackend, format: WeightFormat) -> Self {
        let half = |seed| random([I, H], format, seed);
        let room = |cols: usize| filled(backend, &vec![0; MOST * cols * 2]);
        Self {
            gate_up: backend.load_gate_up(half(1), half(2)).unwrap(),
            down: backend.load_weight(&[random([H, I], format, 3)]).unwrap(),
            x: room(H),
            between: room(2 * I),
            act: room(I),
            y: room(H),
        }
    }

    /// x to y, and y to x for the next.
    fn forward(&mut self, backend: &CudaBackend, t: usize) {
        let op = GatedActivation::deepseek_v4();
        let Self {
            between, act, x, y, ..
        } = self;
        for turn in 0..2 {
            let (from, to) = if turn == 0 {
                (&mut *x, &mut *y)
            } else {
                (&mut *y, &mut *x)
            };
            let (wide, narrow) = (write(between, t, 2 * I), write(act, t, I));
            backend
                .matmul_act_and_mul(&op, read(from, t, H), &self.gate_up, wide, narrow)
                .unwrap();
            backend
                .matmul(read(act, t, I), &self.down, write(to, t, H))
                .unwrap();
        }
    }
}

fn read(buffer: &CudaBuffer, t: usize, cols: usize) -> Tensor<'_, CudaBackend> {
    Tensor::contiguous(CudaBackend::view(buffer), Float::BF16, t, cols)
}

fn write(buffer: &mut CudaBuffer, t: usize, cols: usize) -> TensorMut<'_, CudaBackend> {
    TensorMut::contiguous(CudaBackend::view_mut(buffer), Float::BF16, t, cols)
}

fn x(seed: u64) -> Vec<bf16> {
    Numbers::new(seed).values(MOST * H, 2.0)
}

/// What chains of several numbers of tokens leave, step by step with waits between.
fn expected(backend: &CudaBackend, mlp: &mut Mlp, seed: u64) -> Vec<u8> {
    backend
        .upload(&mut mlp.x, bytemuck::cast_slice(&x(seed)))
        .unwrap();
    for t in TOKENS {
        mlp.forward(backend, t);
        backend.synchronize().unwrap();
    }
    bytes(backend, &mlp.x)
}

const TOKENS: [usize; 11] = [1, 8, 16, 3, 32, 33, 1, 64, 100, 200, 300];

const FORMATS: [WeightFormat; 2] = [WeightFormat::DEEPSEEK_V4, BF16];

#[test]
fn captured_chains_replay_on_new_values() {
    let Some((backend, _turn)) = open("decode") else {
        return;
    };
    if has_steps(&backend) {
        FORMATS
            .into_iter()
            .for_each(|format| captured(&backend, format));
    }
}

fn captured(backend: &CudaBackend, format: WeightFormat) {
    let mut mlp = Mlp::new(backend, format);
    let stream = backend.stream().clone();
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).unwrap();
    TOKENS.into_iter().for_each(|t| mlp.forward(backend, t));
    let graph = stream
        .end_capture(sys::CUgraphInstantiate_flags(0))
        .unwrap()
        .unwrap();
    let mut results = Vec::new();
    for seed in 0..20 {
        let want = expected(backend, &mut mlp, seed);
        for _ in 0..3 {
            backend
                .upload(&mut mlp.x, bytemuck::cast_slice(&x(seed)))
                .unwrap();
            graph.launch().unwrap();
            assert!(bytes(backend, &mlp.x) == want, "{seed}");
        }
        results.push(want);
    }
    results.dedup();
    assert_eq!(results.len(), 20);
}

#[test]
fn two_streams_do_not_disturb_each_other() {
    let Some((first, _turn)) = open("decode") else {
        return;
    };
    if !has_steps(&first) {
        return;
    }
    let stream = first.stream().context().new_stream().unwrap();
    let second = CudaBackend::from_stream(stream).unwrap();
    for format in FORMATS {
        run_both([&first, &second], format);
    }
}

fn run_both(backends: [&CudaBackend; 2], format: WeightFormat) {
    let mut mlps = backends.map(|backend| Mlp::new(backend, format));
    for seed in 0..20 {
        let want = [0, 1].map(|i| expected(backends[i], &mut mlps[i], seed + 100 * i as u64));
        for (i, mlp) in mlps.iter_mut().enumerate() {
            let x = x(seed + 100 * i as u64);
            backends[i]
                .upload(&mut mlp.x, bytemuck::cast_slice(&x))
                .unwrap();
        }
        for t in TOKENS {
            for (i, mlp) in mlps.iter_mut().enumerate() {
                mlp.forward(backends[i], t);
            }
        }
        for (i, want) in want.iter().enumerate() {
            assert!(
                bytes(backends[i], &mlps[i].x) == *want,
                "{seed}, stream {i}"
            );
        }
    }
}
