use swiglu_core::{ActAndMul, Element, Float, GatedActivation, bf16, f16};

use crate::compare::{Tally, against_reference};
use crate::inputs::{every_exponent, every_gate, limit_of, pairs, special_values, spread_of_ups};
use crate::{Failure, Harness};

/// What a backend's results for one activation in one type are like, for programs that report.
#[derive(Clone, Debug)]
pub struct Survey {
    /// Results compared with the reference, those of special values left out.
    pub results: usize,
    /// Of these, how many are the reference's own: its exact value, rounded once.
    pub correctly_rounded: usize,
    /// How far off the others are at most, in units in the last place. What f32 loses where its
    /// exponential underflows is allowed and does not count.
    pub worst_ulps: u32,
    /// Whether these results are within the contract.
    pub accuracy: Result<(), Failure>,
    /// Whether a NaN in either half gives a NaN, the canonical one.
    pub nan: Result<(), Failure>,
    /// Whether limits, zeros, subnormals, the largest numbers and infinities give what they should.
    pub special: Result<(), Failure>,
}

impl Survey {
    /// Whether all is as the contract says.
    pub const fn passes(&self) -> bool {
        self.accuracy.is_ok() && self.nan.is_ok() && self.special.is_ok()
    }

    /// What is not.
    pub fn failures(&self) -> impl Iterator<Item = &Failure> {
        let all = [&self.accuracy, &self.nan, &self.special];
        all.into_iter().filter_map(|outcome| outcome.as_ref().err())
    }
}

impl<B: ActAndMul> Harness<B> {
    /// Compares an activation with the reference, by what the backend's accuracy allows: in f16 and bf16 all 65,536 gates, with 3 ups or,
    /// in [`crate::Size::Full`], with 64; in f32 gates of every exponent.
    pub fn survey(&self, op: &GatedActivation, float: Float) -> Survey {
        match float {
            Float::F16 => self.survey_16_bits::<f16>(op),
            Float::BF16 => self.survey_16_bits::<bf16>(op),
            Float::F32 => {
                let each = self.size.pick(128, 2048);
                self.survey_pairs(op, [every_exponent(each)].into_iter())
            }
        }
    }

    fn survey_16_bits<T: Element>(&self, op: &GatedActivation) -> Survey {
        let ups = spread_of_ups::<T>(self.size.pick(3, 64));
        self.survey_pairs(op, ups.into_iter().map(every_gate))
    }

    fn survey_pairs<T: Element>(
        &self,
        op: &GatedActivation,
        batches: impl Iterator<Item = Vec<(T, T)>>,
    ) -> Survey {
        let mut tally = Tally::default();
        let compare = |pairs: &[(T, T)], tally: &mut Tally| {
            let got = self.act_on_pairs(op, pairs)?;
            against_reference(op, pairs, &got, &self.accuracy, tally)
        };
        let mut accuracy = Ok(());
        for pairs in batches {
            accuracy = accuracy.and(compare(&pairs, &mut tally));
        }
        if T::FLOAT != Float::F32 {
            accuracy = accuracy.and_then(|()| tally.check(op, T::FLOAT));
        }
        let values = special_values::<T>(limit_of(op));
        let (nans, others): (Vec<_>, Vec<_>) = pairs(&values, &values)
            .into_iter()
            .partition(|(gate, up)| gate.is_nan() || up.is_nan());
        Survey {
            results: tally.compared,
            correctly_rounded: tally.exact,
            worst_ulps: tally.worst_ulps,
            accuracy,
            nan: compare(&nans, &mut Tally::default()),
            special: compare(&others, &mut Tally::default()),
        }
    }
}
