use base64::Engine;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The order of fields within a match, which differs from the alphabet's, and so from that of our JSON.
const MATCH: [&str; 4] = ["path", "method", "headers", "queryParams"];
const PATH: [&str; 2] = ["value", "type"];
const NAMED: [&str; 3] = ["type", "name", "value"];

/// Kuma's hash of a route rule's `matches`: what its inspect API names the rule by. SHA-256 over Go's JSON, in base64.
pub fn matches_hash(matches: &Value) -> String {
    let mut text = String::new();
    list(matches, &mut text, |matched, text| {
        object(matched, &MATCH, text, |name, value, text| match name {
            "path" => object(value, &PATH, text, |_, value, text| scalar(value, text)),
            "headers" | "queryParams" => list(value, text, |item, text| {
                object(item, &NAMED, text, |_, value, text| scalar(value, text));
            }),
            _ => scalar(value, text),
        });
    });
    base64::engine::general_purpose::STANDARD.encode(Sha256::digest(text))
}

fn list(value: &Value, text: &mut String, mut item: impl FnMut(&Value, &mut String)) {
    text.push('[');
    for (i, value) in value.as_array().into_iter().flatten().enumerate() {
        if i > 0 {
            text.push(',');
        }
        item(value, text);
    }
    text.push(']');
}

fn object(
    value: &Value,
    order: &[&str],
    text: &mut String,
    mut field: impl FnMut(&str, &Value, &mut String),
) {
    text.push('{');
    let fields = order.iter().filter_map(|name| Some((*name, value.get(name)?)));
    for (i, (name, value)) in fields.enumerate() {
        if i > 0 {
            text.push(',');
        }
        scalar(&Value::from(name), text);
        text.push(':');
        field(name, value, text);
    }
    text.push('}');
}

/// Go escapes what HTML would read as markup.
fn scalar(value: &Value, text: &mut String) {
    for c in value.to_string().chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => text.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn hashes_are_kumas() {
        let exact = json!([{ "path": { "type": "Exact", "value": "/" } }]);
        assert_eq!(matches_hash(&exact), "JNNc6//C3P17nUsOJm5f4kqG+U3v8pXhS0od9C3+oss=");
        let two = json!([{ "path": { "type": "PathPrefix", "value": "/v1" } }, { "method": "POST" }]);
        assert_eq!(matches_hash(&two), "OTqJZOueoDIMeYnpSETLYoaD2htefPQ7CcHHRBgrODk=");
    }
}
