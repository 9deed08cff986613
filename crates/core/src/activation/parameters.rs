use std::fmt;

use super::functions::REFUSED;
use super::{GatedActivation, Operator};
use crate::{Error, Result};

/// A number that an operator's name leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Parameter {
    /// The limit of the clamp.
    Limit,
    /// The slope of silu.
    Alpha,
    /// What is added to up; for `situ_and_mul`, the bound of the gate.
    Beta,
    /// The threshold of `fatrelu_and_mul`.
    Threshold,
    /// The bound of the up half in `situ_and_mul`, which may be none.
    UpBound,
}

impl Parameter {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Limit,
        Self::Alpha,
        Self::Beta,
        Self::Threshold,
        Self::UpBound,
    ];

    /// The name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Alpha => "alpha",
            Self::Beta => "beta",
            Self::Threshold => "threshold",
            Self::UpBound => "up_bound",
        }
    }

    /// What it is, in one sentence for users.
    pub const fn help(self) -> &'static str {
        match self {
            Self::Limit => "The limit of the clamp; the operator's own model's unless given",
            Self::Alpha => "The slope of silu",
            Self::Beta => "What is added to up; for situ_and_mul, the bound of the gate",
            Self::Threshold => "The threshold of fatrelu_and_mul",
            Self::UpBound => "The bound of up in situ_and_mul, or none",
        }
    }

    /// Whether a caller may switch it off.
    pub const fn may_be_none(self) -> bool {
        match self {
            Self::UpBound => true,
            Self::Limit | Self::Alpha | Self::Beta | Self::Threshold => false,
        }
    }
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The parameters that a caller gives beside an operator's name; what is not given takes the value
/// that the operator's own model has.
///
/// ```
/// use swiglu_core::{GatedActivation, Parameter, Parameters};
/// # fn main() -> swiglu_core::Result<()> {
/// let seven = Parameters::default().with(Parameter::Limit, 7.0);
/// let op = GatedActivation::from_name("silu_and_mul_with_clamp", &seven)?;
/// assert_eq!(op, GatedActivation::silu_and_mul_with_clamp(7.0, 1.0, 0.0)?);
/// assert!(GatedActivation::from_name("silu_and_mul", &seven).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Parameters {
    /// Not given, given as none, or given as a number.
    given: [Option<Option<f32>>; Parameter::ALL.len()],
}

impl Parameters {
    /// The same with this parameter set.
    #[must_use]
    pub const fn with(mut self, parameter: Parameter, value: f32) -> Self {
        self.given[parameter as usize] = Some(Some(value));
        self
    }

    /// The same with this parameter switched off: for [`Parameter::may_be_none`].
    #[must_use]
    pub const fn without(mut self, parameter: Parameter) -> Self {
        self.given[parameter as usize] = Some(None);
        self
    }

    /// What was given: a number, or none; `None` if nothing was.
    pub const fn get(&self, parameter: Parameter) -> Option<Option<f32>> {
        self.given[parameter as usize]
    }

    /// The parameter's number. [`GatedActivation::from_name`] has filled in the defaults.
    pub(super) fn number(&self, parameter: Parameter) -> Result<f32> {
        self.get(parameter)
            .flatten()
            .ok_or_else(|| Error::argument(parameter.name(), "a number", "none"))
    }

    /// [`Parameter::UpBound`], where none is an answer.
    pub(super) const fn up_bound(&self) -> Option<f32> {
        match self.get(Parameter::UpBound) {
            Some(bound) => bound,
            None => None,
        }
    }

    fn first_given(&self, besides: &[(Parameter, f32)]) -> Option<Parameter> {
        let takes = |p: &Parameter| besides.iter().any(|(taken, _)| taken == p);
        let all = Parameter::ALL.into_iter();
        all.filter(|&p| self.get(p).is_some()).find(|p| !takes(p))
    }
}

impl GatedActivation {
    /// An operation from an operator's name and parameters, or from a model's name alone.
    ///
    /// # Errors
    /// An unknown name, a parameter out of its range, or one that the operator does not take.
    pub fn from_name(name: &str, parameters: &Parameters) -> Result<Self> {
        let Some(operator) = Operator::from_name(name) else {
            return Self::from_preset(name, parameters);
        };
        let row = operator.row();
        if let Some(parameter) = parameters.first_given(row.parameters) {
            let expected = format!("nothing, as {name} does not take it");
            return Err(Error::argument(parameter.name(), expected, "a value"));
        }
        let mut filled = *parameters;
        for &(parameter, default) in row.parameters {
            if parameters.get(parameter).is_none() {
                filled = filled.with(parameter, default);
            }
        }
        (row.build)(&filled)
    }

    fn from_preset(name: &str, parameters: &Parameters) -> Result<Self> {
        if let Some((_, reason)) = REFUSED.into_iter().find(|(n, _)| *n == name) {
            let expected = "an elementwise gated activation";
            return Err(Error::argument(
                "op",
                expected,
                format!("`{name}`: {reason}"),
            ));
        }
        let Some((_, op)) = Self::PRESETS.into_iter().find(|(n, _)| *n == name) else {
            let operators = Operator::ALL.map(Operator::name);
            let presets = Self::PRESETS.map(|(n, _)| n);
            let names = [operators.as_slice(), presets.as_slice()].concat();
            let expected = format!("one of {}", names.join(", "));
            return Err(Error::argument("op", expected, format!("`{name}`")));
        };
        if let Some(parameter) = parameters.first_given(&[]) {
            let expected = format!("nothing, as the preset {name} sets it");
            return Err(Error::argument(parameter.name(), expected, "a value"));
        }
        Ok(op)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_that_does_not_apply_is_refused_by_name() {
        let p = Parameters::default().with(Parameter::Limit, 10.0);
        for name in ["silu_and_mul", "gelu_and_mul", "kimi_k3"] {
            let error = GatedActivation::from_name(name, &p)
                .unwrap_err()
                .to_string();
            assert!(error.starts_with("limit: expected nothing"), "{error}");
        }
        let error = GatedActivation::from_name("swish", &p)
            .unwrap_err()
            .to_string();
        assert!(error.contains("silu_and_mul_with_clamp") && error.contains("`swish`"));
    }

    #[test]
    fn none_is_a_value_where_there_is_one() {
        let p = Parameters::default().without(Parameter::UpBound);
        let op = GatedActivation::from_name("situ_and_mul", &p).unwrap();
        assert_eq!(op, GatedActivation::situ_and_mul(4.0, None).unwrap());
        let p = Parameters::default().without(Parameter::Limit);
        let error = GatedActivation::from_name("swiglustep_and_mul", &p).unwrap_err();
        assert_eq!(error.to_string(), "limit: expected a number, got none");
    }

    #[test]
    fn what_is_not_elementwise_is_refused_by_its_name_with_the_reason() {
        let error = GatedActivation::from_name("gelu_and_mul_sparse", &Parameters::default());
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("gelu_and_mul_sparse") && error.contains("whole row"),
            "{error}"
        );
    }

    #[test]
    fn presets_are_what_the_constructors_build() {
        assert_eq!(
            GatedActivation::minimax_m3(),
            GatedActivation::silu_and_mul_with_clamp(7.0, 1.702, 1.0).unwrap()
        );
        assert_eq!(
            GatedActivation::gpt_oss(),
            GatedActivation::swigluoai_and_mul(7.0, 1.702).unwrap()
        );
        assert_eq!(
            GatedActivation::step_3_5(),
            GatedActivation::swiglustep_and_mul(7.0).unwrap()
        );
        assert_eq!(
            GatedActivation::kimi_k3(),
            GatedActivation::situ_and_mul(4.0, Some(25.0)).unwrap()
        );
    }

    #[test]
    fn the_printed_form_shows_what_is_set() {
        let shown = |op: GatedActivation| op.to_string();
        assert_eq!(
            shown(GatedActivation::deepseek_v4()),
            "silu_and_mul_with_clamp(limit=10, official)"
        );
        assert_eq!(
            shown(GatedActivation::gpt_oss()),
            "swigluoai_and_mul(limit=7, alpha=1.702, beta=1, official)"
        );
        assert_eq!(
            shown(GatedActivation::silu_and_mul()),
            "silu_and_mul(official)"
        );
    }
}
