//! What certificates say. Reading only: signatures, validity and usage are webpki's to check.

use crate::{TrustError, names};
use rustls_pki_types::UnixTime;
use std::time::Duration;
use time::OffsetDateTime;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, TrustError> {
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|error| TrustError::Malformed(error.to_string()))?;
    if rest.is_empty() { Ok(certificate) } else { Err(TrustError::Malformed("bytes after the end".into())) }
}

/// The URI SANs, each read. Other kinds of names are no part of mesh identity and are skipped.
pub(crate) fn names<'a>(certificate: &'a X509Certificate<'_>) -> Result<Vec<names::Name<'a>>, TrustError> {
    let extension =
        certificate.subject_alternative_name().map_err(|error| TrustError::Malformed(error.to_string()))?;
    let names = extension.iter().flat_map(|extension| &extension.value.general_names);
    Ok(names
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(names::read(uri)),
            _ => None,
        })
        .collect())
}

/// The one zone that a CA or client certificate names.
pub(crate) fn zone<'a>(names: &[names::Name<'a>]) -> Option<&'a str> {
    let mut zones = names.iter().filter_map(|name| match name {
        names::Name::Zone(zone) if !zone.is_empty() => Some(*zone),
        _ => None,
    });
    let zone = zones.next()?;
    zones.next().is_none().then_some(zone)
}

pub(crate) fn validity(certificate: &X509Certificate<'_>) -> (OffsetDateTime, OffsetDateTime) {
    let validity = certificate.validity();
    (validity.not_before.to_datetime(), validity.not_after.to_datetime())
}

pub(crate) fn unix(now: OffsetDateTime) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now.unix_timestamp()).unwrap_or(0)))
}

pub(crate) fn datetime(now: UnixTime) -> OffsetDateTime {
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
