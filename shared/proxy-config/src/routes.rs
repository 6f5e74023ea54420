//! Where calls to a destination go, as MeshHTTPRoute and MeshTCPRoute say.
//!
//! A resource beside the destination, as its policies are, since it depends on who calls. Merged, and in the order in which
//! a request is held against it: the proxy takes the first match and decides nothing else. A backend that the zone can't
//! find stays in the list: its share is refused, not given to others.

use crate::policies::unset;
use crate::{AccessLog, HashPolicy, HeaderMatch, Retry, StreamTimeouts};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The name of the routes for calls to an [`crate::External`]. No [`crate::Destination`]'s has as many parts.
pub fn routes_of_external(name: &str) -> String {
    format!("external/{name}")
}

/// Of one destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Routes {
    Http(HttpRoutes),
    /// Each connection goes to one of these, whatever is spoken on it. Never empty.
    Tcp(Vec<RouteBackend>),
}

/// What fits no match goes to the destination itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HttpRoutes {
    /// The first that fits decides.
    pub matches: Vec<HttpMatch>,
    pub rules: Vec<HttpRule>,
}

/// All conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct HttpMatch {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<QueryMatch>,
    /// Which of the rules then holds, counted from 0.
    pub rule: u32,
}

/// A condition on the path as it came: not decoded, without its query.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PathMatch {
    Exact(String),
    /// Whole segments, without a slash at the end but for `/` itself.
    Prefix(String),
    /// The whole path; the syntax is RE2's.
    Regex(String),
}

/// A condition on a parameter of the query, as it came: not decoded; the first of its name counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct QueryMatch {
    pub name: String,
    pub value: QueryValueMatch,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum QueryValueMatch {
    Exact(String),
    /// The whole value.
    Regex(String),
}

/// What becomes of a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct HttpRule {
    /// The hash of its matches, by which Kuma's inspection names it: a rule that keeps its name and its backends goes on
    /// with its turns.
    pub name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub request_headers: Vec<HeaderChange>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub response_headers: Vec<HeaderChange>,
    /// Then nothing is sent anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Redirect>,
    #[serde(skip_serializing_if = "unset")]
    pub rewrite: Rewrite,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<Mirror>,
    /// Unset: the destination itself. Empty: nobody, and every request is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backends: Option<Vec<RouteBackend>>,
    /// In place of the destination's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policies: Option<RoutePolicies>,
}

/// What policies that name a route say of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RoutePolicies {
    #[serde(skip_serializing_if = "unset")]
    pub stream_timeouts: StreamTimeouts,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Who is told of its requests. Unset: who is told of the destination's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_logs: Option<Vec<AccessLog>>,
    /// What a hash is made of, where the endpoint is chosen by one. Unset: what the backend's policies say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<Vec<HashPolicy>>,
}

/// In this order. Names are in lower case, and none that belongs to a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HeaderChange {
    /// Replaces what is there.
    Set(String, String),
    /// Beside what is there.
    Add(String, String),
    Remove(String),
}

/// What is unset is the request's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Redirect {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathChange>,
    pub status: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Rewrite {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathChange>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PathChange {
    Full(String),
    /// In place of the prefix that matched.
    Prefix(String),
}

/// A copy, whose answer nobody reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Mirror {
    /// Of a million requests.
    pub per_million: u32,
    pub to: BackendTarget,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RouteBackend {
    /// Its share is this of the sum of all. Not 0.
    pub weight: u32,
    pub to: BackendTarget,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BackendTarget {
    /// Name of a [`crate::Destination`].
    Destination(String),
    /// Outside of the mesh, and by way of an egress: name of a [`crate::External`].
    External(String),
    /// Those endpoints of a [`crate::Destination`] that have all of these tags.
    Subset { destination: String, tags: BTreeMap<String, String> },
    /// There is no such backend: what was named, and why it is none.
    Missing(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_travel_as_they_are() {
        let body = r#"{"http":{"matches":[{"path":{"prefix":"/a"},"method":"GET","headers":[{"name":"x","value":"present"}],"query":[{"name":"q","value":{"exact":"1"}}],"rule":0}],"rules":[{"name":"h","requestHeaders":[{"set":["a","b"]},{"remove":"c"}],"redirect":{"scheme":"https","path":{"full":"/b"},"status":301},"rewrite":{"hostname":"inner"},"mirrors":[{"perMillion":5,"to":{"destination":"m//audit/80"}}],"backends":[{"weight":9,"to":{"destination":"m//a/80"}},{"weight":1,"to":{"missing":"MeshService b"}},{"weight":1,"to":{"external":"m/extsvc//c"}},{"weight":2,"to":{"subset":{"destination":"m//a/80","tags":{"v":"2"}}}}],"policies":{"streamTimeouts":{"requestMillis":5},"accessLogs":[],"hash":[{"source":"sourceIp"}]}}]}}"#;
        let routes: Routes = serde_json::from_str(body).unwrap();
        assert_eq!(serde_json::to_string(&routes).unwrap(), body);
        let tcp = r#"{"tcp":[{"weight":1,"to":{"destination":"a"}}]}"#;
        assert_eq!(serde_json::to_string(&serde_json::from_str::<Routes>(tcp).unwrap()).unwrap(), tcp);
        for wrong in [
            r#"{"http":{"matches":[],"rules":[],"else":1}}"#,
            r#"{"http":{"matches":[{"cookie":"a","rule":0}],"rules":[]}}"#,
            r#"{"tcp":[{"weight":1,"to":{"anybody":"a"}}]}"#,
        ] {
            assert!(serde_json::from_str::<Routes>(wrong).is_err(), "{wrong}");
        }
    }
}
