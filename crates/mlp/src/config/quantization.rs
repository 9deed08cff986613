//! What a configuration says about quantized weights.

use serde_json::{Map, Value};

use super::settings::{Settings, kind, present};
use crate::{Error, MlpConfig, Result};

/// Rows and columns that share a scale, where weights are quantized.
pub fn block(settings: &Settings<'_>, inference_form: bool) -> Result<Option<[usize; 2]>> {
    match settings.find("quantization_config")? {
        Some(Value::Object(q)) => hugging_face_block(q).map(Some),
        Some(other) => {
            let expected = "an object or null";
            Err(Error::config("quantization_config", expected, kind(other)))
        }
        None if inference_form => deepseek_block(settings),
        None => Ok(None),
    }
}

/// Refuses a setting that is there with another value than the one that this library computes.
fn only(key: &str, value: Option<&Value>, accepted: &[&str]) -> Result<()> {
    match value {
        None => Ok(()),
        Some(Value::String(text)) if accepted.contains(&text.as_str()) => Ok(()),
        Some(other) => Err(Error::config(key, accepted.join(" or "), kind(other))),
    }
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
    for (field, accepted) in [
        ("fmt", "e4m3"),
        ("activation_scheme", "dynamic"),
        ("scale_fmt", "ue8m0"),
    ] {
        only(&format!("{GROUP}{field}"), present(q, field), &[accepted])?;
    }
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

/// The form of DeepSeek's inference code: `dtype` "fp8" means blocks of 128 x 128.
fn deepseek_block(settings: &Settings<'_>) -> Result<Option<[usize; 2]>> {
    let dtype = settings.find("dtype")?;
    only("dtype", dtype, &["fp8", "bf16"])?;
    only("scale_fmt", settings.find("scale_fmt")?, &["ue8m0"])?;
    Ok(dtype.is_some_and(|v| v == "fp8").then_some([128, 128]))
}
