use swiglu_core::{
    Float, HostRoutes, Routes, Routing, RowLayout, Selection, Tensor, TensorMut, WeightFormat, bf16,
};

use super::{FORMATS, activations, modes, runs};
use crate::experts_case::{ExpertsCase, ExpertsData, LayerOutcome, few};
use crate::inputs::Numbers;
use crate::skips::Skips;
use crate::{Failure, FullBackend, Harness};

/// How far a token's sum may be from the reference's, by norm: an honest layer in f32 is within
/// 9e-4, and one with the routes' weights behind the last matmul 1.8e-3 or more away.
const TOLERANCE: f64 = 1.5e-3;
/// The same where matmuls read FP8: a code may fall on the other side of a tie.
const TOLERANCE_QUANT: f64 = 4e-3;

/// What shared experts gave: made up.
fn shared_rows(case: &ExpertsCase, tokens: usize) -> Vec<bf16> {
    let mut numbers = Numbers::new(77);
    let mut value = || bf16::from_f32(numbers.normal());
    (0..tokens * case.hidden).map(|_| value()).collect()
}

/// Compares the sums of a call with the reference's, token by token.
fn compare(
    case: &ExpertsCase,
    data: &ExpertsData,
    x: &[bf16],
    shared: &[bf16],
    got: &LayerOutcome,
) -> Result<(), Failure> {
    let (h, k) = (case.hidden, case.routing.top_k());
    let tolerance = match case.quant {
        None => TOLERANCE,
        Some(_) => TOLERANCE_QUANT,
    };
    for (t, row) in x.chunks_exact(h).enumerate() {
        let HostRoutes { ids, weights, .. } = &got.routes;
        let mut routes: Vec<_> = ids[t * k..][..k]
            .iter()
            .zip(&weights[t * k..][..k])
            .collect();
        routes.sort_by_key(|(id, _)| **id);
        let mut sum = vec![0.0_f64; h];
        for (&e, &w) in routes {
            let Ok(e) = usize::try_from(e) else { continue };
            for (sum, o) in sum.iter_mut().zip(data.expert(case, e, row, w)) {
                *sum += f64::from(o.to_f32());
            }
        }
        let of_y: Vec<f64> = sum
            .iter()
            .zip(&shared[t * h..])
            .map(|(sum, s)| f64::from(bf16::from_f64(sum + f64::from(s.to_f32())).to_f32()))
            .collect();
        let routed = got.routed[t * h..][..h].iter().map(|&v| f64::from(v));
        let y = got.y[t * h..][..h].iter().map(|v| f64::from(v.to_f32()));
        for (name, got, want) in [
            ("routed", routed.collect::<Vec<_>>(), &sum),
            ("y", y.collect(), &of_y),
        ] {
            let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
            let off = norm(&mut got.iter().zip(want).map(|(a, b)| a - b));
            let size = norm(&mut want.iter().copied());
            // Where the reference is NaN the whole row is.
            let same = want.iter().zip(&got).all(|(a, b)| a.is_nan() == b.is_nan());
            if !(off <= tolerance * size || (size.is_nan() && same)) {
                let error = off / size;
                let problem = format!("{name} of token {t}: relative error {error:.2e}");
                return Err(Failure::new(problem).within(format!(
                    "experts of {} by {}",
                    case.format,
                    case.quant.map_or("bf16".to_owned(), |q| q.to_string())
                )));
            }
        }
    }
    Ok(())
}

/// Whole layers in every format and mode, by score and by a table, against the definition, token by
/// token: with limits that many gates and ups lie beyond, and with a NaN in one token alone.
///
/// # Errors
/// The first token that is off.
pub fn experts_against_the_reference<B: FullBackend>(h: &Harness<B>) -> Result<(), Failure> {
    let skips = &mut Skips::new(h, "experts_against_the_reference");
    let hash = Selection::Hash { vocabulary: 33 };
    for format in FORMATS {
        for (selection, op) in [Selection::Score, hash].into_iter().zip(activations()?) {
            let mut case = ExpertsCase::ragged(format, few(selection)?)?;
            case.op = op;
            for quant in modes() {
                case.quant = quant;
                if !runs(&case, skips) {
                    continue;
                }
                let data = case.data()?;
                let layer = data.load(h, &case, 0..case.routing.experts())?;
                for tokens in h.size.pick(&[1, 9][..], &[1, 2, 9, 70]) {
                    let tokens = *tokens;
                    let mut x = case.rows(tokens, 5);
                    let mut marks = case.marks(tokens);
                    if tokens > 3 {
                        x[case.hidden / 2] = bf16::NAN;
                        x[case.hidden..2 * case.hidden].fill(bf16::ZERO);
                        marks.ids[2] = -1;
                        marks.padding = Some((0..tokens).map(|t| i32::from(t == 3)).collect());
                    }
                    let routes = h.route(&case, &layer, &x, &marks)?;
                    let shared = shared_rows(&case, tokens);
                    let got = h.experts(&case, &layer, &x, &routes, &shared)?;
                    compare(&case, &data, &x, &shared, &got)?;
                    // A token without experts is what the shared one gave, to the bit.
                    for t in [2, 3].into_iter().filter(|&t| got.routes_of(&case, t) == 0) {
                        let row = t * case.hidden..(t + 1) * case.hidden;
                        if got.y.get(row.clone()) != shared.get(row) {
                            let problem = format!("token {t} without experts is not shared(x)");
                            return Err(Failure::new(problem));
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

impl LayerOutcome {
    /// How many experts a token has.
    fn routes_of(&self, case: &ExpertsCase, t: usize) -> usize {
        let k = case.routing.top_k();
        let ids = self.routes.ids.get(t * k..(t + 1) * k);
        ids.map_or(1, |ids| ids.iter().filter(|&&id| id >= 0).count())
    }
}

/// y is the f32 sum of the routes plus what the shared expert gave, rounded once.
///
/// # Errors
/// More outputs than the last bit of a sum explains.
pub fn the_sum_is_rounded_once<B: FullBackend>(h: &Harness<B>) -> Result<(), Failure> {
    let skips = &mut Skips::new(h, "the_sum_is_rounded_once");
    let case = ExpertsCase::ragged(WeightFormat::Float(Float::BF16), few(Selection::Score)?)?;
    if !runs(&case, skips) {
        return Ok(());
    }
    let data = case.data()?;
    let layer = data.load(h, &case, 0..7)?;
    let tokens = 13;
    let x = case.rows(tokens, 21);
    let routes = h.route(&case, &layer, &x, &case.marks(tokens))?;
    let shared = shared_rows(&case, tokens);
    let got = h.experts(&case, &layer, &x, &routes, &shared)?;
    // Sums that were rounded before would have no more bits than bf16.
    let long = |sum: &&f32| bf16::from_f32(**sum).to_f32() != **sum;
    let longer = got.routed.iter().filter(long).count();
    if longer * 2 < got.routed.len() {
        let problem = format!(
            "only {longer} of {} sums are longer than bf16",
            got.routed.len()
        );
        return Err(Failure::new(problem));
    }
    let once = got.routed.iter().zip(&shared);
    let once = once.map(|(routed, s)| bf16::from_f32(routed + s.to_f32()));
    let differ = once.zip(&got.y).filter(|(a, b)| a != *b).count();
    if differ * 200 > got.y.len() {
        let problem = format!("{differ} of {} outputs were rounded twice", got.y.len());
        return Err(Failure::new(problem));
    }
    Ok(())
}

/// Routes that an engine brings: all tokens to the same experts, one expert twice, none at all.
///
/// # Errors
/// The first token that is off.
pub fn tokens_with_one_expert<B: FullBackend>(h: &Harness<B>) -> Result<(), Failure> {
    let skips = &mut Skips::new(h, "tokens_with_one_expert");
    for format in FORMATS {
        let case = ExpertsCase::ragged(format, few(Selection::Score)?)?;
        if !runs(&case, skips) {
            continue;
        }
        let data = case.data()?;
        let layer = data.load(h, &case, 0..7)?;
        let tokens = 19;
        let x = case.rows(tokens, 8);
        let shared = shared_rows(&case, tokens);
        for row in [[6, 0, 6], [3, 3, 3], [-1, 5, -1], [-1, -1, -1], [4, 2, 0]] {
            let ids: Vec<i32> = (0..tokens).flat_map(|_| row).collect();
            let weights: Vec<f32> = (0..ids.len()).map(|r| 0.3 + 0.01 * r as f32).collect();
            let mut routes = Routes::new(&h.backend, &case.routing, tokens)?;
            routes.upload(&h.backend, &ids, &weights)?;
            let got = h.experts(&case, &layer, &x, &routes, &shared)?;
            compare(&case, &data, &x, &shared, &got).map_err(|f| f.within(format!("{row:?}")))?;
        }
    }
    Ok(())
}

/// Offsets are 64 bits wide: T · k · 2I is above 2^31 elements, and so are the bytes of all experts
/// together above 4 GiB. This takes 9 GB and runs with [`crate::Size::Full`].
///
/// # Errors
/// The first token that is off.
pub fn offsets_of_experts_beyond_31_bits<B: FullBackend>(h: &Harness<B>) -> Result<(), Failure> {
    let skips = &mut Skips::new(h, "offsets_of_experts_beyond_31_bits");
    if h.size == crate::Size::Quick {
        skips.leave_out("9 GB".to_owned(), "SWIGLU_SUITE=full runs it".to_owned());
        return Ok(());
    }
    let routing = Routing::new(704, 6, 1.0, true, Selection::Score)?;
    let mut case = ExpertsCase::ragged(WeightFormat::Float(Float::BF16), routing)?;
    (case.hidden, case.intermediate) = (32, 32 << 10);
    if !runs(&case, skips) {
        return Ok(());
    }
    // One expert's bytes for all but the last, whose own tell a wrapped offset.
    let few = ExpertsCase {
        routing: Routing::new(2, 1, 1.0, true, Selection::Score)?,
        ..case.clone()
    };
    let data = few.data()?;
    let experts = swiglu_core::ExpertsShape {
        range: 0..704,
        hidden: case.hidden,
        intermediate: case.intermediate,
        gate_up: case.format,
        down: case.format,
    };
    let mut experts = h.backend.alloc_experts(experts)?;
    for e in 0..704 {
        let [gate, up, down] = &data.experts[usize::from(e == 703)];
        let (gate, up, down) = (gate.view()?, up.view()?, down.view()?);
        h.backend.load_expert(&mut experts, gate, up, down)?;
    }
    let tokens = 5500;
    let x = case.rows(tokens, 4);
    let ids: Vec<i32> = (0..tokens)
        .flat_map(|t| {
            if t + 2 < tokens {
                [0, 1, 2, 3, 4, 5]
            } else {
                [698, 699, 700, 701, 702, 703]
            }
        })
        .collect();
    let weights = vec![0.25; ids.len()];
    let mut routes = Routes::new(&h.backend, &case.routing, tokens)?;
    routes.upload(&h.backend, &ids, &weights)?;
    let (hidden, i) = (case.hidden, case.intermediate);
    let from = h.upload(&x)?;
    let mut act = h.backend.alloc(ids.len() * i * 2)?;
    let shape = |cols, depth| swiglu_core::Shape {
        rows: tokens,
        cols,
        depth,
    };
    let first = h
        .backend
        .scratch(&case.gated_request(), &shape(2 * i, hidden));
    let second = h
        .backend
        .scratch(&case.sum_request(Float::F32), &shape(hidden, i));
    let mut scratch = h.backend.alloc(first.max(second))?;
    let rows = RowLayout::contiguous(tokens, hidden);
    let x_rows = Tensor::new(B::view(&from), Float::BF16, rows);
    let to = TensorMut::contiguous(B::view_mut(&mut act), Float::BF16, ids.len(), i);
    let view = B::view_mut(&mut scratch);
    h.backend
        .grouped_matmul_act_and_mul(&case.op, None, x_rows, &experts, &routes, view, to)?;
    let mut y = h.nans(tokens * hidden * 4)?;
    let act = Tensor::contiguous(B::view(&act), Float::BF16, ids.len(), i);
    let to = TensorMut::new(B::view_mut(&mut y), Float::F32, rows);
    let view = B::view_mut(&mut scratch);
    h.backend
        .grouped_matmul_sum(None, act, &experts, &routes, None, view, to)?;
    let mut sums = vec![0.0_f32; tokens * hidden];
    h.backend
        .download(&y, bytemuck::cast_slice_mut(&mut sums))?;
    for t in [0, tokens / 2, tokens - 1] {
        let row = &x[t * hidden..][..hidden];
        let other = if t + 2 < tokens { 0 } else { 1 };
        let [a, b] = [0, other].map(|e| data.expert(&few, e, row, 0.25));
        for (j, sum) in sums[t * hidden..][..hidden].iter().enumerate() {
            let want = 5.0 * a[j].to_f32() + b[j].to_f32();
            let size = 5.0 * a[j].to_f32().abs() + b[j].to_f32().abs();
            if (sum - want).abs() > 0.02 * size {
                let problem = format!("output {j} of token {t}: got {sum}, expected {want}");
                return Err(Failure::new(problem));
            }
        }
    }
    Ok(())
}
