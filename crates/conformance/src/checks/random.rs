//! Random cases. With the feature `proptest` what fails is shrunk and its seed kept; without it
//! cases are drawn and no more, so that a program can run the same checks without a test framework.

use swiglu_core::{
    ActAndMul, Element, Float, GatedActivation, Quantization, Quantize, Request, Rounding,
    ScaleOrder, bf16,
};

use super::act_quant::against_a_loop;
use super::in_every_type;
use crate::compare::{Tally, against_reference, pairs_of_rows};
use crate::inputs::Numbers;
use crate::quant_case::QuantCase;
use crate::skips::Skips;
use crate::{ActLayouts, Failure, Harness};

#[cfg(not(feature = "proptest"))]
mod plain;
#[cfg(feature = "proptest")]
mod shrinking;

#[cfg(not(feature = "proptest"))]
use plain::{on_activations, on_batches};
#[cfg(feature = "proptest")]
use shrinking::{on_activations, on_batches};

/// The environment variable with a number that random cases follow from, 0 unless given.
pub const SEED: &str = "SWIGLU_SEED";

/// The seed: fixed, so that a failure is there the next time too, unless another is asked for.
fn seed() -> u64 {
    let text = std::env::var(SEED).unwrap_or_default();
    text.parse().unwrap_or(0)
}

/// Random rows of an activation.
#[derive(Clone, Debug)]
struct ActCase<T> {
    op: GatedActivation,
    rows: usize,
    d: usize,
    /// Gaps behind the rows of input and output, then their offsets.
    gaps: [usize; 4],
    values: Vec<T>,
}

/// Random batches that are activated and quantized.
#[derive(Clone, Debug)]
struct BatchCase {
    op: GatedActivation,
    kind: (Quantization, ScaleOrder),
    /// Rows of a batch.
    batch: usize,
    counts: Vec<i32>,
    d: usize,
    gap: usize,
    offset: usize,
    routed: bool,
    seed: u64,
}

/// Random activations, shapes, strides, offsets and values against the reference.
///
/// # Errors
/// The smallest failing case found.
pub fn random_shapes_and_values<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    fn check<T: Element, B: ActAndMul>(
        h: &Harness<B>,
        skips: &mut Skips<'_, B>,
    ) -> Result<(), Failure> {
        let ops = skips.activations(T::FLOAT);
        if ops.is_empty() {
            return Ok(());
        }
        let cases = h.size.pick(96, 4096);
        on_activations::<T, B>(h, cases, &ops, |case| {
            let ActCase {
                op,
                rows,
                d,
                gaps,
                values,
            } = case;
            let [a, b, c, e] = gaps;
            let layouts = ActLayouts::contiguous(rows, d).spread([a, b], [c, e]);
            compare(h, &op, &values, d, layouts)
                .map_err(|f| f.within(format!("{rows} rows of d = {d}, gaps and offsets {gaps:?}")))
        })
    }
    let skips = &mut Skips::new(h, "random_shapes_and_values");
    in_every_type!(check(h, skips))
}

fn compare<T: Element, B: ActAndMul>(
    h: &Harness<B>,
    op: &GatedActivation,
    values: &[T],
    d: usize,
    layouts: ActLayouts,
) -> Result<(), Failure> {
    let got = h.act_on_rows(op, values, layouts)?;
    let pairs = pairs_of_rows(op, values, d);
    against_reference(op, &pairs, &got, &h.accuracy, &mut Tally::default())
}

/// Random batches against a loop: activations, shapes, gaps, offsets, counts, route weights.
///
/// # Errors
/// The smallest failing case found.
pub fn random_quantized_batches<B: ActAndMul + Quantize>(h: &Harness<B>) -> Result<(), Failure> {
    let mut skips = Skips::new(h, "random_quantized_batches");
    let float = Float::BF16;
    let mut ops = GatedActivation::ALL.to_vec();
    let quant = Quantization::deepseek_v4();
    ops.retain(|&op| skips.runs(&Request::ActivationQuant { op, quant, float }));
    let Some(&op) = ops.first() else {
        return Ok(());
    };
    let kinds = skips.quantizations(|quant| Request::ActivationQuant { op, quant, float })?;
    let cases = h.size.pick(48, 2048);
    on_batches(h, cases, (&ops, &kinds), |case| {
        let rows = case.batch * case.counts.len();
        let mut numbers = Numbers::new(case.seed);
        let route = numbers.values::<f32>(rows, 2.0);
        let eager = case.seed % 2 == 1 && !case.routed;
        let op = case.op.with_rounding(if eager {
            Rounding::Eager
        } else {
            Rounding::Official
        });
        let of_batches = QuantCase {
            gap: case.gap,
            offset: case.offset,
            batch: Some((case.batch, &case.counts)),
            route: case.routed.then_some(&route),
            hits: true,
            ..QuantCase::new(Some(&op), case.kind, rows, case.d)
        };
        against_a_loop(
            h,
            &of_batches,
            numbers.values::<bf16>(rows * 2 * case.d, 14.0),
        )
    })
}
