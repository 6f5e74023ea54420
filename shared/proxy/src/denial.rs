//! Refusals: counted, logged and reported up, aggregated by who asked for what and why.

use meridian_proxy_config::{Denial, DenialReport};
use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::watch;

/// Why something was refused, as in the header `x-meridian-denied`: lower case, dashes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reason(Cow<'static, str>);

impl Reason {
    pub const NO_PERMISSION: Self = Self::of("no-permission");
    pub const NOT_LISTED: Self = Self::of("not-listed");
    pub const NO_EGRESS: Self = Self::of("no-egress");
    pub const ADDRESS_REFUSED: Self = Self::of("address-refused");
    pub const NAME_MISMATCH: Self = Self::of("name-mismatch");
    pub const PLAINTEXT: Self = Self::of("plaintext");
    pub const UNTRUSTED_CALLER: Self = Self::of("untrusted-caller");
    pub const UNTRUSTED_PEER: Self = Self::of("untrusted-peer");
    pub const WRONG_PROTOCOL: Self = Self::of("wrong-protocol");
    pub const UNKNOWN_DESTINATION: Self = Self::of("unknown-destination");
    pub const REMOVED: Self = Self::of("removed");
    pub const ENTRY_ORIGINATES_TLS: Self = Self::of("entry-originates-tls");
    pub const REQUEST_FILTER: Self = Self::of("request-filter");
    pub const REQUEST_FILTER_OBSERVED: Self = Self::of("request-filter-observed");
    pub const SCRIPT_FAILED: Self = Self::of("script-failed");
    pub const CONFIG_TOO_OLD: Self = Self::of("config-too-old");

    pub const fn of(text: &'static str) -> Self {
        Self(Cow::Borrowed(text))
    }

    /// A reason that the control plane gave.
    pub fn given(text: &str) -> Self {
        Self(Cow::Owned(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One refusal.
#[derive(Clone, Debug)]
pub struct Refusal<'a> {
    pub mesh: &'a str,
    /// SPIFFE ID, `none`, or the sidecar's own service for what it refused its application.
    pub caller: &'a str,
    /// Name or address asked for, or the service.
    pub destination: &'a str,
    pub port: u16,
    pub reason: &'a Reason,
    /// The nearest rule; may be empty.
    pub rule: &'a str,
}

/// All refusals of this proxy: one row for each (mesh, caller, destination, port, reason).
pub struct Denials {
    /// Who refuses: role and name.
    by: Mutex<String>,
    rows: Mutex<Rows>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Rows {
    rows: HashMap<Key, Row>,
    overflow: u64,
    reasons: HashMap<Reason, u64>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    mesh: String,
    caller: String,
    destination: String,
    port: u16,
    reason: Reason,
}

struct Row {
    rule: String,
    count: u64,
    last: OffsetDateTime,
    logged: Instant,
}

/// A repeated refusal is logged so often, with its count.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

impl Default for Denials {
    fn default() -> Self {
        Self { by: Mutex::default(), rows: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl Denials {
    /// How this proxy calls itself in its reports.
    pub fn set_by(&self, by: &str) {
        by.clone_into(&mut lock(&self.by));
    }

    /// Counts, logs and remembers one refusal. Never blocks on I/O.
    pub fn report(&self, refusal: &Refusal<'_>) {
        let now = Instant::now();
        let mut rows = lock(&self.rows);
        *rows.reasons.entry(refusal.reason.clone()).or_default() += 1;
        let key = Key {
            mesh: clean(refusal.mesh),
            caller: clean(refusal.caller),
            destination: clean(refusal.destination),
            port: refusal.port,
            reason: refusal.reason.clone(),
        };
        let known = rows.rows.contains_key(&key);
        if !known && rows.rows.len() >= DenialReport::MAX_ROWS {
            rows.overflow += 1;
        } else {
            let row = rows.rows.entry(key.clone()).or_insert_with(|| Row {
                rule: String::new(),
                count: 0,
                last: OffsetDateTime::UNIX_EPOCH,
                logged: now,
            });
            row.count += 1;
            row.last = OffsetDateTime::now_utc();
            row.rule = clean(refusal.rule);
            if !known || now.duration_since(row.logged) >= LOG_INTERVAL {
                row.logged = now;
                log(&key, row);
            }
        }
        drop(rows);
        self.changed.send_modify(|count| *count += 1);
    }

    /// What to send up.
    pub fn snapshot(&self) -> DenialReport {
        let by = lock(&self.by).clone();
        let rows = lock(&self.rows);
        let mut denials: Vec<_> = rows
            .rows
            .iter()
            .map(|(key, row)| Denial {
                mesh: key.mesh.clone(),
                caller: key.caller.clone(),
                destination: key.destination.clone(),
                port: key.port,
                reason: key.reason.to_string(),
                rule: row.rule.clone(),
                count: row.count,
                last: row.last.format(&Rfc3339).unwrap_or_default(),
                by: by.clone(),
            })
            .collect();
        denials.sort_by(|a, b| {
            (&a.mesh, &a.caller, &a.destination, a.port, &a.reason).cmp(&(
                &b.mesh,
                &b.caller,
                &b.destination,
                b.port,
                &b.reason,
            ))
        });
        DenialReport { denials, overflow: rows.overflow }
    }

    /// Refusals since the start, by reason.
    pub fn by_reason(&self) -> Vec<(Reason, u64)> {
        let mut all: Vec<_> = lock(&self.rows).reasons.iter().map(|(r, n)| (r.clone(), *n)).collect();
        all.sort();
        all
    }

    /// Wakes after each refusal.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn log(key: &Key, row: &Row) {
    tracing::warn!(
        reason = %key.reason,
        mesh = %key.mesh,
        caller = %key.caller,
        destination = %key.destination,
        port = key.port,
        rule = %row.rule,
        count = row.count,
        "refused"
    );
}

/// What a stranger wrote goes into logs and reports only without control characters, and cut.
fn clean(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let escaped: String =
            if c.is_control() || c == '\\' { c.escape_default().collect() } else { c.to_string() };
        if out.len() + escaped.len() > DenialReport::MAX_NAME {
            break;
        }
        out.push_str(&escaped);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(denials: &Denials, destination: &str) {
        denials.report(&Refusal {
            mesh: "default",
            caller: "spiffe://default/web",
            destination,
            port: 443,
            reason: &Reason::NOT_LISTED,
            rule: "",
        });
    }

    #[test]
    fn equal_refusals_are_one_row() {
        let denials = Denials::default();
        report(&denials, "evil.example");
        report(&denials, "evil.example");
        report(&denials, "other.example");
        let rows: Vec<_> =
            denials.snapshot().denials.into_iter().map(|row| (row.destination, row.count)).collect();
        assert_eq!(rows, [("evil.example".to_owned(), 2), ("other.example".to_owned(), 1)]);
        assert_eq!(denials.by_reason(), [(Reason::NOT_LISTED, 3)]);
    }

    #[test]
    fn rows_are_bounded_and_the_rest_counted() {
        let denials = Denials::default();
        for n in 0..DenialReport::MAX_ROWS + 5 {
            report(&denials, &format!("host-{n}"));
        }
        let report = denials.snapshot();
        assert_eq!((report.denials.len(), report.overflow), (DenialReport::MAX_ROWS, 5));
    }

    #[test]
    fn names_are_cut_and_escaped() {
        assert_eq!(clean("a\nb"), "a\\nb");
        assert_eq!(clean(&"x".repeat(400)).len(), DenialReport::MAX_NAME);
        assert!(clean(&"\u{7f}".repeat(400)).len() <= DenialReport::MAX_NAME);
    }
}
