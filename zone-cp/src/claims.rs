//! What a proxy's token lets it be. The stream's identity is the token's claims, never what the proxy says of itself.

use meridian_auth::{DataplaneClaims, TokenError, Verified, Verifier, ZoneClaims, ZoneScope};
use meridian_core::kinds::dataplane::Dataplane;
use meridian_core::kinds::zone_egress::ZoneEgress;
use meridian_core::kinds::zone_ingress::ZoneIngress;
use meridian_core::{Key, Resource, labels};
use meridian_pki::LeafSpec;
use meridian_proxy_config::EGRESS_SERVICE;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use time::OffsetDateTime;

/// Who is at the other end of a proxy's stream.
#[derive(Clone, Debug)]
pub(crate) enum Subject {
    Dataplane(Verified<DataplaneClaims>),
    Zone(Verified<ZoneClaims>),
}

/// The same claims are the same subject: a renewed token does not make another of its bearer.
impl PartialEq for Subject {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dataplane(one), Self::Dataplane(two)) => one.claims == two.claims,
            (Self::Zone(one), Self::Zone(two)) => one.claims == two.claims,
            _ => false,
        }
    }
}

impl Eq for Subject {}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dataplane(token) => {
                let claims = &token.claims;
                write!(f, "dataplane token of mesh {}", claims.mesh)?;
                if !claims.name.is_empty() {
                    write!(f, ", name {}", claims.name)?;
                }
                match claims.tags.get(labels::SERVICE) {
                    Some(services) => write!(f, ", service {}", services.join(" or ")),
                    None => Ok(()),
                }
            }
            Self::Zone(token) => {
                write!(f, "zone token of {} for {}", token.claims.zone, token.claims.scope.join(", "))
            }
        }
    }
}

/// Why a token does not allow something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    #[error(
        "the token binds neither a name nor a kuma.io/service: issue one that does, or set allowUnboundTokens"
    )]
    Unbound,
    #[error("the token is for mesh {0}")]
    OtherMesh(String),
    #[error("the token is for the Dataplane {0}")]
    OtherName(String),
    #[error("the token is for zone {0}")]
    OtherZone(String),
    #[error("the token is for the workload {0}")]
    OtherWorkload(String),
    #[error("the token does not allow the tag {tag}: {value}")]
    Tag { tag: String, value: String },
    #[error("every inbound needs the tag {0}, which the token binds")]
    MissingTag(String),
    #[error("no Dataplane may be the service {EGRESS_SERVICE}")]
    ReservedService,
    #[error("the token allows no {0}")]
    WrongKind(String),
    #[error("the Dataplane offers no kuma.io/service, so there is no name to certify")]
    NoService,
}

impl Subject {
    /// Proves a token of one of the kinds that proxies have.
    pub(crate) fn authenticate(
        verifier: &Verifier,
        token: &str,
        now: OffsetDateTime,
    ) -> Result<Self, TokenError> {
        match verifier.verify::<DataplaneClaims>(token, now) {
            Err(TokenError::WrongPurpose { found: meridian_auth::Purpose::Zone, .. }) => {
                verifier.verify::<ZoneClaims>(token, now).map(Self::Zone)
            }
            verified => verified.map(Self::Dataplane),
        }
    }

    /// Whether it still holds, after keys or revocations have changed.
    pub(crate) fn recheck(&self, verifier: &Verifier, now: OffsetDateTime) -> Result<(), TokenError> {
        match self {
            Self::Dataplane(token) => verifier.recheck(token, now),
            Self::Zone(token) => verifier.recheck(token, now),
        }
    }

    /// Whether the bearer may be the proxy of this key at all: before anything is read or sent.
    pub(crate) fn may_be(&self, zone: &str, key: &Key, allow_unbound: bool) -> Result<(), Denied> {
        match self {
            Self::Dataplane(token) => {
                let claims = &token.claims;
                if key.kind != Dataplane::KIND || !["", "dataplane"].contains(&claims.kind.as_str()) {
                    return Err(Denied::WrongKind(key.kind.to_string()));
                }
                if !claims.is_bound() && !allow_unbound {
                    return Err(Denied::Unbound);
                }
                if claims.mesh != key.mesh {
                    return Err(Denied::OtherMesh(claims.mesh.clone()));
                }
                if !claims.name.is_empty() && claims.name != key.name {
                    return Err(Denied::OtherName(claims.name.clone()));
                }
                Ok(())
            }
            Self::Zone(token) => {
                let scope = match key.kind {
                    ZoneIngress::KIND => ZoneScope::Ingress,
                    ZoneEgress::KIND => ZoneScope::Egress,
                    _ => return Err(Denied::WrongKind(key.kind.to_string())),
                };
                if !token.claims.has(scope) {
                    return Err(Denied::WrongKind(key.kind.to_string()));
                }
                if token.claims.zone != zone {
                    return Err(Denied::OtherZone(token.claims.zone.clone()));
                }
                Ok(())
            }
        }
    }

    /// Whether the bearer may register this resource.
    pub(crate) fn may_register(
        &self,
        zone: &str,
        resource: &Resource,
        allow_unbound: bool,
    ) -> Result<(), Denied> {
        self.may_be(zone, &resource.key, allow_unbound)?;
        let Self::Dataplane(token) = self else { return Ok(()) };
        let Ok(dataplane) = resource.parse::<Dataplane>() else { return Ok(()) };
        let workload = &token.claims.workload;
        if !workload.is_empty() && resource.labels.get(labels::WORKLOAD) != Some(workload) {
            return Err(Denied::OtherWorkload(workload.clone()));
        }
        tag_sets(&dataplane).into_iter().try_for_each(|tags| allowed(&token.claims, tags))
    }

    /// What its certificate in this mesh says: what the Dataplane offers, held to what the token allows.
    pub(crate) fn leaf(&self, key: &Key, dataplane: &Dataplane) -> Result<LeafSpec, Denied> {
        let Self::Dataplane(token) = self else { return Ok(egress_leaf()) };
        let mut tags: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for set in tag_sets(dataplane) {
            allowed(&token.claims, set)?;
            for (tag, value) in set.iter().filter(|(tag, _)| *tag != labels::ZONE) {
                tags.entry(tag.clone()).or_default().insert(value.clone());
            }
        }
        let services =
            tags.get(labels::SERVICE).cloned().filter(|all| !all.is_empty()).ok_or(Denied::NoService)?;
        Ok(LeafSpec { services, tags, dataplane: Some(key.name.clone()), lifetime: None })
    }
}

/// An egress is `spiffe://<mesh>/zone-egress` in every mesh.
pub(crate) fn egress_leaf() -> LeafSpec {
    let services = BTreeSet::from([EGRESS_SERVICE.to_owned()]);
    let tags = BTreeMap::from([(labels::SERVICE.to_owned(), services.clone())]);
    LeafSpec { services, tags, dataplane: None, lifetime: None }
}

fn tag_sets(dataplane: &Dataplane) -> Vec<&BTreeMap<String, String>> {
    let Some(networking) = &dataplane.networking else { return Vec::new() };
    let gateway = networking.gateway.iter().map(|gateway| &gateway.tags);
    networking.inbound.iter().map(|inbound| &inbound.tags).chain(gateway).collect()
}

/// A tag that the token binds must be there with one of its values; `kuma.io/zone` is the zone's to say.
fn allowed(claims: &DataplaneClaims, tags: &BTreeMap<String, String>) -> Result<(), Denied> {
    if tags.get(labels::SERVICE).is_some_and(|service| service == EGRESS_SERVICE) {
        return Err(Denied::ReservedService);
    }
    for (tag, values) in claims.tags.iter().filter(|(tag, values)| !values.is_empty() && *tag != labels::ZONE)
    {
        match tags.get(tag) {
            None => return Err(Denied::MissingTag(tag.clone())),
            Some(value) if !values.contains(value) => {
                return Err(Denied::Tag { tag: tag.clone(), value: value.clone() });
            }
            Some(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use meridian_core::kinds::dataplane::{Inbound, Networking};

    fn dataplane_token(name: &str, mesh: &str, tags: &[(&str, &[&str])]) -> Subject {
        let tags = tags
            .iter()
            .map(|(tag, values)| ((*tag).to_owned(), values.iter().map(|v| (*v).to_owned()).collect()));
        let claims = DataplaneClaims {
            name: name.into(),
            mesh: mesh.into(),
            tags: tags.collect(),
            ..Default::default()
        };
        let expires = OffsetDateTime::UNIX_EPOCH;
        Subject::Dataplane(Verified { claims, id: "id".into(), kid: "1".into(), expires })
    }

    fn zone_token(zone: &str, scope: &[&str]) -> Subject {
        let claims = ZoneClaims { zone: zone.into(), scope: scope.iter().map(|s| (*s).to_owned()).collect() };
        Subject::Zone(Verified {
            claims,
            id: "id".into(),
            kid: "1".into(),
            expires: OffsetDateTime::UNIX_EPOCH,
        })
    }

    fn dataplane(mesh: &str, name: &str, tags: &[(&str, &str)]) -> Resource {
        let tags = tags.iter().map(|(tag, value)| ((*tag).to_owned(), (*value).to_owned())).collect();
        let inbound = Inbound { port: 80, tags, ..Default::default() };
        let networking = Networking { inbound: vec![inbound], ..Default::default() };
        let spec = Dataplane { networking: Some(networking), ..Default::default() };
        Resource::of(Key::new(Dataplane::KIND, mesh, "east", name), BTreeMap::new(), &spec)
    }

    fn egress(name: &str) -> Resource {
        Resource::of(Key::new(ZoneEgress::KIND, "", "east", name), BTreeMap::new(), &ZoneEgress::default())
    }

    #[test]
    fn who_may_register_what() {
        let web = dataplane("default", "web-1", &[("kuma.io/service", "web"), ("version", "1")]);
        let tag = |tag: &str, value: &str| Err(Denied::Tag { tag: tag.into(), value: value.into() });
        let table: Vec<(&str, Subject, &Resource, Result<(), Denied>)> = vec![
            ("by name", dataplane_token("web-1", "default", &[]), &web, Ok(())),
            ("by service", dataplane_token("", "default", &[("kuma.io/service", &["web"])]), &web, Ok(())),
            (
                "one of several",
                dataplane_token("", "default", &[("kuma.io/service", &["api", "web"])]),
                &web,
                Ok(()),
            ),
            ("unbound", dataplane_token("", "default", &[("version", &["1"])]), &web, Err(Denied::Unbound)),
            (
                "other name",
                dataplane_token("web-2", "default", &[]),
                &web,
                Err(Denied::OtherName("web-2".into())),
            ),
            (
                "other mesh",
                dataplane_token("web-1", "prod", &[]),
                &web,
                Err(Denied::OtherMesh("prod".into())),
            ),
            (
                "other service",
                dataplane_token("", "default", &[("kuma.io/service", &["backend"])]),
                &web,
                tag("kuma.io/service", "web"),
            ),
            (
                "other version",
                dataplane_token("web-1", "default", &[("version", &["2"])]),
                &web,
                tag("version", "1"),
            ),
            (
                "a tag that is not there",
                dataplane_token("web-1", "default", &[("team", &["a"])]),
                &web,
                Err(Denied::MissingTag("team".into())),
            ),
            (
                "a zone token",
                zone_token("east", &["egress"]),
                &web,
                Err(Denied::WrongKind("Dataplane".into())),
            ),
        ];
        for (case, subject, resource, expected) in table {
            assert_eq!(subject.may_register("east", resource, false), expected, "{case}");
        }
        let unbound = dataplane_token("", "default", &[]);
        assert_eq!(unbound.may_register("east", &web, true), Ok(()));
    }

    #[test]
    fn egresses_take_zone_tokens_of_their_zone_and_scope() {
        let egress = egress("egress-1");
        let table = [
            (zone_token("east", &["egress"]), Ok(())),
            (zone_token("east", &["ingress", "egress"]), Ok(())),
            (zone_token("east", &["ingress"]), Err(Denied::WrongKind("ZoneEgress".into()))),
            (zone_token("east", &["cp"]), Err(Denied::WrongKind("ZoneEgress".into()))),
            (zone_token("west", &["egress"]), Err(Denied::OtherZone("west".into()))),
            (dataplane_token("egress-1", "default", &[]), Err(Denied::WrongKind("ZoneEgress".into()))),
        ];
        for (subject, expected) in table {
            assert_eq!(subject.may_register("east", &egress, true), expected, "{subject}");
        }
    }

    fn leaf(subject: &Subject, dataplane: &Resource) -> Result<LeafSpec, Denied> {
        subject.leaf(&dataplane.key, &dataplane.parse().unwrap())
    }

    #[test]
    fn nobody_takes_the_egress_name() {
        let sly = dataplane("default", "web-1", &[("kuma.io/service", "zone-egress")]);
        let subject = dataplane_token("web-1", "default", &[]);
        assert_eq!(subject.may_register("east", &sly, true), Err(Denied::ReservedService));
        assert_eq!(leaf(&subject, &sly), Err(Denied::ReservedService));
    }

    #[test]
    fn a_certificate_says_what_the_dataplane_offers() {
        let web = dataplane(
            "default",
            "web-1",
            &[("kuma.io/service", "web"), ("kuma.io/zone", "west"), ("v", "1")],
        );
        let leaf = leaf(&dataplane_token("web-1", "default", &[]), &web).unwrap();
        assert_eq!(leaf.services, BTreeSet::from(["web".to_owned()]));
        assert_eq!(leaf.tags.keys().collect::<Vec<_>>(), ["kuma.io/service", "v"]);
        assert_eq!(leaf.dataplane.as_deref(), Some("web-1"));
        let egress = egress_leaf();
        assert_eq!((egress.services.len(), egress.dataplane), (1, None));
    }
}
