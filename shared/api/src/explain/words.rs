//! Configurations in a line.

use serde_json::Value;

/// `http request timeout 2s, idle timeout 1h0m0s`: the fields of a configuration in words, whatever its kind.
pub(super) fn conf(value: &Value) -> String {
    let mut said = Vec::new();
    collect(value, &mut Vec::new(), &mut said);
    if said.is_empty() { "nothing in particular".to_owned() } else { said.join(", ") }
}

fn collect(value: &Value, path: &mut Vec<String>, out: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                path.push(spaced(name));
                collect(value, path, out);
                path.pop();
            }
        }
        Value::Array(items) if items.iter().all(|item| !item.is_object()) => {
            let items: Vec<String> = items.iter().map(plain).collect();
            out.push(format!("{} {}", path.join(" "), items.join("|")).trim().to_owned());
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, path, out)),
        other => out.push(format!("{} {}", path.join(" "), plain(other)).trim().to_owned()),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn spaced(name: &str) -> String {
    let mut out = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !out.is_empty() {
            out.push(' ');
        }
        out.push(letter.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_in_words() {
        for (value, text) in [
            (
                json!({"http": {"requestTimeout": "2s"}, "idleTimeout": "1h0m0s"}),
                "http request timeout 2s, idle timeout 1h0m0s",
            ),
            (json!({"http": {"retryOn": ["5xx", "GatewayError"]}}), "http retry on 5xx|GatewayError"),
            (
                json!({"http": [{"abort": {"httpStatus": 503}}, {"delay": {"value": "1s"}}]}),
                "http abort http status 503, http delay value 1s",
            ),
            (json!({}), "nothing in particular"),
        ] {
            assert_eq!(conf(&value), text);
        }
    }
}
