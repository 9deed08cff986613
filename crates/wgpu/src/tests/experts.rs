//! Experts with many rows on cooperative matrices, or on what stands in for them.

use std::sync::Arc;

use swiglu_core::{
    Backend, ExpertsShape, Float, GatedActivation, GroupedMatmul, HostWeight, Request, Routes,
    Routing, Selection, Shape, Tensor, TensorMut, WeightFormat, bf16,
};

use crate::device::Facts;
use crate::pipelines::{LaneSums, Pipelines, Tier};
use crate::{WgpuBackend, requests, wgpu};

const TOP_K: usize = 3;

/// A layer's sizes.
#[derive(Clone, Copy, Debug)]
struct Layer {
    experts: usize,
    hidden: usize,
    intermediate: usize,
}

/// Columns that are no whole steps, and rows that are no whole tiles.
const NARROW: Layer = Layer {
    experts: 64,
    hidden: 160,
    intermediate: 96,
};

/// Rows that are longer than a vector for each lane of a workgroup, and such that two subgroups share.
const LONG: Layer = Layer {
    experts: 4,
    hidden: 4160,
    intermediate: 1056,
};

fn requests(routing: Routing) -> [Request; 2] {
    let (weight, float) = (WeightFormat::Fp4, Float::BF16);
    [
        Request::GroupedGatedMatmul {
            op: GatedActivation::deepseek_v4(),
            quant: None,
            routing,
            x: float,
            weight,
        },
        Request::GroupedMatmulSum {
            quant: None,
            routing,
            weight,
            y: Float::F32,
        },
    ]
}

/// Any codes, under scales from 2^-2 to 1.
fn weight(shape: [usize; 2], seed: usize) -> HostWeight<'static> {
    let codes = (0..shape[0] * shape[1] / 2).map(|i| ((i + seed) * 37 % 251) as u8);
    let scales = (0..shape[0] * shape[1] / 32).map(|i| 125 + ((i + seed) % 3) as u8);
    HostWeight::owned(shape, WeightFormat::Fp4, codes.collect(), scales.collect()).unwrap()
}

/// Whole numbers of bf16, under a power of two for each row.
fn rows(rows: usize, cols: usize) -> Vec<u8> {
    let value = |i: usize| ((i * 5 % 7) as f32 - 3.0) * 2_f32.powi((i / cols % 9) as i32 - 4);
    let all = (0..rows * cols).map(value);
    all.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect()
}

/// Both halves of a layer, whose sums are exact in f32 and so the same in any order.
fn run(backend: &WgpuBackend, layer: Layer, tokens: usize) -> [Vec<u8>; 2] {
    let Layer {
        experts: count,
        hidden,
        intermediate,
    } = layer;
    let routing = Routing::new(count, TOP_K, 1.0, true, Selection::Score).unwrap();
    let (format, bf16s) = (WeightFormat::Fp4, Float::BF16);
    let shape = ExpertsShape {
        range: 0..count,
        hidden,
        intermediate,
        gate_up: format,
        down: format,
    };
    let mut experts = backend.alloc_experts(shape).unwrap();
    for e in 0..count {
        let wide = [intermediate, hidden];
        let [gate, up] = [0, 1].map(|part| weight(wide, 7 * e + part));
        let down = weight([hidden, intermediate], 7 * e + 2);
        backend.load_expert(&mut experts, gate, up, down).unwrap();
    }
    let mut routes = Routes::new(backend, &routing, tokens).unwrap();
    // Some of no expert, and one expert with few rows.
    let id = |r: usize| match r % 29 {
        0 => -1,
        1 if r < 60 => count as i32 - 1,
        n => (n % (count - 1)) as i32,
    };
    let ids: Vec<i32> = (0..routes.count()).map(id).collect();
    let weights: Vec<f32> = (0..ids.len())
        .map(|r| 0.5 + 0.25 * (r % 3) as f32)
        .collect();
    routes.upload(backend, &ids, &weights).unwrap();
    let filled = |bytes: &[u8]| swiglu_conformance::filled(backend, bytes).unwrap();
    let contents = |buffer| swiglu_conformance::contents(backend, buffer).unwrap();
    let sizes = |cols, depth| Shape {
        rows: tokens,
        cols,
        depth,
    };
    let [first, second] = requests(routing);
    let bytes = backend.scratch(&first, &sizes(2 * intermediate, hidden));
    let bytes = bytes.max(backend.scratch(&second, &sizes(hidden, intermediate)));
    let mut scratch = backend.alloc(bytes).unwrap();
    let x = filled(&rows(tokens, hidden));
    let mut act = filled(&vec![0xff; 2 * ids.len() * intermediate]);
    let op = GatedActivation::deepseek_v4();
    let from = Tensor::contiguous(WgpuBackend::view(&x), bf16s, tokens, hidden);
    let view = WgpuBackend::view_mut(&mut act);
    let to = TensorMut::contiguous(view, bf16s, ids.len(), intermediate);
    let memory = WgpuBackend::view_mut(&mut scratch);
    backend
        .grouped_matmul_act_and_mul(&op, None, from, &experts, &routes, memory, to)
        .unwrap();
    // Not what the first half made: sums of that are not exact.
    let whole = filled(&rows(ids.len(), intermediate));
    let mut y = backend.alloc(4 * tokens * hidden).unwrap();
    let from = Tensor::contiguous(WgpuBackend::view(&whole), bf16s, ids.len(), intermediate);
    let view = WgpuBackend::view_mut(&mut y);
    let to = TensorMut::contiguous(view, Float::F32, tokens, hidden);
    let memory = WgpuBackend::view_mut(&mut scratch);
    backend
        .grouped_matmul_sum(None, from, &experts, &routes, None, memory, to)
        .unwrap();
    [contents(&act), contents(&y)]
}

/// Tiles of every height give the bits of kernels in order, and so do rows that their routes find.
#[test]
fn rows_of_experts_are_the_same_by_every_kernel() {
    let routing = Routing::new(NARROW.experts, TOP_K, 1.0, true, Selection::Score).unwrap();
    let requests = requests(routing);
    let builder = WgpuBackend::builder()
        .features(wgpu::Features::SHADER_F16)
        .for_requests(&requests);
    let backend = match builder.allow_software(true).open() {
        Ok(backend) => backend,
        Err(reason) => {
            return swiglu_conformance::may_skip("wgpu", &reason.to_string(), "experts");
        }
    };
    let with = |ordered, stands_in| {
        let mut other = backend.share();
        let tier = Tier {
            sums: LaneSums::Workgroup,
            e4m3_as_f16: false,
            two_buffers: false,
            expert_buffers: 1,
        };
        let facts = Facts {
            cooperative: false,
            ordered,
            ..Facts::of(backend.device(), false)
        };
        let kernels = requests::kernels(&requests, &facts).unwrap();
        let device = backend.device();
        let made = Pipelines::new(device, tier, facts, &Arc::default(), Some(&kernels));
        let mut pipelines = made.unwrap();
        if stands_in {
            pipelines.stand_in(device, tier).unwrap();
        }
        other.pipelines = Arc::new(pipelines);
        other
    };
    let (plain, standing_in) = (with(true, false), with(false, true));
    // By their routes; then in tiles of 16, 32, 64 and 128 rows.
    let narrow = [1, 20, 270, 500, 900, 1200].map(|tokens| (NARROW, tokens));
    for (layer, tokens) in narrow.into_iter().chain([(LONG, 1)]) {
        let want = run(&plain, layer, tokens);
        assert!(want.iter().all(|bytes| bytes.iter().any(|b| *b != 0)));
        for other in [&standing_in, &backend] {
            let got = run(other, layer, tokens);
            assert!(got[0] == want[0], "act of {tokens} tokens, {layer:?}");
            assert!(got[1] == want[1], "y of {tokens} tokens, {layer:?}");
        }
    }
}
