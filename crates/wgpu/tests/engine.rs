//! On an engine's own device: opened for what it asks for, recorded into its encoders, called from
//! its threads.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

mod common;

use std::thread;

use common::{Page, open, values};
use swiglu_core::{
    Backend, Float, GatedActivation, HostWeight, Matmul, QuantOptions, Quantization, Quantize,
    QuantizedMut, Request, RowLayout, ScaleLayout, ScaleOrder, Support, TensorMut, WeightFormat,
    bf16,
};
use swiglu_wgpu::{Builder, Weight, WgpuBackend, wgpu};

const OP: GatedActivation = GatedActivation::deepseek_v4();
const ACTIVATION: Request = Request::Activation {
    op: OP,
    float: Float::BF16,
};

/// A device of an engine's: no more than what is given.
fn device(features: wgpu::Features, limits: wgpu::Limits) -> Option<(wgpu::Device, wgpu::Queue)> {
    // Where nothing can be opened at all, this skips.
    open(false)?;
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let descriptor = wgpu::DeviceDescriptor {
        required_features: features,
        required_limits: limits,
        ..Default::default()
    };
    pollster::block_on(async {
        let adapter = instance.request_adapter(&Default::default()).await.unwrap();
        Some(adapter.request_device(&descriptor).await.unwrap())
    })
}

fn opened(builder: &Builder) -> Option<WgpuBackend> {
    let (device, queue) = device(builder.required_features(), builder.required_limits())?;
    Some(builder.open_on(device, queue).unwrap())
}

/// The least device that one activation asks for runs it, at the limits that no kernel may exceed,
/// and refuses what it was not opened for.
#[test]
fn a_device_for_one_activation_is_small_and_runs_nothing_else() {
    let builder = WgpuBackend::builder().for_requests(&[ACTIVATION]);
    let Some(backend) = opened(&builder) else {
        return;
    };
    let limits = backend.device().raw().limits();
    assert_eq!(limits.max_storage_buffers_per_shader_stage, 3);
    assert_eq!(limits.max_compute_workgroup_storage_size, 0);
    let whole = open(false).unwrap();
    for d in [1024, 1031] {
        let input = values::<bf16>(2 * 2 * d, 1);
        let [got, want] = [&backend, whole].map(|b| b.act_and_mul_slice(&OP, &input, d).unwrap());
        assert_eq!(got, want);
    }
    assert_eq!(backend.supports(&ACTIVATION), Support::Native);
    let other = Request::Activation {
        op: OP,
        float: Float::F16,
    };
    let Support::No(reason) = backend.supports(&other) else {
        panic!("f16 was not asked for");
    };
    assert!(reason.contains("Builder::for_requests"), "{reason}");
    let error = backend.act_and_mul_slice(&OP, &[half::f16::ONE; 4], 2);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("opened for other requests"), "{error}");
}

/// Each kind of request runs on the limits that it says are enough, and not on fewer buffers.
#[test]
fn required_limits_are_enough_and_one_buffer_less_is_refused() {
    let weight = WeightFormat::DEEPSEEK_V4;
    let (quant, x, y) = (Quantization::deepseek_v4(), Float::BF16, Float::BF16);
    for (request, buffers) in [
        (ACTIVATION, 3),
        (Request::Matmul { x, weight, y }, 4),
        (
            Request::GatedMatmul {
                op: OP,
                x,
                weight,
                act: y,
            },
            4,
        ),
        (Request::Quantize { quant, float: x }, 7),
        (
            Request::ActivationQuant {
                op: OP,
                quant,
                float: x,
            },
            7,
        ),
        (Request::QuantizedMatmul { quant, weight, y }, 7),
    ] {
        let builder = WgpuBackend::builder().for_requests(&[request]);
        let Some(backend) = opened(&builder) else {
            return;
        };
        assert!(backend.supports(&request).runs(), "{request}");
        let mut limits = builder.required_limits();
        assert_eq!(
            limits.max_storage_buffers_per_shader_stage, buffers,
            "{request}"
        );
        limits.max_storage_buffers_per_shader_stage -= 1;
        let (device, queue) = device(builder.required_features(), limits).unwrap();
        let error = builder.open_on(device, queue).unwrap_err().to_string();
        let expected = format!("a max_storage_buffers_per_shader_stage of {buffers} (it has");
        assert!(error.contains(&expected), "{error}");
    }
    let everything = WgpuBackend::builder().required_limits();
    assert_eq!(everything.max_storage_buffers_per_shader_stage, 7);
    let builder = WgpuBackend::builder();
    let (device, queue) = device(wgpu::Features::empty(), wgpu::Limits::default()).unwrap();
    let error = builder.open_on(device, queue).unwrap_err().to_string();
    assert!(error.ends_with("lacks the features IMMEDIATES"), "{error}");
}

const TOKENS: usize = 5;
const H: usize = 256;
const I: usize = 128;

/// The weights of an FP8 MLP: gate and up, and down.
fn weights(backend: &WgpuBackend) -> [Weight; 2] {
    [[2 * I, H], [H, I]].map(|[rows, cols]| {
        let codes = values::<f32>(rows * cols, 7);
        let codes = codes
            .iter()
            .map(|w| swiglu_core::E4M3::from_f32_saturating(w / 8.0).0);
        let blocks = rows.div_ceil(128) * cols.div_ceil(128);
        let format = WeightFormat::DEEPSEEK_V4;
        let data: Vec<_> = codes.collect();
        let host = HostWeight::owned([rows, cols], format, data, vec![125; blocks]);
        backend.load_weight(&[host.unwrap()]).unwrap()
    })
}

/// Quantize, multiply, activate and quantize, multiply: every operation of an FP8 MLP, with all
/// that it reads and writes in the pages given (one, or one each).
fn layer(backend: &WgpuBackend, weights: &[Weight; 2], pages: &[Page]) -> swiglu_core::Result<()> {
    let quant = Quantization::deepseek_v4();
    let page = |i: usize| &pages[i % pages.len()];
    let quantized = |i: usize, cols: usize| {
        let groups = quant.groups(cols);
        let order = ScaleOrder::RowMajor;
        let scale_layout = ScaleLayout::contiguous(quant.format(), order, TOKENS, groups);
        QuantizedMut::<WgpuBackend> {
            codes: page(i).view_mut(i * STEP, TOKENS * cols),
            layout: RowLayout::contiguous(TOKENS, cols),
            scales: page(i + 1).view_mut((i + 1) * STEP, scale_layout.bytes().unwrap()),
            scale_layout,
        }
    };
    let matrix = |i: usize, cols: usize| {
        let view = page(i).view_mut(i * STEP, TOKENS * cols * 2);
        TensorMut::<WgpuBackend>::contiguous(view, Float::BF16, TOKENS, cols)
    };
    let scratch = |i: usize, cols: usize| page(i).view_mut(i * STEP, TOKENS * cols * 2);
    let (x, gate_up, y) = (matrix(0, H), matrix(4, 2 * I), matrix(8, H));
    let mut codes = quantized(1, H);
    backend.quantize(&quant, x.as_tensor(), codes.reborrow())?;
    let read = codes.as_quantized();
    let mut gate_up = gate_up;
    backend.matmul_quantized(&quant, read, &weights[0], scratch(3, H), gate_up.reborrow())?;
    let mut act = quantized(5, I);
    let input = gate_up.as_tensor().into();
    let options = QuantOptions::default();
    backend.act_and_mul_quant(&OP, &quant, input, act.reborrow(), options)?;
    backend.matmul_quantized(&quant, act.as_quantized(), &weights[1], scratch(7, I), y)
}

/// From one matrix of a layer to the next in a page of all.
const STEP: usize = 4096;
const PAGE: usize = 9 * STEP;

fn pages(backend: &WgpuBackend, count: usize, seed: u64) -> Vec<Page> {
    let mut pages: Vec<_> = (0..count).map(|_| Page::new(backend, PAGE)).collect();
    pages[0].put(backend, 0, &values::<bf16>(TOKENS * H, seed));
    pages
}

fn result(backend: &WgpuBackend, pages: &[Page]) -> Vec<u8> {
    let all = pages[8 % pages.len()].contents(backend);
    all[8 * STEP..8 * STEP + TOKENS * H * 2].to_vec()
}

/// Codes, scales, scratch, what lies between and the ends in one pooled buffer.
#[test]
fn every_operation_of_an_fp8_mlp_runs_in_one_buffer() {
    let (Some(apart), Some(shared)) = (open(false), open(true)) else {
        return;
    };
    let run = |backend: &WgpuBackend, count: usize| {
        let pages = pages(backend, count, 3);
        layer(backend, &weights(backend), &pages).unwrap();
        result(backend, &pages)
    };
    let want = run(apart, 9);
    assert!(want.iter().any(|byte| *byte != 0));
    assert!(run(shared, 9) == want);
    assert!(run(shared, 1) == want);
}

/// Everything that an MLP calls goes into the caller's encoder, and runs when that is submitted.
#[test]
fn an_fp8_mlp_is_recorded_into_a_callers_encoder() {
    let Some(backend) = open(false).map(WgpuBackend::share) else {
        return;
    };
    let weights = weights(&backend);
    let direct = pages(&backend, 9, 4);
    layer(&backend, &weights, &direct).unwrap();
    let want = result(&backend, &direct);
    let recorded = pages(&backend, 9, 4);
    let raw = backend.device().raw().clone();
    let mut encoder = raw.create_command_encoder(&Default::default());
    let before = result(&backend, &recorded);
    backend
        .record_into(&mut encoder, || {
            // What must wait, and what other threads call, is refused in words.
            let mut buffer = backend.alloc(16)?;
            for refused in [
                backend.synchronize(),
                backend.flush(),
                backend.upload(&mut buffer, &[0; 16]),
                backend.download(&buffer, &mut [0; 16]),
                thread::scope(|scope| {
                    let call = || layer(&backend, &weights, &recorded);
                    scope.spawn(call).join().unwrap()
                }),
            ] {
                let error = refused.unwrap_err().to_string();
                assert!(error.ends_with("into a caller's encoder"), "{error}");
            }
            layer(&backend, &weights, &recorded)
        })
        .unwrap();
    assert!(result(&backend, &recorded) == before);
    backend.device().queue().submit([encoder.finish()]);
    assert!(result(&backend, &recorded) == want);
    // Calls go their own way again.
    layer(&backend, &weights, &pages(&backend, 9, 5)).unwrap();
    backend.synchronize().unwrap();
}

/// Threads with a share each, and threads that call one backend, over one set of weights.
#[test]
fn many_threads_share_pipelines_and_weights() {
    let Some(backend) = open(false) else {
        return;
    };
    let weights = weights(backend);
    let run = |backend: &WgpuBackend, seed: u64| {
        let pages = pages(backend, 9, seed);
        layer(backend, &weights, &pages).unwrap();
        result(backend, &pages)
    };
    let want: Vec<_> = (0..4).map(|seed| run(backend, seed)).collect();
    assert!(want[0] != want[1]);
    for shares in [true, false] {
        thread::scope(|scope| {
            for (seed, want) in want.iter().enumerate() {
                let run = &run;
                scope.spawn(move || {
                    let own = shares.then(|| backend.share());
                    let backend = own.as_ref().unwrap_or(backend);
                    for _ in 0..4 {
                        assert!(run(backend, seed as u64) == *want, "{seed}, {shares}");
                    }
                });
            }
        });
    }
}

/// A share works when the backend that it came from is gone.
#[test]
fn a_share_outlives_its_origin() {
    let builder = WgpuBackend::builder().for_requests(&[ACTIVATION]);
    let Some(backend) = opened(&builder) else {
        return;
    };
    let share = backend.share();
    let input = values::<bf16>(64, 2);
    let want = backend.act_and_mul_slice(&OP, &input, 32).unwrap();
    drop(backend);
    assert_eq!(share.act_and_mul_slice(&OP, &input, 32).unwrap(), want);
}
