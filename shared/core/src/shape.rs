//! The shape of a document against its kind's schema: unknown fields and wrong types, all of them at once, and the
//! many spellings that Kuma takes made one.
//!
//! serde alone would stop at the first, so a user would find typos one by one. It still has the last word.

use crate::{Format, Violations};
use schemars::Schema;
use serde_json::{Map, Number, Value};

/// Reason of a violation that Kuma does not have: it drops what it does not know.
pub(crate) const UNKNOWN_FIELD: &str = "unknown field";

/// A kind's schema, to be walked.
pub(crate) struct Shape {
    root: Value,
    format: Format,
}

/// What a schema's node asks for.
enum Node<'a> {
    /// None: an object without fields.
    Object(Option<&'a Map<String, Value>>),
    /// The schema of the values, if it is known.
    Map(Option<&'a Value>),
    List(Option<&'a Value>),
    /// Texts with the numbers that stand for them (protobuf).
    Enum(&'a Vec<Value>),
    Text(Option<&'a str>),
    /// `signed`: the schema names no minimum of zero.
    Integer {
        signed: bool,
    },
    Number,
    Boolean,
    /// `signed`: the schema names a minimum below zero.
    IntegerOrText {
        signed: bool,
    },
    Any,
}

impl Shape {
    pub(crate) fn new(schema: Schema, format: Format) -> Self {
        Self { root: schema.to_value(), format }
    }

    /// Whether the items of two lists have the same `default`.
    pub(crate) fn same_default(&self, one: &str, other: &str) -> bool {
        let default = |list: &str| {
            let list = self.root.get("properties")?.get(list)?;
            let item = self.resolve(list.get("items")?);
            Some(self.resolve(item.get("properties")?.get("default")?))
        };
        default(one).is_some() && default(one) == default(other)
    }

    /// The document in its one spelling; what is wrong with it goes to `out` and is left out of the answer.
    pub(crate) fn normalise(&self, value: &Value, out: &mut Violations) -> Value {
        let path = match self.format {
            Format::Legacy => "",
            Format::Spec => "spec",
        };
        self.walk(value, &self.root, path, out).unwrap_or_else(|| Value::Object(Map::new()))
    }

    fn walk(&self, value: &Value, schema: &Value, path: &str, out: &mut Violations) -> Option<Value> {
        let node = self.node(schema);
        let checked = match (&node, value) {
            (Node::Any, _) => Some(value.clone()),
            (_, Value::Null) => return None,
            (Node::Object(properties), Value::Object(fields)) => {
                return Some(self.object(fields, *properties, path, out));
            }
            (Node::Map(values), Value::Object(fields)) => return Some(self.map(fields, *values, path, out)),
            (Node::List(items), Value::Array(list)) => return Some(self.list(list, *items, path, out)),
            (Node::Enum(values), _) => named(values, value),
            (Node::Text(format), _) => {
                text(value).filter(|text| format.is_none_or(|format| formatted(format, text)))
            }
            (Node::Integer { signed: true }, _) => signed(value),
            (Node::Integer { signed: false }, _) => integer(value, self.format),
            (Node::Number, Value::Number(_)) | (Node::Boolean, Value::Bool(_)) => Some(value.clone()),
            (Node::IntegerOrText { .. }, Value::String(_)) => Some(value.clone()),
            (Node::IntegerOrText { signed: true }, _) => signed(value),
            (Node::IntegerOrText { signed: false }, _) => integer(value, self.format),
            _ => None,
        };
        if checked.is_none() {
            out.push(path, node.expected());
        }
        checked
    }

    fn object(
        &self,
        fields: &Map<String, Value>,
        properties: Option<&Map<String, Value>>,
        path: &str,
        out: &mut Violations,
    ) -> Value {
        let mut checked = Map::new();
        for (name, value) in fields {
            let known = match self.format {
                Format::Legacy if properties.is_none_or(|known| !known.contains_key(name)) => {
                    camel_case(name)
                }
                _ => name.clone(),
            };
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let Some(schema) = properties.and_then(|properties| properties.get(&known)) else {
                out.push(path, UNKNOWN_FIELD);
                continue;
            };
            if known != *name && fields.contains_key(&known) {
                out.push(path, format!("is {known:?} in another spelling, which is there too"));
                continue;
            }
            if let Some(value) = self.walk(value, schema, &path, out) {
                checked.insert(known, value);
            }
        }
        Value::Object(checked)
    }

    fn list(&self, list: &[Value], items: Option<&Value>, path: &str, out: &mut Violations) -> Value {
        let Some(schema) = items else {
            return Value::Array(list.to_vec());
        };
        let item = |(i, item): (usize, &Value)| {
            let checked = self.walk(item, schema, &format!("{path}[{i}]"), out);
            // A wrong item keeps its place, so that later paths point to the right ones.
            checked.or_else(|| match self.node(schema) {
                Node::Text(Some(_)) => None,
                _ => Some(self.empty(schema)),
            })
        };
        Value::Array(list.iter().enumerate().filter_map(item).collect())
    }

    fn map(
        &self,
        fields: &Map<String, Value>,
        values: Option<&Value>,
        path: &str,
        out: &mut Violations,
    ) -> Value {
        let mut checked = Map::new();
        for (key, value) in fields {
            let value = match values {
                // Kuma reads a value left empty in YAML as "".
                Some(schema) if value.is_null() => Some(self.empty(schema)),
                Some(schema) => self.walk(value, schema, &format!("{path}[{key:?}]"), out),
                None => Some(value.clone()),
            };
            if let Some(value) = value {
                checked.insert(key.clone(), value);
            }
        }
        Value::Object(checked)
    }

    fn empty(&self, schema: &Value) -> Value {
        match self.node(schema) {
            Node::Object(_) | Node::Map(_) => Value::Object(Map::new()),
            Node::List(_) => Value::Array(Vec::new()),
            Node::Text(_) | Node::IntegerOrText { .. } => Value::String(String::new()),
            Node::Integer { .. } | Node::Number => Value::from(0),
            Node::Boolean => Value::Bool(false),
            Node::Enum(values) => values.first().cloned().unwrap_or_default(),
            Node::Any => Value::Null,
        }
    }

    fn node<'a>(&'a self, schema: &'a Value) -> Node<'a> {
        let schema = self.resolve(schema);
        let Some(keywords) = schema.as_object() else {
            return Node::Any;
        };
        let kind = keywords.get("type").and_then(|kind| match kind {
            Value::String(kind) => Some(kind.as_str()),
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
            _ => None,
        });
        match (kind, keywords.get("enum"), keywords.get("properties")) {
            (Some("object"), _, Some(Value::Object(properties))) => Node::Object(Some(properties)),
            (Some("object"), ..) => match keywords.get("additionalProperties") {
                Some(Value::Bool(false)) => Node::Object(None),
                Some(values) if values.is_object() => Node::Map(Some(values)),
                _ => Node::Map(None),
            },
            (Some("array"), ..) => Node::List(keywords.get("items")),
            // A `text_enum`: its validation has Kuma's words for wrong values.
            (Some("string"), ..) => Node::Text(keywords.get("format").and_then(Value::as_str)),
            (Some("integer"), ..) => Node::Integer { signed: !keywords.contains_key("minimum") },
            (Some("number"), ..) => Node::Number,
            (Some("boolean"), ..) => Node::Boolean,
            (None, Some(Value::Array(values)), _) => Node::Enum(values),
            _ if keywords.contains_key("anyOf") => Node::IntegerOrText { signed: is_signed(keywords) },
            _ => Node::Any,
        }
    }

    /// Follows references and sees through `Option`.
    fn resolve<'a>(&'a self, mut schema: &'a Value) -> &'a Value {
        loop {
            let named = schema.get("$ref").and_then(Value::as_str).and_then(|name| name.strip_prefix('#'));
            let optional =
                schema.get("anyOf").and_then(Value::as_array).filter(|of| of.iter().any(is_null_type));
            schema = match (named, optional) {
                (Some(pointer), _) => match self.root.pointer(pointer) {
                    Some(target) => target,
                    None => return schema,
                },
                (None, Some(of)) => match of.iter().find(|schema| !is_null_type(schema)) {
                    Some(target) => target,
                    None => return schema,
                },
                (None, None) => return schema,
            };
        }
    }
}

fn is_null_type(schema: &Value) -> bool {
    schema.get("type").and_then(Value::as_str) == Some("null")
}

impl Node<'_> {
    fn expected(&self) -> String {
        match self {
            Self::Object(_) | Self::Map(_) => "must be an object".into(),
            Self::List(_) => "must be a list".into(),
            Self::Enum(values) => {
                let names: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
                format!("must be one of: {}", names.join(", "))
            }
            Self::Text(Some("proto-duration")) => "must be a duration in seconds, like 1.5s".into(),
            Self::Text(Some("go-duration" | "policy-duration")) => {
                "must be a duration, like 1h30m or 500ms".into()
            }
            Self::Text(Some("cidr")) => "must be addresses in CIDR notation, like 192.0.2.0/24".into(),
            Self::Text(_) => "must be a string".into(),
            Self::Integer { signed: false } => {
                "must be an integer of at least 0 and less than 4294967296".into()
            }
            Self::Integer { signed: true } => {
                "must be an integer of at least -2147483648 and less than 2147483648".into()
            }
            Self::Number => "must be a number".into(),
            Self::Boolean => "must be true or false".into(),
            Self::IntegerOrText { .. } => "must be an integer or a string".into(),
            Self::Any => "is not valid".into(),
        }
    }
}

/// The name of an enum's value, which may be its number: `[name, number, name, number]`.
fn named(values: &[Value], value: &Value) -> Option<Value> {
    let position = values.iter().position(|known| known == value)?;
    values.get(position - usize::from(value.is_number())).cloned()
}

/// YAML gives numbers and booleans where a text was meant (`version: 1`).
fn text(value: &Value) -> Option<Value> {
    match value {
        Value::String(_) => Some(value.clone()),
        Value::Number(number) => Some(Value::String(number.to_string())),
        Value::Bool(flag) => Some(Value::String(flag.to_string())),
        _ => None,
    }
}

/// Protobuf's JSON has integers as texts too.
fn integer(value: &Value, format: Format) -> Option<Value> {
    let number = match value {
        Value::Number(number) => number.as_u64().or_else(|| whole(number))?,
        Value::String(text) if format == Format::Legacy => text.parse().ok()?,
        _ => return None,
    };
    u32::try_from(number).ok().map(Value::from)
}

/// Of an `anyOf`: whether one of its alternatives takes numbers below zero.
fn is_signed(keywords: &Map<String, Value>) -> bool {
    let alternatives = keywords.get("anyOf").and_then(Value::as_array);
    let minimum = |schema: &Value| schema.get("minimum").and_then(Value::as_i64);
    alternatives.into_iter().flatten().filter_map(minimum).any(|minimum| minimum < 0)
}

/// Kubernetes' integers: 32 bits, with a sign.
fn signed(value: &Value) -> Option<Value> {
    value.as_i64().and_then(|number| i32::try_from(number).ok()).map(Value::from)
}

fn whole(number: &Number) -> Option<u64> {
    let float =
        number.as_f64().filter(|float| float.fract() == 0.0 && (0.0..=4_294_967_295.0).contains(float))?;
    format!("{float:.0}").parse().ok()
}

fn formatted(format: &str, value: &Value) -> bool {
    let text = value.as_str().unwrap_or_default();
    match format {
        "proto-duration" => crate::duration::ProtoDuration::parse(text).is_ok(),
        "go-duration" => crate::duration::GoDuration::parse(text).is_ok(),
        "policy-duration" => crate::duration::PolicyDuration::parse(text).is_ok(),
        "cidr" => text.parse::<ipnet::IpNet>().is_ok(),
        _ => true,
    }
}

/// `redirect_port_inbound` -> `redirectPortInbound`
fn camel_case(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut upper = false;
    for c in name.chars() {
        match (c, upper) {
            ('_', _) => upper = true,
            (c, true) => {
                out.push(c.to_ascii_uppercase());
                upper = false;
            }
            (c, false) => out.push(c),
        }
    }
    out
}

#[cfg(test)]
impl Shape {
    /// Paths of all fields that have no fields of their own: `networking.inbound[].port`.
    pub(crate) fn leaves(&self) -> Vec<String> {
        fn collect(shape: &Shape, schema: &Value, path: &str, out: &mut Vec<String>) {
            match shape.node(schema) {
                Node::Object(Some(properties)) if !properties.is_empty() => {
                    for (name, schema) in properties {
                        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                        collect(shape, schema, &path, out);
                    }
                }
                Node::List(Some(items)) => collect(shape, items, &format!("{path}[]"), out),
                _ => out.push(path.to_owned()),
            }
        }
        let mut out = Vec::new();
        collect(self, &self.root, "", &mut out);
        out
    }
}
