//! Calls on memory that somebody else owns: cudarc's slices, addresses, and halves in two tensors.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

use cudarc::driver::{CudaContext, DeviceRepr};
use half::{bf16, f16};
use swiglu_conformance::inputs::Numbers;
use swiglu_core::{
    ActAndMul, Backend, Element, Float, GateUp, GatedActivation, HostWeight, Matmul, QuantOptions,
    Quantization, Quantize, QuantizedMut, Rounding, RowLayout, ScaleFormat, ScaleLayout,
    ScaleOrder, Tensor, TensorMut, WeightFormat,
};
use swiglu_cuda::{CudaBackend, DeviceView, DeviceViewMut, LaunchOptions, cudarc, probe};

mod common;
use common::{bytes, filled, open, turn};

const POISON: u8 = 0xa5;

/// Rows of `d` elements `stride` apart, behind `offset` elements of poison.
struct Rows<T> {
    all: Vec<T>,
    layout: RowLayout,
}

impl<T: Element> Rows<T> {
    fn new(values: &[T], d: usize, stride: usize, offset: usize) -> Self {
        let rows = values.len() / d;
        let layout = RowLayout::contiguous(rows, d).with_stride(stride);
        let layout = layout.with_offset(offset);
        let mut all = vec![T::from_f32(f32::NAN); offset + rows * stride];
        for (row, values) in values.chunks_exact(d).enumerate() {
            all[layout.row(row)].copy_from_slice(values);
        }
        Self { all, layout }
    }
}

/// Gate and up in one matrix, as the operation has them.
fn merged<T: Element>(op: &GatedActivation, gate: &[T], up: &[T], d: usize) -> Vec<T> {
    let mut all = vec![T::default(); 2 * gate.len()];
    for (at, (&gate, &up)) in gate.iter().zip(up).enumerate() {
        let (row, j) = (at / d, at % d);
        let (g, u) = op.positions(d, j);
        all[row * 2 * d + g] = gate;
        all[row * 2 * d + u] = up;
    }
    all
}

/// The outputs' bytes of an input in buffers.
fn activate<T: Element>(
    backend: &CudaBackend,
    op: &GatedActivation,
    input: GateUp<'_, CudaBackend>,
    d: usize,
) -> Vec<u8> {
    let rows = input.rows();
    let mut y = filled(backend, &vec![POISON; rows * d * size_of::<T>()]);
    let to = TensorMut::contiguous(CudaBackend::view_mut(&mut y), T::FLOAT, rows, d);
    backend.act_and_mul(op, input, to).unwrap();
    bytes(backend, &y)
}

/// Codes and scales of an input in buffers.
fn activate_and_quantize(
    backend: &CudaBackend,
    (op, quant): (&GatedActivation, &Quantization),
    input: GateUp<'_, CudaBackend>,
    d: usize,
) -> [Vec<u8>; 2] {
    let rows = input.rows();
    let order = ScaleOrder::RowMajor;
    let scale_layout = ScaleLayout::contiguous(quant.format(), order, rows, quant.groups(d));
    let mut codes = filled(backend, &vec![POISON; rows * d]);
    let mut scales = filled(backend, &vec![POISON; scale_layout.bytes().unwrap()]);
    let output = QuantizedMut {
        codes: CudaBackend::view_mut(&mut codes),
        layout: RowLayout::contiguous(rows, d),
        scales: CudaBackend::view_mut(&mut scales),
        scale_layout,
    };
    let options = QuantOptions::default();
    backend
        .act_and_mul_quant(op, quant, input, output, options)
        .unwrap();
    [bytes(backend, &codes), bytes(backend, &scales)]
}

/// Halves in two matrices give the bits that they give in one, wherever their rows lie: with the
/// strides of one, with strides of their own, aligned or not.
#[test]
fn halves_in_two_tensors_give_the_bits_of_one() {
    fn sweep<T: Element>(backend: &CudaBackend) {
        for (op, rounding) in GatedActivation::ALL
            .into_iter()
            .flat_map(|op| [Rounding::Official, Rounding::Eager].map(|r| (op, r)))
        {
            let op = op.with_rounding(rounding);
            for (rows, d) in [(3, 256), (5, 77), (1, 64)] {
                let gate: Vec<T> = Numbers::new(1).values(rows * d, 15.0);
                let up: Vec<T> = Numbers::new(2).values(rows * d, 15.0);
                let one = filled(backend, bytemuck::cast_slice(&merged(&op, &gate, &up, d)));
                let view = CudaBackend::view(&one);
                let one = Tensor::contiguous(view, T::FLOAT, rows, 2 * d).into();
                let want = activate::<T>(backend, &op, one, d);
                let v4 = (&op, &Quantization::deepseek_v4());
                let f32s = Quantization::new(32, ScaleFormat::F32).unwrap();
                let f32s = (&op, &f32s);
                let codes = [v4, f32s].map(|how| activate_and_quantize(backend, how, one, d));
                // Strides, and elements before the first.
                for ([gate_stride, up_stride], [gate_at, up_at]) in [
                    ([d, d], [0, 0]),
                    ([d + 16, d + 16], [16, 32]),
                    ([d, d + 16], [0, 16]),
                    ([2 * d, d], [0, 0]),
                    ([d + 1, d + 3], [0, 1]),
                ] {
                    let gate = Rows::new(&gate, d, gate_stride, gate_at);
                    let up = Rows::new(&up, d, up_stride, up_at);
                    let gates = filled(backend, bytemuck::cast_slice(&gate.all));
                    let ups = filled(backend, bytemuck::cast_slice(&up.all));
                    let split = GateUp::Split {
                        gate: Tensor::new(CudaBackend::view(&gates), T::FLOAT, gate.layout),
                        up: Tensor::new(CudaBackend::view(&ups), T::FLOAT, up.layout),
                    };
                    let place = format!("{op} {rows} x {d}, strides {gate_stride} {up_stride}");
                    assert_eq!(activate::<T>(backend, &op, split, d), want, "{place}");
                    for (how, want) in [v4, f32s].into_iter().zip(&codes) {
                        let got = activate_and_quantize(backend, how, split, d);
                        assert_eq!(got, *want, "{} {place}", how.1);
                    }
                }
            }
        }
    }
    let Some((backend, _turn)) = open("views") else {
        return;
    };
    sweep::<f32>(&backend);
    sweep::<f16>(&backend);
    sweep::<bf16>(&backend);
}

/// Slices that another stream writes and reads: with cudarc's events, which are on by default, a
/// matmul and an activation on the backend's stream come after the one and before the other.
#[test]
fn slices_are_used_in_the_order_of_their_streams() {
    let turn = turn();
    let opened = probe().map_err(|e| e.to_string()).and_then(|info| {
        let context = CudaContext::new(info.ordinal).map_err(|e| e.to_string())?;
        let [own, other] = [context.new_stream(), context.new_stream()];
        let own = own.map_err(|e| e.to_string())?;
        let backend = CudaBackend::from_stream(own).map_err(|e| e.to_string())?;
        Ok((backend, other.map_err(|e| e.to_string())?))
    });
    let (backend, other) = match opened {
        Ok(opened) => opened,
        Err(reason) => return swiglu_conformance::may_skip("cuda", &reason, "views"),
    };
    let (t, h, d) = (512, 1024, 512);
    let numbers: Vec<bf16> = Numbers::new(5).values(2 * d * h, 0.25);
    let format = WeightFormat::Float(Float::BF16);
    let data = bytemuck::cast_slice(&numbers);
    let weight = HostWeight::new([2 * d, h], format, data, &[]).unwrap();
    let weight = backend.load_weight(&[weight]).unwrap();
    let op = GatedActivation::deepseek_v4();

    let mut x = other.alloc_zeros::<bf16>(t * h).unwrap();
    let mut gate_up = other.alloc_zeros::<bf16>(t * 2 * d).unwrap();
    let mut y = other.alloc_zeros::<bf16>(t * d).unwrap();
    for seed in 0..30 {
        let new: Vec<bf16> = Numbers::new(seed).values(t * h, 4.0);
        other.memcpy_htod(&new, &mut x).unwrap();
        {
            let x = backend.read_slice(&x).unwrap();
            let mut gate_up = backend.write_slice(&mut gate_up).unwrap();
            let mut y = backend.write_slice(&mut y).unwrap();
            let from = Tensor::contiguous(x.view(), Float::BF16, t, h);
            let between = TensorMut::contiguous(gate_up.view_mut(), Float::BF16, t, 2 * d);
            let to = TensorMut::contiguous(y.view_mut(), Float::BF16, t, d);
            backend
                .matmul_act_and_mul(&op, from, &weight, between, to)
                .unwrap();
        }
        let got = other.clone_dtoh(&y).unwrap();
        // The same through buffers of the backend's own.
        let from = filled(&backend, bytemuck::cast_slice(&new));
        let mut between = backend.alloc(t * 2 * d * 2).unwrap();
        let mut to = backend.alloc(t * d * 2).unwrap();
        let view = CudaBackend::view(&from);
        backend
            .matmul_act_and_mul(
                &op,
                Tensor::contiguous(view, Float::BF16, t, h),
                &weight,
                TensorMut::contiguous((&mut between).into(), Float::BF16, t, 2 * d),
                TensorMut::contiguous((&mut to).into(), Float::BF16, t, d),
            )
            .unwrap();
        let want = bytes(&backend, &to);
        assert!(bytemuck::cast_slice::<bf16, u8>(&got) == want, "{seed}");
    }
    drop(turn);
}

/// A part of a slice, an address inside of a buffer, and halves in two slices.
#[test]
fn parts_and_addresses_are_used_in_place() {
    fn sweep<T: Element + DeviceRepr>(backend: &CudaBackend) {
        let (op, rows, d) = (GatedActivation::deepseek_v4(), 6, 96);
        let stream = backend.stream();
        let gate: Vec<T> = Numbers::new(8).values(rows * d, 15.0);
        let up: Vec<T> = Numbers::new(9).values(rows * d, 15.0);
        let one = filled(backend, bytemuck::cast_slice(&merged(&op, &gate, &up, d)));
        let view = CudaBackend::view(&one);
        let input = Tensor::contiguous(view, T::FLOAT, rows, 2 * d);
        let want = activate::<T>(backend, &op, input.into(), d);

        // The ups behind the gates in one slice, of which each half is lent.
        let both = stream.clone_htod(&[&gate[..], &up].concat()).unwrap();
        let (gates, ups) = (both.slice(..rows * d), both.slice(rows * d..));
        let (gates, ups) = (
            backend.read_slice(&gates).unwrap(),
            backend.read_slice(&ups).unwrap(),
        );
        let half = |view| Tensor::contiguous(view, T::FLOAT, rows, d);
        let split = GateUp::Split {
            gate: half(gates.view()),
            up: half(ups.view()),
        };
        assert_eq!(activate::<T>(backend, &op, split, d), want);

        // The same by the activation's own entry.
        let (gate, up) = (both.slice(..rows * d), both.slice(rows * d..));
        let mut y = stream.clone_htod(&vec![T::default(); rows * d]).unwrap();
        let options = LaunchOptions::default();
        backend
            .activations()
            .act_and_mul_split(stream, &op, [&gate, &up], &mut y, d, options)
            .unwrap();
        let got = stream.clone_dtoh(&y).unwrap();
        assert_eq!(bytemuck::cast_slice::<T, u8>(&got), want);

        // The third row on, by its address.
        let size = size_of::<T>();
        let from = 2 * 2 * d * size;
        let mut y = filled(backend, &vec![POISON; (rows - 2) * d * size]);
        // SAFETY: the buffers hold these rows and live until the results have been read.
        let (input, output) = unsafe {
            let (at, len) = (one.address() + from as u64, one.len() - from);
            let output = DeviceViewMut::from_raw(y.address(), y.len());
            (DeviceView::from_raw(at, len), output)
        };
        let input = Tensor::contiguous(input, T::FLOAT, rows - 2, 2 * d);
        let output = TensorMut::contiguous(output, T::FLOAT, rows - 2, d);
        backend.act_and_mul(&op, input.into(), output).unwrap();
        assert_eq!(bytes(backend, &y), want[2 * d * size..]);

        // A byte off, and too short.
        let odd = view.slice(1..view.len()).unwrap();
        let odd = Tensor::contiguous(odd, T::FLOAT, rows - 1, 2 * d);
        let mut error = |input: Tensor<'_, CudaBackend>| {
            let to = CudaBackend::view_mut(&mut y);
            let to = TensorMut::contiguous(to, T::FLOAT, input.layout.rows, d);
            let error = backend.act_and_mul(&op, input.into(), to).unwrap_err();
            error.to_string()
        };
        let odd = Tensor {
            layout: RowLayout::contiguous(1, 2 * d),
            ..odd
        };
        let message = error(odd);
        let expected = format!("input: expected an address aligned to {size} bytes");
        assert!(message.starts_with(&expected), "{message}");
        let short = view.slice(0..view.len() / 2).unwrap();
        let message = error(Tensor::contiguous(short, T::FLOAT, rows - 2, 2 * d));
        assert!(message.starts_with("input: expected at least"), "{message}");
    }
    let Some((backend, _turn)) = open("views") else {
        return;
    };
    sweep::<f32>(&backend);
    sweep::<f16>(&backend);
    sweep::<bf16>(&backend);
}

/// A matmul reads x and writes y between other elements, at addresses that only their types divide.
#[test]
fn matmuls_run_on_views_at_any_alignment() {
    let Some((backend, _turn)) = open("views") else {
        return;
    };
    let (t, n, k) = (9, 48, 128);
    let numbers: Vec<bf16> = Numbers::new(3).values(n * k, 1.0);
    let data = bytemuck::cast_slice(&numbers);
    let codes = vec![0x38; n * k];
    for (format, data, scales) in [
        (WeightFormat::Float(Float::BF16), data, &[][..]),
        (WeightFormat::DEEPSEEK_V4, &codes[..], &[127]),
    ] {
        let weight = HostWeight::new([n, k], format, data, scales).unwrap();
        let loaded = backend.load_weight(std::slice::from_ref(&weight)).unwrap();
        let x: Vec<bf16> = Numbers::new(4).values(t * k, 4.0);
        for at in [0, 1, 8] {
            let shifted = Rows::new(&x, k, k, at);
            let x_buffer = filled(&backend, bytemuck::cast_slice(&shifted.all));
            let mut y = filled(&backend, &vec![POISON; 4 * (t * n + at)]);
            let from = CudaBackend::view(&x_buffer)
                .slice(2 * at..x_buffer.len())
                .unwrap();
            let to = CudaBackend::view_mut(&mut y);
            let to = to.slice(4 * at..4 * (t * n + at)).unwrap();
            let from = Tensor::contiguous(from, Float::BF16, t, k);
            let to = TensorMut::contiguous(to, Float::F32, t, n);
            backend.matmul(from, &loaded, to).unwrap();
            let got = bytes(&backend, &y);
            assert!(got[..4 * at].iter().all(|&b| b == POISON));
            for (place, got) in got[4 * at..].chunks_exact(4).enumerate() {
                let (row, j) = (place / n, place % n);
                let terms = (0..k).map(|i| f64::from(x[row * k + i].to_f32()) * weight.get(j, i));
                let (sum, size) = terms.fold((0.0, 0.0), |(s, a), p: f64| (s + p, a + p.abs()));
                let got: f32 = bytemuck::pod_read_unaligned(got);
                let lost = f64::from(f32::EPSILON) * k as f64 * size;
                assert!(
                    (f64::from(got) - sum).abs() <= lost,
                    "{format} {at} {place}"
                );
            }
        }
    }
}
