//! What this proxy tells its control plane: how it is, and whom it refused. When it changes, at most once a second.

use super::Control;
use crate::capture::noticed;
use meridian_delta::Encoded;
use meridian_pki::{SpkiHash, Usage};
use meridian_proxy_config::{CertificateStatus, InboundStatus, ProxyStatus, report_types};
use serde::Serialize;
use std::{fs, sync::Arc, time::Duration};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Changes are reported at most this often.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often what nobody announces is looked at: whether the host's capture was installed or taken away.
const LOOK: Duration = Duration::from_secs(10);

/// Publishes status and refusals until dropped.
pub(super) async fn report(control: Arc<Control>) {
    let shared = control.engine.shared().clone();
    let mut snapshots = shared.snapshots.subscribe();
    let mut denials = shared.denials.subscribe();
    let mut probes = control.probes.subscribe();
    let mut scrapes = shared.scrapes.subscribe();
    publish(&control, report_types::DENIALS, &shared.denials.snapshot());
    let mut told = None;
    loop {
        let status = control.status();
        if told.as_ref() != Some(&status) {
            publish(&control, report_types::STATUS, &status);
        }
        let status = told.insert(status);
        tokio::time::sleep(INTERVAL).await;
        let changed = tokio::select! {
            changed = snapshots.changed() => changed,
            changed = probes.changed() => changed,
            changed = scrapes.changed() => changed,
            changed = denials.changed() => {
                publish(&control, report_types::DENIALS, &shared.denials.snapshot());
                changed
            }
            () = control.until_other(status) => Ok(()),
        };
        if changed.is_err() {
            return;
        }
    }
}

fn publish(control: &Control, kind: &'static str, value: &impl Serialize) {
    let encoded = serde_json::to_vec(value).map(|body| Encoded::new(kind, "self", body));
    match encoded {
        Ok(Ok(resource)) => control.stream.publish(resource),
        Ok(Err(error)) => tracing::error!(%error, kind, "a report can't be sent"),
        Err(error) => tracing::error!(%error, kind, "a report can't be sent"),
    }
}

impl Control {
    /// Resolves when what nobody announces is no longer as told. Only that is looked at: the rest is dear, and at rest
    /// nothing of it changes.
    async fn until_other(&self, told: &ProxyStatus) {
        let identities = &self.engine.shared().tls.identities;
        loop {
            tokio::time::sleep(LOOK).await;
            let now = OffsetDateTime::now_utc();
            let is_valid = |mesh: &String| identities.of(mesh).current(now).is_some();
            let valid = identities.meshes().iter().filter(|mesh| is_valid(mesh)).count();
            if valid != told.certificates.len() || self.enforcement() != told.outbound_enforcement {
                return;
            }
        }
    }

    pub(super) fn status(&self) -> ProxyStatus {
        let snapshot = self.engine.shared().snapshots.load();
        let inbounds = snapshot.inbounds.values().map(|inbound| &inbound.config);
        ProxyStatus {
            role: self.registration.role(),
            version: self.node.version.clone(),
            instance: self.node.instance.clone(),
            outbound_enforcement: self.enforcement(),
            inbounds: inbounds
                .map(|inbound| InboundStatus {
                    name: inbound.name.clone(),
                    ready: self.probes.ready(inbound),
                })
                .collect(),
            certificates: self.certificates(),
            problems: self.engine.shared().scrapes.problems(),
        }
    }

    /// What leaves the host beside the proxy: as the installer of the capture rules left it said, but only while the
    /// route to the virtual addresses that it makes is there (the rules themselves only root can read).
    fn enforcement(&self) -> String {
        let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
        let said = || noticed(&self.settings.capture_file).unwrap_or_else(|| "unknown".to_owned());
        if captured(&routes) { said() } else { "none".to_owned() }
    }

    fn certificates(&self) -> Vec<CertificateStatus> {
        let tls = &self.engine.shared().tls;
        let now = OffsetDateTime::now_utc();
        let of = |mesh: &String| {
            let identity = tls.identities.of(mesh).current(now)?;
            let proven = tls.bundles.verify(mesh, identity.chain(), Usage::Server, now);
            let root: Option<SpkiHash> = proven.ok().map(|peer| peer.root);
            Some(CertificateStatus {
                mesh: mesh.clone(),
                expires: identity.not_after().format(&Rfc3339).unwrap_or_default(),
                root: root.map(|root| root.to_string()).unwrap_or_default(),
            })
        };
        tls.identities.meshes().iter().filter_map(of).collect()
    }
}

/// Whether the routing table has the installer's route: 240/4, or the first of its /8s, to the loopback.
fn captured(routes: &str) -> bool {
    let virtual_ = |line: &str| {
        let mut columns = line.split_whitespace();
        columns.next() == Some("lo") && columns.next().is_some_and(|to| to == "000000F0")
    };
    routes.lines().any(virtual_)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_installers_route_is_known() {
        let table = "Iface\tDestination\tGateway\nlo\t000000F0\t00000000\neth0\t00000000\t0101000A\n";
        assert!(captured(table));
        assert!(!captured("Iface\tDestination\tGateway\neth0\t00000000\t0101000A\n"));
    }
}
