use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Kubernetes' `IntOrString`, which Kuma uses for numbers with decimals: an integer, or a decimal as text (`"33.3"`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    Int(i32),
    Text(String),
}

impl IntOrString {
    /// The number; `None` if the text is none.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Int(number) => Some(f64::from(*number)),
            Self::Text(text) => text.parse().ok().filter(|number: &f64| number.is_finite()),
        }
    }
}

impl JsonSchema for IntOrString {
    fn schema_name() -> Cow<'static, str> {
        "IntOrString".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let integer = json_schema!({ "type": "integer", "minimum": i32::MIN, "maximum": i32::MAX });
        json_schema!({ "anyOf": [integer, { "type": "string" }] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_and_decimals_are_numbers() {
        assert_eq!(IntOrString::Int(-3).number(), Some(-3.0));
        assert_eq!(IntOrString::Text("33.3".into()).number(), Some(33.3));
        for text in ["", "many", "NaN", "inf", "1,5"] {
            assert_eq!(IntOrString::Text(text.into()).number(), None, "{text:?}");
        }
    }
}
