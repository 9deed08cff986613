//! Matmuls that quantize x on the way, against the calls that they stand for.

use half::{bf16, f16};
use swiglu_conformance::inputs::Numbers;
use swiglu_core::{
    Accumulation, ActAndMul, Backend, Element, GatedActivation, Matmul, Quantization, Quantize,
    QuantizedMut, Request, RowLayout, ScaleFormat, ScaleLayout, ScaleOrder, Shape, Tensor,
    TensorMut, WeightFormat,
};
use swiglu_cuda::{CudaBackend, CudaBuffer, CudaWeight};

use crate::common::sums::fp8;
use crate::common::{bytes, filled, open};
use crate::weights::{has_steps, random};

const POISON: u8 = 0xa5;

/// I and H: of one, four and six groups a stream, whose warps have whole groups of k or halves of them too.
const SHAPES: [[usize; 2]; 4] = [[128, 384], [2112, 128], [3072, 896], [2048, 2048]];

fn tensor<T: Element>(buffer: &CudaBuffer, [rows, cols]: [usize; 2]) -> Tensor<'_, CudaBackend> {
    Tensor::contiguous(CudaBackend::view(buffer), T::FLOAT, rows, cols)
}

fn tensor_mut<T: Element>(
    buffer: &mut CudaBuffer,
    [rows, cols]: [usize; 2],
) -> TensorMut<'_, CudaBackend> {
    TensorMut::contiguous(CudaBackend::view_mut(buffer), T::FLOAT, rows, cols)
}

/// Numbers of very different sizes: groups that are zero, beyond E4M3's range, and below the floor.
fn numbers(count: usize) -> Vec<bf16> {
    let mut any = Numbers::new(count as u64);
    let value = |i: usize| {
        let power = [0, -9, 3, -30, 11, 1, -60][i / 128 % 7];
        let zero = i / 128 % 11 == 5;
        let x = any.within(4.0) * 2f32.powi(power);
        bf16::from_f32(if zero { 0.0 } else { x })
    };
    (0..count).map(value).collect()
}

struct Call<'a> {
    backend: &'a CudaBackend,
    quant: Quantization,
    t: usize,
}

impl Call<'_> {
    fn alloc(&self, bytes: usize) -> CudaBuffer {
        filled(self.backend, &vec![POISON; bytes])
    }

    /// op(quant(x) · wᵀ), or without an activation, by one call: none where the backend does not take it.
    fn once<X: Element, Y: Element>(
        &self,
        op: Option<&GatedActivation>,
        (x, weight): (&CudaBuffer, &CudaWeight),
    ) -> Option<Vec<u8>> {
        let (b, t) = (self.backend, self.t);
        let [n, k] = b.weight_shape(weight);
        let n = if op.is_some() { n / 2 } else { n };
        let x = tensor::<X>(x, [t, k]);
        let (mut scratch, mut y) = (self.alloc(2 * t * k), self.alloc(t * n * Y::FLOAT.size()));
        let room = CudaBackend::view_mut(&mut scratch);
        let to = tensor_mut::<Y>(&mut y, [t, n]);
        let quant = &self.quant;
        let done = match op {
            Some(op) => b.quantizing_matmul_act_and_mul(op, quant, x, weight, room, to),
            None => b.quantizing_matmul(quant, x, weight, room, to),
        };
        done.unwrap().then(|| bytes(b, &y))
    }

    /// The same, one step after another.
    fn in_steps<X: Element, Y: Element>(
        &self,
        op: Option<&GatedActivation>,
        (x, weight): (&CudaBuffer, &CudaWeight),
    ) -> Vec<u8> {
        let (b, t, quant) = (self.backend, self.t, &self.quant);
        let [n, k] = b.weight_shape(weight);
        let order = ScaleOrder::RowMajor;
        let scale_layout = ScaleLayout::contiguous(quant.format(), order, t, quant.groups(k));
        let (mut codes, mut scales) =
            (self.alloc(t * k), self.alloc(scale_layout.bytes().unwrap()));
        let mut codes = QuantizedMut {
            codes: CudaBackend::view_mut(&mut codes),
            layout: RowLayout::contiguous(t, k),
            scales: CudaBackend::view_mut(&mut scales),
            scale_layout,
        };
        let (mut scratch, mut y) = (self.alloc(2 * t * k), self.alloc(t * n * Y::FLOAT.size()));
        b.quantize(quant, tensor::<X>(x, [t, k]), codes.reborrow())
            .unwrap();
        let room = CudaBackend::view_mut(&mut scratch);
        let to = tensor_mut::<Y>(&mut y, [t, n]);
        b.matmul_quantized(quant, codes.as_quantized(), weight, room, to)
            .unwrap();
        let Some(op) = op else {
            return bytes(b, &y);
        };
        let mut act = self.alloc(t * n / 2 * Y::FLOAT.size());
        let to = tensor_mut::<Y>(&mut act, [t, n / 2]);
        b.act_and_mul(op, tensor::<Y>(&y, [t, n]).into(), to)
            .unwrap();
        bytes(b, &act)
    }

    /// Holds one call against the steps.
    fn compare<X: Element, Y: Element>(
        &self,
        op: Option<&GatedActivation>,
        (x, weight): (&[X], &CudaWeight),
    ) {
        let x = filled(self.backend, bytemuck::cast_slice(x));
        let once = self.once::<X, Y>(op, (&x, weight)).unwrap();
        let steps = self.in_steps::<X, Y>(op, (&x, weight));
        let at = (0..steps.len()).find(|&at| once[at] != steps[at]);
        let (quant, t) = (self.quant, self.t);
        let shape = self.backend.weight_shape(weight);
        assert_eq!(at, None, "{quant}, {t} tokens by {shape:?}");
        assert!(steps.iter().any(|&byte| byte != 0));
    }
}

fn quantizations() -> [Quantization; 5] {
    let of = |group, format| Quantization::new(group, format).unwrap();
    [
        Quantization::deepseek_v4(),
        Quantization::deepseek_v4().with_floor(1e-10).unwrap(),
        Quantization::deepseek_v4().with_floor(8.0).unwrap(),
        of(128, ScaleFormat::F32),
        of(32, ScaleFormat::E8M0),
    ]
}

/// Bit for bit: a quantization's parameters, tokens of every kernel, shapes, types.
#[test]
fn one_call_gives_the_bits_of_its_steps() {
    let Some((backend, _turn)) = open("decode") else {
        return;
    };
    if !has_steps(&backend) {
        return;
    }
    let op = GatedActivation::silu_and_mul_with_clamp(1.0, 1.0, 0.0).unwrap();
    let load = |[i, h]: [usize; 2], format| {
        let part = |shape, seed| random(shape, format, seed);
        let gate_up = backend.load_gate_up(part([i, h], 5), part([i, h], 6));
        let down = backend.load_weight(&[part([h, i], 7)]);
        (gate_up.unwrap(), down.unwrap())
    };
    let any_scales = fp8(ScaleFormat::F32, [128, 128]);
    for [i, h] in SHAPES {
        for format in [WeightFormat::DEEPSEEK_V4, any_scales] {
            let (gate_up, down) = load([i, h], format);
            for t in [1, 2, 8, 9, 16, 17, 40] {
                let quant = Quantization::deepseek_v4();
                let call = Call {
                    backend: &backend,
                    quant,
                    t,
                };
                call.compare::<bf16, bf16>(Some(&op), (&numbers(t * h), &gate_up));
                call.compare::<bf16, bf16>(None, (&numbers(t * i), &down));
            }
        }
    }
    let [i, h] = SHAPES[0];
    let (gate_up, down) = load([i, h], WeightFormat::DEEPSEEK_V4);
    for quant in quantizations() {
        for t in [1, 5, 16, 30] {
            let call = Call {
                backend: &backend,
                quant,
                t,
            };
            let x = numbers(t * h);
            call.compare::<bf16, f32>(Some(&op), (&x, &gate_up));
            call.compare::<bf16, f16>(None, (&numbers(t * i), &down));
            let wide: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
            call.compare::<f32, bf16>(Some(&op), (&wide, &gate_up));
        }
    }
}

/// A NaN and an infinity are those of their token alone.
#[test]
fn what_is_not_finite_stays_with_its_token() {
    let Some((backend, _turn)) = open("decode") else {
        return;
    };
    if !has_steps(&backend) {
        return;
    }
    let [n, k] = [128, 512];
    let weight = random([n, k], WeightFormat::DEEPSEEK_V4, 3);
    let weight = backend.load_weight(&[weight]).unwrap();
    for t in [1, 4, 16] {
        let call = Call {
            backend: &backend,
            quant: Quantization::deepseek_v4(),
            t,
        };
        let finite = numbers(t * k);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = finite.clone();
            x[(t - 1) * k + 70] = bf16::from_f32(bad);
            let run = |x: &[bf16]| {
                let x = filled(&backend, bytemuck::cast_slice(x));
                let y = call.once::<bf16, f32>(None, (&x, &weight)).unwrap();
                y.chunks_exact(4)
                    .map(bytemuck::pod_read_unaligned)
                    .collect::<Vec<f32>>()
            };
            let (got, want) = (run(&x), run(&finite));
            let others = (t - 1) * n;
            assert_eq!(got[..others], want[..others]);
            assert!(got[others..].iter().all(|y| y.is_nan()));
        }
    }
}

/// Where matmuls read codes, or sums are ordered, there is no such call, and a plan says the same.
#[test]
fn other_classes_of_sums_take_steps() {
    for accumulation in Accumulation::ALL {
        let opened = crate::common::open_with("decode", accumulation);
        let Some((backend, _turn)) = opened else {
            return;
        };
        let format = WeightFormat::DEEPSEEK_V4;
        let weight = random([256, 512], format, 3);
        let weight = backend.load_weight(&[weight]).unwrap();
        let quant = Quantization::deepseek_v4();
        let request = Request::QuantizingMatmul {
            quant,
            x: bf16::FLOAT,
            weight: format,
            y: bf16::FLOAT,
        };
        for t in [1, 16, 17] {
            let call = Call {
                backend: &backend,
                quant,
                t,
            };
            let x = filled(&backend, bytemuck::cast_slice(&numbers(t * 512)));
            let taken = call.once::<bf16, bf16>(None, (&x, &weight)).is_some();
            let shape = Shape {
                rows: t,
                cols: 256,
                depth: 512,
            };
            let plan = backend.plan(&request, &shape);
            assert_eq!(taken, plan.is_some(), "{accumulation}: {plan:?}");
            if accumulation != Accumulation::MatrixUnit {
                assert!(!taken, "{accumulation}");
            }
            let in_one = |plan: String| plan.starts_with("quantizing_plain_4_groups_");
            assert_eq!(plan.is_some_and(in_one), taken && t <= 16);
        }
    }
}
