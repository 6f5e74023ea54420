//! Text into JSON values. A key given twice is refused: which of the two holds is nobody's guess.

use super::Problem;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

/// One document as text (YAML or JSON) into its JSON.
pub fn parse_text(text: &str) -> Result<Value, Problem> {
    let mut documents = documents(text)?;
    match (documents.pop(), documents.is_empty()) {
        (Some(document), true) => Ok(document),
        (None, _) => Err(Problem::unreadable("there is no document")),
        (Some(_), false) => Err(Problem::unreadable("there are several documents where one was expected")),
    }
}

/// All documents of a text: several YAML documents, a JSON list, a Kubernetes `List`; empty ones are left out.
pub fn split(text: &str) -> Result<Vec<Value>, Problem> {
    let mut all = Vec::new();
    for document in documents(text)? {
        match document {
            Value::Array(items) => all.extend(items),
            Value::Object(mut fields) if fields.get("kind").and_then(Value::as_str) == Some("List") => {
                match fields.remove("items") {
                    Some(Value::Array(items)) => all.extend(items),
                    _ => return Err(Problem::unreadable("a List must have \"items\"")),
                }
            }
            document => all.push(document),
        }
    }
    Ok(all)
}

fn documents(text: &str) -> Result<Vec<Value>, Problem> {
    let text = text.trim_start_matches('\u{feff}');
    // JSON has its own parser: its errors are better, and it takes what YAML's flow style does not (tabs).
    if text.trim_start().starts_with(['{', '[']) {
        match serde_json::from_str::<Strict>(text) {
            Ok(Strict(value)) => return Ok(vec![value]),
            Err(error) if error.is_data() => return Err(Problem::unreadable(error.to_string())),
            Err(json) => return yaml(text).map_err(|_| Problem::unreadable(json.to_string())),
        }
    }
    yaml(text)
}

fn yaml(text: &str) -> Result<Vec<Value>, Problem> {
    let options = serde_saphyr::options! { strict_booleans: true };
    let documents: Vec<Strict> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| Problem::unreadable(error.to_string()))?;
    Ok(documents.into_iter().map(|Strict(value)| value).filter(|value| !value.is_null()).collect())
}

/// A JSON value whose objects have each key once.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON can hold")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        let number = serde_json::Number::from_f64(value);
        number.map(Value::Number).ok_or_else(|| E::custom("infinite numbers and NaN are not allowed"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = list.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some((key, Strict(value))) = map.next_entry::<String, _>()? {
            if fields.contains_key(&key) {
                return Err(A::Error::custom(format!("the key {key:?} is there twice")));
            }
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }
}

/// A variable that a text uses and nobody gave.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the variable {0} is used and not given")]
pub struct MissingVariable(pub String);

/// Replaces `{{ name }}` by its variable, as Kuma's command line does. What is not a plain name (`{{ .DisplayName }}` of a
/// HostnameGenerator) is no variable and stays.
///
/// # Errors
/// A variable that is not given.
pub fn substitute(text: &str, variables: &[(String, String)]) -> Result<String, MissingVariable> {
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    };
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((inner, tail)) = after.split_once("}}") else { break };
        out.push_str(before);
        let name = inner.trim();
        if is_name(name) {
            let value = variables.iter().find(|(key, _)| key == name).map(|(_, value)| value);
            out.push_str(value.ok_or_else(|| MissingVariable(name.to_owned()))?);
        } else {
            out.push_str("{{");
            out.push_str(inner);
            out.push_str("}}");
        }
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}
