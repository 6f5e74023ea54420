//! What a sidecar tells of itself and of its applications, and to whom. A resource of its own, so that one that can't be
//! read costs nothing but the numbers.

use crate::Collector;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU64};

/// Without a backend nothing is gathered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Metrics {
    /// The Dataplane's own address: scrapers dial it.
    pub address: IpAddr,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prometheus: Vec<Prometheus>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub open_telemetry: Vec<OpenTelemetry>,
    #[serde(default, skip_serializing_if = "crate::policies::unset")]
    pub sidecar: SidecarMetrics,
    /// In the order in which they are asked and written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub applications: Vec<ApplicationMetrics>,
}

/// Where scrapers are answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Prometheus {
    pub port: NonZeroU16,
    /// Begins with `/`, and has no query.
    pub path: String,
    #[serde(default, skip_serializing_if = "crate::policies::unset")]
    pub tls: ScrapeTls,
}

/// How scrapers' connections are secured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ScrapeTls {
    #[default]
    Off,
    /// By the certificate that the proxy was given; scrapers need none.
    Provided,
    /// By the proxy's identity in its mesh; scrapers need one of the same mesh.
    Mesh,
}

/// A collector that is sent metrics.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct OpenTelemetry {
    pub collector: Collector,
    pub interval_millis: NonZeroU64,
}

/// Which of the proxy's own series are given: those of a profile without the excluded, and with the included again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct SidecarMetrics {
    /// Also what was never counted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub include_unused: bool,
    pub profile: MetricProfile,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<NameMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<NameMatch>,
}

/// Each contains the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MetricProfile {
    None,
    /// What dashboards show.
    Basic,
    #[default]
    All,
}

/// How a series' name is compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NameMatch {
    Exact(String),
    Prefix(String),
    Contains(String),
    /// Found anywhere in the name.
    Regex(String),
}

/// An application that is scraped when the sidecar is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ApplicationMetrics {
    /// The value of the label `application`.
    pub name: String,
    /// Of the proxy's own host.
    pub address: SocketAddr,
    /// Begins with `/`; may have a query.
    pub path: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_not_sent_and_what_is_not_known_is_refused() {
        let body = r#"{"address":"192.0.2.1","prometheus":[{"port":5670,"path":"/metrics"},{"port":5671,"path":"/metrics","tls":"mesh"}],"sidecar":{"profile":"basic","exclude":[{"regex":"a.c"}]}}"#;
        let metrics: Metrics = serde_json::from_str(body).unwrap();
        assert_eq!(serde_json::to_string(&metrics).unwrap(), body);
        for wrong in [
            r#"{"address":"192.0.2.1","prometheus":[{"port":0,"path":"/"}]}"#,
            r#"{"address":"192.0.2.1","prometheus":[{"port":1,"path":"/","tls":{}}]}"#,
            r#"{"address":"192.0.2.1","prometheus":[{"port":1,"path":"/","tls":"some"}]}"#,
            r#"{"address":"192.0.2.1","sidecar":{"profile":"some"}}"#,
        ] {
            assert!(serde_json::from_str::<Metrics>(wrong).is_err(), "{wrong}");
        }
    }
}
