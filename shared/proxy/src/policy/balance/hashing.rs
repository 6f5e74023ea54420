//! What a request's hash is made of; as Envoy makes it, so that a cache in front of which both stand is hit by both.

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header::COOKIE};
use meridian_proxy_config::{HashPolicy, HashSource};
use smallvec::SmallVec;
use std::net::IpAddr;
use twox_hash::XxHash64;

/// Hash policies, compiled.
#[derive(Debug)]
pub struct Hashing(Vec<Policy>);

#[derive(Debug)]
struct Policy {
    source: Source,
    terminal: bool,
}

#[derive(Debug)]
enum Source {
    Header(HeaderName),
    /// `attributes`: of a cookie that is made if there is none.
    Cookie {
        name: String,
        attributes: Option<String>,
    },
    Address,
    QueryParameter(String),
}

/// What came of a request.
#[derive(Debug, Default)]
pub struct Hashed {
    /// `None`: it had nothing that any policy asks for.
    pub hash: Option<u64>,
    /// For its answer: cookies that were made.
    pub cookies: SmallVec<[HeaderValue; 1]>,
}

impl Hashing {
    /// # Errors
    /// A name can't be one.
    pub fn compile(config: &[HashPolicy]) -> Result<Self, String> {
        let policy =
            |policy: &HashPolicy| Ok(Policy { source: source(&policy.source)?, terminal: policy.terminal });
        config.iter().map(policy).collect::<Result<_, _>>().map(Self)
    }

    /// Of an HTTP request from an address. `lot`: a random number, for each cookie that is made.
    pub fn of_request(&self, headers: &HeaderMap, uri: &Uri, from: IpAddr, lot: impl Fn() -> u64) -> Hashed {
        let mut cookies = SmallVec::new();
        let hash = self.fold(|source| match source {
            Source::Header(name) => of_header(headers, name),
            Source::Address => Some(of_address(from)),
            Source::QueryParameter(name) => {
                let pairs = uri.query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
                pairs.into_iter().find(|(key, _)| key == name).map(|(_, value)| xx(value.as_bytes(), 0))
            }
            Source::Cookie { name, attributes } => match (cookie(headers, name), attributes) {
                (Some(value), _) => Some(xx(value, 0)),
                (None, None) => None,
                (None, Some(attributes)) => {
                    let value = format!("{:016x}", lot());
                    cookies.extend(HeaderValue::try_from(format!("{name}={value}{attributes}")));
                    Some(xx(value.as_bytes(), 0))
                }
            },
        });
        Hashed { hash, cookies }
    }

    /// Of a connection that is not HTTP.
    pub fn of_connection(&self, from: IpAddr) -> Option<u64> {
        self.fold(|source| matches!(source, Source::Address).then(|| of_address(from)))
    }

    fn fold(&self, mut hash_of: impl FnMut(&Source) -> Option<u64>) -> Option<u64> {
        let mut hash = None;
        for policy in &self.0 {
            if let Some(next) = hash_of(&policy.source) {
                hash = Some(hash.unwrap_or(0_u64).rotate_left(1) ^ next);
            }
            if policy.terminal && hash.is_some() {
                break;
            }
        }
        hash
    }
}

fn source(config: &HashSource) -> Result<Source, String> {
    Ok(match config {
        HashSource::Header(name) => Source::Header(header_name(name)?),
        HashSource::SourceIp => Source::Address,
        HashSource::QueryParameter(name) => Source::QueryParameter(name.clone()),
        HashSource::Cookie { name, made_for_seconds, path } => {
            // Cookies' names are tokens, as those of headers are.
            header_name(name)?;
            let path = path.as_ref().map(|path| format!("; Path={path}")).unwrap_or_default();
            let attributes = made_for_seconds.map(|seconds| {
                let age = if seconds > 0 { format!("; Max-Age={seconds}") } else { String::new() };
                format!("{age}{path}; HttpOnly")
            });
            let wrong = |_| format!("path {path:?} of cookie {name:?}");
            attributes.as_ref().map(HeaderValue::try_from).transpose().map_err(wrong)?;
            Source::Cookie { name: name.clone(), attributes }
        }
    })
}

fn header_name(name: &str) -> Result<HeaderName, String> {
    HeaderName::try_from(name).map_err(|_| format!("name {name:?}"))
}

/// All values of a header, in whatever order they came.
fn of_header(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    let mut values: SmallVec<[&[u8]; 4]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    values.sort_unstable();
    values.into_iter().fold(None, |seed, value| Some(xx(value, seed.unwrap_or(0))))
}

fn of_address(address: IpAddr) -> u64 {
    xx(address.to_canonical().to_string().as_bytes(), 0)
}

/// A cookie's value, unless it is empty. HTTP/2 clients may send each cookie in a header of its own.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let pairs =
        headers.get_all(COOKIE).iter().flat_map(|header| header.as_bytes().split(|byte| *byte == b';'));
    let mut values = pairs.filter_map(|pair| {
        let pair = pair.trim_ascii();
        let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        let quoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        Some(quoted.unwrap_or(value))
    });
    values.next().filter(|value| !value.is_empty())
}

pub(super) fn xx(bytes: &[u8], seed: u64) -> u64 {
    XxHash64::oneshot(seed, bytes)
}

/// MurmurHash2 for 64 bits, with the seed of libstdc++'s `std::hash`, which Envoy takes: 25 lines that a crate would not
/// make shorter.
pub(super) fn murmur2(bytes: &[u8]) -> u64 {
    const SEED: u64 = 0xc70f_6907;
    const MULTIPLIER: u64 = 0xc6a4_a793_5bd1_e995;
    let mix = |word: u64| word ^ (word >> 47);
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let mut hash = SEED ^ length.wrapping_mul(MULTIPLIER);
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        let word = mix(u64::from_le_bytes(*word).wrapping_mul(MULTIPLIER)).wrapping_mul(MULTIPLIER);
        hash = (hash ^ word).wrapping_mul(MULTIPLIER);
    }
    if !rest.is_empty() {
        let word = rest.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte));
        hash = (hash ^ word).wrapping_mul(MULTIPLIER);
    }
    mix(mix(hash).wrapping_mul(MULTIPLIER))
}

#[cfg(test)]
mod tests;
