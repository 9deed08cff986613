//! Which pipelines there are. All are made when a backend is, or for one width when a weight is loaded,
//! so that no call compiles.

use std::collections::HashMap;
use std::sync::Mutex;

use swiglu_core::DType;

use crate::device::Device;
use crate::matmul::MANY_TILES;
use crate::pipelines::PipelineBuilder;
use crate::shaders::{self, ActivationKind, GATED_INVOCATIONS, RowKind, Shader, Tier};
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
    /// The number of large tiles from which on they pay: never in software, which has no use for
    /// many invocations.
    pub(crate) least_large_tiles: u32,
    /// Tiles of f16 by f16 on cooperative matrices, where the device has them.
    pub(crate) cooperative: Option<wgpu::ComputePipeline>,
    /// The same for dense rows of so many elements.
    dense: Mutex<HashMap<u32, wgpu::ComputePipeline>>,
}

/// The pipelines that quantize, and back.
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

/// Storage buffers of the kernels that quantize.
pub(crate) const QUANT_BUFFERS: u32 = 6;

impl QuantKernels {
    fn new(device: &Device, builder: &PipelineBuilder<'_>) -> Result<Self> {
        let (layout, back_layout) = (builder.bindings(3, 3)?, builder.bindings(2, 1)?);
        let back = shaders::dequantization();
        let [pipelines] = builder.build([(&layout, shaders::quantizations())])?;
        Ok(Self {
            pipelines,
            back: builder.build_one(&back_layout, &back)?,
            layout,
            back_layout,
            unused: device.create_buffer(16, wgpu::BufferUsages::STORAGE)?,
        })
    }
}

fn only_if(there: bool, list: Vec<Shader>) -> Vec<Shader> {
    if there { list } else { Vec::new() }
}

fn place<T: PartialEq>(all: &[T], one: T) -> Option<usize> {
    all.iter().position(|other| *other == one)
}

impl Kernels {
    pub(crate) fn new(device: &Device, tier: Tier) -> Result<Self> {
        let builder = PipelineBuilder::new(device)?;
        let activation_layout = builder.bindings(2, 1)?;
        let product_layout = builder.bindings(3, 1)?;
        let gates = device.invocations() >= GATED_INVOCATIONS;
        let multiplies = device.has_cooperative_matrices();
        let [activation, rows, tiles, gated, cooperative] = builder.build([
            (&activation_layout, shaders::activations()),
            (&product_layout, shaders::rows(tier)),
            (&product_layout, shaders::tiles(tier)),
            (&product_layout, only_if(gates, shaders::gated(tier))),
            (
                &product_layout,
                only_if(multiplies, vec![shaders::cooperative(None)]),
            ),
        ])?;
        let quantizes = device.storage_buffers() >= QUANT_BUFFERS;
        let quant = quantizes.then(|| QuantKernels::new(device, &builder));
        Ok(Self {
            native: true,
            least_large_tiles: if device.is_software() {
                u32::MAX
            } else {
                MANY_TILES
            },
            cooperative: cooperative.into_iter().next(),
            dense: Mutex::default(),
            quant: quant.transpose()?,
            activation_layout,
            product_layout,
            activation,
            rows,
            tiles,
            gated,
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
        let shader = shaders::cooperative(Some(k));
        let pipeline = PipelineBuilder::new(device)?.build_one(&self.product_layout, &shader)?;
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
