//! Where the two control planes differ behind the same routes.

use crate::access::User;
use crate::problem::Problem;
use crate::report::ZoneReport;
use futures::future::BoxFuture;
use http::StatusCode;
use meridian_core::Resource;
use meridian_store::{Change, Stored};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// What else belongs into the transaction of a write, and what the writer should hear.
#[derive(Debug, Default)]
pub struct Effects {
    pub changes: Vec<Change>,
    pub warnings: Vec<String>,
}

/// A checked resource about to be written.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    pub user: &'a User,
    pub resource: &'a Resource,
    /// What is there now.
    pub before: Option<&'a Stored>,
}

/// `POST /tokens/...`: Kuma's request bodies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenRequest {
    Dataplane(DataplaneTokenRequest),
    Zone(ZoneTokenRequest),
    User(UserTokenRequest),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct DataplaneTokenRequest {
    pub name: String,
    pub mesh: String,
    pub tags: BTreeMap<String, Vec<String>>,
    /// `dataplane` (or empty); Kuma's `ingress` and `egress` are zone tokens here.
    #[serde(rename = "type")]
    pub type_: String,
    pub workload: String,
    /// A Go duration (`24h`); empty: ten years, as in Kuma.
    pub valid_for: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ZoneTokenRequest {
    pub zone: String,
    /// Of `cp`, `ingress`, `egress`.
    pub scope: Vec<String>,
    pub valid_for: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct UserTokenRequest {
    pub name: String,
    pub groups: Vec<String>,
    pub valid_for: String,
}

/// `GET /meshes/{mesh}/dataplanes/{name}/_config`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProxyConfigRequest {
    /// Policies that are only tried out count as if they were in force.
    pub shadow: bool,
    /// Say what differs from what the proxy is told now.
    pub diff: bool,
}

/// `POST /meshes/{mesh}/_rotate-ca`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotateCa {
    /// Begin, or say how far the present one is.
    Start,
    /// Back to the root that was there before; refused after the last step.
    Abort,
    /// Only look (`GET`).
    Show,
}

/// The control plane behind the API. What a role does not have answers 405 by default.
pub trait Hooks: Send + Sync + 'static {
    /// Who bears this user token; the error says why nobody does.
    fn authenticate(&self, token: &str) -> Result<User, String>;

    /// Before a resource is written: more changes for the same transaction, warnings, or a refusal.
    fn before_put<'a>(&'a self, _write: Write<'a>) -> BoxFuture<'a, Result<Effects, Problem>> {
        Box::pin(async { Ok(Effects::default()) })
    }

    /// Before a resource is deleted: more changes for the same transaction, or a refusal.
    fn before_delete<'a>(
        &'a self,
        _user: &'a User,
        _stored: &'a Stored,
    ) -> BoxFuture<'a, Result<Effects, Problem>> {
        Box::pin(async { Ok(Effects::default()) })
    }

    /// After a write was committed: things outside the store.
    fn committed<'a>(&'a self, _changes: &'a [Change]) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }

    /// State and refusals: of all zones at global, of itself at a zone.
    fn reports(&self) -> BoxFuture<'_, Result<Vec<ZoneReport>, Problem>>;

    /// The status of a resource whose status is found out when somebody asks (a zone's addresses for what global wrote):
    /// in place of what is stored. None: what is stored is all.
    fn status(&self, _resource: &Resource) -> Option<Value> {
        None
    }

    /// Makes a token.
    fn issue_token<'a>(&'a self, _request: &'a TokenRequest) -> BoxFuture<'a, Result<String, Problem>> {
        not_here("Tokens are issued by the global control plane")
    }

    /// Rotates the root of a mesh; the answer says how far it is.
    fn rotate_ca<'a>(
        &'a self,
        _user: &'a User,
        _mesh: &'a str,
        _what: RotateCa,
    ) -> BoxFuture<'a, Result<Value, Problem>> {
        not_here("Roots are rotated at the global control plane")
    }

    /// Shuts a zone out: its intermediates and client certificates.
    fn revoke_zone<'a>(&'a self, _user: &'a User, _zone: &'a str) -> BoxFuture<'a, Result<Value, Problem>> {
        not_here("Zones are revoked at the global control plane")
    }

    /// Takes the global control plane that the zone has refused, with all that its deletions take away.
    fn accept_global<'a>(&'a self, _user: &'a User) -> BoxFuture<'a, Result<Value, Problem>> {
        not_here("Only a zone's control plane accepts a global one")
    }

    /// Applies the deletions of a zone's resources that were held back because nobody vouches for them.
    fn confirm_deletions<'a>(
        &'a self,
        _user: &'a User,
        _zone: &'a str,
    ) -> BoxFuture<'a, Result<Value, Problem>> {
        not_here("Deletions of zones are confirmed at the global control plane")
    }

    /// What a sidecar is told: no secrets. Its zone knows.
    fn proxy_config<'a>(
        &'a self,
        _dataplane: &'a Resource,
        _asked: ProxyConfigRequest,
    ) -> BoxFuture<'a, Result<Value, Problem>> {
        not_here("Sidecars are configured by their zone's control plane")
    }

    /// The configuration as `/config` shows it: no secrets.
    fn config(&self) -> Value;
}

fn not_here<T: Send + 'static>(detail: &'static str) -> BoxFuture<'static, Result<T, Problem>> {
    Box::pin(
        async move { Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "Operation not allowed", detail)) },
    )
}
