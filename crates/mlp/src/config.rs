//! What a model's `config.json` says about its MLP.

use std::path::Path;

use serde_json::Value;
use swiglu_core::{Limit, Rounding};

use crate::checkpoint::read_text;
use crate::json::{UniqueValue, mark_python_numbers};
use crate::{ActivationQuant, Error, HiddenAct, MlpConfig, MoeConfig, Result, Shard};

mod models;
mod moe;
mod quantization;
mod settings;

pub use moe::ExpertDtype;

use models::ModelLimit;
use moe::MoeSettings;
use settings::{Settings, kind, string};

/// The sizes, the activation and the quantization of a model's shared experts.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// `model_type`, such as `deepseek_v4`, where it is given: the language model's own.
    pub model_type: Option<String>,
    /// Elements in a row of the MLP's input (H).
    pub hidden_size: usize,
    /// Elements in a row of `act` (I), of all shared experts together.
    pub intermediate_size: usize,
    /// The activation, which follows from `model_type`.
    pub hidden_act: HiddenAct,
    /// Rows and columns that share a scale, where it says so of quantized weights.
    pub block: Option<[usize; 2]>,
    /// Whether it says that scales are UE8M0.
    pub ue8m0: bool,
    limit: ModelLimit,
    /// The setting that clamps the routed experts otherwise than the shared ones.
    routed: Option<String>,
    /// Its layers of routed experts.
    moe: MoeSettings,
}

impl ModelConfig {
    /// Reads `config.json`: as Hugging Face has it, its MLP at the top or under `text_config`, or
    /// as DeepSeek's inference code has it (`dim`, `moe_inter_dim`, `dtype`).
    ///
    /// # Errors
    /// A file that cannot be read, and whatever [`Self::from_json`] refuses.
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::from_json(&read_text(path)?).map_err(|source| Error::ConfigFile {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// Reads the text of a `config.json`. A byte order mark is skipped, and Python's
    /// `NaN` and `Infinity` are numbers. What the
    /// activation is follows from `model_type`: the same keys mean different things in different
    /// models.
    ///
    /// # Errors
    /// Text that is no JSON object, or in which a name stands twice; a size that is missing, 0 or
    /// too large; an activation other than `silu`; a limit that is NaN, negative or text; a key
    /// that changes the activation in a way that is not known; a setting with two values, at the
    /// top and under `text_config`; a quantization whose weights would not be what they seem.
    pub fn from_json(text: &str) -> Result<Self> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let UniqueValue(root) = serde_json::from_str(&mark_python_numbers(text))
            .map_err(|e| Error::config("config", "JSON", e))?;
        let Value::Object(root) = root else {
            return Err(Error::config("config", "a JSON object", kind(&root)));
        };
        let settings = Settings::new(&root)?;
        let named = settings.find("hidden_size")?;
        let inference_form = named.is_none() && settings.find("dim")?.is_some();
        let model_type = settings
            .own("model_type")
            .map(|v| string("model_type", v).map(str::to_owned))
            .transpose()?;
        let quantization = quantization::read(&settings, inference_form)?;
        let expert = models::read(&settings, model_type.as_deref(), inference_form)?;
        let moe = MoeSettings::read(&settings, model_type.as_deref(), inference_form);
        Ok(Self {
            moe,
            model_type,
            hidden_size: settings.size(if inference_form { "dim" } else { "hidden_size" })?,
            intermediate_size: expert.intermediate_size,
            hidden_act: expert.hidden_act,
            block: quantization.block,
            ue8m0: quantization.ue8m0,
            limit: expert.limit,
            routed: expert.routed,
        })
    }

    /// The limit of the shared expert under `prefix`, which names its layer
    /// (`model.layers.3.mlp.shared_experts`); null, 0 and infinity are `None`.
    ///
    /// # Errors
    /// A configuration that does not say it: an absent `swiglu_limit` where the model's class has
    /// one by default, a key that looks like a limit in a model that is not known, a layer that has
    /// no entry in the list of limits, or a routed expert where those have limits of their own.
    pub fn limit(&self, prefix: &str) -> Result<Option<Limit>> {
        if let Some(key) = &self.routed
            && prefix.split('.').any(|part| part == "experts")
        {
            let expected = "a stated limit (--limit 10, --limit none) for a routed expert, which \
                            this setting clamps otherwise than the shared ones";
            return Err(Error::config(key, expected, "none"));
        }
        match &self.limit {
            ModelLimit::All(limit) => Ok(*limit),
            ModelLimit::ByLayer(key, limits) => {
                let layer = layer(prefix).ok_or_else(|| {
                    let expected = format!("a layer's number (layers.3), which {key} goes by");
                    Error::config("prefix", expected, prefix)
                })?;
                limits.get(layer).copied().ok_or_else(|| {
                    let expected = format!("an entry for layer {layer}");
                    Error::config(*key, expected, format!("{} entries", limits.len()))
                })
            }
            ModelLimit::Unstated { key, expected, got } => Err(Error::config(key, expected, got)),
        }
    }

    /// The whole MLP under `prefix`, in one place, with the model's limit and bf16 activations.
    ///
    /// # Errors
    /// As [`Self::limit`].
    pub fn mlp_config(&self, prefix: &str) -> Result<MlpConfig> {
        Ok(self.mlp_config_with_limit(prefix, self.limit(prefix)?))
    }

    /// As [`Self::mlp_config`], with a limit that the caller states, whatever the model's is.
    pub fn mlp_config_with_limit(&self, prefix: &str, limit: Option<Limit>) -> MlpConfig {
        MlpConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            hidden_act: self.hidden_act,
            limit,
            rounding: Rounding::default(),
            block: self.block,
            ue8m0: self.ue8m0,
            activation_quant: ActivationQuant::None,
            reduce_results: true,
            shard: Shard::WHOLE,
            prefix: prefix.to_owned(),
        }
    }
}

impl ModelConfig {
    /// The whole layer under `prefix` (`layers.3.ffn`, `model.layers.3.mlp`): its router, its routed
    /// experts and its shared one, with the model's limit and bf16 activations.
    ///
    /// # Errors
    /// As [`Self::limit`]; a model whose routers are not known; a setting that is missing, or whose
    /// value is none of those that are computed; settings that contradict one another.
    pub fn moe_config(&self, prefix: &str) -> Result<MoeConfig> {
        self.moe_config_with_limit(prefix, self.limit(prefix)?)
    }

    /// As [`Self::moe_config`], with a limit that the caller states, whatever the model's is.
    ///
    /// # Errors
    /// As [`Self::moe_config`].
    pub fn moe_config_with_limit(&self, prefix: &str, limit: Option<Limit>) -> Result<MoeConfig> {
        let moe = self.moe.known()?;
        let [experts, top_k] = moe.counts(prefix);
        Ok(MoeConfig {
            shared: self.mlp_config_with_limit(&format!("{prefix}.shared_experts"), limit),
            prefix: prefix.to_owned(),
            experts,
            top_k,
            scale: moe.scale,
            normalize: moe.normalize,
            hashes: moe.hashes(prefix)?,
            vocab_size: moe.vocabulary,
            intermediate_size: moe.intermediate,
            expert_dtype: moe.expert_dtype,
        })
    }
}

/// The number after `layers` in the name of a tensor or what it begins with.
fn layer(prefix: &str) -> Option<usize> {
    let mut parts = prefix.split('.').skip_while(|part| *part != "layers");
    parts.nth(1)?.parse().ok()
}
