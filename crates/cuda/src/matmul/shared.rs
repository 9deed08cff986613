//! The matmuls of a shared expert among the kernels of a layer: decode steps both.

use cudarc::driver::sys;
use swiglu_core::GatedActivation;

use super::{
    call::{Matmuls, problem},
    packed::Around,
    plan::{GatedPlan, MatmulPlan, PackedPlan},
    step::{StepActivation, StepPlan},
};
use crate::{error::Result, view::RawMatrix, weight::CudaWeight};

/// A shared expert on x.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SharedSteps<'a> {
    pub(crate) op: &'a GatedActivation,
    /// Gate and up, and down.
    pub(crate) weights: [&'a CudaWeight; 2],
    /// x, act and y.
    pub(crate) matrices: [RawMatrix; 3],
}

/// One of its matmuls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SharedStep {
    /// To the activation.
    GateUp,
    /// From it.
    Down,
}

/// How both run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SharedPlan {
    activation: StepActivation,
    steps: [StepPlan; 2],
}

impl Matmuls {
    /// The plan of a shared expert whose matmuls are decode steps.
    pub(crate) fn shared_plan(&self, shared: &SharedSteps<'_>) -> Option<SharedPlan> {
        let ([gate_up, down], [x, act, y]) = (shared.weights, &shared.matrices);
        let gated = problem(x, gate_up, act).gated(&self.facts)?;
        let plain = MatmulPlan::new(&problem(act, down, y), &self.facts, None)?;
        let activation = StepActivation::of(shared.op)?;
        let (GatedPlan::Packed(PackedPlan::Step(a)), MatmulPlan::Packed(PackedPlan::Step(b))) =
            (gated, plain)
        else {
            return None;
        };
        let steps = [a, b];
        Some(SharedPlan { activation, steps })
    }

    /// Enqueues one of them. It waits for the kernel before it, and then lets the next one start, which may so rely on
    /// the end of all before.
    ///
    /// # Safety
    /// As [`Self::matmul`]; the plan is of this call.
    pub(crate) unsafe fn shared_step(
        &self,
        stream: sys::CUstream,
        plan: &SharedPlan,
        shared: &SharedSteps<'_>,
        step: SharedStep,
    ) -> Result<()> {
        let ([gate_up, down], [x, act, y]) = (shared.weights, &shared.matrices);
        let (from, weight, to) = match step {
            SharedStep::GateUp => (x, gate_up, act),
            SharedStep::Down => (act, down, y),
        };
        from.check_aligned("x")?;
        to.check_aligned("output")?;
        self.check_weight(weight)?;
        self.bind()?;
        let activation = (shared.op, plan.activation);
        let around = Around {
            activation: (step == SharedStep::GateUp).then_some(activation),
            next_late: true,
            ..Around::default()
        };
        let plan = PackedPlan::Step(plan.steps[step as usize]);
        // SAFETY: by this function's contract. Steps are of packed weights, so that none is refused.
        unsafe { self.by_stream(stream, plan, from, weight, to, around) }?;
        Ok(())
    }
}
