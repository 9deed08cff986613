//! An engine's own wgpu device, and two operations of swiglu in one pass of it.
//!
//! 1. Say what will be called: a matmul and an activation, both in f32.
//! 2. Open a device with what these need, and nothing more.
//! 3. Open swiglu on it: only the kernels of these requests are compiled, here and never later.
//! 4. Put input, what lies between and output into one pooled buffer, and record both operations
//!    into one compute pass of the engine's.

use std::error::Error;

use swiglu_core::{
    Float, GatedActivation, HostWeight, Matmul, Request, Tensor, TensorMut, WeightFormat,
};
use swiglu_wgpu::{Buffer, Builder, View, ViewMut, WgpuBackend, wgpu};

const OP: GatedActivation = GatedActivation::deepseek_v4();
const F32: WeightFormat = WeightFormat::Float(Float::F32);

/// What the engine asks of swiglu.
fn builder() -> Builder {
    let float = Float::F32;
    let matmul = Request::Matmul {
        x: float,
        weight: F32,
        y: float,
    };
    let activation = Request::Activation { op: OP, float };
    WgpuBackend::builder()
        .for_requests(&[matmul, activation])
        .shared_buffers(true)
}

/// The engine's device: an engine would join these limits to its own.
fn device(builder: &Builder) -> Result<(wgpu::Device, wgpu::Queue), Box<dyn Error>> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = pollster::block_on(instance.request_adapter(&Default::default()))?;
    let descriptor = wgpu::DeviceDescriptor {
        required_features: builder.required_features()
            | builder.optional_features() & adapter.features(),
        required_limits: builder.required_limits(),
        ..Default::default()
    };
    Ok(pollster::block_on(adapter.request_device(&descriptor))?)
}

/// silu(gate) · up of x · wᵀ, DeepSeek-V4's limits applied: x \[tokens, k\], w \[2d, k\] with the
/// gates' rows first, the result \[tokens, d\].
///
/// # Errors
/// No device, or sizes that do not fit.
pub fn gated_layer(
    x: &[f32],
    w: &[f32],
    [tokens, k]: [usize; 2],
) -> Result<Vec<f32>, Box<dyn Error>> {
    let builder = builder();
    let (device, queue) = device(&builder)?;
    let swiglu = builder.open_on(device.clone(), queue.clone())?;
    let rows = w.len() / k;
    let data = bytemuck::cast_slice(w);
    let weight = swiglu.load_weight(&[HostWeight::new([rows, k], F32, data, &[])?])?;

    // One page of the engine's pool: x, gates and ups, the result.
    let bytes = [k, rows, rows / 2].map(|cols| (tokens * cols * 4) as u64);
    let sizes = bytes.map(|bytes| bytes.next_multiple_of(256));
    let at = [0, sizes[0], sizes[0] + sizes[1]];
    let buffer = |size, usage| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage,
            mapped_at_creation: false,
        })
    };
    let page = buffer(sizes.iter().sum(), Buffer::USAGES);
    queue.write_buffer(&page, at[0], bytemuck::cast_slice(x));
    let input = Tensor::contiguous(View::new(&page, at[0], bytes[0])?, Float::F32, tokens, k);
    let matrix = |i: usize, cols: usize| -> swiglu_core::Result<_> {
        let view = ViewMut::new(&page, at[i], bytes[i])?;
        Ok(TensorMut::contiguous(view, Float::F32, tokens, cols))
    };
    let mut gate_up = matrix(1, rows)?;
    let output = matrix(2, rows / 2)?;

    let mut encoder = device.create_command_encoder(&Default::default());
    let mut pass = encoder.begin_compute_pass(&Default::default());
    swiglu.record_matmul(&mut pass, input, &weight, gate_up.reborrow())?;
    swiglu.record_act_and_mul(&mut pass, &OP, gate_up.as_tensor().into(), output)?;
    drop(pass);
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
    let staging = buffer(bytes[2], usage);
    encoder.copy_buffer_to_buffer(&page, at[2], &staging, 0, bytes[2]);
    queue.submit([encoder.finish()]);
    let slice = staging.slice(..);
    slice.map_async(wgpu::MapMode::Read, |_| {});
    device.poll(wgpu::PollType::wait_indefinitely())?;
    let result = bytemuck::cast_slice(&slice.get_mapped_range()?).to_vec();
    Ok(result)
}
