//! Quantisation against the reference: bit for bit, fused and in two steps.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

mod case;
mod mlp;
mod products;
mod raw;

use swiglu_core::reference::Reference;
use swiglu_core::{
    ActAndMulQuant, DType, Element, GatedActivation, Quantisation, Quantised, Rounding,
    ScaleFormat, ScaleLayout, ScaleOrder, Scales, Tensor, TensorMut, bf16, f16,
};
use swiglu_cuda::CudaBackend;
use swiglu_testing::inputs::{Numbers, quantisations, telling};

use case::{Case, POISON, activated, bytes, filled, open};

/// A matrix becomes the reference's codes and scales, and nothing else is touched.
fn plain<T: Element>(backend: &CudaBackend) {
    let shapes = [(1, 1), (3, 70), (2, 300), (5, 2304), (2, 2081), (83, 128)];
    for (quant, order) in quantisations().unwrap() {
        for (rows, d) in shapes {
            for (gap, offset) in [(0, 0), (16, 16), (3, 1)] {
                let case = Case {
                    order,
                    gap,
                    offset,
                    ..Case::new(None, quant, rows, d)
                };
                case.agrees::<T>(backend, &telling(rows, d, 5));
            }
        }
    }
}

#[test]
fn a_matrix_is_quantised_as_the_reference_does() {
    let Some((backend, _turn)) = open() else {
        return;
    };
    plain::<f32>(&backend);
    plain::<f16>(&backend);
    plain::<bf16>(&backend);
}

/// Every number of 16 bits beside every other of its group, and a million random floats.
#[test]
fn quotients_are_rounded_as_a_division_rounds_them() {
    fn every<T: Element>(backend: &CudaBackend, quant: Quantisation) {
        // Bits far apart: a group has many magnitudes.
        let near = (0..1 << 16).map(T::from_bits);
        let far = (0..1_u32 << 16).map(|i| T::from_bits(i.wrapping_mul(40_503) & 0xffff));
        let finite = |x: &T| x.to_f32().is_finite();
        let x: Vec<T> = near.filter(finite).chain(far.filter(finite)).collect();
        Case::new(None, quant, 1, x.len()).agrees(backend, &x);
    }
    let Some((backend, _turn)) = open() else {
        return;
    };
    for (quant, _) in quantisations().unwrap() {
        for floor in [1e-30, 1e-10, 1e-4, 1e30] {
            let quant = quant.with_floor(floor).unwrap();
            every::<f16>(&backend, quant);
            every::<bf16>(&backend, quant);
            let mut x: Vec<f32> = Numbers::new(9).values(1 << 17, 1.0);
            for (g, group) in x.chunks_mut(96).enumerate() {
                let power = 2f32.powi(g as i32 % 250 - 125);
                group.iter_mut().for_each(|x| *x *= power);
            }
            Case::new(None, quant, 2, x.len() / 2).agrees(&backend, &x);
        }
    }
}

/// The fused pass is the device's own activation and then its own, and the reference's,
/// quantisation; against the reference's activation few codes differ.
fn fused<T: Element>(backend: &CudaBackend) {
    let low = GatedActivation::silu_and_mul_with_clamp(0.5, 1.702, 1.0).unwrap();
    let eager = GatedActivation::deepseek_v4().with_rounding(Rounding::Eager);
    let mut ops = vec![low, eager];
    ops.extend(GatedActivation::ALL);
    for op in &ops {
        for (quant, order) in quantisations().unwrap() {
            for (rows, d) in [(3, 70), (2, 2304)] {
                let x: Vec<T> = telling(rows, 2 * d, 5);
                let y = activated(backend, op, &x, d);
                let case = Case {
                    order,
                    hits: true,
                    ..Case::new(Some(op), quant, rows, d)
                };
                let two = Case { op: None, ..case };
                let got = case.run(backend, &x);
                let name = format!("{op} {case:?} {}", T::DTYPE);
                let steps = two.run(backend, &y);
                assert_eq!((&got.0, &got.1), (&steps.0, &steps.1), "{name}");
                let steps = two.run(&Reference, &y);
                assert_eq!((&got.0, &got.1), (&steps.0, &steps.1), "{name}");
                let want = case.run(&Reference, &x);
                assert_eq!(got.2, want.2, "counters of {name}");
                let uncounted = Case {
                    hits: false,
                    ..case
                }
                .run(backend, &x);
                assert_eq!((&got.0, &got.1), (&uncounted.0, &uncounted.1), "{name}");
            }
        }
    }
}

#[test]
fn the_fused_pass_is_the_two_step_path() {
    let Some((backend, _turn)) = open() else {
        return;
    };
    fused::<f32>(&backend);
    fused::<f16>(&backend);
    fused::<bf16>(&backend);
}

/// An activation without roundings of its own, so that the reference's bits are the only ones:
/// with route weights, masked rows of NaN, and before and after the rounding to 16 bits.
fn exact<T: Element>(backend: &CudaBackend) {
    let op = GatedActivation::fatrelu_and_mul(0.25).unwrap();
    let route: Vec<f32> = (0..12).map(|t| [0.5, 4.0, -2.0][t % 3]).collect();
    let counts = [2, -1, 9];
    for (quant, order) in quantisations().unwrap() {
        for materialize in [true, false] {
            for (d, gap, offset) in [(72, 0, 0), (256, 16, 16), (301, 1, 3)] {
                let mut x: Vec<T> = telling(12, 2 * d, 5);
                let nan = T::from_f32(f32::NAN);
                x[2 * 2 * d..8 * 2 * d].fill(nan);
                let case = Case {
                    order,
                    gap,
                    offset,
                    route: Some(&route),
                    batch: Some((4, &counts)),
                    hits: true,
                    ..Case::new(Some(&op), quant.with_materialize(materialize), 12, d)
                };
                case.agrees(backend, &x);
            }
        }
    }
}

#[test]
fn routes_and_batches_are_the_references() {
    let Some((backend, _turn)) = open() else {
        return;
    };
    exact::<f32>(&backend);
    exact::<f16>(&backend);
    exact::<bf16>(&backend);
}

/// The reference evaluates silu in f64: its codes differ where y lies beside a boundary.
#[test]
fn codes_differ_from_the_references_only_at_boundaries() {
    let Some((backend, _turn)) = open() else {
        return;
    };
    let op = GatedActivation::deepseek_v4();
    let x: Vec<bf16> = Numbers::new(3).values(64 * 2 * 2048, 15.0);
    for materialize in [true, false] {
        let quant = Quantisation::deepseek_v4().with_materialize(materialize);
        let case = Case {
            hits: true,
            ..Case::new(Some(&op), quant, 64, 2048)
        };
        let (got, want) = (case.run(&backend, &x), case.run(&Reference, &x));
        let differing = got.0.iter().zip(&want.0).filter(|(a, b)| a != b).count();
        assert!(differing * 10_000 <= got.0.len(), "{differing} codes");
        assert_eq!((got.1, got.2), (want.1, want.2));
    }
}

/// Codes times scales are rounded once, under every code and odd scales.
#[test]
fn codes_are_widened_as_the_reference_does() {
    let Some((backend, _turn)) = open() else {
        return;
    };
    fn run<B: ActAndMulQuant>(
        backend: &B,
        quant: &Quantisation,
        order: ScaleOrder,
        dtype: DType,
        d: usize,
    ) -> Vec<u8> {
        let rows = 7;
        let codes: Vec<u8> = (0..rows * d).map(|i| (i % 256) as u8).collect();
        let layout = ScaleLayout::contiguous(quant.format(), order, rows, quant.groups(d));
        let scales: Vec<u8> = match quant.format() {
            ScaleFormat::Ue8m0 => (0..layout.bytes().unwrap())
                .map(|i| (i * 7) as u8)
                .collect(),
            ScaleFormat::F32 => (0..layout.bytes().unwrap() / 4)
                .flat_map(|i| {
                    let power = 2f32.powi(i as i32 * 5 % 260 - 140);
                    (1.013 * (i as f32 + 0.7) * power).to_le_bytes()
                })
                .collect(),
        };
        let (codes, scales) = (filled(backend, &codes), filled(backend, &scales));
        let mut y = filled(backend, &vec![POISON; rows * d * dtype.size() + 2]);
        let input = Quantised {
            codes: Tensor::contiguous(&codes, DType::F8E4M3, rows, d),
            scales: Scales {
                buffer: &scales,
                layout,
            },
        };
        let output = TensorMut::contiguous(&mut y, dtype, rows, d);
        backend.dequantise(quant, input, output).unwrap();
        bytes(backend, &y)
    }
    for (quant, order) in quantisations().unwrap() {
        for (dtype, d) in DType::COMPUTE
            .into_iter()
            .flat_map(|t| [(t, 255), (t, 2304)])
        {
            let got = run(&backend, &quant, order, dtype, d);
            let want = run(&Reference, &quant, order, dtype, d);
            assert!(got == want, "{quant} {order} {dtype} {d}");
        }
    }
}
