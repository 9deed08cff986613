//! What plain `serde_json` does not do: names that may stand only once, and Python's numbers.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

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
                .map_err(|e| A::Error::custom(format!("{name}: {e}")))?;
            if entries.contains_key(&name) {
                return Err(A::Error::custom(format!("{name} stands twice")));
            }
            entries.insert(name, value);
        }
        Ok(UniqueMap(entries))
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
pub fn as_number(value: &serde_json::Value) -> Option<f64> {
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
        let value: serde_json::Value = serde_json::from_str(&mark_python_numbers(text)).unwrap();
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
}
