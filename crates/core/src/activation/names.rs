use crate::{Error, GatedActivation, Result};

/// The operators, by vLLM's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// [`GatedActivation::silu_and_mul`].
    SiluAndMul,
    /// [`GatedActivation::silu_and_mul_with_clamp`].
    SiluAndMulWithClamp,
    /// [`GatedActivation::mul_and_silu`].
    MulAndSilu,
    /// [`GatedActivation::gelu_and_mul`].
    GeluAndMul,
    /// [`GatedActivation::gelu_tanh_and_mul`].
    GeluTanhAndMul,
    /// [`GatedActivation::fatrelu_and_mul`].
    FatReluAndMul,
    /// [`GatedActivation::swigluoai_and_mul`].
    SwigluOaiAndMul,
    /// [`GatedActivation::swiglustep_and_mul`].
    SwigluStepAndMul,
    /// [`GatedActivation::situ_and_mul`].
    SituAndMul,
}

impl Operator {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::SiluAndMul,
        Self::SiluAndMulWithClamp,
        Self::MulAndSilu,
        Self::GeluAndMul,
        Self::GeluTanhAndMul,
        Self::FatReluAndMul,
        Self::SwigluOaiAndMul,
        Self::SwigluStepAndMul,
        Self::SituAndMul,
    ];

    /// The name, as vLLM has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SiluAndMul => "silu_and_mul",
            Self::SiluAndMulWithClamp => "silu_and_mul_with_clamp",
            Self::MulAndSilu => "mul_and_silu",
            Self::GeluAndMul => "gelu_and_mul",
            Self::GeluTanhAndMul => "gelu_tanh_and_mul",
            Self::FatReluAndMul => "fatrelu_and_mul",
            Self::SwigluOaiAndMul => "swigluoai_and_mul",
            Self::SwigluStepAndMul => "swiglustep_and_mul",
            Self::SituAndMul => "situ_and_mul",
        }
    }

    /// Takes a name back.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|o| o.name() == name)
    }
}

/// The parameters that a caller gives beside an operator's name; what is not given takes the
/// value that the operator's own model has.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Parameters {
    /// The limit: 10 for `silu_and_mul_with_clamp` unless given, 7 for `swigluoai_and_mul` and
    /// `swiglustep_and_mul`.
    pub limit: Option<f32>,
    /// The slope of silu: 1 unless given, 1.702 for `swigluoai_and_mul`.
    pub alpha: Option<f32>,
    /// For `silu_and_mul_with_clamp` what is added to up, 0 unless given; for `situ_and_mul` the
    /// bound of the gate, 4 unless given.
    pub beta: Option<f32>,
    /// The threshold of `fatrelu_and_mul`, 0 unless given.
    pub threshold: Option<f32>,
    /// The bound of the up half in `situ_and_mul`: 25 unless given, `Some(None)` for no bound.
    pub up_bound: Option<Option<f32>>,
}

impl Parameters {
    fn given(&self) -> [(&'static str, bool); 5] {
        [
            ("limit", self.limit.is_some()),
            ("alpha", self.alpha.is_some()),
            ("beta", self.beta.is_some()),
            ("threshold", self.threshold.is_some()),
            ("up_bound", self.up_bound.is_some()),
        ]
    }

    fn only(&self, operator: Operator, taken: &[&str]) -> Result<()> {
        for (argument, given) in self.given() {
            if given && !taken.contains(&argument) {
                let expected = format!("nothing, as {} does not take it", operator.name());
                return Err(Error::argument(argument, expected, "a value"));
            }
        }
        Ok(())
    }
}

impl GatedActivation {
    /// Every operator once with its own model's parameters, then the remaining models' presets.
    pub const ALL: [Self; 10] = [
        Self::silu_and_mul(),
        Self::deepseek_v4(),
        Self::mul_and_silu(),
        Self::gelu_and_mul(),
        Self::gelu_tanh_and_mul(),
        Self::plain(
            Operator::FatReluAndMul,
            super::Function::FatRelu { threshold: 0.0 },
        ),
        Self::gpt_oss(),
        Self::step_3_5(),
        Self::kimi_k3(),
        Self::minimax_m3(),
    ];

    /// The models' names that [`Self::from_name`] takes beside the operators' names.
    pub const PRESETS: [(&str, Self); 7] = [
        ("deepseek_v4", Self::deepseek_v4()),
        ("deepseek_v41", Self::deepseek_v4()),
        ("glm_5_3_flash", Self::glm_5_3_flash()),
        ("minimax_m3", Self::minimax_m3()),
        ("gpt_oss", Self::gpt_oss()),
        ("step_3_5", Self::step_3_5()),
        ("kimi_k3", Self::kimi_k3()),
    ];

    /// An operation from an operator's name and parameters, or from a model's name alone.
    ///
    /// # Errors
    /// An unknown name, a parameter out of its range, or one that the operator does not take.
    pub fn from_name(name: &str, parameters: &Parameters) -> Result<Self> {
        let Some(operator) = Operator::from_name(name) else {
            return Self::from_preset(name, parameters);
        };
        let p = parameters;
        match operator {
            Operator::SiluAndMul => {
                p.only(operator, &[])?;
                Ok(Self::silu_and_mul())
            }
            Operator::SiluAndMulWithClamp => {
                p.only(operator, &["limit", "alpha", "beta"])?;
                Self::silu_and_mul_with_clamp(
                    p.limit.unwrap_or(10.0),
                    p.alpha.unwrap_or(1.0),
                    p.beta.unwrap_or(0.0),
                )
            }
            Operator::MulAndSilu => {
                p.only(operator, &[])?;
                Ok(Self::mul_and_silu())
            }
            Operator::GeluAndMul => {
                p.only(operator, &[])?;
                Ok(Self::gelu_and_mul())
            }
            Operator::GeluTanhAndMul => {
                p.only(operator, &[])?;
                Ok(Self::gelu_tanh_and_mul())
            }
            Operator::FatReluAndMul => {
                p.only(operator, &["threshold"])?;
                Self::fatrelu_and_mul(p.threshold.unwrap_or(0.0))
            }
            Operator::SwigluOaiAndMul => {
                p.only(operator, &["limit", "alpha"])?;
                Self::swigluoai_and_mul(p.limit.unwrap_or(7.0), p.alpha.unwrap_or(1.702))
            }
            Operator::SwigluStepAndMul => {
                p.only(operator, &["limit"])?;
                Self::swiglustep_and_mul(p.limit.unwrap_or(7.0))
            }
            Operator::SituAndMul => {
                p.only(operator, &["beta", "up_bound"])?;
                Self::situ_and_mul(p.beta.unwrap_or(4.0), p.up_bound.unwrap_or(Some(25.0)))
            }
        }
    }

    fn from_preset(name: &str, parameters: &Parameters) -> Result<Self> {
        let Some((_, op)) = Self::PRESETS.into_iter().find(|(n, _)| *n == name) else {
            let operators = Operator::ALL.map(Operator::name);
            let presets = Self::PRESETS.map(|(n, _)| n);
            let names = [operators.as_slice(), presets.as_slice()].concat();
            let expected = format!("one of {}", names.join(", "));
            return Err(Error::argument("op", expected, format!("`{name}`")));
        };
        if let Some((argument, _)) = parameters.given().into_iter().find(|(_, given)| *given) {
            let expected = format!("nothing, as the preset {name} sets it");
            return Err(Error::argument(argument, expected, "a value"));
        }
        Ok(op)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operator_is_read_back_from_its_name_and_listed() {
        for operator in Operator::ALL {
            let op = GatedActivation::from_name(operator.name(), &Parameters::default()).unwrap();
            assert_eq!(op.operator(), operator);
            assert!(GatedActivation::ALL.contains(&op), "{op}");
        }
        for (name, op) in GatedActivation::PRESETS {
            let read = GatedActivation::from_name(name, &Parameters::default()).unwrap();
            assert_eq!(read, op);
            assert!(GatedActivation::ALL.contains(&op), "{op}");
        }
    }

    #[test]
    fn a_parameter_that_does_not_apply_is_refused_by_name() {
        let p = Parameters {
            limit: Some(10.0),
            ..Parameters::default()
        };
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
