//! Where a body ends: bytes in, frames out.

use super::{
    Error, MAX_FIELDS,
    parse::{Framing, Partial},
};
use bytes::{Buf, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
        CONTENT_TYPE, COOKIE, EXPECT, HOST, PROXY_AUTHORIZATION, RANGE, SET_COOKIE, TE, TRAILER,
        TRANSFER_ENCODING, UPGRADE,
    },
};
use httparse::Status;

/// Bytes of chunk extensions in one body, which nobody reads (as hyper).
const MAX_EXTENSIONS: usize = 16 << 10;
/// Bytes of the fields behind a body.
const MAX_TRAILERS: usize = 16 << 10;

/// The rest of a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decoder {
    Length(u64),
    Chunked(Chunked),
    /// Up to the connection's end.
    End,
    Done,
    /// It was no body: nobody knows where anything behind it begins.
    Broken,
}

/// Where in a chunked body the next byte is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chunked {
    at: At,
    extensions: usize,
    /// Of the fields behind the last chunk.
    partial: Partial,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// In a chunk's size, of which there are so many digits.
    Size(u64, u8),
    /// Behind it, where blanks may be.
    Blank(u64),
    Extension(u64),
    SizeLf(u64),
    Data(u64),
    DataCr,
    DataLf,
    Trailers,
}

/// What comes next of a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    /// Nothing, before more has come.
    More,
    End,
}

impl From<Framing> for Decoder {
    fn from(framing: Framing) -> Self {
        match framing {
            Framing::Length(0) => Self::Done,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => {
                Self::Chunked(Chunked { at: At::Size(0, 0), extensions: 0, partial: Partial::default() })
            }
            Framing::End => Self::End,
        }
    }
}

impl Decoder {
    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    pub(super) fn is_broken(&self) -> bool {
        matches!(self, Self::Broken)
    }

    /// How much is left, if that is known.
    pub(super) fn left(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Done => Some(0),
            Self::Chunked(_) | Self::End | Self::Broken => None,
        }
    }

    /// Takes the next piece from a buffer.
    ///
    /// # Errors
    /// It is no body, now and for ever after.
    pub(super) fn next(&mut self, buffer: &mut BytesMut) -> Result<Piece, Error> {
        let piece = match self {
            Self::Done => Piece::End,
            Self::Broken => return Err(Error::Body),
            Self::Length(left) => match take(buffer, *left) {
                Some(data) => {
                    *left -= data.len() as u64;
                    if *left == 0 {
                        *self = Self::Done;
                    }
                    Piece::Data(data)
                }
                None => Piece::More,
            },
            Self::End => take(buffer, u64::MAX).map_or(Piece::More, Piece::Data),
            Self::Chunked(chunked) => match chunked.next(buffer) {
                Ok((piece, false)) => piece,
                Ok((piece, true)) => {
                    *self = Self::Done;
                    piece
                }
                Err(error) => {
                    *self = Self::Broken;
                    return Err(error);
                }
            },
        };
        Ok(piece)
    }

    /// The connection has ended. Whether that is the end of the body, too.
    pub(super) fn ended(&mut self) -> bool {
        let is_end = matches!(self, Self::End | Self::Done);
        if is_end {
            *self = Self::Done;
        }
        is_end
    }
}

/// At most so many bytes, if there are any.
fn take(buffer: &mut BytesMut, most: u64) -> Option<Bytes> {
    let length = buffer.len().min(usize::try_from(most).unwrap_or(usize::MAX));
    (length > 0).then(|| buffer.split_to(length).freeze())
}

impl Chunked {
    /// The next piece, and whether it is the last.
    fn next(&mut self, buffer: &mut BytesMut) -> Result<(Piece, bool), Error> {
        loop {
            match self.at {
                At::Data(left) => {
                    let Some(data) = take(buffer, left) else { return Ok((Piece::More, false)) };
                    let left = left - data.len() as u64;
                    self.at = if left == 0 { At::DataCr } else { At::Data(left) };
                    return Ok((Piece::Data(data), false));
                }
                At::Trailers => return trailers(buffer, &mut self.partial),
                at => {
                    let Some(byte) = buffer.first().copied() else { return Ok((Piece::More, false)) };
                    buffer.advance(1);
                    self.at = self.after(at, byte)?;
                }
            }
        }
    }

    /// Where one is behind a byte of what frames the data. Line ends have both their characters: programs that take one
    /// alone, and programs that do not, see different chunks.
    fn after(&mut self, at: At, byte: u8) -> Result<At, Error> {
        Ok(match (at, byte) {
            (At::Size(size, digits), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') if digits < 16 => {
                let digit = char::from(byte).to_digit(16).map(u64::from).ok_or(Error::Body)?;
                At::Size((size << 4) | digit, digits + 1)
            }
            (At::Size(size, 1..) | At::Blank(size) | At::Extension(size), b'\r') => At::SizeLf(size),
            (At::Size(size, 1..) | At::Blank(size), b';') => At::Extension(size),
            (At::Size(size, 1..), b' ' | b'\t') => At::Blank(size),
            (At::Blank(size), b' ' | b'\t') => {
                self.overhead()?;
                At::Blank(size)
            }
            (At::Extension(size), byte) if byte != b'\n' => {
                self.overhead()?;
                At::Extension(size)
            }
            (At::SizeLf(0), b'\n') => At::Trailers,
            (At::SizeLf(size), b'\n') => At::Data(size),
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Size(0, 0),
            _ => return Err(Error::Body),
        })
    }
}

impl Chunked {
    /// Counts a byte that nobody reads.
    fn overhead(&mut self) -> Result<(), Error> {
        self.extensions += 1;
        if self.extensions > MAX_EXTENSIONS { Err(Error::Body) } else { Ok(()) }
    }
}

/// The fields behind the last chunk, if there are any.
fn trailers(buffer: &mut BytesMut, partial: &mut Partial) -> Result<(Piece, bool), Error> {
    if buffer.starts_with(b"\r\n") {
        buffer.advance(2);
        return Ok((Piece::End, true));
    }
    if !partial.may_be_whole(buffer) && buffer.len() < MAX_TRAILERS {
        return Ok((Piece::More, false));
    }
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    match httparse::parse_headers(buffer, &mut fields).map_err(|_| Error::Body)? {
        Status::Partial if buffer.len() >= MAX_TRAILERS => Err(Error::Body),
        Status::Partial => Ok((Piece::More, false)),
        Status::Complete((length, fields)) => {
            if length > MAX_TRAILERS || !buffer.get(..length).is_some_and(|all| all.ends_with(b"\r\n\r\n")) {
                return Err(Error::Body);
            }
            let mut map = HeaderMap::with_capacity(fields.len());
            for field in fields.iter() {
                let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Error::Body)?;
                let value = HeaderValue::from_bytes(field.value).map_err(|_| Error::Body)?;
                if !is_of_head(&name) {
                    map.append(name, value);
                }
            }
            buffer.advance(length);
            Ok((Piece::Trailers(map), true))
        }
    }
}

/// What must not come behind a body, since who puts it into the head would be deceived (RFC 9110, 6.5.1).
pub(super) fn is_of_head(name: &HeaderName) -> bool {
    const OF_HEAD: [HeaderName; 17] = [
        AUTHORIZATION,
        CACHE_CONTROL,
        CONNECTION,
        CONTENT_ENCODING,
        CONTENT_LENGTH,
        CONTENT_RANGE,
        CONTENT_TYPE,
        COOKIE,
        EXPECT,
        HOST,
        PROXY_AUTHORIZATION,
        RANGE,
        SET_COOKIE,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    OF_HEAD.contains(name)
}

#[cfg(test)]
mod tests;
