use swiglu_core::{
    Float, HostGate, HostWeight, Routing, Selection, Tensor, Tokens, WeightFormat, bf16,
    sort_by_expert,
};

use super::runs;
use crate::experts_case::{ExpertsCase, Marks, few};
use crate::skips::Skips;
use crate::{Failure, FullBackend, Harness};

/// Gaps of scores from which on a choice is defined, whatever rounding logits suffer.
const GAP: f64 = 5e-5;
/// How far a weight may be from the reference's, relatively.
const WEIGHT: f64 = 1e-5;

const BF16: WeightFormat = WeightFormat::Float(Float::BF16);

/// Compares the routes of a call with the reference's.
fn compare<B: FullBackend>(
    h: &Harness<B>,
    case: &ExpertsCase,
    x: &[bf16],
    marks: &Marks,
) -> Result<usize, Failure> {
    let data = case.data()?;
    let layer = data.load(h, case, 0..case.routing.experts())?;
    let routes = h.route(case, &layer, x, marks)?.download(&h.backend)?;
    let (k, experts) = (case.routing.top_k(), case.routing.experts());
    let mut told = 0;
    for (t, row) in x.chunks_exact(case.hidden).enumerate() {
        let logits = data.logits(row);
        let (ids, weights, gap) = data.choice(case, &logits, marks, t);
        if gap < GAP {
            continue;
        }
        told += 1;
        let (got, w) = (&routes.ids[t * k..][..k], &routes.weights[t * k..][..k]);
        if got != ids {
            let problem = format!("token {t}: experts {got:?}, expected {ids:?}");
            return Err(Failure::new(problem).within(case.routing));
        }
        for (slot, (got, want)) in w.iter().zip(&weights).enumerate() {
            let (a, b) = (f64::from(*got), f64::from(*want));
            let near = (a - b).abs() <= WEIGHT * b.abs() || (a.is_nan() && b.is_nan());
            if !near {
                let problem = format!("token {t}, slot {slot}: weight {got:e}, expected {want:e}");
                return Err(Failure::new(problem).within(case.routing));
            }
        }
    }
    let mut offsets = vec![0; experts + 1];
    let (mut sorted, mut rows) = (vec![0; routes.ids.len()], vec![0; routes.ids.len()]);
    sort_by_expert(k, &routes.ids, &mut offsets, &mut sorted, &mut rows);
    let places = [
        ("offsets", &routes.offsets, &offsets),
        ("sorted", &routes.sorted, &sorted),
        ("rows", &routes.rows, &rows),
    ];
    for (name, got, want) in places {
        if got != want {
            let problem = format!("{name} are not those of the ids: {got:?}, expected {want:?}");
            return Err(Failure::new(problem).within(case.routing));
        }
    }
    Ok(told)
}

/// Ids, weights and their order by expert, of every kind of routing, against the reference: ids
/// wherever scores are further apart than rounding moves them.
///
/// # Errors
/// The first token that chose otherwise.
pub fn routes_against_the_reference<B: FullBackend>(h: &Harness<B>) -> Result<(), Failure> {
    let skips = &mut Skips::new(h, "routes_against_the_reference");
    let hash = Selection::Hash { vocabulary: 33 };
    for (experts, k, scale) in [
        (8, 2, 1.5),
        (7, 3, 2.5),
        (12, 12, 1.0),
        (384, 6, 2.5),
        (1, 1, 1.0),
    ] {
        for selection in [Selection::Score, hash] {
            for normalize in [true, false] {
                let routing = Routing::new(experts, k, scale, normalize, selection)?;
                let mut case = ExpertsCase::ragged(BF16, routing)?;
                (case.hidden, case.intermediate) = (72, 8);
                if !runs(&case, skips) {
                    return Ok(());
                }
                for tokens in [1, 5, 33] {
                    let x = case.loud_rows(tokens, 3);
                    let told = compare(h, &case, &x, &case.marks(tokens))?;
                    if 2 * told < tokens {
                        let problem = format!("only {told} of {tokens} tokens tell");
                        return Err(Failure::new(problem).within(routing));
                    }
                }
            }
        }
    }
    Ok(())
}

/// Tokens of images, outside of the vocabulary, and padding, on layers of either kind; experts that
/// tie.
///
/// # Errors
/// The first token that chose otherwise.
pub fn tokens_choose_by_their_marks<B: FullBackend>(h: &Harness<B>) -> Result<(), Failure> {
    let skips = &mut Skips::new(h, "tokens_choose_by_their_marks");
    for selection in [Selection::Score, Selection::Hash { vocabulary: 33 }] {
        let mut case = ExpertsCase::ragged(BF16, few(selection)?)?;
        case.hidden = 72;
        if !runs(&case, skips) {
            return Ok(());
        }
        let tokens = 16;
        let x = case.loud_rows(tokens, 11);
        let mut marks = case.marks(tokens);
        marks.ids[1] = -1;
        marks.ids[2] = 33;
        marks.ids[3] = i32::MIN;
        marks.ids[4] = i32::MAX;
        let mask = |step: usize| (0..tokens).map(|t| i32::from(t % step == 0)).collect();
        for (image, padding) in [
            (None, None),
            (Some(3), None),
            (None, Some(4)),
            (Some(3), Some(4)),
        ] {
            marks.image = image.map(mask);
            marks.padding = padding.map(mask);
            compare(h, &case, &x, &marks)?;
        }
    }
    Ok(())
}

/// Logits at ±20, ±88, ±104, ±infinity and NaN, alone and against one another: scores, weights and
/// what ranks above what. Of equals the lower expert comes first.
///
/// # Errors
/// The first token that chose otherwise.
pub fn logits_at_both_ends<B: FullBackend>(h: &Harness<B>) -> Result<(), Failure> {
    let skips = &mut Skips::new(h, "logits_at_both_ends");
    let inf = f32::INFINITY;
    let rows: [[f32; 4]; 12] = [
        [20.0, -20.0, 88.0, -88.0],
        [-17.0, -18.0, -20.0, -21.0],
        [-88.0, -86.0, -84.0, -80.0],
        [-104.0, -104.0, -108.0, -120.0],
        [-inf, -inf, -inf, -inf],
        [inf, 1.0, -inf, 2.0],
        [1.0, f32::NAN, 3.0, 2.0],
        [f32::NAN, 1.0, f32::NAN, f32::NAN],
        [2.0, 2.0, 2.0, 2.0],
        [0.0, -0.0, 0.0, -0.0],
        [-1.0, 104.0, 104.0, 88.0],
        [-inf, -30.0, -inf, -inf],
    ];
    for normalize in [true, false] {
        for selection in [Selection::Score, Selection::Hash { vocabulary: 1 }] {
            let routing = Routing::new(4, 3, 2.0, normalize, selection)?;
            let case = ExpertsCase::ragged(BF16, routing)?;
            if !runs(&case, skips) {
                return Ok(());
            }
            for row in rows {
                one_row(h, routing, row).map_err(|f| f.within(format!("{row:?}, {routing}")))?;
            }
        }
    }
    Ok(())
}

/// A router whose logits are its weights: x is 1.
fn one_row<B: FullBackend>(
    h: &Harness<B>,
    routing: Routing,
    logits: [f32; 4],
) -> Result<(), Failure> {
    let weight: Vec<bf16> = logits.iter().map(|&l| bf16::from_f32(l)).collect();
    let table = [2, 0, 3];
    let weight = HostWeight::new([4, 1], BF16, bytemuck::cast_slice(&weight), &[])?;
    let hashes = routing.vocabulary().is_some();
    let bias = (!hashes).then(|| vec![0.0; 4]);
    let gate = HostGate::new(routing, weight, bias, None, hashes.then(|| table.to_vec()))?;
    let gate = h.backend.load_gate(&gate)?;
    let case = ExpertsCase {
        hidden: 1,
        ..ExpertsCase::ragged(BF16, routing)?
    };
    let x = h.upload(&[bf16::ONE])?;
    let zero = h.upload_bytes(&[0; 4])?;
    let shape = swiglu_core::Shape {
        rows: 1,
        cols: 4,
        depth: 1,
    };
    let mut scratch = h.nans(h.backend.scratch(&case.route_request(), &shape))?;
    let mut routes = swiglu_core::Routes::new(&h.backend, &routing, 1)?;
    h.backend.route(
        &gate,
        Tensor::contiguous(B::view(&x), Float::BF16, 1, 1),
        Tokens {
            ids: Some(B::view(&zero)),
            ..Tokens::default()
        },
        B::view_mut(&mut scratch),
        &mut routes,
    )?;
    let got = routes.download(&h.backend)?;

    let score = |l: f64| (l.max(0.0) + (-l.abs()).exp().ln_1p()).sqrt();
    let scores = logits.map(|l| {
        if l.is_nan() {
            f64::NAN
        } else {
            score(l.into())
        }
    });
    let mut order = [0, 1, 2, 3];
    // Where a device takes subnormals for zero, scores below about -88 are equal.
    let rank = |e: usize| {
        let s = scores[e];
        if s.is_nan() { f64::INFINITY } else { s }
    };
    order.sort_by(|&a, &b| {
        let nan = scores[b].is_nan().cmp(&scores[a].is_nan());
        nan.then(rank(b).total_cmp(&rank(a))).then(a.cmp(&b))
    });
    let ids = if hashes {
        table
    } else {
        [order[0], order[1], order[2]].map(|e| e as i32)
    };
    let tiny = |e: i32| f64::from(logits[e as usize]) < -80.0;
    if got.ids != ids && !ids.iter().all(|&id| tiny(id)) {
        let problem = format!("experts {:?}, expected {ids:?}", got.ids);
        return Err(Failure::new(problem));
    }
    let chosen = || got.ids.iter().map(|&id| scores[id as usize]);
    let sum: f64 = chosen().sum::<f64>() + 1e-20;
    for ((w, s), &id) in got.weights.iter().zip(chosen()).zip(&got.ids) {
        let want = 2.0 * if routing.normalize() { s / sum } else { s };
        let w = f64::from(*w);
        // exp in f32 loses digits where it is subnormal, and is 0 below.
        let lost = if tiny(id) {
            2.0 * 3e-19 / if routing.normalize() { sum } else { 1.0 }
        } else {
            0.0
        };
        let near = (w - want).abs() <= WEIGHT * want.abs() + lost;
        if !(near || (w.is_nan() && want.is_nan()) || w == want) {
            let problem = format!("expert {id}: weight {w:e}, expected {want:e}");
            return Err(Failure::new(problem));
        }
    }
    Ok(())
}
