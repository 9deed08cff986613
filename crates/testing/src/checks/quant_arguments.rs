use swiglu_core::{
    ActAndMulQuant, Batch, DType, GatedActivation, QuantOptions, Quantization, QuantizedMut,
    Rounding, RowLayout, ScaleFormat, ScaleLayout, ScaleOrder, ScalesMut, Support, Tensor,
    TensorMut,
};

use super::arguments::named;
use crate::suite::skip;
use crate::{Failure, Harness};

/// A call on [2, 256] inputs, to be changed in one place.
#[derive(Clone, Copy)]
struct Call {
    op: GatedActivation,
    quant: Quantization,
    input: (DType, RowLayout),
    codes: (DType, RowLayout),
    scales: ScaleLayout,
    route: Option<usize>,
    batch: Option<(usize, usize)>,
    hits: Option<usize>,
}

impl Call {
    /// With buffers of the lengths that the good call needs; those of options have the lengths
    /// that are given, in bytes.
    fn run<B: ActAndMulQuant>(&self, h: &Harness<B>) -> Result<swiglu_core::Result<()>, Failure> {
        let alloc = |bytes: Option<usize>| bytes.map(|n| h.backend.alloc(n)).transpose();
        let input = h.backend.alloc(2 * 256 * 2)?;
        let (mut codes, mut scales) = (h.backend.alloc(256)?, h.backend.alloc(4)?);
        let (route, mut hits) = (alloc(self.route)?, alloc(self.hits)?);
        let counts = alloc(self.batch.map(|b| b.1))?;
        let output = QuantizedMut {
            codes: TensorMut {
                buffer: &mut codes,
                dtype: self.codes.0,
                layout: self.codes.1,
            },
            scales: ScalesMut {
                buffer: &mut scales,
                layout: self.scales,
            },
        };
        let options = QuantOptions {
            route: route.as_ref(),
            batch: self
                .batch
                .zip(counts.as_ref())
                .map(|((rows, _), counts)| Batch { rows, counts }),
            hits: hits.as_mut(),
        };
        let input = Tensor {
            buffer: &input,
            dtype: self.input.0,
            layout: self.input.1,
        };
        Ok(h.backend
            .act_and_mul_quant(&self.op, &self.quant, input, output, options))
    }
}

/// Calls of the fused quantization that do not fit are refused, by the name of the argument.
///
/// # Errors
/// The first that is accepted, or whose error names something else.
pub fn quantization_arguments_are_named<B: ActAndMulQuant>(h: &Harness<B>) -> Result<(), Failure> {
    let quant = Quantization::deepseek_v4();
    if let Support::No(reason) = h.backend.supports_quant(&quant, DType::BF16) {
        let check = "quantization_arguments_are_named";
        skip(h.backend.platform(), &format!("{quant}: {reason}"), check);
        return Ok(());
    }
    let rows = RowLayout::contiguous;
    let scales = ScaleLayout::contiguous(quant.format(), ScaleOrder::RowMajor, 2, 1);
    let good = Call {
        op: GatedActivation::deepseek_v4(),
        quant,
        input: (DType::BF16, rows(2, 256)),
        codes: (DType::F8E4M3, rows(2, 128)),
        scales,
        route: Some(8),
        batch: Some((1, 8)),
        hits: Some(12),
    };
    good.run(h)??;
    let (codes, eager) = (good.codes, good.op.with_rounding(Rounding::Eager));
    let without_route = Call {
        route: None,
        ..good
    };
    #[rustfmt::skip]
    let cases = [
        ("an odd last dimension", "input", Call { input: (DType::BF16, rows(2, 255)), ..good }),
        ("an input of f8", "input", Call { input: codes, ..good }),
        ("an input past its buffer", "input", Call { input: (DType::BF16, rows(2, 256).with_offset(1)), ..good }),
        ("codes of bf16", "codes", Call { codes: (DType::BF16, codes.1), ..good }),
        ("codes of another width", "codes", Call { codes: (codes.0, rows(2, 127)), ..good }),
        ("codes of other rows", "codes", Call { codes: (codes.0, rows(1, 128)), ..good }),
        ("codes past their buffer", "codes", Call { codes: (codes.0, codes.1.with_offset(1)), ..good }),
        ("a stride of codes below d", "codes", Call { codes: (codes.0, codes.1.with_stride(127)), ..good }),
        ("scales in another format", "scales", Call { scales: ScaleLayout { format: ScaleFormat::F32, ..scales }, ..good }),
        ("scales of more groups", "scales", Call { scales: ScaleLayout { groups: 2, stride: 2, ..scales }, ..good }),
        ("scales of other rows", "scales", Call { scales: ScaleLayout { rows: 1, ..scales }, ..good }),
        ("scales past their buffer", "scales", Call { scales: scales.with_stride(4), ..good }),
        ("a stride of scales below G", "scales", Call { scales: scales.with_stride(0), ..good }),
        ("too few route weights", "route", Call { route: Some(4), ..good }),
        ("batches that do not divide the rows", "batch", Call { batch: Some((3, 8)), ..good }),
        ("batches of no rows", "batch", Call { batch: Some((0, 8)), ..good }),
        ("too few counts", "counts", Call { batch: Some((1, 4)), ..good }),
        ("too few counters", "hits", Call { hits: Some(8), ..good }),
        ("a route weight in eager rounding", "route", Call { op: eager, ..good }),
        ("unrounded values in eager rounding", "materialize", Call { op: eager, quant: quant.with_materialize(false), ..without_route }),
    ];
    for (case, argument, call) in cases {
        named(case, argument, call.run(h)?)?;
    }
    Ok(())
}
