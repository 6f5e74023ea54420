//! Messages that a script makes: an answer of its own, and what it asks of other services.

use crate::{
    headers::{self, HOPS, Name, Pseudo},
    limits::{LONGEST_CALL, MAX_BODY, MAX_CLUSTER},
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, Method, StatusCode,
    header::{CONTENT_LENGTH, TRANSFER_ENCODING},
    uri::{Authority, PathAndQuery},
};
use mlua::{Error, Lua, LuaString, Result, Table, Value};
use std::time::Duration;

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// A request to another service.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    pub cluster: String,
    pub method: Method,
    pub path: PathAndQuery,
    pub authority: Authority,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub timeout: Duration,
    /// Headers that come several times come as tables.
    pub duplicates: bool,
}

/// A table of headers, as scripts write them: a value, or a table of several.
#[derive(Default)]
struct Fields {
    pseudo: Vec<(Pseudo, Vec<u8>)>,
    headers: HeaderMap,
    /// Of all that it has been given, also of what it leaves out: nothing goes on for longer than there is room.
    size: usize,
}

impl Fields {
    fn read(table: &Table) -> Result<Self> {
        let mut fields = Self::default();
        table.for_each(|name: LuaString, value: Value| {
            let name = Name::parse(&name.as_bytes())?;
            match &value {
                Value::Table(values) => {
                    values.sequence_values::<LuaString>().try_for_each(|value| fields.add(&name, &value?))
                }
                Value::String(value) => fields.add(&name, value),
                // Numbers have a text of their own.
                Value::Integer(number) => fields.put(&name, number.to_string().as_bytes()),
                Value::Number(number) => fields.put(&name, number.to_string().as_bytes()),
                other => Err(Error::runtime(format!("a header can't be a {}", other.type_name()))),
            }
        })?;
        Ok(fields)
    }

    fn add(&mut self, name: &Name, value: &LuaString) -> Result<()> {
        self.put(name, &value.as_bytes())
    }

    fn put(&mut self, name: &Name, value: &[u8]) -> Result<()> {
        let text = match name {
            Name::Pseudo(pseudo) => pseudo.as_str(),
            Name::Field(name) => name.as_str(),
        };
        self.size += headers::size(text, value);
        headers::fits(self.size)?;
        match name {
            Name::Pseudo(pseudo) if self.pseudo(*pseudo).is_some() => {
                return Err(Error::runtime(format!("a message has one {text}")));
            }
            Name::Pseudo(pseudo) => self.pseudo.push((*pseudo, value.to_vec())),
            // The length is that of the body that is given.
            Name::Field(name) if *name == CONTENT_LENGTH || *name == TRANSFER_ENCODING => {}
            Name::Field(name) => {
                headers::append(&mut self.headers, own(name)?, headers::value(value)?)?;
            }
        }
        Ok(())
    }

    fn pseudo(&self, wanted: Pseudo) -> Option<&[u8]> {
        self.pseudo.iter().find(|(pseudo, _)| *pseudo == wanted).map(|(_, value)| value.as_slice())
    }
}

fn own(name: &HeaderName) -> Result<HeaderName> {
    headers::guard(name).map(|_| name.clone())
}

fn body(body: Option<LuaString>) -> Result<Bytes> {
    let Some(body) = body else { return Ok(Bytes::new()) };
    let bytes = body.as_bytes();
    if bytes.len() > MAX_BODY {
        return Err(Error::runtime(format!("a body has at most {MAX_BODY} bytes")));
    }
    Ok(Bytes::copy_from_slice(&bytes))
}

impl Reply {
    pub(crate) fn read(headers: &Table, text: Option<LuaString>) -> Result<Self> {
        let fields = Fields::read(headers)?;
        let status = fields.pseudo(Pseudo::Status);
        let status = status.ok_or_else(|| Error::runtime(":status must be between 200-599"))?;
        let status = headers::status(status)?;
        let empty =
            matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED);
        let body = if empty { Bytes::new() } else { body(text)? };
        Ok(Self { status, headers: fields.headers, body })
    }
}

/// What follows the body among the arguments of `httpCall`.
pub(crate) struct CallOptions {
    pub(crate) asynchronous: bool,
    duplicates: bool,
}

impl CallOptions {
    pub(crate) fn read(value: &Value) -> Result<Self> {
        match value {
            Value::Table(options) => Ok(Self {
                asynchronous: options.raw_get::<Option<bool>>("asynchronous")?.unwrap_or_default(),
                duplicates: options.raw_get::<Option<bool>>("return_duplicate_headers")?.unwrap_or_default(),
            }),
            other => Ok(Self { asynchronous: other.as_boolean().unwrap_or_default(), duplicates: false }),
        }
    }
}

impl Call {
    pub(crate) fn read(
        cluster: &LuaString,
        headers: &Table,
        text: Option<LuaString>,
        timeout_millis: f64,
        options: &CallOptions,
    ) -> Result<Self> {
        let cluster = cluster.as_bytes();
        if cluster.len() > MAX_CLUSTER {
            return Err(Error::runtime(format!("the name of a service has at most {MAX_CLUSTER} bytes")));
        }
        let fields = Fields::read(headers)?;
        let must = |pseudo| {
            let missing =
                || Error::runtime("http call headers must include ':path', ':method', and ':authority'");
            fields.pseudo(pseudo).ok_or_else(missing)
        };
        // NaN and what is negative have no wait at all: the longest is then meant.
        let timeout = Duration::try_from_secs_f64(timeout_millis / 1_000.0).unwrap_or(LONGEST_CALL);
        Ok(Self {
            cluster: String::from_utf8_lossy(&cluster).into_owned(),
            method: headers::method(must(Pseudo::Method)?)?,
            path: headers::path(must(Pseudo::Path)?)?,
            authority: headers::authority(must(Pseudo::Authority)?)?,
            body: body(text)?,
            timeout: if timeout.is_zero() { LONGEST_CALL } else { timeout.min(LONGEST_CALL) },
            duplicates: options.duplicates,
            headers: fields.headers,
        })
    }
}

/// What a script gets of an answer: a table of headers, and the body.
pub(crate) fn answered(lua: &Lua, reply: &Reply, duplicates: bool) -> Result<(Table, Option<LuaString>)> {
    let headers = lua.create_table()?;
    headers.raw_set(":status", reply.status.as_str())?;
    for name in reply.headers.keys().filter(|name| **name != HOPS) {
        let mut values = reply.headers.get_all(name).iter().map(|value| lua.create_string(value.as_bytes()));
        if duplicates && values.size_hint().0 > 1 {
            headers.raw_set(name.as_str(), lua.create_sequence_from(values.collect::<Result<Vec<_>>>()?)?)?;
        } else if let Some(value) = values.next_back() {
            headers.raw_set(name.as_str(), value?)?;
        }
    }
    let body = (!reply.body.is_empty()).then(|| lua.create_string(&reply.body)).transpose()?;
    Ok((headers, body))
}
