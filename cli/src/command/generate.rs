//! Tokens and keys: by the control plane, or here with a signing key that never was on it.

use crate::connection::{Connection, duration, read_file};
use crate::failure::{Failure, Result};
use crate::output;
use base64::{Engine, engine::general_purpose::STANDARD};
use meridian_auth::{Claims, DataplaneClaims, SigningKey, UserClaims, ZoneClaims};
use meridian_core::duration::GoDuration;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use time::OffsetDateTime;

/// Make tokens and signing keys
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Generate {
    /// Token for a sidecar
    #[command(name = "dataplane-token")]
    Dataplane(DataplaneToken),
    /// Token for a zone's control plane, ingress or egress
    #[command(name = "zone-token")]
    Zone(ZoneToken),
    /// Token for a person or program at the API
    #[command(name = "user-token")]
    User(UserToken),
    /// Private key for signing tokens offline
    SigningKey {
        /// How to write it
        #[arg(long, value_enum, default_value_t)]
        format: KeyFormat,
    },
    /// Public half of a signing key: what a control plane needs to accept its tokens
    PublicKey {
        /// Private key (PEM)
        #[arg(long, alias = "signing-key-path", value_name = "FILE")]
        signing_key_file: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum KeyFormat {
    #[default]
    Pem,
    PemBase64,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DataplaneToken {
    /// Name of the Dataplane that it is for
    #[arg(long)]
    name: Option<String>,
    /// Mesh
    #[arg(short, long, value_name = "MESH", default_value = "default")]
    mesh: String,
    /// Values that a tag may have; kuma.io/service=NAME binds the token to a service
    #[arg(long, value_name = "KEY=VALUE[,VALUE]", value_parser = tag)]
    tag: Vec<(String, Vec<String>)>,
    /// Value that the label kuma.io/workload must have
    #[arg(long)]
    workload: Option<String>,
    /// Kind of proxy; ingress and egress take zone tokens
    #[arg(long, alias = "type", value_name = "KIND", value_parser = ["dataplane"])]
    proxy_type: Option<String>,
    #[command(flatten)]
    issue: Issue,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ZoneToken {
    /// Name of the zone
    #[arg(long)]
    zone: String,
    /// What it may be used for: cp, ingress, egress
    #[arg(long, value_delimiter = ',', default_value = "cp", value_parser = ["cp", "ingress", "egress"])]
    scope: Vec<String>,
    #[command(flatten)]
    issue: Issue,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct UserToken {
    /// Name of the user
    #[arg(long)]
    name: String,
    /// Group of the user; mesh-system:admin may do everything
    #[arg(long, value_delimiter = ',')]
    group: Vec<String>,
    #[command(flatten)]
    issue: Issue,
}

/// By whom, and for how long.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Issue {
    /// How long it is valid: 24h, 30d
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    valid_for: Duration,
    /// Sign here with this private key (PEM) instead of asking the control plane
    #[arg(long, alias = "signing-key-path", value_name = "FILE", requires = "kid")]
    signing_key_file: Option<PathBuf>,
    /// Name under which the control plane knows the key
    #[arg(long, value_name = "ID", requires = "signing_key_file")]
    kid: Option<String>,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) async fn run(generate: Generate) -> Result<()> {
    let text = match generate {
        Generate::Dataplane(token) => {
            if token.name.is_none() && !token.tag.iter().any(|(tag, _)| tag == meridian_core::labels::SERVICE)
            {
                output::note(
                    "warning: the token binds neither --name nor --tag kuma.io/service=...: zones refuse it unless they allow unbound tokens",
                );
            }
            let claims = token.claims();
            let request = json!({"name": claims.name, "mesh": claims.mesh, "tags": claims.tags, "type": claims.kind, "workload": claims.workload});
            token.issue.issue("dataplane", &claims, request).await?
        }
        Generate::Zone(token) => {
            let claims = ZoneClaims { zone: token.zone, scope: token.scope };
            let request = json!({"zone": claims.zone, "scope": claims.scope});
            token.issue.issue("zone", &claims, request).await?
        }
        Generate::User(token) => {
            let claims = UserClaims { name: token.name, groups: token.group };
            let request = json!({"name": claims.name, "groups": claims.groups});
            token.issue.issue("user", &claims, request).await?
        }
        Generate::SigningKey { format } => {
            let key = SigningKey::generate("").map_err(|error| Failure::usage(error.to_string()))?;
            match format {
                KeyFormat::Pem => key.to_pem().to_owned(),
                KeyFormat::PemBase64 => STANDARD.encode(key.to_pem()),
            }
        }
        Generate::PublicKey { signing_key_file } => {
            signing_key("", &signing_key_file)?.public_key_pem().to_owned()
        }
    };
    output::print(&text);
    Ok(())
}

impl DataplaneToken {
    fn claims(&self) -> DataplaneClaims {
        let mut tags: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (tag, values) in &self.tag {
            tags.entry(tag.clone()).or_default().extend(values.iter().cloned());
        }
        DataplaneClaims {
            name: self.name.clone().unwrap_or_default(),
            mesh: self.mesh.clone(),
            tags,
            kind: self.proxy_type.clone().unwrap_or_default(),
            workload: self.workload.clone().unwrap_or_default(),
        }
    }
}

impl Issue {
    async fn issue<C: Claims>(&self, kind: &str, claims: &C, mut request: Value) -> Result<String> {
        if let (Some(file), Some(kid)) = (&self.signing_key_file, &self.kid) {
            let valid_for = self
                .valid_for
                .try_into()
                .map_err(|_| Failure::usage("--valid-for is longer than times can be"))?;
            let issued = signing_key(kid, file)?.issue(claims, valid_for, OffsetDateTime::now_utc());
            return issued.map(|token| token.text).map_err(|error| Failure::usage(error.to_string()));
        }
        if let Some(fields) = request.as_object_mut() {
            fields.insert("validFor".to_owned(), GoDuration(self.valid_for).format().into());
        }
        let answer = self.connection.client()?.post(&format!("/tokens/{kind}"), &request).await?;
        Ok(answer.text.trim().to_owned())
    }
}

fn signing_key(kid: &str, file: &std::path::Path) -> Result<SigningKey> {
    let text = read_file(file)?;
    SigningKey::from_pem(kid, &text).map_err(|error| {
        Failure::usage(format!("{}: {error}", file.display()))
            .next("`meridian generate signing-key` makes one.")
    })
}

fn tag(text: &str) -> Result<(String, Vec<String>), String> {
    let (tag, values) = text
        .split_once('=')
        .filter(|(tag, _)| !tag.is_empty())
        .ok_or("write KEY=VALUE or KEY=VALUE,VALUE")?;
    let values: Vec<String> =
        values.split(',').map(str::trim).filter(|value| !value.is_empty()).map(str::to_owned).collect();
    if values.is_empty() { Err("it has no value".to_owned()) } else { Ok((tag.to_owned(), values)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meridian_auth::Verifier;

    fn offline(directory: &std::path::Path) -> Issue {
        let file = directory.join("key.pem");
        std::fs::write(&file, SigningKey::generate("").unwrap().to_pem()).unwrap();
        Issue {
            valid_for: Duration::from_secs(3600),
            signing_key_file: Some(file),
            kid: Some("offline-1".into()),
            connection: Connection::default(),
        }
    }

    #[tokio::test]
    async fn offline_tokens_hold_where_their_public_key_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let issue = offline(dir.path());
        let key = signing_key("offline-1", issue.signing_key_file.as_deref().unwrap()).unwrap();
        let claims = ZoneClaims { zone: "east".into(), scope: vec!["egress".into()] };
        let token = issue.issue("zone", &claims, json!({})).await.unwrap();
        let mut verifier = Verifier::default();
        verifier.add_key(&key.verification_key::<ZoneClaims>(None)).unwrap();
        assert_eq!(verifier.verify::<ZoneClaims>(&token, OffsetDateTime::now_utc()).unwrap().claims, claims);
    }

    #[test]
    fn tags_add_up() {
        assert_eq!(
            tag("kuma.io/service=web,web-admin").unwrap(),
            ("kuma.io/service".into(), vec!["web".into(), "web-admin".into()])
        );
        for bad in ["x", "=y", "x=", "x=,"] {
            assert!(tag(bad).is_err(), "{bad}");
        }
        assert!(
            meridian_auth::ZoneScope::ALL
                .iter()
                .all(|scope| ["cp", "ingress", "egress"].contains(&scope.as_str()))
        );
    }
}
