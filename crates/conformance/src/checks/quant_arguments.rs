use swiglu_core::{
    Batch, Float, GateUp, GatedActivation, QuantOptions, Quantization, Quantize, QuantizedMut,
    Request, Rounding, RowLayout, ScaleFormat, ScaleLayout, ScaleOrder, Tensor, bf16,
};

use super::arguments::named;
use crate::harness::tensor;
use crate::skips::Skips;
use crate::{Failure, Harness};

/// A call on [2, 256] inputs, to be changed in one place.
#[derive(Clone, Copy)]
struct QuantCall {
    op: GatedActivation,
    quant: Quantization,
    input: RowLayout,
    /// Of the ups, where they are a matrix of their own: the input is then the gates.
    up: Option<(Float, RowLayout)>,
    codes: RowLayout,
    scales: ScaleLayout,
    route: Option<usize>,
    batch: Option<(usize, usize)>,
    hits: Option<usize>,
}

impl QuantCall {
    /// With buffers of the lengths that the good call needs; those of options have the lengths
    /// that are given, in bytes.
    fn run<B: Quantize>(&self, h: &Harness<B>) -> Result<swiglu_core::Result<()>, Failure> {
        let alloc = |bytes: Option<usize>| bytes.map(|n| h.backend.alloc(n)).transpose();
        let input = h.backend.alloc(2 * 256 * 2)?;
        let (mut codes, mut scales) = (h.backend.alloc(256)?, h.backend.alloc(4)?);
        let (route, mut hits) = (alloc(self.route)?, alloc(self.hits)?);
        let counts = alloc(self.batch.map(|b| b.1))?;
        let output = QuantizedMut {
            codes: B::view_mut(&mut codes),
            layout: self.codes,
            scales: B::view_mut(&mut scales),
            scale_layout: self.scales,
        };
        let batch = self.batch.zip(counts.as_ref());
        let options = QuantOptions {
            route: route.as_ref().map(B::view),
            batch: batch.map(|((rows, _), counts)| Batch {
                rows,
                counts: B::view(counts),
            }),
            hits: hits.as_mut().map(B::view_mut),
        };
        let first = tensor::<B, bf16>(&input, self.input);
        let input = match self.up {
            None => first.into(),
            Some((float, layout)) => GateUp::Split {
                gate: first,
                up: Tensor::new(B::view(&input), float, layout),
            },
        };
        Ok(h.backend
            .act_and_mul_quant(&self.op, &self.quant, input, output, options))
    }
}

/// Calls of the fused quantization that do not fit are refused, by the name of the argument.
///
/// # Errors
/// The first that is accepted, or whose error names something else.
pub fn quantization_arguments_are_named<B: Quantize>(h: &Harness<B>) -> Result<(), Failure> {
    let quant = Quantization::deepseek_v4();
    let request = Request::ActivationQuant {
        op: GatedActivation::deepseek_v4(),
        quant,
        float: Float::BF16,
    };
    if !Skips::new(h, "quantization_arguments_are_named").runs(&request) {
        return Ok(());
    }
    let rows = RowLayout::contiguous;
    let scales = ScaleLayout::contiguous(quant.format(), ScaleOrder::RowMajor, 2, 1);
    let good = QuantCall {
        op: GatedActivation::deepseek_v4(),
        quant,
        input: rows(2, 256),
        up: None,
        codes: rows(2, 128),
        scales,
        route: Some(8),
        batch: Some((1, 8)),
        hits: Some(12),
    };
    good.run(h)??;
    let (codes, eager) = (good.codes, good.op.with_rounding(Rounding::Eager));
    let without_route = QuantCall {
        route: None,
        ..good
    };
    let split = QuantCall {
        input: rows(2, 128),
        up: Some((Float::BF16, rows(2, 128))),
        ..good
    };
    split.run(h)??;
    #[rustfmt::skip]
    let cases = [
        ("an odd last dimension", "input", QuantCall { input: rows(2, 255), ..good }),
        ("an input past its buffer", "input", QuantCall { input: rows(2, 256).with_offset(1), ..good }),
        ("codes of another width", "codes", QuantCall { codes: rows(2, 127), ..good }),
        ("codes of other rows", "codes", QuantCall { codes: rows(1, 128), ..good }),
        ("codes past their buffer", "codes", QuantCall { codes: codes.with_offset(1), ..good }),
        ("a stride of codes below d", "codes", QuantCall { codes: codes.with_stride(127), ..good }),
        ("scales in another format", "scales", QuantCall { scales: ScaleLayout { format: ScaleFormat::F32, ..scales }, ..good }),
        ("scales of more groups", "scales", QuantCall { scales: ScaleLayout { groups: 2, stride: 2, ..scales }, ..good }),
        ("scales of other rows", "scales", QuantCall { scales: ScaleLayout { rows: 1, ..scales }, ..good }),
        ("scales past their buffer", "scales", QuantCall { scales: scales.with_stride(4), ..good }),
        ("a stride of scales below G", "scales", QuantCall { scales: scales.with_stride(0), ..good }),
        ("too few route weights", "route", QuantCall { route: Some(4), ..good }),
        ("batches that do not divide the rows", "batch", QuantCall { batch: Some((3, 8)), ..good }),
        ("batches of no rows", "batch", QuantCall { batch: Some((0, 8)), ..good }),
        ("too few counts", "counts", QuantCall { batch: Some((1, 4)), ..good }),
        ("too few counters", "hits", QuantCall { hits: Some(8), ..good }),
        ("a route weight in eager rounding", "route", QuantCall { op: eager, ..good }),
        ("unrounded values in eager rounding", "materialize", QuantCall { op: eager, quant: quant.with_materialize(false), ..without_route }),
        ("gates of no columns", "gate", QuantCall { input: rows(2, 0), ..split }),
        ("gates past their buffer", "gate", QuantCall { input: rows(2, 128).with_stride(1024), ..split }),
        ("ups of another type", "up", QuantCall { up: Some((Float::F16, rows(2, 128))), ..split }),
        ("ups of another width", "up", QuantCall { up: Some((Float::BF16, rows(2, 127))), ..split }),
        ("ups of other rows", "up", QuantCall { up: Some((Float::BF16, rows(1, 128))), ..split }),
        ("ups past their buffer", "up", QuantCall { up: Some((Float::BF16, rows(2, 128).with_stride(1024))), ..split }),
    ];
    for (case, argument, call) in cases {
        named(case, argument, call.run(h)?)?;
    }
    Ok(())
}
