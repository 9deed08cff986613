use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use swiglu_core::{
    ActAndMul, Backend, Float, GatedActivation, Quantization, Request, Rounding, ScaleFormat,
    ScaleOrder, Support,
};

use crate::inputs::orders;
use crate::{Failure, Harness};

/// Tells a skip. Not by `eprintln!`, which the test runner swallows: a skip must be seen. A closed
/// standard error leaves nobody to tell.
pub(crate) fn tell(platform: &str, reason: &str, check: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {platform}: {reason} ({check})");
}

/// What one check leaves out because the backend says that it does not run it. When the check
/// ends, each reason is told once, with the first request that it was given for.
pub(crate) struct Skips<'a, B: Backend> {
    pub(crate) harness: &'a Harness<B>,
    check: &'static str,
    /// The first thing left out for a reason, and all of them.
    left_out: BTreeMap<String, (String, BTreeSet<String>)>,
}

impl<'a, B: Backend> Skips<'a, B> {
    /// The skips of the check of this name.
    pub(crate) const fn new(harness: &'a Harness<B>, check: &'static str) -> Self {
        Self {
            harness,
            check,
            left_out: BTreeMap::new(),
        }
    }

    /// Whether the backend runs a request; if it does not, that is told.
    pub(crate) fn runs(&mut self, request: &Request) -> bool {
        match self.harness.backend.supports(request) {
            Support::Native | Support::Emulated(_) => true,
            Support::No(reason) => {
                self.leave_out(request.to_string(), reason);
                false
            }
        }
    }

    /// Notes something left out for another reason than a request's.
    pub(crate) fn leave_out(&mut self, what: String, reason: String) {
        let first = || (what.clone(), BTreeSet::new());
        let (_, all) = self.left_out.entry(reason).or_insert_with(first);
        all.insert(what);
    }

    /// Whether an activation runs in this type.
    pub(crate) fn activates(&mut self, op: &GatedActivation, float: Float) -> bool {
        self.runs(&Request::Activation { op: *op, float })
    }
}

impl<B: ActAndMul> Skips<'_, B> {
    /// Every activation in every rounding that the backend runs in this type.
    pub(crate) fn activations(&mut self, float: Float) -> Vec<GatedActivation> {
        let all = GatedActivation::ALL.into_iter();
        all.flat_map(|op| self.roundings(op, float)).collect()
    }

    /// An activation in those roundings that the backend runs in this type.
    pub(crate) fn roundings(&mut self, op: GatedActivation, float: Float) -> Vec<GatedActivation> {
        let both = [Rounding::Official, Rounding::Eager].map(|r| op.with_rounding(r));
        let runs = both.into_iter().filter(|op| self.activates(op, float));
        runs.collect()
    }
}

impl<B: Backend> Skips<'_, B> {
    /// Every group, format and order of scales for which the backend runs what `request` makes of
    /// a quantization.
    pub(crate) fn quantizations(
        &mut self,
        request: impl Fn(Quantization) -> Request,
    ) -> Result<Vec<(Quantization, ScaleOrder)>, Failure> {
        let mut all = Vec::new();
        for group in Quantization::GROUPS {
            for format in ScaleFormat::ALL {
                let quant = Quantization::new(group, format)?;
                if self.runs(&request(quant)) {
                    all.extend(orders(format).map(|order| (quant, order)));
                }
            }
        }
        Ok(all)
    }

    /// The quantizations that the backend runs alone.
    pub(crate) fn quantizations_of(
        &mut self,
        float: Float,
    ) -> Result<Vec<(Quantization, ScaleOrder)>, Failure> {
        self.quantizations(|quant| Request::Quantize { quant, float })
    }
}

impl<B: Backend> Drop for Skips<'_, B> {
    fn drop(&mut self) {
        if !self.harness.tells_skips {
            return;
        }
        for (reason, (first, all)) in &self.left_out {
            let what = match all.len() - 1 {
                0 => format!("{first}: {reason}"),
                more => format!("{first} and {more} more: {reason}"),
            };
            tell(self.harness.backend.platform(), &what, self.check);
        }
    }
}
