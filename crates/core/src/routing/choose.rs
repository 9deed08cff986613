//! Scores, choices and weights of one token, in scalar code: the reference of routing, and what
//! backends on host memory run.

use super::Routing;

/// sqrt(softplus(logit)), evaluated in f64 and rounded once. NaN gives NaN, infinity infinity, and
/// -infinity 0.
pub fn score(logit: f32) -> f32 {
    let l = f64::from(logit);
    // Not `max`, which would take a NaN to 0. log1p keeps what log(1 + e) loses below -16.6.
    let above = if l < 0.0 { 0.0 } else { l };
    libm::sqrt(above + libm::log1p(libm::exp(-l.abs()))) as f32
}

/// What there is to know of one token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Token {
    /// Its number in the vocabulary.
    pub id: i32,
    /// Whether it is of an image.
    pub image: bool,
    /// Whether its row is padding.
    pub padding: bool,
}

/// A router's tensors as slices, and the choice of one token after another from its logits.
///
/// ```
/// use swiglu_core::{HostRouter, Routing, Selection, Token};
/// # fn main() -> swiglu_core::Result<()> {
/// let routing = Routing::new(3, 2, 1.0, true, Selection::Score)?;
/// let router = HostRouter { routing, bias: Some(&[0.0, 9.0, 0.0]), bias_vl: None, table: None };
/// let (mut ids, mut weights) = ([0; 2], [0.0; 2]);
/// router.route(&mut [0.0; 3], Token::default(), &mut ids, &mut weights);
/// assert_eq!((ids, weights), ([1, 0], [0.5, 0.5])); // the bias chooses and does nothing else
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct HostRouter<'a> {
    /// How tokens choose.
    pub routing: Routing,
    /// \[E\], of a layer that chooses by score.
    pub bias: Option<&'a [f32]>,
    /// \[E\], where tokens of images have a bias of their own.
    pub bias_vl: Option<&'a [f32]>,
    /// \[V, k\], of a layer that hashes.
    pub table: Option<&'a [i32]>,
}

impl HostRouter<'_> {
    /// The experts of a token with these logits \[E\], and their weights, \[k\] each. A token without
    /// experts has ids of -1 and weights of 0. What `logits` hold afterwards is unspecified.
    pub fn route(&self, logits: &mut [f32], token: Token, ids: &mut [i32], weights: &mut [f32]) {
        ids.fill(-1);
        weights.fill(0.0);
        if token.padding {
            return;
        }
        let by_score = |logits: &mut [f32], bias: &[f32], ids: &mut [i32]| {
            logits.iter_mut().for_each(|l| *l = score(*l));
            top_k(logits, bias, ids);
        };
        match (self.bias_vl.filter(|_| token.image), self.table) {
            (Some(bias), _) => by_score(logits, bias, ids),
            (None, None) => by_score(logits, self.bias.unwrap_or(&[]), ids),
            (None, Some(table)) => {
                let row = usize::try_from(token.id).ok();
                let row = row.and_then(|row| table.chunks_exact(ids.len()).nth(row));
                let Some(row) = row else { return };
                ids.copy_from_slice(row);
                for (w, &id) in weights.iter_mut().zip(&*ids) {
                    *w = score(logits[id as usize]);
                }
                return self.weigh(weights);
            }
        }
        for (w, &id) in weights.iter_mut().zip(&*ids) {
            *w = logits[id as usize];
        }
        self.weigh(weights);
    }

    /// The weights of chosen experts with these scores.
    fn weigh(&self, scores: &mut [f32]) {
        let mut sum = Routing::EPSILON;
        for s in &*scores {
            sum += f64::from(*s);
        }
        let scale = f64::from(self.routing.scale());
        for w in scores {
            let s = f64::from(*w);
            let normal = if self.routing.normalize() { s / sum } else { s };
            *w = (normal * scale) as f32;
        }
    }
}

/// The experts with the greatest scores plus biases, in descending order. NaN is above everything,
/// and of equals the lower expert comes first.
fn top_k(scores: &[f32], bias: &[f32], ids: &mut [i32]) {
    let biased = |e: usize| scores[e] + bias.get(e).copied().unwrap_or_default();
    let mut count = 0;
    for e in 0..scores.len() {
        let value = biased(e);
        let mut place = count;
        while place > 0 && above(value, biased(ids[place - 1] as usize)) {
            place -= 1;
        }
        if place < ids.len() {
            count = (count + 1).min(ids.len());
            ids.copy_within(place..count - 1, place + 1);
            ids[place] = e as i32;
        }
    }
}

/// Whether `a` ranks above `b`. -0 equals +0.
fn above(a: f32, b: f32) -> bool {
    a > b || (a.is_nan() && !b.is_nan())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Selection;

    #[test]
    fn the_score_is_exact_at_both_ends() {
        // sqrt(log1p(exp(l))) by mpmath, 30 digits.
        for (logit, want) in [
            (0.0, 0.832_554_611_157_697_8),
            (-20.0, 4.539_992_974_166_2e-5),
            (-88.0, 7.781_132_241_133_797e-20),
            (-100.0, 1.928_749_847_963_917_7e-22),
            (20.0, 4.472_135_955_230_38),
            (88.0, 9.380_831_519_646_86),
        ] {
            let got = f64::from(score(logit));
            assert!((got / want - 1.0).abs() < 1e-7, "{logit}: {got:e} {want:e}");
        }
        assert!(score(f32::NAN).is_nan());
        assert_eq!(score(f32::INFINITY), f32::INFINITY);
        assert_eq!(score(f32::NEG_INFINITY), 0.0);
        assert_eq!(score(f32::MIN), 0.0);
    }

    fn route(
        routing: Routing,
        bias: &[f32],
        table: Option<&[i32]>,
        logits: &[f32],
        token: Token,
    ) -> (Vec<i32>, Vec<f32>) {
        let router = HostRouter {
            routing,
            bias: table.is_none().then_some(bias),
            bias_vl: table.is_some().then_some(bias),
            table,
        };
        let (mut ids, mut weights) = (vec![9; routing.top_k()], vec![9.0; routing.top_k()]);
        router.route(&mut logits.to_vec(), token, &mut ids, &mut weights);
        (ids, weights)
    }

    fn by_score(experts: usize, k: usize, normalize: bool) -> Routing {
        Routing::new(experts, k, 2.0, normalize, Selection::Score).unwrap()
    }

    #[test]
    fn the_bias_chooses_and_is_not_in_the_weights() {
        let text = Token::default();
        let logits = [0.0, 1.0, 2.0, 3.0];
        let (ids, w) = route(
            by_score(4, 2, true),
            &[9.0, 0.0, 0.0, 0.0],
            None,
            &logits,
            text,
        );
        assert_eq!(ids, [0, 3]);
        let [a, b] = [0.0, 3.0].map(|l| f64::from(score(l)));
        assert_eq!(w, [a, b].map(|s| (s / (a + b) * 2.0) as f32));
        let (_, w) = route(
            by_score(4, 2, false),
            &[9.0, 0.0, 0.0, 0.0],
            None,
            &logits,
            text,
        );
        assert_eq!(w, [0.0, 3.0].map(|l| 2.0 * score(l)));
    }

    #[test]
    fn of_equals_the_lower_comes_first_and_nan_is_above_all() {
        let text = Token::default();
        let all =
            |logits: &[f32], k| route(by_score(logits.len(), k, true), &[], None, logits, text);
        assert_eq!(all(&[1.0, 2.0, 2.0, 2.0, 1.0], 4).0, [1, 2, 3, 0]);
        let inf = f32::INFINITY;
        let (ids, w) = all(&[1.0, f32::NAN, inf, f32::NAN], 3);
        assert_eq!(ids, [1, 3, 2]);
        assert!(w.iter().all(|w| w.is_nan()));
        let (ids, w) = all(&[1.0, inf, 2.0], 2);
        assert_eq!((ids, w[0].is_nan(), w[1]), (vec![1, 2], true, 0.0));
        let (ids, w) = all(&[-inf; 3], 2);
        assert_eq!((ids, w), (vec![0, 1], vec![0.0; 2]));
        // A bias of -0 leaves the score 0 where it was.
        let bias = [-0.0, 0.0, -0.0];
        let (ids, _) = route(by_score(3, 3, true), &bias, None, &[-inf; 3], text);
        assert_eq!(ids, [0, 1, 2]);
    }

    #[test]
    fn a_table_chooses_and_the_scores_weigh() {
        let hash = Selection::Hash { vocabulary: 2 };
        let routing = Routing::new(4, 2, 2.0, true, hash).unwrap();
        let table = [3, 1, 2, 2];
        let logits = [0.0, 1.0, 2.0, 3.0];
        let run = |token| route(routing, &[0.0, 9.0, 8.0, 0.0], Some(&table), &logits, token);
        let of = |id| {
            run(Token {
                id,
                ..Token::default()
            })
        };
        let [a, b] = [3.0, 1.0].map(|l| f64::from(score(l)));
        let want = [a, b].map(|s| (s / (a + b) * 2.0) as f32);
        assert_eq!(of(0), (vec![3, 1], want.to_vec()));
        assert_eq!(of(1), (vec![2, 2], vec![1.0; 2]));
        for id in [-1, 2, i32::MIN, i32::MAX] {
            assert_eq!(of(id), (vec![-1; 2], vec![0.0; 2]));
        }
        // A token of an image chooses by its bias, whatever its number.
        let image = Token {
            id: -7,
            image: true,
            padding: false,
        };
        assert_eq!(run(image).0, [1, 2]);
        let padding = Token {
            padding: true,
            ..image
        };
        assert_eq!(run(padding), (vec![-1; 2], vec![0.0; 2]));
    }
}
