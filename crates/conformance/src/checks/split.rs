//! Gate and up in two matrices.

use swiglu_core::{
    ActAndMul, Element, Float, GateUp, GatedActivation, Quantize, Request, RowLayout, Tensor,
    TensorMut,
};

use super::arguments::named;
use super::in_every_type;
use crate::compare::{halves_of_rows, identical, pairs_of_rows};
use crate::inputs::telling;
use crate::quant_case::QuantCase;
use crate::skips::Skips;
use crate::{ActLayouts, Failure, Harness, SplitLayouts};

/// Gate and up in two matrices, with strides and offsets of their own, give bit for bit what they
/// give in one matrix whose alignment is like theirs: in every activation, rounding and type, also
/// with NaN among them. The operation's order and layout have no say.
///
/// # Errors
/// The first difference.
pub fn split_halves_equal_merged<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    fn check<T: Element, B: ActAndMul>(
        h: &Harness<B>,
        skips: &mut Skips<'_, B>,
    ) -> Result<(), Failure> {
        for op in skips.activations(T::FLOAT) {
            for (rows, d) in [(0, 3), (1, 8), (3, 65), (2, 1027)] {
                let merged = telling::<T>(rows, 2 * d, d as u64);
                let [gates, ups] = halves_of_rows(&op, &merged, d);
                let lies = |gap: usize, offset: usize| {
                    RowLayout::contiguous(rows, d)
                        .with_stride(d + gap)
                        .with_offset(offset)
                };
                let tight = ActLayouts::contiguous(rows, d);
                // Without gaps; with vectors whole where those of d are; aligned to the element only.
                for (gate, up, one) in [
                    (lies(0, 0), lies(0, 0), tight),
                    (lies(16, 16), lies(32, 48), tight.spread([16, 16], [16, 0])),
                    (lies(5, 1), lies(2, 3), tight.spread([5, 1], [1, 2])),
                ] {
                    let want = h.act_on_rows(&op, &merged, one)?;
                    let output = one.output;
                    let layouts = SplitLayouts { gate, up, output };
                    let got = h.act_on_split(&op, [&gates, &ups], layouts)?;
                    identical(&op, &pairs_of_rows(&op, &merged, d), &got, &want)
                        .map_err(|f| f.within(format!("gate {gate}, up {up}, output {output}")))?;
                }
            }
        }
        Ok(())
    }
    let skips = &mut Skips::new(h, "split_halves_equal_merged");
    in_every_type!(check(h, skips))
}

/// The same of the fused quantization: codes, scales and hits.
///
/// # Errors
/// The first difference.
pub fn split_quantization_equals_merged<B: Quantize>(h: &Harness<B>) -> Result<(), Failure> {
    fn check<T: Element, B: Quantize>(
        h: &Harness<B>,
        skips: &mut Skips<'_, B>,
    ) -> Result<(), Failure> {
        let every = h.size.pick(4, 1);
        for (i, op) in GatedActivation::ALL.into_iter().enumerate() {
            let float = T::FLOAT;
            let kinds =
                skips.quantizations(|quant| Request::ActivationQuant { op, quant, float })?;
            // In turn, so that every kind meets several operations.
            for kind in kinds.into_iter().skip(i % every).step_by(every) {
                for (rows, d, gap, offset) in [(3, 71, 0, 0), (2, 384, 8, 8), (2, 301, 5, 1)] {
                    let x = telling::<T>(rows, 2 * d, 6);
                    let merged = QuantCase {
                        gap,
                        offset,
                        hits: true,
                        ..QuantCase::new(Some(&op), kind, rows, d)
                    };
                    let split = QuantCase {
                        split: true,
                        ..merged
                    };
                    let want = merged.run(h, &x).map_err(|f| f.within(merged))?;
                    let got = split.run(h, &x).map_err(|f| f.within(split))?;
                    split.same(float, &got, &want, "against one matrix")?;
                }
            }
        }
        Ok(())
    }
    let skips = &mut Skips::new(h, "split_quantization_equals_merged");
    in_every_type!(check(h, skips))
}

/// Calls with gate and up in two matrices that do not fit are refused, by the name of the argument
/// at fault.
///
/// # Errors
/// The first that is accepted, or whose error names something else.
pub fn split_arguments_are_named<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    use Float::{BF16, F16, F32};
    let op = GatedActivation::deepseek_v4();
    if !Skips::new(h, "split_arguments_are_named").activates(&op, BF16) {
        return Ok(());
    }
    let rows = RowLayout::contiguous;
    let good = rows(2, 4);
    #[rustfmt::skip]
    let cases = [
        ("gates of no columns", "gate", (BF16, rows(2, 0)), (BF16, rows(2, 0)), (BF16, rows(2, 0))),
        ("a gate stride below d", "gate", (BF16, good.with_stride(3)), (BF16, good), (BF16, good)),
        ("gates past their buffer", "gate", (BF16, good.with_offset(1)), (BF16, good), (BF16, good)),
        ("ups of another type", "up", (BF16, good), (F16, good), (BF16, good)),
        ("ups of another width", "up", (BF16, good), (BF16, rows(2, 3)), (BF16, good)),
        ("ups of other rows", "up", (BF16, good), (BF16, rows(1, 4)), (BF16, good)),
        ("an up stride below d", "up", (BF16, good), (BF16, good.with_stride(3)), (BF16, good)),
        ("ups past their buffer", "up", (BF16, good), (BF16, good.with_stride(5)), (BF16, good)),
        ("an offset of ups that overflows", "up", (BF16, good), (BF16, good.with_offset(usize::MAX)), (BF16, good)),
        ("an output of another type", "output", (BF16, good), (BF16, good), (F32, good)),
        ("an output of another width", "output", (BF16, good), (BF16, good), (BF16, rows(2, 2))),
        ("an output past its buffer", "output", (BF16, good), (BF16, good), (BF16, good.with_offset(1))),
    ];
    let (gates, ups) = (h.backend.alloc(16)?, h.backend.alloc(16)?);
    let mut output = h.backend.alloc(16)?;
    for (case, argument, gate, up, to) in cases {
        let input = GateUp::Split {
            gate: Tensor::new(B::view(&gates), gate.0, gate.1),
            up: Tensor::new(B::view(&ups), up.0, up.1),
        };
        let to = TensorMut::new(B::view_mut(&mut output), to.0, to.1);
        named(case, argument, h.backend.act_and_mul(&op, input, to))?;
    }
    Ok(())
}
