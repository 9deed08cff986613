//! The models that are known, and what each one's shared expert computes.
//!
//! ## Method
//! The same keys mean different functions in different models, so `model_type` decides:
//! 1. a model of the table reads its function and its limit from the keys that the table names;
//! 2. keys that belong to another part of that model are named there too, and have no say;
//! 3. any other key that looks like a limit, an alpha or a beta of the activation is refused by
//!    name, in every model: an alpha or a beta at once, a limit unless the caller states one.

use serde_json::Value;
use swiglu_core::Limit;

use super::settings::{Settings, kind, size, string};
use crate::json::as_number;
use crate::{Error, HiddenAct, Result};

/// The limit of a model's shared experts.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelLimit {
    /// The same in all layers.
    All(Option<Limit>),
    /// One for each layer, under this key.
    ByLayer(&'static str, Vec<Option<Limit>>),
    /// The configuration does not say it in a way that is known: what is wrong with which key.
    Unstated {
        key: String,
        expected: String,
        got: String,
    },
}

/// A model of the table.
struct KnownModel {
    /// Its `model_type`s.
    names: &'static [&'static str],
    activation: ModelActivation,
    intermediate: Intermediate,
    /// Keys that look like the activation's and belong to the routed experts.
    routed: &'static [&'static str],
}

/// How a model's configuration says the activation of its shared experts.
#[derive(Clone, Copy)]
enum ModelActivation {
    /// silu, clamped at `swiglu_limit`, which must be there: null and 0 are off.
    Clamped,
    /// silu without a clamp.
    Unclamped,
    /// As [`HiddenAct::SwigluOai`], by `swiglu_limit`, `swiglu_alpha` and `swiglu_beta`.
    SwigluOai,
    /// With the limit of the layer in the list under this key.
    ByLayer(&'static str, HiddenAct),
}

/// How a model's configuration says the I of its shared experts.
#[derive(Clone, Copy)]
enum Intermediate {
    /// That of one expert, times their number.
    Each(&'static str),
    /// As [`Self::Each`], with one expert where no number is given.
    EachOfOne(&'static str),
    /// That of all together.
    Whole(&'static str),
}

const MOE: Intermediate = Intermediate::Each("moe_intermediate_size");

const KNOWN_MODELS: [KnownModel; 7] = [
    KnownModel {
        names: &[
            "deepseek_v4",
            "deepseek_v41",
            "deepseek_v41_text",
            "glm5_next",
            "glm5_next_text",
        ],
        activation: ModelActivation::Clamped,
        intermediate: MOE,
        routed: &[],
    },
    KnownModel {
        names: &["deepseek_v2", "deepseek_v3", "deepseek_v32"],
        activation: ModelActivation::Unclamped,
        intermediate: MOE,
        routed: &[],
    },
    KnownModel {
        names: &["hy_v4"],
        activation: ModelActivation::Unclamped,
        intermediate: MOE,
        routed: &["swiglu_limit"],
    },
    KnownModel {
        names: &["minimax_m3", "minimax_m3_vl", "minimax_m3_vl_text"],
        activation: ModelActivation::SwigluOai,
        intermediate: Intermediate::EachOfOne("shared_intermediate_size"),
        routed: &[],
    },
    KnownModel {
        names: &["bailing_hybrid"],
        activation: ModelActivation::ByLayer(
            "share_expert_swiglu_limit_list",
            HiddenAct::SwigluStep,
        ),
        intermediate: MOE,
        routed: &["expert_swiglu_limit_list"],
    },
    KnownModel {
        names: &["step3p5", "step3p7"],
        activation: ModelActivation::ByLayer("swiglu_limits_shared", HiddenAct::SwigluStep),
        intermediate: Intermediate::Whole("share_expert_dim"),
        routed: &["swiglu_limits"],
    },
    KnownModel {
        names: &["exaone_moe"],
        activation: ModelActivation::ByLayer("swiglu_limits", HiddenAct::Silu),
        intermediate: MOE,
        routed: &[],
    },
];

const LIMIT: &str = "swiglu_limit";
const ALPHA: &str = "swiglu_alpha";
const BETA: &str = "swiglu_beta";

/// What a model's shared expert is, but for its weights.
pub struct ModelExpert {
    pub hidden_act: HiddenAct,
    pub limit: ModelLimit,
    pub intermediate_size: usize,
    /// The setting that clamps the routed experts otherwise, where there is one.
    pub routed: Option<String>,
}

/// Reads the activation and I of a model in Hugging Face's form; `inference_form` is that of
/// DeepSeek's inference code, which has `moe_inter_dim` and, unless it says so, no `model_type`.
pub fn read(
    settings: &Settings<'_>,
    model_type: Option<&str>,
    inference_form: bool,
) -> Result<ModelExpert> {
    let named = |model: &&KnownModel| model_type.is_some_and(|name| model.names.contains(&name));
    let model = KNOWN_MODELS.iter().find(named);
    let activation = match model {
        Some(model) => model.activation,
        None if inference_form && model_type.is_none() => ModelActivation::Clamped,
        None => ModelActivation::Unclamped,
    };
    let intermediate = match model {
        _ if inference_form => Intermediate::Each("moe_inter_dim"),
        Some(model) => model.intermediate,
        None => MOE,
    };
    check_hidden_act(settings, activation, inference_form)?;
    let (hidden_act, mut limit) = activation.read(settings)?;
    let routed = model.map_or(&[][..], |model| model.routed);
    let known = |key: &str| activation.keys().contains(&key) || routed.contains(&key);
    let model = model_type.map_or("a model of no type".to_owned(), |name| format!("{name:?}"));
    for key in settings.keys().filter(|key| !known(key)) {
        let Some(role) = role(key) else { continue };
        let expected = format!("no such setting, as what it does in {model} is not known");
        match role {
            Role::Limit => {
                limit = ModelLimit::Unstated {
                    key: key.to_owned(),
                    expected: format!("{expected}, or a stated limit (--limit 10, --limit none)"),
                    got: settings.own(key).map_or_else(String::new, kind),
                };
            }
            Role::AlphaOrBeta => {
                let got = settings.own(key).map_or_else(String::new, kind);
                return Err(Error::config(key, expected, got));
            }
        }
    }
    let own = |key: &&str| routed.contains(key);
    Ok(ModelExpert {
        hidden_act,
        limit,
        routed: settings.keys().find(own).map(str::to_owned),
        intermediate_size: intermediate.read(settings)?,
    })
}

/// `hidden_act` is silu; MiniMax's own files say `swigluoai`.
fn check_hidden_act(
    settings: &Settings<'_>,
    activation: ModelActivation,
    inference_form: bool,
) -> Result<()> {
    match settings.find("hidden_act")? {
        None if inference_form => Ok(()),
        None => Err(Error::config("hidden_act", "\"silu\"", "nothing")),
        Some(value) => match (activation, string("hidden_act", value)?) {
            (ModelActivation::SwigluOai, "swigluoai") => Ok(()),
            (_, name) => name.parse::<HiddenAct>().map(drop),
        },
    }
}

impl ModelActivation {
    /// The keys that it reads.
    const fn keys(&self) -> &[&'static str] {
        match self {
            Self::Clamped => &[LIMIT],
            Self::Unclamped => &[],
            Self::SwigluOai => &[LIMIT, ALPHA, BETA],
            Self::ByLayer(key, _) => std::slice::from_ref(key),
        }
    }

    fn read(self, settings: &Settings<'_>) -> Result<(HiddenAct, ModelLimit)> {
        Ok(match self {
            Self::Clamped => (HiddenAct::Silu, one_limit(settings)?),
            Self::Unclamped => (HiddenAct::Silu, ModelLimit::All(None)),
            Self::SwigluOai => {
                // Their values in every released model, where a file leaves them out.
                let alpha = number(settings, ALPHA)?.unwrap_or(1.702);
                let beta = number(settings, BETA)?.unwrap_or(1.0);
                (HiddenAct::SwigluOai { alpha, beta }, one_limit(settings)?)
            }
            Self::ByLayer(key, act) => (act, limits_by_layer(settings, key)?),
        })
    }
}

impl Intermediate {
    fn read(self, settings: &Settings<'_>) -> Result<usize> {
        let experts = settings.find_any(&["n_shared_experts", "num_shared_experts"])?;
        let (key, experts) = match (self, experts) {
            (Self::Whole(key), _) => return settings.size(key),
            (Self::EachOfOne(key), None) => return settings.size(key),
            (Self::Each(key) | Self::EachOfOne(key), Some((name, count))) => {
                (key, (name, size(name, Some(count))?))
            }
            (Self::Each(_), None) => return size("n_shared_experts", None),
        };
        let (name, count) = experts;
        settings
            .size(key)?
            .checked_mul(count)
            .ok_or_else(|| Error::config(name, format!("{key} · {name} within range"), count))
    }
}

/// `swiglu_limit`. Where it is absent, nobody knows: the class that everyone loads the model
/// through has a default that is not off.
fn one_limit(settings: &Settings<'_>) -> Result<ModelLimit> {
    Ok(match settings.find_or_null(LIMIT)? {
        Some(value) => ModelLimit::All(limit(LIMIT, value)?),
        None => ModelLimit::Unstated {
            key: LIMIT.to_owned(),
            expected: "a number or null, or a stated limit (--limit 10, --limit none), as an \
                       absent one does not mean that there is no clamp"
                .to_owned(),
            got: "nothing".to_owned(),
        },
    })
}

fn limits_by_layer(settings: &Settings<'_>, key: &'static str) -> Result<ModelLimit> {
    let list = match settings.find(key)? {
        None => return Ok(ModelLimit::All(None)),
        Some(Value::Array(list)) => list,
        Some(other) => {
            return Err(Error::config(
                key,
                "a list with a limit a layer",
                kind(other),
            ));
        }
    };
    if list.is_empty() {
        return Ok(ModelLimit::All(None));
    }
    let entry = |(layer, value)| limit(&format!("{key}[{layer}]"), value);
    let limits = list.iter().enumerate().map(entry);
    Ok(ModelLimit::ByLayer(key, limits.collect::<Result<_>>()?))
}

fn limit(key: &str, value: &Value) -> Result<Option<Limit>> {
    if value.is_null() {
        return Ok(None);
    }
    let wrong = |got: String| {
        let expected = "a number above 0, or 0, null or infinity for none";
        Error::config(key, expected, got)
    };
    let number = as_number(value).ok_or_else(|| wrong(kind(value)))?;
    Limit::from_config(Some(number)).map_err(|_| wrong(number.to_string()))
}

fn number(settings: &Settings<'_>, key: &str) -> Result<Option<f32>> {
    let Some(value) = settings.find(key)? else {
        return Ok(None);
    };
    let number = as_number(value).map(|n| n as f32);
    let number = number.filter(|n| n.is_finite());
    let wrong = || Error::config(key, "a finite number", kind(value));
    number.map(Some).ok_or_else(wrong)
}

/// What a key that is not known to be another's seems to do to the activation.
enum Role {
    Limit,
    AlphaOrBeta,
}

fn role(key: &str) -> Option<Role> {
    const PLACES: [&str; 11] = [
        "swiglu",
        "swigluoai",
        "situ",
        "glu",
        "act",
        "activation",
        "hidden",
        "mlp",
        "ffn",
        "expert",
        "experts",
    ];
    let words = || key.split(['_', '-', '.']);
    let has = |any: &[&str]| words().any(|word| any.iter().any(|a| word.eq_ignore_ascii_case(a)));
    if !has(&PLACES) {
        None
    } else if has(&["limit", "limits", "clamp", "clamps"]) {
        Some(Role::Limit)
    } else if has(&["alpha", "alphas", "beta", "betas"]) {
        Some(Role::AlphaOrBeta)
    } else {
        None
    }
}
