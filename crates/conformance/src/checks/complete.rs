use swiglu_core::{
    Float, GatedActivation, Quantization, Request, Rounding, Routing, ScaleFormat, Selection,
    Support, WeightFormat,
};

use crate::{Case, Failure, FullBackend, Harness};

/// How many requests of a kind that do not run are named.
const NAMED: usize = 4;

/// Every request that the library has: what follows from the family's table, the formats' samples
/// and the three types, and the calls of models.
fn every_request() -> Result<Vec<Request>, Failure> {
    let mut ops = Vec::new();
    for rounding in [Rounding::Official, Rounding::Eager] {
        ops.extend(GatedActivation::ALL.map(|op| op.with_rounding(rounding)));
    }
    let mut quants = Vec::new();
    for group in Quantization::GROUPS {
        for format in ScaleFormat::ALL {
            quants.push(Quantization::new(group, format)?);
        }
    }
    let pairs = Float::ALL.map(|x| Float::ALL.map(|y| (x, y)));
    let mut all = Vec::new();
    for float in Float::ALL {
        all.extend(ops.iter().map(|&op| Request::Activation { op, float }));
        all.extend(
            quants
                .iter()
                .map(|&quant| Request::Quantize { quant, float }),
        );
        for &quant in &quants {
            let fused = |&op: &GatedActivation| Request::ActivationQuant { op, quant, float };
            all.extend(ops.iter().map(fused));
        }
    }
    // What is simple comes first: it is what a message names.
    for (x, y) in pairs.into_iter().flatten() {
        all.extend(WeightFormat::SAMPLES.map(|weight| Request::Matmul { x, weight, y }));
    }
    for weight in WeightFormat::SAMPLES {
        for (x, act) in pairs.into_iter().flatten() {
            let gated = |&op: &GatedActivation| Request::GatedMatmul { op, x, weight, act };
            all.extend(ops.iter().map(gated));
        }
        for &quant in &quants {
            all.extend(Float::ALL.map(|y| Request::QuantizedMatmul { quant, weight, y }));
        }
    }
    let bf16 = Float::BF16;
    for selection in [
        Selection::Score,
        Selection::Hash {
            vocabulary: 129_280,
        },
    ] {
        let routing = Routing::new(256, 6, 1.5, true, selection)?;
        all.push(Request::Route {
            routing,
            x: bf16,
            weight: WeightFormat::Float(bf16),
        });
        for weight in WeightFormat::SAMPLES {
            for quant in [None, Some(Quantization::deepseek_v4())] {
                all.push(Request::GroupedGatedMatmul {
                    op: GatedActivation::deepseek_v4(),
                    quant,
                    routing,
                    x: bf16,
                    weight,
                });
                all.extend([bf16, Float::F32].map(|y| Request::GroupedMatmulSum {
                    quant,
                    routing,
                    weight,
                    y,
                }));
            }
        }
    }
    all.extend(Case::standard().iter().map(|c| *c.request()));
    Ok(all)
}

/// The weight's format of a request that has one.
const fn weight(request: &Request) -> Option<WeightFormat> {
    match request {
        Request::Matmul { weight, .. }
        | Request::GatedMatmul { weight, .. }
        | Request::QuantizedMatmul { weight, .. }
        | Request::Route { weight, .. }
        | Request::GroupedGatedMatmul { weight, .. }
        | Request::GroupedMatmulSum { weight, .. } => Some(*weight),
        _ => None,
    }
}

/// Everything that the library has runs: each activation, rounding and type, each weight format,
/// each quantization, alone and in every combination that there is a call for. This is for backends
/// that are to be complete; others answer for what they run ([`crate::suite!`]). `lacking` names
/// the weight formats that it is known not to have.
///
/// # Errors
/// What does not run, with the reason, or what runs although it is known to be lacking.
pub fn everything_is_supported<B: FullBackend>(
    h: &Harness<B>,
    lacking: &[WeightFormat],
) -> Result<(), Failure> {
    let (known, all): (Vec<_>, Vec<_>) = every_request()?
        .into_iter()
        .partition(|request| weight(request).is_some_and(|w| lacking.contains(&w)));
    if let Some(request) = known.iter().find(|r| h.backend.supports(r).runs()) {
        return Err(Failure::new(format!(
            "{request} runs, and is said to be lacking"
        )));
    }
    let (mut named, mut kinds, mut count) = (String::new(), Vec::new(), 0);
    for request in &all {
        let Support::No(reason) = h.backend.supports(request) else {
            continue;
        };
        let kind = std::mem::discriminant(request);
        count += 1;
        kinds.push(kind);
        if kinds.iter().filter(|k| **k == kind).count() <= NAMED {
            named += &format!("\n  {request}: {reason}");
        }
    }
    if count == 0 {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{count} of {} requests do not run, among them{named}",
        all.len()
    )))
}
