//! Quantisation against the reference: bit for bit, fused and in two steps.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

use swiglu_core::reference::Reference;
use swiglu_core::{
    ActAndMulQuant, Backend, Batch, DType, Element, GatedActivation, QuantOptions, Quantisation,
    Quantised, QuantisedMut, ScaleFormat, ScaleLayout, ScaleOrder, ScalesMut, Tensor, TensorMut,
    bf16, f16,
};
use swiglu_testing::inputs::quantisations;
use swiglu_wgpu::WgpuBackend;

const POISON: u8 = 0xa5;

fn open() -> Option<WgpuBackend> {
    match WgpuBackend::builder().allow_software(true).build() {
        Ok(backend) => Some(backend),
        Err(reason) => {
            swiglu_testing::may_skip("wgpu", &reason.to_string(), "quant");
            None
        }
    }
}

/// A buffer of these bytes.
fn filled<B: Backend>(backend: &B, bytes: &[u8]) -> B::Buffer {
    let mut buffer = backend.alloc(bytes.len()).unwrap();
    backend.upload(&mut buffer, bytes).unwrap();
    buffer
}

fn bytes<B: Backend>(backend: &B, buffer: &B::Buffer) -> Vec<u8> {
    let mut data = vec![0; backend.len(buffer)];
    backend.download(buffer, &mut data).unwrap();
    data
}

/// One case: what is quantised, how, and into what.
#[derive(Clone, Copy, Debug)]
struct Case<'a> {
    /// None: the input is quantised as it is.
    op: Option<&'a GatedActivation>,
    quant: Quantisation,
    order: ScaleOrder,
    rows: usize,
    d: usize,
    route: Option<&'a [f32]>,
    batch: Option<(usize, &'a [i32])>,
}

/// Codes, scales and counters, each with what lies beyond it.
type Outcome = (Vec<u8>, Vec<u8>, Vec<u8>);

impl Case<'_> {
    fn scales(&self) -> ScaleLayout {
        let groups = self.quant.groups(self.d);
        let layout = ScaleLayout::contiguous(self.quant.format(), self.order, self.rows, groups);
        layout.with_stride(layout.stride + 3)
    }

    fn run<B: ActAndMulQuant>(&self, backend: &B, dtype: DType, input: &[u8]) -> Outcome {
        let (rows, d, layout) = (self.rows, self.d, self.scales());
        let cols = if self.op.is_some() { 2 * d } else { d };
        let x = filled(backend, input);
        let stride = d + 3;
        let mut codes = filled(backend, &vec![POISON; rows * stride + 5]);
        let mut scales = filled(backend, &vec![POISON; layout.bytes().unwrap() + 7]);
        let mut hits = filled(backend, &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
        let route = self.route.map(|r| filled(backend, bytemuck::cast_slice(r)));
        let counts = self
            .batch
            .map(|(_, c)| filled(backend, bytemuck::cast_slice(c)));
        let input = Tensor::contiguous(&x, dtype, rows, cols);
        let mut codes_out = TensorMut::contiguous(&mut codes, DType::F8E4M3, rows, d);
        codes_out.layout = codes_out.layout.with_stride(stride).with_offset(1);
        let output = QuantisedMut {
            codes: codes_out,
            scales: ScalesMut {
                buffer: &mut scales,
                layout,
            },
        };
        match self.op {
            None => backend.quantise(&self.quant, input, output).unwrap(),
            Some(op) => {
                let options = QuantOptions {
                    route: route.as_ref(),
                    batch: self
                        .batch
                        .zip(counts.as_ref())
                        .map(|((rows, _), counts)| Batch { rows, counts }),
                    hits: Some(&mut hits),
                };
                backend
                    .act_and_mul_quant(op, &self.quant, input, output, options)
                    .unwrap();
            }
        }
        (
            bytes(backend, &codes),
            bytes(backend, &scales),
            bytes(backend, &hits),
        )
    }
}

fn values<T: Element>(count: usize) -> Vec<T> {
    (0..count)
        .map(|i| {
            let random = (i as u32).wrapping_mul(2_654_435_761) >> 8;
            let x = (random as f32 / 8_388_608.0 - 1.0) * 14.0;
            T::from_f32(if i % 131 == 7 { 0.0 } else { x })
        })
        .collect()
}

/// A matrix of every type becomes the reference's codes and scales, and nothing else is touched.
fn plain<T: Element>(backend: &WgpuBackend) {
    for (quant, order) in quantisations().unwrap() {
        for (rows, d) in [(1, 1), (3, 70), (2, 300), (2, 2081)] {
            let mut x = values::<T>(rows * d);
            let inf = f32::INFINITY;
            for (at, special) in [(40, f32::NAN), (140, inf), (200, -0.0), (280, 448.0)] {
                if let Some(x) = x.get_mut(at) {
                    *x = T::from_f32(special);
                }
            }
            let case = Case {
                op: None,
                quant,
                order,
                rows,
                d,
                route: None,
                batch: None,
            };
            let x: &[u8] = bytemuck::cast_slice(&x);
            let [got, want] = [
                case.run(backend, T::DTYPE, x),
                case.run(&Reference, T::DTYPE, x),
            ];
            assert_eq!(got, want, "{case:?} {}", T::DTYPE);
        }
    }
}

#[test]
fn a_matrix_is_quantised_as_the_reference_does() {
    let Some(backend) = open() else { return };
    plain::<f32>(&backend);
    plain::<f16>(&backend);
    plain::<bf16>(&backend);
}

/// The fused pass is the backend's own activation and then the reference's quantisation.
fn fused<T: Element>(backend: &WgpuBackend) {
    for op in [
        GatedActivation::deepseek_v4(),
        GatedActivation::gpt_oss(),
        GatedActivation::gelu_and_mul(),
    ] {
        for (quant, order) in quantisations().unwrap() {
            for (rows, d) in [(3, 70), (2, 2304)] {
                let x = values::<T>(rows * 2 * d);
                let y = backend.act_and_mul_slice(&op, &x, d).unwrap();
                let case = Case {
                    op: Some(&op),
                    quant,
                    order,
                    rows,
                    d,
                    route: None,
                    batch: None,
                };
                let two = Case { op: None, ..case };
                let got = case.run(backend, T::DTYPE, bytemuck::cast_slice(&x));
                let want = two.run(&Reference, T::DTYPE, bytemuck::cast_slice(&y));
                assert_eq!((got.0, got.1), (want.0, want.1), "{case:?} {}", T::DTYPE);
                let want = case.run(&Reference, T::DTYPE, bytemuck::cast_slice(&x));
                assert_eq!(got.2, want.2, "counters of {case:?} {}", T::DTYPE);
            }
        }
    }
}

#[test]
fn the_fused_pass_is_the_two_step_path() {
    let Some(backend) = open() else { return };
    fused::<f32>(&backend);
    fused::<f16>(&backend);
    fused::<bf16>(&backend);
}

/// Rows of NaN that are not in use are neither read nor written; route weights multiply in f32.
#[test]
fn batches_and_route_weights() {
    let Some(backend) = open() else { return };
    let op = GatedActivation::deepseek_v4();
    let (rows, d) = (8, 200);
    let mut x = values::<bf16>(rows * 2 * d);
    x[2 * 2 * d..4 * 2 * d].fill(bf16::NAN);
    x[4 * 2 * d..].fill(bf16::NAN);
    let route: Vec<f32> = (0..rows).map(|t| 0.25 + t as f32).collect();
    for quant in [
        Quantisation::deepseek_v4(),
        Quantisation::deepseek_v4_1().with_materialize(false),
    ] {
        let case = Case {
            op: Some(&op),
            quant,
            order: ScaleOrder::RowMajor,
            rows,
            d,
            route: Some(&route),
            batch: Some((4, &[2, -1])),
        };
        let x = bytemuck::cast_slice(&x);
        let got = case.run(&backend, DType::BF16, x);
        let want = case.run(&Reference, DType::BF16, x);
        let differing = got.0.iter().zip(&want.0).filter(|(a, b)| a != b).count();
        // A product on a boundary of rounding may fall to the other side.
        assert!(differing <= 1, "{differing} of {} codes", got.0.len());
        assert_eq!((got.1, got.2), (want.1, want.2));
    }
}

/// Codes times scales are rounded once, under every code and odd scales.
#[test]
fn codes_are_widened_as_the_reference_does() {
    let Some(backend) = open() else { return };
    fn run<B: ActAndMulQuant>(backend: &B, format: ScaleFormat, dtype: DType) -> Vec<u8> {
        let quant = Quantisation::new(32, format).unwrap();
        let (rows, d) = (3, 255);
        let codes: Vec<u8> = (0..rows * d).map(|i| (i % 256) as u8).collect();
        let layout = ScaleLayout::contiguous(format, ScaleOrder::ColumnMajor, rows, 8);
        let scales: Vec<u8> = match format {
            ScaleFormat::Ue8m0 => (0..24).map(|i| 115 + i).chain([0; 8]).collect(),
            ScaleFormat::F32 => (0..24)
                .flat_map(|i| (0.013_f32 * (i as f32 + 0.7)).to_le_bytes())
                .collect(),
        };
        let (codes, scales) = (filled(backend, &codes), filled(backend, &scales));
        let mut y = filled(backend, &vec![POISON; rows * d * dtype.size() + 2]);
        let input = Quantised {
            codes: Tensor::contiguous(&codes, DType::F8E4M3, rows, d),
            scales: swiglu_core::Scales {
                buffer: &scales,
                layout,
            },
        };
        let output = TensorMut::contiguous(&mut y, dtype, rows, d);
        backend.dequantise(&quant, input, output).unwrap();
        bytes(backend, &y)
    }
    for format in [ScaleFormat::F32, ScaleFormat::Ue8m0] {
        for dtype in DType::COMPUTE {
            let (got, want) = (run(&backend, format, dtype), run(&Reference, format, dtype));
            assert_eq!(got, want, "{format} {dtype}");
        }
    }
}

#[test]
fn no_rows_are_no_work() {
    let Some(backend) = open() else { return };
    let op = GatedActivation::deepseek_v4();
    let case = Case {
        op: Some(&op),
        quant: Quantisation::deepseek_v4(),
        order: ScaleOrder::Packed,
        rows: 0,
        d: 128,
        route: None,
        batch: None,
    };
    assert_eq!(
        case.run(&backend, DType::BF16, &[]),
        case.run(&Reference, DType::BF16, &[])
    );
}
