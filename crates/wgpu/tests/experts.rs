//! Layers of routed experts beyond what the suite asks: weights and rows of any kind, many buffers, encoders of the
//! caller's.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

mod common;

use common::open;
use swiglu_conformance::inputs::{Numbers, SampleValues, SampleWeight};
use swiglu_conformance::{Harness, Size, checks, contents, filled, may_skip, relative_error};
use swiglu_core::reference::Reference;
use swiglu_core::{
    Accumulation, Element, ExpertsShape, Float, GatedActivation, GroupedMatmul, Quantization,
    Request, Router, Routes, Routing, RowLayout, ScaleFormat, Selection, Shape, Tensor, TensorMut,
    WeightFormat, bf16,
};
use swiglu_wgpu::{Builder, WgpuBackend, wgpu};

const EXPERTS: usize = 7;
const TOP_K: usize = 3;
const BF16: WeightFormat = WeightFormat::Float(Float::BF16);

/// A layer's sizes and forms, and how far apart its rows lie.
#[derive(Clone, Debug)]
struct Layer {
    tokens: usize,
    hidden: usize,
    intermediate: usize,
    formats: [WeightFormat; 2],
    x: Float,
    quant: Option<Quantization>,
    gap: usize,
    /// Which expert's scales are tiny, and which has a code that is NaN, which no token chooses.
    tiny: Option<usize>,
    nan: Option<usize>,
}

impl Layer {
    const fn new(formats: [WeightFormat; 2], [hidden, intermediate]: [usize; 2]) -> Self {
        Self {
            tokens: 20,
            hidden,
            intermediate,
            formats,
            x: Float::BF16,
            quant: None,
            gap: 0,
            tiny: None,
            nan: None,
        }
    }

    fn op() -> GatedActivation {
        GatedActivation::silu_and_mul_with_clamp(0.5, 1.0, 0.0).unwrap()
    }

    fn routing() -> Routing {
        Routing::new(EXPERTS, TOP_K, 1.0, true, Selection::Score).unwrap()
    }

    fn requests(&self) -> [Request; 2] {
        let routing = Self::routing();
        [
            Request::GroupedGatedMatmul {
                op: Self::op(),
                quant: self.quant,
                routing,
                x: self.x,
                weight: self.formats[0],
            },
            Request::GroupedMatmulSum {
                quant: self.quant,
                routing,
                weight: self.formats[1],
                y: Float::F32,
            },
        ]
    }

    fn weights(&self, e: usize) -> [SampleWeight; 3] {
        let wide = [self.intermediate, self.hidden];
        let [first, second] = self.formats;
        let shapes = [
            (wide, first),
            (wide, first),
            ([self.hidden, self.intermediate], second),
        ];
        let mut n = 0;
        shapes.map(|(shape, format)| {
            n += 1;
            let seed = (3 * e + n) as u64;
            let mut weight = SampleWeight::new(shape, format, SampleValues::Random, seed).unwrap();
            if self.tiny == Some(e) {
                // Of E8M0, about 2^-126.
                weight.scales.iter_mut().for_each(|scale| *scale %= 3);
            }
            if self.nan == Some(e) {
                weight.data[0] = 0x7f;
            }
            weight
        })
    }

    /// Routes of which expert `nan` has none, one token has no expert, and one has an expert twice.
    fn ids(&self) -> Vec<i32> {
        let mut numbers = Numbers::new(5);
        let mut ids: Vec<i32> = Vec::new();
        for _ in 0..self.tokens * TOP_K {
            let id = numbers.below(EXPERTS as u64) as i32;
            ids.push(if self.nan == Some(id as usize) {
                -1
            } else {
                id
            });
        }
        ids[..TOP_K].copy_from_slice(&[-1, -1, -1]);
        ids[TOP_K..2 * TOP_K].copy_from_slice(&[4, 2, 4]);
        ids
    }

    /// Runs both halves: act, where it was written, and the sums.
    fn run<B: GroupedMatmul>(&self, backend: &B) -> (Vec<u16>, Vec<f32>) {
        let (h, i) = (self.hidden, self.intermediate);
        let shape = ExpertsShape {
            range: 0..EXPERTS,
            hidden: h,
            intermediate: i,
            gate_up: self.formats[0],
            down: self.formats[1],
        };
        let mut experts = backend.alloc_experts(shape).unwrap();
        for e in 0..EXPERTS {
            let weights = self.weights(e);
            let [gate, up, down] = weights.each_ref().map(|w| w.view().unwrap());
            backend.load_expert(&mut experts, gate, up, down).unwrap();
        }
        let routing = Self::routing();
        let mut routes = Routes::new(backend, &routing, self.tokens).unwrap();
        let weights: Vec<f32> = (0..routes.count()).map(|r| 0.2 + 0.01 * r as f32).collect();
        routes.upload(backend, &self.ids(), &weights).unwrap();

        let rows = RowLayout::contiguous(self.tokens, h).with_stride(h + self.gap);
        let mut numbers = Numbers::new(9);
        // Tiny scales want large rows.
        let spread = if self.tiny.is_some() { 1e30 } else { 0.02 };
        let mut value = || numbers.normal() * spread;
        let values: Vec<f32> = (0..self.tokens * rows.stride).map(|_| value()).collect();
        let x = swiglu_core::with_float!(self.x, T => {
            let x: Vec<T> = values.iter().map(|&v| T::from_f32(v)).collect();
            filled(backend, bytemuck::cast_slice(&x)).unwrap()
        });
        let act_rows = RowLayout::contiguous(routes.count(), i).with_stride(i + self.gap);
        let count = routes.count() * act_rows.stride;
        let mut act = filled(backend, &vec![0xff; 2 * count]).unwrap();
        let sizes = |cols, depth| Shape {
            rows: self.tokens,
            cols,
            depth,
        };
        let [first, second] = self.requests();
        let bytes = backend.scratch(&first, &sizes(2 * i, h));
        let mut scratch = backend
            .alloc(bytes.max(backend.scratch(&second, &sizes(h, i))))
            .unwrap();
        let from = Tensor::new(B::view(&x), self.x, rows);
        let to = TensorMut::new(B::view_mut(&mut act), Float::BF16, act_rows);
        let memory = B::view_mut(&mut scratch);
        let quant = self.quant.as_ref();
        backend
            .grouped_matmul_act_and_mul(&Self::op(), quant, from, &experts, &routes, memory, to)
            .unwrap();
        let mut y = backend.alloc(self.tokens * h * 4).unwrap();
        let from = Tensor::new(B::view(&act), Float::BF16, act_rows);
        let to = TensorMut::contiguous(B::view_mut(&mut y), Float::F32, self.tokens, h);
        let memory = B::view_mut(&mut scratch);
        backend
            .grouped_matmul_sum(quant, from, &experts, &routes, None, memory, to)
            .unwrap();
        let act: Vec<u8> = contents(backend, &act).unwrap();
        let y: Vec<u8> = contents(backend, &y).unwrap();
        (
            bytemuck::allocation::pod_collect_to_vec(&act),
            bytemuck::allocation::pod_collect_to_vec(&y),
        )
    }
}

fn opened(builder: Builder) -> Option<WgpuBackend> {
    match builder.allow_software(true).open() {
        Ok(backend) => Some(backend),
        Err(reason) => {
            may_skip("wgpu", &reason.to_string(), "experts");
            None
        }
    }
}

fn fp8(scales: ScaleFormat, block: [usize; 2]) -> WeightFormat {
    WeightFormat::Fp8 { scales, block }
}

/// x of any type, weights of plain numbers, in blocks that end within a vector or with NaN among their codes, rows
/// that are no whole vectors, gate and up stored otherwise than down, and scales that drivers take for zero in one
/// expert of many.
#[test]
fn any_rows_by_any_weights_are_near_the_reference() {
    let Some(backend) = open(false) else { return };
    let (fp4, v4) = (WeightFormat::Fp4, fp8(ScaleFormat::E8M0, [32, 32]));
    let odd = [75, 49];
    let even = [160, 96];
    let mut all = vec![
        Layer::new([BF16; 2], odd),
        Layer::new([WeightFormat::Float(Float::F16); 2], even),
        Layer::new([WeightFormat::Float(Float::F32); 2], odd),
        Layer::new([fp8(ScaleFormat::F32, [3, 20]); 2], even),
        Layer::new([fp8(ScaleFormat::F32, [50, 48]); 2], even),
        Layer::new([fp4, BF16], [160, 49]),
        Layer::new([fp4, v4], even),
    ];
    for x in [Float::F32, Float::F16] {
        let layer = Layer::new([fp4; 2], even);
        all.push(Layer { x, ..layer.clone() });
        let quant = Some(Quantization::deepseek_v4());
        all.push(Layer { x, quant, ..layer });
    }
    let gap = Layer::new([fp4; 2], even);
    all.push(Layer {
        gap: 3,
        ..gap.clone()
    });
    all.push(Layer {
        gap: 3,
        quant: Some(Quantization::new(64, ScaleFormat::F32).unwrap()),
        ..gap
    });
    for nan in [None, Some(3)] {
        let layer = Layer::new([v4; 2], even);
        all.push(Layer {
            tokens: 70,
            nan,
            ..layer.clone()
        });
    }
    // More rows than those that are multiplied one by one.
    for tokens in [70, 260] {
        let layer = Layer::new([fp4; 2], [416, 224]);
        all.push(Layer { tokens, ..layer });
    }
    for formats in [[v4; 2], [fp4; 2], [fp8(ScaleFormat::E8M0, [8, 20]); 2]] {
        all.push(Layer {
            tiny: Some(5),
            ..Layer::new(formats, even)
        });
    }
    for layer in all {
        let (act, y) = layer.run(backend);
        let (want_act, want) = layer.run(&Reference);
        let tolerance = if layer.quant.is_some() { 4e-3 } else { 1.5e-3 };
        let untouched = |act: &[u16]| act.iter().map(|a| *a == 0xffff).collect::<Vec<_>>();
        assert_eq!(untouched(&act), untouched(&want_act), "{layer:?}");
        assert!(want.iter().any(|y| *y != 0.0 && y.is_finite()), "{layer:?}");
        for (t, (y, want)) in y
            .chunks(layer.hidden)
            .zip(want.chunks(layer.hidden))
            .enumerate()
        {
            // Which may overflow by tiny scales' large rows.
            let finite = want.iter().all(|w| w.is_finite());
            let off = relative_error(y, want);
            let zeros = want.iter().all(|w| *w == 0.0);
            let near = off <= tolerance || zeros && y.iter().all(|y| *y == 0.0);
            assert!(!finite || near, "token {t} is off by {off:e}: {layer:?}");
        }
    }
}

/// Experts in a buffer each, or in several that one dispatch binds, and x, act and the outputs in several windows, give
/// the bits of one binding for all.
#[test]
fn small_bindings_change_no_bit() {
    let v4 = fp8(ScaleFormat::E8M0, [32, 32]);
    for (formats, quant, buffers) in [
        ([v4; 2], None, 8),
        ([v4; 2], Some(Quantization::deepseek_v4()), 8),
        ([WeightFormat::Fp4; 2], None, 8),
        ([WeightFormat::Fp4; 2], None, 9),
        ([WeightFormat::Fp4; 2], None, 13),
    ] {
        let layer = Layer {
            tokens: 83,
            gap: 160,
            quant,
            ..Layer::new(formats, [160, 96])
        };
        let limits = wgpu::Limits {
            max_storage_buffer_binding_size: 32 << 10,
            max_storage_buffers_per_shader_stage: buffers,
            max_immediate_size: 128,
            ..wgpu::Limits::downlevel_defaults()
        };
        let builder = || WgpuBackend::builder().for_requests(&layer.requests());
        let (Some(whole), Some(split)) = (opened(builder()), opened(builder().limits(limits)))
        else {
            return;
        };
        let (whole, split) = (layer.run(&whole), layer.run(&split));
        assert!(whole.0 == split.0, "act of {formats:?}, {buffers} buffers");
        assert!(whole.1 == split.1, "sums of {formats:?}, {buffers} buffers");
    }
}

/// An expert that no binding holds is refused by name, and so is a layer where kernels bind too few buffers.
#[test]
fn what_a_device_cannot_hold_is_refused() {
    let layer = Layer::new([BF16; 2], [160, 96]);
    let [gated, _] = layer.requests();
    let limits = |binding, buffers| wgpu::Limits {
        max_storage_buffer_binding_size: binding,
        max_storage_buffers_per_shader_stage: buffers,
        max_immediate_size: 128,
        ..wgpu::Limits::downlevel_defaults()
    };
    let requests = [Request::Activation {
        op: Layer::op(),
        float: Float::BF16,
    }];
    let builder = WgpuBackend::builder().for_requests(&requests);
    let Some(few) = opened(builder.limits(limits(1 << 20, 7))) else {
        return;
    };
    let answer = swiglu_core::Backend::supports(&few, &gated).to_string();
    assert!(answer.contains("too few storage buffers"), "{answer}");
    let builder = WgpuBackend::builder().for_requests(&requests);
    let small = opened(builder.limits(limits(8192, 8))).unwrap();
    let shape = ExpertsShape {
        range: 0..EXPERTS,
        hidden: layer.hidden,
        intermediate: layer.intermediate,
        gate_up: BF16,
        down: BF16,
    };
    let error = small.alloc_experts(shape).unwrap_err().to_string();
    let expected =
        "experts: expected at most 8192 bytes of an expert, as one binding has, got 61440";
    assert_eq!(error, expected);
}

/// Without cooperative matrices an expert's rows are multiplied as a matmul by itself would: to the bit, by few rows
/// and by many.
#[test]
fn grouped_matmuls_in_order_equal_separate_ones() {
    let builder = WgpuBackend::builder().accumulation(Accumulation::Ordered);
    if let Some(backend) = opened(builder) {
        let harness = Harness::new(backend, Size::Quick);
        checks::grouped_matmuls_equal_separate_ones(&harness).unwrap();
    }
}

/// Both halves go into an encoder of the caller's, with what they make between: nothing comes to the host.
#[test]
fn a_layer_is_recorded_into_a_callers_encoder() {
    let Some(backend) = open(false) else { return };
    let (h, tokens) = (64, 3);
    let routing = Layer::routing();
    let gate: Vec<bf16> = (0..EXPERTS * h)
        .map(|n| bf16::from_f32((n % 13) as f32 / 13.0 - 0.5))
        .collect();
    let weight = swiglu_core::HostWeight::new([EXPERTS, h], BF16, bytemuck::cast_slice(&gate), &[]);
    let bias = Some(vec![0.0; EXPERTS]);
    let gate = swiglu_core::HostGate::new(routing, weight.unwrap(), bias, None, None).unwrap();
    let gate = backend.load_gate(&gate).unwrap();
    let x: Vec<bf16> = common::values(tokens * h, 3);
    let on_device = filled(backend, bytemuck::cast_slice(&x)).unwrap();
    let mut scratch = swiglu_core::Backend::alloc(backend, tokens * EXPERTS * 4).unwrap();
    let mut routes = [0, 1].map(|_| Routes::new(backend, &routing, tokens).unwrap());
    let mut route = |routes: &mut Routes<_>| {
        let x = Tensor::contiguous((&on_device).into(), Float::BF16, tokens, h);
        let none = swiglu_core::Tokens::default();
        backend.route(&gate, x, none, (&mut scratch).into(), routes)
    };
    let [plain, recorded] = &mut routes;
    route(plain).unwrap();
    let device = backend.device();
    let mut encoder = device
        .raw()
        .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    backend
        .record_into(&mut encoder, || route(recorded))
        .unwrap();
    device.queue().submit([encoder.finish()]);
    let [plain, recorded] = routes
        .each_ref()
        .map(|routes| routes.download(backend).unwrap());
    assert_eq!(plain, recorded);
    assert!(plain.ids.iter().all(|id| *id >= 0));
}
