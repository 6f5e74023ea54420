//! The body of an OTLP record: any JSON, with placeholders in its texts; or OTLP's own JSON, as Kuma takes it.

use super::{
    program::Program,
    render::{self, View},
};
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, KeyValue, KeyValueList, any_value::Value,
};
use serde_json::{Map, Value as Json};

pub(super) enum Template {
    Text(Program),
    Bool(bool),
    Int(i64),
    Double(f64),
    Nothing,
    List(Vec<Template>),
    Fields(Vec<(String, Template)>),
}

impl Template {
    pub(super) fn compile(json: &Json, program: &mut dyn FnMut(&str) -> Program) -> Self {
        match json {
            Json::Null => Self::Nothing,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => match number.as_i64() {
                Some(number) => Self::Int(number),
                None => Self::Double(number.as_f64().unwrap_or_default()),
            },
            Json::String(text) => Self::Text(program(text)),
            Json::Array(items) => Self::List(items.iter().map(|item| Self::compile(item, program)).collect()),
            Json::Object(fields) => match any_value(fields, program) {
                Some(template) => template,
                None => {
                    let field =
                        |(name, value): (&String, &Json)| (name.clone(), Self::compile(value, program));
                    Self::Fields(fields.iter().map(field).collect())
                }
            },
        }
    }

    /// Its value, and how many bytes that is, about.
    pub(super) fn fill(&self, view: &View<'_>, bytes: &mut usize) -> AnyValue {
        let value = match self {
            Self::Nothing => None,
            Self::Text(program) => {
                let mut text = String::new();
                render::text(program, view, &mut text);
                *bytes += text.len();
                Some(Value::StringValue(text))
            }
            Self::Bool(value) => Some(Value::BoolValue(*value)),
            Self::Int(number) => Some(Value::IntValue(*number)),
            Self::Double(number) => Some(Value::DoubleValue(*number)),
            Self::List(items) => {
                let values = items.iter().map(|item| item.fill(view, bytes)).collect();
                Some(Value::ArrayValue(ArrayValue { values }))
            }
            Self::Fields(fields) => {
                let field = |(name, template): &(String, Self)| {
                    *bytes += name.len();
                    KeyValue {
                        key: name.clone(),
                        value: Some(template.fill(view, bytes)),
                        ..KeyValue::default()
                    }
                };
                Some(Value::KvlistValue(KeyValueList { values: fields.iter().map(field).collect() }))
            }
        };
        *bytes += VALUE;
        AnyValue { value }
    }
}

// What a value takes beside its text, about.
const VALUE: usize = 16;

/// `{"stringValue": ...}`, `{"kvlistValue": {"values": [{"key": ..., "value": ...}]}}` and so on.
fn any_value(fields: &Map<String, Json>, program: &mut dyn FnMut(&str) -> Program) -> Option<Template> {
    let mut all = fields.iter();
    let (name, value) = all.next().filter(|_| fields.len() == 1)?;
    match name.as_str() {
        "stringValue" => Some(Template::Text(program(value.as_str()?))),
        "boolValue" => value.as_bool().map(Template::Bool),
        // Numbers of 64 bits are texts in protobuf's JSON.
        "intValue" => value.as_i64().or_else(|| value.as_str()?.parse().ok()).map(Template::Int),
        "doubleValue" => value.as_f64().map(Template::Double),
        "arrayValue" => {
            let values = value.get("values")?.as_array()?;
            Some(Template::List(values.iter().map(|item| Template::compile(item, program)).collect()))
        }
        "kvlistValue" => {
            let values = value.get("values")?.as_array()?;
            let pair = |pair: &Json| {
                let key = pair.get("key")?.as_str()?.to_owned();
                Some((key, Template::compile(pair.get("value").unwrap_or(&Json::Null), program)))
            };
            values.iter().map(pair).collect::<Option<Vec<_>>>().map(Template::Fields)
        }
        _ => None,
    }
}
