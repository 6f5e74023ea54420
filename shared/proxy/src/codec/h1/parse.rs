//! Heads: from bytes to requests and responses, and how long their bodies are.

use super::{Error, MAX_FIELDS};
use crate::codec::MAX_HEAD;
use bytes::{Buf, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONNECTION, CONTENT_LENGTH, TE, TRANSFER_ENCODING},
};
use httparse::Status;
use std::mem::MaybeUninit;

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
    /// By the connection's.
    End,
}

/// A request, but for its body.
pub(super) struct RequestHead {
    pub(super) request: Request<()>,
    pub(super) framing: Framing,
    /// Another request may follow.
    pub(super) keep: bool,
}

/// A response, but for its body.
pub(super) struct ResponseHead {
    pub(super) response: Response<()>,
    pub(super) framing: Framing,
    pub(super) keep: bool,
}

/// A head that is not whole yet: how much of it was looked at. Bytes that come one by one must not have all of it read
/// again each time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Partial(usize);

impl Partial {
    /// Whether there may be a whole head now.
    pub(super) fn may_be_whole(&mut self, buffer: &[u8]) -> bool {
        let from = self.0.saturating_sub(3);
        let new = buffer.get(from..).unwrap_or_default();
        let first = std::mem::replace(&mut self.0, buffer.len()) == 0;
        // Also the end of an empty head, which has no line before it.
        first || new.windows(2).any(|two| two == b"\n\n") || new.windows(3).any(|three| three == b"\n\r\n")
    }
}

/// Where the fields of a head are in its bytes.
struct Fields {
    places: [(usize, usize, usize, usize); MAX_FIELDS],
    count: usize,
}

impl Fields {
    fn of(buffer: &[u8], headers: &[httparse::Header<'_>]) -> Self {
        let mut places = [(0, 0, 0, 0); MAX_FIELDS];
        for (place, header) in places.iter_mut().zip(headers) {
            let name = offset(buffer, header.name.as_bytes());
            let value = offset(buffer, header.value);
            *place = (name, name + header.name.len(), value, value + header.value.len());
        }
        Self { places, count: headers.len() }
    }

    fn map(&self, head: &Bytes) -> Result<HeaderMap, Error> {
        let mut map = HeaderMap::with_capacity(self.count);
        for (name, name_end, value, value_end) in self.places.iter().take(self.count) {
            let name = HeaderName::from_bytes(head.get(*name..*name_end).ok_or(Error::Head)?);
            let value = HeaderValue::from_maybe_shared(head.slice(*value..*value_end));
            map.append(name.map_err(|_| Error::Head)?, value.map_err(|_| Error::Head)?);
        }
        Ok(map)
    }
}

/// Where a part of a buffer begins in it.
fn offset(buffer: &[u8], part: &[u8]) -> usize {
    part.as_ptr().addr().saturating_sub(buffer.as_ptr().addr())
}

fn failed(error: httparse::Error) -> Error {
    match error {
        httparse::Error::TooManyHeaders => Error::LargeHead,
        _ => Error::Head,
    }
}

fn incomplete(buffer: &[u8]) -> Result<(), Error> {
    if buffer.len() >= MAX_HEAD { Err(Error::LargeHead) } else { Ok(()) }
}

/// Takes a request's head from the beginning of a buffer; `None`: it is not whole yet.
///
/// # Errors
/// It is none, or none that has one meaning only.
pub(super) fn request(buffer: &mut BytesMut, partial: &mut Partial) -> Result<Option<RequestHead>, Error> {
    // Empty lines before it (RFC 9112, 2.2).
    while let Some(blank) = [b"\r\n".as_slice(), b"\n"].into_iter().find(|blank| buffer.starts_with(blank)) {
        buffer.advance(blank.len());
        *partial = Partial::default();
    }
    if !partial.may_be_whole(buffer) {
        return incomplete(buffer).map(|()| None);
    }
    let mut space = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    let length = match parsed.parse_with_uninit_headers(buffer, &mut space).map_err(failed)? {
        Status::Partial => return incomplete(buffer).map(|()| None),
        Status::Complete(length) => length,
    };
    let (Some(method), Some(path), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(Error::Head);
    };
    // A fragment is nobody's but the client's (RFC 9110, 4.2.5): with it the next hop would be asked for another path than
    // was read here.
    if path.contains('#') {
        return Err(Error::Head);
    }
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| Error::Head)?;
    let path = offset(buffer, path.as_bytes())..offset(buffer, path.as_bytes()) + path.len();
    let fields = Fields::of(buffer, parsed.headers);
    *partial = Partial::default();
    if length > MAX_HEAD {
        return Err(Error::LargeHead);
    }
    let head = buffer.split_to(length).freeze();
    let headers = fields.map(&head)?;
    let framing = framing_of_request(&headers, minor)?;
    let mut request = Request::new(());
    *request.uri_mut() = Uri::from_maybe_shared(head.slice(path)).map_err(|_| Error::Head)?;
    *request.method_mut() = method;
    *request.version_mut() = if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    let keep = persists(&headers, minor);
    *request.headers_mut() = headers;
    Ok(Some(RequestHead { request, framing, keep }))
}

/// Takes a response's head from the beginning of a buffer; `None`: it is not whole yet. `method`: of its request.
///
/// # Errors
/// It is none, or none that has one meaning only.
pub(super) fn response(
    buffer: &mut BytesMut,
    partial: &mut Partial,
    method: &Method,
) -> Result<Option<ResponseHead>, Error> {
    if !partial.may_be_whole(buffer) {
        return incomplete(buffer).map(|()| None);
    }
    let mut space = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length =
        match config.parse_response_with_uninit_headers(&mut parsed, buffer, &mut space).map_err(failed)? {
            Status::Partial => return incomplete(buffer).map(|()| None),
            Status::Complete(length) => length,
        };
    let (Some(code), Some(minor)) = (parsed.code, parsed.version) else { return Err(Error::Head) };
    let status = StatusCode::from_u16(code).map_err(|_| Error::Head)?;
    let reason = parsed.reason.filter(|reason| Some(*reason) != status.canonical_reason());
    let reason =
        reason.and_then(|reason| hyper::ext::ReasonPhrase::try_from(reason.as_bytes().to_vec()).ok());
    let fields = Fields::of(buffer, parsed.headers);
    *partial = Partial::default();
    if length > MAX_HEAD {
        return Err(Error::LargeHead);
    }
    let head = buffer.split_to(length).freeze();
    let headers = fields.map(&head)?;
    // HTTP/1.0 knows no codings: its framing is not to be trusted for another message (RFC 9112, 6.1).
    let old = minor == 0 && headers.contains_key(TRANSFER_ENCODING);
    let framing = framing_of_response(&headers, status, method)?;
    let keep = !old && framing != Framing::End && persists(&headers, minor);
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    if let Some(reason) = reason {
        response.extensions_mut().insert(reason);
    }
    Ok(Some(ResponseHead { response, framing, keep }))
}

/// How long a request's body is. Codings that we do not know are the handler's to refuse: it sees them in the head.
fn framing_of_request(headers: &HeaderMap, minor: u8) -> Result<Framing, Error> {
    let length = length(headers)?;
    if !headers.contains_key(TRANSFER_ENCODING) {
        return Ok(Framing::Length(length.unwrap_or_default()));
    }
    // Without chunked as the last one nobody knows where the body ends. HTTP/1.0 knows no codings.
    if minor == 0 || !ends_chunked(headers) {
        return Err(Error::Head);
    }
    Ok(Framing::Chunked)
}

/// The same of a response (RFC 9112, 6.3).
fn framing_of_response(headers: &HeaderMap, status: StatusCode, method: &Method) -> Result<Framing, Error> {
    let length = length(headers)?;
    // Who frames a body of an answer that has none may send one all the same (RFC 9110, 8.6; RFC 9112, 6.1).
    let frames = length.is_some_and(|length| length > 0) || headers.contains_key(TRANSFER_ENCODING);
    if status == StatusCode::NO_CONTENT && frames {
        return Err(Error::Head);
    }
    let none = status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || *method == Method::HEAD;
    match (none, headers.contains_key(TRANSFER_ENCODING), length) {
        (true, _, _) => Ok(Framing::Length(0)),
        // A coding that we would take away unread.
        (false, true, _) if !is_chunked_only(headers) => Err(Error::Head),
        (false, true, _) => Ok(Framing::Chunked),
        (false, false, Some(length)) => Ok(Framing::Length(length)),
        (false, false, None) => Ok(Framing::End),
    }
}

/// What Content-Length says. Said twice, or beside a coding, it is how someone is deceived: RFC 9112, 6.3 lets a recipient
/// choose one, and not every recipient chooses the same.
fn length(headers: &HeaderMap) -> Result<Option<u64>, Error> {
    let mut all = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = all.next() else { return Ok(None) };
    if all.next().is_some() || headers.contains_key(TRANSFER_ENCODING) {
        return Err(Error::Head);
    }
    number(first.as_bytes()).map(Some).ok_or(Error::Head)
}

/// Digits only, up to 64 bits.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn ends_chunked(headers: &HeaderMap) -> bool {
    let last = headers.get_all(TRANSFER_ENCODING).iter().next_back();
    let coding = last.and_then(|value| value.as_bytes().rsplit(|byte| *byte == b',').next());
    coding.is_some_and(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"chunked"))
}

fn is_chunked_only(headers: &HeaderMap) -> bool {
    let mut all = headers.get_all(TRANSFER_ENCODING).iter();
    let first =
        all.next().is_some_and(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"));
    first && all.next().is_none()
}

/// Whether the connection outlives the message (RFC 9112, 9.3).
fn persists(headers: &HeaderMap, minor: u8) -> bool {
    if minor == 0 { has_token(headers, &CONNECTION, "keep-alive") } else { !closes(headers) }
}

pub(super) fn closes(headers: &HeaderMap) -> bool {
    has_token(headers, &CONNECTION, "close")
}

/// Whether fields may follow the body: who asks says that he knows of them.
pub(super) fn takes_trailers(headers: &HeaderMap) -> bool {
    has_token(headers, &TE, "trailers")
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let mut tokens =
        headers.get_all(name).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    tokens.any(|found| found.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

#[cfg(test)]
mod tests;
