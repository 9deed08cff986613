//! What a configuration says about a layer of routed experts: DeepSeek-V4's and V4.1's, as Hugging
//! Face has it or as DeepSeek's inference code does.
//!
//! ## Method
//! Reading never fails: models without such layers are read too. What is wrong is kept, and told
//! when a layer is asked for. A setting that would change what is computed is accepted with the one
//! value that is computed, and refused by its name with any other.

use serde_json::Value;

use super::settings::{Settings, kind, present, size, string};
use crate::json::as_number;
use crate::{Error, Result};

/// The models whose layers are known.
const KNOWN: [&str; 3] = ["deepseek_v4", "deepseek_v41", "deepseek_v41_text"];

/// How the weights of routed experts are said to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExpertDtype {
    /// FP4 in groups of 32.
    Fp4,
    /// FP8 in blocks.
    Fp8,
    /// Plain numbers.
    Bf16,
}

impl ExpertDtype {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Fp4, Self::Fp8, Self::Bf16];

    /// The name that configurations have.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fp4 => "fp4",
            Self::Fp8 => "fp8",
            Self::Bf16 => "bf16",
        }
    }
}

/// The routed experts of a model's layers.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelMoe {
    pub experts: usize,
    pub top_k: usize,
    /// Of one expert.
    pub intermediate: usize,
    pub scale: f32,
    pub normalize: bool,
    pub vocabulary: Option<usize>,
    pub expert_dtype: Option<ExpertDtype>,
    hash_layers: HashLayers,
    /// Experts and how many of them a token has in the drafter's layers, where they are others.
    drafter: Option<[usize; 2]>,
}

/// Which layers choose experts by a table.
#[derive(Clone, Debug, Default, PartialEq)]
struct HashLayers {
    /// The first so many.
    first: Option<usize>,
    /// Layer by layer.
    listed: Option<Vec<String>>,
}

/// What a configuration says, or why it cannot be used.
#[derive(Clone, Debug, PartialEq)]
pub enum MoeSettings {
    Known(Box<ModelMoe>),
    Refused {
        field: String,
        expected: String,
        got: String,
    },
}

impl MoeSettings {
    pub fn read(settings: &Settings<'_>, model_type: Option<&str>, inference_form: bool) -> Self {
        match ModelMoe::read(settings, model_type, inference_form) {
            Ok(moe) => Self::Known(Box::new(moe)),
            Err(Error::Config {
                field,
                expected,
                got,
            }) => Self::Refused {
                field,
                expected,
                got,
            },
            Err(other) => Self::Refused {
                field: "config".to_owned(),
                expected: "a layer of routed experts".to_owned(),
                got: other.to_string(),
            },
        }
    }

    pub fn known(&self) -> Result<&ModelMoe> {
        match self {
            Self::Known(moe) => Ok(moe),
            Self::Refused {
                field,
                expected,
                got,
            } => Err(Error::config(field, expected, got)),
        }
    }
}

impl ModelMoe {
    fn read(
        settings: &Settings<'_>,
        model_type: Option<&str>,
        inference_form: bool,
    ) -> Result<Self> {
        let known = model_type.map_or(inference_form, |name| KNOWN.contains(&name));
        if !known {
            let expected = format!("{}, whose routers are computed", KNOWN.join(", "));
            return Err(Error::config("model_type", expected, shown(model_type)));
        }
        check_routing(settings)?;
        let (name, experts) = required(settings, &["n_routed_experts", "num_local_experts"])?;
        let experts = size(name, Some(experts))?;
        let (name, top_k) = required(settings, &["num_experts_per_tok", "n_activated_experts"])?;
        let top_k = size(name, Some(top_k))?;
        let (name, scale) = required(settings, &["routed_scaling_factor", "route_scale"])?;
        let number = as_number(scale).map(|n| n as f32);
        let scale = number
            .filter(|n| n.is_finite() && *n > 0.0)
            .ok_or_else(|| Error::config(name, "a finite number above 0", kind(scale)))?;
        let normalize = match settings.find("norm_topk_prob")? {
            Some(Value::Bool(normalize)) => *normalize,
            // DeepSeek's inference code always does.
            None if inference_form => true,
            other => {
                let got = other.map_or_else(|| "nothing".to_owned(), kind);
                return Err(Error::config("norm_topk_prob", "true or false", got));
            }
        };
        let intermediate = if inference_form {
            "moe_inter_dim"
        } else {
            "moe_intermediate_size"
        };
        let vocabulary = settings.find("vocab_size")?;
        Ok(Self {
            experts,
            top_k,
            intermediate: settings.size(intermediate)?,
            scale,
            normalize,
            vocabulary: vocabulary
                .map(|v| size("vocab_size", Some(v)))
                .transpose()?,
            expert_dtype: expert_dtype(settings)?,
            hash_layers: HashLayers::read(settings)?,
            drafter: drafter(settings)?,
        })
    }

    /// Whether the layer under a prefix chooses experts by a table, where that is said.
    pub fn hashes(&self, prefix: &str) -> Result<Option<bool>> {
        if is_drafter(prefix) {
            return Ok(Some(false));
        }
        let Some(layer) = super::layer(prefix) else {
            return Ok(None);
        };
        let HashLayers { first, listed } = &self.hash_layers;
        let by_number = first.map(|first| layer < first);
        let by_list = match listed {
            None => None,
            Some(list) => {
                let field = format!("mlp_layer_types[{layer}]");
                let entry = list.get(layer).map(String::as_str);
                Some(match entry {
                    Some("hash_moe") => true,
                    Some("moe") => false,
                    other => {
                        let expected = "\"moe\" or \"hash_moe\"";
                        return Err(Error::config(field, expected, shown(other)));
                    }
                })
            }
        };
        if let (Some(a), Some(b)) = (by_number, by_list)
            && a != b
        {
            let field = format!("mlp_layer_types[{layer}]");
            let expected = format!("what num_hash_layers {} says", first.unwrap_or_default());
            let got = if b { "\"hash_moe\"" } else { "\"moe\"" };
            return Err(Error::config(field, expected, got));
        }
        Ok(by_number.or(by_list))
    }

    /// Experts of the layer under a prefix, and how many of them a token has.
    pub fn counts(&self, prefix: &str) -> [usize; 2] {
        match self.drafter {
            Some(counts) if is_drafter(prefix) => counts,
            _ => [self.experts, self.top_k],
        }
    }
}

/// Whether a prefix is of the drafter (`mtp.0.ffn`), whose layers never hash.
fn is_drafter(prefix: &str) -> bool {
    prefix.split('.').any(|part| part == "mtp")
}

fn shown(text: Option<&str>) -> String {
    text.map_or_else(|| "nothing".to_owned(), |text| format!("{text:?}"))
}

fn required<'a>(
    settings: &Settings<'a>,
    keys: &[&'static str],
) -> Result<(&'static str, &'a Value)> {
    let first = keys.first().copied().unwrap_or_default();
    let missing = || Error::config(first, "a value", "nothing");
    settings.find_any(keys)?.ok_or_else(missing)
}

/// Refuses what a router here does not compute.
fn check_routing(settings: &Settings<'_>) -> Result<()> {
    let (name, function) = required(settings, &["scoring_func", "score_func"])?;
    if string(name, function)? != "sqrtsoftplus" {
        return Err(Error::config(name, "\"sqrtsoftplus\"", kind(function)));
    }
    if let Some(method) = settings.find("topk_method")?
        && string("topk_method", method)? != "noaux_tc"
    {
        let expected = "\"noaux_tc\", or none";
        return Err(Error::config("topk_method", expected, kind(method)));
    }
    for key in [
        "n_group",
        "topk_group",
        "n_expert_groups",
        "n_limited_groups",
    ] {
        if let Some(value) = settings.find(key)?
            && !matches!(value.as_u64(), Some(0 | 1))
        {
            let expected = "0, 1 or null, as experts are not chosen by groups";
            return Err(Error::config(key, expected, kind(value)));
        }
    }
    for key in settings.keys().filter(|key| is_temperature(key)) {
        let value = settings.find(key)?;
        if value.and_then(as_number) != Some(1.0) {
            let expected = "1, as scores have no temperature";
            return Err(Error::config(
                key,
                expected,
                value.map_or_else(String::new, kind),
            ));
        }
    }
    Ok(())
}

/// Whether a setting seems to be a temperature of the router's.
fn is_temperature(key: &str) -> bool {
    const OWNERS: [&str; 7] = [
        "gate", "gating", "router", "routing", "moe", "expert", "experts",
    ];
    let words = || key.split(['_', '-', '.']);
    words().any(|word| ["temperature", "temp"].contains(&word))
        && words().any(|word| OWNERS.contains(&word))
}

/// `expert_dtype`, at the top or among the quantization's settings.
fn expert_dtype(settings: &Settings<'_>) -> Result<Option<ExpertDtype>> {
    const KEY: &str = "expert_dtype";
    let quantization = settings.find("quantization_config")?;
    let nested = quantization
        .and_then(Value::as_object)
        .and_then(|q| present(q, KEY));
    let read = |field: &str, value: &Value| {
        let name = string(field, value)?;
        let found = ExpertDtype::ALL.into_iter().find(|d| d.name() == name);
        found.ok_or_else(|| Error::config(field, "fp4, fp8 or bf16", kind(value)))
    };
    let top = settings.find(KEY)?.map(|v| read(KEY, v)).transpose()?;
    let field = format!("quantization_config.{KEY}");
    let nested = nested.map(|v| read(&field, v)).transpose()?;
    match (top, nested) {
        (Some(top), Some(nested)) if top != nested => {
            let expected = format!("{}, as {KEY} above it says", top.name());
            Err(Error::config(field, expected, nested.name()))
        }
        (top, nested) => Ok(top.or(nested)),
    }
}

impl HashLayers {
    fn read(settings: &Settings<'_>) -> Result<Self> {
        let first = settings.find_any(&["num_hash_layers", "n_hash_layers"])?;
        let first = match first {
            None => None,
            Some((key, value)) => {
                let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
                let wrong = || Error::config(key, "a whole number", kind(value));
                Some(number.ok_or_else(wrong)?)
            }
        };
        const KEY: &str = "mlp_layer_types";
        let listed = match settings.find(KEY)? {
            None => None,
            Some(Value::Array(list)) => {
                let entry = |(n, value): (usize, &Value)| {
                    string(&format!("{KEY}[{n}]"), value).map(str::to_owned)
                };
                Some(list.iter().enumerate().map(entry).collect::<Result<_>>()?)
            }
            Some(other) => {
                return Err(Error::config(
                    KEY,
                    "a list with a type a layer",
                    kind(other),
                ));
            }
        };
        Ok(Self { first, listed })
    }
}

/// The drafter's experts, where it has others than the model.
fn drafter(settings: &Settings<'_>) -> Result<Option<[usize; 2]>> {
    const EXPERTS: &str = "dspark_n_routed_experts";
    let Some(experts) = settings.find(EXPERTS)? else {
        return Ok(None);
    };
    let keys = ["dspark_num_experts_per_tok", "dspark_n_activated_experts"];
    let (name, top_k) = required(settings, &keys)?;
    let experts = size(EXPERTS, Some(experts))?;
    Ok(Some([experts, size(name, Some(top_k))?]))
}
