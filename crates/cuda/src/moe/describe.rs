//! The plans of a layer as lines of a report, and the memory that it takes.

use swiglu_core::{Float, Request, Routing, Shape, WeightFormat};

use super::{
    call::{ALIGNMENT, Moe},
    plan::{ExpertsPlan, ExpertsProblem, Half},
    route::{RoutePlan, RouteProblem},
};
use crate::{
    matmul::MatmulFacts,
    weight::{WeightType, stack::ExpertFormat},
};

impl Moe {
    /// The bytes of scratch memory that a request takes of its caller: of rows that a quantization leaves, of gathered
    /// rows, of outputs.
    pub(crate) fn scratch(request: &Request, shape: &Shape, facts: &MatmulFacts) -> usize {
        let rows = |rows: usize, cols: usize| {
            let bytes = rows.saturating_mul(cols).saturating_mul(2);
            bytes.saturating_add(ALIGNMENT as usize)
        };
        // Packed where the device has the kernels: experts may have been loaded when others were asked for.
        let plan = Self::experts_plan(request, shape, facts, facts.capability.is_hopper());
        let gathered = |routing: &Routing| {
            let gathers = plan.is_some_and(|plan| plan.gathers());
            let of_rows = || rows(shape.rows.saturating_mul(routing.top_k()), shape.depth);
            if gathers { of_rows() } else { 0 }
        };
        match request {
            Request::Route { .. } => {
                let logits = shape.rows.saturating_mul(shape.cols).saturating_mul(4);
                logits.saturating_mul(RoutePlan::most_splits(shape.rows))
            }
            Request::GroupedGatedMatmul { quant, routing, .. } => {
                let widened = quant.map_or(0, |_| rows(shape.rows, shape.depth));
                widened.saturating_add(gathered(routing))
            }
            Request::GroupedMatmulSum { routing, .. } => {
                let outputs = rows(shape.rows.saturating_mul(routing.top_k()), shape.cols);
                outputs.saturating_add(gathered(routing))
            }
            _ => 0,
        }
    }

    /// The plan of a half on rows without gaps; none for other requests.
    fn experts_plan(
        request: &Request,
        shape: &Shape,
        facts: &MatmulFacts,
        packed: bool,
    ) -> Option<ExpertsPlan> {
        let &Shape { rows, cols, depth } = shape;
        let experts = |half, routing: &Routing, x, weight: WeightFormat, outputs| {
            let parts = if half == Half::Gated { 2 } else { 1 };
            let block = weight.scaling().filter(|_| weight != WeightFormat::Fp4);
            let problem = ExpertsProblem {
                half,
                routes: rows.checked_mul(routing.top_k())?,
                all_experts: routing.experts(),
                experts: routing.experts(),
                outputs,
                k: depth,
                x,
                format: ExpertFormat::of_experts(weight, parts, [outputs, depth], packed).ok()?,
                block_columns: block
                    .map(|(_, [_, columns])| columns)
                    .filter(|&c| c < depth),
                x_aligned: depth.checked_mul(x.size())?.is_multiple_of(16),
                y_aligned: outputs.is_multiple_of(8),
            };
            ExpertsPlan::new(&problem, facts)
        };
        match request {
            Request::GroupedGatedMatmul {
                quant,
                routing,
                x,
                weight,
                ..
            } => {
                let x = quant.map_or(*x, |_| Float::BF16);
                experts(Half::Gated, routing, x, *weight, cols / 2)
            }
            Request::GroupedMatmulSum {
                routing, weight, ..
            } => experts(Half::Down, routing, Float::BF16, *weight, cols),
            _ => None,
        }
    }

    /// The plan of a request of a layer of this shape on rows without gaps, on one line; none for others.
    pub(crate) fn plan(request: &Request, shape: &Shape, facts: &MatmulFacts) -> Option<String> {
        let &Shape { rows, cols, depth } = shape;
        let experts = || Self::experts_plan(request, shape, facts, facts.packs_for().is_some());
        match request {
            Request::Route { routing, x, weight } => {
                let problem = RouteProblem {
                    tokens: rows,
                    hidden: depth,
                    experts: cols,
                    top_k: routing.top_k(),
                    x: *x,
                    gate: WeightType::from_format(*weight).ok()?,
                    in_vectors: depth.checked_mul(x.size())?.is_multiple_of(16),
                };
                Some(RoutePlan::new(&problem, facts).to_string())
            }
            Request::GroupedGatedMatmul { quant, .. } => {
                let plan = experts()?;
                Some(match quant {
                    None => plan.to_string(),
                    Some(_) => format!("moe_widen, then {plan}, then moe_widen"),
                })
            }
            Request::GroupedMatmulSum { .. } => {
                let plan = experts()?;
                Some(format!("{plan}; moe_sum"))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use swiglu_core::{Accumulation, GatedActivation, Quantization, Selection};

    use super::*;
    use crate::launch::driver::Capability;

    #[test]
    fn gathered_rows_lie_behind_others_where_a_plan_gathers() {
        let routing = Routing::new(256, 6, 1.5, true, Selection::Score).unwrap();
        let gated = |quant| Request::GroupedGatedMatmul {
            op: GatedActivation::deepseek_v4(),
            quant,
            routing,
            x: Float::BF16,
            weight: WeightFormat::Fp4,
        };
        let sum = Request::GroupedMatmulSum {
            quant: None,
            routing,
            weight: WeightFormat::Fp4,
            y: Float::BF16,
        };
        let bytes = |tokens: usize, facts: &MatmulFacts| {
            let [first, second] = [[4096, 4096], [4096, 2048]].map(|[cols, depth]| Shape {
                rows: tokens,
                cols,
                depth,
            });
            let quantized = gated(Some(Quantization::deepseek_v4()));
            [
                (&gated(None), &first),
                (&quantized, &first),
                (&sum, &second),
            ]
            .map(|(request, shape)| Moe::scratch(request, shape, facts))
        };
        let matrix = |rows: usize, cols: usize| 2 * rows * cols + 16;
        let hopper = MatmulFacts {
            capability: Capability { major: 9, minor: 0 },
            multiprocessors: 132,
            library: None,
            accumulation: Accumulation::MatrixUnit,
        };
        let [of_x, rows, acts] = [matrix(4096, 4096), matrix(24576, 4096), matrix(24576, 2048)];
        assert_eq!(bytes(4096, &hopper), [rows, of_x + rows, rows + acts]);
        let few = [0, matrix(64, 4096), matrix(384, 4096)];
        assert_eq!(bytes(64, &hopper), few);
        let ordered = MatmulFacts {
            accumulation: Accumulation::Ordered,
            ..hopper
        };
        let ampere = MatmulFacts {
            capability: Capability { major: 8, minor: 0 },
            ..hopper
        };
        for facts in [ordered, ampere] {
            assert_eq!(bytes(4096, &facts), [0, of_x, rows], "{facts:?}");
        }
    }
}
