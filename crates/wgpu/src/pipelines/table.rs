//! The pipelines of one device. All are made when a backend is, or for one width when a weight is
//! loaded, so that no call compiles.

use std::collections::HashMap;
use std::sync::Mutex;

use super::activation::{self, ActivationKernel};
use super::compile::PipelineBuilder;
use super::matmul::{GATED_INVOCATIONS, GatedKernel, MANY_TILES, MatmulKernel, Tier};
use super::matmul_text;
use super::quantize::{self, QUANTIZE_BUFFERS, QuantizeKernel};
use super::shader::Shader;
use crate::device::{Device, Facts};
use crate::{Result, WgpuError};

/// The pipelines of one device.
#[derive(Debug)]
pub(crate) struct Pipelines {
    /// What plans are made from.
    pub(crate) facts: Facts,
    /// Two inputs, then an output.
    pub(crate) activation_bindings: wgpu::BindGroupLayout,
    /// By [`ActivationKernel::ALL`].
    activation: Vec<wgpu::ComputePipeline>,
    /// None where a device has too few storage buffers.
    pub(crate) quantize: Option<QuantizePipelines>,
    /// Three inputs, then an output.
    pub(crate) matmul_bindings: wgpu::BindGroupLayout,
    gemvs: Vec<wgpu::ComputePipeline>,
    tiles: Vec<wgpu::ComputePipeline>,
    /// None where a device has too small workgroups.
    gated: Vec<wgpu::ComputePipeline>,
    /// Tiles of f16 by f16 on cooperative matrices, where the device has them.
    cooperative: Option<wgpu::ComputePipeline>,
    /// The same for dense rows of so many elements.
    dense: Mutex<HashMap<u32, wgpu::ComputePipeline>>,
}

/// The pipelines that quantize, and back.
#[derive(Debug)]
pub(crate) struct QuantizePipelines {
    /// Four inputs, then codes, scales and counters.
    pub(crate) bindings: wgpu::BindGroupLayout,
    /// By [`QuantizeKernel::ALL`].
    pipelines: Vec<wgpu::ComputePipeline>,
    /// Codes and scales, then an output.
    pub(crate) back_bindings: wgpu::BindGroupLayout,
    pub(crate) back: wgpu::ComputePipeline,
    /// Bound where there are no counters.
    pub(crate) unused: wgpu::Buffer,
}

impl QuantizePipelines {
    fn new(device: &Device, builder: &PipelineBuilder<'_>) -> Result<Self> {
        let (bindings, back_bindings) = (builder.bindings(4, 3)?, builder.bindings(2, 1)?);
        let back = quantize::dequantization();
        let [pipelines] = builder.build([(&bindings, quantize::quantizations())])?;
        Ok(Self {
            pipelines,
            back: builder.build_one(&back_bindings, &back)?,
            bindings,
            back_bindings,
            unused: device.create_buffer(16, wgpu::BufferUsages::STORAGE)?,
        })
    }

    pub(crate) fn get(&self, kernel: QuantizeKernel) -> Result<&wgpu::ComputePipeline> {
        there(self.pipelines.get(kernel.index()), kernel)
    }
}

fn only_if(there: bool, list: Vec<Shader>) -> Vec<Shader> {
    if there { list } else { Vec::new() }
}

/// A pipeline that a plan has chosen, which only chooses among those that there are.
fn there(
    pipeline: Option<&wgpu::ComputePipeline>,
    kernel: impl ToString,
) -> Result<&wgpu::ComputePipeline> {
    pipeline.ok_or_else(|| WgpuError::failed("choosing a kernel", kernel))
}

impl Pipelines {
    pub(crate) fn new(device: &Device, tier: Tier, shared_buffers: bool) -> Result<Self> {
        let builder = PipelineBuilder::new(device, shared_buffers)?;
        let activation_bindings = builder.bindings(2, 1)?;
        let matmul_bindings = builder.bindings(3, 1)?;
        let gates = device.invocations() >= GATED_INVOCATIONS;
        let multiplies = device.has_cooperative_matrices();
        let [activation, gemvs, tiles, gated, cooperative] = builder.build([
            (&activation_bindings, activation::shaders()),
            (&matmul_bindings, matmul_text::gemvs(tier)),
            (&matmul_bindings, matmul_text::tiles(tier)),
            (&matmul_bindings, only_if(gates, matmul_text::gated(tier))),
            (
                &matmul_bindings,
                only_if(multiplies, vec![matmul_text::cooperative(None)]),
            ),
        ])?;
        let quantizes = device.storage_buffers() >= QUANTIZE_BUFFERS;
        let quantize = quantizes.then(|| QuantizePipelines::new(device, &builder));
        Ok(Self {
            facts: Facts {
                bindings: device.bindings(),
                software: device.is_software(),
                native: true,
                gated: gates,
                cooperative: multiplies,
                // Software has no use for many invocations.
                least_large_tiles: if device.is_software() {
                    u32::MAX
                } else {
                    MANY_TILES
                },
                shared_buffers,
            },
            cooperative: cooperative.into_iter().next(),
            dense: Mutex::default(),
            quantize: quantize.transpose()?,
            activation_bindings,
            matmul_bindings,
            activation,
            gemvs,
            tiles,
            gated,
        })
    }

    pub(crate) fn activation(&self, kernel: ActivationKernel) -> Result<&wgpu::ComputePipeline> {
        there(self.activation.get(kernel.index()), kernel)
    }

    /// The pipeline of a kernel; `dense` is the weight's own for dense rows of x.
    pub(crate) fn matmul<'a>(
        &'a self,
        kernel: MatmulKernel,
        dense: Option<&'a wgpu::ComputePipeline>,
    ) -> Result<&'a wgpu::ComputePipeline> {
        let pipeline = match kernel {
            MatmulKernel::Gemv(..) => self.gemvs.get(kernel.index()),
            MatmulKernel::Tiles(..) => self.tiles.get(kernel.index()),
            MatmulKernel::Cooperative { dense: true } => dense,
            MatmulKernel::Cooperative { dense: false } => self.cooperative.as_ref(),
        };
        there(pipeline, kernel)
    }

    pub(crate) fn gated(&self, kernel: GatedKernel) -> Result<&wgpu::ComputePipeline> {
        there(self.gated.get(kernel.index()), kernel)
    }

    /// The kernel on cooperative matrices for dense rows of `k` elements, built where it is not
    /// there yet.
    pub(crate) fn dense(&self, device: &Device, k: u32) -> Result<wgpu::ComputePipeline> {
        let mut dense = self.dense.lock()?;
        if let Some(pipeline) = dense.get(&k) {
            return Ok(pipeline.clone());
        }
        let shader = matmul_text::cooperative(Some(k));
        let builder = PipelineBuilder::new(device, self.facts.shared_buffers)?;
        let pipeline = builder.build_one(&self.matmul_bindings, &shader)?;
        dense.insert(k, pipeline.clone());
        Ok(pipeline)
    }
}
