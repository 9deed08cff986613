//! The plan of a request, for operands without gaps: what [`swiglu_core::Backend::plan`] prints.

use swiglu_core::{Float, GatedActivation, Request, Shape, WeightFormat};

use crate::activation::{ActivationPlan, ActivationSpans};
use crate::device::Facts;
use crate::launch::{Op, RowSpan};
use crate::matmul::{GatedOperands, GatedPlan, MatmulOperands, MatmulPlan};
use crate::moe;
use crate::pipelines::{COOPERATIVE_DEPTH, CooperativeTile};
use crate::quant::{FusedInput, QuantizePlan};
use crate::weight::WeightForm;

/// The kernels of a request of this shape; none for a request, or a size, that does not run.
pub(crate) fn plan(facts: &Facts, request: &Request, shape: &Shape) -> Option<String> {
    if shape.cols == 0 {
        return None;
    }
    match *request {
        Request::Activation { op, float } => activation(facts, &op, float, shape),
        Request::ActivationQuant { op, float, .. } => fused(facts, &op, float, shape),
        Request::Quantize { float, .. } => Some(quantize(facts, float, shape)),
        Request::Matmul { x, weight, y } => matmul(facts, [x, y], weight, shape),
        Request::GatedMatmul { op, x, weight, act } => gated(facts, &op, [x, act], weight, shape),
        Request::QuantizedMatmul { weight, y, .. } => {
            let matmul = matmul(facts, [Float::BF16, y], weight, shape)?;
            Some(format!("dequantize to bf16; {matmul}"))
        }
        Request::Route { x, weight, .. } => {
            let logits = matmul(facts, [x, Float::F32], weight, shape)?;
            Some(format!("{logits}; choose_experts; sort_routes"))
        }
        Request::GroupedGatedMatmul { .. } | Request::GroupedMatmulSum { .. } => {
            moe::plan(facts, request, shape)
        }
        _ => None,
    }
}

fn activation(facts: &Facts, op: &GatedActivation, float: Float, shape: &Shape) -> Option<String> {
    let d = shape.cols;
    let spans = ActivationSpans::contiguous(op, float, d);
    let op = Op::of(op, float).ok()?;
    let plan = ActivationPlan::new(facts, (&op, float), &spans, [shape.rows, d]);
    Some(plan.to_string())
}

fn fused(facts: &Facts, op: &GatedActivation, float: Float, shape: &Shape) -> Option<String> {
    let d = shape.cols;
    let spans = ActivationSpans::contiguous(op, float, d);
    let op = Op::of(op, float).ok()?;
    let input = FusedInput {
        op: &op,
        float,
        layout: spans.layout,
        vectors: spans.halves_are_vectors(),
    };
    let windows = [spans.gate, spans.up, RowSpan::contiguous(1, d)];
    let plan = QuantizePlan::new(facts, Some(input), &windows, [shape.rows, d]);
    Some(plan.to_string())
}

fn quantize(facts: &Facts, float: Float, shape: &Shape) -> String {
    let sizes = [float.size(), 1];
    let spans = sizes.map(|size| RowSpan::contiguous(size, shape.cols));
    QuantizePlan::new(facts, None, &spans, [shape.rows, shape.cols]).to_string()
}

/// The operands of a matmul by the first buffer of the weight, and the number of such.
fn operands(
    facts: &Facts,
    [x, y]: [Float; 2],
    weight: WeightFormat,
    shape: &Shape,
) -> Option<(MatmulOperands, usize)> {
    let Shape { rows, cols, depth } = *shape;
    if depth == 0 {
        return None;
    }
    let form = WeightForm::of(weight, depth).ok()?;
    let per_chunk = form.rows_per_chunk(&facts.bindings).ok()?;
    let chunk = per_chunk.min(cols);
    let operands = MatmulOperands {
        tokens: rows,
        x: RowSpan::contiguous(x.size(), depth),
        x_float: x,
        y: RowSpan::contiguous(y.size(), cols).part(0, chunk),
        y_float: y,
        weight: form.format,
        k: depth,
        rows: chunk,
        plain_codes: form.scale_shift().is_some(),
        exact_in_f16: true,
        dense: chunk >= CooperativeTile::Wide.shape().rows as usize
            && depth.is_multiple_of(COOPERATIVE_DEPTH as usize),
    };
    Some((operands, cols.div_ceil(per_chunk)))
}

fn matmul(
    facts: &Facts,
    floats: [Float; 2],
    weight: WeightFormat,
    shape: &Shape,
) -> Option<String> {
    let (operands, buffers) = operands(facts, floats, weight, shape)?;
    let plan = MatmulPlan::new(facts, &operands);
    Some(match buffers {
        1 => plan.to_string(),
        _ => format!("{plan}, for each of {buffers} buffers of the weight"),
    })
}

fn gated(
    facts: &Facts,
    op: &GatedActivation,
    [x, act]: [Float; 2],
    weight: WeightFormat,
    shape: &Shape,
) -> Option<String> {
    let (whole, buffers) = operands(facts, [x, act], weight, shape)?;
    let d = shape.cols / 2;
    if d == 0 {
        return None;
    }
    let operands = GatedOperands {
        matmul: MatmulOperands {
            y: RowSpan::contiguous(act.size(), d),
            ..whole
        },
        gate_up: whole.y,
        layout: op.layout(),
    };
    let fused = GatedPlan::fused(facts, &Op::of(op, act).ok()?, &operands);
    if let Some(plan) = fused.filter(|_| buffers == 1) {
        return Some(plan.to_string());
    }
    let matmul = matmul(facts, [x, act], weight, shape)?;
    let halves = Shape { cols: d, ..*shape };
    let activation = activation(facts, op, act, &halves)?;
    Some(format!("{matmul}; {activation}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use swiglu_core::Quantization;

    fn shown(request: Request, [rows, cols, depth]: [usize; 3]) -> String {
        plan(&Facts::GPU, &request, &Shape { rows, cols, depth }).unwrap()
    }

    #[test]
    fn every_request_has_a_plan_on_one_line() {
        let (op, weight) = (GatedActivation::deepseek_v4(), WeightFormat::DEEPSEEK_V4);
        let (quant, bf16) = (Quantization::deepseek_v4(), Float::BF16);
        for (request, shape, expected) in [
            (
                Request::Activation { op, float: bf16 },
                [1, 2048, 0],
                "activation_native(bf16, one row)",
            ),
            (
                Request::ActivationQuant {
                    op,
                    quant,
                    float: bf16,
                },
                [64, 3072, 0],
                "quantize(activation in bf16) by native vectors",
            ),
            (
                Request::Quantize { quant, float: bf16 },
                [64, 3072, 0],
                "quantize(matrix)",
            ),
            (
                Request::Matmul {
                    x: bf16,
                    weight,
                    y: bf16,
                },
                [1, 7168, 3072],
                "gemv(bf16 by e4m3, T <= 1)",
            ),
            (
                Request::GatedMatmul {
                    op,
                    x: bf16,
                    weight,
                    act: bf16,
                },
                [1, 6144, 7168],
                "gemv_gated(bf16 by e4m3, T <= 1)",
            ),
            (
                Request::GatedMatmul {
                    op,
                    x: bf16,
                    weight,
                    act: bf16,
                },
                [4096, 6144, 7168],
                "matmul_cooperative(128 x 128, bf16 by e4m3); activation_native(bf16)",
            ),
            (
                Request::QuantizedMatmul {
                    quant,
                    weight,
                    y: bf16,
                },
                [4096, 7168, 3072],
                "dequantize to bf16; matmul_cooperative(128 x 128, bf16 by e4m3)",
            ),
        ] {
            assert_eq!(shown(request, shape), expected, "{request}");
        }
    }

    #[test]
    fn a_weight_in_several_buffers_is_told() {
        let facts = Facts::GPU.with_bindings_of(1 << 20);
        let request = Request::Matmul {
            x: Float::BF16,
            weight: WeightFormat::Float(Float::BF16),
            y: Float::BF16,
        };
        let shape = Shape {
            rows: 1,
            cols: 256,
            depth: 4096,
        };
        let shown = plan(&facts, &request, &shape).unwrap();
        let expected = "gemv(bf16 by bf16, T <= 1), for each of 2 buffers of the weight";
        assert_eq!(shown, expected);
    }
}
