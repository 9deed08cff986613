//! Bare pointers, and calls that are captured or refused.

use std::io::Write;

use cudarc::driver::{DevicePtr, sys};
use swiglu_conformance::inputs::Numbers;
use swiglu_core::{
    Backend, Float, GatedActivation, Quantization, Rounding, RowLayout, ScaleFormat, ScaleLayout,
    ScaleOrder, bf16,
};
use swiglu_cuda::{LaunchOptions, RawGateUp, RawMatrix, RawQuantCall, RawQuantized, cudarc};

use crate::{
    common::{activated, open, quantized},
    device::bytes,
};

/// Captured calls through bare pointers replay on new values, the second launch waiting for the
/// first.
#[test]
fn captured_calls_replay_with_and_without_programmatic_launch() {
    let Some((backend, _turn)) = open() else {
        return;
    };
    let (op, quant) = (GatedActivation::deepseek_v4(), Quantization::deepseek_v4());
    let (rows, d) = (33, 2304);
    let scales_layout =
        ScaleLayout::contiguous(quant.format(), ScaleOrder::Packed, rows, quant.groups(d));
    let mut x = backend.alloc(rows * 2 * d * 2).unwrap();
    let codes = backend.alloc(rows * d).unwrap();
    let scales = backend.alloc(scales_layout.bytes().unwrap()).unwrap();
    let y = backend.alloc(rows * d * 2).unwrap();
    let matrix = |address, cols| RawMatrix {
        address,
        float: Float::BF16,
        layout: RowLayout::contiguous(rows, cols),
    };
    let call = RawQuantCall {
        input: RawGateUp::Merged(matrix(x.address(), 2 * d)),
        output: RawQuantized {
            codes: codes.address(),
            codes_layout: RowLayout::contiguous(rows, d),
            scales: scales.address(),
            scales_layout,
        },
        route: None,
        batches: None,
        hits: None,
    };
    let stream = backend.stream();
    let cu = stream.cu_stream();
    for options in [LaunchOptions::default(), LaunchOptions::programmatic()] {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).unwrap();
        // SAFETY: the buffers hold the matrices and outlive the graph.
        unsafe {
            let kernels = backend.quantizers();
            kernels
                .act_and_mul_quant_raw(cu, &op, &quant, &call, options)
                .unwrap();
            kernels
                .dequantize_raw(cu, &quant, &call.output, &matrix(y.address(), d), options)
                .unwrap();
        }
        let flags = sys::CUgraphInstantiate_flags(0);
        let graph = stream.end_capture(flags).unwrap().unwrap();
        for seed in 0..20 {
            let new: Vec<bf16> = Numbers::new(seed).values(rows * 2 * d, 15.0);
            backend.upload(&mut x, bytemuck::cast_slice(&new)).unwrap();
            graph.launch().unwrap();
            let got = bytes(&backend, &y);
            let want = activated(&backend, &op, &new, d);
            let want = quantized((quant, ScaleOrder::Packed), d, &want);
            assert_eq!(bytes(&backend, &codes), want.codes[..rows * d]);
            let got: &[bf16] = bytemuck::cast_slice(&got);
            assert!(got.iter().any(|y| y.to_f32() > 1.0) && got.iter().all(|y| y.is_finite()));
        }
    }
}

/// 2^31 + 2^13 elements of input, in vectors and in single elements: the last row is the reference's.
#[test]
fn offsets_beyond_2_to_the_31_are_reached() {
    let Some((backend, _turn)) = open() else {
        return;
    };
    let (op, quant) = (GatedActivation::deepseek_v4(), Quantization::deepseek_v4());
    let stream = backend.stream();
    for (rows, d) in [((1 << 18) + 1, 4096), (1_048_592, 1025)] {
        let scales_layout =
            ScaleLayout::contiguous(quant.format(), ScaleOrder::RowMajor, rows, quant.groups(d));
        let Ok(mut x) = stream.alloc_zeros::<bf16>(rows * 2 * d) else {
            let _ = writeln!(std::io::stderr(), "skipped: cuda: too little memory");
            return;
        };
        let codes = stream.alloc_zeros::<u8>(rows * d).unwrap();
        let scales = stream
            .alloc_zeros::<u8>(scales_layout.bytes().unwrap())
            .unwrap();
        let row: Vec<bf16> = Numbers::new(4).values(2 * d, 15.0);
        let from = (rows - 1) * 2 * d;
        stream.memcpy_htod(&row, &mut x.slice_mut(from..)).unwrap();
        let call = RawQuantCall {
            input: RawGateUp::Merged(RawMatrix {
                address: x.device_ptr(stream).0,
                float: Float::BF16,
                layout: RowLayout::contiguous(rows, 2 * d),
            }),
            output: RawQuantized {
                codes: codes.device_ptr(stream).0,
                codes_layout: RowLayout::contiguous(rows, d),
                scales: scales.device_ptr(stream).0,
                scales_layout,
            },
            route: None,
            batches: None,
            hits: None,
        };
        let (cu, options) = (stream.cu_stream(), LaunchOptions::default());
        let kernels = backend.quantizers();
        // SAFETY: the slices hold the matrices.
        unsafe { kernels.act_and_mul_quant_raw(cu, &op, &quant, &call, options) }.unwrap();
        let y = activated(&backend, &op, &row, d);
        let want = quantized((quant, ScaleOrder::RowMajor), d, &y);
        let got = stream.clone_dtoh(&codes.slice((rows - 1) * d..)).unwrap();
        assert_eq!(got, want.codes[..d]);
        let groups = quant.groups(d);
        let got = stream
            .clone_dtoh(&scales.slice((rows - 1) * groups..))
            .unwrap();
        assert_eq!(got, want.scales[..groups]);
        let first = stream.clone_dtoh(&scales.slice(..groups)).unwrap();
        assert!(first.iter().all(|&s| s == 105), "the scale of zeros");
    }
}

#[test]
fn wrong_calls_are_named() {
    let Some((backend, _turn)) = open() else {
        return;
    };
    let (op, quant) = (GatedActivation::deepseek_v4(), Quantization::deepseek_v4());
    let memory = backend.alloc(1 << 16).unwrap();
    let at = memory.address();
    let input = |address| {
        RawGateUp::Merged(RawMatrix {
            address,
            float: Float::BF16,
            layout: RowLayout::contiguous(2, 256),
        })
    };
    let good = RawQuantCall {
        input: input(at),
        output: RawQuantized {
            codes: at + 4096,
            codes_layout: RowLayout::contiguous(2, 128),
            scales: at + 8192,
            scales_layout: ScaleLayout::contiguous(quant.format(), ScaleOrder::RowMajor, 2, 1),
        },
        route: None,
        batches: None,
        hits: None,
    };
    let run = |op: &GatedActivation, quant: &Quantization, call: &RawQuantCall| {
        let (cu, options) = (backend.stream().cu_stream(), LaunchOptions::default());
        let kernels = backend.quantizers();
        // SAFETY: the memory holds what the call names, or the call is refused.
        unsafe { kernels.act_and_mul_quant_raw(cu, op, quant, call, options) }
            .map_err(|e| e.to_string())
    };
    run(&op, &quant, &good).unwrap();
    let mut odd = good;
    odd.input = input(at + 1);
    assert!(run(&op, &quant, &odd).unwrap_err().starts_with("input"));
    let mut narrow = good;
    narrow.output.codes_layout.cols = 64;
    assert!(run(&op, &quant, &narrow).unwrap_err().starts_with("codes"));
    let other = Quantization::new(64, ScaleFormat::E8M0).unwrap();
    assert!(run(&op, &other, &good).unwrap_err().starts_with("scales"));
    let hits = RawQuantCall {
        hits: Some(at + 2),
        ..good
    };
    assert!(run(&op, &quant, &hits).unwrap_err().starts_with("hits"));
    let eager = op.with_rounding(Rounding::Eager);
    let raw = quant.with_materialize(false);
    assert!(
        run(&eager, &raw, &good)
            .unwrap_err()
            .starts_with("materialize")
    );
    let route = RawQuantCall {
        route: Some(at),
        ..good
    };
    assert!(
        run(&eager, &quant, &route)
            .unwrap_err()
            .starts_with("route")
    );
}
