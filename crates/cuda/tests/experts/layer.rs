//! A layer of routed experts in a backend's memory.

use half::bf16;
use swiglu_conformance::inputs::Numbers;
use swiglu_core::{
    Backend, Experts, ExpertsShape, Float, Gate, GatedActivation, GroupedMatmul, HostGate,
    HostWeight, Matmul, MoeCall, Quantization, Request, Router, Routes, Routing, Selection, Shape,
    SharedCall, Tensor, TensorMut, Tokens, WeightFormat,
};
use swiglu_cuda::{CudaBackend, CudaBuffer, CudaWeight};

use crate::common::{bytes, filled};

pub const FORMATS: [WeightFormat; 3] = [
    WeightFormat::Fp4,
    WeightFormat::DEEPSEEK_V4,
    WeightFormat::Float(Float::BF16),
];

/// Codes of all kinds but NaN, and scales that make weights of about 2^-6.
fn weight(numbers: &mut Numbers, format: WeightFormat, shape: [usize; 2]) -> HostWeight<'static> {
    let [n, k] = shape;
    let count = n * k;
    let data = match format {
        WeightFormat::Fp4 => (0..count / 2).map(|_| numbers.below(256) as u8).collect(),
        WeightFormat::Fp8 { .. } => {
            let code = |n: u64| if n & 0x7f == 0x7f { 0x38 } else { n as u8 };
            (0..count).map(|_| code(numbers.below(256))).collect()
        }
        _ => {
            let value = |_| bf16::from_f32(numbers.normal() / 64.0).to_le_bytes();
            (0..count).flat_map(value).collect()
        }
    };
    let [rows, cols] = format.scale_grid(shape).unwrap();
    let least = if format == WeightFormat::Fp4 {
        119
    } else {
        112
    };
    let scales = (0..rows * cols).map(|_| least + numbers.below(3) as u8);
    let scales = match format.scaling() {
        None => Vec::new(),
        Some(_) => scales.collect(),
    };
    HostWeight::owned(shape, format, data, scales).unwrap()
}

/// What a layer is made of, in host memory.
pub struct HostLayer {
    pub hidden: usize,
    pub intermediate: usize,
    pub routing: Routing,
    pub format: WeightFormat,
    experts: Vec<[HostWeight<'static>; 3]>,
    gate: Vec<bf16>,
}

impl HostLayer {
    pub fn new(
        [hidden, intermediate]: [usize; 2],
        (experts, k): (usize, usize),
        format: WeightFormat,
    ) -> Self {
        let mut numbers = Numbers::new(5);
        let routing = Routing::new(experts, k, 1.5, true, Selection::Score).unwrap();
        let mut one = || {
            let [gate, up] = [0, 1].map(|_| weight(&mut numbers, format, [intermediate, hidden]));
            [
                gate,
                up,
                weight(&mut numbers, format, [hidden, intermediate]),
            ]
        };
        let experts: Vec<_> = (0..experts).map(|_| one()).collect();
        let gate = Numbers::new(6).values(experts.len() * hidden, 1.0 / (hidden as f32).sqrt());
        Self {
            hidden,
            intermediate,
            routing,
            format,
            experts,
            gate,
        }
    }

    /// A layer of these experts, one of them a token.
    pub fn of_experts(
        [hidden, intermediate]: [usize; 2],
        format: WeightFormat,
        experts: Vec<[HostWeight<'static>; 3]>,
    ) -> Self {
        let count = experts.len();
        Self {
            hidden,
            intermediate,
            routing: Routing::new(count, 1, 1.0, true, Selection::Score).unwrap(),
            format,
            gate: vec![bf16::ZERO; count * hidden],
            experts,
        }
    }

    /// Gate, up and down of an expert.
    pub fn expert(&self, e: usize) -> [HostWeight<'static>; 3] {
        self.experts[e].clone()
    }

    /// A router of rows of another length than the experts'.
    pub fn with_router_of(mut self, hidden: usize) -> Self {
        let spread = 1.0 / (hidden as f32).sqrt();
        self.gate = Numbers::new(6).values(self.experts.len() * hidden, spread);
        self.hidden = hidden;
        self
    }

    pub fn load(&self, backend: &CudaBackend) -> Layer {
        let experts = self.routing.experts();
        let mut loaded = backend
            .alloc_experts(ExpertsShape {
                range: 0..experts,
                hidden: self.hidden,
                intermediate: self.intermediate,
                gate_up: self.format,
                down: self.format,
            })
            .unwrap();
        for [gate, up, down] in &self.experts {
            let (gate, up, down) = (gate.clone(), up.clone(), down.clone());
            backend.load_expert(&mut loaded, gate, up, down).unwrap();
        }
        Layer {
            gate: self.load_gate(backend),
            experts: loaded,
        }
    }

    pub fn load_gate(&self, backend: &CudaBackend) -> Gate<CudaWeight, CudaBuffer> {
        let (experts, format) = (self.routing.experts(), WeightFormat::Float(Float::BF16));
        let gate = bytemuck::cast_slice(&self.gate);
        let gate = HostWeight::new([experts, self.hidden], format, gate, &[]).unwrap();
        let bias = Some(vec![0.0; experts]);
        let gate = HostGate::new(self.routing, gate, bias, None, None).unwrap();
        backend.load_gate(&gate).unwrap()
    }

    /// A shared expert in FP8, as wide as the routed ones.
    pub fn load_shared(&self, backend: &CudaBackend) -> Shared {
        let mut numbers = Numbers::new(7);
        let (h, i, format) = (self.hidden, self.intermediate, WeightFormat::DEEPSEEK_V4);
        let [gate, up] = [0, 1].map(|_| weight(&mut numbers, format, [i, h]));
        Shared {
            gate_up: backend.load_gate_up(gate, up).unwrap(),
            down: backend
                .load_weight(&[weight(&mut numbers, format, [h, i])])
                .unwrap(),
        }
    }

    /// Rows of which each is about as large as the next.
    pub fn rows(&self, tokens: usize, seed: u64) -> Vec<bf16> {
        Numbers::new(seed).values(tokens * self.hidden, 2.0)
    }

    pub fn requests(&self, quant: Option<Quantization>) -> [Request; 3] {
        let (routing, weight, bf16) = (self.routing, self.format, Float::BF16);
        [
            Request::Route {
                routing,
                x: bf16,
                weight: WeightFormat::Float(bf16),
            },
            Request::GroupedGatedMatmul {
                op: GatedActivation::deepseek_v4(),
                quant,
                routing,
                x: bf16,
                weight,
            },
            Request::GroupedMatmulSum {
                quant,
                routing,
                weight,
                y: Float::F32,
            },
        ]
    }

    pub fn shapes(&self, rows: usize) -> [Shape; 3] {
        let (hidden, i) = (self.hidden, self.intermediate);
        let shape = |cols, depth| Shape { rows, cols, depth };
        [
            shape(self.routing.experts(), hidden),
            shape(2 * i, hidden),
            shape(hidden, i),
        ]
    }
}

/// A layer on the device.
pub struct Layer {
    pub gate: Gate<CudaWeight, CudaBuffer>,
    pub experts: Experts<CudaWeight>,
}

/// A shared expert on the device.
pub struct Shared {
    pub gate_up: CudaWeight,
    pub down: CudaWeight,
}

/// The memory of a pass of so many tokens.
pub struct Pass<'a> {
    host: &'a HostLayer,
    quant: Option<Quantization>,
    tokens: usize,
    pub x: CudaBuffer,
    pub routes: Routes<CudaBuffer>,
    pub act: CudaBuffer,
    pub y: CudaBuffer,
    scratch: CudaBuffer,
    /// Of a shared expert: gate and up, act, y.
    of_shared: [CudaBuffer; 3],
}

impl<'a> Pass<'a> {
    pub fn new(
        backend: &CudaBackend,
        host: &'a HostLayer,
        quant: Option<Quantization>,
        tokens: usize,
    ) -> Self {
        let routes = Routes::new(backend, &host.routing, tokens).unwrap();
        let requests = host.requests(quant).into_iter().zip(host.shapes(tokens));
        let scratch = requests.map(|(request, shape)| backend.scratch(&request, &shape));
        // NaN, whatever it is taken for.
        let room = |bytes: usize| filled(backend, &vec![0xff; bytes]);
        Self {
            host,
            quant,
            tokens,
            x: room(2 * tokens * host.hidden),
            act: room(2 * routes.count() * host.intermediate),
            y: room(4 * tokens * host.hidden),
            scratch: room(scratch.max().unwrap()),
            of_shared: [2 * host.intermediate, host.intermediate, host.hidden]
                .map(|cols| room(2 * tokens * cols)),
            routes,
        }
    }

    pub fn route(
        &mut self,
        backend: &CudaBackend,
        gate: &Gate<CudaWeight, CudaBuffer>,
    ) -> swiglu_core::Result<()> {
        let x = Tensor::contiguous((&self.x).into(), Float::BF16, self.tokens, self.host.hidden);
        let scratch = (&mut self.scratch).into();
        backend.route(gate, x, Tokens::default(), scratch, &mut self.routes)
    }

    /// Both halves.
    pub fn experts(&mut self, backend: &CudaBackend, layer: &Layer) -> swiglu_core::Result<()> {
        let op = GatedActivation::deepseek_v4();
        let (tokens, hidden, i) = (self.tokens, self.host.hidden, self.host.intermediate);
        let (rows, quant, experts) = (self.routes.count(), self.quant.as_ref(), &layer.experts);
        let x = Tensor::contiguous((&self.x).into(), Float::BF16, tokens, hidden);
        let act = TensorMut::contiguous((&mut self.act).into(), Float::BF16, rows, i);
        let scratch = (&mut self.scratch).into();
        backend.grouped_matmul_act_and_mul(&op, quant, x, experts, &self.routes, scratch, act)?;
        self.second_half(backend, layer)
    }

    pub fn second_half(&mut self, backend: &CudaBackend, layer: &Layer) -> swiglu_core::Result<()> {
        let (tokens, hidden, i) = (self.tokens, self.host.hidden, self.host.intermediate);
        let (rows, quant, experts) = (self.routes.count(), self.quant.as_ref(), &layer.experts);
        let act = Tensor::contiguous((&self.act).into(), Float::BF16, rows, i);
        let y = TensorMut::contiguous((&mut self.y).into(), Float::F32, tokens, hidden);
        let scratch = (&mut self.scratch).into();
        backend.grouped_matmul_sum(quant, act, experts, &self.routes, None, scratch, y)
    }

    /// Both halves in one call.
    pub fn mlp(&mut self, backend: &CudaBackend, layer: &Layer) -> swiglu_core::Result<()> {
        let op = GatedActivation::deepseek_v4();
        let (tokens, hidden, i) = (self.tokens, self.host.hidden, self.host.intermediate);
        let (rows, quant, experts) = (self.routes.count(), self.quant.as_ref(), &layer.experts);
        let x = Tensor::contiguous((&self.x).into(), Float::BF16, tokens, hidden);
        let act = TensorMut::contiguous((&mut self.act).into(), Float::BF16, rows, i);
        let y = TensorMut::contiguous((&mut self.y).into(), Float::F32, tokens, hidden);
        let scratch = (&mut self.scratch).into();
        backend.grouped_mlp(&op, quant, x, experts, &self.routes, None, scratch, act, y)
    }

    /// The whole layer, in one call or one call after another.
    pub fn moe(
        &mut self,
        backend: &CudaBackend,
        (layer, shared): (&Layer, &Shared),
        at_once: bool,
    ) -> swiglu_core::Result<()> {
        let op = GatedActivation::deepseek_v4();
        let (tokens, hidden, i) = (self.tokens, self.host.hidden, self.host.intermediate);
        let (rows, bf16) = (self.routes.count(), Float::BF16);
        let x = Tensor::contiguous((&self.x).into(), bf16, tokens, hidden);
        let y = TensorMut::contiguous((&mut self.y).into(), Float::F32, tokens, hidden);
        let [between, act, of_shared] = &mut self.of_shared;
        let call = MoeCall {
            gate: &layer.gate,
            experts: &layer.experts,
            op: &op,
            quant: self.quant.as_ref(),
            shared: SharedCall {
                gate_up: &shared.gate_up,
                down: &shared.down,
                op: &op,
                between: TensorMut::contiguous(between.into(), bf16, tokens, 2 * i),
                act: TensorMut::contiguous(act.into(), bf16, tokens, i),
                y: TensorMut::contiguous(of_shared.into(), bf16, tokens, hidden),
            },
            routes: &mut self.routes,
            scratch: (&mut self.scratch).into(),
            act: TensorMut::contiguous((&mut self.act).into(), bf16, rows, i),
        };
        if at_once {
            backend.moe(call, x, Tokens::default(), y)
        } else {
            call.one_by_one(backend, x, Tokens::default(), y)
        }
    }

    pub fn set_x(&mut self, backend: &CudaBackend, x: &[bf16]) {
        backend
            .upload(&mut self.x, bytemuck::cast_slice(x))
            .unwrap();
    }

    pub fn acts(&self, backend: &CudaBackend) -> Vec<bf16> {
        bytemuck::pod_collect_to_vec(&bytes(backend, &self.act))
    }

    pub fn sums(&self, backend: &CudaBackend) -> Vec<f32> {
        bytemuck::pod_collect_to_vec(&bytes(backend, &self.y))
    }
}
