//! What plain `serde_json` does not do: names that may stand only once, and Python's numbers.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};

use crate::text;

/// A JSON object in which a name that stands twice is an error, and errors say under which name.
#[derive(Debug)]
pub struct UniqueMap<V>(pub BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueVisitor(PhantomData))
    }
}

struct UniqueVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for UniqueVisitor<V> {
    type Value = UniqueMap<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map
                .next_value()
                .map_err(|e| A::Error::custom(format!("{}: {e}", text::name(&name))))?;
            if entries.contains_key(&name) {
                return Err(A::Error::custom(format!(
                    "{} stands twice",
                    text::name(&name)
                )));
            }
            entries.insert(name, value);
        }
        Ok(UniqueMap(entries))
    }
}

/// Any JSON value, in whose objects, at any depth, a name that stands twice is an error.
#[derive(Debug)]
pub struct UniqueValue(pub Value);

impl<'de> Deserialize<'de> for UniqueValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = UniqueValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<UniqueValue, E> {
        Ok(UniqueValue(Value::Null))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<UniqueValue, E> {
        Ok(UniqueValue(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<UniqueValue, E> {
        Ok(UniqueValue(value.into()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<UniqueValue, E> {
        Ok(UniqueValue(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<UniqueValue, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number out of range"))?;
        Ok(UniqueValue(Value::Number(number)))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<UniqueValue, E> {
        Ok(UniqueValue(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<UniqueValue, A::Error> {
        let mut values = Vec::new();
        while let Some(UniqueValue(value)) = seq.next_element()? {
            values.push(value);
        }
        Ok(UniqueValue(Value::Array(values)))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<UniqueValue, A::Error> {
        let UniqueMap(entries) = UniqueVisitor(PhantomData::<UniqueValue>).visit_map(map)?;
        let entries = entries.into_iter().map(|(name, UniqueValue(v))| (name, v));
        Ok(UniqueValue(Value::Object(entries.collect())))
    }
}

/// What stands for a number that JSON lacks: a string that no model's configuration holds.
const MARK: &str = "\u{0}number ";

/// Python writes `NaN`, `Infinity` and `-Infinity` for numbers that JSON lacks. Puts strings in
/// their place which [`as_number`] reads back.
pub fn mark_python_numbers(text: &str) -> Cow<'_, str> {
    const TOKENS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    let mut out = String::new();
    let mut copied = 0;
    let mut at = 0;
    let (mut in_string, mut escaped) = (false, false);
    let bytes = text.as_bytes();
    while at < bytes.len() {
        let byte = bytes[at];
        if in_string {
            (in_string, escaped) = (escaped || byte != b'"', byte == b'\\' && !escaped);
        } else if byte == b'"' {
            in_string = true;
        } else if let Some(token) = TOKENS
            .iter()
            .find(|t| bytes[at..].starts_with(t.as_bytes()))
        {
            out.push_str(&text[copied..at]);
            out.push_str("\"\\u0000number ");
            out.push_str(token);
            out.push('"');
            at += token.len();
            copied = at;
            continue;
        }
        at += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

/// The number that a value is, Python's included.
pub fn as_number(value: &Value) -> Option<f64> {
    match value.as_str().and_then(|s| s.strip_prefix(MARK)) {
        Some("NaN") => Some(f64::NAN),
        Some("Infinity") => Some(f64::INFINITY),
        Some("-Infinity") => Some(f64::NEG_INFINITY),
        _ => value.as_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pythons_numbers_are_read_outside_strings_only() {
        let text = r#"{"a": NaN, "b": [Infinity,-Infinity], "c": "NaN \" Infinity", "d\\": NaN, "é": 1.5}"#;
        let value: Value = serde_json::from_str(&mark_python_numbers(text)).unwrap();
        assert!(as_number(&value["a"]).unwrap().is_nan());
        assert_eq!(as_number(&value["b"][0]), Some(f64::INFINITY));
        assert_eq!(as_number(&value["b"][1]), Some(f64::NEG_INFINITY));
        assert_eq!(value["c"], "NaN \" Infinity");
        assert_eq!(as_number(&value["c"]), None);
        assert!(as_number(&value["d\\"]).unwrap().is_nan());
        assert_eq!(as_number(&value["é"]), Some(1.5));
    }

    #[test]
    fn a_name_stands_once() {
        let twice = serde_json::from_str::<UniqueMap<u8>>(r#"{"a": 1, "a": 1}"#);
        assert!(twice.unwrap_err().to_string().starts_with("a stands twice"));
        let wrong = serde_json::from_str::<UniqueMap<u8>>(r#"{"a": -1}"#);
        assert!(wrong.unwrap_err().to_string().starts_with("a: "));
    }

    #[test]
    fn a_name_stands_once_at_any_depth() {
        let read = |text: &str| serde_json::from_str::<UniqueValue>(text).map(|v| v.0);
        let text = r#"{"a": [null, true, -1, 2, 0.5, "x", {"b": 1e300}], "c": {}}"#;
        assert_eq!(
            read(text).unwrap(),
            serde_json::from_str::<Value>(text).unwrap()
        );
        let error = read(r#"{"a": [1, {"b": {"c": 1, "d": 2, "c": 1}}]}"#).unwrap_err();
        assert!(error.to_string().contains("c stands twice"), "{error}");
        assert!(read(&"[".repeat(100_000)).is_err());
    }
}
