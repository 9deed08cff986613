//! What a configuration says about quantized weights. What it leaves open the tensors say
//! themselves: their types, and the shapes of their scales.

use serde_json::{Map, Value};

use super::settings::{Settings, kind, present};
use crate::{Error, MlpConfig, Result};

/// How weights are quantized, as far as a configuration says it.
#[derive(Default)]
pub struct WeightQuantization {
    /// Rows and columns that share a scale.
    pub block: Option<[usize; 2]>,
    /// Whether scales are UE8M0.
    pub ue8m0: bool,
}

pub fn read(settings: &Settings<'_>, inference_form: bool) -> Result<WeightQuantization> {
    match settings.find("quantization_config")? {
        Some(Value::Object(q)) => hugging_face(q),
        Some(other) => {
            let expected = "an object or null";
            Err(Error::config("quantization_config", expected, kind(other)))
        }
        None if inference_form => deepseek(settings),
        None => Ok(WeightQuantization::default()),
    }
}

/// Refuses a setting that is there with another value than those that this library computes.
fn only(key: &str, value: Option<&Value>, accepted: &[&str]) -> Result<()> {
    match value {
        None => Ok(()),
        Some(Value::String(text)) if accepted.contains(&text.as_str()) => Ok(()),
        Some(other) => Err(Error::config(key, accepted.join(" or "), kind(other))),
    }
}

/// Whether scales are UE8M0: otherwise they are numbers, which transformers calls "float".
fn ue8m0(key: &str, value: Option<&Value>) -> Result<bool> {
    only(key, value, &["ue8m0", "float"])?;
    Ok(value.is_some_and(|v| v == "ue8m0"))
}

const GROUP: &str = "quantization_config.";

/// `quantization_config`. Methods other than `fp8` may have left the MLP's own weights as plain
/// numbers or FP8 with scales: that is for the tensors to say, whose names tell other methods'.
fn hugging_face(q: &Map<String, Value>) -> Result<WeightQuantization> {
    // Rotations of the activations leave weights that look like any others.
    if let Some(transform) = present(q, "transform_config").filter(|v| !is_empty(v)) {
        let key = format!("{GROUP}transform_config");
        return Err(Error::config(
            key,
            "none, as it is not computed",
            kind(transform),
        ));
    }
    let method = present(q, "quant_method").and_then(Value::as_str);
    let fp8 = matches!(method, Some("fp8" | "deepseek_v4_fp8"));
    let scale_fmt = present(q, "scale_fmt");
    if !fp8 {
        return Ok(WeightQuantization {
            block: None,
            ue8m0: scale_fmt.is_some_and(|v| v == "ue8m0"),
        });
    }
    only(&format!("{GROUP}fmt"), present(q, "fmt"), &["e4m3"])?;
    // How activations were quantized does not touch the weights.
    let scheme = present(q, "activation_scheme");
    only(
        &format!("{GROUP}activation_scheme"),
        scheme,
        &["dynamic", "static"],
    )?;
    let block = present(q, "weight_block_size").map(block).transpose()?;
    let ue8m0 = ue8m0(&format!("{GROUP}scale_fmt"), scale_fmt)?;
    Ok(WeightQuantization { block, ue8m0 })
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

fn block(value: &Value) -> Result<[usize; 2]> {
    let side = |v: &Value| {
        let n = v.as_u64().and_then(|n| usize::try_from(n).ok());
        n.filter(|n| (1..=MlpConfig::MAX_BLOCK).contains(n))
    };
    match value.as_array().map(Vec::as_slice) {
        Some([r, c]) => side(r).zip(side(c)).map(|(r, c)| [r, c]),
        _ => None,
    }
    .ok_or_else(|| {
        let expected = format!("two sides of 1 to {}", MlpConfig::MAX_BLOCK);
        Error::config(format!("{GROUP}weight_block_size"), expected, value)
    })
}

/// The form of DeepSeek's inference code, which leaves the block to the model: 128 x 128 of V4,
/// 32 x 32 of V4.1. The shapes of the scales tell them.
fn deepseek(settings: &Settings<'_>) -> Result<WeightQuantization> {
    only("dtype", settings.find("dtype")?, &["fp8", "bf16"])?;
    let ue8m0 = ue8m0("scale_fmt", settings.find("scale_fmt")?)?;
    Ok(WeightQuantization { block: None, ue8m0 })
}
