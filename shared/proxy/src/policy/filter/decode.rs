//! Encodings of bodies and messages, undone as they stream.

use super::{Unexaminable, What};
use http::HeaderMap;
use std::io::{self, Write};

/// Memory that a frame may ask for (zstd): 2 MiB, what its default level asks for.
const ZSTD_WINDOW_LOG: u32 = 21;
/// The same of brotli: 4 MiB, its encoders' default.
const BROTLI_WINDOW_LOG: u8 = 22;
/// Brotli's output buffer.
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
    /// Made with the first byte, which tells what kind it is.
    inner: Inner<W>,
}

enum Inner<W: Write> {
    Fresh(Option<W>),
    Made(Box<dyn Write>),
}

impl<W: Write + 'static> Decoder<W> {
    pub(super) fn new(coding: Coding, sink: W) -> Self {
        Self { coding, inner: Inner::Fresh(Some(sink)) }
    }

    /// # Errors
    /// The sink's, or what is written is not of the coding.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(first) = bytes.first() else { return Ok(()) };
        if let Inner::Fresh(sink) = &mut self.inner
            && let Some(sink) = sink.take()
        {
            self.inner = Inner::Made(decoder(self.coding, *first, sink)?);
        }
        match &mut self.inner {
            Inner::Fresh(_) => Err(io::ErrorKind::InvalidData.into()),
            Inner::Made(decoder) => {
                decoder.write_all(bytes)?;
                decoder.flush()
            }
        }
    }
}

fn decoder<W: Write + 'static>(coding: Coding, first: u8, sink: W) -> io::Result<Box<dyn Write>> {
    Ok(match coding {
        Coding::Gzip => Box::new(flate2::write::MultiGzDecoder::new(sink)),
        // RFC 9110 8.4.1.2 means zlib's form; some send the bare one.
        Coding::Deflate if is_zlib(first) => Box::new(flate2::write::ZlibDecoder::new(sink)),
        Coding::Deflate => Box::new(flate2::write::DeflateDecoder::new(sink)),
        Coding::Brotli if brotli_window_log(first).is_none_or(|log| log > BROTLI_WINDOW_LOG) => {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Coding::Brotli => Box::new(brotli_decompressor::DecompressorWriter::new(sink, BUFFER)),
        Coding::Zstd => {
            let mut decoder = zstd::stream::write::Decoder::new(sink)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
    })
}

/// RFC 1950: deflate, with a window of at most 32 KiB.
fn is_zlib(first: u8) -> bool {
    first & 0x0f == 8 && first >> 4 <= 7
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
