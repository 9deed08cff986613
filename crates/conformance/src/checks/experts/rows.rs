use swiglu_core::{
    Accumulation, Float, GatedActivation, Request, Routes, Routing, RowLayout, Selection, Shape,
    Tensor, TensorMut, Tokens, WeightFormat, bf16, reference,
};

use super::{FORMATS, modes, runs};
use crate::experts_case::{ExpertsCase, LayerOutcome, few};
use crate::inputs::Numbers;
use crate::skips::Skips;
use crate::{Failure, FullBackend, Harness};

fn bits(rows: &[bf16]) -> Vec<u16> {
    rows.iter().map(|x| x.to_bits()).collect()
}

/// The same bits in two calls.
fn same(what: &str, a: &LayerOutcome, b: &LayerOutcome) -> Result<(), Failure> {
    let f32s = |o: &LayerOutcome| o.routed.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    if bits(&a.y) == bits(&b.y) && f32s(a) == f32s(b) {
        return Ok(());
    }
    Err(Failure::new(what))
}

/// A matmul of many experts is, to the bit, one matmul after another of each expert's rows. Where matrix units may
/// multiply one of them and not the other, a few outputs may be others by a rounding.
///
/// # Errors
/// The first output that is another, or too many.
pub fn grouped_matmuls_equal_separate_ones<B: FullBackend>(h: &Harness<B>) -> Result<(), Failure> {
    let skips = &mut Skips::new(h, "grouped_matmuls_equal_separate_ones");
    for format in FORMATS {
        let routing = Routing::new(5, 1, 1.0, false, Selection::Score)?;
        let case = ExpertsCase::ragged(format, routing)?;
        let alone = Request::Matmul {
            x: Float::BF16,
            weight: format,
            y: Float::BF16,
        };
        if !runs(&case, skips) || !skips.runs(&alone) {
            continue;
        }
        let data = case.data()?;
        let layer = data.load(h, &case, 0..5)?;
        let (hidden, i) = (case.hidden, case.intermediate);
        let mut differences = Differences::of(h);
        for tokens in [1, 3, 17, 40] {
            let x = case.rows(tokens, 31);
            let ids: Vec<i32> = (0..tokens).map(|t| (t * t % 4) as i32).collect();
            let weights: Vec<f32> = (0..tokens).map(|t| 1.0 + t as f32 * 0.03).collect();
            let mut routes = Routes::new(&h.backend, &routing, tokens)?;
            routes.upload(&h.backend, &ids, &weights)?;
            let shared = vec![bf16::ZERO; x.len()];
            let got = h.experts(&case, &layer, &x, &routes, &shared)?;
            for e in 0..5 {
                let own: Vec<usize> = (0..tokens).filter(|&t| ids[t] == e as i32).collect();
                if own.is_empty() {
                    continue;
                }
                let rows: Vec<bf16> = own
                    .iter()
                    .flat_map(|&t| &x[t * hidden..][..hidden])
                    .copied()
                    .collect();
                let layout = |cols| RowLayout::contiguous(own.len(), cols);
                let weight = h
                    .backend
                    .load_gate_up(data.experts[e][0].view()?, data.experts[e][1].view()?)?;
                let gate_up = multiply(h, &rows, layout(hidden), &weight, layout(2 * i))?;
                let first = got.routes.offsets[e] as usize;
                let act = &got.act[first * i..][..own.len() * i];
                // One ulp of what the reference makes of the same sums.
                for (n, (&t, pairs)) in own.iter().zip(gate_up.chunks_exact(2 * i)).enumerate() {
                    for j in 0..i {
                        let w = weights[t];
                        let want = reference::gated_routed(&case.op, pairs[j], pairs[i + j], w);
                        let a = act[n * i + j];
                        let same = swiglu_core::Element::ulps_between(a, want) <= 1;
                        if !differences.take(same, a, want, act) {
                            let problem = format!("act {j} of token {t}: got {a}, expected {want}");
                            return Err(Failure::new(problem).within(format));
                        }
                    }
                }
                let down = h.backend.load_weight(&[data.experts[e][2].view()?])?;
                let o = multiply(h, act, layout(i), &down, layout(hidden))?;
                for (&t, o) in own.iter().zip(o.chunks_exact(hidden)) {
                    let y = &got.y[t * hidden..][..hidden];
                    // A sum with +0 takes -0 to +0.
                    let zero = |v: &bf16| if v.to_f32() == 0.0 { 0 } else { v.to_bits() };
                    for (got, want) in y.iter().zip(o) {
                        let same = zero(got) == zero(want);
                        if !differences.take(same, *got, *want, o) {
                            let problem = format!("token {t} of expert {e}, of {tokens} tokens");
                            return Err(Failure::new(problem).within(format));
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// Outputs that are not the same by two kernels.
struct Differences {
    /// Whether both add up in one order.
    ordered: bool,
    outputs: usize,
    others: usize,
}

impl Differences {
    fn of<B: FullBackend>(h: &Harness<B>) -> Self {
        Self {
            ordered: h.accuracy.accumulation == Accumulation::Ordered,
            outputs: 0,
            others: 0,
        }
    }

    /// Whether an output may be what it is, among `all` of its rows: the same, or one of few where matrix units
    /// multiply.
    fn take(&mut self, same: bool, got: bf16, want: bf16, all: &[bf16]) -> bool {
        self.outputs += 1;
        self.others += usize::from(!same);
        let largest = all.iter().map(|v| v.to_f32().abs()).fold(0.0, f32::max);
        let near = (got.to_f32() - want.to_f32()).abs() <= largest / 128.0;
        same || !self.ordered && near && self.others <= 8 + self.outputs / 50
    }
}

fn multiply<B: FullBackend>(
    h: &Harness<B>,
    x: &[bf16],
    x_rows: RowLayout,
    weight: &B::Weight,
    y_rows: RowLayout,
) -> Result<Vec<bf16>, Failure> {
    let x = h.upload(x)?;
    let mut y = h.poisoned::<bf16>(&y_rows)?;
    let from = Tensor::new(B::view(&x), Float::BF16, x_rows);
    let to = TensorMut::new(B::view_mut(&mut y), Float::BF16, y_rows);
    h.backend.matmul(from, weight, to)?;
    h.collect(&y_rows, &y)
}

/// Tokens in another order give the same rows in that order, to the bit.
///
/// # Errors
/// The first row that is another.
pub fn a_permuted_batch_gives_permuted_rows<B: FullBackend>(h: &Harness<B>) -> Result<(), Failure> {
    let skips = &mut Skips::new(h, "a_permuted_batch_gives_permuted_rows");
    for format in FORMATS {
        for quant in modes() {
            let mut case = ExpertsCase::ragged(format, few(Selection::Score)?)?;
            case.quant = quant;
            if !runs(&case, skips) {
                continue;
            }
            let data = case.data()?;
            let layer = data.load(h, &case, 0..7)?;
            let (tokens, hidden) = (23, case.hidden);
            let x = case.loud_rows(tokens, 13);
            let mut order: Vec<usize> = (0..tokens).collect();
            let mut numbers = Numbers::new(2);
            for t in 1..tokens {
                order.swap(t, numbers.below(t as u64 + 1) as usize);
            }
            let permuted: Vec<bf16> = order
                .iter()
                .flat_map(|&t| &x[t * hidden..][..hidden])
                .copied()
                .collect();
            let shared = vec![bf16::ONE; x.len()];
            let run = |x: &[bf16]| {
                let routes = h.route(&case, &layer, x, &case.marks(tokens))?;
                h.experts(&case, &layer, x, &routes, &shared)
            };
            let (plain, other) = (run(&x)?, run(&permuted)?);
            for (place, &t) in order.iter().enumerate() {
                let row = |o: &LayerOutcome, t: usize| bits(&o.y[t * hidden..][..hidden]);
                if row(&plain, t) != row(&other, place) {
                    let problem = format!("token {t} at place {place}");
                    return Err(Failure::new(problem).within(format));
                }
            }
        }
    }
    Ok(())
}

/// Each rank's sum over its own experts, added up, is the sum over all; rows of other ranks' experts
/// are neither read nor written.
///
/// # Errors
/// The first sum that is off.
pub fn shards_of_experts_sum_to_the_whole<B: FullBackend>(h: &Harness<B>) -> Result<(), Failure> {
    let skips = &mut Skips::new(h, "shards_of_experts_sum_to_the_whole");
    for format in FORMATS {
        let routing = Routing::new(8, 3, 2.5, true, Selection::Score)?;
        let case = ExpertsCase::ragged(format, routing)?;
        if !runs(&case, skips) {
            continue;
        }
        let data = case.data()?;
        let tokens = 11;
        let x = case.loud_rows(tokens, 17);
        let shared = vec![bf16::ZERO; x.len()];
        let whole = data.load(h, &case, 0..8)?;
        let routes = h.route(&case, &whole, &x, &case.marks(tokens))?;
        let all = h.experts(&case, &whole, &x, &routes, &shared)?;
        let mut sums = vec![0.0_f32; x.len()];
        let mut sizes = vec![0.0_f32; x.len()];
        for range in [0..2, 2..6, 6..8] {
            let part = data.load(h, &case, range.clone())?;
            let got = h.experts(&case, &part, &x, &routes, &shared)?;
            for (at, value) in got.routed.iter().enumerate() {
                sums[at] += value;
                sizes[at] += value.abs();
            }
            let own = [range.start, range.end].map(|e| got.routes.offsets[e] as usize);
            for (row, act) in got.act.chunks_exact(case.intermediate).enumerate() {
                let written = act.iter().any(|a| a.to_bits() != 0xffff);
                if written != (own[0]..own[1]).contains(&row) {
                    let problem = format!("row {row} of experts {range:?}: written {written}");
                    return Err(Failure::new(problem).within(format));
                }
            }
        }
        for (at, (&sum, &want)) in sums.iter().zip(&all.routed).enumerate() {
            if (sum - want).abs() > 1e-6 * sizes[at] {
                let problem = format!("sum {at} of the shards is {sum}, of the whole {want}");
                return Err(Failure::new(problem).within(format));
            }
        }
    }
    Ok(())
}

/// Experts that no token chose may hold anything: NaN in all their weights changes no bit.
///
/// # Errors
/// A result that changes.
pub fn untouched_experts_change_nothing<B: FullBackend>(h: &Harness<B>) -> Result<(), Failure> {
    let skips = &mut Skips::new(h, "untouched_experts_change_nothing");
    for format in FORMATS {
        let case = ExpertsCase::ragged(format, few(Selection::Score)?)?;
        if !runs(&case, skips) {
            continue;
        }
        let mut data = case.data()?;
        let tokens = 6;
        let x = case.rows(tokens, 19);
        let ids: Vec<i32> = (0..tokens).flat_map(|t| [1, 4, [1, 5][t % 2]]).collect();
        let mut routes = Routes::new(&h.backend, &case.routing, tokens)?;
        routes.upload(&h.backend, &ids, &vec![0.5; ids.len()])?;
        let shared = vec![bf16::ONE; x.len()];
        let plain = data.load(h, &case, 0..7)?;
        let plain = h.experts(&case, &plain, &x, &routes, &shared)?;
        for e in [0, 2, 3, 6] {
            for weight in &mut data.experts[e] {
                // NaN in bf16 and E4M3; codes of FP4 have a scale that is.
                weight.data.fill(0xff);
                weight.scales.fill(0xff);
            }
        }
        let spoilt = data.load(h, &case, 0..7)?;
        let spoilt = h.experts(&case, &spoilt, &x, &routes, &shared)?;
        same("an expert without tokens was read", &plain, &spoilt).map_err(|f| f.within(format))?;
    }
    Ok(())
}

/// Calls that do not fit are errors that name the argument; no tokens write nothing.
///
/// # Errors
/// The first call that runs, or whose error names another argument.
pub fn expert_arguments_are_named<B: FullBackend>(h: &Harness<B>) -> Result<(), Failure> {
    let skips = &mut Skips::new(h, "expert_arguments_are_named");
    let hash = Selection::Hash { vocabulary: 9 };
    let case = ExpertsCase::ragged(WeightFormat::Float(Float::BF16), few(hash)?)?;
    if !runs(&case, skips) {
        return Ok(());
    }
    let data = case.data()?;
    let layer = data.load(h, &case, 0..7)?;
    let (hidden, i) = (case.hidden, case.intermediate);
    let b = &h.backend;
    let named = |argument: &str, result: swiglu_core::Result<()>| match result {
        Err(swiglu_core::Error::Argument { argument: got, .. }) if got == argument => Ok(()),
        Err(error) => Err(Failure::new(format!(
            "expected `{argument}` named, got: {error}"
        ))),
        Ok(()) => Err(Failure::new(format!("a wrong `{argument}` runs"))),
    };
    let x = h.upload(&case.rows(4, 1))?;
    let rows = |t, cols| Tensor::<B>::contiguous(B::view(&x), Float::BF16, t, cols);
    let few_words = h.upload_bytes(&[0; 12])?;
    let words = h.upload_bytes(&[0; 16])?;
    let shape = |rows, cols, depth| Shape { rows, cols, depth };
    let bytes = b.scratch(&case.route_request(), &shape(4, 7, hidden));
    let mut scratch = b.alloc(bytes)?;
    let mut route = |x, ids: Option<&B::Buffer>, image: Option<&B::Buffer>, tokens, short: bool| {
        let mut routes = Routes::new(b, &case.routing, tokens)?;
        let mut none = b.alloc(0)?;
        let scratch = if short { &mut none } else { &mut scratch };
        let tokens = Tokens {
            ids: ids.map(B::view),
            image: image.map(B::view),
            padding: None,
        };
        b.route(&layer.gate, x, tokens, B::view_mut(scratch), &mut routes)
    };
    route(rows(4, hidden), Some(&words), Some(&words), 4, false)?;
    named(
        "x",
        route(rows(4, hidden - 1), Some(&words), None, 4, false),
    )?;
    named("token_ids", route(rows(4, hidden), None, None, 4, false))?;
    named(
        "token_ids",
        route(rows(4, hidden), Some(&few_words), None, 4, false),
    )?;
    named(
        "image",
        route(rows(4, hidden), Some(&words), Some(&few_words), 4, false),
    )?;
    named(
        "routes",
        route(rows(4, hidden), Some(&words), None, 3, false),
    )?;
    if bytes > 0 {
        named(
            "scratch",
            route(rows(4, hidden), Some(&words), None, 4, true),
        )?;
    }
    route(rows(0, hidden), Some(&words), None, 0, false)?;

    let mut routes = Routes::new(b, &case.routing, 4)?;
    routes.upload(b, &[0; 12], &[1.0; 12])?;
    let bytes = b.scratch(&case.gated_request(), &shape(4, 2 * i, hidden));
    let mut scratch = b.alloc(bytes)?;
    let mut first = |op: &GatedActivation, x, act_rows, act_float, routes: &Routes<B::Buffer>| {
        let mut act = b.alloc(12 * i * 2)?;
        let act = TensorMut::contiguous(B::view_mut(&mut act), act_float, act_rows, i);
        let scratch = B::view_mut(&mut scratch);
        b.grouped_matmul_act_and_mul(op, None, x, &layer.experts, routes, scratch, act)
    };
    let eager = case.op.with_rounding(swiglu_core::Rounding::Eager);
    first(&case.op, rows(4, hidden), 12, Float::BF16, &routes)?;
    named(
        "op",
        first(&eager, rows(4, hidden), 12, Float::BF16, &routes),
    )?;
    named(
        "op",
        first(
            &GatedActivation::gpt_oss(),
            rows(4, hidden),
            12,
            Float::BF16,
            &routes,
        ),
    )?;
    named(
        "x",
        first(&case.op, rows(4, hidden - 2), 12, Float::BF16, &routes),
    )?;
    named(
        "routes",
        first(&case.op, rows(3, hidden), 12, Float::BF16, &routes),
    )?;
    named(
        "act",
        first(&case.op, rows(4, hidden), 11, Float::BF16, &routes),
    )?;
    named(
        "act",
        first(&case.op, rows(4, hidden), 12, Float::F16, &routes),
    )?;

    let act = h.upload(&vec![bf16::ZERO; 12 * i])?;
    let bytes = b.scratch(&case.sum_request(Float::BF16), &shape(4, hidden, i));
    let mut scratch = b.alloc(bytes)?;
    let mut y = b.alloc(4 * hidden * 2)?;
    let mut second = |act_cols, shared: Option<Tensor<'_, B>>, y_rows| {
        let act = Tensor::contiguous(B::view(&act), Float::BF16, 12, act_cols);
        let scratch = B::view_mut(&mut scratch);
        let y = TensorMut::contiguous(B::view_mut(&mut y), Float::BF16, y_rows, hidden);
        b.grouped_matmul_sum(None, act, &layer.experts, &routes, shared, scratch, y)
    };
    second(i, Some(rows(4, hidden)), 4)?;
    named("act", second(i - 1, None, 4))?;
    named("y", second(i, None, 3))?;
    named("shared", second(i, Some(rows(3, hidden)), 4))?;

    let mut some = b.alloc_experts(layer.experts.shape().clone())?;
    let [gate, up, down] = &data.experts[0];
    let wrong = b.load_expert(&mut some, gate.view()?, up.view()?, up.view()?);
    named("down", wrong)?;
    b.load_expert(&mut some, gate.view()?, up.view()?, down.view()?)?;
    let mut act = b.alloc(12 * i * 2)?;
    let to = TensorMut::contiguous(B::view_mut(&mut act), Float::BF16, 12, i);
    let mut none = b.alloc(0)?;
    let scratch = B::view_mut(&mut none);
    let call =
        b.grouped_matmul_act_and_mul(&case.op, None, rows(4, hidden), &some, &routes, scratch, to);
    named("experts", call)
}
