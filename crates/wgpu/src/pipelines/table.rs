//! The pipelines of one device: those of the kernels that its requests run. All are made when a
//! backend is, or for one width when a weight is loaded, so that no call compiles.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use swiglu_core::Error;

use super::activation::ActivationKernel;
use super::cache::PipelineCache;
use super::compile::PipelineBuilder;
use super::cooperative::CooperativeKernel;
#[cfg(test)]
use super::grouped::GroupedKernel;
use super::grouped::GroupedKind;
use super::kernel::Kernel;
use super::matmul::{
    DeviceFormat, GATED_INVOCATIONS, GatedKernel, GemvKind, MANY_TILES, MatmulKernel, Tier,
    TileKind,
};
use super::moe::{MOE_BUFFERS, MoeKernel};
use super::quantize::{QUANTIZE_BUFFERS, QuantizeKernel};
use crate::Result;
use crate::device::{Device, Facts};
use crate::error::PLATFORM;
use crate::launch::Scratch;

/// Why a kernel is missing.
pub(crate) const UNDECLARED: &str =
    "the backend was opened for other requests; Builder::for_requests takes this one too";

/// Pipelines by the index of their kernels; none where they were not asked for.
#[derive(Debug)]
struct Table(Vec<Option<wgpu::ComputePipeline>>);

impl Table {
    fn of(kernels: usize) -> Self {
        Self(vec![None; kernels])
    }

    fn has(&self, index: usize) -> bool {
        self.0.get(index).is_some_and(Option::is_some)
    }

    fn set(&mut self, index: usize, pipeline: wgpu::ComputePipeline) {
        if let Some(place) = self.0.get_mut(index) {
            *place = Some(pipeline);
        }
    }

    fn get(&self, index: usize, kernel: impl fmt::Display) -> Result<&wgpu::ComputePipeline> {
        there(self.0.get(index).and_then(Option::as_ref), kernel)
    }
}

fn there(
    pipeline: Option<&wgpu::ComputePipeline>,
    kernel: impl fmt::Display,
) -> Result<&wgpu::ComputePipeline> {
    match pipeline {
        Some(pipeline) => Ok(pipeline),
        None => Err(Error::unsupported(PLATFORM, kernel, UNDECLARED).into()),
    }
}

/// The pipelines of one device.
#[derive(Debug)]
pub(crate) struct Pipelines {
    /// What plans are made from.
    pub(crate) facts: Facts,
    /// Whether every kernel is there.
    pub(crate) complete: bool,
    /// Two inputs, then an output.
    pub(crate) activation_bindings: wgpu::BindGroupLayout,
    activation: Table,
    /// None where a device has too few storage buffers.
    pub(crate) quantize: Option<QuantizePipelines>,
    /// None where a device has too few storage buffers.
    pub(crate) moe: Option<MoePipelines>,
    /// Three inputs, then an output; none where a device that only activates has too few.
    matmul_bindings: Option<wgpu::BindGroupLayout>,
    gemvs: Table,
    tiles: Table,
    gated: Table,
    cooperative: Table,
    /// Some of these for dense rows of so many elements.
    dense: Mutex<HashMap<(usize, u32), wgpu::ComputePipeline>>,
    rows_as_f16: Option<wgpu::ComputePipeline>,
    /// What the driver made of them.
    pub(crate) cache: Arc<PipelineCache>,
    /// x in f16.
    pub(crate) scratch: Scratch,
    /// Whether other kernels stand in for those on cooperative matrices.
    #[cfg(test)]
    stands_in: bool,
}

/// The pipelines that quantize, and back.
#[derive(Debug)]
pub(crate) struct QuantizePipelines {
    /// Four inputs, then codes, scales and counters.
    pub(crate) bindings: wgpu::BindGroupLayout,
    pipelines: Table,
    /// Codes and scales, then an output.
    pub(crate) back_bindings: wgpu::BindGroupLayout,
    back: Option<wgpu::ComputePipeline>,
    /// Bound where there are no counters.
    pub(crate) unused: wgpu::Buffer,
}

impl QuantizePipelines {
    fn new(device: &Device, builder: &PipelineBuilder<'_>) -> Result<Self> {
        Ok(Self {
            bindings: builder.bindings(4, 3)?,
            pipelines: Table::of(QuantizeKernel::ALL.len()),
            back_bindings: builder.bindings(2, 1)?,
            back: None,
            unused: device.create_buffer(16, wgpu::BufferUsages::STORAGE)?,
        })
    }

    pub(crate) fn get(&self, kernel: QuantizeKernel) -> Result<&wgpu::ComputePipeline> {
        self.pipelines.get(kernel.index(), kernel)
    }

    pub(crate) fn back(&self) -> Result<&wgpu::ComputePipeline> {
        there(self.back.as_ref(), "dequantize")
    }
}

/// The pipelines of layers of routed experts.
#[derive(Debug)]
pub(crate) struct MoePipelines {
    /// Six inputs, then ids and weights.
    pub(crate) choose: wgpu::BindGroupLayout,
    /// Ids, then offsets, sorted routes and rows.
    pub(crate) sort: wgpu::BindGroupLayout,
    /// Offsets, then the schedule.
    pub(crate) schedule: wgpu::BindGroupLayout,
    /// Six inputs, then an output.
    pub(crate) grouped: wgpu::BindGroupLayout,
    /// The same with several buffers of experts.
    pub(crate) row: wgpu::BindGroupLayout,
    /// How many.
    pub(crate) expert_buffers: u32,
    /// Four inputs, then an output.
    pub(crate) sum: wgpu::BindGroupLayout,
    pipelines: Table,
    /// Bound where there is nothing.
    pub(crate) unused: wgpu::Buffer,
    /// What the workgroups of grouped matmuls do.
    pub(crate) items: Scratch,
}

impl MoePipelines {
    fn new(device: &Device, builder: &PipelineBuilder<'_>, tier: Tier) -> Result<Self> {
        Ok(Self {
            choose: builder.bindings(6, 2)?,
            sort: builder.bindings(1, 3)?,
            schedule: builder.bindings(1, 1)?,
            grouped: builder.bindings(6, 1)?,
            row: builder.bindings_around(6, 1, 2 * (tier.expert_buffers - 1))?,
            expert_buffers: tier.expert_buffers,
            sum: builder.bindings(4, 1)?,
            pipelines: Table::of(MoeKernel::PLACES),
            unused: device.create_buffer(16, wgpu::BufferUsages::STORAGE)?,
            items: Scratch::default(),
        })
    }

    pub(crate) fn get(&self, kernel: MoeKernel) -> Result<&wgpu::ComputePipeline> {
        self.pipelines.get(kernel.index(), kernel)
    }

    /// The layout of bindings of a matmul of many experts.
    pub(crate) const fn grouped_bindings(&self, kind: GroupedKind) -> &wgpu::BindGroupLayout {
        match kind {
            GroupedKind::Row => &self.row,
            _ => &self.grouped,
        }
    }

    /// How many buffers of experts such a matmul binds.
    pub(crate) const fn buffers_of(&self, kind: GroupedKind) -> usize {
        match kind {
            GroupedKind::Row => self.expert_buffers as usize,
            _ => 1,
        }
    }
}

impl Facts {
    /// Those of a device, before any kernel was tried.
    pub(crate) fn of(device: &Device, shared_buffers: bool) -> Self {
        Self {
            bindings: device.bindings(),
            software: device.is_software(),
            native: true,
            gated: device.invocations() >= GATED_INVOCATIONS,
            quantizes: device.storage_buffers() >= QUANTIZE_BUFFERS,
            moe: device.storage_buffers() >= MOE_BUFFERS,
            cooperative: device.has_cooperative_matrices(),
            ordered: false,
            cooperative_tile: None,
            // Software has no use for many invocations.
            least_large_tiles: if device.is_software() {
                u32::MAX
            } else {
                MANY_TILES
            },
            shared_buffers,
        }
    }
}

impl Pipelines {
    /// Those of some kernels, or of all.
    pub(crate) fn new(
        device: &Device,
        tier: Tier,
        facts: Facts,
        cache: &Arc<PipelineCache>,
        kernels: Option<&[Kernel]>,
    ) -> Result<Self> {
        let builder = PipelineBuilder::new(device, cache, facts.shared_buffers);
        let multiplies = device.storage_buffers() >= 4;
        let matmul_bindings = multiplies.then(|| builder.bindings(3, 1)).transpose()?;
        let quantizes = facts.quantizes;
        let quantize = quantizes.then(|| QuantizePipelines::new(device, &builder));
        let moe = facts.moe.then(|| MoePipelines::new(device, &builder, tier));
        let formats = DeviceFormat::ALL.len();
        let mut built = Self {
            facts,
            complete: kernels.is_none(),
            activation_bindings: builder.bindings(2, 1)?,
            activation: Table::of(ActivationKernel::ALL.len()),
            quantize: quantize.transpose()?,
            moe: moe.transpose()?,
            matmul_bindings,
            gemvs: Table::of(formats * GemvKind::ALL.len()),
            tiles: Table::of(formats * TileKind::ALL.len()),
            gated: Table::of(GatedKernel::all().count()),
            cooperative: Table::of(CooperativeKernel::all().count()),
            dense: Mutex::default(),
            rows_as_f16: None,
            cache: Arc::clone(cache),
            scratch: Scratch::default(),
            #[cfg(test)]
            stands_in: false,
        };
        let all;
        let kernels = match kernels {
            Some(kernels) => kernels,
            None => {
                all = Kernel::all(&facts);
                &all
            }
        };
        let jobs = kernels
            .iter()
            .map(|kernel| Ok((built.bindings(*kernel)?, kernel.shader(tier))))
            .collect::<Result<Vec<_>>>()?;
        let pipelines = builder.build(&jobs)?;
        for (kernel, pipeline) in kernels.iter().zip(pipelines) {
            built.set(*kernel, pipeline);
        }
        Ok(built)
    }

    /// The layout of a kernel's bindings.
    fn bindings(&self, kernel: Kernel) -> Result<&wgpu::BindGroupLayout> {
        let (quantize, moe) = (self.quantize.as_ref(), self.moe.as_ref());
        let found = match kernel {
            Kernel::Activation(_) | Kernel::RowsAsF16 => Some(&self.activation_bindings),
            Kernel::Quantize(_) => quantize.map(|q| &q.bindings),
            Kernel::Dequantize => quantize.map(|q| &q.back_bindings),
            Kernel::Matmul(_) | Kernel::Gated(_) => self.matmul_bindings.as_ref(),
            Kernel::Moe(MoeKernel::Choose) => moe.map(|m| &m.choose),
            Kernel::Moe(MoeKernel::Sort) => moe.map(|m| &m.sort),
            Kernel::Moe(MoeKernel::Schedule) => moe.map(|m| &m.schedule),
            Kernel::Moe(MoeKernel::Requantize { .. }) => Some(&self.activation_bindings),
            Kernel::Moe(MoeKernel::Grouped(kernel)) => moe.map(|m| m.grouped_bindings(kernel.kind)),
            Kernel::Moe(MoeKernel::Sum) => moe.map(|m| &m.sum),
        };
        found.ok_or_else(|| Error::unsupported(PLATFORM, "this kernel", TOO_FEW_BUFFERS).into())
    }

    fn set(&mut self, kernel: Kernel, pipeline: wgpu::ComputePipeline) {
        match (kernel, &mut self.quantize) {
            (Kernel::Activation(kernel), _) => self.activation.set(kernel.index(), pipeline),
            (Kernel::Quantize(kernel), Some(quantize)) => {
                quantize.pipelines.set(kernel.index(), pipeline);
            }
            (Kernel::Dequantize, Some(quantize)) => quantize.back = Some(pipeline),
            (Kernel::Quantize(_) | Kernel::Dequantize, None) => {}
            (Kernel::Matmul(kernel), _) => match kernel {
                MatmulKernel::Gemv(..) => self.gemvs.set(kernel.index(), pipeline),
                MatmulKernel::Tiles(..) => self.tiles.set(kernel.index(), pipeline),
                MatmulKernel::Cooperative { .. } => {
                    self.cooperative.set(kernel.index(), pipeline);
                }
            },
            (Kernel::RowsAsF16, _) => self.rows_as_f16 = Some(pipeline),
            (Kernel::Gated(kernel), _) => self.gated.set(kernel.index(), pipeline),
            (Kernel::Moe(kernel), _) => {
                if let Some(moe) = &mut self.moe {
                    moe.pipelines.set(kernel.index(), pipeline);
                }
            }
        }
    }

    /// Whether a kernel was built.
    pub(crate) fn has(&self, kernel: Kernel) -> bool {
        let quantize = self.quantize.as_ref();
        match kernel {
            Kernel::Activation(kernel) => self.activation.has(kernel.index()),
            Kernel::Quantize(kernel) => quantize.is_some_and(|q| q.pipelines.has(kernel.index())),
            Kernel::Dequantize => quantize.is_some_and(|q| q.back.is_some()),
            Kernel::Matmul(kernel) => match kernel {
                MatmulKernel::Gemv(..) => self.gemvs.has(kernel.index()),
                MatmulKernel::Tiles(..) => self.tiles.has(kernel.index()),
                MatmulKernel::Cooperative { .. } => self.cooperative.has(kernel.index()),
            },
            Kernel::RowsAsF16 => self.rows_as_f16.is_some(),
            Kernel::Gated(kernel) => self.gated.has(kernel.index()),
            Kernel::Moe(kernel) => {
                let moe = self.moe.as_ref();
                moe.is_some_and(|m| m.pipelines.has(kernel.index()))
            }
        }
    }

    pub(crate) fn activation(&self, kernel: ActivationKernel) -> Result<&wgpu::ComputePipeline> {
        self.activation.get(kernel.index(), kernel)
    }

    /// The pipeline of a kernel; `dense` is the weight's own for dense rows of x.
    pub(crate) fn matmul<'a>(
        &'a self,
        kernel: MatmulKernel,
        dense: Option<&'a wgpu::ComputePipeline>,
    ) -> Result<&'a wgpu::ComputePipeline> {
        match kernel {
            MatmulKernel::Gemv(..) => self.gemvs.get(kernel.index(), kernel),
            MatmulKernel::Tiles(..) => self.tiles.get(kernel.index(), kernel),
            MatmulKernel::Cooperative { dense: true, .. } => there(dense, kernel),
            MatmulKernel::Cooperative { dense: false, .. } => {
                self.cooperative.get(kernel.index(), kernel)
            }
        }
    }

    pub(crate) fn gated(&self, kernel: GatedKernel) -> Result<&wgpu::ComputePipeline> {
        self.gated.get(kernel.index(), kernel)
    }

    /// The kernel that makes rows of bf16 such of f16.
    pub(crate) fn rows_as_f16(&self) -> Result<&wgpu::ComputePipeline> {
        there(self.rows_as_f16.as_ref(), "rows_as_f16")
    }

    /// The layout of a matmul's bindings.
    pub(crate) fn matmul_bindings(&self) -> Result<&wgpu::BindGroupLayout> {
        let found = self.matmul_bindings.as_ref();
        found.ok_or_else(|| Error::unsupported(PLATFORM, "a matmul", TOO_FEW_BUFFERS).into())
    }

    /// Puts kernels that need none in place of those on cooperative matrices.
    #[cfg(test)]
    pub(crate) fn stand_in(&mut self, device: &Device, tier: Tier) -> Result<()> {
        let cache = Arc::clone(&self.cache);
        let builder = PipelineBuilder::new(device, &cache, self.facts.shared_buffers);
        let kernels: Vec<_> = CooperativeKernel::all().collect();
        let bindings = self.matmul_bindings()?;
        let jobs: Vec<_> = kernels
            .iter()
            .map(|kernel| (bindings, kernel.stand_in(None)))
            .collect();
        let pipelines = builder.build(&jobs)?;
        let rows = builder.build_one(
            &self.activation_bindings,
            &super::cooperative::rows_as_f16(),
        )?;
        self.set(Kernel::RowsAsF16, rows);
        for (kernel, pipeline) in kernels.into_iter().zip(pipelines) {
            self.cooperative.set(kernel.index(), pipeline);
        }
        self.facts.cooperative = true;
        self.stands_in = true;
        for kernel in GroupedKernel::all(&self.facts) {
            if let Some(shader) = kernel.stand_in(tier) {
                let kernel = Kernel::Moe(MoeKernel::Grouped(kernel));
                let pipeline = builder.build_one(self.bindings(kernel)?, &shader)?;
                self.set(kernel, pipeline);
            }
        }
        Ok(())
    }

    /// A kernel on cooperative matrices for dense rows of `k` elements, built where it is not there
    /// yet.
    pub(crate) fn dense(
        &self,
        device: &Device,
        kernel: CooperativeKernel,
        k: u32,
    ) -> Result<wgpu::ComputePipeline> {
        let mut dense = self.dense.lock()?;
        let place = (kernel.index(), k);
        if let Some(pipeline) = dense.get(&place) {
            return Ok(pipeline.clone());
        }
        let builder = PipelineBuilder::new(device, &self.cache, self.facts.shared_buffers);
        let shader = kernel.shader(Some(k));
        #[cfg(test)]
        let shader = if self.stands_in {
            kernel.stand_in(Some(k))
        } else {
            shader
        };
        let pipeline = builder.build_one(self.matmul_bindings()?, &shader)?;
        dense.insert(place, pipeline.clone());
        self.cache.keep()?;
        Ok(pipeline)
    }
}

pub(crate) const TOO_FEW_BUFFERS: &str = "the device binds too few storage buffers";
