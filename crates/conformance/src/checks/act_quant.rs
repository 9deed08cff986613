use swiglu_core::{
    ActAndMul, E4M3, Element, Float, GatedActivation, Quantization, Quantize, Request, ScaleOrder,
    reference, with_float,
};

use super::in_every_type;
use super::quantize::on_reference;
use crate::compare::pairs_of_rows;
use crate::inputs::{Numbers, telling};
use crate::quant_case::{Outcome, QuantCase};
use crate::skips::Skips;
use crate::{ActLayouts, Failure, Harness};

/// The quantizations that the backend fuses with an activation.
pub(super) fn fused<T: Element, B: Quantize>(
    skips: &mut Skips<'_, B>,
    op: GatedActivation,
) -> Result<Vec<(Quantization, ScaleOrder)>, Failure> {
    let float = T::FLOAT;
    skips.quantizations(|quant| Request::ActivationQuant { op, quant, float })
}

/// The fused pass is the backend's own activation and then its own quantization, bit for bit; the
/// hits of the clamp are the reference's, and counting them changes nothing.
///
/// # Errors
/// The first difference.
pub fn fused_quantization_equals_two_steps<B: ActAndMul + Quantize>(
    h: &Harness<B>,
) -> Result<(), Failure> {
    fn check<T: Element, B: ActAndMul + Quantize>(
        h: &Harness<B>,
        skips: &mut Skips<'_, B>,
    ) -> Result<(), Failure> {
        let kinds = skips.quantizations_of(T::FLOAT)?;
        let low = GatedActivation::silu_and_mul_with_clamp(0.5, 1.702, 1.0)?;
        let every = h.size.pick(4, 1);
        let ops = skips.activations(T::FLOAT).into_iter().chain([low]);
        for (i, op) in ops.enumerate() {
            // In turn, so that every kind meets several operations.
            for &kind in kinds.iter().skip(i % every).step_by(every) {
                let (quant, float) = (kind.0, T::FLOAT);
                if !skips.runs(&Request::ActivationQuant { op, quant, float }) {
                    continue;
                }
                for (rows, d) in [(3, 70), (2, 1024)] {
                    compare::<T, B>(h, &QuantCase::new(Some(&op), kind, rows, d))?;
                }
            }
        }
        Ok(())
    }
    fn compare<T: Element, B: ActAndMul + Quantize>(
        h: &Harness<B>,
        case: &QuantCase<'_>,
    ) -> Result<(), Failure> {
        let (Some(op), rows, d) = (case.op, case.rows, case.d) else {
            return Ok(());
        };
        let x = telling::<T>(rows, 2 * d, 5);
        let y = h.act_on_rows(op, &x, ActLayouts::contiguous(rows, d))?;
        let uncounted = case.run(h, &x).map_err(|f| f.within(case))?;
        let two = QuantCase { op: None, ..*case }.run(h, &y)?;
        case.same(T::FLOAT, &uncounted, &two, "against two steps")?;

        let counted = QuantCase {
            hits: true,
            ..*case
        };
        let got = counted.run(h, &x)?;
        let mut hits = case.before()?.hits;
        for (gate, up) in pairs_of_rows(op, &x, d) {
            for (count, hit) in hits.iter_mut().zip(reference::clamp_hits(op, gate, up)) {
                *count = count.wrapping_add(u32::from(hit));
            }
        }
        let want = Outcome { hits, ..two };
        counted.same(T::FLOAT, &got, &want, "with hits counted")
    }
    let skips = &mut Skips::new(h, "fused_quantization_equals_two_steps");
    in_every_type!(check(h, skips))
}

/// An activation whose products f32 rounds as the reference does: its codes and scales are the
/// reference's, with route weights that are powers of two, rows that are not in use, rounded
/// before the quantization and not.
///
/// # Errors
/// The first difference.
pub fn quantized_activations_of_exact_products<B: Quantize>(h: &Harness<B>) -> Result<(), Failure> {
    fn check<T: Element, B: Quantize>(
        h: &Harness<B>,
        skips: &mut Skips<'_, B>,
    ) -> Result<(), Failure> {
        let op = GatedActivation::fatrelu_and_mul(0.25)?;
        let route: Vec<f32> = (0..12).map(|t| [0.5, 4.0, -2.0][t % 3]).collect();
        for (quant, order) in fused::<T, B>(skips, op)? {
            for materialize in [true, false] {
                for (d, gap, offset) in [(72, 0, 0), (256, 16, 16), (301, 1, 3)] {
                    let kind = (quant.with_materialize(materialize), order);
                    let mut x = telling::<T>(12, 2 * d, 7);
                    x[2 * 2 * d..8 * 2 * d].fill(T::from_f32(f32::NAN));
                    let case = QuantCase {
                        gap,
                        offset,
                        route: Some(&route),
                        batch: Some((4, &[2, -1, 9])),
                        hits: true,
                        ..QuantCase::new(Some(&op), kind, 12, d)
                    };
                    let got = case.run(h, &x).map_err(|f| f.within(case))?;
                    let want = on_reference(h, &case, &x)?;
                    case.same(T::FLOAT, &got, &want, "against the reference")?;
                }
            }
        }
        Ok(())
    }
    let skips = &mut Skips::new(h, "quantized_activations_of_exact_products");
    in_every_type!(check(h, skips))
}

/// The value that many representable ones from `x`, within the finite.
fn moved(x: f32, float: Float, ulps: i64) -> f32 {
    fn of<T: Element>(x: f32, ulps: i64) -> f32 {
        let sign = 1_i64 << (8 * T::FLOAT.size() - 1);
        let bits = i64::from(T::from_f32(x).to_bits());
        let place = if bits < sign { bits } else { sign - bits } + ulps;
        let bits = if place >= 0 { place } else { sign - place };
        T::from_bits(bits as u32).to_f32()
    }
    with_float!(float, T => of::<T>(x, ulps))
}

/// Against the reference, which computes in f64: a code or a scale may be another one only where
/// the values that the contract allows for y round to several, and fewer than 1 code in 10,000 is.
///
/// # Errors
/// The first code or scale that no allowed value explains, or too many that differ.
pub fn quantized_activations_against_the_reference<B: Quantize>(
    h: &Harness<B>,
) -> Result<(), Failure> {
    fn check<T: Element, B: Quantize>(
        h: &Harness<B>,
        skips: &mut Skips<'_, B>,
    ) -> Result<(), Failure> {
        let (rows, d) = (16, 1024 + 40);
        let seed = 3;
        let x: Vec<T> = Numbers::new(seed).values(rows * 2 * d, 15.0);
        let route: Vec<f32> = (0..rows).map(|t| 0.3 + 0.17 * t as f32).collect();
        let ops = [
            GatedActivation::deepseek_v4(),
            GatedActivation::gpt_oss(),
            GatedActivation::step_3_5(),
        ];
        for op in &ops {
            for ((quant, order), materialize) in fused::<T, B>(skips, *op)?
                .into_iter()
                .flat_map(|kind| [(kind, true), (kind, false)])
            {
                let quick = h.size == crate::Size::Quick;
                if quick && (order == ScaleOrder::ColumnMajor || quant.group() == 64) {
                    continue;
                }
                for route in [None, Some(route.as_slice())] {
                    let kind = (quant.with_materialize(materialize), order);
                    let case = QuantCase {
                        route,
                        ..QuantCase::new(Some(op), kind, rows, d)
                    };
                    against_the_reference(h, &case, &x)
                        .map_err(|f| f.within(format!("{case} of {}, seed {seed}", T::FLOAT)))?;
                }
            }
        }
        Ok(())
    }
    let skips = &mut Skips::new(h, "quantized_activations_against_the_reference");
    in_every_type!(check(h, skips))
}

/// One fused quantization against the reference: see
/// [`quantized_activations_against_the_reference`].
pub(super) fn against_the_reference<T: Element, B: Quantize>(
    h: &Harness<B>,
    case: &QuantCase<'_>,
    x: &[T],
) -> Result<(), Failure> {
    let (Some(op), d, quant) = (case.op, case.d, &case.quant) else {
        return Ok(());
    };
    let got = case.run(h, x)?;
    let rounded_to = if quant.materialize() {
        T::FLOAT
    } else {
        Float::F32
    };
    let ulps = i64::from(h.accuracy.ulps(rounded_to))
        + match rounded_to {
            // A route weight is one more product.
            Float::F32 => i64::from(case.route.is_some()),
            Float::F16 | Float::BF16 => 0,
        };
    let mut differing = 0;
    for (t, row) in x.chunks_exact(2 * d).enumerate() {
        let weight = case.route.map_or(1.0, |r| r[t]);
        let y = |(gate, up): (T, T)| {
            if rounded_to == T::FLOAT {
                return reference::gated_routed(op, gate, up, weight).to_f32();
            }
            reference::gated_routed(op, gate.to_f32(), up.to_f32(), weight)
        };
        let pairs = pairs_of_rows(op, row, d);
        let row: Vec<f32> = pairs.iter().copied().map(y).collect();
        for (g, values) in row.chunks(quant.group()).enumerate() {
            let amax = values.iter().fold(0.0, |a: f32, y| a.max(y.abs()));
            let scale = scale_at(case, &got, t, g);
            let allowed = |ulps| quant.scale(moved(amax, rounded_to, ulps)) == scale;
            if !(-ulps..=ulps).any(allowed) {
                return Err(Failure::new(format!(
                    "scale [{t}, {g}] of a largest |y| of {amax:e} is {scale:e}, expected {:e}",
                    quant.scale(amax)
                )));
            }
            for (j, &y) in values.iter().enumerate() {
                let column = g * quant.group() + j;
                let code = E4M3(got.codes[case.codes().row(t).start + column]);
                let want = quant.code(y, scale);
                // Where the gate is clamped, y is a simple fraction of other such: quotients
                // lie on ties, and to which side they fall is chance.
                let (gate, up) = pairs[column];
                let [gate_is_clamped, ..] = reference::clamp_hits(op, gate, up);
                differing += usize::from(code != want && !gate_is_clamped);
                let of = |ulps| quant.code(moved(y, rounded_to, ulps), scale);
                if !(-ulps..=ulps).any(|ulps| of(ulps) == code) {
                    return Err(Failure::new(format!(
                        "code [{t}, {column}] of y = {y:e} under {scale:e} is {code:?}, \
                         expected {want:?}"
                    )));
                }
            }
        }
    }
    if differing * 10_000 > case.rows * d {
        return Err(Failure::new(format!(
            "{differing} of {} codes are not the reference's, more than 1 in 10,000",
            case.rows * d
        )));
    }
    Ok(())
}

/// The scale of a group in an outcome.
fn scale_at(case: &QuantCase<'_>, outcome: &Outcome, row: usize, group: usize) -> f32 {
    let layout = case.scales();
    let at = layout.position(row, group);
    layout.format.read(&outcome.scales, at)
}

/// Batches of which some rows are in use equal a call for each batch with these rows only: codes,
/// scales and hits, bit for bit. The rows that are not in use hold NaN, which nobody reads, and
/// their outputs stay as they were.
///
/// # Errors
/// The first difference.
pub fn batches_equal_a_loop<B: Quantize>(h: &Harness<B>) -> Result<(), Failure> {
    fn check<T: Element, B: Quantize>(
        h: &Harness<B>,
        skips: &mut Skips<'_, B>,
    ) -> Result<(), Failure> {
        for op in [GatedActivation::deepseek_v4(), GatedActivation::gpt_oss()] {
            for kind in fused::<T, B>(skips, op)? {
                for (d, gap) in [(128, 0), (301, 5)] {
                    let case = QuantCase {
                        gap,
                        offset: gap / 5,
                        batch: Some((5, &[3, 0, -7, 5, 1 << 20])),
                        hits: true,
                        ..QuantCase::new(Some(&op), kind, 25, d)
                    };
                    let x = Numbers::new(4).values::<T>(25 * 2 * d, 14.0);
                    against_a_loop(h, &case, x)?;
                }
            }
        }
        Ok(())
    }
    let skips = &mut Skips::new(h, "batches_equal_a_loop");
    in_every_type!(check(h, skips))
}

/// A case with batches against a call for each batch.
pub(super) fn against_a_loop<T: Element, B: Quantize>(
    h: &Harness<B>,
    case: &QuantCase<'_>,
    mut x: Vec<T>,
) -> Result<(), Failure> {
    let Some((rows, counts)) = case.batch else {
        return Ok(());
    };
    let (d, layout) = (case.d, case.scales());
    let size = layout.format.size();
    let mut want = case.before()?;
    for (b, &count) in counts.iter().enumerate() {
        let used = usize::try_from(count).unwrap_or(0).min(rows);
        let first = b * rows;
        x[(first + used) * 2 * d..(first + rows) * 2 * d].fill(T::from_f32(f32::NAN));
        let alone = QuantCase {
            rows: used,
            batch: None,
            route: case.route.map(|r| &r[first..first + used]),
            ..*case
        };
        let got = alone.run(h, &x[first * 2 * d..(first + used) * 2 * d])?;
        for (count, (now, before)) in want
            .hits
            .iter_mut()
            .zip(got.hits.iter().zip(case.before()?.hits))
        {
            *count = count.wrapping_add(now.wrapping_sub(before));
        }
        for t in 0..used {
            let place = case.codes().row(first + t);
            want.codes[place].copy_from_slice(&got.codes[alone.codes().row(t)]);
            // The last word of packed scales is written whole.
            let groups = match layout.order {
                ScaleOrder::Packed => layout.groups.next_multiple_of(4),
                ScaleOrder::RowMajor | ScaleOrder::ColumnMajor => layout.groups,
            };
            for g in 0..groups {
                let [to, from] = [layout.position(first + t, g), alone.scales().position(t, g)];
                let from = &got.scales[from * size..][..size];
                want.scales[to * size..][..size].copy_from_slice(from);
            }
        }
    }
    let got = case.run(h, &x).map_err(|f| f.within(case))?;
    case.same(T::FLOAT, &got, &want, "against a loop")
}
