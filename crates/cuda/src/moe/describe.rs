//! The plans of a layer as lines of a report, and the memory that it takes.

use swiglu_core::{Float, Request, Routing, Shape, WeightFormat};

use super::{
    call::{ALIGNMENT, Moe},
    plan::{ExpertsPlan, ExpertsProblem, Half, RoutePlan, RouteProblem},
};
use crate::{
    matmul::MatmulFacts,
    weight::{WeightType, stack::ExpertFormat},
};

impl Moe {
    /// The bytes of scratch memory that a request takes of its caller.
    pub(crate) fn scratch(request: &Request, shape: &Shape) -> usize {
        let rows = |rows: usize, cols: usize| {
            let bytes = rows.saturating_mul(cols).saturating_mul(2);
            bytes.saturating_add(ALIGNMENT as usize)
        };
        match request {
            Request::Route { .. } => shape.rows.saturating_mul(shape.cols).saturating_mul(4),
            Request::GroupedGatedMatmul { quant: Some(_), .. } => rows(shape.rows, shape.depth),
            Request::GroupedMatmulSum { routing, .. } => {
                rows(shape.rows.saturating_mul(routing.top_k()), shape.cols)
            }
            _ => 0,
        }
    }

    /// The plan of a request of a layer of this shape on rows without gaps, on one line; none for others.
    pub(crate) fn plan(request: &Request, shape: &Shape, facts: &MatmulFacts) -> Option<String> {
        let &Shape { rows, cols, depth } = shape;
        let packed = facts.packs_for().is_some();
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
            };
            ExpertsPlan::new(&problem, facts)
        };
        match request {
            Request::Route { x, weight, .. } => {
                let problem = RouteProblem {
                    tokens: rows,
                    hidden: depth,
                    experts: cols,
                    x: *x,
                    gate: WeightType::from_format(*weight).ok()?,
                    in_vectors: depth.checked_mul(x.size())?.is_multiple_of(16),
                };
                Some(RoutePlan::new(&problem, facts).to_string())
            }
            Request::GroupedGatedMatmul {
                quant,
                routing,
                x,
                weight,
                ..
            } => {
                let x = quant.map_or(*x, |_| Float::BF16);
                let plan = experts(Half::Gated, routing, x, *weight, cols / 2)?;
                Some(match quant {
                    None => plan.to_string(),
                    Some(_) => format!("moe_widen, then {plan}, then moe_widen"),
                })
            }
            Request::GroupedMatmulSum {
                routing, weight, ..
            } => {
                let plan = experts(Half::Down, routing, Float::BF16, *weight, cols)?;
                Some(format!("{plan}; moe_sum"))
            }
            _ => None,
        }
    }
}
