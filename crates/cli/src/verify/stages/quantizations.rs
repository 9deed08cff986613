//! Quantization, alone and fused with an activation.

use swiglu::{
    Element, Float, GatedActivation, Quantization, Request, ScaleFormat, ScaleOrder, bf16, f16,
    reference::Reference,
};
use swiglu_conformance::inputs::telling;
use swiglu_conformance::{ActLayouts, Failure, FullBackend, Harness, QuantCase, Size};

use super::row;
use crate::verify::report::StageRow;

/// Two rows for each group and format of scales.
pub fn rows<B: FullBackend>(harness: &Harness<B>) -> Vec<StageRow> {
    let kinds = Quantization::GROUPS
        .into_iter()
        .flat_map(|group| ScaleFormat::ALL.map(|format| Quantization::new(group, format)));
    kinds
        .flatten()
        .flat_map(|quant| quantization(harness, quant))
        .collect()
}

/// A quantization of matrices in every type, and fused with an activation.
fn quantization<B: FullBackend>(harness: &Harness<B>, quant: Quantization) -> [StageRow; 2] {
    let backend = &harness.backend;
    let alone = |float| Request::Quantize { quant, float };
    let op = GatedActivation::deepseek_v4();
    let fused = |float| Request::ActivationQuant { op, quant, float };
    let runs = |request: &dyn Fn(Float) -> Request| {
        let all = Float::ALL.map(request);
        let (runs, not): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|r| backend.supports(r).runs());
        if runs.is_empty() { not } else { runs }
    };
    let row_of = |name: String, request: &dyn Fn(Float) -> Request, op: Option<GatedActivation>| {
        let requests = runs(request);
        row(backend, name, &requests, || {
            for request in &requests {
                let float = match request {
                    Request::Quantize { float, .. } | Request::ActivationQuant { float, .. } => {
                        float
                    }
                    _ => continue,
                };
                match float {
                    Float::F32 => quantize::<f32, B>(harness, quant, op.as_ref())?,
                    Float::F16 => quantize::<f16, B>(harness, quant, op.as_ref())?,
                    Float::BF16 => quantize::<bf16, B>(harness, quant, op.as_ref())?,
                }
            }
            Ok("to the bit".to_owned())
        })
    };
    [
        row_of(quant.to_string(), &alone, None),
        row_of(format!("{} to {quant}", op.name()), &fused, Some(op)),
    ]
}

fn quantize<T: Element, B: FullBackend>(
    harness: &Harness<B>,
    quant: Quantization,
    op: Option<&GatedActivation>,
) -> Result<(), Failure> {
    let (rows, d) = (3, 700);
    let kind = (quant, ScaleOrder::RowMajor);
    let case = QuantCase::new(op, kind, rows, d);
    let x = telling::<T>(rows, if op.is_some() { 2 * d } else { d }, 5);
    let y = match op {
        None => x.clone(),
        Some(op) => harness.act_on_rows(op, &x, ActLayouts::contiguous(rows, d))?,
    };
    let got = case.run(harness, &x)?;
    let alone = QuantCase::new(None, kind, rows, d);
    let want = alone.run(&Harness::new(Reference, Size::Quick), &y)?;
    case.same(T::FLOAT, &got, &want, "against the reference")
}
