//! Looking settings up in a configuration of one level or two, and reading them.

use serde_json::{Map, Value};

use crate::json::as_number;
use crate::{Error, Result};

/// The settings of the language model: those at the top, and in a model of several modalities
/// those under `text_config` as well.
pub struct Settings<'a> {
    top: &'a Map<String, Value>,
    text: Option<&'a Map<String, Value>>,
}

impl<'a> Settings<'a> {
    pub fn new(top: &'a Map<String, Value>) -> Result<Self> {
        let text = match present(top, "text_config") {
            None => None,
            Some(Value::Object(text)) => Some(text),
            Some(other) => return Err(Error::config("text_config", "an object", kind(other))),
        };
        Ok(Self { top, text })
    }

    /// The levels, the language model's own first.
    fn levels(&self) -> impl Iterator<Item = &'a Map<String, Value>> + use<'a> {
        self.text.into_iter().chain([self.top])
    }

    /// The value of a setting; null is none.
    ///
    /// # Errors
    /// Two levels that say different things.
    pub fn find(&self, key: &str) -> Result<Option<&'a Value>> {
        agreed(key, self.levels().filter_map(|level| present(level, key)))
    }

    /// As [`Self::find`], for a setting where null says something else than nothing does.
    pub fn find_or_null(&self, key: &str) -> Result<Option<&'a Value>> {
        agreed(key, self.levels().filter_map(|level| level.get(key)))
    }

    /// The value of a setting that may differ between the levels: the language model's own.
    pub fn own(&self, key: &str) -> Option<&'a Value> {
        self.levels().find_map(|level| present(level, key))
    }

    /// The value of a setting that has several names.
    pub fn find_any(&self, keys: &[&'static str]) -> Result<Option<(&'static str, &'a Value)>> {
        let mut found: Option<(&'static str, &Value)> = None;
        for &key in keys {
            match (self.find(key)?, found) {
                (Some(value), Some((other, first))) if !same(value, first) => {
                    let expected = format!("{}, as {other} says", kind(first));
                    return Err(Error::config(key, expected, kind(value)));
                }
                (Some(value), None) => found = Some((key, value)),
                _ => {}
            }
        }
        Ok(found)
    }

    /// The names of all settings that are not null.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let of = |level: &'a Map<String, Value>| level.iter().filter(|(_, v)| !v.is_null());
        self.levels().flat_map(of).map(|(key, _)| key.as_str())
    }

    /// A whole number above 0.
    pub fn size(&self, key: &str) -> Result<usize> {
        size(key, self.find(key)?)
    }
}

/// The one value that all say, if any says one.
fn agreed<'a>(key: &str, mut values: impl Iterator<Item = &'a Value>) -> Result<Option<&'a Value>> {
    let Some(first) = values.next() else {
        return Ok(None);
    };
    match values.find(|value| !same(value, first)) {
        None => Ok(Some(first)),
        Some(other) => {
            let got = format!(
                "{} under text_config and {} above it",
                kind(first),
                kind(other)
            );
            Err(Error::config(key, "one value at both levels", got))
        }
    }
}

fn same(a: &Value, b: &Value) -> bool {
    a == b || as_number(a).zip(as_number(b)).is_some_and(|(a, b)| a == b)
}

/// The value of a setting; null is none.
pub fn present<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    map.get(key).filter(|v| !v.is_null())
}

/// A value as an error names it.
pub fn kind(value: &Value) -> String {
    match value {
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(_) => as_number(value).map_or_else(|| value.to_string(), |n| n.to_string()),
        other => other.to_string(),
    }
}

pub fn string<'a>(key: &str, value: &'a Value) -> Result<&'a str> {
    let wrong = || Error::config(key, "a string", kind(value));
    value.as_str().ok_or_else(wrong)
}

pub fn size(key: &str, value: Option<&Value>) -> Result<usize> {
    let number = value.and_then(Value::as_u64);
    let number = number.and_then(|n| usize::try_from(n).ok());
    number.filter(|&n| n > 0).ok_or_else(|| {
        let got = value.map_or_else(|| "nothing".to_owned(), kind);
        Error::config(key, "a whole number above 0", got)
    })
}
