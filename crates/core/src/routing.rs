//! How tokens choose their experts.

use std::fmt;

use crate::{Backend, Error, HostWeight, Result};

mod choose;
mod routes;

pub use choose::{HostRouter, Token, score};
pub use routes::{HostRoutes, Routes, sort_by_expert};

/// What a token's experts are chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Selection {
    /// The greatest scores, each with its expert's bias added.
    Score,
    /// A row of a table (`tid2eid`) for each token of the vocabulary. What weighs the experts are
    /// the scores all the same.
    Hash {
        /// Rows of the table (V).
        vocabulary: usize,
    },
}

/// How a layer's tokens choose their experts, as one validated value: `E`, `k`, the scale, whether
/// weights are normalized, and what decides. The score is DeepSeek-V4's, sqrt(softplus(logit));
/// there are no groups of experts.
///
/// ```text
/// logits = x · gateᵀ                            f32, never rounded to bf16
/// s      = sqrt(softplus(logits))               softplus(l) = max(l, 0) + log1p(exp(-|l|))
/// ids    = top-k of s + bias, or tid2eid[token]
/// w      = s[ids] / (sum(s[ids]) + 1e-20) · scale
/// ```
///
/// ```
/// use swiglu_core::{Routing, Selection};
/// # fn main() -> swiglu_core::Result<()> {
/// let flash = Routing::new(256, 6, 1.5, true, Selection::Score)?;
/// assert_eq!((flash.experts(), flash.top_k()), (256, 6));
/// assert!(Routing::new(4, 6, 1.5, true, Selection::Score).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    experts: usize,
    top_k: usize,
    scale: f32,
    normalize: bool,
    selection: Selection,
}

impl Routing {
    /// What is added to the sum of scores, so that a sum of 0 gives weights of 0 and not NaN.
    pub const EPSILON: f64 = 1e-20;

    /// `top_k` of `experts` experts a token; weights are `scale` times the scores, divided by
    /// their sum where they are to be normalized.
    ///
    /// # Errors
    /// No experts, more than an `i32` counts, none or more chosen than there are, a scale that is
    /// not a finite number above 0, or a table without rows.
    pub fn new(
        experts: usize,
        top_k: usize,
        scale: f32,
        normalize: bool,
        selection: Selection,
    ) -> Result<Self> {
        const MOST: usize = i32::MAX as usize;
        if !(1..=MOST).contains(&experts) {
            return Err(Error::argument("experts", format!("1 to {MOST}"), experts));
        }
        if !(1..=experts).contains(&top_k) {
            let expected = format!("1 to the {experts} experts");
            return Err(Error::argument("top_k", expected, top_k));
        }
        if !(scale.is_finite() && scale > 0.0) {
            return Err(Error::argument("scale", "a finite number above 0", scale));
        }
        if let Selection::Hash { vocabulary } = selection
            && !(1..=MOST).contains(&vocabulary)
        {
            let expected = format!("1 to {MOST} rows");
            return Err(Error::argument("vocabulary", expected, vocabulary));
        }
        Ok(Self {
            experts,
            top_k,
            scale,
            normalize,
            selection,
        })
    }

    /// All experts of the layer, those of other ranks too (E).
    pub const fn experts(&self) -> usize {
        self.experts
    }

    /// Experts of a token (k).
    pub const fn top_k(&self) -> usize {
        self.top_k
    }

    /// What every weight is multiplied by (`routed_scaling_factor`).
    pub const fn scale(&self) -> f32 {
        self.scale
    }

    /// Whether scores are divided by their sum (`norm_topk_prob`).
    pub const fn normalize(&self) -> bool {
        self.normalize
    }

    /// What experts are chosen by.
    pub const fn selection(&self) -> Selection {
        self.selection
    }

    /// Rows of the table of a layer that hashes.
    pub const fn vocabulary(&self) -> Option<usize> {
        match self.selection {
            Selection::Score => None,
            Selection::Hash { vocabulary } => Some(vocabulary),
        }
    }

    /// The routes of so many tokens, T · k.
    ///
    /// # Errors
    /// More than an `i32` counts.
    pub fn routes(&self, tokens: usize) -> Result<usize> {
        let routes = tokens.checked_mul(self.top_k);
        routes.filter(|&n| i32::try_from(n).is_ok()).ok_or_else(|| {
            let expected = format!("at most {} routes", i32::MAX);
            Error::argument("x", expected, format!("{tokens} tokens"))
        })
    }
}

/// What is chosen, such as `6 of 256 experts by score, normalized, times 1.5`.
impl fmt::Display for Routing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} experts by ", self.top_k, self.experts)?;
        match self.selection {
            Selection::Score => f.write_str("score")?,
            Selection::Hash { vocabulary } => write!(f, "a table of {vocabulary} tokens")?,
        }
        if self.normalize {
            f.write_str(", normalized")?;
        }
        write!(f, ", times {}", self.scale)
    }
}

/// A router's tensors in host memory, checked against its [`Routing`].
#[derive(Clone, Debug)]
pub struct HostGate<'a> {
    routing: Routing,
    weight: HostWeight<'a>,
    bias: Option<Vec<f32>>,
    bias_vl: Option<Vec<f32>>,
    table: Option<Vec<i32>>,
}

impl<'a> HostGate<'a> {
    /// The gate's weight \[E, H\]; `bias` \[E\] of a layer that chooses by score, `table` \[V, k\] of one
    /// that hashes (`tid2eid`), and `bias_vl` \[E\] where tokens of images have a bias of their own.
    ///
    /// # Errors
    /// A part that is missing, or there and not used, or of another size; an entry of the table
    /// that is no expert's number.
    pub fn new(
        routing: Routing,
        weight: HostWeight<'a>,
        bias: Option<Vec<f32>>,
        bias_vl: Option<Vec<f32>>,
        table: Option<Vec<i32>>,
    ) -> Result<Self> {
        let (experts, top_k) = (routing.experts, routing.top_k);
        if weight.rows() != experts {
            let expected = format!("a row for each of {experts} experts");
            return Err(Error::argument("gate", expected, weight.rows()));
        }
        let hashes = routing.vocabulary().is_some();
        has_entries("bias", bias.as_deref(), (!hashes).then_some(experts))?;
        let both = bias_vl.as_ref().map(|_| experts);
        has_entries("bias_vl", bias_vl.as_deref(), both)?;
        let entries = match routing.vocabulary() {
            None => None,
            Some(rows) => Some(rows.checked_mul(top_k).ok_or_else(|| {
                Error::argument("table", "a table within the address space", rows)
            })?),
        };
        has_entries("table", table.as_deref(), entries)?;
        let known = |&id: &i32| usize::try_from(id).is_ok_and(|id| id < experts);
        let wrong = table.iter().flatten().position(|id| !known(id));
        if let (Some(at), Some(table)) = (wrong, &table) {
            let (row, slot) = (at / top_k, at % top_k);
            let expected = format!("experts 0 to {}", experts - 1);
            let got = format!("{} at [{row}, {slot}]", table[at]);
            return Err(Error::argument("table", expected, got));
        }
        Ok(Self {
            routing,
            weight,
            bias,
            bias_vl,
            table,
        })
    }

    /// How tokens choose.
    pub const fn routing(&self) -> &Routing {
        &self.routing
    }

    /// The weight, \[E, H\].
    pub const fn weight(&self) -> &HostWeight<'a> {
        &self.weight
    }

    /// What is added to the scores before they are compared, \[E\].
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// The same for tokens of images, \[E\].
    pub fn bias_vl(&self) -> Option<&[f32]> {
        self.bias_vl.as_deref()
    }

    /// The experts of each token of the vocabulary, \[V, k\].
    pub fn table(&self) -> Option<&[i32]> {
        self.table.as_deref()
    }
}

fn has_entries<T>(
    argument: &'static str,
    got: Option<&[T]>,
    expected: Option<usize>,
) -> Result<()> {
    let got = got.map(<[T]>::len);
    if got == expected {
        return Ok(());
    }
    let words = |n: Option<usize>| n.map_or("none".to_owned(), |n| format!("{n} entries"));
    Err(Error::argument(argument, words(expected), words(got)))
}

/// A router in a backend's memory: what [`crate::Router::load_gate`] makes of a [`HostGate`].
#[derive(Clone, Debug)]
pub struct Gate<Weight, Buffer> {
    /// How tokens choose.
    pub routing: Routing,
    /// The weight, \[E, H\].
    pub weight: Weight,
    /// \[E\] of f32, of a layer that chooses by score.
    pub bias: Option<Buffer>,
    /// \[E\] of f32, where tokens of images have a bias of their own.
    pub bias_vl: Option<Buffer>,
    /// \[V, k\] of i32, of a layer that hashes.
    pub table: Option<Buffer>,
}

/// What there is to know of the tokens besides their rows, in a backend's memory: T values of i32
/// each.
pub struct Tokens<'a, B: Backend> {
    /// The tokens' numbers in the vocabulary. A layer that hashes must have them; where one is
    /// outside of the vocabulary, its token has no experts. Others do not read them.
    pub ids: Option<B::View<'a>>,
    /// Not 0 where a token is of an image: it chooses by `bias_vl`, on layers that hash too.
    pub image: Option<B::View<'a>>,
    /// Not 0 where a row is padding: it has no experts.
    pub padding: Option<B::View<'a>>,
}

impl<B: Backend> Clone for Tokens<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Tokens<'_, B> {}

impl<B: Backend> Default for Tokens<'_, B> {
    fn default() -> Self {
        Self {
            ids: None,
            image: None,
            padding: None,
        }
    }
}

impl<B: Backend> fmt::Debug for Tokens<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens")
            .field("ids", &self.ids.is_some())
            .field("image", &self.image.is_some())
            .field("padding", &self.padding.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Float, WeightFormat};

    #[test]
    fn what_cannot_be_chosen_is_refused_by_name() {
        let new = |e, k, scale| Routing::new(e, k, scale, true, Selection::Score);
        let message = |r: Result<Routing>| r.unwrap_err().to_string();
        assert!(message(new(0, 1, 1.0)).starts_with("experts: "));
        assert!(message(new(4, 0, 1.0)).starts_with("top_k: "));
        assert!(message(new(4, 5, 1.0)).starts_with("top_k: expected 1 to the 4 experts, got 5"));
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(message(new(4, 2, scale)).starts_with("scale: "));
        }
        let flat = Selection::Hash { vocabulary: 0 };
        assert!(message(Routing::new(4, 2, 1.0, true, flat)).starts_with("vocabulary: "));
        let many = new(4, 4, 1.0).unwrap();
        assert!(many.routes(1 << 29).is_err() && many.routes((1 << 29) - 1).is_ok());
    }

    #[test]
    fn a_gate_has_what_its_layer_reads_and_nothing_else() {
        let bytes = [0; 16];
        let weight = || HostWeight::new([4, 2], WeightFormat::Float(Float::BF16), &bytes, &[]);
        let hash = Selection::Hash { vocabulary: 3 };
        let score = Routing::new(4, 2, 1.0, true, Selection::Score).unwrap();
        let hash = Routing::new(4, 2, 1.0, true, hash).unwrap();
        let new = |routing, bias: Option<usize>, vl: Option<usize>, table: Option<Vec<i32>>| {
            let zeros = |n: Option<usize>| n.map(|n| vec![0.0; n]);
            HostGate::new(routing, weight().unwrap(), zeros(bias), zeros(vl), table)
                .map(drop)
                .map_err(|e| e.to_string())
        };
        let table = |n| Some(vec![3; n]);
        assert_eq!(new(score, Some(4), Some(4), None), Ok(()));
        assert_eq!(new(hash, None, Some(4), table(6)), Ok(()));
        for (wrong, name) in [
            (
                new(score, None, None, None),
                "bias: expected 4 entries, got none",
            ),
            (new(score, Some(5), None, None), "bias: "),
            (new(score, Some(4), Some(3), None), "bias_vl: "),
            (new(score, Some(4), None, table(6)), "table: expected none"),
            (new(hash, Some(4), None, table(6)), "bias: expected none"),
            (new(hash, None, None, None), "table: "),
            (new(hash, None, None, table(5)), "table: "),
        ] {
            let error = wrong.unwrap_err();
            assert!(error.starts_with(name), "{error}");
        }
        for id in [-1, 4] {
            let error = new(hash, None, None, Some(vec![0, 1, 2, id, 0, 1])).unwrap_err();
            let expected = format!("table: expected experts 0 to 3, got {id} at [1, 1]");
            assert_eq!(error, expected);
        }
        let few = Routing::new(3, 2, 1.0, true, Selection::Score).unwrap();
        assert!(
            new(few, Some(3), None, None)
                .unwrap_err()
                .starts_with("gate: ")
        );
    }
}
