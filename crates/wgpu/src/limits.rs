//! What a device allows at best, to be measured in the same run as a kernel and set beside it.
//!
//! ## Method
//! 1. Dispatches of a kernel that does nothing else follow one another in a submission, as many as take a few
//!    hundredths of a second: what submitting and waiting take is little beside that. The host's clock is read around
//!    it, so that a device needs no timestamps.
//! 2. A device is kept busy for a while first, as clocks rise under load. The median of some submissions counts.
//! 3. Memory is read and written in vectors of 16 bytes, each by an invocation of its own, in buffers that no cache
//!    holds. Arithmetic is done on sums that do not wait for one another.
//!
//! ```
//! use swiglu_wgpu::{WgpuBackend, limits};
//! # fn main() -> Result<(), swiglu_core::Error> {
//! # let Ok(backend) = WgpuBackend::builder().allow_software(true).for_requests(&[]).open() else {
//! #     return Ok(());
//! # };
//! let bytes_a_second = limits::read_rate(&backend)?;
//! assert!(bytes_a_second > 0.0);
//! # Ok(())
//! # }
//! ```

use std::time::Instant;

use crate::launch::{bind, in_workgroups};
use crate::pipelines::storage_bindings;
use crate::{Buffer, Result, WgpuBackend};

const MEMORY: &str = include_str!("shaders/limit_memory.wgsl");
const ARITHMETIC: &str = include_str!("shaders/limit_arithmetic.wgsl");
const MATRICES: &str = include_str!("shaders/limit_matrices.wgsl");

/// Their text and entries.
#[cfg(test)]
pub(crate) const SHADERS: [(&str, &str); 4] = [
    (MEMORY, "read_alone"),
    (MEMORY, "read_and_write"),
    (ARITHMETIC, "multiply_add"),
    (MATRICES, "multiply_matrices"),
];

/// More than caches hold, where bindings allow.
const COLD: u64 = 512 << 20;
/// A rasterizer's memory is the processor's, and it takes longer.
const COLD_IN_SOFTWARE: u64 = 64 << 20;
/// A submission takes at least so long, in seconds.
const LEAST: f64 = 0.02;
const SUBMISSIONS: usize = 5;
const MOST_DISPATCHES: u32 = 1 << 16;

/// Invocations of a workgroup that goes through memory, and vectors that each of them reads.
const INVOCATIONS: u32 = 256;
const READS: u32 = 8;

/// Rounds of an invocation's or a subgroup's arithmetic, as the shaders have them.
const ROUNDS: u32 = 256;
/// Clocks rise under load: a device that was idle is kept busy for so long first, in seconds.
const WARM: f64 = 0.3;
/// Multiplications and additions of an invocation in a round: of eight vectors of four.
const OPERATIONS: u32 = 2 * 8 * 4;
/// Those of a workgroup's four subgroups with eight matrices each.
const MATRIX_OPERATIONS: u32 = 4 * 8 * 2 * 16 * 16 * 16;

/// Bytes a second of reading, without writing.
///
/// # Errors
/// A failure of the device.
pub fn read_rate(backend: &WgpuBackend) -> Result<f64> {
    let bytes = cold(backend);
    let (a, b) = (filled(backend, bytes)?, buffer(backend, 16)?);
    let groups = u32::try_from(bytes / 16).unwrap_or(u32::MAX) / (INVOCATIONS * READS);
    let rounds = rate(backend, (MEMORY, "read_alone"), [&a, &a, &b], groups)?;
    Ok(rounds * f64::from(groups) * f64::from(INVOCATIONS * READS) * 16.0)
}

/// Bytes a second of reading two bytes for each that is written, both counted: what an activation does.
///
/// # Errors
/// A failure of the device.
pub fn read_and_write_rate(backend: &WgpuBackend) -> Result<f64> {
    let bytes = cold(backend);
    let (a, b) = (filled(backend, bytes)?, filled(backend, bytes)?);
    let to = buffer(backend, bytes)?;
    let groups = u32::try_from(bytes / 16).unwrap_or(u32::MAX) / INVOCATIONS;
    let rounds = rate(backend, (MEMORY, "read_and_write"), [&a, &b, &to], groups)?;
    Ok(rounds * f64::from(groups) * f64::from(INVOCATIONS) * 48.0)
}

/// Operations of f32 a second, multiplications and additions.
///
/// # Errors
/// A failure of the device.
pub fn multiply_add_rate(backend: &WgpuBackend) -> Result<f64> {
    let (a, b) = (filled(backend, 1 << 10)?, buffer(backend, 16)?);
    let groups = workgroups(backend);
    let rounds = rate(backend, (ARITHMETIC, "multiply_add"), [&a, &a, &b], groups)?;
    let all = f64::from(INVOCATIONS) * f64::from(ROUNDS) * f64::from(OPERATIONS);
    Ok(rounds * f64::from(groups) * all)
}

/// The same of f16 on cooperative matrices with sums in f32, where the backend has them.
///
/// # Errors
/// A failure of the device.
pub fn matrix_unit_rate(backend: &WgpuBackend) -> Result<Option<f64>> {
    if !backend.device().has_cooperative_matrices() {
        return Ok(None);
    }
    let (a, b) = (filled(backend, 1 << 10)?, buffer(backend, 1 << 12)?);
    let groups = workgroups(backend);
    let rounds = rate(
        backend,
        (MATRICES, "multiply_matrices"),
        [&a, &a, &b],
        groups,
    )?;
    let all = f64::from(ROUNDS) * f64::from(MATRIX_OPERATIONS);
    Ok(Some(rounds * f64::from(groups) * all))
}

fn cold(backend: &WgpuBackend) -> u64 {
    let device = backend.device();
    let wanted = if device.is_software() {
        COLD_IN_SOFTWARE
    } else {
        COLD
    };
    // Whole workgroups.
    wanted.min(device.bindings().bytes) >> 16 << 16
}

/// Workgroups that keep a device busy for a while.
fn workgroups(backend: &WgpuBackend) -> u32 {
    if backend.device().is_software() {
        64
    } else {
        8192
    }
}

fn buffer(backend: &WgpuBackend, bytes: u64) -> Result<Buffer> {
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    Buffer::allocated(backend.device(), bytes)
}

/// Numbers of ordinary size: of zeros, arithmetic and memory may be faster.
fn filled(backend: &WgpuBackend, bytes: u64) -> Result<Buffer> {
    let buffer = buffer(backend, bytes)?;
    let numbers: Vec<u32> = (0..1 << 20)
        .scan(1_u32, |state, _| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Some(*state >> 4 & 0x0fff_0fff | 0x3000_3000)
        })
        .collect();
    let block: &[u8] = bytemuck::cast_slice(&numbers);
    for at in (0..buffer.len()).step_by(block.len()) {
        let count = block.len().min(buffer.len() - at);
        let device = backend.device();
        device.write_words(buffer.raw(), at, &block[..count])?;
    }
    Ok(buffer)
}

/// How often a second so many workgroups of a kernel are done.
fn rate(
    backend: &WgpuBackend,
    (source, entry): (&str, &str),
    [a, b, to]: [&Buffer; 3],
    groups: u32,
) -> Result<f64> {
    let device = backend.device();
    let (layout, pipeline) = device.scoped("building a kernel", || {
        pipeline(device.raw(), source, entry)
    })?;
    let bindings = [a, b, to].map(|buffer| buffer.raw().as_entire_buffer_binding());
    let group = bind(device, &layout, bindings)?;
    let [x, y] = in_workgroups(&device.bindings(), groups);
    let submission = |dispatches: u32| -> Result<f64> {
        let start = Instant::now();
        device.scoped("submitting", || {
            let mut encoder = device.encoder();
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&pipeline);
            pass.set_bind_group(0, &group, &[]);
            for _ in 0..dispatches {
                pass.dispatch_workgroups(x, y, 1);
            }
            drop(pass);
            device.queue().submit([encoder.finish()]);
        })?;
        device.wait_for_submitted()?;
        Ok(start.elapsed().as_secs_f64())
    };
    backend.recorder.wait()?;
    let mut dispatches = 1;
    while submission(dispatches)? < LEAST && dispatches < MOST_DISPATCHES {
        dispatches *= 2;
    }
    let start = Instant::now();
    while !device.is_software() && start.elapsed().as_secs_f64() < WARM {
        submission(dispatches)?;
    }
    let mut seconds = [0.0; SUBMISSIONS];
    for time in &mut seconds {
        *time = submission(dispatches)?;
    }
    seconds.sort_unstable_by(f64::total_cmp);
    Ok(f64::from(dispatches) / seconds[SUBMISSIONS / 2])
}

/// A kernel with two buffers that it reads and one that it writes.
fn pipeline(
    device: &wgpu::Device,
    source: &str,
    entry: &str,
) -> (wgpu::BindGroupLayout, wgpu::ComputePipeline) {
    let layout = storage_bindings(device, 3, |binding| binding < 2);
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some(entry),
        source: wgpu::ShaderSource::Wgsl(source.into()),
    });
    let of_pipeline = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: None,
        bind_group_layouts: &[Some(&layout)],
        immediate_size: 0,
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(entry),
        layout: Some(&of_pipeline),
        module: &module,
        entry_point: Some(entry),
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    (layout, pipeline)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On whatever device there is, in orders of magnitude.
    #[test]
    fn rates_are_such_of_a_device() {
        let builder = WgpuBackend::builder().allow_software(true);
        let backend = match builder.for_requests(&[]).open() {
            Ok(backend) => backend,
            Err(reason) => {
                swiglu_conformance::may_skip("wgpu", &reason.to_string(), "limits");
                return;
            }
        };
        let unit = matrix_unit_rate(&backend).unwrap();
        assert_eq!(unit.is_some(), backend.device().has_cooperative_matrices());
        let memory = [read_rate(&backend), read_and_write_rate(&backend)];
        let arithmetic = multiply_add_rate(&backend).unwrap();
        for rate in memory
            .map(Result::unwrap)
            .into_iter()
            .chain([arithmetic])
            .chain(unit)
        {
            assert!((1e7..1e16).contains(&rate), "{rate}");
        }
        assert!(
            unit.is_none_or(|unit| unit > arithmetic),
            "{unit:?} {arithmetic}"
        );
    }
}
