//! Which kernel quantizes follows from the size of a call: codes and scales do not.

use swiglu_conformance::inputs::Numbers;
use swiglu_core::{
    Backend, Element, GatedActivation, QuantOptions, Quantization, Quantize, QuantizedMut,
    RowLayout, ScaleFormat, ScaleLayout, ScaleOrder, Tensor, bf16, f16,
};
use swiglu_cuda::CudaBackend;

use crate::{
    common::{POISON, activated, open, quantized},
    device::{bytes, filled},
};

/// An activation's codes and a matrix's, beside those that the reference has of the device's own activations.
fn compare<T: Element>(
    backend: &CudaBackend,
    (quant, order): (Quantization, ScaleOrder),
    [rows, d]: [usize; 2],
) {
    let op = GatedActivation::deepseek_v4();
    let x: Vec<T> = Numbers::new(7).values(rows * 2 * d, 15.0);
    let y = activated(backend, &op, &x, d);
    let want = quantized((quant, order), d, &y);
    let layout = RowLayout::contiguous(rows, d);
    let scale_layout = ScaleLayout::contiguous(quant.format(), order, rows, quant.groups(d));
    let [x, y] = [x, y].map(|numbers| filled(backend, bytemuck::cast_slice(&numbers)));
    for fused in [true, false] {
        let mut codes = filled(backend, &vec![POISON; rows * d]);
        let mut scales = filled(backend, &vec![POISON; scale_layout.bytes().unwrap()]);
        let to = QuantizedMut::<CudaBackend> {
            codes: CudaBackend::view_mut(&mut codes),
            layout,
            scales: CudaBackend::view_mut(&mut scales),
            scale_layout,
        };
        let of = |cols, numbers| {
            Tensor::<CudaBackend>::contiguous(CudaBackend::view(numbers), T::FLOAT, rows, cols)
        };
        if fused {
            let (input, options) = (of(2 * d, &x).into(), QuantOptions::default());
            backend
                .act_and_mul_quant(&op, &quant, input, to, options)
                .unwrap();
        } else {
            backend.quantize(&quant, of(d, &y), to).unwrap();
        }
        let case = format!("{} {rows} x {d} {quant:?}, fused: {fused}", T::FLOAT);
        assert!(bytes(backend, &codes) == want.codes, "codes of {case}");
        assert!(bytes(backend, &scales) == want.scales, "scales of {case}");
    }
}

#[test]
fn a_call_of_any_size_gives_the_references_codes() {
    let Some((backend, _turn)) = open() else {
        return;
    };
    let powers = (Quantization::deepseek_v4(), ScaleOrder::RowMajor);
    let packed = (Quantization::deepseek_v4(), ScaleOrder::Packed);
    let f32s = Quantization::new(128, ScaleFormat::F32).unwrap();
    let f32s = (f32s, ScaleOrder::ColumnMajor);
    // Few outputs, with a last group that ends within a row and without, and more.
    for shape in [[54, 3072], [64, 3080], [70, 3072]] {
        for how in [powers, packed, f32s] {
            compare::<bf16>(&backend, how, shape);
            compare::<f16>(&backend, how, shape);
            compare::<f32>(&backend, how, shape);
        }
    }
    // Many numbers.
    for shape in [[700, 3072], [691, 3080]] {
        for how in [powers, packed, f32s] {
            compare::<bf16>(&backend, how, shape);
        }
        compare::<f16>(&backend, powers, shape);
    }
}
