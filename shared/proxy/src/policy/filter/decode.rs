//! Encodings of bodies and messages, undone as they stream.

use super::{Unexaminable, What};
use http::HeaderMap;
use smallvec::SmallVec;
use std::io::{self, Write};

/// Memory that a frame may ask for (zstd): 2 MiB, what its default level asks for.
const ZSTD_WINDOW_LOG: u32 = 21;
/// The same of brotli: 4 MiB, its encoders' default.
const BROTLI_WINDOW_LOG: u8 = 22;
/// The output buffer of brotli and deflate.
const BUFFER: usize = 4 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

/// The coding that a header names, if it names one.
///
/// # Errors
/// It is not known, or there are several.
pub(super) fn coding(headers: &HeaderMap, name: &str) -> Result<Option<Coding>, What> {
    let mut found = None;
    for value in headers.get_all(name) {
        let value = value.to_str().map_err(|_| UNKNOWN)?.to_ascii_lowercase();
        for token in value.split(',').map(str::trim).filter(|token| !matches!(*token, "" | "identity")) {
            let coding = match token {
                "gzip" | "x-gzip" => Coding::Gzip,
                "deflate" => Coding::Deflate,
                "br" => Coding::Brotli,
                "zstd" => Coding::Zstd,
                _ => return Err(UNKNOWN),
            };
            if found.replace(coding).is_some() {
                return Err(UNKNOWN);
            }
        }
    }
    Ok(found)
}

const UNKNOWN: What = What::Unexaminable(Unexaminable::Encoding);

/// What is written to it goes decoded into `sink`, all that can be told of it at once after a flush.
pub(super) struct Decoder<W: Write> {
    coding: Coding,
    /// Made when the first bytes have told what kind it is.
    inner: Inner<W>,
}

enum Inner<W: Write> {
    Fresh {
        sink: W,
        begin: SmallVec<[u8; KIND]>,
    },
    Made(Box<dyn Decode>),
    /// Nothing could be made of what was written.
    Failed,
}

trait Decode: Write {
    /// The encoded form ends here.
    ///
    /// # Errors
    /// It does not.
    fn end(&mut self) -> io::Result<()>;
}

impl<W: Write + 'static> Decoder<W> {
    pub(super) fn new(coding: Coding, sink: W) -> Self {
        Self { coding, inner: Inner::Fresh { sink, begin: SmallVec::new() } }
    }

    /// # Errors
    /// The sink's, or what is written is not of the coding ([`io::ErrorKind::Unsupported`]: of which coding can't be told).
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if let Inner::Fresh { begin, .. } = &mut self.inner {
            let (first, rest) = bytes.split_at_checked(KIND - begin.len()).unwrap_or((bytes, &[]));
            begin.extend_from_slice(first);
            bytes = rest;
            let Some(kind) = kind(self.coding, begin)? else { return Ok(()) };
            let Inner::Fresh { sink, begin } = std::mem::replace(&mut self.inner, Inner::Failed) else {
                return Ok(());
            };
            let mut decoder = decoder(kind, sink)?;
            decoder.write_all(&begin)?;
            self.inner = Inner::Made(decoder);
        }
        match &mut self.inner {
            Inner::Made(decoder) => {
                decoder.write_all(bytes)?;
                decoder.flush()
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// All was written.
    ///
    /// # Errors
    /// The sink's, or it ends inside of its encoded form.
    pub(super) fn end(&mut self) -> io::Result<()> {
        match &mut self.inner {
            Inner::Made(decoder) => decoder.end(),
            // A body of no bytes is what some send with a coding.
            Inner::Fresh { begin, .. } if begin.is_empty() => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// So many bytes tell any coding's kind.
const KIND: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Gzip,
    Zlib,
    Bare,
    Brotli,
    Zstd,
}

/// The kind of what begins so; `None` while it can't be told.
fn kind(coding: Coding, begin: &[u8]) -> io::Result<Option<Kind>> {
    Ok(match (coding, begin) {
        (_, []) => None,
        (Coding::Gzip, _) => Some(Kind::Gzip),
        (Coding::Zstd, _) => Some(Kind::Zstd),
        (Coding::Brotli, [first, ..])
            if brotli_window_log(*first).is_none_or(|log| log > BROTLI_WINDOW_LOG) =>
        {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        (Coding::Brotli, _) => Some(Kind::Brotli),
        (Coding::Deflate, [first, ..]) if first & 0x0f != 8 || first >> 4 > 7 => Some(Kind::Bare),
        (Coding::Deflate, [first, second, ..]) if u16::from_be_bytes([*first, *second]) % 31 != 0 => {
            Some(Kind::Bare)
        }
        // RFC 1950's header is also the begin of a stored block (RFC 1951 3.2.4), if a length and its complement follow.
        (Coding::Deflate, [_, low, high, not_low, not_high, ..]) => {
            if *not_low == !low && *not_high == !high {
                return Err(io::ErrorKind::Unsupported.into());
            }
            Some(Kind::Zlib)
        }
        (Coding::Deflate, _) => None,
    })
}

fn decoder<W: Write + 'static>(kind: Kind, sink: W) -> io::Result<Box<dyn Decode>> {
    Ok(match kind {
        Kind::Gzip => Box::new(flate2::write::MultiGzDecoder::new(sink)),
        // RFC 9110 8.4.1.2 means zlib's form; some send the bare one.
        Kind::Zlib => Box::new(Inflate::new(true, sink)),
        Kind::Bare => Box::new(Inflate::new(false, sink)),
        Kind::Brotli => Box::new(brotli_decompressor::DecompressorWriter::new(sink, BUFFER)),
        Kind::Zstd => {
            let mut decoder = zstd::stream::raw::Decoder::new()?;
            decoder.set_parameter(zstd::stream::raw::DParameter::WindowLogMax(ZSTD_WINDOW_LOG))?;
            Box::new(zstd::stream::zio::Writer::new(sink, decoder))
        }
    })
}

impl<W: Write> Decode for flate2::write::MultiGzDecoder<W> {
    fn end(&mut self) -> io::Result<()> {
        self.try_finish()
    }
}

impl<W: Write> Decode for brotli_decompressor::DecompressorWriter<W> {
    fn end(&mut self) -> io::Result<()> {
        self.close()
    }
}

impl<W: Write> Decode for zstd::stream::zio::Writer<W, zstd::stream::raw::Decoder<'static>> {
    fn end(&mut self) -> io::Result<()> {
        self.finish()
    }
}

/// Deflate, with or without zlib's frame. `flate2`'s own writers do not say whether the end was reached.
struct Inflate<W> {
    state: flate2::Decompress,
    ended: bool,
    buffer: Vec<u8>,
    sink: W,
}

impl<W: Write> Inflate<W> {
    fn new(zlib: bool, sink: W) -> Self {
        Self { state: flate2::Decompress::new(zlib), ended: false, buffer: Vec::with_capacity(BUFFER), sink }
    }
}

impl<W: Write> Write for Inflate<W> {
    /// Takes all, and says all that can be told of it.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        loop {
            if self.ended {
                // What follows the end would be read by nobody.
                return if rest.is_empty() {
                    Ok(bytes.len())
                } else {
                    Err(io::ErrorKind::InvalidData.into())
                };
            }
            let before = self.state.total_in();
            self.buffer.clear();
            let status = self.state.decompress_vec(rest, &mut self.buffer, flate2::FlushDecompress::Sync)?;
            let taken = usize::try_from(self.state.total_in() - before).unwrap_or(usize::MAX);
            rest = rest.get(taken..).unwrap_or_default();
            self.sink.write_all(&self.buffer)?;
            self.ended = status == flate2::Status::StreamEnd;
            let full = self.buffer.len() == self.buffer.capacity();
            if self.ended || full {
                continue;
            }
            if rest.is_empty() {
                return Ok(bytes.len());
            }
            if taken == 0 && self.buffer.is_empty() {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write> Decode for Inflate<W> {
    fn end(&mut self) -> io::Result<()> {
        if self.ended { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// RFC 7932 9.1; `None`: more than 24, which is not of the standard.
fn brotli_window_log(first: u8) -> Option<u8> {
    if first & 1 == 0 {
        return Some(16);
    }
    match (first >> 1 & 7, first >> 4 & 7) {
        (0, 0) => Some(17),
        (0, 1) => None,
        (0, low) => Some(8 + low),
        (high, _) => Some(17 + high),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_of_brotli() {
        for (first, log) in [
            (0b0000_0000, Some(16)),
            (0b0000_0001, Some(17)),
            (0b0111_0001, Some(15)),
            (0b0010_0001, Some(10)),
            (0b0001_0001, None),
            (0b0000_0011, Some(18)),
            (0b0000_1111, Some(24)),
            (0x8b, Some(22)),
        ] {
            assert_eq!(brotli_window_log(first), log, "{first:08b}");
        }
    }

    #[test]
    fn kinds_of_deflate() {
        for (begin, kind_of) in [
            (&[][..], Ok(None)),
            (&[0x78], Ok(None)),
            (&[0x78, 0x9c], Ok(None)),
            (&[0x78, 0x9c, 3, 0, 0], Ok(Some(Kind::Zlib))),
            // Not divisible by 31: no header, but a stored block.
            (&[0x78, 0x02], Ok(Some(Kind::Bare))),
            (&[0x00], Ok(Some(Kind::Bare))),
            (&[0x88], Ok(Some(Kind::Bare))),
            (&[0x78, 0x01, 0x00, 0xfe, 0xff], Err(io::ErrorKind::Unsupported)),
            (&[0x78, 0x01, 0x00, 0xfe, 0xfe], Ok(Some(Kind::Zlib))),
        ] {
            assert_eq!(kind(Coding::Deflate, begin).map_err(|error| error.kind()), kind_of, "{begin:x?}");
        }
    }

    #[test]
    fn codings() {
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("content-encoding", value.parse().unwrap());
            }
            coding(&headers, "content-encoding")
        };
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&["identity"]), Ok(None));
        assert_eq!(of(&["GZIP"]), Ok(Some(Coding::Gzip)));
        assert_eq!(of(&["identity, br"]), Ok(Some(Coding::Brotli)));
        for several in [&["gzip, gzip"][..], &["gzip", "br"], &["compress"], &["gzip;q=1"]] {
            assert_eq!(of(several), Err(UNKNOWN), "{several:?}");
        }
    }
}
