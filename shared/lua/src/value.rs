//! Values that leave a state: a script's neighbours have states of their own.

use crate::limits::MAX_DEPTH;
use mlua::{Lua, Value};

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Data {
    Bool(bool),
    Number(f64),
    Text(Vec<u8>),
    Table(Vec<(Data, Data)>),
}

/// About the bytes that it takes.
pub(crate) trait Size {
    fn size(&self) -> usize;
}

impl Size for Data {
    fn size(&self) -> usize {
        match self {
            Self::Bool(_) | Self::Number(_) => 8,
            Self::Text(text) => 8 + text.len(),
            Self::Table(pairs) => {
                8 + pairs.iter().map(|(key, value)| key.size() + value.size()).sum::<usize>()
            }
        }
    }
}

impl Data {
    pub(crate) fn of(value: &Value) -> mlua::Result<Self> {
        let mut left = crate::limits::MAX_METADATA;
        Self::within(value, MAX_DEPTH, &mut left)
    }

    fn within(value: &Value, depth: usize, left: &mut usize) -> mlua::Result<Self> {
        let spend = |left: &mut usize, bytes: usize| match left.checked_sub(bytes) {
            Some(rest) => {
                *left = rest;
                Ok(())
            }
            None => Err(mlua::Error::runtime("the value is too large for metadata")),
        };
        spend(left, 8)?;
        Ok(match value {
            Value::Boolean(value) => Self::Bool(*value),
            Value::Integer(value) => Self::Number(*value as f64),
            Value::Number(value) => Self::Number(*value),
            Value::String(text) => {
                let bytes = text.as_bytes();
                spend(left, bytes.len())?;
                Self::Text(bytes.to_vec())
            }
            Value::Table(table) if depth > 0 => {
                let mut pairs = Vec::new();
                // Raw: a metatable's functions would run in the midst of this.
                table.for_each(|key: Value, value: Value| {
                    pairs
                        .push((Self::within(&key, depth - 1, left)?, Self::within(&value, depth - 1, left)?));
                    Ok(())
                })?;
                Self::Table(pairs)
            }
            Value::Table(_) => return Err(mlua::Error::runtime("the tables are too deep for metadata")),
            other => {
                return Err(mlua::Error::runtime(format!("a {} can't be metadata", other.type_name())));
            }
        })
    }

    pub(crate) fn into_value(self, lua: &Lua) -> mlua::Result<Value> {
        Ok(match self {
            Self::Bool(value) => Value::Boolean(value),
            Self::Number(value) => Value::Number(value),
            Self::Text(text) => Value::String(lua.create_string(text)?),
            Self::Table(pairs) => {
                let table = lua.create_table()?;
                for (key, value) in pairs {
                    table.raw_set(key.into_value(lua)?, value.into_value(lua)?)?;
                }
                Value::Table(table)
            }
        })
    }
}
