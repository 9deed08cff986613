//! The gated half of an MLP in one dispatch: a GEMV of few tokens, and the activation.

use std::fmt;

use swiglu_core::{GatedActivation, Layout};

use super::plan::{MatmulOperands, TokenSteps};
use super::record::ChunkMatmul;
use crate::Result;
use crate::activation::is_native;
use crate::device::{Device, Facts};
use crate::launch::{Matrix, Op, RowSpan, Workgroups, are_apart, in_workgroups};
use crate::pipelines::{GatedKernel, Pipelines};
use crate::weight::Weight;

/// Elements in a vector of 16 bytes.
const VECTOR: usize = 8;

/// What decides whether one kernel makes what two would, bit for bit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GatedOperands {
    /// x by the weight's only buffer; y is the activation's output.
    pub(crate) matmul: MatmulOperands,
    /// What the matmul alone would write to: its place decides how the activation alone would
    /// compute.
    pub(crate) gate_up: RowSpan,
    pub(crate) layout: Layout,
}

/// One dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GatedStep {
    kernel: GatedKernel,
    workgroups: Workgroups,
}

/// The dispatches of a gated half in one kernel.
pub(crate) type GatedPlan = TokenSteps<GatedStep>;

impl GatedPlan {
    /// None where one kernel does not do it.
    pub(crate) fn fused(facts: &Facts, op: &Op, operands: &GatedOperands) -> Option<Self> {
        let GatedOperands {
            matmul,
            gate_up,
            layout,
        } = operands;
        let d = matmul.y.span;
        let whole = d.is_multiple_of(VECTOR)
            && [gate_up, &matmul.y].iter().all(|span| {
                span.first.is_multiple_of(VECTOR) && (span.stride() as usize).is_multiple_of(VECTOR)
            });
        let native = facts.native && is_native(op, matmul.y_float, *layout).is_some();
        let one_type = matmul.x_float == matmul.y_float;
        let fits = facts.gated && matmul.is_few_for_usual_gemvs(facts);
        if !(fits && whole && native && one_type) {
            return None;
        }
        let per_dispatch = matmul.per_dispatch(facts);
        let vectors = u32::try_from(d / VECTOR).unwrap_or(u32::MAX);
        let [x, y] = in_workgroups(&facts.bindings, vectors);
        TokenSteps::of(matmul.tokens, per_dispatch, |tokens| {
            let kernel = GatedKernel::of(matmul.weight, tokens)?;
            Some(GatedStep {
                kernel,
                workgroups: [x, y, 1],
            })
        })
        .transposed()
    }
}

impl fmt::Display for GatedPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.show(f, |step| step.kernel)
    }
}

/// Records act = op(R(x · wᵀ)) where one kernel makes what two would: whether it did.
pub(crate) fn record(
    (device, pipelines): (&Device, &Pipelines),
    pass: &mut wgpu::ComputePass<'_>,
    op: &GatedActivation,
    (x, weight): (&Matrix<'_>, &Weight),
    (gate_up, act): (&Matrix<'_>, &Matrix<'_>),
) -> Result<bool> {
    let facts = &pipelines.facts;
    let d = act.layout.cols;
    let [chunk] = weight.chunks.as_slice() else {
        return Ok(false);
    };
    // Where buffers are shared, the stages have their say.
    let apart = [(x, act), (x, gate_up), (gate_up, act)]
        .iter()
        .all(|(a, b)| are_apart(facts, &a.view, &b.view));
    if !apart {
        return Ok(false);
    }
    let matmul = ChunkMatmul::new(x, (weight, chunk), act, (0, d))?;
    let op_call = Op::of(op, act.float)?;
    let operands = GatedOperands {
        matmul: matmul.operands(),
        gate_up: gate_up.columns()?.rows,
        layout: op.layout(),
    };
    let Some(plan) = GatedPlan::fused(facts, &op_call, &operands) else {
        return Ok(false);
    };
    let (gate_row, up_row) = op.positions(d, 0);
    for (token, tokens, step) in plan.dispatches() {
        let (mut call, ends) = matmul.call(pipelines, (token, tokens))?;
        // Both are below the weight's rows, which fit.
        (call.gate_row, call.up_row) = (gate_row as u32, up_row as u32);
        call.op = op_call;
        let pipeline = pipelines.gated(step.kernel)?;
        let (on, call) = ((device, pipelines), (&call, ends));
        matmul.dispatch(on, pass, pipeline, call, step.workgroups)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipelines::DeviceFormat;
    use swiglu_core::{Float, Rounding};

    fn plan(facts: &Facts, op: GatedActivation, tokens: usize, act: RowSpan) -> Option<GatedPlan> {
        let float = Float::BF16;
        let operands = GatedOperands {
            matmul: MatmulOperands {
                tokens,
                x: RowSpan::contiguous(2, 7168),
                x_float: float,
                y: act,
                y_float: float,
                weight: DeviceFormat::E4m3,
                k: 7168,
                rows: 6144,
                plain_codes: true,
                exact_in_f16: false,
                dense: false,
            },
            gate_up: RowSpan::contiguous(2, 6144),
            layout: op.layout(),
        };
        GatedPlan::fused(facts, &Op::of(&op, float).unwrap(), &operands)
    }

    #[test]
    fn few_tokens_through_the_native_silu_are_one_dispatch_for_each_eight() {
        let act = RowSpan::contiguous(2, 3072);
        let v4 = GatedActivation::deepseek_v4();
        let shown = |tokens| {
            let plan = plan(&Facts::GPU, v4, tokens, act);
            plan.map(|plan| plan.to_string())
        };
        let one = "gemv_gated(bf16 by e4m3, T <= 1)";
        assert_eq!(shown(1).unwrap(), one);
        let two = "2 x gemv_gated(bf16 by e4m3, T <= 8)";
        assert_eq!(shown(16).unwrap(), two);
        assert_eq!(shown(33), None);
    }

    #[test]
    fn what_the_native_kernel_does_not_do_takes_two() {
        let act = RowSpan::contiguous(2, 3072);
        let v4 = GatedActivation::deepseek_v4();
        for op in [
            v4.with_rounding(Rounding::Eager),
            GatedActivation::gpt_oss(),
            GatedActivation::gelu_and_mul(),
        ] {
            assert_eq!(plan(&Facts::GPU, op, 1, act), None, "{op}");
        }
        assert_eq!(plan(&Facts::GPU, v4, 1, act.part(1, 3072)), None);
        let own_exp = Facts {
            native: false,
            ..Facts::GPU
        };
        assert_eq!(plan(&own_exp, v4, 1, act), None);
    }
}
