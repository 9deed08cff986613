use swiglu_core::{
    Float, GatedActivation, Quantization, Request, Rounding, ScaleFormat, WeightFormat,
};

use crate::{Case, Failure, FullBackend, Harness};

/// How many of the requests that do not run are named.
const NAMED: usize = 12;

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
    let mut all: Vec<_> = Case::standard().iter().map(|c| *c.request()).collect();
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
    for weight in WeightFormat::SAMPLES {
        for (x, y) in pairs.into_iter().flatten() {
            all.push(Request::Matmul { x, weight, y });
            let gated = |&op: &GatedActivation| Request::GatedMatmul {
                op,
                x,
                weight,
                act: y,
            };
            all.extend(ops.iter().map(gated));
        }
        for &quant in &quants {
            all.extend(Float::ALL.map(|y| Request::QuantizedMatmul { quant, weight, y }));
        }
    }
    Ok(all)
}

/// Everything that the library has runs: each activation, rounding and type, each weight format,
/// each quantization, alone and in every combination that there is a call for. This is for backends
/// that are to be complete; others answer for what they run ([`crate::suite!`]).
///
/// # Errors
/// What does not run, with the reason.
pub fn everything_is_supported<B: FullBackend>(h: &Harness<B>) -> Result<(), Failure> {
    let all = every_request()?;
    let missing: Vec<_> = all
        .iter()
        .map(|request| (request, h.backend.supports(request)))
        .filter(|(_, support)| !support.runs())
        .map(|(request, support)| format!("{request}: {support}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let (named, count) = (&missing[..missing.len().min(NAMED)], missing.len());
    Err(Failure::new(format!(
        "{count} of {} requests do not run, of which the first are\n  {}",
        all.len(),
        named.join("\n  ")
    )))
}
