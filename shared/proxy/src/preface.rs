//! What a sidecar says first inside a session to an egress: which entry, which host, which port. Never who it is:
//! the egress takes that from the certificate.
//!
//! A big-endian u16 with the length, at most 1,024, then so many bytes of JSON. JSON with unknown fields refused,
//! like all that moves between Meridian's processes: a condition added later must not be skipped by an older egress.
//! HTTP CONNECT was rejected: it brings a header parser, ambiguity and a response to wait for.

use crate::host::{Asked, HostError};
use serde::{Deserialize, Serialize};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

/// A name of 253 bytes and a key fit with room; a larger frame is no preface.
pub const MAX_PREFACE: usize = 1024;

/// How long a sidecar may take for it: it has it ready before it dials.
pub const PREFACE_TIMEOUT: Duration = Duration::from_secs(5);

/// The entry of a caller with mode `All`: no entry, any public address.
pub const ANY_ENTRY: &str = "*";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preface {
    /// Key of an `Entry`, or [`ANY_ENTRY`].
    pub entry: String,
    pub host: Asked,
    pub port: u16,
}

#[derive(Debug, thiserror::Error)]
pub enum PrefaceError {
    #[error("preface longer than {MAX_PREFACE} bytes, or empty")]
    Length,
    #[error("malformed preface")]
    Malformed(#[source] serde_json::Error),
    #[error("invalid host in the preface")]
    Host(#[source] HostError),
    #[error("port 0 in the preface")]
    Port,
    #[error("no whole preface in time")]
    Timeout,
    #[error("reading the preface")]
    Io(#[source] io::Error),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire<'a> {
    #[serde(borrow)]
    entry: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    host: std::borrow::Cow<'a, str>,
    port: u16,
}

impl Preface {
    /// The frame to send.
    pub fn encode(&self) -> Result<Vec<u8>, PrefaceError> {
        let host = self.host.to_string();
        let wire = Wire { entry: self.entry.as_str().into(), host: host.into(), port: self.port };
        let body = serde_json::to_vec(&wire).map_err(PrefaceError::Malformed)?;
        let length = u16::try_from(body.len()).ok().filter(|length| usize::from(*length) <= MAX_PREFACE);
        let mut frame = length.ok_or(PrefaceError::Length)?.to_be_bytes().to_vec();
        frame.extend(body);
        Ok(frame)
    }

    /// Reads the JSON of one frame.
    pub fn decode(body: &[u8]) -> Result<Self, PrefaceError> {
        let wire: Wire<'_> = serde_json::from_slice(body).map_err(PrefaceError::Malformed)?;
        if wire.port == 0 {
            return Err(PrefaceError::Port);
        }
        let host = wire.host.parse().map_err(PrefaceError::Host)?;
        Ok(Self { entry: wire.entry.into_owned(), host, port: wire.port })
    }

    /// Reads exactly one frame: what follows stays in the stream.
    pub async fn read<S: AsyncRead + Unpin>(stream: &mut S, limit: Duration) -> Result<Self, PrefaceError> {
        let read = async {
            let length = usize::from(stream.read_u16().await.map_err(PrefaceError::Io)?);
            if !(1..=MAX_PREFACE).contains(&length) {
                return Err(PrefaceError::Length);
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.map_err(PrefaceError::Io)?;
            Self::decode(&body)
        };
        timeout(limit, read).await.unwrap_or(Err(PrefaceError::Timeout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn preface(host: &str) -> Preface {
        Preface { entry: "es/default/api".into(), host: host.parse().unwrap(), port: 443 }
    }

    #[tokio::test]
    async fn a_frame_is_read_and_nothing_beyond_it() {
        let mut bytes = preface("api.example.com").encode().unwrap();
        bytes.extend(b"GET /");
        let mut input = bytes.as_slice();
        assert_eq!(Preface::read(&mut input, PREFACE_TIMEOUT).await.unwrap(), preface("api.example.com"));
        assert_eq!(input, b"GET /");
    }

    #[tokio::test]
    async fn wrong_frames_are_refused() {
        for bytes in [&[0, 0][..], &[4, 1], &[0, 2, b'{', b'}']] {
            assert!(Preface::read(&mut &bytes[..], PREFACE_TIMEOUT).await.is_err());
        }
        for body in [
            r#"{"entry":"e","host":"a.example","port":0}"#,
            r#"{"entry":"e","host":"a b","port":1}"#,
            r#"{"entry":"e","host":"a.example","port":1,"identity":"spiffe://m/web"}"#,
            r#"{"entry":"e","entry":"f","host":"a.example","port":1}"#,
            r#"{"entry":"e","host":"a.example","port":1} {}"#,
            r#"{"entry":"e","host":"a.example","port":70000}"#,
        ] {
            assert!(Preface::decode(body.as_bytes()).is_err(), "{body}");
        }
    }

    proptest! {
        #[test]
        fn what_is_sent_is_what_is_read(entry in ".{0,80}", host in "[a-z]{1,10}\\.example", port in 1u16..) {
            let sent = Preface { entry, host: host.parse().unwrap(), port };
            let frame = sent.encode().unwrap();
            prop_assert_eq!(Preface::decode(&frame[2..]).unwrap(), sent);
        }

        /// The body of the fuzz target `preface`.
        #[test]
        fn any_bytes_are_read_without_a_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(preface) = Preface::decode(&body) {
                let again = preface.encode().map(|frame| Preface::decode(&frame[2..]).unwrap());
                if let Ok(again) = again { prop_assert_eq!(again, preface); }
            }
        }
    }
}
