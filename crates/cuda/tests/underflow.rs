//! Results whose gate's side f32 cannot hold: far below zero and tiny, with an up half that lifts
//! them back; in every form of kernel that has the formula.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

use half::{bf16, f16};
use swiglu_conformance::inputs::Numbers;
use swiglu_core::{
    ActAndMul, Backend, Element, Float, GateUp, GatedActivation, Layout, QuantOptions,
    Quantization, Quantize, QuantizedMut, Rounding, RowLayout, ScaleFormat, ScaleLayout,
    ScaleOrder, Tensor, TensorMut, reference,
};
use swiglu_cuda::{CudaBackend, CudaBuffer};

mod common;
use common::{bytes, filled, open};

/// Outputs of pairs, as rows of `d` that lie where vectors can read them, or an element off.
fn outputs<T: Element>(
    backend: &CudaBackend,
    op: &GatedActivation,
    pairs: &[(f32, f32)],
    off: usize,
) -> Vec<T> {
    let d = pairs.len();
    let mut input = vec![T::from_f32(f32::NAN); off + 2 * d];
    for (j, &(gate, up)) in pairs.iter().enumerate() {
        let (g, u) = op.positions(d, j);
        input[off + g] = T::from_f32(gate);
        input[off + u] = T::from_f32(up);
    }
    let input = filled(backend, bytemuck::cast_slice(&input));
    let mut y = backend.alloc(d * size_of::<T>()).unwrap();
    let from = Tensor::new(
        CudaBackend::view(&input),
        T::FLOAT,
        RowLayout::contiguous(1, 2 * d).with_offset(off),
    );
    let to = TensorMut::contiguous(CudaBackend::view_mut(&mut y), T::FLOAT, 1, d);
    backend.act_and_mul(op, from.into(), to).unwrap();
    let values = bytes(backend, &y);
    let values = values.chunks_exact(size_of::<T>());
    values.map(bytemuck::pod_read_unaligned).collect()
}

fn agree<T: Element>(op: &GatedActivation, (gate, up): (f32, f32), got: T, ulps: u32) {
    let (gate, up) = (T::from_f32(gate), T::from_f32(up));
    let want = reference::gated(op, gate, up);
    let same = got.is_nan() && want.is_nan() || got.ulps_between(want) <= ulps;
    assert!(
        same,
        "{op} in {}: {gate:?} {up:?}: {got:?}, not {want:?}",
        T::FLOAT
    );
}

/// The values that the contract names.
#[test]
fn what_the_contract_names_is_kept() {
    let Some((backend, _turn)) = open("underflow") else {
        return;
    };
    let plain = GatedActivation::silu_and_mul();
    let pairs = [(-128.0, 4e37), (-200.0, f32::INFINITY)];
    for off in [0, 1] {
        let y: Vec<bf16> = outputs(&backend, &plain, &pairs, off);
        assert_eq!(
            y[0],
            reference::gated(&plain, bf16::from_f32(-128.0), bf16::from_f32(4e37))
        );
        assert!(
            (-1.33e-16..-1.31e-16).contains(&y[0].to_f32()),
            "{:?}",
            y[0]
        );
        assert_eq!(y[1].to_f32(), f32::NEG_INFINITY);
        let y: Vec<f32> = outputs(&backend, &plain, &pairs, off);
        assert_eq!(y[1], f32::NEG_INFINITY);
    }
    let steep = GatedActivation::silu_and_mul_with_clamp(10.0, 1e-20, -3.5).unwrap();
    let y: Vec<bf16> = outputs(&backend, &steep, &[(-1.08e22, 0.0)], 0);
    assert!(y[0].to_f32() > 1e-25, "{:?}", y[0]);
    agree(&steep, (-1.08e22, 0.0), y[0], 1);
}

/// Gates of every depth at which the result is still a number that the type holds, with every
/// limit that lets a large up half through; for every activation.
#[test]
fn gates_far_below_zero_meet_large_ups() {
    fn sweep<T: Element>(backend: &CudaBackend, ulps: u32) {
        let gates = (0..480).map(|i| -72.0 - 0.375 * i as f32);
        let ups = [1.0, -3.0e4, 1e10, 3e20, -1e30, 3.3e38];
        let pairs: Vec<_> = gates.flat_map(|g| ups.map(|u| (g, u))).collect();
        let clamps = [10.0, 80.0, 1e30, 3e38];
        let before = clamps.map(|l| GatedActivation::silu_and_mul_with_clamp(l, 1.0, 0.0).unwrap());
        let alpha = clamps.map(|l| GatedActivation::swigluoai_and_mul(l, 1.702).unwrap());
        let after = clamps.map(|l| GatedActivation::swiglustep_and_mul(l).unwrap());
        for op in [&before[..], &alpha, &after, &GatedActivation::ALL].concat() {
            for off in [0, 1] {
                let got: Vec<T> = outputs(backend, &op, &pairs, off);
                for (&pair, got) in pairs.iter().zip(got) {
                    let want = reference::gated(&op, T::from_f32(pair.0), T::from_f32(pair.1));
                    // Below the normal numbers the contract asks for no precision, and an infinite up
                    // half meets a gate's value that f64 takes for 0 in the reference alone.
                    if want.to_f32().abs() >= f32::MIN_POSITIVE {
                        agree(&op, pair, got, ulps);
                    }
                }
            }
        }
    }
    let Some((backend, _turn)) = open("underflow") else {
        return;
    };
    sweep::<f32>(&backend, 4);
    sweep::<bf16>(&backend, 1);
    sweep::<f16>(&backend, 1);
}

/// A tiny gate's value is half of it, and may have more bits than f32 has for so small a number.
#[test]
fn tiny_gates_meet_large_ups() {
    let Some((backend, _turn)) = open("underflow") else {
        return;
    };
    let gates: Vec<f32> = (1..200)
        .flat_map(|i| [i, 7919 * i, 104_729 * i, 12_345_678 * i])
        .flat_map(|bits| [f32::from_bits(bits), -f32::from_bits(bits)])
        .collect();
    let pairs: Vec<_> = gates
        .iter()
        .flat_map(|&g| [1e10, -3e25, 3e38].map(|u| (g, u)))
        .collect();
    for op in GatedActivation::ALL {
        if op.limit().is_some() {
            continue;
        }
        for off in [0, 1] {
            let got: Vec<f32> = outputs(&backend, &op, &pairs, off);
            for (&pair, got) in pairs.iter().zip(got) {
                let want: f32 = reference::gated(&op, pair.0, pair.1);
                if want.abs() >= f32::MIN_POSITIVE {
                    agree(&op, pair, got, 4);
                }
            }
        }
    }
    let steep = GatedActivation::silu_and_mul_with_clamp(3e38, 3e38, 0.0).unwrap();
    let pairs = [(-2e-37, 1e38), (-1e-37, 2e38), (-3e-37, 3e38)];
    let got: Vec<bf16> = outputs(&backend, &steep, &pairs, 0);
    for (&pair, got) in pairs.iter().zip(got) {
        agree(&steep, pair, got, 1);
    }
}

/// A matrix of codes with a scale for each of its groups.
fn codes_of(
    [codes, scales]: &mut [CudaBuffer; 2],
    layout: ScaleLayout,
) -> QuantizedMut<'_, CudaBackend> {
    let cols = codes.len() / layout.rows;
    QuantizedMut {
        codes: codes.into(),
        layout: RowLayout::contiguous(layout.rows, cols),
        scales: scales.into(),
        scale_layout: layout,
    }
}

/// The kernels that quantize take the same values: what they give is the codes of a matrix of the
/// activation's own results, whichever way a row lies.
#[test]
fn the_fused_quantization_sees_what_the_activation_keeps() {
    let Some((backend, _turn)) = open("underflow") else {
        return;
    };
    let (rows, d) = (4, 256);
    let mut numbers = Numbers::new(21);
    let pairs: Vec<(f32, f32)> = (0..rows * d)
        .map(|_| (-72.0 - numbers.within(50.0).abs(), numbers.within(3e38)))
        .collect();
    for op in [
        GatedActivation::silu_and_mul(),
        GatedActivation::silu_and_mul_with_clamp(3e38, 1.702, 0.0).unwrap(),
        GatedActivation::gelu_quick_and_mul(),
    ] {
        assert_eq!(
            (op.layout(), op.rounding()),
            (Layout::Concatenated, Rounding::Official)
        );
        let half = |which: fn(&(f32, f32)) -> f32| -> Vec<bf16> {
            pairs
                .iter()
                .map(|pair| bf16::from_f32(which(pair)))
                .collect()
        };
        for format in ScaleFormat::ALL {
            // A floor far below the results.
            let quant = Quantization::new(128, format).unwrap();
            let quant = quant.with_floor(1e-30).unwrap();
            for gap in [0, 1] {
                let spread = |values: Vec<bf16>| -> Vec<bf16> {
                    let rows = values.chunks_exact(d);
                    rows.flat_map(|row| [row, &vec![bf16::NAN; gap][..]].concat())
                        .collect()
                };
                let [gate, up] = [half(|p| p.0), half(|p| p.1)].map(spread);
                let [gate, up] = [gate, up].map(|v| filled(&backend, bytemuck::cast_slice(&v)));
                let layout = RowLayout::contiguous(rows, d).with_stride(d + gap);
                let input = GateUp::Split {
                    gate: Tensor::new(CudaBackend::view(&gate), Float::BF16, layout),
                    up: Tensor::new(CudaBackend::view(&up), Float::BF16, layout),
                };
                let mut y = backend.alloc(2 * rows * d).unwrap();
                let to = TensorMut::contiguous((&mut y).into(), Float::BF16, rows, d);
                backend.act_and_mul(&op, input, to).unwrap();

                let order = ScaleOrder::RowMajor;
                let scale_layout = ScaleLayout::contiguous(format, order, rows, quant.groups(d));
                let mut memory = [0, 1].map(|_| {
                    let scales = scale_layout.bytes().unwrap();
                    [
                        backend.alloc(rows * d).unwrap(),
                        backend.alloc(scales).unwrap(),
                    ]
                });
                let [fused, alone] = &mut memory;
                let options = QuantOptions::default();
                backend
                    .act_and_mul_quant(&op, &quant, input, codes_of(fused, scale_layout), options)
                    .unwrap();
                let from = Tensor::contiguous((&y).into(), Float::BF16, rows, d);
                backend
                    .quantize(&quant, from, codes_of(alone, scale_layout))
                    .unwrap();
                let all = memory.map(|pair| pair.map(|buffer| bytes(&backend, &buffer)));
                assert!(all[0] == all[1], "{op} {format} {gap}");
                assert!(all[0][0].iter().any(|code| code & 0x7f != 0));
            }
        }
    }
}
