//! What global knows for good of a zone, kept as the status of its Zone resource: so that every replica hears of a change
//! by the same feed as of any other, and a stream that lost its right ends wherever it is.

use meridian_core::Resource;
use meridian_delta::Node;
use serde::{Deserialize, Serialize};

/// How many processes that were replaced are remembered.
const MAX_FENCED: usize = 8;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ZoneStatus {
    /// The process that speaks for the zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<Session>,
    /// RFC 3339; until it enrols with a token made after that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) revoked_at: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Session {
    /// UUID of the process.
    pub(crate) instance: String,
    /// Its start, milliseconds since 1970, by its own clock.
    pub(crate) epoch: u64,
    /// From where it connected first.
    pub(crate) address: String,
    /// Processes that it replaced: they never come back.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) fenced: Vec<String>,
}

/// Whether a process may speak for its zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It already does.
    Same,
    /// It does from now on.
    Takes(Session),
    Refused(String),
}

impl ZoneStatus {
    /// Of a Zone. One that can't be read is treated as revoked: nobody is let in by a mistake.
    pub(crate) fn of(zone: &Resource) -> Self {
        let Some(status) = &zone.status else { return Self::default() };
        serde_json::from_value(status.clone()).unwrap_or_else(|error| {
            tracing::error!(zone = zone.key.name, %error, "the status of a Zone can't be read");
            Self { session: None, revoked_at: Some(String::new()) }
        })
    }

    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked_at.is_some()
    }

    /// `live`: the process in [`ZoneStatus::session`] has a stream now, as far as any replica knows.
    pub(crate) fn admit(&self, node: &Node, address: &str, live: bool) -> Admission {
        let Some(now) = &self.session else {
            return Admission::Takes(Session::of(node, address, Vec::new()));
        };
        if now.instance == node.instance {
            return Admission::Same;
        }
        if now.fenced.contains(&node.instance) {
            return Admission::Refused(format!(
                "another process of this zone has taken over (from {}); this one stays out",
                now.address
            ));
        }
        if !node.take_over {
            if live {
                return Admission::Refused(format!(
                    "zone already connected from {}: one process a zone; start with --take-over to replace it",
                    now.address
                ));
            }
            if node.epoch < now.epoch {
                return Admission::Refused(format!(
                    "a process of this zone that started later has been here (from {}); start with --take-over to replace it",
                    now.address
                ));
            }
        }
        let mut fenced = now.fenced.clone();
        fenced.push(now.instance.clone());
        let excess = fenced.len().saturating_sub(MAX_FENCED);
        fenced.drain(..excess);
        Admission::Takes(Session::of(node, address, fenced))
    }
}

impl Session {
    fn of(node: &Node, address: &str, fenced: Vec<String>) -> Self {
        Self { instance: node.instance.clone(), epoch: node.epoch, address: address.to_owned(), fenced }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(instance: &str, epoch: u64, take_over: bool) -> Node {
        Node { name: "east".into(), instance: instance.into(), version: String::new(), epoch, take_over }
    }

    fn held(by: &str, epoch: u64, fenced: &[&str]) -> ZoneStatus {
        let fenced = fenced.iter().map(|f| (*f).to_owned()).collect();
        let session = Session { instance: by.into(), epoch, address: "192.0.2.1:1".into(), fenced };
        ZoneStatus { session: Some(session), revoked_at: None }
    }

    fn refused(admission: &Admission, part: &str) -> bool {
        matches!(admission, Admission::Refused(why) if why.contains(part))
    }

    #[test]
    fn the_first_process_of_a_zone_takes_it() {
        let admission = ZoneStatus::default().admit(&node("a", 1, false), "x", false);
        assert!(matches!(admission, Admission::Takes(session) if session.instance == "a"));
    }

    #[test]
    fn a_reconnect_changes_nothing() {
        assert_eq!(held("a", 1, &[]).admit(&node("a", 1, false), "x", true), Admission::Same);
    }

    #[test]
    fn a_second_process_is_refused_while_the_first_is_there() {
        assert!(refused(
            &held("a", 1, &[]).admit(&node("b", 2, false), "x", true),
            "already connected from 192.0.2.1"
        ));
    }

    #[test]
    fn a_restarted_process_replaces_the_dead_one_and_shuts_it_out() {
        let Admission::Takes(session) = held("a", 1, &[]).admit(&node("b", 2, false), "x", false) else {
            panic!("refused")
        };
        let now = ZoneStatus { session: Some(session), revoked_at: None };
        assert!(refused(&now.admit(&node("a", 1, true), "x", false), "stays out"));
    }

    #[test]
    fn an_older_process_needs_take_over() {
        let now = held("b", 2, &[]);
        assert!(refused(&now.admit(&node("c", 1, false), "x", false), "--take-over"));
        assert!(matches!(now.admit(&node("c", 1, true), "x", true), Admission::Takes(_)));
    }

    #[test]
    fn only_so_many_are_remembered() {
        let mut now = ZoneStatus::default();
        for epoch in 0..20 {
            if let Admission::Takes(session) = now.admit(&node(&epoch.to_string(), epoch, false), "x", false)
            {
                now.session = Some(session);
            }
        }
        assert_eq!(now.session.unwrap().fenced.len(), MAX_FENCED);
    }
}
