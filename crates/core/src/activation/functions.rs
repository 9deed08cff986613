//! The family as a table: one row an operator, one variant a function.
//!
//! Names, command-line flags, the numbers that shaders switch on and the list of kernels that are
//! compiled ahead follow from here. A new activation is a variant of [`Operator`] with its row in
//! `TABLE`, and a variant of [`Function`] if its formula is new.

use super::{GatedActivation, Parameter, Parameters};
use crate::Result;

/// The function that the gate goes through, with its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Function {
    /// x · sigmoid(alpha · x).
    Silu {
        /// The slope, 1 in most models.
        alpha: f32,
    },
    /// x/2 · (1 + erf(x/√2)).
    Gelu,
    /// x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).
    GeluTanh,
    /// x where it exceeds the threshold, else 0.
    FatRelu {
        /// The threshold.
        threshold: f32,
    },
    /// beta · tanh(x/beta) · sigmoid(x), and the up half through bound · tanh(up/bound).
    Situ {
        /// The bound of the gate.
        beta: f32,
        /// The bound of the up half; without it the up half is taken as it is.
        up_bound: Option<f32>,
    },
}

impl Function {
    /// The number that stands for the function in shaders. SiTU has two: with a bound and without.
    pub const fn id(&self) -> u32 {
        match self {
            Self::Silu { .. } => 0,
            Self::Gelu => 1,
            Self::GeluTanh => 2,
            Self::FatRelu { .. } => 3,
            Self::Situ { up_bound: None, .. } => 4,
            Self::Situ {
                up_bound: Some(_), ..
            } => 5,
        }
    }

    /// The name of the function in the names of kernels.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Silu { .. } => "silu",
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_tanh",
            Self::FatRelu { .. } => "fatrelu",
            Self::Situ { .. } => "situ",
        }
    }

    /// The function's parameters as kernels take them; 0 where it has fewer.
    pub const fn scalars(&self) -> [f32; 2] {
        match *self {
            Self::Silu { alpha } => [alpha, 0.0],
            Self::Gelu | Self::GeluTanh => [0.0, 0.0],
            Self::FatRelu { threshold } => [threshold, 0.0],
            Self::Situ { beta, up_bound } => match up_bound {
                Some(bound) => [beta, bound],
                None => [beta, 0.0],
            },
        }
    }

    /// The parameters to print: a name and a value, `None` for "off". A slope of 1 is not shown.
    pub(super) const fn settings(&self) -> [Option<(&'static str, Option<f32>)>; 2] {
        match *self {
            Self::Silu { alpha: 1.0 } | Self::Gelu | Self::GeluTanh => [None, None],
            Self::Silu { alpha } => [Some(("alpha", Some(alpha))), None],
            Self::FatRelu { threshold } => [Some(("threshold", Some(threshold))), None],
            Self::Situ { beta, up_bound } => {
                [Some(("beta", Some(beta))), Some(("up_bound", up_bound))]
            }
        }
    }
}

/// The operators, by vLLM's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
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
    /// [`GatedActivation::gelu_quick_and_mul`].
    GeluQuickAndMul,
    /// [`GatedActivation::fatrelu_and_mul`].
    FatReluAndMul,
    /// [`GatedActivation::swigluoai_and_mul`].
    SwigluOaiAndMul,
    /// [`GatedActivation::swiglustep_and_mul`].
    SwigluStepAndMul,
    /// [`GatedActivation::situ_and_mul`].
    SituAndMul,
}

/// An operator's name, the parameters that it takes with what its own model sets them to, and how
/// it is built from them.
pub(super) struct Row {
    pub(super) operator: Operator,
    pub(super) name: &'static str,
    pub(super) parameters: &'static [(Parameter, f32)],
    pub(super) build: fn(&Parameters) -> Result<GatedActivation>,
}

/// Every operator once. [`Parameters::get`] gives what the caller set, else the default here.
pub(super) const TABLE: [Row; 10] = [
    Row {
        operator: Operator::SiluAndMul,
        name: "silu_and_mul",
        parameters: &[],
        build: |_| Ok(GatedActivation::silu_and_mul()),
    },
    Row {
        operator: Operator::SiluAndMulWithClamp,
        name: "silu_and_mul_with_clamp",
        parameters: &[
            (Parameter::Limit, 10.0),
            (Parameter::Alpha, 1.0),
            (Parameter::Beta, 0.0),
        ],
        build: |p| {
            let (limit, alpha) = (p.number(Parameter::Limit)?, p.number(Parameter::Alpha)?);
            GatedActivation::silu_and_mul_with_clamp(limit, alpha, p.number(Parameter::Beta)?)
        },
    },
    Row {
        operator: Operator::MulAndSilu,
        name: "mul_and_silu",
        parameters: &[],
        build: |_| Ok(GatedActivation::mul_and_silu()),
    },
    Row {
        operator: Operator::GeluAndMul,
        name: "gelu_and_mul",
        parameters: &[],
        build: |_| Ok(GatedActivation::gelu_and_mul()),
    },
    Row {
        operator: Operator::GeluTanhAndMul,
        name: "gelu_tanh_and_mul",
        parameters: &[],
        build: |_| Ok(GatedActivation::gelu_tanh_and_mul()),
    },
    Row {
        operator: Operator::GeluQuickAndMul,
        name: "gelu_quick_and_mul",
        parameters: &[],
        build: |_| Ok(GatedActivation::gelu_quick_and_mul()),
    },
    Row {
        operator: Operator::FatReluAndMul,
        name: "fatrelu_and_mul",
        parameters: &[(Parameter::Threshold, 0.0)],
        build: |p| GatedActivation::fatrelu_and_mul(p.number(Parameter::Threshold)?),
    },
    Row {
        operator: Operator::SwigluOaiAndMul,
        name: "swigluoai_and_mul",
        parameters: &[(Parameter::Limit, 7.0), (Parameter::Alpha, 1.702)],
        build: |p| {
            let (limit, alpha) = (p.number(Parameter::Limit)?, p.number(Parameter::Alpha)?);
            GatedActivation::swigluoai_and_mul(limit, alpha)
        },
    },
    Row {
        operator: Operator::SwigluStepAndMul,
        name: "swiglustep_and_mul",
        parameters: &[(Parameter::Limit, 7.0)],
        build: |p| GatedActivation::swiglustep_and_mul(p.number(Parameter::Limit)?),
    },
    Row {
        operator: Operator::SituAndMul,
        name: "situ_and_mul",
        parameters: &[(Parameter::Beta, 4.0), (Parameter::UpBound, 25.0)],
        build: |p| GatedActivation::situ_and_mul(p.number(Parameter::Beta)?, p.up_bound()),
    },
];

/// Operators that others have and this family has not, each with the reason.
pub(super) const REFUSED: [(&str, &str); 1] = [(
    "gelu_and_mul_sparse",
    "it is not elementwise: its cut-off is the mean and the deviation of a whole row of the gate",
)];

impl Operator {
    /// All of them, in the table's order.
    pub const ALL: [Self; TABLE.len()] = {
        let mut all = [Self::SiluAndMul; TABLE.len()];
        let mut i = 0;
        while i < all.len() {
            all[i] = TABLE[i].operator;
            i += 1;
        }
        all
    };

    pub(super) const fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// The name, as vLLM has it.
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// Takes a name back.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|o| o.name() == name)
    }

    /// The parameters that a caller may give, with what its own model sets them to.
    pub const fn parameters(self) -> &'static [(Parameter, f32)] {
        self.row().parameters
    }
}

/// What users ask for by name.
impl GatedActivation {
    /// Every operator once with its own model's parameters, then the models' presets that differ
    /// from those.
    pub const ALL: [Self; 11] = [
        Self::silu_and_mul(),
        Self::deepseek_v4(),
        Self::mul_and_silu(),
        Self::gelu_and_mul(),
        Self::gelu_tanh_and_mul(),
        Self::gelu_quick_and_mul(),
        Self::plain(
            Operator::FatReluAndMul,
            Function::FatRelu { threshold: 0.0 },
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operator_has_its_row_and_stands_among_all() {
        for (operator, row) in Operator::ALL.into_iter().zip(&TABLE) {
            assert_eq!(operator.row().name, row.name);
            assert_eq!(Operator::from_name(row.name), Some(operator));
            let op = GatedActivation::from_name(row.name, &Parameters::default()).unwrap();
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
    fn every_function_of_the_family_has_a_number_of_its_own() {
        let mut seen = std::collections::BTreeMap::new();
        for op in GatedActivation::ALL {
            let function = op.function();
            let same = seen.entry(function.id()).or_insert(function.name());
            assert_eq!(*same, function.name());
        }
        let names: Vec<_> = seen.into_values().collect();
        assert_eq!(names, ["silu", "gelu", "gelu_tanh", "fatrelu", "situ"]);
    }
}
