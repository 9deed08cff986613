//! The kernels that read weights by tensor maps, and their launches.

use std::sync::Arc;

use cudarc::driver::{CudaContext, sys};
use swiglu_core::GatedActivation;

use super::{MappedKernel, MappedPlan, UNIT_K};
use crate::{
    activation::scalars,
    error::Result,
    launch::{
        driver::{Fatbins, Function, Grid, Module, fatbins},
        params::{MappedParams, Packing, Scalars, StepParams},
        tensor_map::TensorMap,
    },
    matmul::{parameters::y_type, step::StepActivation},
    view::RawMatrix,
    weight::CudaWeight,
};

static MAPPED: Fatbins = fatbins!("mapped");

/// Loaded into the context of a device that has them.
pub(in crate::matmul) struct MappedKernels {
    kernels: [Function; MappedKernel::ALL.len()],
    _module: Module,
}

impl MappedKernels {
    pub(in crate::matmul) fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let module = Module::load(context, &MAPPED)?;
        // All of a kind are loaded in its place.
        let first = module.function(&MappedKernel::ALL[0].name())?;
        let mut kernels = [first; MappedKernel::ALL.len()];
        for (function, kernel) in kernels.iter_mut().zip(MappedKernel::ALL) {
            *function = module.function(&kernel.name())?;
            function.allow_shared(kernel.shared())?;
            function.prefer_shared()?;
        }
        Ok(Self {
            kernels,
            _module: module,
        })
    }

    /// Enqueues y = x · wᵀ, or y = op(x · wᵀ), of which the rows of the gate are the weight's first half.
    ///
    /// # Safety
    /// The plan is of this call, which has been checked, its memory lives until the stream has run
    /// it, and the stream's context is bound.
    pub(in crate::matmul) unsafe fn launch(
        &self,
        stream: sys::CUstream,
        plan: MappedPlan,
        x: &RawMatrix,
        weight: &CudaWeight,
        y: &RawMatrix,
        activation: Option<(&GatedActivation, StepActivation)>,
    ) -> Result<()> {
        let (clamped, eager, scalars) = match activation {
            Some((op, of)) => (of.clamped, of.eager, scalars(op)),
            None => (false, false, Scalars::default()),
        };
        // Eight rows and the eight that belong to them: the following ones, or those of the up half.
        let (group_rows, half_rows) = match activation {
            Some(_) => (8, weight.rows / 2),
            None => (16, 8),
        };
        let kernel = plan.kernel();
        // Of the longest part.
        let [first, first_x] =
            kernel.first(weight.cols.div_ceil(UNIT_K).div_ceil(plan.parts as usize) as u32);
        let params = MappedParams {
            weight: TensorMap::of_groups(
                (weight.data.address(), weight.cols),
                (plan.groups, [group_rows, half_rows]),
                plan.tile_groups,
            )?,
            x: TensorMap::of_rows(x, plan.tile_tokens)?,
            step: StepParams {
                w: weight.data.address(),
                x: x.first(),
                y: y.first(),
                x_stride: x.layout.stride as u64,
                y_stride: y.layout.stride as u64,
                packing: Packing {
                    streams: plan.tiles(),
                    groups: plan.groups,
                    group_rows: group_rows as u32,
                    half_rows: half_rows as u32,
                },
                t: x.layout.rows as u32,
                k: weight.cols as u32,
                y_type: y_type(y.float),
                clamped: u32::from(clamped),
                eager: u16::from(eager),
                next_late: 0,
                scalars,
            },
            tile_groups: plan.tile_groups,
            parts_log: plan.parts.ilog2(),
            stages: kernel.stages(),
            x_stages: kernel.x_stages(),
            ahead: kernel.ahead(),
            first_stage: first as u16,
            first_x_stage: first_x as u16,
            gated: u32::from(activation.is_some()),
            tile_tokens: plan.tile_tokens,
        };
        let grid = Grid {
            blocks: [plan.tiles() * plan.parts, plan.token_tiles],
            threads: kernel.threads(),
            shared: kernel.shared(),
            programmatic: true,
        };
        // SAFETY: by this function's contract; the maps are of x and of the weight, and the kernels stay inside of them.
        unsafe { self.kernels[plan.place].launch_clusters(stream, grid, Some(plan.parts), &params) }
    }
}
