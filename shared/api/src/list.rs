//! Lists: `size`, `offset`, `name`, `filter[labels.k]`, `tag`, and the next page's address.

use crate::problem::{Problem, Source};
use crate::request::Asked;
use meridian_core::Resource;
use serde_json::{Value, json};

/// Items on a page of a list, as in Kuma.
const DEFAULT_SIZE: u64 = 100;
/// The most that `size` may ask for.
const MAX_SIZE: u64 = 1000;

/// The query parameters of a list.
pub(crate) const PARAMETERS: [&str; 6] = ["size", "offset", "name", "tag", "gateway", "filter["];

/// Which part of a list is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    pub(crate) offset: u64,
    pub(crate) size: u64,
    /// Part of the name; case does not matter.
    pub(crate) name: Option<String>,
    pub(crate) labels: Vec<(String, String)>,
    /// Tags that one inbound (or the tags of the resource itself) must have, all of them.
    pub(crate) tags: Vec<(String, String)>,
    /// Dataplanes that are gateways, or are not.
    pub(crate) gateway: Option<bool>,
}

impl Selection {
    pub(crate) fn of(asked: &Asked) -> Result<Self, Problem> {
        let size = number(asked, "size")?.unwrap_or(DEFAULT_SIZE);
        if size == 0 || size > MAX_SIZE {
            return Err(Problem::invalid(Source::Query, "size", format!("must be 1 to {MAX_SIZE}")));
        }
        let mut labels = Vec::new();
        let mut tags = Vec::new();
        for (key, value) in &asked.query {
            if let Some(label) = key.strip_prefix("filter[") {
                let label =
                    label.strip_suffix(']').and_then(|l| l.strip_prefix("labels.")).filter(|l| !l.is_empty());
                let label = label
                    .ok_or_else(|| Problem::invalid(Source::Query, key, "must be filter[labels.KEY]"))?;
                labels.push((label.to_owned(), value.clone()));
            } else if key == "tag" {
                let tag = value.split_once(':').filter(|(tag, _)| !tag.is_empty());
                let (tag, value) =
                    tag.ok_or_else(|| Problem::invalid(Source::Query, "tag", "must be KEY:VALUE"))?;
                tags.push((tag.to_owned(), value.to_owned()));
            }
        }
        let gateway = match asked.parameter("gateway") {
            None => None,
            Some("true" | "builtin" | "delegated") => Some(true),
            Some("false") => Some(false),
            Some(_) => return Err(Problem::invalid(Source::Query, "gateway", "must be true or false")),
        };
        let name = asked.parameter("name").filter(|name| !name.is_empty()).map(str::to_owned);
        Ok(Self { offset: number(asked, "offset")?.unwrap_or(0), size, name, labels, tags, gateway })
    }

    /// Whether the store alone can't answer: what is left must be selected here.
    pub(crate) fn needs_contents(&self) -> bool {
        self.name.is_some() || !self.tags.is_empty() || self.gateway.is_some()
    }

    /// Name, tags and gateway; labels are the store's business.
    pub(crate) fn matches(&self, resource: &Resource) -> bool {
        let name = |part: &String| {
            let part = part.to_ascii_lowercase();
            let display = resource.labels.get(meridian_core::labels::DISPLAY_NAME);
            resource.key.name.to_ascii_lowercase().contains(&part)
                || display.is_some_and(|display| display.to_ascii_lowercase().contains(&part))
        };
        let gateway = |wanted: bool| resource.spec.pointer("/networking/gateway").is_some() == wanted;
        self.name.as_ref().is_none_or(name)
            && self.gateway.is_none_or(gateway)
            && (self.tags.is_empty()
                || tag_sets(resource).any(|set| self.tags.iter().all(|tag| has(set, tag))))
    }

    /// The list's JSON. `items` are those of this page.
    pub(crate) fn page(&self, asked: &Asked, total: u64, items: Vec<Value>) -> Value {
        let end = self.offset.saturating_add(items.len() as u64);
        let next =
            if end < total && !items.is_empty() { Value::String(self.next(asked, end)) } else { Value::Null };
        json!({"total": total, "items": items, "next": next})
    }

    /// The same request for what follows. Relative to the server unless the client said whom it called.
    fn next(&self, asked: &Asked, offset: u64) -> String {
        let mut query: Vec<String> = asked
            .query
            .iter()
            .filter(|(key, _)| key != "offset")
            .map(|(key, value)| format!("{}={}", encode(key), encode(value)))
            .collect();
        query.push(format!("offset={offset}"));
        let host = asked.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
        let origin = match (asked.uri.scheme_str(), asked.uri.authority(), host) {
            (Some(scheme), Some(authority), _) => format!("{scheme}://{authority}"),
            (_, _, Some(host)) => format!("//{host}"),
            _ => String::new(),
        };
        format!("{origin}{}?{}", asked.uri.path(), query.join("&"))
    }
}

/// The sets of tags that a resource carries: one an inbound or gateway, or its own.
fn tag_sets(resource: &Resource) -> impl Iterator<Item = &Value> {
    let networking = resource.spec.get("networking");
    let inbounds = networking.and_then(|n| n.get("inbound")).and_then(Value::as_array).into_iter().flatten();
    let gateway = networking.and_then(|n| n.get("gateway"));
    inbounds.chain(gateway).filter_map(|part| part.get("tags")).chain(resource.spec.get("tags"))
}

fn has(set: &Value, (key, value): &(String, String)) -> bool {
    set.get(key).and_then(Value::as_str) == Some(value)
}

fn number(asked: &Asked, name: &str) -> Result<Option<u64>, Problem> {
    let parse = |text: &str| {
        text.parse()
            .map_err(|_| Problem::invalid(Source::Query, name, "must be a number that is not negative"))
    };
    asked.parameter(name).map(parse).transpose()
}

/// Percent-encoding of a query's key or value.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
