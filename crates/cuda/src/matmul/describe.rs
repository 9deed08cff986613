//! The plans of matmuls as lines of a report.

use swiglu_core::{Float, Quantization, Request, Shape, WeightFormat};

use super::{
    call::Matmuls,
    code_tiles::ActivatedCodes,
    codes::{CodesPlan, CodesProblem},
    plan::{MatmulPlan, MatmulProblem},
    quantizing::QuantizingPlan,
    step::{StepActivation, StepKind},
};

impl Matmuls {
    /// The plan of a gated matmul of this shape on rows without gaps, on one line; none where it is a
    /// matmul and an activation.
    pub(crate) fn gated_plan(&self, request: &Request, shape: &Shape) -> Option<String> {
        let Request::GatedMatmul { op, x, weight, act } = request else {
            return None;
        };
        let types = (*x, *weight, *act);
        let problem = MatmulProblem::of_shape(shape, types, true, self.facts())?;
        StepActivation::of(op)?;
        Some(problem.gated(self.facts())?.to_string())
    }

    /// The plan of a matmul that quantizes, as [`Self::gated_plan`]; none where it is several calls.
    pub(crate) fn quantizing_plan_of(&self, request: &Request, shape: &Shape) -> Option<String> {
        let (quant, kind, types) = match request {
            Request::QuantizingGatedMatmul {
                op,
                quant,
                x,
                weight,
                act,
            } => {
                StepActivation::of(op)?;
                (quant, StepKind::Gated, (*x, *weight, *act))
            }
            Request::QuantizingMatmul {
                quant,
                x,
                weight,
                y,
            } => (quant, StepKind::Plain, (*x, *weight, *y)),
            _ => return None,
        };
        let pairs = kind == StepKind::Gated;
        let problem = MatmulProblem::of_shape(shape, types, pairs, self.facts())?;
        let plan = QuantizingPlan::new(&problem, self.facts(), quant, kind)?;
        Some(plan.to_string())
    }

    /// The plan of a matmul from numbers to codes, as [`Self::gated_plan`]; none where it is several calls.
    pub(crate) fn codes_plan_of(&self, request: &Request, shape: &Shape) -> Option<String> {
        let Request::QuantizingGatedMatmulQuant {
            op,
            quant,
            x,
            weight,
        } = request
        else {
            return None;
        };
        let types = (*x, *weight, Float::BF16);
        let problem = MatmulProblem::of_shape(shape, types, true, self.facts())?;
        if !ActivatedCodes::takes(op, quant, problem.n / 2) {
            return None;
        }
        let codes = codes_problem(&problem, quant, weight);
        let step = CodesPlan::activated(&codes, self.facts())?;
        Some(format!("quantized, then {step}"))
    }

    /// The plan of a matmul of this shape on rows without gaps, on one line; none for requests of
    /// other kinds.
    pub(crate) fn plan(&self, request: &Request, shape: &Shape) -> Option<String> {
        let (types, pairs) = match *request {
            Request::Matmul { x, weight, y } => ((x, weight, y), false),
            Request::GatedMatmul { x, weight, act, .. } => ((x, weight, act), true),
            Request::QuantizedMatmul { weight, y, .. } => ((Float::BF16, weight, y), false),
            _ => return None,
        };
        let problem = MatmulProblem::of_shape(shape, types, pairs, self.facts())?;
        let plan = MatmulPlan::new(&problem, self.facts(), None)?;
        let Request::QuantizedMatmul { quant, weight, .. } = request else {
            return Some(plan.to_string());
        };
        let codes = codes_problem(&problem, quant, weight);
        Some(match CodesPlan::new(&codes, self.facts()) {
            Some(codes) => codes.to_string(),
            None => format!("dequantize_bf16, then {plan}"),
        })
    }
}

fn codes_problem(
    problem: &MatmulProblem,
    quant: &Quantization,
    weight: &WeightFormat,
) -> CodesProblem {
    CodesProblem {
        t: problem.t,
        n: problem.n,
        k: problem.k,
        group: quant.group(),
        w_in_blocks: weight.scaling().is_some_and(|(_, block)| block == [128; 2]),
        aligned: problem.k.is_multiple_of(16),
        scales_in_columns: false,
        scratch_aligned: true,
    }
}
