//! The zones that are connected to this replica, and what they last said of themselves.
//!
//! A zone's link outlives its streams, so that a zone that comes back sends only what changed meanwhile.

use meridian_api::report::{self, ProxyOverview, ZoneReject};
use meridian_delta::{Control, Id, Node, Peer, Version};
use meridian_proxy_config::DenialReport;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// By name.
#[derive(Default)]
pub(crate) struct Zones(Mutex<BTreeMap<String, Arc<ZoneLink>>>);

/// One zone, as seen from this replica.
pub(crate) struct ZoneLink {
    pub(crate) zone: String,
    /// Global -> zone.
    pub(crate) down: Peer,
    /// Zone -> global.
    pub(crate) up: Peer,
    pub(crate) control: Control,
    pub(crate) reports: Mutex<Reports>,
    live: Mutex<Live>,
    /// A stream began or ended.
    pub(crate) changed: Notify,
    /// Resources that the zone has sent, without reports.
    pub(crate) taken: AtomicU64,
    /// Somebody writes this link's status.
    pub(crate) watched: AtomicBool,
    /// The task of the present Push: the next one begins when it has ended.
    pub(crate) pushing: tokio::sync::Mutex<Option<(CancellationToken, JoinHandle<()>)>>,
}

/// The process on the other end, while it has streams here.
#[derive(Default)]
struct Live {
    node: Node,
    address: String,
    /// Hash of the client certificate's key, and the token it goes back to.
    credential: Credential,
    /// With the process that each belongs to.
    streams: Vec<(String, CancellationToken)>,
    connected_at: Option<OffsetDateTime>,
    disconnected_at: Option<OffsetDateTime>,
}

/// By what a stream was let in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Credential {
    pub(crate) key: String,
    pub(crate) token: String,
}

/// A stream that counts as long as this lives.
pub(crate) struct Stream {
    link: Arc<ZoneLink>,
    pub(crate) closing: CancellationToken,
}

/// What [`ZoneLink::shown`] says.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) connected: bool,
    pub(crate) node: Node,
    pub(crate) connected_at: Option<OffsetDateTime>,
    pub(crate) disconnected_at: Option<OffsetDateTime>,
}

impl Zones {
    pub(crate) fn link(&self, zone: &str) -> Arc<ZoneLink> {
        let mut links = self.lock();
        let link = links.entry(zone.to_owned()).or_insert_with(|| Arc::new(ZoneLink::new(zone)));
        Arc::clone(link)
    }

    /// The link, if the zone was ever connected here.
    pub(crate) fn get(&self, zone: &str) -> Option<Arc<ZoneLink>> {
        self.lock().get(zone).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<ZoneLink>> {
        self.lock().values().cloned().collect()
    }

    /// Cuts the zone's streams and forgets it.
    pub(crate) fn forget(&self, zone: &str, why: &str) {
        if let Some(link) = self.lock().remove(zone) {
            link.cut(why);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<ZoneLink>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ZoneLink {
    fn new(zone: &str) -> Self {
        Self {
            zone: zone.to_owned(),
            down: Peer::new(),
            up: Peer::new(),
            control: Control::new(),
            reports: Mutex::default(),
            live: Mutex::default(),
            changed: Notify::new(),
            taken: AtomicU64::new(0),
            watched: AtomicBool::new(false),
            pushing: tokio::sync::Mutex::default(),
        }
    }

    /// A stream begins; `closing` is its connection's.
    pub(crate) fn enter(
        self: &Arc<Self>,
        node: &Node,
        address: &str,
        credential: Credential,
        closing: &CancellationToken,
    ) -> Stream {
        let token = closing.child_token();
        let mut live = self.live();
        // Whoever was let in has replaced the others: their streams end here and now, whatever the feed says when.
        live.streams.iter().filter(|(of, _)| *of != node.instance).for_each(|(_, stream)| stream.cancel());
        live.streams.retain(|(_, stream)| !stream.is_cancelled());
        if live.streams.is_empty() || live.node.instance != node.instance {
            live.connected_at = Some(OffsetDateTime::now_utc());
        }
        live.node = node.clone();
        address.clone_into(&mut live.address);
        live.credential = credential;
        live.streams.push((node.instance.clone(), token.clone()));
        Stream { link: Arc::clone(self), closing: token }
    }

    /// Ends the zone's streams here.
    pub(crate) fn cut(&self, why: &str) {
        let mut live = self.live();
        if !live.streams.is_empty() {
            tracing::info!(zone = self.zone, from = live.address, why, "cutting the zone's streams");
        }
        live.streams.drain(..).for_each(|(_, stream)| stream.cancel());
        live.disconnected_at = Some(OffsetDateTime::now_utc());
    }

    /// Cuts the streams of another process than this one.
    pub(crate) fn keep_only(&self, instance: &str) {
        let other = {
            let live = self.live();
            !live.streams.is_empty() && live.node.instance != instance
        };
        if other {
            self.cut("another process of the zone has taken over");
        }
    }

    /// The process that is connected here, and by what.
    pub(crate) fn connected(&self) -> Option<(String, Credential)> {
        let live = self.live();
        (!live.streams.is_empty()).then(|| (live.node.instance.clone(), live.credential.clone()))
    }

    pub(crate) fn shown(&self) -> Shown {
        let live = self.live();
        Shown {
            connected: !live.streams.is_empty(),
            node: live.node.clone(),
            connected_at: live.connected_at,
            disconnected_at: live.disconnected_at,
        }
    }

    pub(crate) fn reports(&self) -> MutexGuard<'_, Reports> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.closing.cancel();
        let mut live = self.link.live();
        let before = live.streams.len();
        live.streams.retain(|(_, stream)| !stream.is_cancelled());
        if live.streams.is_empty() && before > 0 {
            live.disconnected_at = Some(OffsetDateTime::now_utc());
        }
    }
}

/// What a zone reported beside its resources, with the versions to compare by.
#[derive(Default)]
pub(crate) struct Reports {
    proxies: BTreeMap<String, (Version, ProxyOverview)>,
    denials: Option<(Version, DenialReport)>,
    rejects: BTreeMap<String, (Version, ZoneReject)>,
}

impl Reports {
    /// Whether the type is a report's.
    pub(crate) fn is_report(type_: &str) -> bool {
        report::types::ALL.contains(&type_)
    }

    /// What is held, for the beginning of a stream.
    pub(crate) fn have(&self) -> Vec<(Id, Version)> {
        let named = |type_: &'static str| {
            move |(name, version): (&String, Version)| (Id::new(type_, name.as_str()), version)
        };
        let proxies =
            self.proxies.iter().map(|(name, (version, _))| (name, *version)).map(named(report::types::PROXY));
        let rejects = self
            .rejects
            .iter()
            .map(|(name, (version, _))| (name, *version))
            .map(named(report::types::REJECT));
        let denials =
            self.denials.iter().map(|(version, _)| (Id::new(report::types::DENIALS, "self"), *version));
        proxies.chain(rejects).chain(denials).collect()
    }

    /// Takes one in; the error says why not.
    pub(crate) fn take(
        &mut self,
        type_: &str,
        name: &str,
        version: Version,
        body: &[u8],
    ) -> Result<(), String> {
        fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, String> {
            serde_json::from_slice(body).map_err(|error| error.to_string())
        }
        let fits = |own: String| if own == name { Ok(()) } else { Err(format!("it is named {own:?}")) };
        match type_ {
            report::types::PROXY => {
                let overview: ProxyOverview = parse(body)?;
                fits(overview.wire_name())?;
                self.proxies.insert(name.to_owned(), (version, overview));
            }
            report::types::REJECT => {
                let reject: ZoneReject = parse(body)?;
                fits(reject.wire_name())?;
                self.rejects.insert(name.to_owned(), (version, reject));
            }
            _ => {
                fits("self".to_owned())?;
                let mut denials: DenialReport = parse(body)?;
                bound(&mut denials);
                self.denials = Some((version, denials));
            }
        }
        Ok(())
    }

    pub(crate) fn remove(&mut self, type_: &str, name: &str) {
        match type_ {
            report::types::PROXY => drop(self.proxies.remove(name)),
            report::types::REJECT => drop(self.rejects.remove(name)),
            _ => self.denials = None,
        }
    }

    /// One section as it is stored.
    pub(crate) fn section(&self, type_: &str) -> Value {
        match type_ {
            report::types::PROXY => json!(self.proxies.values().map(|(_, proxy)| proxy).collect::<Vec<_>>()),
            report::types::REJECT => {
                json!(self.rejects.values().map(|(_, reject)| reject).collect::<Vec<_>>())
            }
            _ => json!(self.denials.as_ref().map(|(_, denials)| denials).cloned().unwrap_or_default()),
        }
    }
}

/// A zone is not trusted to keep to the limits.
fn bound(denials: &mut DenialReport) {
    let excess = denials.denials.len().saturating_sub(DenialReport::MAX_ROWS);
    let dropped: u64 = denials.denials.iter().rev().take(excess).map(|denial| denial.count).sum();
    denials.denials.truncate(DenialReport::MAX_ROWS);
    denials.overflow = denials.overflow.saturating_add(dropped);
    for denial in &mut denials.denials {
        for name in [
            &mut denial.caller,
            &mut denial.destination,
            &mut denial.rule,
            &mut denial.by,
            &mut denial.reason,
        ] {
            clean(name);
        }
    }
}

/// Names end on terminals and in web pages: control characters are escaped, and what is long is cut.
fn clean(name: &mut String) {
    if name.chars().any(char::is_control) {
        *name = name.escape_default().to_string();
    }
    if name.len() > DenialReport::MAX_NAME {
        let mut end = DenialReport::MAX_NAME;
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        name.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meridian_proxy_config::Denial;

    fn node(instance: &str) -> Node {
        Node { name: "east".into(), instance: instance.into(), ..Node::default() }
    }

    #[test]
    fn a_link_is_connected_while_it_has_streams() {
        let zones = Zones::default();
        let link = zones.link("east");
        let connection = CancellationToken::new();
        let pull = link.enter(&node("a"), "x", Credential::default(), &connection);
        let push = link.enter(&node("a"), "x", Credential::default(), &connection);
        drop(pull);
        assert!(link.shown().connected);
        drop(push);
        assert!(!link.shown().connected);
        assert!(link.shown().disconnected_at.is_some());
    }

    #[test]
    fn another_process_is_cut_and_the_same_is_not() {
        let zones = Zones::default();
        let link = zones.link("east");
        let stream = link.enter(&node("a"), "x", Credential::default(), &CancellationToken::new());
        link.keep_only("a");
        assert!(!stream.closing.is_cancelled());
        link.keep_only("b");
        assert!(stream.closing.is_cancelled());
    }

    #[test]
    fn whoever_is_let_in_ends_the_streams_of_the_one_before() {
        let link = Zones::default().link("east");
        let connection = CancellationToken::new();
        let old = [1, 2].map(|_| link.enter(&node("a"), "x", Credential::default(), &connection));
        let new = link.enter(&node("b"), "y", Credential::default(), &connection);
        assert!(old.iter().all(|stream| stream.closing.is_cancelled()));
        drop(old);
        assert!(!new.closing.is_cancelled() && link.shown().connected);
    }

    #[test]
    fn a_zone_can_not_report_under_another_name_or_beyond_the_limits() {
        let mut reports = Reports::default();
        let body = br#"{"kind":"Dataplane","mesh":"default","name":"web","online":true}"#;
        let version = Version::of(body);
        let type_ = report::types::PROXY;
        assert!(reports.take(type_, "Dataplane/default/other", version, body).is_err());
        reports.take(type_, "Dataplane/default/web", version, body).unwrap();
        assert_eq!(reports.have(), [(Id::new(type_, "Dataplane/default/web"), version)]);

        let denial = Denial {
            mesh: "default".into(),
            caller: "spiffe://default/web".into(),
            destination: format!("\u{1b}[31m{}", "x".repeat(400)),
            port: 443,
            reason: "not-listed".into(),
            rule: String::new(),
            count: 2,
            last: String::new(),
            by: String::new(),
        };
        let many = DenialReport { denials: vec![denial; DenialReport::MAX_ROWS + 3], overflow: 1 };
        let body = serde_json::to_vec(&many).unwrap();
        reports.take(report::types::DENIALS, "self", Version::of(&body), &body).unwrap();
        let kept: DenialReport = serde_json::from_value(reports.section(report::types::DENIALS)).unwrap();
        assert_eq!((kept.denials.len(), kept.overflow), (DenialReport::MAX_ROWS, 7));
        assert!(kept.denials.iter().all(|d| d.destination.len() <= 253 && !d.destination.contains('\u{1b}')));
    }
}
