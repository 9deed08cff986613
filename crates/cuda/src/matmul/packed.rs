//! The kernels of packed weights.

use std::sync::Arc;

use cudarc::driver::{CudaContext, sys};
use swiglu_core::{Float, GatedActivation, RowLayout};

use super::{
    parameters::{THREADS, of_call, y_type},
    plan::{OwnKernel, OwnPlan, PackedPlan, X_ROWS},
    step::{StepActivation, StepKernel},
    warpgroups::WarpgroupKernel,
};
use crate::{
    activation::scalars,
    buffer::CudaBuffer,
    error::Result,
    launch::{
        driver::{Fatbins, Function, Grid, Module, fatbins},
        params::{
            Divisor, PackedParams, Packing, QuantizingParams, Scalars, StepParams, WarpgroupParams,
            WidenCodesParams,
        },
        tensor_map::TensorMap,
    },
    view::RawMatrix,
    weight::CudaWeight,
};

static DECODE: Fatbins = fatbins!("decode");
static DECODE_CODES: Fatbins = fatbins!("decode_codes");
static WARPGROUPS: Fatbins = fatbins!("warpgroups");

/// The kernels, loaded into the context of a device that has them.
pub(super) struct PackedKernels {
    steps: [Function; StepKernel::ALL.len()],
    warpgroups: [Function; WarpgroupKernel::ALL.len()],
    /// By [`Float::ALL`]'s order.
    rows: [[Function; X_ROWS.len()]; Float::ALL.len()],
    unpack: Function,
    unpack_to_bf16: Function,
    widen: Function,
    _modules: [Module; 3],
}

/// What happens to x before, and to the sums after a matmul.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Around<'a> {
    /// The least amax of a group of x, if it is quantized.
    pub(super) floor: Option<f32>,
    pub(super) activation: Option<(&'a GatedActivation, StepActivation)>,
    /// Whether a decode step lets the next kernel start only after it has waited for the one before.
    pub(super) next_late: bool,
    /// Whether a block of warpgroups is to have a multiprocessor for itself. Behind a small kernel both
    /// blocks that fit may come to one while another has none, which took 1.4 times as long.
    pub(super) alone: bool,
}

/// More than half of a multiprocessor's shared memory.
const ALONE: u32 = 116 * 1024;

impl PackedKernels {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let module = Module::load(context, &DECODE)?;
        let of_codes = Module::load(context, &DECODE_CODES)?;
        let of_warpgroups = Module::load(context, &WARPGROUPS)?;
        let unpack = module.function("unpack_e4m3")?;
        // All of a kind are loaded in its place.
        let mut steps = [unpack; StepKernel::ALL.len()];
        for (function, kernel) in steps.iter_mut().zip(StepKernel::ALL) {
            let of = if kernel.quantizes { &of_codes } else { &module };
            *function = of.function(&kernel.name())?;
            function.allow_shared(kernel.shared())?;
            function.prefer_shared()?;
        }
        let mut warpgroups = [unpack; WarpgroupKernel::ALL.len()];
        for (function, kernel) in warpgroups.iter_mut().zip(WarpgroupKernel::ALL) {
            *function = of_warpgroups.function(&kernel.name())?;
            function.allow_shared(kernel.shared().max(ALONE))?;
            function.prefer_shared()?;
        }
        let mut rows = [[unpack; X_ROWS.len()]; Float::ALL.len()];
        for (of_x, x) in rows.iter_mut().zip(Float::ALL) {
            for (place, function) in of_x.iter_mut().enumerate() {
                *function = module.function(&OwnKernel::packed_name(place, x))?;
            }
        }
        Ok(Self {
            steps,
            warpgroups,
            rows,
            unpack,
            widen: of_codes.function("widen_codes")?,
            unpack_to_bf16: module.function("unpack_e4m3_to_bf16")?,
            _modules: [module, of_codes, of_warpgroups],
        })
    }

    /// Enqueues a kernel that streams the weight: y = x · wᵀ, or of a gated one y = op(x · wᵀ).
    ///
    /// # Safety
    /// The plan is of this call, which has been checked, its memory lives until the stream has run
    /// it, and the stream's context is bound.
    pub(super) unsafe fn stream(
        &self,
        stream: sys::CUstream,
        plan: PackedPlan,
        x: &RawMatrix,
        (weight, packing): (&CudaWeight, Packing),
        y: &RawMatrix,
        around: Around<'_>,
    ) -> Result<()> {
        let (clamped, eager, scalars) = match around.activation {
            Some((op, of)) => (of.clamped, of.eager, scalars(op)),
            None => (false, false, Scalars::default()),
        };
        let params = StepParams {
            w: weight.data.address(),
            x: x.first(),
            y: y.first(),
            x_stride: x.layout.stride as u64,
            y_stride: y.layout.stride as u64,
            packing,
            t: x.layout.rows as u32,
            k: weight.cols as u32,
            y_type: y_type(y.float),
            clamped: u32::from(clamped),
            eager: u16::from(eager),
            next_late: u16::from(around.next_late),
            scalars,
        };
        match plan {
            PackedPlan::Step(plan) => {
                let grid = Grid {
                    blocks: plan.blocks,
                    threads: THREADS,
                    shared: StepKernel::ALL[plan.place].shared(),
                    programmatic: true,
                };
                let kernel = &self.steps[plan.place];
                // SAFETY: by this function's contract, and the kernels stay inside of the call's shapes.
                unsafe {
                    match around.floor {
                        None => kernel.launch(stream, grid, &params),
                        Some(floor) => {
                            let params = QuantizingParams {
                                step: params,
                                floor,
                            };
                            kernel.launch(stream, grid, &params)
                        }
                    }
                }
            }
            PackedPlan::Warpgroups(plan) => {
                let kernel = WarpgroupKernel::ALL[plan.place];
                let grid = Grid {
                    blocks: [plan.blocks, 1],
                    threads: kernel.threads(),
                    shared: kernel.shared().max(if around.alone { ALONE } else { 0 }),
                    programmatic: true,
                };
                let params = WarpgroupParams {
                    x: TensorMap::of_rows(x, plan.rows)?,
                    step: params,
                    rows: plan.rows,
                };
                // SAFETY: as above; the map is of x.
                unsafe { self.warpgroups[plan.place].launch(stream, grid, &params) }
            }
        }
    }

    /// Enqueues x as codes of 128 with scales that are powers of two leave it, to rows without gaps.
    ///
    /// # Safety
    /// As [`Self::stream`], of x in bf16 whose rows begin at multiples of 16 bytes.
    pub(super) unsafe fn widen(
        &self,
        stream: sys::CUstream,
        floor: f32,
        x: &RawMatrix,
        to: &RawMatrix,
    ) -> Result<()> {
        let row_groups = (x.layout.cols / 128) as u32;
        let groups = x.layout.rows as u32 * row_groups;
        let params = WidenCodesParams {
            x: x.first(),
            to: to.first(),
            x_stride: x.layout.stride as u64,
            groups,
            row_groups,
            by_row: Divisor::new(row_groups),
            floor,
        };
        let grid = Grid {
            blocks: [groups.div_ceil(THREADS / 16), 1],
            threads: THREADS,
            shared: 0,
            programmatic: true,
        };
        // SAFETY: by this function's contract.
        unsafe { self.widen.launch(stream, grid, &params) }
    }

    /// Enqueues a matmul of few rows: the kernels at this place among those of x's type.
    ///
    /// # Safety
    /// As [`Self::stream`].
    pub(super) unsafe fn few_rows(
        &self,
        stream: sys::CUstream,
        (plan, place): (&OwnPlan, usize),
        x: &RawMatrix,
        (weight, packing): (&CudaWeight, Packing),
        y: &RawMatrix,
    ) -> Result<()> {
        let params = PackedParams {
            matmul: of_call(x, weight, y),
            packing,
        };
        let grid = Grid {
            blocks: plan.blocks,
            threads: THREADS,
            shared: 0,
            programmatic: true,
        };
        // SAFETY: by this function's contract.
        unsafe { self.rows[plan.x as usize][place].launch(stream, grid, &params) }
    }

    /// Enqueues the way back to rows, as codes or decoded to bf16.
    ///
    /// # Safety
    /// As [`Self::stream`]; the buffer has room for all codes, or as many bf16s.
    pub(super) unsafe fn unpack(
        &self,
        stream: sys::CUstream,
        (weight, packing): (&CudaWeight, Packing),
        into: &CudaBuffer,
        to_bf16: bool,
    ) -> Result<()> {
        let matrix = RawMatrix {
            address: into.address(),
            float: Float::BF16,
            layout: RowLayout::contiguous(weight.rows, weight.cols),
        };
        let params = PackedParams {
            matmul: of_call(&matrix, weight, &matrix),
            packing,
        };
        // A thread has sixteen codes.
        let vectors = weight.rows * weight.cols / 16;
        let grid = Grid {
            blocks: [vectors.div_ceil(THREADS as usize) as u32, 1],
            threads: THREADS,
            shared: 0,
            programmatic: true,
        };
        let kernel = if to_bf16 {
            self.unpack_to_bf16
        } else {
            self.unpack
        };
        // SAFETY: by this function's contract.
        unsafe { kernel.launch(stream, grid, &params) }
    }
}
