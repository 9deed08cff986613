//! What a model's `config.json` says about its MLP.

use std::path::Path;

use serde_json::{Map, Value};
use swiglu_core::{Limit, Rounding};

use crate::json::{as_number, mark_python_numbers};
use crate::{ActivationQuant, Error, HiddenAct, MlpConfig, Result, Shard};

/// The sizes, the activation and the quantization of a model's shared experts.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// `model_type`, such as `deepseek_v4`, where it is given.
    pub model_type: Option<String>,
    /// Elements in a row of the MLP's input (H).
    pub hidden_size: usize,
    /// `moe_intermediate_size` · `n_shared_experts` (I).
    pub intermediate_size: usize,
    /// The activation.
    pub hidden_act: HiddenAct,
    /// `swiglu_limit`; absent, null, 0 and infinity are `None`.
    pub limit: Option<Limit>,
    /// Rows and columns that share a scale, where weights are quantized.
    pub block: Option<[usize; 2]>,
}

/// The names of the sizes in one of the two forms of the file.
struct SizeKeys {
    hidden: &'static str,
    intermediate: &'static str,
}

/// Hugging Face's form.
const HUGGING_FACE: SizeKeys = SizeKeys {
    hidden: "hidden_size",
    intermediate: "moe_intermediate_size",
};
/// The form of DeepSeek's own inference code.
const DEEPSEEK: SizeKeys = SizeKeys {
    hidden: "dim",
    intermediate: "moe_inter_dim",
};

impl ModelConfig {
    /// Reads `config.json`: as Hugging Face has it, its MLP at the top or under `text_config`, or
    /// as DeepSeek's inference code has it (`dim`, `moe_inter_dim`, `dtype`).
    ///
    /// # Errors
    /// A file that cannot be read, and whatever [`Self::from_json`] refuses.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        Self::from_json(&text).map_err(|source| Error::ConfigFile {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// Reads the text of a `config.json`. Python's `NaN` and `Infinity` are numbers here.
    ///
    /// # Errors
    /// Text that is no JSON object; a size that is missing, 0 or too large; an activation other than
    /// `silu`; a limit that is NaN or negative; a quantization that is not known.
    pub fn from_json(text: &str) -> Result<Self> {
        let root: Value = serde_json::from_str(&mark_python_numbers(text))
            .map_err(|e| Error::config("config", "JSON", e))?;
        let Value::Object(root) = root else {
            return Err(Error::config("config", "a JSON object", kind(&root)));
        };
        // Models of several modalities keep the language model's settings a level down.
        let text = match root.get("text_config") {
            Some(Value::Object(nested)) if !root.contains_key("hidden_size") => nested,
            _ => &root,
        };
        let keys = if text.contains_key(DEEPSEEK.hidden) && !text.contains_key(HUGGING_FACE.hidden)
        {
            DEEPSEEK
        } else {
            HUGGING_FACE
        };
        let each = size(text, keys.intermediate)?;
        let experts = size(text, "n_shared_experts")?;
        let intermediate_size = each.checked_mul(experts).ok_or_else(|| {
            let expected = format!("{} · n_shared_experts within range", keys.intermediate);
            Error::config("n_shared_experts", expected, experts)
        })?;
        let quantized = present(text, "quantization_config");
        let block = match quantized.or_else(|| present(&root, "quantization_config")) {
            Some(Value::Object(q)) => Some(hugging_face_block(q)?),
            Some(other) => {
                let expected = "an object or null";
                return Err(Error::config("quantization_config", expected, kind(other)));
            }
            None if keys.hidden == DEEPSEEK.hidden => deepseek_block(text)?,
            None => None,
        };
        let act = match present(text, "hidden_act") {
            None if keys.hidden == DEEPSEEK.hidden => HiddenAct::Silu,
            None => return Err(Error::config("hidden_act", "\"silu\"", "nothing")),
            Some(value) => string("hidden_act", value)?.parse()?,
        };
        let model_type = present(text, "model_type")
            .map(|v| string("model_type", v).map(str::to_owned))
            .transpose()?;
        Ok(Self {
            model_type,
            hidden_size: size(text, keys.hidden)?,
            intermediate_size,
            hidden_act: act,
            limit: limit(text)?,
            block,
        })
    }

    /// The whole MLP under `prefix`, in one place, with the model's limit and bf16 activations.
    pub fn mlp_config(&self, prefix: &str) -> MlpConfig {
        MlpConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            hidden_act: self.hidden_act,
            limit: self.limit,
            rounding: Rounding::default(),
            block: self.block,
            activation_quant: ActivationQuant::None,
            reduce_results: true,
            shard: Shard::WHOLE,
            prefix: prefix.to_owned(),
        }
    }
}

/// The value of a setting; null is none.
fn present<'a>(map: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    map.get(name).filter(|v| !v.is_null())
}

fn kind(value: &Value) -> String {
    match value {
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        other => other.to_string(),
    }
}

fn string<'a>(field: &str, value: &'a Value) -> Result<&'a str> {
    let wrong = || Error::config(field, "a string", kind(value));
    value.as_str().ok_or_else(wrong)
}

fn size(map: &Map<String, Value>, field: &str) -> Result<usize> {
    let number = map.get(field).and_then(Value::as_u64);
    let number = number.and_then(|n| usize::try_from(n).ok());
    number.filter(|&n| n > 0).ok_or_else(|| {
        let got = map.get(field).map_or_else(|| "nothing".to_owned(), kind);
        Error::config(field, "a whole number above 0", got)
    })
}

fn limit(map: &Map<String, Value>) -> Result<Option<Limit>> {
    const FIELD: &str = "swiglu_limit";
    let Some(value) = present(map, FIELD) else {
        return Ok(None);
    };
    let expected = "a number above 0, or 0, null or infinity for none";
    let Some(number) = as_number(value) else {
        return Err(Error::config(FIELD, expected, kind(value)));
    };
    Limit::from_config(Some(number)).map_err(|_| Error::config(FIELD, expected, number))
}

/// Refuses a setting that is there with another value than the one that this library computes.
fn only(map: &Map<String, Value>, group: &str, field: &str, accepted: &[&str]) -> Result<()> {
    let Some(value) = present(map, field) else {
        return Ok(());
    };
    if value.as_str().is_some_and(|v| accepted.contains(&v)) {
        return Ok(());
    }
    let field = format!("{group}{field}");
    Err(Error::config(field, accepted.join(" or "), kind(value)))
}

/// `quantization_config` with `quant_method` "fp8".
fn hugging_face_block(q: &Map<String, Value>) -> Result<[usize; 2]> {
    const GROUP: &str = "quantization_config.";
    let method = present(q, "quant_method").and_then(Value::as_str);
    if method != Some("fp8") {
        let got = q
            .get("quant_method")
            .map_or_else(|| "nothing".to_owned(), kind);
        return Err(Error::config(
            format!("{GROUP}quant_method"),
            "\"fp8\"",
            got,
        ));
    }
    only(q, GROUP, "fmt", &["e4m3"])?;
    only(q, GROUP, "activation_scheme", &["dynamic"])?;
    only(q, GROUP, "scale_fmt", &["ue8m0"])?;
    let sides = present(q, "weight_block_size").and_then(Value::as_array);
    let side = |v: &Value| {
        let n = v.as_u64().and_then(|n| usize::try_from(n).ok());
        n.filter(|n| (1..=MlpConfig::MAX_BLOCK).contains(n))
    };
    match sides.map(Vec::as_slice) {
        Some([r, c]) => side(r).zip(side(c)).map(|(r, c)| [r, c]),
        _ => None,
    }
    .ok_or_else(|| {
        let got = q
            .get("weight_block_size")
            .map_or("nothing".to_owned(), Value::to_string);
        let expected = format!("two sides of 1 to {}", MlpConfig::MAX_BLOCK);
        Error::config(format!("{GROUP}weight_block_size"), expected, got)
    })
}

/// DeepSeek's own form: `dtype` "fp8" means blocks of 128 x 128.
fn deepseek_block(map: &Map<String, Value>) -> Result<Option<[usize; 2]>> {
    only(map, "", "dtype", &["fp8", "bf16"])?;
    only(map, "", "scale_fmt", &["ue8m0"])?;
    let fp8 = present(map, "dtype").is_some_and(|v| v == "fp8");
    Ok(fp8.then_some([128, 128]))
}
