//! What the device is compared with.

use std::sync::MutexGuard;

use swiglu_core::reference::Reference;
use swiglu_core::{
    ActAndMul, Backend, Element, GatedActivation, Quantization, Quantize, QuantizedMut, RowLayout,
    ScaleLayout, ScaleOrder, Tensor, TensorMut,
};
use swiglu_cuda::CudaBackend;

use crate::device::{self, bytes, filled};

pub const POISON: u8 = 0xa5;

/// The device, or a skip by name.
pub fn open() -> Option<(CudaBackend, MutexGuard<'static, ()>)> {
    device::open("quant")
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
    let input = Tensor::contiguous(CudaBackend::view(&input), T::FLOAT, rows, 2 * d);
    let to = TensorMut::contiguous(CudaBackend::view_mut(&mut output), T::FLOAT, rows, d);
    backend.act_and_mul(op, input.into(), to).unwrap();
    let chunks = bytes(backend, &output);
    let chunks = chunks.chunks_exact(size_of::<T>());
    chunks.map(bytemuck::pod_read_unaligned).collect()
}

/// Codes and scales without gaps.
pub struct Codes {
    pub codes: Vec<u8>,
    pub scales: Vec<u8>,
}

/// Rows of y as the reference quantizes them.
pub fn quantized<T: Element>(
    (quant, order): (Quantization, ScaleOrder),
    d: usize,
    y: &[T],
) -> Codes {
    let layout = RowLayout::contiguous(y.len() / d, d);
    let groups = quant.groups(d);
    let scale_layout = ScaleLayout::contiguous(quant.format(), order, layout.rows, groups);
    let mut codes = vec![POISON; y.len()];
    let mut scales = vec![POISON; scale_layout.bytes().unwrap()];
    let output = QuantizedMut {
        codes: &mut codes[..],
        layout,
        scales: &mut scales[..],
        scale_layout,
    };
    let input = Tensor::from_slice(y, layout);
    Reference.quantize(&quant, input, output).unwrap();
    Codes { codes, scales }
}
