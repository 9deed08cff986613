//! Several streams over one set of kernels and weights.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

use half::{bf16, f16};
use swiglu_conformance::inputs::Numbers;
use swiglu_core::{Backend, E4M3, Float, HostWeight, Matmul, Tensor, TensorMut, WeightFormat};
use swiglu_cuda::{CudaBackend, CudaWeight};

mod common;
use common::{bytes, filled, open};

/// So many rows that an FP8 weight is decoded before the matmul, or brought back to rows where it is
/// packed, to memory that is the stream's.
const T: usize = 320;
const N: usize = 512;
const K: usize = 384;

fn load(backend: &CudaBackend, [n, k]: [usize; 2], seed: u64) -> CudaWeight {
    let mut numbers = Numbers::new(seed);
    let code = |_| E4M3::from_f32_saturating(numbers.within(400.0)).0;
    let codes: Vec<u8> = (0..n * k).map(code).collect();
    let scales = vec![120; n.div_ceil(128) * k.div_ceil(128)];
    let weight = HostWeight::new([n, k], WeightFormat::DEEPSEEK_V4, &codes, &scales).unwrap();
    backend.load_weight(&[weight]).unwrap()
}

/// The products of a fixed x with a weight, in bytes, after so many times: x in bf16, for which the
/// weight is decoded, and in f16, for which its codes are multiplied.
fn product(backend: &CudaBackend, weight: &CudaWeight, times: usize) -> Vec<u8> {
    let [n, k] = backend.weight_shape(weight);
    let x: Vec<bf16> = Numbers::new(3).values(T * k, 4.0);
    let halves: Vec<f16> = x.iter().map(|x| f16::from_f32(x.to_f32())).collect();
    let mut products = [
        (Float::BF16, bytemuck::cast_slice(&x)),
        (Float::F16, bytemuck::cast_slice(&halves)),
    ]
    .map(|(float, x)| {
        let y = backend.alloc(2 * T * n).unwrap();
        (float, filled(backend, x), y)
    });
    for _ in 0..times {
        for (float, x, y) in &mut products {
            let from = Tensor::contiguous(CudaBackend::view(x), *float, T, k);
            let to = TensorMut::contiguous(CudaBackend::view_mut(y), *float, T, n);
            backend.matmul(from, weight, to).unwrap();
        }
    }
    products
        .iter()
        .flat_map(|(_, _, y)| bytes(backend, y))
        .collect()
}

/// The same backend on a stream that the driver runs beside the others.
fn beside(backend: &CudaBackend) -> CudaBackend {
    let stream = backend.stream().context().new_stream().unwrap();
    backend.on(stream).unwrap()
}

#[test]
fn another_stream_shares_the_kernels_and_loads_none() {
    let Some((backend, _turn)) = open("streams") else {
        return;
    };
    let other = beside(&backend);
    assert!(std::ptr::eq(backend.activations(), other.activations()));
    assert!(std::ptr::eq(backend.quantizers(), other.quantizers()));
    assert_eq!(backend.description(), other.description());
    assert_ne!(backend.stream().cu_stream(), other.stream().cu_stream());
}

/// Each weight's product on its own stream, in threads side by side, has the bits that it has
/// alone: with one memory to decode into for both, one would multiply the other's weight.
#[test]
fn matmuls_on_two_streams_at_once_do_not_meet() {
    let Some((backend, _turn)) = open("streams") else {
        return;
    };
    let weights = [load(&backend, [N, K], 1), load(&backend, [N, K], 2)];
    let alone = weights.each_ref().map(|w| product(&backend, w, 1));
    assert!(alone[0] != alone[1]);
    let shared = &beside(&backend);
    std::thread::scope(|scope| {
        for (weight, want) in weights.iter().zip(&alone) {
            let mine = beside(&backend);
            scope.spawn(move || {
                for _ in 0..20 {
                    assert!(product(&mine, weight, 50) == *want);
                }
            });
        }
        // And on one stream, from two threads.
        for (weight, want) in weights.iter().zip(&alone) {
            scope.spawn(move || {
                for _ in 0..20 {
                    assert!(product(shared, weight, 50) == *want);
                }
            });
        }
    });
}

/// A weight that one backend loads, larger than all before, runs on the others in the same way.
#[test]
fn a_larger_weight_of_one_runs_on_all() {
    let Some((backend, _turn)) = open("streams") else {
        return;
    };
    let small = load(&backend, [N, K], 1);
    let others = [beside(&backend), beside(&backend)];
    let want = product(&backend, &small, 1);
    let large = load(&others[0], [4 * N, K], 5);
    let want_of_large = product(&others[0], &large, 1);
    for one in [&backend, &others[0], &others[1], &beside(&others[1])] {
        assert!(product(one, &large, 1) == want_of_large);
        assert!(product(one, &small, 1) == want);
    }
    // The backend that the kernels were loaded by may go first.
    drop(backend);
    assert!(product(&others[1], &large, 1) == want_of_large);
}
