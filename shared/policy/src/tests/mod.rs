//! Policies as users write them, against Dataplanes as users write them.

mod external;
mod index;
mod laws;
mod merging;
mod order;
mod passthrough;
mod permission;
mod selection;

use crate::{Parsed, Subject};
use meridian_core::kinds::dataplane::{Dataplane, Inbound};
use meridian_core::{Resource, Spec, document};
use meridian_proxy_config::CallerIdentity;

/// A document through the same door as a user's.
fn resource(yaml: &str) -> Resource {
    document::check(&document::parse_text(yaml).unwrap(), None)
        .unwrap_or_else(|e| panic!("{e:?}\n{yaml}"))
        .resource
}

fn parsed<T: Spec>(yaml: &str) -> Parsed<T> {
    Parsed::new(resource(yaml)).unwrap()
}

fn labelled<T: Spec>(yaml: &str, labels: &[(&str, &str)]) -> Parsed<T> {
    let mut resource = resource(yaml);
    resource.labels.extend(labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    Parsed::new(resource).unwrap()
}

/// `web` v1 on 8080 (named `http`) and v2 on 8081 (unnamed), of zone east.
fn web() -> Parsed<Dataplane> {
    let mut dataplane = labelled(
        "
type: Dataplane
mesh: default
name: web-1
labels: {app: web, tier: front}
networking:
  address: 192.0.2.1
  inbound:
  - {port: 8080, name: http, tags: {kuma.io/service: web, version: v1}}
  - {port: 8081, tags: {kuma.io/service: web-admin, version: v2}}
",
        &[],
    );
    dataplane.resource.key.zone = "east".into();
    dataplane
}

fn subject(dataplane: &Parsed<Dataplane>) -> Subject<'_> {
    Subject { key: &dataplane.resource.key, labels: &dataplane.resource.labels, spec: &dataplane.spec }
}

fn inbounds(dataplane: &Parsed<Dataplane>) -> &[Inbound] {
    &dataplane.spec.networking.as_ref().unwrap().inbound
}

fn caller(service: &str, tags: &[(&str, &str)]) -> CallerIdentity {
    let own = [("kuma.io/service", service)];
    CallerIdentity {
        mesh: "default".into(),
        spiffe: vec![format!("spiffe://default/{service}")],
        tags: own
            .iter()
            .chain(tags)
            .map(|(name, value)| ((*name).to_owned(), [(*value).to_owned()].into()))
            .collect(),
        dataplane: Some(format!("{service}-1")),
        zone: "east".into(),
    }
}
