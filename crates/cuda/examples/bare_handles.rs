//! The backend on an engine's bare handles: see docs/another-cudarc.md.
#![allow(clippy::print_stdout, reason = "a program")]

use std::ffi::c_void;
use std::sync::Arc;

use swiglu_core::{
    ActAndMul, Float, GatedActivation, HostWeight, Matmul, QuantOptions, Quantization, Quantize,
    QuantizedMut, RowLayout, ScaleLayout, ScaleOrder, Tensor, TensorMut, WeightFormat, bf16,
};
use swiglu_cuda::{CudaBackend, DeviceView, DeviceViewMut};
use swiglu_mlp::synthetic::{SyntheticConfig, synthetic_input};
use swiglu_mlp::{DeepseekV4Mlp, ModelConfig, SharedExpert, Workspace};

#[path = "bare_handles/engine.rs"]
pub mod engine;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Tokens, the hidden size, and the width between.
pub const SIZES: [usize; 3] = [4, 256, 128];

// page: begin
/// What an engine has: a `CUcontext`, a `CUstream`, and addresses of device memory.
#[derive(Clone, Copy)]
struct Memory {
    address: u64,
    bytes: usize,
}

/// The engine's memory as a matrix that calls read.
fn read<'a>(memory: Memory, float: Float, [rows, cols]: [usize; 2]) -> Tensor<'a, CudaBackend> {
    // SAFETY: the engine keeps its memory until it has waited for the stream, and writes it on that
    // stream alone.
    let view = unsafe { DeviceView::from_raw(memory.address, memory.bytes) };
    Tensor::contiguous(view, float, rows, cols)
}

/// As one that calls write.
fn write<'a>(memory: Memory, float: Float, [rows, cols]: [usize; 2]) -> TensorMut<'a, CudaBackend> {
    // SAFETY: as `read`; no call here is given the same memory twice.
    let view = unsafe { DeviceViewMut::from_raw(memory.address, memory.bytes) };
    TensorMut::contiguous(view, float, rows, cols)
}

/// The backend on the engine's stream. Of another cudarc, `context` is
/// `context.cu_ctx().cast()` and `stream` is `stream.cu_stream().cast()`.
fn open(context: *mut c_void, stream: *mut c_void) -> swiglu_cuda::Result<CudaBackend> {
    // SAFETY: both are the engine's, and live longer than the backend.
    unsafe { CudaBackend::from_raw(context, stream) }
}

/// `act` [T, I] = act(`gate_up` [T, 2I]), in bf16.
fn activate(cuda: &CudaBackend, gate_up: Memory, act: Memory) -> swiglu_core::Result<()> {
    let [t, _, i] = SIZES;
    let op = GatedActivation::deepseek_v4();
    let input = read(gate_up, Float::BF16, [t, 2 * i]).into();
    cuda.act_and_mul(&op, input, write(act, Float::BF16, [t, i]))
}

/// The same as FP8 codes [T, I] with an E8M0 scale for each 128.
fn activate_and_quantize(
    cuda: &CudaBackend,
    gate_up: Memory,
    [codes, scales]: [Memory; 2],
) -> swiglu_core::Result<()> {
    let [t, _, i] = SIZES;
    let (op, quant) = (GatedActivation::deepseek_v4(), Quantization::deepseek_v4());
    let (format, order) = (quant.format(), ScaleOrder::RowMajor);
    // SAFETY: as `write`.
    let output = unsafe {
        QuantizedMut {
            codes: DeviceViewMut::from_raw(codes.address, codes.bytes),
            layout: RowLayout::contiguous(t, i),
            scales: DeviceViewMut::from_raw(scales.address, scales.bytes),
            scale_layout: ScaleLayout::contiguous(format, order, t, quant.groups(i)),
        }
    };
    let input = read(gate_up, Float::BF16, [t, 2 * i]).into();
    cuda.act_and_mul_quant(&op, &quant, input, output, QuantOptions::default())
}

/// y [T, 2I] = x [T, H] · wᵀ. The backend keeps the weight, as it reads it.
fn multiply(
    cuda: &CudaBackend,
    w: &HostWeight<'_>,
    x: Memory,
    y: Memory,
) -> swiglu_core::Result<()> {
    let [t, h, i] = SIZES;
    let weight = cuda.load_weight(std::slice::from_ref(w))?;
    let x = read(x, Float::BF16, [t, h]);
    cuda.matmul(x, &weight, write(y, Float::BF16, [t, 2 * i]))
}

/// y [T, H] = mlp(x [T, H]); here and on another stream of the engine's, over the same weights.
fn forward(mlp: &DeepseekV4Mlp<CudaBackend>, x: Memory, y: Memory) -> swiglu_mlp::Result<()> {
    let [t, h, _] = SIZES;
    let (x, y) = (read(x, Float::BF16, [t, h]), write(y, Float::BF16, [t, h]));
    mlp.forward(x, y, &mut Workspace::new())
}
// page: end

/// What the calls gave, the MLP on either stream.
#[derive(Debug, PartialEq, Eq)]
pub struct Results {
    /// bf16 [T, 2I].
    pub gate_up: Vec<u8>,
    /// bf16 [T, I].
    pub act: Vec<u8>,
    /// [T, I].
    pub codes: Vec<u8>,
    /// bf16 [T, H] each.
    pub y: [Vec<u8>; 2],
}

/// Runs all of the page on the first device.
pub fn run() -> Result<Results> {
    let [t, h, i] = SIZES;
    let engine = engine::Engine::new()?;
    let streams = [engine.stream()?, engine.stream()?];
    let cuda = Arc::new(open(engine.context(), streams[0])?);
    let memory = |bytes| {
        engine
            .allocate(bytes)
            .map(|address| Memory { address, bytes })
    };
    let [x, y, again] = [memory(2 * t * h)?, memory(2 * t * h)?, memory(2 * t * h)?];
    let [gate_up, act] = [memory(4 * t * i)?, memory(2 * t * i)?];
    let [codes, scales] = [memory(t * i)?, memory(t)?];
    let input = synthetic_input(t, h, 7);
    engine.upload(x.address, bytemuck::cast_slice(&input))?;

    let form = SyntheticConfig {
        hidden: h,
        intermediate: i,
        ..SyntheticConfig::flash(1)
    };
    let config = ModelConfig::from_json(&form.config_json())?.mlp_config(&form.prefix())?;
    let numbers = weights();
    let weight = |shape| host_weight(&numbers, shape);
    multiply(&cuda, &weight([2 * i, h])?, x, gate_up)?;
    activate(&cuda, gate_up, act)?;
    activate_and_quantize(&cuda, gate_up, [codes, scales])?;

    let expert = SharedExpert::new(weight([i, h])?, weight([i, h])?, weight([h, i])?);
    let mlp = DeepseekV4Mlp::load(cuda.clone(), &config, &expert)?;
    forward(&mlp, x, y)?;
    engine.synchronize(streams[0])?;
    // SAFETY: the stream is the engine's, and lives longer than the backend.
    let other = unsafe { cuda.on_raw(streams[1])? };
    forward(&mlp.on(Arc::new(other)), x, again)?;
    engine.synchronize(streams[1])?;

    let bytes = |memory: Memory| -> Result<Vec<u8>> {
        let mut bytes = vec![0; memory.bytes];
        engine.download(memory.address, &mut bytes)?;
        Ok(bytes)
    };
    Ok(Results {
        gate_up: bytes(gate_up)?,
        act: bytes(act)?,
        codes: bytes(codes)?,
        y: [bytes(y)?, bytes(again)?],
    })
}

/// FP8 codes of all signs.
pub fn weights() -> Vec<u8> {
    let [_, h, i] = SIZES;
    let code = |at: usize| (at * 37 % 0x70) as u8 | u8::from(at.is_multiple_of(3)) << 7;
    (0..2 * i * h).map(code).collect()
}

/// A weight of these codes, under scales of 2^-9.
pub fn host_weight(codes: &[u8], [rows, cols]: [usize; 2]) -> swiglu_core::Result<HostWeight<'_>> {
    let scales = &[118; 8][..rows.div_ceil(128) * cols.div_ceil(128)];
    let codes = &codes[..rows * cols];
    HostWeight::new([rows, cols], WeightFormat::DEEPSEEK_V4, codes, scales)
}

fn main() -> Result<()> {
    if let Err(reason) = swiglu_cuda::probe() {
        println!("skipped: cuda: {reason}");
        return Ok(());
    }
    let results = run()?;
    if results.y[0] != results.y[1] {
        return Err("the streams give different bits".into());
    }
    let first: bf16 = bytemuck::pod_read_unaligned(&results.y[0][..2]);
    println!("y begins with {}", first.to_f32());
    Ok(())
}
