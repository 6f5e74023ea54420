//! `headers()` and `trailers()`: what a script sees of them, and what it may do to them.
//!
//! As in Envoy a request's line and a response's status are headers with a colon, and `host` is `:authority`. What says
//! where a message ends, or belongs to one connection, is the proxy's: a script that could write it could smuggle a
//! second message into the first.

use crate::{
    exchange::{Exchange, Head, Start},
    limits::{FIELD_OVERHEAD, MAX_HEADERS},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE},
    uri::{Authority, PathAndQuery},
};
use mlua::{Error, Lua, LuaString, Result, UserDataMethods, UserDataRegistry, Value, Variadic};
use std::rc::Rc;

/// How many calls of scripts one after the other have led to a request: what ends a circle of them. Scripts neither see nor
/// write it.
pub static HOPS: HeaderName = HeaderName::from_static("x-meridian-script-hops");

/// How a script sees the headers of a message, or the fields after its body.
pub(crate) struct Headers {
    pub(crate) exchange: Rc<Exchange>,
    pub(crate) trailers: bool,
}

/// A name as a script writes it.
pub(crate) enum Name {
    Pseudo(Pseudo),
    Field(HeaderName),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pseudo {
    Method,
    Path,
    Authority,
    Scheme,
    Status,
}

impl Pseudo {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Method => ":method",
            Self::Path => ":path",
            Self::Authority => ":authority",
            Self::Scheme => ":scheme",
            Self::Status => ":status",
        }
    }
}

impl Name {
    pub(crate) fn parse(text: &[u8]) -> Result<Self> {
        let pseudo = match text {
            b":method" => Pseudo::Method,
            b":path" => Pseudo::Path,
            b":authority" => Pseudo::Authority,
            b":scheme" => Pseudo::Scheme,
            b":status" => Pseudo::Status,
            _ => {
                let name = HeaderName::from_bytes(text).map_err(|_| invalid("header name", text))?;
                let is_host = name == HOST;
                return Ok(if is_host { Self::Pseudo(Pseudo::Authority) } else { Self::Field(name) });
            }
        };
        Ok(Self::Pseudo(pseudo))
    }
}

pub(crate) fn invalid(what: &str, text: &[u8]) -> Error {
    let text = crate::log::line(&String::from_utf8_lossy(text.get(..64).unwrap_or(text)));
    Error::runtime(format!("{text:?} is no {what}"))
}

/// Whether a header is the proxy's own: those of the length are kept right, and what a script does to them is left
/// undone; those of the connection, and what counts its calls, it must not touch.
pub(crate) fn guard(name: &HeaderName) -> Result<bool> {
    const OF_CONNECTION: [HeaderName; 5] = [CONNECTION, UPGRADE, TE, TRAILER, EXPECT];
    if *name == CONTENT_LENGTH || *name == TRANSFER_ENCODING {
        return Ok(false);
    }
    if *name == HOPS {
        return Err(Error::runtime(format!("{name} is the proxy's own")));
    }
    if OF_CONNECTION.contains(name) || matches!(name.as_str(), "keep-alive" | "proxy-connection") {
        return Err(Error::runtime(format!("{name} belongs to the connection, not to the message")));
    }
    Ok(true)
}

pub(crate) fn value(bytes: &[u8]) -> Result<HeaderValue> {
    fits(bytes.len())?;
    HeaderValue::from_bytes(bytes).map_err(|_| invalid("header value", bytes))
}

/// What a field counts.
pub(crate) fn size(name: &str, value: &[u8]) -> usize {
    name.len() + value.len() + FIELD_OVERHEAD
}

/// # Errors
/// Headers of this size are too large; what is longer is not even copied.
pub(crate) fn fits(size: usize) -> Result<()> {
    if size > MAX_HEADERS {
        return Err(Error::runtime(format!("headers have at most {MAX_HEADERS} bytes")));
    }
    Ok(())
}

/// Adds one to a message's own, if there is room.
fn add(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) -> Result<()> {
    let taken: usize = headers.iter().map(|(name, value)| size(name.as_str(), value.as_bytes())).sum();
    fits(taken + size(name.as_str(), value.as_bytes()))?;
    append(headers, name, value)
}

/// Adds one that there is room for.
pub(crate) fn append(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) -> Result<()> {
    headers.try_append(name, value).map_err(|_| Error::runtime("there are too many headers"))?;
    Ok(())
}

pub(crate) fn method(bytes: &[u8]) -> Result<Method> {
    let method = Method::from_bytes(bytes).map_err(|_| invalid("method", bytes))?;
    if method == Method::CONNECT {
        Err(invalid("method that can be asked for here", bytes))
    } else {
        Ok(method)
    }
}

pub(crate) fn path(bytes: &[u8]) -> Result<PathAndQuery> {
    let valid = bytes.first() == Some(&b'/') && bytes.len() <= MAX_HEADERS;
    let parsed = PathAndQuery::try_from(bytes).ok().filter(|_| valid);
    parsed.ok_or_else(|| invalid("path", bytes))
}

pub(crate) fn authority(bytes: &[u8]) -> Result<Authority> {
    let parsed = Authority::try_from(bytes).ok().filter(|_| !bytes.contains(&b'@'));
    parsed.ok_or_else(|| invalid("authority", bytes))
}

/// Of an answer: what comes before the answer (1xx) is none.
pub(crate) fn status(bytes: &[u8]) -> Result<StatusCode> {
    let parsed = StatusCode::from_bytes(bytes).ok().filter(|status| (200..=599).contains(&status.as_u16()));
    parsed.ok_or_else(|| invalid("status of an answer", bytes))
}

impl Head {
    fn pseudo(&self, pseudo: Pseudo) -> Option<String> {
        match (&self.start, pseudo) {
            (Start::Request { method, .. }, Pseudo::Method) => Some(method.as_str().to_owned()),
            (Start::Request { path, .. }, Pseudo::Path) => Some(path.as_str().to_owned()),
            (Start::Request { authority, .. }, Pseudo::Authority) => Some(authority.as_str().to_owned()),
            (Start::Request { .. }, Pseudo::Scheme) => Some("http".to_owned()),
            (Start::Response { status, .. }, Pseudo::Status) => Some(status.as_str().to_owned()),
            _ => None,
        }
    }

    fn set(&mut self, pseudo: Pseudo, text: &[u8]) -> Result<()> {
        fits(text.len())?;
        match (&mut self.start, pseudo) {
            (Start::Request { method, .. }, Pseudo::Method) => *method = self::method(text)?,
            (Start::Request { path, .. }, Pseudo::Path) => *path = self::path(text)?,
            (Start::Request { authority, .. }, Pseudo::Authority) => *authority = self::authority(text)?,
            (Start::Response { status, reason }, Pseudo::Status) => {
                *status = self::status(text)?;
                *reason = None;
            }
            _ => return Err(Error::runtime("this message has no such header")),
        }
        Ok(())
    }

    fn all(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let pseudo = [Pseudo::Authority, Pseudo::Path, Pseudo::Method, Pseudo::Scheme, Pseudo::Status];
        let pseudo = pseudo.into_iter().filter_map(|pseudo| {
            Some((pseudo.as_str().as_bytes().to_vec(), self.pseudo(pseudo)?.into_bytes()))
        });
        pseudo.chain(fields(&self.headers)).collect()
    }
}

fn fields(headers: &HeaderMap) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    let fields = headers.iter().filter(|(name, _)| **name != HOST && **name != HOPS);
    fields.map(|(name, value)| (name.as_str().as_bytes().to_vec(), value.as_bytes().to_vec()))
}

impl Headers {
    fn read<T>(
        &self,
        of_head: impl FnOnce(&Head) -> T,
        of_fields: impl FnOnce(&HeaderMap) -> T,
    ) -> Result<T> {
        self.exchange.open()?;
        if self.trailers {
            return Ok(of_fields(self.exchange.trailers.borrow().as_ref().ok_or_else(gone)?));
        }
        Ok(of_head(self.exchange.head.borrow().as_ref().ok_or_else(gone)?))
    }

    fn change(&self, change: impl FnOnce(&mut HeaderMap) -> Result<()>) -> Result<()> {
        self.exchange.open()?;
        if self.trailers {
            return change(self.exchange.trailers.borrow_mut().as_mut().ok_or_else(gone)?);
        }
        change(&mut self.exchange.head.borrow_mut().as_mut().ok_or_else(gone)?.headers)
    }

    fn set_pseudo(&self, pseudo: Pseudo, text: &[u8]) -> Result<()> {
        self.exchange.open()?;
        if self.trailers {
            return Err(Error::runtime("trailers have no such fields"));
        }
        self.exchange.head.borrow_mut().as_mut().ok_or_else(gone)?.set(pseudo, text)
    }

    fn get(&self, name: &[u8], index: usize) -> Result<Option<Vec<u8>>> {
        match Name::parse(name)? {
            Name::Pseudo(pseudo) if index == 0 => {
                self.read(|head| head.pseudo(pseudo).map(String::into_bytes), |_| None)
            }
            Name::Pseudo(_) => Ok(None),
            Name::Field(name) if name == HOPS => Ok(None),
            Name::Field(name) => {
                let of = |fields: &HeaderMap| {
                    fields.get_all(&name).iter().nth(index).map(|value| value.as_bytes().to_vec())
                };
                self.read(|head| of(&head.headers), of)
            }
        }
    }

    fn count(&self, name: &[u8]) -> Result<usize> {
        match Name::parse(name)? {
            Name::Pseudo(pseudo) => self.read(|head| usize::from(head.pseudo(pseudo).is_some()), |_| 0),
            Name::Field(name) if name == HOPS => Ok(0),
            Name::Field(name) => {
                let of = |fields: &HeaderMap| fields.get_all(&name).iter().count();
                self.read(|head| of(&head.headers), of)
            }
        }
    }

    fn add(&self, name: &[u8], text: &[u8]) -> Result<()> {
        match Name::parse(name)? {
            Name::Pseudo(_) => Err(Error::runtime("there is one of those: replace it")),
            Name::Field(name) if guard(&name)? => {
                self.change(|headers| self::add(headers, name, value(text)?))
            }
            Name::Field(_) => self.change(|_| Ok(())),
        }
    }

    fn replace(&self, name: &[u8], text: &[u8]) -> Result<()> {
        match Name::parse(name)? {
            Name::Pseudo(pseudo) => self.set_pseudo(pseudo, text),
            Name::Field(name) if guard(&name)? => {
                let value = value(text)?;
                self.change(|headers| {
                    headers.remove(&name);
                    self::add(headers, name, value)
                })
            }
            Name::Field(_) => self.change(|_| Ok(())),
        }
    }

    fn remove(&self, name: &[u8]) -> Result<()> {
        match Name::parse(name)? {
            Name::Pseudo(_) => Err(Error::runtime("a message can't be without it")),
            Name::Field(name) if guard(&name)? => self.change(|headers| {
                headers.remove(name);
                Ok(())
            }),
            Name::Field(_) => self.change(|_| Ok(())),
        }
    }

    fn set_reason(&self, text: &[u8]) -> Result<()> {
        self.exchange.open()?;
        let plain = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~');
        let text = std::str::from_utf8(text).ok().filter(|_| text.len() <= 128 && text.iter().all(plain));
        let text = text.ok_or_else(|| Error::runtime("that is no reason phrase"))?;
        match self.exchange.head.borrow_mut().as_mut().map(|head| &mut head.start) {
            Some(Start::Response { reason, .. }) if !self.trailers => {
                *reason = Some(text.to_owned());
                Ok(())
            }
            Some(_) => Err(Error::runtime("only a response has a reason phrase")),
            None => Err(gone()),
        }
    }
}

fn gone() -> Error {
    Error::runtime("the headers have gone on already")
}

pub(crate) fn register(registry: &mut UserDataRegistry<Headers>) {
    registry.add_method("get", |lua, this, name: LuaString| text(lua, this.get(&name.as_bytes(), 0)?));
    registry.add_method("getAtIndex", |lua, this, (name, index): (LuaString, usize)| {
        text(lua, this.get(&name.as_bytes(), index)?)
    });
    registry.add_method("getNumValues", |_, this, name: LuaString| this.count(&name.as_bytes()));
    registry.add_method("add", |_, this, (name, value): (LuaString, LuaString)| {
        this.add(&name.as_bytes(), &value.as_bytes())
    });
    registry.add_method("replace", |_, this, (name, value): (LuaString, LuaString)| {
        this.replace(&name.as_bytes(), &value.as_bytes())
    });
    registry.add_method("remove", |_, this, name: LuaString| this.remove(&name.as_bytes()));
    registry.add_method("setHttp1ReasonPhrase", |_, this, text: LuaString| this.set_reason(&text.as_bytes()));
    // What `pairs` goes through: a copy, so that a script may change what it goes through.
    registry.add_method("__entries", |lua, this, _: Variadic<Value>| {
        let all = this.read(Head::all, |trailers| fields(trailers).collect())?;
        let entries = lua.create_table_with_capacity(all.len() * 2, 0)?;
        for (name, value) in all {
            entries.raw_push(lua.create_string(name)?)?;
            entries.raw_push(lua.create_string(value)?)?;
        }
        Ok(entries)
    });
}

fn text(lua: &Lua, text: Option<Vec<u8>>) -> Result<Option<LuaString>> {
    text.map(|text| lua.create_string(text)).transpose()
}
