//! Matmuls that quantize x on the way: which kernels run, and the calls of those that do both.
//!
//! ## Method
//! 1. Few tokens in bf16, groups of 128 and scales that are powers of two: a decode step that makes x's codes as it reads it.
//! 2. Other calls by a packed weight: what the quantization leaves of x is written to scratch memory as bf16, in one
//!    pass, and the matmul reads that.
//! 3. A gate and its up half on FP8 tensor cores, of more tokens than `codes.cuh` has: x's codes are written to scratch
//!    memory, and one kernel more gives those of the activations.
//! 4. Others are quantized and multiplied by two calls.

use std::fmt;

use cudarc::driver::sys;
use swiglu_core::{
    Accumulation, Float, GatedActivation, Quantization, RowLayout, ScaleFormat, ScaleLayout,
    ScaleOrder,
};

use super::{
    call::{Matmuls, problem},
    code_tiles::{ActivatedCodes, CodeTilesStep},
    codes::{CodesKernels, CodesPlan, CodesProblem},
    packed::Around,
    plan::{GatedPlan, MatmulFacts, MatmulPlan, MatmulProblem, PackedPlan},
    step::{StepActivation, StepKind, StepPlan},
};
use crate::{error::Result, quant::RawQuantized, view::RawMatrix, weight::CudaWeight};

/// Columns of a group that decode steps quantize.
const GROUP: usize = 128;

/// Numbers of x whose groups `widen_codes` counts, fewer than.
const MOST: usize = 1 << 31;

/// How x is quantized and multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QuantizingPlan {
    /// By one kernel.
    Step(StepPlan),
    /// x is written as its codes are, widened, and this reads it.
    Widened {
        /// Whether by `widen_codes`, which is for what a step takes.
        in_vectors: bool,
        matmul: MatmulPlan,
    },
}

impl QuantizingPlan {
    /// The plan of a call; none where it is two.
    pub(super) fn new(
        problem: &MatmulProblem,
        facts: &MatmulFacts,
        quant: &Quantization,
        kind: StepKind,
    ) -> Option<Self> {
        let packing = problem.packing?;
        if facts.accumulation != Accumulation::MatrixUnit {
            return None;
        }
        let in_groups = quant.group() == GROUP && problem.k.is_multiple_of(GROUP);
        let powers = quant.format() == ScaleFormat::E8M0;
        let reads_x = problem.x == Float::BF16 && problem.x_aligned;
        let takes = in_groups && powers && reads_x;
        let step = || StepPlan::quantizing(problem.t, packing, kind);
        if let Some(step) = takes.then(step).flatten() {
            return Some(Self::Step(step));
        }
        let widened = MatmulProblem {
            x: Float::BF16,
            x_aligned: true,
            ..*problem
        };
        let plan = match kind {
            StepKind::Gated => match widened.gated(facts)? {
                GatedPlan::Packed(plan) => Some(MatmulPlan::Packed(plan)),
                // By weights in bf16, which are not quantized for.
                GatedPlan::Mapped(_) => None,
            },
            StepKind::Plain => MatmulPlan::new(&widened, facts, None),
        };
        let widened = |matmul| Self::Widened {
            in_vectors: takes && problem.t.saturating_mul(problem.k) < MOST,
            matmul,
        };
        plan.filter(|_| problem.t > 0).map(widened)
    }
}

impl fmt::Display for QuantizingPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(step) => write!(f, "{step}"),
            Self::Widened { in_vectors, matmul } => {
                let widen = if *in_vectors {
                    "widen_codes"
                } else {
                    "moe_widen"
                };
                write!(f, "{widen}, then {matmul}")
            }
        }
    }
}

/// y = c · wᵀ or op of it, c being x as a quantization leaves it.
#[derive(Clone, Copy)]
pub(crate) struct QuantizingCall<'a> {
    pub(crate) quant: &'a Quantization,
    pub(crate) op: Option<&'a GatedActivation>,
    pub(crate) x: &'a RawMatrix,
    pub(crate) weight: &'a CudaWeight,
    pub(crate) y: &'a RawMatrix,
}

/// act = quantized op(c · wᵀ), c being x as a quantization leaves it.
#[derive(Clone, Copy)]
pub(crate) struct CodesCall<'a> {
    pub(crate) op: &'a GatedActivation,
    pub(crate) quant: &'a Quantization,
    /// x as codes.
    pub(crate) x: &'a RawQuantized,
    pub(crate) weight: &'a CudaWeight,
    pub(crate) act: &'a RawQuantized,
}

/// Such a call as one kernel takes it.
pub(crate) struct PlannedCodes<'a> {
    kernels: &'a CodesKernels,
    step: CodeTilesStep,
    x: &'a RawQuantized,
    weight: (&'a CudaWeight, u64),
    activated: ActivatedCodes<'a>,
}

/// The codes of \[rows, cols\] numbers, in memory that would hold them as bf16.
pub(crate) fn codes_in(memory: &RawMatrix, quant: &Quantization) -> RawQuantized {
    let RowLayout { rows, cols, .. } = memory.layout;
    let (codes, order) = (memory.first(), ScaleOrder::RowMajor);
    RawQuantized {
        codes,
        codes_layout: RowLayout::contiguous(rows, cols),
        scales: codes + (rows * cols).next_multiple_of(16) as u64,
        scales_layout: ScaleLayout::contiguous(quant.format(), order, rows, quant.groups(cols)),
    }
}

impl Matmuls {
    /// How one kernel takes a call from codes to codes; none where it is several.
    ///
    /// # Errors
    /// A weight of another context.
    pub(crate) fn codes_plan<'a>(
        &'a self,
        call: &CodesCall<'a>,
    ) -> Result<Option<PlannedCodes<'a>>> {
        let CodesCall {
            op,
            quant,
            x,
            weight,
            act,
        } = *call;
        let activated = ActivatedCodes::new(op, quant, weight.rows / 2, act);
        let (Some(kernels), Some(blocks), Some(activated)) =
            (self.codes(), weight.block_scales(), activated)
        else {
            return Ok(None);
        };
        let starts = x.first() | x.codes_layout.stride as u64;
        let problem = CodesProblem {
            t: x.codes_layout.rows,
            n: weight.rows,
            k: weight.cols,
            group: quant.group(),
            w_in_blocks: true,
            aligned: starts.is_multiple_of(16),
            scales_in_columns: false,
            scratch_aligned: false,
        };
        let Some(step) = CodesPlan::activated(&problem, self.facts()) else {
            return Ok(None);
        };
        self.check_weight(weight)?;
        Ok(Some(PlannedCodes {
            kernels,
            step,
            x,
            weight: (weight, blocks.address()),
            activated,
        }))
    }

    /// Enqueues a call from codes to codes.
    ///
    /// # Safety
    /// As [`Self::matmul`].
    pub(crate) unsafe fn activate_codes(
        &self,
        stream: sys::CUstream,
        plan: &PlannedCodes<'_>,
    ) -> Result<()> {
        self.bind()?;
        let (step, x, weight) = (plan.step, plan.x, plan.weight);
        // SAFETY: by this function's contract; the plan is of this call.
        unsafe {
            plan.kernels
                .activate_tiles(stream, step, x, weight, &plan.activated)
        }
    }

    /// What a call runs; none where it is several.
    pub(crate) fn quantizing_plan(&self, call: &QuantizingCall<'_>) -> Option<QuantizingPlan> {
        let kind = match call.op {
            Some(op) => StepActivation::of(op).map(|_| StepKind::Gated)?,
            None => StepKind::Plain,
        };
        let problem = problem(call.x, call.weight, call.y);
        QuantizingPlan::new(&problem, self.facts(), call.quant, kind)
    }

    /// Enqueues a step that quantizes x; false where there is none for the weight.
    ///
    /// # Safety
    /// As [`Self::matmul`]; the plan is this call's.
    pub(crate) unsafe fn quantizing_step(
        &self,
        stream: sys::CUstream,
        plan: StepPlan,
        call: &QuantizingCall<'_>,
    ) -> Result<bool> {
        let around = Around {
            floor: Some(call.quant.floor()),
            ..Around::default()
        };
        // SAFETY: by this function's contract.
        unsafe { self.by_packed(stream, PackedPlan::Step(plan), call, around) }
    }

    /// Enqueues x as its codes are, widened, by `widen_codes`; false where that is not there.
    ///
    /// # Safety
    /// As [`Self::quantizing_step`]; `to` is \[T, K\] of bf16 without gaps.
    pub(crate) unsafe fn widen(
        &self,
        stream: sys::CUstream,
        call: &QuantizingCall<'_>,
        to: &RawMatrix,
    ) -> Result<bool> {
        let Some(packed) = self.packed() else {
            return Ok(false);
        };
        self.bind()?;
        // SAFETY: by this function's contract.
        unsafe { packed.widen(stream, call.quant.floor(), call.x, to) }?;
        Ok(true)
    }

    /// Enqueues the matmul of a call whose x has been widened, by its plan; false where there is none
    /// for the weight.
    ///
    /// # Safety
    /// As [`Self::quantizing_step`].
    pub(crate) unsafe fn widened(
        &self,
        stream: sys::CUstream,
        plan: MatmulPlan,
        call: &QuantizingCall<'_>,
    ) -> Result<bool> {
        let around = Around {
            alone: true,
            ..Around::default()
        };
        // SAFETY: by this function's contract.
        unsafe {
            if let MatmulPlan::Packed(plan) = plan {
                return self.by_packed(stream, plan, call, around);
            }
            self.matmul(stream, call.x, call.weight, call.y, None)?;
        }
        Ok(true)
    }

    unsafe fn by_packed(
        &self,
        stream: sys::CUstream,
        plan: PackedPlan,
        call: &QuantizingCall<'_>,
        around: Around<'_>,
    ) -> Result<bool> {
        let QuantizingCall {
            op, x, weight, y, ..
        } = *call;
        self.check_weight(weight)?;
        x.check_aligned("x")?;
        y.check_aligned("y")?;
        self.bind()?;
        let around = Around {
            activation: op.and_then(|op| Some((op, StepActivation::of(op)?))),
            ..around
        };
        // SAFETY: by the callers' contracts.
        unsafe { self.by_stream(stream, plan, x, weight, y, around) }
    }
}
