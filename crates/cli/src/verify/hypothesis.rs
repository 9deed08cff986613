use std::fmt;

use swiglu::{Element, Float, GatedActivation, Rounding};

use super::faults::{FAULTS, Fault, Part};
use super::finish::{Factor, Finish, Store};
use super::fitted::Fit;
use super::range::Range;
use super::recipe::{Factors, Recipe};

/// One way in which an output may have come about: the definition or one with a fault, rounded in
/// one of the ways that there are.
#[derive(Clone, Debug)]
pub struct Hypothesis {
    /// The fault's name; none for the definition.
    pub fault: Option<String>,
    /// The part of the operation that the fault is in.
    pub part: Option<Part>,
    /// As [`Fault::more`].
    pub more: bool,
    /// Whether it differs from the definition only in what may be lost at the ends of the range, so
    /// that it explains all that the definition does.
    pub only_loses: bool,
    /// What data tell it from the definition.
    pub needs: String,
    /// What else explains as much; often empty.
    pub note: String,
    pub recipe: Recipe,
    pub finish: Finish,
    pub row_factors: RowFactors,
}

/// What results are multiplied by, row by row.
#[derive(Clone, Debug, PartialEq)]
pub enum RowFactors {
    None,
    All(Factor),
    Each(Vec<Factor>),
}

impl RowFactors {
    fn of(&self, row: usize) -> Option<Factor> {
        match self {
            Self::None => None,
            Self::All(factor) => Some(*factor),
            Self::Each(factors) => factors.get(row).copied(),
        }
    }
}

/// How an engine may round an output in this type, the way that is asked for first. In f32 nothing
/// is rounded between the steps, and nothing cut off.
pub fn finishes(op: &GatedActivation, float: Float) -> Vec<Finish> {
    let finish = |rounding, store| Finish { rounding, store };
    let asked = op.rounding();
    if float == Float::F32 {
        return vec![
            finish(Rounding::Official, Store::Rounded),
            finish(Rounding::Official, Store::Flushed),
        ];
    }
    let other = match asked {
        Rounding::Official => Rounding::Eager,
        Rounding::Eager => Rounding::Official,
    };
    let stores = [Store::Rounded, Store::Truncated, Store::Flushed];
    let of = |store| [asked, other].map(|rounding| finish(rounding, store));
    stores.into_iter().flat_map(of).collect()
}

impl Hypothesis {
    /// Every hypothesis whose parameters are known beforehand, the definition first.
    pub fn all(op: &GatedActivation, float: Float) -> Vec<Self> {
        let defined = Recipe::defined(op);
        let finishes = finishes(op, float);
        let mut all: Vec<_> = finishes.iter().map(|f| Self::defined(op, *f)).collect();
        let faults = FAULTS.iter().filter_map(|fault| {
            let recipe = (fault.recipe)(op, defined)?;
            Some((fault, recipe))
        });
        for (fault, recipe) in faults {
            all.extend(finishes.iter().map(|f| Self::faulty(op, fault, recipe, *f)));
        }
        all
    }

    /// No fault but what the finish says.
    fn defined(op: &GatedActivation, finish: Finish) -> Self {
        let needs = match finish.store {
            Store::Rounded => "results that the roundings between the steps change",
            Store::Truncated => "results that cutting off changes",
            Store::Flushed => "subnormal results",
        };
        Self {
            fault: None,
            part: None,
            more: false,
            only_loses: false,
            needs: needs.to_owned(),
            note: String::new(),
            recipe: Recipe::defined(op),
            finish,
            row_factors: RowFactors::None,
        }
    }

    fn faulty(op: &GatedActivation, fault: &Fault, recipe: Recipe, finish: Finish) -> Self {
        Self {
            fault: Some((fault.name)(op)),
            part: Some(fault.part),
            more: fault.more,
            only_loses: recipe == Recipe::defined(op),
            needs: (fault.needs)(op),
            note: String::new(),
            recipe: Recipe {
                may_underflow: true,
                ..recipe
            },
            finish,
            row_factors: RowFactors::None,
        }
    }

    /// A fault whose parameter was read off the output.
    pub fn fitted(op: &GatedActivation, fit: Fit, finish: Finish) -> Self {
        Self {
            fault: Some(fit.name),
            part: Some(fit.part),
            more: fit.more,
            note: fit.note,
            recipe: Recipe {
                may_underflow: true,
                ..fit.recipe
            },
            finish,
            row_factors: fit.factors,
            ..Self::defined(op, finish)
        }
    }

    /// What output `j` of this row of 2d elements may be.
    pub fn range<T: Element>(
        &self,
        op: &GatedActivation,
        (t, row): (usize, &[T]),
        d: usize,
        j: usize,
    ) -> Range {
        self.range_of::<T>(&self.factors(op, row, d, j), t)
    }

    /// The factors of output `j` of a row.
    pub fn factors<T: Element>(
        &self,
        op: &GatedActivation,
        row: &[T],
        d: usize,
        j: usize,
    ) -> Factors {
        let (gate, up) = self.recipe.positions(op, d, j);
        let rounding = self.finish.rounding;
        self.recipe.factors(rounding, row[gate], row[up])
    }

    /// What an output of row `t` with these factors may be.
    pub fn range_of<T: Element>(&self, factors: &Factors, t: usize) -> Range {
        self.finish.range::<T>(factors, self.row_factors.of(t))
    }
}

/// The fault, the rounding mode, and how results are stored where that is not by rounding.
impl fmt::Display for Hypothesis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(fault) = &self.fault {
            write!(f, "{fault}, ")?;
        }
        f.write_str(match self.finish.rounding {
            Rounding::Official => "official",
            Rounding::Eager => "eager",
        })?;
        match self.finish.store {
            Store::Rounded => Ok(()),
            Store::Truncated => f.write_str(", truncated"),
            Store::Flushed => f.write_str(", subnormals flushed to zero"),
        }
    }
}
