//! Builds pipelines, many at a time: drivers compile each on one thread, and take up to two seconds.
//!
//! ## Method
//! 1. Shaders become jobs. Many shaders differ in their constants only: a text is parsed and
//!    validated once.
//! 2. All modules, then all pipelines, are made on as many threads as there are processors.
//! 3. Where a call's matrices may share a buffer, inputs are bound, and declared, to be written too:
//!    wgpu takes one buffer several times if it is used in one way.

use std::borrow::Cow;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::cache::PipelineCache;
use super::shader::Shader;
use crate::device::{Device, IMMEDIATE_BYTES};
use crate::{Result, WgpuError};

const BUILDING: &str = "building the pipelines";

pub(crate) struct PipelineBuilder<'a> {
    device: &'a Device,
    cache: Option<&'a wgpu::PipelineCache>,
    shared_buffers: bool,
}

impl<'a> PipelineBuilder<'a> {
    pub(crate) const fn new(
        device: &'a Device,
        cache: &'a PipelineCache,
        shared_buffers: bool,
    ) -> Self {
        Self {
            device,
            cache: cache.raw(),
            shared_buffers,
        }
    }

    /// So many buffers to be read, then those to be written.
    pub(crate) fn bindings(&self, inputs: u32, outputs: u32) -> Result<wgpu::BindGroupLayout> {
        self.bindings_around(inputs, outputs, 0)
    }

    /// The same, and then more to be read.
    pub(crate) fn bindings_around(
        &self,
        inputs: u32,
        outputs: u32,
        more: u32,
    ) -> Result<wgpu::BindGroupLayout> {
        let end = inputs + outputs;
        let read_only = |binding| !self.shared_buffers && !(inputs..end).contains(&binding);
        self.device.scoped(BUILDING, || {
            storage_bindings(self.device.raw(), end + more, read_only)
        })
    }

    /// The pipelines of shaders, each with the layout of its bindings.
    pub(crate) fn build(
        &self,
        shaders: &[(&wgpu::BindGroupLayout, Shader)],
    ) -> Result<Vec<wgpu::ComputePipeline>> {
        // Many shaders differ in their constants only.
        let mut modules: Vec<&Shader> = Vec::new();
        let mut places = HashMap::new();
        let mut jobs = Vec::new();
        for (bindings, shader) in shaders {
            let place = *places
                .entry((&shader.source, shader.checked))
                .or_insert_with(|| {
                    modules.push(shader);
                    modules.len() - 1
                });
            jobs.push((*bindings, shader, place));
        }
        let modules = in_parallel(&modules, |shader| self.module(shader))?;
        in_parallel(&jobs, |(bindings, shader, place)| {
            self.pipeline(bindings, &modules[*place], shader)
        })
    }

    pub(crate) fn build_one(
        &self,
        bindings: &wgpu::BindGroupLayout,
        shader: &Shader,
    ) -> Result<wgpu::ComputePipeline> {
        self.pipeline(bindings, &self.module(shader)?, shader)
    }

    fn pipeline(
        &self,
        bindings: &wgpu::BindGroupLayout,
        module: &wgpu::ShaderModule,
        shader: &Shader,
    ) -> Result<wgpu::ComputePipeline> {
        let device = self.device.raw();
        self.device.scoped(BUILDING, || {
            let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some("swiglu"),
                bind_group_layouts: &[Some(bindings)],
                immediate_size: IMMEDIATE_BYTES,
            });
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(shader.entry),
                layout: Some(&layout),
                module,
                entry_point: Some(shader.entry),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &shader.constants,
                    zero_initialize_workgroup_memory: false,
                },
                cache: self.cache,
            })
        })
    }

    fn module(&self, shader: &Shader) -> Result<wgpu::ShaderModule> {
        let source = if self.shared_buffers {
            Cow::Owned(with_writable_inputs(&shader.source))
        } else {
            Cow::Borrowed(shader.source.as_str())
        };
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(shader.entry),
            source: wgpu::ShaderSource::Wgsl(source),
        };
        let checks = wgpu::ShaderRuntimeChecks {
            bounds_checks: shader.checked,
            int_div_checks: shader.checked,
            force_loop_bounding: false,
            ..wgpu::ShaderRuntimeChecks::checked()
        };
        // SAFETY: counters of loops keep drivers from unrolling; every loop of the shaders counts up
        // to a bound and ends. Only matmuls go unchecked: they read rows, tokens and scales below the
        // numbers in the call, which the host compares with the extents of the bindings, and divide
        // by sizes of blocks, which are above 0. A workgroup's memory they index by places that
        // follow from the invocation's and from constants.
        self.device.scoped(BUILDING, || unsafe {
            self.device
                .raw()
                .create_shader_module_trusted(descriptor, checks)
        })
    }
}

/// The layout of so many storage buffers, some of which are only read.
pub(crate) fn storage_bindings(
    device: &wgpu::Device,
    count: u32,
    read_only: impl Fn(u32) -> bool,
) -> wgpu::BindGroupLayout {
    let entries: Vec<_> = (0..count)
        .map(|binding| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage {
                    read_only: read_only(binding),
                },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        })
        .collect();
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: Some("swiglu"),
        entries: &entries,
    })
}

/// The text with every buffer declared to be written.
pub(super) fn with_writable_inputs(source: &str) -> String {
    source.replace("var<storage, read>", "var<storage, read_write>")
}

/// What `make` gives for each item, in their order, on as many threads as there are processors.
fn in_parallel<I: Sync, T: Send>(
    items: &[I],
    make: impl Fn(&I) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, T)>> {
        let mut made = Vec::new();
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(place) else {
                return Ok(made);
            };
            made.push((place, make(item)?));
        }
    };
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let mut made = thread::scope(|scope| -> Result<_> {
        // This thread works too; where others cannot be had, it makes what they would have.
        let others: Vec<_> = (1..threads.min(items.len()))
            .filter_map(|_| thread::Builder::new().spawn_scoped(scope, work).ok())
            .collect();
        let mut made = work()?;
        for other in others {
            let panicked = |_| WgpuError::failed(BUILDING, "a thread panicked");
            made.extend(other.join().map_err(panicked)??);
        }
        Ok(made)
    })?;
    made.sort_by_key(|(place, _)| *place);
    Ok(made.into_iter().map(|(_, one)| one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_their_order_and_errors_come_back() {
        let items: Vec<u32> = (0..100).collect();
        let squares = in_parallel(&items, |n| Ok(n * n)).unwrap();
        assert!(
            squares
                .iter()
                .zip(&items)
                .all(|(square, n)| *square == n * n)
        );
        let odd = in_parallel(&items, |n| match n {
            77 => Err(WgpuError::failed(BUILDING, n)),
            _ => Ok(()),
        });
        assert_eq!(odd.unwrap_err().to_string(), format!("{BUILDING}: 77"));
        assert!(in_parallel(&[0_u8; 0], |_| Ok(())).unwrap().is_empty());
    }
}
