//! Matrices anywhere in a buffer of the caller's, and halves in two of them.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

mod common;

use common::{POISON, Page, open, raw, values};
use swiglu_conformance::inputs::Numbers;
use swiglu_core::{
    ActAndMul, Backend, Batch, Element, Float, GateUp, GatedActivation, HostWeight, Matmul,
    QuantOptions, Quantization, Quantize, Quantized, QuantizedMut, RowLayout, ScaleFormat,
    ScaleLayout, ScaleOrder, Tensor, TensorMut, WeightFormat, bf16, f16,
};
use swiglu_wgpu::{View, ViewMut, WgpuBackend, wgpu};

/// A call on places in pages writes what a call on buffers of its own writes, and nothing else.
fn activates_in_place<T: Element>(backend: &WgpuBackend, op: &GatedActivation, places: [usize; 2]) {
    let (rows, d) = (3, 40);
    let [from, to] = places.map(|elements| elements * size_of::<T>());
    let input = values::<T>(rows * 2 * d, 1);
    let want = backend.act_and_mul_slice(op, &input, d).unwrap();
    let mut inputs = Page::new(backend, 8192);
    inputs.put(backend, from, &input);
    let outputs = Page::new(backend, 8192);
    let (x, y) = (size_of_val(&*input), size_of_val(&*want));
    let x = Tensor::contiguous(inputs.view(from, x), T::FLOAT, rows, 2 * d);
    let out = TensorMut::contiguous(outputs.view_mut(to, y), T::FLOAT, rows, d);
    backend.act_and_mul(op, x.into(), out).unwrap();
    let mut expected = outputs.bytes.clone();
    expected[to..to + y].copy_from_slice(bytemuck::cast_slice(&want));
    let got = outputs.contents(backend);
    assert!(got == expected, "{op} in {} at {places:?}", T::FLOAT);
}

#[test]
fn activations_run_where_the_caller_has_its_rows() {
    let Some(backend) = open(false) else {
        return;
    };
    for op in [GatedActivation::deepseek_v4(), GatedActivation::gpt_oss()] {
        // From starts of bindings, whole vectors behind them, and between words.
        for places in [[0, 64], [24, 8], [1000, 72]] {
            activates_in_place::<bf16>(backend, &op, places);
            activates_in_place::<f32>(backend, &op, places);
        }
        for places in [[1, 64], [8, 3], [5, 7]] {
            // Words may not be vectors, which another kernel computes, exactly as well but for an
            // ulp: whole numbers through a function without one.
            let relu = GatedActivation::fatrelu_and_mul(0.5).unwrap();
            activates_in_place::<f16>(backend, &relu, places);
        }
    }
}

/// Halves in two matrices, of which each has its buffer, place and stride.
#[test]
fn halves_in_two_matrices_are_the_halves_of_one() {
    let Some(backend) = open(false) else {
        return;
    };
    for op in [
        GatedActivation::deepseek_v4(),
        GatedActivation::gpt_oss(),
        GatedActivation::mul_and_silu(),
        GatedActivation::kimi_k3(),
        GatedActivation::gelu_quick_and_mul(),
    ] {
        for d in [40, 13] {
            splits::<bf16>(backend, &op, d);
            splits::<f16>(backend, &op, d);
            splits::<f32>(backend, &op, d);
        }
    }
}

fn splits<T: Element>(backend: &WgpuBackend, op: &GatedActivation, d: usize) {
    const ROWS: usize = 5;
    let row = |half: usize, t: usize| values::<T>(d, (half * ROWS + t) as u64);
    let mut merged = vec![T::default(); ROWS * 2 * d];
    for t in 0..ROWS {
        for j in 0..d {
            let (gate, up) = op.positions(d, j);
            merged[2 * d * t + gate] = row(0, t)[j];
            merged[2 * d * t + up] = row(1, t)[j];
        }
    }
    let want = backend.act_and_mul_slice(op, &merged, d).unwrap();
    // Strides of equal and of different lengths; the second in whole vectors if d is.
    for gaps in [[0, 0], [8, 16], [3, 1]] {
        let layouts = gaps.map(|gap| {
            let layout = RowLayout::contiguous(ROWS, d).with_stride(d + gap);
            layout.with_offset(gap)
        });
        let halves = [0, 1].map(|half| {
            let layout = layouts[half];
            let mut data = vec![T::from_f32(f32::NAN); layout.offset + ROWS * layout.stride];
            for t in 0..ROWS {
                data[layout.row(t)].copy_from_slice(&row(half, t));
            }
            swiglu_conformance::filled(backend, bytemuck::cast_slice(&data)).unwrap()
        });
        let half = |i: usize| Tensor::new(WgpuBackend::view(&halves[i]), T::FLOAT, layouts[i]);
        let input = || GateUp::Split {
            gate: half(0),
            up: half(1),
        };
        let mut y = backend.alloc(size_of_val(&*want)).unwrap();
        let to = TensorMut::contiguous(WgpuBackend::view_mut(&mut y), T::FLOAT, ROWS, d);
        backend.act_and_mul(op, input(), to).unwrap();
        let got = swiglu_conformance::contents(backend, &y).unwrap();
        let got: &[T] = bytemuck::cast_slice(&got);
        let what = format!("{op} in {} of {d}, gaps {gaps:?}", T::FLOAT);
        // Which kernel runs follows from the places: one is right to an ulp where another is right.
        let near =
            |(a, b): (&T, &T)| a.ulps_between(*b) <= 8 * u32::from(T::FLOAT == Float::F32) + 1;
        assert!(got.iter().zip(&want).all(near), "{what}");
        if gaps != [3, 1] || d == 13 {
            assert!(got == want, "{what}");
        }
        quantizes_splits(backend, op, input(), got, &what);
    }
}

/// Codes of a fused call are those of the activation, quantized.
fn quantizes_splits<T: Element>(
    backend: &WgpuBackend,
    op: &GatedActivation,
    input: GateUp<'_, WgpuBackend>,
    activated: &[T],
    what: &str,
) {
    let rows = input.rows();
    let d = activated.len() / rows;
    let quant = Quantization::new(32, ScaleFormat::E8M0).unwrap();
    let layout = RowLayout::contiguous(rows, d);
    let groups = quant.groups(d);
    let scales = ScaleLayout::contiguous(ScaleFormat::E8M0, ScaleOrder::RowMajor, rows, groups);
    let run = |fused: bool| {
        let mut codes = backend.alloc(rows * d).unwrap();
        let mut stored = backend.alloc(rows * groups).unwrap();
        let output = QuantizedMut::<WgpuBackend> {
            codes: WgpuBackend::view_mut(&mut codes),
            layout,
            scales: WgpuBackend::view_mut(&mut stored),
            scale_layout: scales,
        };
        if fused {
            let options = QuantOptions::default();
            backend
                .act_and_mul_quant(op, &quant, input, output, options)
                .unwrap();
        } else {
            let x = bytemuck::cast_slice(activated);
            let x = swiglu_conformance::filled(backend, x).unwrap();
            let x = Tensor::new(WgpuBackend::view(&x), T::FLOAT, layout);
            backend.quantize(&quant, x, output).unwrap();
        }
        [codes, stored].map(|b| swiglu_conformance::contents(backend, &b).unwrap())
    };
    assert!(run(true) == run(false), "{what}");
}

/// A matmul by x in the middle of a page, to y in the middle of another.
#[test]
fn matmuls_run_where_the_caller_has_its_rows() {
    let Some(backend) = open(false) else {
        return;
    };
    const COLS: usize = 256;
    const ROWS: usize = 20;
    let mut numbers = Numbers::new(5);
    let mut whole = |count: usize| -> Vec<bf16> {
        let one = |_| bf16::from_f32(numbers.below(7) as f32 - 3.0);
        (0..count).map(one).collect()
    };
    let w = whole(ROWS * COLS);
    let format = WeightFormat::Float(Float::BF16);
    let host = HostWeight::new([ROWS, COLS], format, bytemuck::cast_slice(&w), &[]).unwrap();
    let weight = backend.load_weight(&[host]).unwrap();
    for tokens in [1, 5, 70] {
        let x = whole(tokens * COLS);
        let want: Vec<f32> = x
            .chunks(COLS)
            .flat_map(|x| w.chunks(COLS).map(move |w| dot(x, w)))
            .collect();
        for (from, to) in [(0, 0), (16, 8), (272, 4), (2, 12)] {
            let mut inputs = Page::new(backend, 65_536);
            inputs.put(backend, from, &x);
            let outputs = Page::new(backend, 65_536);
            let (size, y) = (size_of_val(&*x), size_of_val(&*want));
            let x = Tensor::contiguous(inputs.view(from, size), Float::BF16, tokens, COLS);
            let out = TensorMut::contiguous(outputs.view_mut(to, y), Float::F32, tokens, ROWS);
            backend.matmul(x, &weight, out).unwrap();
            let mut expected = outputs.bytes.clone();
            expected[to..to + y].copy_from_slice(bytemuck::cast_slice(&want));
            let got = outputs.contents(backend);
            assert!(got == expected, "{tokens} tokens from {from} to {to}");
        }
    }
}

fn dot(a: &[bf16], b: &[bf16]) -> f32 {
    let terms = a.iter().zip(b);
    terms.map(|(a, b)| a.to_f32() * b.to_f32()).sum()
}

/// Everything that a fused quantization reads and writes, between words of one page of each.
#[test]
fn quantizations_run_where_the_caller_has_its_rows() {
    let Some(backend) = open(false) else {
        return;
    };
    let op = GatedActivation::deepseek_v4();
    let (rows, d) = (6, 72);
    let input = values::<bf16>(rows * 2 * d, 9);
    let x = swiglu_conformance::filled(backend, bytemuck::cast_slice(&input)).unwrap();
    for (format, order) in [
        (ScaleFormat::E8M0, ScaleOrder::RowMajor),
        (ScaleFormat::E8M0, ScaleOrder::Packed),
        (ScaleFormat::F32, ScaleOrder::ColumnMajor),
    ] {
        let quant = Quantization::new(32, format).unwrap();
        let scales = ScaleLayout::contiguous(format, order, rows, quant.groups(d));
        let bytes = scales.bytes().unwrap();
        let run = |at: usize| {
            let mut options = Page::new(backend, 1024);
            options.put(backend, 4 * at, &values::<f32>(rows, 4));
            let counts = [2_u32, 0, 9].map(f32::from_bits);
            options.put(backend, 4 * at + 512, &counts);
            let mut hits = Page::new(backend, 1024);
            hits.put(backend, 4 * at, &[0.0_f32; 3]);
            let (codes, stored) = (Page::new(backend, 1024), Page::new(backend, 1024));
            let mut output = QuantizedMut::<WgpuBackend> {
                codes: codes.view_mut(at, rows * d),
                layout: RowLayout::contiguous(rows, d),
                scales: stored.view_mut(at * format.size(), bytes),
                scale_layout: scales,
            };
            let with = QuantOptions {
                route: Some(options.view(4 * at, 4 * rows)),
                batch: Some(Batch {
                    rows: 2,
                    counts: options.view(4 * at + 512, 12),
                }),
                hits: Some(hits.view_mut(4 * at, 12)),
            };
            let from = Tensor::contiguous(WgpuBackend::view(&x), Float::BF16, rows, 2 * d);
            backend
                .act_and_mul_quant(&op, &quant, from.into(), output.reborrow(), with)
                .unwrap();
            let mut back = backend.alloc(rows * d * 4).unwrap();
            let widened = WgpuBackend::view_mut(&mut back);
            let widened = TensorMut::contiguous(widened, Float::F32, rows, d);
            let read = Quantized {
                codes: codes.view(at, rows * d),
                layout: output.layout,
                scales: stored.view(at * format.size(), bytes),
                scale_layout: scales,
            };
            backend.dequantize(&quant, read, widened).unwrap();
            let part = |page: &Page, from: usize, size: usize| {
                let all = page.contents(backend);
                let untouched =
                    |(i, byte): (usize, &u8)| (from..from + size).contains(&i) || *byte == POISON;
                assert!(all.iter().enumerate().all(untouched), "{order} at {at}");
                all[from..from + size].to_vec()
            };
            [
                part(&codes, at, rows * d),
                part(&stored, at * format.size(), bytes),
                part(&hits, 4 * at, 12),
                swiglu_conformance::contents(backend, &back).unwrap(),
            ]
        };
        let want = run(0);
        for at in [1, 3, 70] {
            assert!(run(at) == want, "{format} {order} at {at}");
        }
    }
}

#[test]
fn a_part_that_is_not_in_its_buffer_is_refused() {
    let Some(backend) = open(false) else {
        return;
    };
    let page = Page::new(backend, 1024);
    let refused = |offset, size| {
        let error = View::new(&page.raw, offset, size).unwrap_err();
        error.to_string()
    };
    for (offset, size) in [(0, 1025), (1024, 1), (u64::MAX, 2), (2, u64::MAX)] {
        let error = refused(offset, size);
        assert!(
            error.starts_with("view: expected a part of 1024"),
            "{error}"
        );
    }
    assert!(View::new(&page.raw, 1024, 0).is_ok());
    let odd = page.view(1, 512);
    let input = Tensor::contiguous(odd, Float::BF16, 1, 128);
    let mut y = backend.alloc(128).unwrap();
    let y = TensorMut::contiguous(WgpuBackend::view_mut(&mut y), Float::BF16, 1, 64);
    let op = GatedActivation::deepseek_v4();
    let error = backend.act_and_mul(&op, input.into(), y).unwrap_err();
    let expected = "input: expected a view that starts at a multiple of 2 bytes";
    assert!(error.to_string().starts_with(expected), "{error}");
    let plain = raw(backend, 64, wgpu::BufferUsages::COPY_DST);
    let error = ViewMut::new(&plain, 0, 64).unwrap_err().to_string();
    assert!(
        error.starts_with("view: expected a buffer of the usage"),
        "{error}"
    );
}
