//! The device, its buffers, and what it is compared with.

use std::sync::MutexGuard;

use swiglu_core::reference::Reference;
use swiglu_core::{
    ActAndMul, Backend, Element, GatedActivation, Quantization, ScaleOrder, Tensor, TensorMut,
};
use swiglu_cuda::CudaBackend;
use swiglu_testing::{Expectations, Harness, Outcome, QuantCase};

use crate::device;

pub const POISON: u8 = 0xa5;

/// The device, or a skip by name.
pub fn open() -> Option<(CudaBackend, MutexGuard<'static, ()>)> {
    device::open("quant")
}

/// A buffer of these bytes.
pub fn filled<B: Backend>(backend: &B, bytes: &[u8]) -> B::Buffer {
    swiglu_testing::filled(backend, bytes).unwrap()
}

pub fn bytes<B: Backend>(backend: &B, buffer: &B::Buffer) -> Vec<u8> {
    swiglu_testing::contents(backend, buffer).unwrap()
}

/// What the device's own activation gives, which the common suite tests.
pub fn activated<T: Element>(
    backend: &CudaBackend,
    op: &GatedActivation,
    x: &[T],
    d: usize,
) -> Vec<T> {
    let rows = x.len() / (2 * d);
    let input = filled(backend, bytemuck::cast_slice(x));
    let mut output = backend.alloc(rows * d * size_of::<T>()).unwrap();
    let input = Tensor::contiguous(&input, T::DTYPE, rows, 2 * d);
    let to = TensorMut::contiguous(&mut output, T::DTYPE, rows, d);
    backend.act_and_mul(op, input, to).unwrap();
    let chunks = bytes(backend, &output);
    let chunks = chunks.chunks_exact(size_of::<T>());
    chunks.map(bytemuck::pod_read_unaligned).collect()
}

/// Rows of y as the reference quantizes them.
pub fn quantized<T: Element>(kind: (Quantization, ScaleOrder), d: usize, y: &[T]) -> Outcome {
    let reference = Harness::new(Reference, Expectations::exact());
    let case = QuantCase::new(None, kind, y.len() / d, d);
    case.run(&reference, y).unwrap()
}
