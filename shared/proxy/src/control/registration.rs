//! The proxy's own resource, as the control plane is to register it.

use meridian_core::{Key, Resource, document, kinds};
use meridian_delta::Encoded;
use std::sync::Arc;

/// What this proxy says it is.
#[derive(Clone, Debug)]
pub struct Registration {
    resource: Resource,
}

#[derive(Debug, thiserror::Error)]
pub enum RegistrationError {
    #[error("{0}")]
    Invalid(String),
    #[error("a {found} where a {expected} is needed")]
    Kind { found: String, expected: &'static str },
    #[error(transparent)]
    Variable(#[from] document::MissingVariable),
}

impl Registration {
    /// From a resource's text (YAML or JSON, Kuma's or Kubernetes' form) with `{{name}}` replaced by variables.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn from_text(
        text: &str,
        expected: &'static str,
        variables: &[(String, String)],
    ) -> Result<Self, RegistrationError> {
        let text = document::substitute(text, variables)?;
        let value = document::parse_text(&text)
            .map_err(|problem| RegistrationError::Invalid(problem_text(&problem)))?;
        // First: proxies know what is wrong with kinds of proxies alone.
        let kind = value.get(if value.get("apiVersion").is_some() { "kind" } else { "type" });
        if let Some(found) = kind.and_then(|kind| kind.as_str()).filter(|found| *found != expected) {
            return Err(RegistrationError::Kind { found: found.to_owned(), expected });
        }
        let document = document::check_among(meridian_core::proxies(), &value, None)
            .map_err(|problem| RegistrationError::Invalid(problem_text(&problem)))?;
        for warning in &document.warnings {
            tracing::warn!(%warning, "{expected}");
        }
        Ok(Self { resource: document.resource })
    }

    /// Another name or mesh than the text says.
    pub fn rename(&mut self, mesh: Option<&str>, name: Option<&str>) {
        if let Some(mesh) = mesh {
            mesh.clone_into(&mut self.resource.key.mesh);
        }
        if let Some(name) = name {
            name.clone_into(&mut self.resource.key.name);
        }
    }

    pub fn key(&self) -> &Key {
        &self.resource.key
    }

    /// `<mesh>/<name>`, or `<name>` of an ingress or egress.
    pub fn node_name(&self) -> String {
        let key = &self.resource.key;
        if key.mesh.is_empty() { key.name.clone() } else { format!("{}/{}", key.mesh, key.name) }
    }

    pub(super) fn kind(&self) -> &'static str {
        self.resource.key.kind.as_str()
    }

    pub(super) fn role(&self) -> meridian_proxy_config::Role {
        use meridian_core::Spec;
        match self.resource.key.kind {
            kind if kind == <kinds::zone_ingress::ZoneIngress as Spec>::KIND => {
                meridian_proxy_config::Role::Ingress
            }
            kind if kind == <kinds::zone_egress::ZoneEgress as Spec>::KIND => {
                meridian_proxy_config::Role::Egress
            }
            _ => meridian_proxy_config::Role::Sidecar,
        }
    }

    pub(super) fn encoded(&self) -> Result<Arc<Encoded>, meridian_delta::TooLarge> {
        Encoded::new(self.kind(), self.node_name(), self.resource.canonical())
    }
}

fn problem_text(problem: &document::Problem) -> String {
    let mut text = format!("{}: {}", problem.title, problem.detail);
    for violation in &problem.violations {
        text.push_str(&format!("\n  {}: {}", violation.field, violation.reason));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATAPLANE: &str = "
type: Dataplane
mesh: default
name: {{ name }}
networking:
  address: {{address}}
  inbound:
    - port: 8080
      tags:
        kuma.io/service: web
";

    fn variables() -> Vec<(String, String)> {
        [("name", "web-1"), ("address", "10.0.0.1")].map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec()
    }

    #[test]
    fn variables_are_replaced() {
        let registration = Registration::from_text(DATAPLANE, "Dataplane", &variables()).unwrap();
        assert_eq!(registration.node_name(), "default/web-1");
    }

    #[test]
    fn the_example_is_good() {
        let text = include_str!("../../../../deploy/multizone/config/dataplane.yaml");
        let registration = Registration::from_text(text, "Dataplane", &[]).unwrap();
        assert_eq!(registration.node_name(), "default/web-1");
    }

    #[test]
    fn what_is_missing_or_wrong_is_said() {
        let missing = Registration::from_text(DATAPLANE, "Dataplane", &[]).unwrap_err();
        assert_eq!(missing.to_string(), "the variable name is used and not given");
        let kind = Registration::from_text(DATAPLANE, "ZoneIngress", &variables()).unwrap_err();
        assert_eq!(kind.to_string(), "a Dataplane where a ZoneIngress is needed");
        let policy = "apiVersion: kuma.io/v1alpha1\nkind: MeshTimeout\nmetadata: { name: t }\nspec: {}";
        let policy = Registration::from_text(policy, "Dataplane", &[]).unwrap_err();
        assert_eq!(policy.to_string(), "a MeshTimeout where a Dataplane is needed");
        let unknown = DATAPLANE.replace("networking:", "networkin:");
        assert!(
            Registration::from_text(&unknown, "Dataplane", &variables())
                .unwrap_err()
                .to_string()
                .contains("networkin")
        );
    }
}
