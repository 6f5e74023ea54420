//! Heads and bodies as they are written.

use super::{
    Error,
    decode::is_of_head,
    out::Out,
    parse::{closes, number},
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version,
    header::{CONTENT_LENGTH, TRANSFER_ENCODING},
    request, response,
};
use http_body::SizeHint;
use std::io::Write;

/// How the end of a body is told to who reads it.
#[derive(Debug)]
pub(super) enum Encoder {
    /// So many bytes are still to come.
    Length(u64),
    Chunked,
    /// By the connection's end.
    End,
}

impl Encoder {
    /// Whether what follows on the connection can be told from the body.
    pub(super) fn persists(&self) -> bool {
        !matches!(self, Self::End)
    }

    /// A part of the body.
    ///
    /// # Errors
    /// There is more of it than was said.
    pub(super) fn data(&mut self, out: &mut Out, data: Bytes) -> Result<(), Error> {
        match self {
            _ if data.is_empty() => {}
            Self::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(Error::Length)?;
                out.push(data);
            }
            Self::Chunked => {
                out.with(|into| drop(write!(into, "{:x}\r\n", data.len())));
                out.push(data);
                out.with(|into| into.extend_from_slice(b"\r\n"));
            }
            Self::End => out.push(data),
        }
        Ok(())
    }

    /// The end of the body.
    ///
    /// # Errors
    /// There was less of it than was said.
    pub(super) fn end(&self, out: &mut Out, trailers: Option<&HeaderMap>) -> Result<(), Error> {
        match self {
            Self::Length(0) | Self::End => {}
            Self::Length(_) => return Err(Error::Length),
            Self::Chunked => out.with(|into| {
                into.extend_from_slice(b"0\r\n");
                let fields = trailers.into_iter().flatten().filter(|(name, _)| !is_of_head(name));
                fields.for_each(|(name, value)| field(into, name, value));
                into.extend_from_slice(b"\r\n");
            }),
        }
        Ok(())
    }
}

/// A request's head. `head` must be in the form that the server is to see; `size`: of its body.
pub(super) fn request(out: &mut Out, head: &request::Parts, size: &SizeHint) -> Encoder {
    let said = said(&head.headers);
    let encoder = match (said, size.exact()) {
        (Some(length), _) => Encoder::Length(length),
        (None, Some(length)) => Encoder::Length(length),
        (None, None) => Encoder::Chunked,
    };
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    // A query without a path (of `http://host?query`): there is none in this form.
    let root = if path.starts_with('?') { "/" } else { "" };
    out.with(|into| {
        into.extend_from_slice(head.method.as_str().as_bytes());
        into.push(b' ');
        into.extend_from_slice(root.as_bytes());
        into.extend_from_slice(path.as_bytes());
        into.extend_from_slice(b" HTTP/1.1\r\n");
        fields(into, &head.headers);
        match encoder {
            Encoder::Chunked => into.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            // Methods whose requests have bodies say so where there is none (RFC 9110, 8.6).
            Encoder::Length(0) if said.is_none() && !expects_body(&head.method) => {}
            Encoder::Length(length) => drop(write!(into, "content-length: {length}\r\n")),
            Encoder::End => {}
        }
        into.extend_from_slice(b"\r\n");
    });
    encoder
}

fn expects_body(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH)
}

/// To whom a response goes.
pub(super) struct Asked {
    pub(super) head: bool,
    pub(super) version: Version,
    pub(super) trailers: bool,
    /// The client would use the connection again.
    pub(super) keep: bool,
}

/// A response's head, and whether the connection may go on behind its body.
pub(super) fn response(
    out: &mut Out,
    head: &mut response::Parts,
    size: &SizeHint,
    asked: &Asked,
) -> (Encoder, bool) {
    let status = head.status;
    let bodiless = status.is_informational() || status == StatusCode::NO_CONTENT;
    if bodiless {
        head.headers.remove(CONTENT_LENGTH);
    }
    head.headers.remove(TRANSFER_ENCODING);
    let none = bodiless || asked.head || status == StatusCode::NOT_MODIFIED;
    let said = said(&head.headers);
    let old = asked.version == Version::HTTP_10;
    let encoder = match (none, said, size.exact()) {
        (true, _, _) => Encoder::Length(0),
        (false, Some(length), _) | (false, None, Some(length)) => Encoder::Length(length),
        (false, None, None) if old => Encoder::End,
        (false, None, None) => Encoder::Chunked,
    };
    let keep = asked.keep && encoder.persists() && !closes(&head.headers);
    let silent = keep || closes(&head.headers) || status == StatusCode::SWITCHING_PROTOCOLS;
    out.with(|into| {
        into.extend_from_slice(if old { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
        into.extend_from_slice(status.as_str().as_bytes());
        into.push(b' ');
        match head.extensions.get::<hyper::ext::ReasonPhrase>() {
            Some(reason) => into.extend_from_slice(reason.as_bytes()),
            None => into.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes()),
        }
        into.extend_from_slice(b"\r\n");
        fields(into, &head.headers);
        match (&encoder, said) {
            // To HEAD, or of 304: of a body that does not come.
            (_, Some(length)) => drop(write!(into, "content-length: {length}\r\n")),
            (Encoder::Length(length), None) if !none => drop(write!(into, "content-length: {length}\r\n")),
            (Encoder::Chunked, None) => into.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            (Encoder::Length(_) | Encoder::End, None) => {}
        }
        if !silent {
            into.extend_from_slice(b"connection: close\r\n");
        } else if old && keep {
            into.extend_from_slice(b"connection: keep-alive\r\n");
        }
        into.extend_from_slice(b"\r\n");
    });
    (encoder, keep)
}

fn said(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH).and_then(|value| number(value.as_bytes()))
}

/// All but what frames the body, which is written once, and as it is meant.
fn fields(into: &mut Vec<u8>, fields: &HeaderMap) {
    for (name, value) in fields {
        if *name != CONTENT_LENGTH && *name != TRANSFER_ENCODING {
            field(into, name, value);
        }
    }
}

fn field(into: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    into.extend_from_slice(name.as_str().as_bytes());
    into.extend_from_slice(b": ");
    into.extend_from_slice(value.as_bytes());
    into.extend_from_slice(b"\r\n");
}
