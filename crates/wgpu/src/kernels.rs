//! The compute pipelines. All are made when a backend is, or for one width when a weight is loaded, so
//! that no call compiles.

use std::collections::HashMap;
use std::sync::Mutex;

use swiglu_core::DType;

use crate::device::{Device, IMMEDIATE_BYTES};
use crate::shaders::{self, ActivationKind, Checks, GATED_INVOCATIONS, RowKind, Shader, Tier};
use crate::{Result, WgpuError};

/// The pipelines of one device.
#[derive(Debug)]
pub(crate) struct Kernels {
    /// Two inputs, then an output.
    pub(crate) activation_layout: wgpu::BindGroupLayout,
    /// By [`shaders::activation_kinds`].
    activation: Vec<wgpu::ComputePipeline>,
    /// Whether the device's own exp2 and division will do for 16-bit activations.
    pub(crate) native: bool,
    /// None where a device has too few storage buffers.
    pub(crate) quant: Option<QuantKernels>,
    /// Three inputs, then an output.
    pub(crate) product_layout: wgpu::BindGroupLayout,
    /// By weight type and [`shaders::ROW_KINDS`].
    rows: Vec<wgpu::ComputePipeline>,
    /// By [`shaders::GATED_WEIGHTS`] and [`shaders::USUAL_TOKENS`]; none where a device has too
    /// small workgroups, or they do not compute what they should.
    pub(crate) gated: Vec<wgpu::ComputePipeline>,
    /// By weight type and [`shaders::TILE_KINDS`].
    tiles: Vec<wgpu::ComputePipeline>,
    /// Whether large tiles pay: software has no use for many invocations.
    pub(crate) large_tiles: bool,
    /// Tiles of f16 by f16 on cooperative matrices, where the device has them.
    pub(crate) cooperative: Option<wgpu::ComputePipeline>,
    /// The same for dense rows of so many elements.
    dense: Mutex<HashMap<u32, wgpu::ComputePipeline>>,
}

/// The pipelines that quantise, and back.
#[derive(Debug)]
pub(crate) struct QuantKernels {
    /// Three inputs, then codes, scales and counters.
    pub(crate) layout: wgpu::BindGroupLayout,
    /// By compute type, then for a matrix of any.
    pub(crate) pipelines: Vec<wgpu::ComputePipeline>,
    /// Codes and scales, then an output.
    pub(crate) back_layout: wgpu::BindGroupLayout,
    pub(crate) back: wgpu::ComputePipeline,
    /// Bound where there are no counters.
    pub(crate) unused: wgpu::Buffer,
}

/// Storage buffers of the kernels that quantise.
pub(crate) const QUANT_BUFFERS: u32 = 6;

fn place<T: PartialEq>(all: &[T], one: T) -> Option<usize> {
    all.iter().position(|other| *other == one)
}

impl Kernels {
    pub(crate) fn new(device: &Device, tier: Tier) -> Result<Self> {
        let unused = device.create_buffer(16, wgpu::BufferUsages::STORAGE)?;
        device.scoped("building the pipelines", || {
            let builder = PipelineBuilder::new(device);
            let activation_layout = builder.bindings(2, 1);
            let product_layout = builder.bindings(3, 1);
            let build = |layout: &wgpu::BindGroupLayout, list: Vec<Shader>| {
                builder.build_all(layout, &list)
            };
            let quant = (device.storage_buffers() >= QUANT_BUFFERS).then(|| {
                let (layout, back_layout) = (builder.bindings(3, 3), builder.bindings(2, 1));
                QuantKernels {
                    pipelines: build(&layout, shaders::quantisations()),
                    back: builder.build(&back_layout, &shaders::dequantisation()),
                    layout,
                    back_layout,
                    unused,
                }
            });
            let cooperative = device.has_cooperative_matrices();
            let cooperative =
                cooperative.then(|| builder.build(&product_layout, &shaders::cooperative(None)));
            let gated = if device.invocations() >= GATED_INVOCATIONS {
                build(&product_layout, shaders::gated(tier))
            } else {
                Vec::new()
            };
            Self {
                native: true,
                gated,
                large_tiles: !device.is_software(),
                cooperative,
                dense: Mutex::default(),
                quant,
                activation: build(&activation_layout, shaders::activations()),
                rows: build(&product_layout, shaders::rows(tier)),
                tiles: build(&product_layout, shaders::tiles(tier)),
                activation_layout,
                product_layout,
            }
        })
    }

    pub(crate) fn activation(
        &self,
        dtype: DType,
        kind: ActivationKind,
    ) -> Result<&wgpu::ComputePipeline> {
        place(&shaders::activation_kinds(), (dtype, kind))
            .and_then(|at| self.activation.get(at))
            .ok_or_else(|| WgpuError::failed("choosing a kernel", dtype))
    }

    /// The matrix-vector kernel of that kind.
    pub(crate) fn rows(&self, weight: DType, kind: RowKind) -> Result<&wgpu::ComputePipeline> {
        place(&shaders::ROW_KINDS, kind)
            .zip(place(&shaders::WEIGHTS, weight))
            .and_then(|(kind, w)| self.rows.get(w * shaders::ROW_KINDS.len() + kind))
            .ok_or_else(|| WgpuError::failed("choosing a kernel", weight))
    }

    /// The kernel that multiplies so many tokens and activates, if there is one.
    pub(crate) fn gated(&self, weight: DType, tokens: usize) -> Option<&wgpu::ComputePipeline> {
        let weight = place(&shaders::GATED_WEIGHTS, weight)?;
        let kind = shaders::USUAL_TOKENS
            .iter()
            .position(|most| tokens <= *most as usize)?;
        self.gated.get(weight * shaders::USUAL_TOKENS.len() + kind)
    }

    /// The kernel on cooperative matrices for dense rows of `k` elements, built where it is not
    /// there yet.
    pub(crate) fn dense(&self, device: &Device, k: u32) -> Result<wgpu::ComputePipeline> {
        let mut dense = self.dense.lock()?;
        if let Some(pipeline) = dense.get(&k) {
            return Ok(pipeline.clone());
        }
        let pipeline = device.scoped("building a pipeline", || {
            let shader = shaders::cooperative(Some(k));
            PipelineBuilder::new(device).build(&self.product_layout, &shader)
        })?;
        dense.insert(k, pipeline.clone());
        Ok(pipeline)
    }

    /// The kernel that makes tiles, large ones if they are asked for and there are such, and the
    /// tiles' side.
    pub(crate) fn tiles(
        &self,
        weight: DType,
        large: bool,
        aligned: bool,
    ) -> Result<(&wgpu::ComputePipeline, u32)> {
        let size = usize::from(large && aligned);
        place(&shaders::TILE_KINDS, (size, aligned))
            .zip(place(&shaders::WEIGHTS, weight))
            .and_then(|(kind, w)| self.tiles.get(w * shaders::TILE_KINDS.len() + kind))
            .map(|pipeline| (pipeline, shaders::TILES[size]))
            .ok_or_else(|| WgpuError::failed("choosing a kernel", weight))
    }
}

struct PipelineBuilder<'a> {
    device: &'a wgpu::Device,
    cache: Option<wgpu::PipelineCache>,
}

impl<'a> PipelineBuilder<'a> {
    fn new(device: &'a Device) -> Self {
        let device = device.raw();
        let cached = device.features().contains(wgpu::Features::PIPELINE_CACHE);
        let cache = cached.then(|| {
            let descriptor = wgpu::PipelineCacheDescriptor {
                label: Some("swiglu"),
                data: None,
                fallback: true,
            };
            // SAFETY: the obligation is on the initial data, of which there is none.
            unsafe { device.create_pipeline_cache(&descriptor) }
        });
        Self { device, cache }
    }

    /// So many read-only buffers, then those to be written.
    fn bindings(&self, inputs: u32, outputs: u32) -> wgpu::BindGroupLayout {
        let entries: Vec<_> = (0..inputs + outputs)
            .map(|binding| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage {
                        read_only: binding < inputs,
                    },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        self.device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some("swiglu"),
                entries: &entries,
            })
    }

    fn layout(&self, bindings: &wgpu::BindGroupLayout) -> wgpu::PipelineLayout {
        self.device
            .create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some("swiglu"),
                bind_group_layouts: &[Some(bindings)],
                immediate_size: IMMEDIATE_BYTES,
            })
    }

    fn pipeline(
        &self,
        layout: &wgpu::PipelineLayout,
        module: &wgpu::ShaderModule,
        shader: &Shader,
    ) -> wgpu::ComputePipeline {
        self.device
            .create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(shader.entry),
                layout: Some(layout),
                module,
                entry_point: Some(shader.entry),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &shader.constants,
                    zero_initialize_workgroup_memory: false,
                },
                cache: self.cache.as_ref(),
            })
    }

    fn build(&self, bindings: &wgpu::BindGroupLayout, shader: &Shader) -> wgpu::ComputePipeline {
        self.pipeline(&self.layout(bindings), &self.module(shader), shader)
    }

    fn build_all(
        &self,
        bindings: &wgpu::BindGroupLayout,
        shaders: &[Shader],
    ) -> Vec<wgpu::ComputePipeline> {
        let layout = self.layout(bindings);
        // Most shaders differ from the one before in their constants only.
        let mut module: Option<(&str, wgpu::ShaderModule)> = None;
        shaders
            .iter()
            .map(|shader| {
                let same = module.take().filter(|(source, _)| *source == shader.source);
                let (_, module) =
                    module.insert(same.unwrap_or_else(|| (&shader.source, self.module(shader))));
                self.pipeline(&layout, module, shader)
            })
            .collect()
    }

    fn module(&self, shader: &Shader) -> wgpu::ShaderModule {
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(shader.entry),
            source: wgpu::ShaderSource::Wgsl(shader.source.as_str().into()),
        };
        let checks = wgpu::ShaderRuntimeChecks {
            bounds_checks: shader.checks != Checks::None,
            int_div_checks: shader.checks == Checks::All,
            force_loop_bounding: false,
            ..wgpu::ShaderRuntimeChecks::checked()
        };
        // SAFETY: counters of loops keep drivers from unrolling; every loop of the shaders counts up
        // to a bound and ends. Of bounds and divisors only products go unchecked: they read rows,
        // tokens and scales below the numbers in the call, which the host compares with the extents
        // of the bindings, and divide by sizes of blocks, which are above 0. Those that activate as
        // well index nothing else but eight words of a workgroup's memory for each token.
        unsafe { self.device.create_shader_module_trusted(descriptor, checks) }
    }
}
