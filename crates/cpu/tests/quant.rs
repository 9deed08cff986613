//! Quantisation: bit for bit the reference's, in two steps and fused, on every instruction set of
//! this machine and whatever the number of threads.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, LazyLock};

use swiglu_core::reference::Reference;
use swiglu_core::{
    ActAndMul, ActAndMulQuant, Batch, DType, Element, GatedActivation, HostBuffer, QuantOptions,
    Quantisation, Quantised, QuantisedMut, Rounding, RowLayout, ScaleFormat, ScaleLayout,
    ScaleOrder, Scales, ScalesMut, Tensor, TensorMut, bf16, f16,
};
use swiglu_cpu::{CpuBackend, InstructionSet};
use swiglu_testing::inputs::{Numbers, quantisations, telling};

const POISON: u8 = 0xa5;

/// The backend of each instruction set, and the fastest with pools of several sizes.
static BACKENDS: LazyLock<Vec<(String, CpuBackend)>> = LazyLock::new(|| {
    let sets = InstructionSet::ALL.into_iter().filter(|s| s.available());
    let set = |s| CpuBackend::with_instruction_set(s).unwrap();
    let mut backends: Vec<_> = sets.map(|s| (s.to_string(), set(s))).collect();
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let backend = CpuBackend::new().with_pool(Arc::new(pool.build().unwrap()));
        backends.push((format!("{threads} threads"), backend));
    }
    backends
});

fn filled(bytes: &[u8]) -> HostBuffer {
    let mut buffer = HostBuffer::zeroed(bytes.len()).unwrap();
    buffer.bytes_mut().copy_from_slice(bytes);
    buffer
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
    /// Elements between rows and before the first, of input and of codes.
    gap: usize,
    route: Option<&'a [f32]>,
    batch: Option<(usize, &'a [i32])>,
    hits: bool,
}

/// Codes, scales and counters, each with what lies around it.
type Outcome = (Vec<u8>, Vec<u8>, Vec<u8>);

impl<'a> Case<'a> {
    fn new(op: Option<&'a GatedActivation>, quant: Quantisation, rows: usize, d: usize) -> Self {
        Self {
            op,
            quant,
            order: ScaleOrder::RowMajor,
            rows,
            d,
            gap: 0,
            route: None,
            batch: None,
            hits: false,
        }
    }

    fn run<B, T>(&self, backend: &B, input: &[T]) -> Outcome
    where
        B: ActAndMulQuant<Buffer = HostBuffer>,
        T: Element,
    {
        let (rows, d, gap) = (self.rows, self.d, self.gap);
        let cols = d * if self.op.is_some() { 2 } else { 1 };
        let layout =
            ScaleLayout::contiguous(self.quant.format(), self.order, rows, self.quant.groups(d));
        let layout = layout.with_stride(layout.stride + gap);
        let place = |l: RowLayout| l.with_stride(l.cols + gap).with_offset(gap);
        let from = place(RowLayout::contiguous(rows, cols));
        // NaN around the rows: what is read there would be seen.
        let mut x = vec![T::from_f32(f32::NAN); gap + rows * (cols + gap)];
        for (row, values) in input.chunks_exact(cols).enumerate() {
            x[from.row(row)].copy_from_slice(values);
        }
        let x = HostBuffer::from_slice(&x).unwrap();
        let mut codes = filled(&vec![POISON; gap + rows * (d + gap) + 5]);
        let mut scales = filled(&vec![POISON; layout.bytes().unwrap() + 8]);
        let mut hits = filled(bytemuck::cast_slice(&[1_u32, 2, u32::MAX]));
        let route = self.route.map(|r| HostBuffer::from_slice(r).unwrap());
        let counts = self.batch.map(|b| filled(bytemuck::cast_slice(b.1)));
        let input = Tensor {
            buffer: &x,
            dtype: T::DTYPE,
            layout: from,
        };
        let output = QuantisedMut {
            codes: TensorMut {
                buffer: &mut codes,
                dtype: DType::F8E4M3,
                layout: place(RowLayout::contiguous(rows, d)),
            },
            scales: ScalesMut {
                buffer: &mut scales,
                layout,
            },
        };
        match self.op {
            None => backend.quantise(&self.quant, input, output),
            Some(op) => {
                let batch = self.batch.zip(counts.as_ref());
                let options = QuantOptions {
                    route: route.as_ref(),
                    batch: batch.map(|((rows, _), counts)| Batch { rows, counts }),
                    hits: self.hits.then_some(&mut hits),
                };
                backend.act_and_mul_quant(op, &self.quant, input, output, options)
            }
        }
        .unwrap();
        [codes, scales, hits]
            .map(|buffer| buffer.bytes().to_vec())
            .into()
    }

    /// Every backend gives the reference's bytes.
    fn agrees<T: Element>(&self, input: &[T]) {
        self.gives(&self.run(&Reference, input), input);
    }

    /// Every backend gives these bytes.
    fn gives<T: Element>(&self, want: &Outcome, input: &[T]) {
        for (name, backend) in &*BACKENDS {
            let got = self.run(backend, input);
            let at = (0..got.0.len()).find(|&i| got.0[i] != want.0[i]);
            let pair = at.map(|i| (i, got.0[i], want.0[i]));
            assert_eq!(pair, None, "codes of {self:?} {} on {name}", T::DTYPE);
            assert_eq!(got.1, want.1, "scales of {self:?} {} on {name}", T::DTYPE);
            assert_eq!(got.2, want.2, "counters of {self:?} {} on {name}", T::DTYPE);
        }
    }
}

/// Calls a generic function with each of the three types.
macro_rules! every_type {
    ($function:ident $(, $argument:expr)*) => {
        $function::<f32>($($argument),*);
        $function::<f16>($($argument),*);
        $function::<bf16>($($argument),*);
    };
}

#[test]
fn a_matrix_is_quantised_as_the_reference_does() {
    fn plain<T: Element>() {
        let shapes = [
            (1, 1),
            (3, 70),
            (2, 300),
            (5, 2304),
            (2, 2081),
            (83, 128),
            (2, 16_500),
        ];
        for (quant, order) in quantisations().unwrap() {
            for (rows, d) in shapes {
                for gap in [0, 3] {
                    let case = Case {
                        order,
                        gap,
                        ..Case::new(None, quant, rows, d)
                    };
                    case.agrees::<T>(&telling(rows, d, 5));
                }
            }
        }
    }
    every_type!(plain);
}

/// Every number of 16 bits beside every other of its group, and a hundred thousand floats of every
/// magnitude.
#[test]
fn quotients_are_rounded_as_a_division_rounds_them() {
    fn every<T: Element>(quant: Quantisation) {
        // Bits far apart: a group has many magnitudes.
        let near = (0..1 << 16).map(T::from_bits);
        let far = (0..1_u32 << 16).map(|i| T::from_bits(i.wrapping_mul(40_503) & 0xffff));
        let finite = |x: &T| x.to_f32().is_finite();
        let x: Vec<T> = near.filter(finite).chain(far.filter(finite)).collect();
        Case::new(None, quant, 1, x.len()).agrees(&x);
    }
    for format in [ScaleFormat::F32, ScaleFormat::Ue8m0] {
        for (group, floor) in [(128, 1e-4), (64, 1e-10), (32, 1e-30), (32, 1e30)] {
            let quant = Quantisation::new(group, format).unwrap();
            let quant = quant.with_floor(floor).unwrap();
            every::<f16>(quant);
            every::<bf16>(quant);
            let mut x: Vec<f32> = Numbers::new(9).values(1 << 17, 1.0);
            for (g, group) in x.chunks_mut(96).enumerate() {
                let power = 2f32.powi(g as i32 % 250 - 125);
                group.iter_mut().for_each(|x| *x *= power);
            }
            Case::new(None, quant, 2, x.len() / 2).agrees(&x);
        }
    }
}

/// Groups whose largest magnitude is each float around 448 times each power of two.
#[test]
fn scales_step_where_448_times_a_power_of_two_does() {
    let quant = Quantisation::new(32, ScaleFormat::Ue8m0).unwrap();
    let quant = quant.with_floor(1e-30).unwrap();
    let mut x = Vec::new();
    for exponent in -90..119 {
        let edge = 448.0 * 2f32.powi(exponent);
        for amax in [edge.next_down(), edge, edge.next_up()] {
            x.extend((0..32).map(|i| amax / (i + 1) as f32 * if i % 2 == 0 { 1.0 } else { -1.0 }));
        }
    }
    let case = Case::new(None, quant, 1, x.len());
    let (_, scales, _) = case.run(&Reference, &x);
    for (steps, exponent) in scales.chunks_exact(3).zip(-90..119_i32) {
        let byte = (127 + exponent) as u8;
        assert_eq!(steps, [byte, byte, byte + 1]);
    }
    case.agrees(&x);
}

/// The bytes of groups whose largest magnitude is each positive float in steps, against their
/// definition in f64, where it is exact: the least power of two of which 448 fold is not below.
/// Returns how many.
fn sweep_scales(backend: &CpuBackend, step: u32) -> u64 {
    const GROUPS: usize = 1 << 16;
    let floor = 1e-30_f32;
    let quant = Quantisation::new(32, ScaleFormat::Ue8m0).unwrap();
    let quant = quant.with_floor(floor).unwrap();
    let layout = ScaleLayout::contiguous(ScaleFormat::Ue8m0, ScaleOrder::RowMajor, 1, GROUPS);
    let mut x = HostBuffer::zeroed(4 * 32 * GROUPS).unwrap();
    let mut codes = HostBuffer::zeroed(32 * GROUPS).unwrap();
    let mut scales = HostBuffer::zeroed(GROUPS).unwrap();
    let (mut next, mut checked) = (0_u64, 0);
    while next <= u64::from(f32::MAX.to_bits()) {
        let bits = |g: usize| (next + g as u64 * u64::from(step)).min(0x7f7f_ffff) as u32;
        for (g, group) in x.typed_mut::<f32>().chunks_exact_mut(32).enumerate() {
            // The place within the group changes with the value.
            group.fill(0.0);
            group[bits(g) as usize % 32] = f32::from_bits(bits(g));
        }
        let output = QuantisedMut {
            codes: TensorMut::contiguous(&mut codes, DType::F8E4M3, 1, 32 * GROUPS),
            scales: ScalesMut {
                buffer: &mut scales,
                layout,
            },
        };
        let input = Tensor::contiguous(&x, DType::F32, 1, 32 * GROUPS);
        backend.quantise(&quant, input, output).unwrap();
        for (g, &byte) in scales.bytes().iter().enumerate() {
            let amax = f64::from(f32::from_bits(bits(g)).max(floor));
            let largest = 448.0 * 2f64.powi(i32::from(byte) - 127);
            assert!(largest >= amax && largest / 2.0 < amax, "{amax:e}: {byte}");
        }
        checked += GROUPS as u64;
        next += GROUPS as u64 * u64::from(step);
    }
    checked
}

#[test]
fn the_exponents_are_exact_on_a_sample() {
    for (_, backend) in &*BACKENDS {
        assert!(sweep_scales(backend, 4_099) > 500_000);
    }
}

#[test]
#[ignore = "all 2^31 positive floats: minutes"]
fn the_exponents_are_exact_for_every_positive_float() {
    assert!(sweep_scales(&CpuBackend::new(), 1) >= 0x7f80_0000);
}

/// The fused pass is this backend's activation and then the reference's quantisation. That the two
/// steps on this backend are the same follows from the test above, and is tested too.
#[test]
fn the_fused_pass_is_the_two_step_path() {
    fn fused<T: Element>() {
        let low = GatedActivation::silu_and_mul_with_clamp(0.5, 1.702, 1.0).unwrap();
        let eager = GatedActivation::deepseek_v4().with_rounding(Rounding::Eager);
        let step = GatedActivation::swiglustep_and_mul(0.5).unwrap();
        let mut ops = vec![low, eager, step, step.with_rounding(Rounding::Eager)];
        ops.extend(GatedActivation::ALL);
        for (op, (quant, order)) in ops
            .iter()
            .flat_map(|op| quantisations().unwrap().into_iter().map(move |q| (op, q)))
        {
            for (rows, d, gap) in [(3, 70, 5), (2, 2304, 0)] {
                let x: Vec<T> = telling(rows, 2 * d, 5);
                let input = HostBuffer::from_slice(&x).unwrap();
                let mut y = HostBuffer::zeroed(rows * d * size_of::<T>()).unwrap();
                let to = TensorMut::contiguous(&mut y, T::DTYPE, rows, d);
                let backend = &BACKENDS[0].1;
                backend
                    .act_and_mul(op, Tensor::contiguous(&input, T::DTYPE, rows, 2 * d), to)
                    .unwrap();
                let case = Case {
                    order,
                    gap,
                    ..Case::new(Some(op), quant, rows, d)
                };
                let two = Case { op: None, ..case };
                let want = two.run(&Reference, y.typed::<T>());
                assert_eq!(want, two.run(backend, y.typed::<T>()), "{two:?}");
                case.gives(&want, &x);
                let (codes, scales, _) = want;
                let counted = Case { hits: true, ..case };
                let (_, _, hits) = counted.run(&Reference, &x);
                counted.gives(&(codes, scales, hits), &x);
            }
        }
    }
    every_type!(fused);
}

/// An activation without roundings of its own, so that the reference's bits are the only ones: with
/// route weights, masked rows of NaN, and before and after the rounding to 16 bits.
#[test]
fn routes_and_batches_are_the_references() {
    fn exact<T: Element>() {
        let op = GatedActivation::fatrelu_and_mul(0.25).unwrap();
        let route: Vec<f32> = (0..12)
            .map(|t| [0.5, 4.0, -2.0, f32::INFINITY][t % 4])
            .collect();
        let counts = [2, -1, 9];
        for (quant, order) in quantisations().unwrap() {
            for materialize in [true, false] {
                for (d, gap) in [(72, 0), (301, 3)] {
                    let mut x: Vec<T> = telling(12, 2 * d, 5);
                    x[2 * 2 * d..8 * 2 * d].fill(T::from_f32(f32::NAN));
                    let case = Case {
                        order,
                        gap,
                        route: Some(&route),
                        batch: Some((4, &counts)),
                        hits: true,
                        ..Case::new(Some(&op), quant.with_materialize(materialize), 12, d)
                    };
                    case.agrees(&x);
                }
            }
        }
    }
    every_type!(exact);
}

/// The reference evaluates silu in f64: its codes differ where y lies beside a boundary, and with a
/// 16-bit type that is materialized almost nowhere.
#[test]
fn codes_differ_from_the_references_only_at_boundaries() {
    let op = GatedActivation::deepseek_v4();
    let x: Vec<bf16> = Numbers::new(3).values(64 * 2 * 2048, 15.0);
    for (quant, _) in quantisations().unwrap() {
        for materialize in [true, false] {
            let quant = quant.with_materialize(materialize);
            let case = Case {
                hits: true,
                ..Case::new(Some(&op), quant, 64, 2048)
            };
            let want = case.run(&Reference, &x);
            let got = case.run(&BACKENDS[0].1, &x);
            let differing = got.0.iter().zip(&want.0).filter(|(a, b)| a != b).count();
            assert!(differing * 10_000 <= got.0.len(), "{differing} codes");
            assert_eq!(got.2, want.2);
            // Whatever they are, all backends agree on them.
            case.gives(&got, &x);
        }
    }
}

/// Codes times scales are rounded once, under every code and odd scales.
#[test]
fn codes_are_widened_as_the_reference_does() {
    fn widened<B: ActAndMulQuant<Buffer = HostBuffer>>(
        backend: &B,
        quant: &Quantisation,
        order: ScaleOrder,
        dtype: DType,
        d: usize,
    ) -> Vec<u8> {
        let rows = 7;
        let codes: Vec<u8> = (0..rows * d).map(|i| (i % 256) as u8).collect();
        let layout = ScaleLayout::contiguous(quant.format(), order, rows, quant.groups(d));
        let bytes = layout.bytes().unwrap();
        let scales: Vec<u8> = match quant.format() {
            ScaleFormat::Ue8m0 => (0..bytes).map(|i| (i * 7) as u8).collect(),
            ScaleFormat::F32 => (0..bytes / 4)
                .flat_map(|i| {
                    let power = 2f32.powi(i as i32 * 5 % 260 - 140);
                    let odd = [0.0, f32::NAN, f32::INFINITY, -1.7e-3];
                    let scale = odd.get(i % 40).copied();
                    scale
                        .unwrap_or(1.013 * (i as f32 + 0.7) * power)
                        .to_le_bytes()
                })
                .collect(),
        };
        let (codes, scales) = (filled(&codes), filled(&scales));
        let mut y = filled(&vec![POISON; rows * d * dtype.size() + 2]);
        let input = Quantised {
            codes: Tensor::contiguous(&codes, DType::F8E4M3, rows, d),
            scales: Scales {
                buffer: &scales,
                layout,
            },
        };
        let output = TensorMut::contiguous(&mut y, dtype, rows, d);
        backend.dequantise(quant, input, output).unwrap();
        y.bytes().to_vec()
    }
    for (quant, order) in quantisations().unwrap() {
        for dtype in DType::COMPUTE {
            for d in [1, 255, 2304] {
                let want = widened(&Reference, &quant, order, dtype, d);
                for (name, backend) in &*BACKENDS {
                    let got = widened(backend, &quant, order, dtype, d);
                    let at = (0..got.len()).find(|&i| got[i] != want[i]);
                    assert_eq!(at, None, "{quant} {order} {dtype} {d} on {name}");
                }
            }
        }
    }
}

#[test]
fn no_rows_are_no_work() {
    let op = GatedActivation::deepseek_v4();
    for op in [None, Some(&op)] {
        let case = Case::new(op, Quantisation::deepseek_v4(), 0, 128);
        case.agrees::<bf16>(&[]);
    }
}

/// Arguments that do not fit are refused by name before anything is written.
#[test]
fn arguments_are_named() {
    let (quant, backend) = (Quantisation::deepseek_v4(), &BACKENDS[0].1);
    let x = HostBuffer::zeroed(2 * 256 * 2).unwrap();
    let refused = |codes: usize, order, stride: usize, counts: Option<&HostBuffer>| {
        let mut codes = filled(&vec![POISON; codes]);
        let mut scales = filled(&[POISON; 2]);
        let layout = ScaleLayout::contiguous(quant.format(), order, 2, 1).with_stride(stride);
        let output = QuantisedMut {
            codes: TensorMut::contiguous(&mut codes, DType::F8E4M3, 2, 128),
            scales: ScalesMut {
                buffer: &mut scales,
                layout,
            },
        };
        let options = QuantOptions {
            batch: counts.map(|counts| Batch { rows: 1, counts }),
            ..QuantOptions::default()
        };
        let input = Tensor::contiguous(&x, DType::BF16, 2, 256);
        let op = GatedActivation::deepseek_v4();
        let error = backend.act_and_mul_quant(&op, &quant, input, output, options);
        assert!(codes.bytes().iter().all(|&b| b == POISON));
        error.unwrap_err().to_string()
    };
    assert!(refused(255, ScaleOrder::RowMajor, 1, None).starts_with("codes"));
    assert!(refused(256, ScaleOrder::ColumnMajor, 1, None).starts_with("scales"));
    assert!(refused(256, ScaleOrder::Packed, 2, None).starts_with("scales"));
    let short = HostBuffer::zeroed(4).unwrap();
    assert!(refused(256, ScaleOrder::RowMajor, 1, Some(&short)).starts_with("counts"));
}
