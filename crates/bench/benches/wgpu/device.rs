//! A device, what runs on it, and how it is timed.
//!
//! ## Method
//! 1. Copies run for a tenth of a second before each measurement, and for a second where the device was idle while
//!    weights were made: clocks rise under load.
//! 2. Many dispatches go into one compute pass, between two timestamp queries; barriers between them
//!    are part of the time. Weights take turns, so that they come from memory.
//! 3. The median of several passes counts, without the first three, which fill caches.
//! 4. The MLP is timed as the host sees it: enqueued, submitted and waited for.

use std::cell::Cell;
use std::error::Error;
use std::time::{Duration, Instant};

use swiglu_bench::median;
use swiglu_conformance::{filled, timing};
use swiglu_core::{
    Backend, Float, GatedActivation, HostWeight, Matmul, Tensor, TensorMut, WeightFormat,
};
use swiglu_wgpu::{Buffer, View, ViewMut, Weight, WgpuBackend, wgpu};

pub type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

const PLAIN: &str = "
@group(0) @binding(0) var<storage, read> a: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> b: array<vec4<u32>>;
@compute @workgroup_size(256)
fn copy(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>,
        @builtin(local_invocation_index) l: u32) {
    let i = (g.y * n.x + g.x) * 256u + l;
    if i < arrayLength(&b) { b[i] = a[i]; }
}
@compute @workgroup_size(1)
fn nothing() { if arrayLength(&a) == 0u { b[0] = a[0]; } }
";

/// A device with the kernels that it is measured beside.
pub struct Bench {
    pub backend: WgpuBackend,
    copy: wgpu::ComputePipeline,
    nothing: wgpu::ComputePipeline,
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    read: Buffer,
    /// A copy of [`LOAD_GROUPS`] workgroups.
    load: wgpu::BindGroup,
    /// When the device was last busy.
    busy: Cell<Instant>,
}

const LOAD_GROUPS: u32 = 16384;

impl Bench {
    /// Opens the best adapter.
    pub fn new() -> Result<Self> {
        let features = wgpu::Features::TIMESTAMP_QUERY;
        let backend = WgpuBackend::builder().features(features).open()?;
        let device = backend.device().raw();
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl(PLAIN.into()),
        });
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: None,
            entries: &[true, false].map(|read_only| wgpu::BindGroupLayoutEntry {
                binding: u32::from(!read_only),
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            }),
        });
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = |entry| {
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: None,
                layout: Some(&layout),
                module: &module,
                entry_point: Some(entry),
                compilation_options: Default::default(),
                cache: None,
            })
        };
        let (copy, nothing) = (pipeline("copy"), pipeline("nothing"));
        let queries = device.create_query_set(&wgpu::QuerySetDescriptor {
            label: None,
            ty: wgpu::QueryType::Timestamp,
            count: 2,
        });
        let resolved = device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 256,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let read = backend.alloc(16)?;
        let size = LOAD_GROUPS as usize * 256 * 16;
        let load = bind(device, &copy, &backend.alloc(size)?, &backend.alloc(size)?);
        Ok(Self {
            load,
            busy: Cell::new(Instant::now()),
            copy,
            nothing,
            queries,
            resolved,
            read,
            backend,
        })
    }

    /// Whether it is a rasterizer in software: then shapes are smaller, and passes fewer.
    pub fn software(&self) -> bool {
        self.backend.device().info().device_type == wgpu::DeviceType::Cpu
    }

    /// Microseconds for one of `count` dispatches: the median of several passes.
    fn time(
        &self,
        count: usize,
        mut record: impl FnMut(&mut wgpu::ComputePass<'_>, usize) -> Result<()>,
    ) -> Result<f64> {
        let passes = if self.software() { 3 } else { 45 };
        self.median_of(passes, count, |encoder| {
            let mut pass = encoder.begin_compute_pass(&self.stamped([Some(0), Some(1)]));
            (0..count).try_for_each(|i| record(&mut pass, i))
        })
    }

    /// The same for one of `count` times the calls that `f` makes of the backend's traits.
    pub fn time_calls(
        &self,
        count: usize,
        mut f: impl FnMut(usize) -> swiglu_core::Result<()>,
    ) -> Result<f64> {
        let passes = if self.software() { 3 } else { 15 };
        self.median_of(passes, count, |encoder| {
            // Passes of nothing but a time, around those of the calls.
            drop(encoder.begin_compute_pass(&self.stamped([Some(0), None])));
            let calls = || (0..count).try_for_each(&mut f);
            self.backend.record_into(encoder, calls)?;
            drop(encoder.begin_compute_pass(&self.stamped([None, Some(1)])));
            Ok(())
        })
    }

    /// A compute pass that writes times where it begins and ends.
    const fn stamped(&self, [begin, end]: [Option<u32>; 2]) -> wgpu::ComputePassDescriptor<'_> {
        wgpu::ComputePassDescriptor {
            label: None,
            timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                query_set: &self.queries,
                beginning_of_pass_write_index: begin,
                end_of_pass_write_index: end,
            }),
        }
    }

    /// Microseconds for one of `count` things that an encoder records, between two times.
    fn median_of(
        &self,
        passes: usize,
        count: usize,
        mut record: impl FnMut(&mut wgpu::CommandEncoder) -> Result<()>,
    ) -> Result<f64> {
        let (device, queue) = (self.backend.device().raw(), self.backend.device().queue());
        self.warm()?;
        let mut times = Vec::new();
        for _ in 0..passes + 3 {
            let mut encoder = device.create_command_encoder(&Default::default());
            record(&mut encoder)?;
            encoder.resolve_query_set(&self.queries, 0..2, &self.resolved, 0);
            encoder.copy_buffer_to_buffer(&self.resolved, 0, self.read.raw(), 0, 16);
            queue.submit([encoder.finish()]);
            // Asleep: the host asks for nothing while kernels are timed.
            device.poll(wgpu::PollType::wait_indefinitely())?;
            let mut ticks = [0_u64; 2];
            self.backend
                .download(&self.read, bytemuck::cast_slice_mut(&mut ticks))?;
            let ns = (ticks[1] - ticks[0]) as f64 * f64::from(queue.get_timestamp_period());
            times.push(ns / 1e3 / count as f64);
        }
        self.busy.set(Instant::now());
        // What the first passes bring to the caches does not count.
        Ok(median(times.split_off(3)))
    }

    /// A copy that reads and writes `bytes` in all.
    pub fn copy(&self, bytes: usize) -> Result<f64> {
        let half = (bytes / 2).next_multiple_of(16);
        let (a, b) = (self.noise(half)?, self.backend.alloc(half)?);
        let group = self.bind(&self.copy, &a, &b);
        let groups = half.div_ceil(16 * 256) as u32;
        let x = groups.min(32768);
        self.time(10, |pass, _| {
            pass.set_pipeline(&self.copy);
            pass.set_bind_group(0, &group, &[]);
            pass.dispatch_workgroups(x, groups.div_ceil(x), 1);
            Ok(())
        })
    }

    /// A tenth of a second of copies, or ten where the device was idle for as long: clocks rise under load, and fall
    /// without it.
    pub fn warm(&self) -> Result<()> {
        let (device, queue) = (self.backend.device().raw(), self.backend.device().queue());
        let start = Instant::now();
        let idle = start.duration_since(self.busy.get()).as_secs_f64();
        let seconds = if idle > 0.1 { 1.0 } else { 0.1 };
        while !self.software() && start.elapsed().as_secs_f64() < seconds {
            let mut encoder = device.create_command_encoder(&Default::default());
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(&self.copy);
            pass.set_bind_group(0, &self.load, &[]);
            for _ in 0..100 {
                pass.dispatch_workgroups(LOAD_GROUPS, 1, 1);
            }
            drop(pass);
            queue.submit([encoder.finish()]);
            self.backend.synchronize()?;
        }
        Ok(())
    }

    /// A dispatch that does nothing.
    pub fn nothing(&self) -> Result<f64> {
        let (a, b) = (self.backend.alloc(16)?, self.backend.alloc(16)?);
        let group = self.bind(&self.nothing, &a, &b);
        self.time(200, |pass, _| {
            pass.set_pipeline(&self.nothing);
            pass.set_bind_group(0, &group, &[]);
            pass.dispatch_workgroups(1, 1, 1);
            Ok(())
        })
    }

    fn bind(&self, pipeline: &wgpu::ComputePipeline, a: &Buffer, b: &Buffer) -> wgpu::BindGroup {
        bind(self.backend.device().raw(), pipeline, a, b)
    }

    /// A buffer of numbers of ordinary size in each of the types.
    fn noise(&self, bytes: usize) -> Result<Buffer> {
        Ok(filled(&self.backend, &noise(bytes))?)
    }

    /// Elements of bf16 with which the weights here make gates of ordinary size: beyond 88 most silu
    /// are too small for the native kernel, and computed again.
    pub fn tokens(&self, elements: usize) -> Result<Buffer> {
        let mut bytes = noise(2 * elements);
        for high in bytes.iter_mut().skip(1).step_by(2) {
            // By two of the exponent's upper bits: a sixteenth.
            *high -= 2;
        }
        Ok(filled(&self.backend, &bytes)?)
    }

    /// DeepSeek-V4's activation.
    pub fn activation(&self, float: Float, rows: usize, d: usize, count: usize) -> Result<f64> {
        let op = GatedActivation::deepseek_v4();
        let input = self.noise(rows * 2 * d * float.size())?;
        let mut output = self.backend.alloc(rows * d * float.size())?;
        self.time(count, |pass, _| {
            let x = read(&input, float, rows, 2 * d);
            let y = write(&mut output, float, rows, d);
            Ok(self.backend.record_act_and_mul(pass, &op, x.into(), y)?)
        })
    }

    /// A weight [rows, cols] of ordinary numbers, with scales of 1 if it has any.
    pub fn weight(&self, format: WeightFormat, rows: usize, cols: usize) -> Result<Weight> {
        let data = noise(rows * format.row_bytes(cols));
        let [r, c] = format.scale_grid([rows, cols])?;
        let host = HostWeight::owned([rows, cols], format, data, vec![127; r * c])?;
        Ok(self.backend.load_weight(&[host])?)
    }

    /// A matmul, over several copies of the weight in turn, so that it comes from memory.
    pub fn matmul(
        &self,
        (tokens, float): (usize, Float),
        weights: &[Weight],
        count: usize,
    ) -> Result<f64> {
        let [n, k] = self.backend.weight_shape(&weights[0]);
        let x = self.noise(tokens * k * float.size())?;
        let mut y = self.backend.alloc(tokens * n * float.size())?;
        self.time(count, |pass, i| {
            let x = read(&x, float, tokens, k);
            let y = write(&mut y, float, tokens, n);
            let weight = &weights[i % weights.len()];
            Ok(self.backend.record_matmul(pass, x, weight, y)?)
        })
    }

    /// The gated half of an MLP, over several copies of the weight in turn.
    pub fn gated(&self, tokens: usize, weights: &[Weight], count: usize) -> Result<f64> {
        let op = GatedActivation::deepseek_v4();
        let [n, k] = self.backend.weight_shape(&weights[0]);
        let (bf16, b) = (Float::BF16, &self.backend);
        let x = self.tokens(tokens * k)?;
        let (mut g, mut a) = (b.alloc(tokens * n * 2)?, b.alloc(tokens * n)?);
        self.time(count, |pass, i| {
            let x = read(&x, bf16, tokens, k);
            let g = write(&mut g, bf16, tokens, n);
            let a = write(&mut a, bf16, tokens, n / 2);
            let weight = &weights[i % weights.len()];
            Ok(b.record_matmul_act_and_mul(pass, &op, x, weight, g, a)?)
        })
    }

    /// The whole MLP on the device, over several copies of its weights (gate and up, down) in turn.
    pub fn mlp_on_device(
        &self,
        tokens: usize,
        weights: &[[Weight; 2]],
        count: usize,
    ) -> Result<f64> {
        let op = GatedActivation::deepseek_v4();
        let [h, i] = self.backend.weight_shape(&weights[0][1]);
        let (bf16, b) = (Float::BF16, &self.backend);
        let x = self.tokens(tokens * h)?;
        let [mut g, mut a, mut y] = [4 * i, 2 * i, 2 * h].map(|bytes| b.alloc(tokens * bytes));
        let (g, a, y) = (g.as_mut(), a.as_mut(), y.as_mut());
        let (Ok(g), Ok(a), Ok(y)) = (g, a, y) else {
            return Err("out of memory".into());
        };
        self.time(count, |pass, n| {
            let [gate_up, down] = &weights[n % weights.len()];
            let x = read(&x, bf16, tokens, h);
            let between = write(g, bf16, tokens, 2 * i);
            let act = write(a, bf16, tokens, i);
            b.record_matmul_act_and_mul(pass, &op, x, gate_up, between, act)?;
            let (a, y) = (read(a, bf16, tokens, i), write(y, bf16, tokens, h));
            Ok(b.record_matmul(pass, a, down, y)?)
        })
    }

    /// Microseconds the host sees for the whole MLP at T = 1 in one submission: the medians of some
    /// rounds, in order. Between rounds the host may move to another processor.
    pub fn mlp(&self, format: WeightFormat, h: usize, i: usize) -> Result<Vec<f64>> {
        let op = GatedActivation::deepseek_v4();
        let (gate_up, down) = (self.weight(format, 2 * i, h)?, self.weight(format, h, i)?);
        let x = self.tokens(h)?;
        let b = &self.backend;
        let (mut g, mut a, mut y) = (b.alloc(4 * i)?, b.alloc(2 * i)?, b.alloc(2 * h)?);
        let bf16 = Float::BF16;
        let mut one = || -> Result<()> {
            b.matmul_act_and_mul(
                &op,
                read(&x, bf16, 1, h),
                &gate_up,
                write(&mut g, bf16, 1, 2 * i),
                write(&mut a, bf16, 1, i),
            )?;
            b.matmul(read(&a, bf16, 1, i), &down, write(&mut y, bf16, 1, h))?;
            Ok(b.synchronize()?)
        };
        let rounds = if self.software() { 1 } else { 9 };
        let round = |_| {
            let passes = |n| (0..n).try_for_each(|_| one());
            Ok(timing::time(Duration::from_millis(20), 30, passes)?.median * 1e6)
        };
        let mut medians = (0..rounds).map(round).collect::<Result<Vec<_>>>()?;
        medians.sort_by(f64::total_cmp);
        Ok(medians)
    }
}

pub fn read(buffer: &Buffer, float: Float, rows: usize, cols: usize) -> Tensor<'_, WgpuBackend> {
    Tensor::contiguous(View::from(buffer), float, rows, cols)
}

pub fn write(
    buffer: &mut Buffer,
    float: Float,
    rows: usize,
    cols: usize,
) -> TensorMut<'_, WgpuBackend> {
    TensorMut::contiguous(ViewMut::from(buffer), float, rows, cols)
}

fn bind(
    device: &wgpu::Device,
    pipeline: &wgpu::ComputePipeline,
    a: &Buffer,
    b: &Buffer,
) -> wgpu::BindGroup {
    device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.get_bind_group_layout(0),
        entries: &[a, b].map(|buffer| wgpu::BindGroupEntry {
            binding: u32::from(std::ptr::eq(buffer, b)),
            resource: buffer.raw().as_entire_binding(),
        }),
    })
}

/// Bytes that are numbers between 2^-8 and 2 in every type; the same 4 MiB again and again.
pub fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let random = |i| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let random = (state >> 24) as u8;
        if i % 2 == 1 {
            0x3c + (random & 0x83)
        } else {
            random & 0xb7
        }
    };
    let block: Vec<u8> = (0..bytes.min(4 << 20)).map(random).collect();
    let mut data = Vec::with_capacity(bytes);
    while data.len() < bytes {
        let more = block.len().min(bytes - data.len());
        data.extend_from_slice(&block[..more]);
    }
    data
}
