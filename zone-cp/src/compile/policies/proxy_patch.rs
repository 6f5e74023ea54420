//! MeshProxyPatch: scripts, and the limits of Envoy's that the proxies have too.
//!
//! Modifications are done in order, those of weaker policies first, to a chain of filters as Kuma would have built it:
//! that settles which script stands where. The proxies run all scripts after what is their own.

use meridian_core::kinds::mesh_proxy_patch::effect::{Amount, PLACES, ROUTER, Setting};
use meridian_core::kinds::mesh_proxy_patch::{
    Conf, FilterMatch, FilterOperation, Modification, Patch, ResourceOperation,
};
use meridian_core::labels;
use meridian_policy::{Policy, proxy_conf};
use meridian_proxy_config::{
    AtOnce, ConnectionTimeouts, DestinationPolicies, InboundPolicies, Protocol, Script, StreamTimeouts,
};
use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::time::Duration;

/// In place of scripts that can't be read: one of them may have been there to refuse.
const CLOSED: &str = r#"function envoy_on_request(handle)
    handle:respond({[":status"] = "503"}, "a MeshProxyPatch of this proxy can't be read\n")
end
"#;

/// The modifications of some policies, in order.
#[derive(Default)]
pub(crate) struct Patches(Vec<Named>);

struct Named {
    policy: String,
    modification: Modification,
}

/// Where something may be modified.
pub(crate) struct Place<'a> {
    pub(crate) origin: &'static str,
    pub(crate) protocol: Protocol,
    /// As Kuma names it; unset: no name of ours.
    pub(crate) listener: Option<String>,
    /// Of the listener. `None`: of all that have no tags that a policy names.
    pub(crate) tags: Option<&'a BTreeMap<String, String>>,
    /// As Kuma names it.
    pub(crate) cluster: Option<String>,
}

/// What is modified.
struct Subject<'a> {
    protocol: Protocol,
    connections: &'a mut ConnectionTimeouts,
    streams: Vec<&'a mut StreamTimeouts>,
    at_once: &'a mut AtOnce,
    /// Not at an inbound.
    outgoing: Option<&'a mut Option<NonZeroU32>>,
}

impl Patches {
    /// `policies` go from weak to strong.
    pub(crate) fn read(policies: &[Arc<Policy>]) -> Result<Self, serde_json::Error> {
        let mut all = Vec::new();
        for policy in policies {
            let Some(merged) = proxy_conf(std::slice::from_ref(policy)) else { continue };
            let conf: Conf = merged.conf()?;
            let name = crate::picture::display_name(&policy.resource).to_owned();
            let named = |modification| Named { policy: name.clone(), modification };
            all.extend(conf.append_modifications.unwrap_or_default().into_iter().map(named));
        }
        Ok(Self(all))
    }

    /// Values of `kuma.io/service` that they name.
    pub(crate) fn tags(&self) -> BTreeSet<String> {
        let mut tags = BTreeSet::new();
        for named in &self.0 {
            let Modification { cluster, network_filter, http_filter, .. } = &named.modification;
            let filters = [network_filter, http_filter].into_iter().flatten();
            let matched = filters.filter_map(|filter| filter.match_.as_ref()?.listener_tags.as_ref());
            tags.extend(matched.filter_map(|tags| tags.get(labels::SERVICE).cloned()));
            tags.extend(cluster.iter().filter_map(|cluster| cluster.match_.as_ref()?.name.clone()));
        }
        tags
    }

    pub(crate) fn destination(&self, place: &Place<'_>, into: &mut DestinationPolicies) {
        into.scripts = self.scripts(place);
        self.set(
            place,
            &mut Subject {
                protocol: place.protocol,
                connections: &mut into.connection_timeouts,
                streams: vec![&mut into.stream_timeouts],
                at_once: &mut into.at_once,
                outgoing: Some(&mut into.connect_attempts),
            },
        );
    }

    pub(crate) fn inbound(&self, place: &Place<'_>, into: &mut InboundPolicies) {
        into.scripts = self.scripts(place);
        let of_callers = into.caller_timeouts.iter_mut().map(|caller| &mut caller.stream_timeouts);
        self.set(
            place,
            &mut Subject {
                protocol: place.protocol,
                connections: &mut into.connection_timeouts,
                streams: of_callers.chain([&mut into.stream_timeouts]).collect(),
                at_once: &mut into.at_once,
                outgoing: None,
            },
        );
    }

    fn scripts(&self, place: &Place<'_>) -> Vec<Script> {
        if !place.protocol.is_http() {
            return Vec::new();
        }
        let mut chain = Chain::default();
        for named in &self.0 {
            let filter = named.modification.http_filter.as_ref();
            if let Some(filter) = filter.filter(|filter| place.has_listener(filter.match_.as_ref())) {
                chain.modify(&named.policy, filter);
            }
        }
        chain.0.into_iter().filter_map(|filter| filter.script).collect()
    }

    fn set(&self, place: &Place<'_>, subject: &mut Subject<'_>) {
        for named in &self.0 {
            let Modification { cluster, network_filter, .. } = &named.modification;
            if let Some(cluster) = cluster {
                let matched = cluster.match_.as_ref();
                let here = place.is_from(matched.and_then(|it| it.origin.as_deref()))
                    && matched
                        .and_then(|it| it.name.as_deref())
                        .is_none_or(|name| place.cluster.as_deref() == Some(name));
                if here && cluster.operation == ResourceOperation::Patch {
                    cluster
                        .cluster_settings()
                        .set
                        .iter()
                        .for_each(|(setting, to)| subject.set(*setting, *to));
                }
            }
            let filter = network_filter.as_ref().filter(|filter| place.has_listener(filter.match_.as_ref()));
            let settings = filter.and_then(|filter| filter.network_settings());
            settings.unwrap_or_default().set.iter().for_each(|(setting, to)| subject.set(*setting, *to));
        }
    }
}

/// Every call that comes in is refused: what holds for it can't be read.
pub(crate) fn close(into: &mut InboundPolicies) {
    into.scripts = closed();
}

/// In place of scripts that can't be read.
pub(crate) fn closed() -> Vec<Script> {
    vec![Script { policy: "a policy that can't be read".to_owned(), source: CLOSED.to_owned() }]
}

impl Place<'_> {
    fn is_from(&self, origin: Option<&str>) -> bool {
        origin.is_none_or(|origin| origin == self.origin)
    }

    fn has_listener(&self, matched: Option<&FilterMatch>) -> bool {
        let Some(matched) = matched else { return true };
        let has =
            |(name, value): (&String, &String)| self.tags.is_some_and(|tags| tags.get(name) == Some(value));
        self.is_from(matched.origin.as_deref())
            && matched.listener_name.as_ref().is_none_or(|name| self.listener.as_ref() == Some(name))
            && matched.listener_tags.iter().flatten().all(has)
    }
}

/// A chain of filters, of which scripts matter.
struct Chain(Vec<Filter>);

struct Filter {
    name: String,
    script: Option<Script>,
}

impl Default for Chain {
    fn default() -> Self {
        let ours = PLACES.iter().map(|name| Filter { name: (*name).to_owned(), script: None });
        Self(ours.collect())
    }
}

impl Chain {
    fn modify(&mut self, policy: &str, patch: &Patch<FilterOperation, FilterMatch>) {
        let name = patch.match_.as_ref().and_then(|matched| matched.name.as_deref());
        let lua = patch.lua().ok().flatten();
        let script = lua.as_ref().map(|lua| Script { policy: policy.to_owned(), source: lua.source.clone() });
        // Of one that is no script only its place matters, as others may stand beside it.
        let new = || Filter {
            name: lua.as_ref().map_or_else(String::new, |lua| lua.name.clone()),
            script: script.clone(),
        };
        let position = name.and_then(|name| self.0.iter().position(|filter| filter.name == name));
        let is_script = lua.is_some();
        match (&patch.operation, position) {
            (FilterOperation::AddFirst, _) if is_script => self.0.insert(0, new()),
            (FilterOperation::AddLast, _) if is_script => self.0.push(new()),
            (FilterOperation::AddBefore, Some(position)) if is_script => self.0.insert(position, new()),
            (FilterOperation::AddAfter, Some(position)) if is_script => self.0.insert(position + 1, new()),
            (FilterOperation::Patch, _) if is_script => {
                let patched = self.0.iter_mut().filter(|filter| Some(filter.name.as_str()) == name);
                patched
                    .filter(|filter| filter.script.is_some())
                    .for_each(|filter| filter.script.clone_from(&script));
            }
            (FilterOperation::Remove, _) => {
                self.0
                    .retain(|filter| filter.script.is_none() || name.is_some_and(|name| filter.name != name));
            }
            _ => {}
        }
        // What stands behind the router would never run: it is the last, but it does run.
        if let Some(router) = self.0.iter().position(|filter| filter.name == ROUTER) {
            let router = self.0.remove(router);
            self.0.push(router);
        }
    }
}

impl Subject<'_> {
    fn set(&mut self, setting: Setting, to: Amount) {
        let http = self.protocol.is_http();
        match (setting, to) {
            (Setting::ConnectTimeout, Amount::Time(time)) => {
                self.connections.connect_millis = time.map(millis).and_then(NonZeroU64::new);
            }
            (Setting::TcpIdleTimeout, Amount::Time(time)) if !http => {
                self.connections.idle_millis = time.map(millis);
            }
            (Setting::HttpIdleTimeout, Amount::Time(time)) if http => {
                self.connections.idle_millis = time.map(millis);
            }
            (Setting::RequestHeadersTimeout, Amount::Time(time)) if http => {
                self.connections.request_head_millis = time.map(millis);
            }
            (Setting::StreamIdleTimeout, Amount::Time(time)) if http => {
                self.streams.iter_mut().for_each(|streams| streams.idle_millis = time.map(millis));
            }
            (Setting::MaxStreamDuration, Amount::Time(time)) if http => {
                self.streams.iter_mut().for_each(|streams| streams.max_millis = time.map(millis));
            }
            (Setting::MaxConnections, Amount::Count(count)) => self.at_once.connections = number(count),
            (Setting::MaxPendingRequests, Amount::Count(count)) => self.at_once.pending = number(count),
            (Setting::MaxRequests, Amount::Count(count)) => self.at_once.requests = number(count),
            // An inbound repeats nothing.
            (Setting::MaxRetries, Amount::Count(count)) if self.outgoing.is_some() => {
                self.at_once.retries = number(count);
            }
            (Setting::MaxConnectAttempts, Amount::Count(count)) if !http => {
                if let Some(attempts) = &mut self.outgoing {
                    **attempts = number(count);
                }
            }
            _ => {}
        }
    }
}

fn number(count: Option<u32>) -> Option<NonZeroU32> {
    count.and_then(NonZeroU32::new)
}

/// What is shorter than a millisecond counts as one, so that it does not become "never".
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn patches(modifications: Value) -> Patches {
        let all: Vec<Modification> = serde_json::from_value(modifications).unwrap();
        Patches(all.into_iter().map(|modification| Named { policy: "p".into(), modification }).collect())
    }

    fn lua(operation: &str, matched: Value, name: &str, source: &str) -> Value {
        let value = json!({"name": name, "typedConfig": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua", "inlineCode": source,
        }});
        json!({"httpFilter": {"operation": operation, "match": matched, "value": value.to_string()}})
    }

    fn place<'a>(
        origin: &'static str,
        protocol: Protocol,
        tags: Option<&'a BTreeMap<String, String>>,
    ) -> Place<'a> {
        let listener = (origin == "inbound").then(|| "inbound:10.0.0.1:80".to_owned());
        let cluster = tags.and_then(|tags| tags.get("kuma.io/service").cloned());
        Place { origin, protocol, listener, tags, cluster }
    }

    fn sources(patches: &Patches, place: &Place<'_>) -> String {
        patches.scripts(place).iter().map(|script| script.source.as_str()).collect()
    }

    #[test]
    fn scripts_stand_where_they_are_put() {
        let at = |name: &str| json!({"name": name});
        let all = patches(json!([
            lua("AddLast", json!({}), "l", "e"),
            lua("AddBefore", at("envoy.filters.http.router"), "l", "d"),
            lua("AddFirst", json!({}), "first", "b"),
            lua("AddAfter", at("first"), "l", "c"),
            lua("AddBefore", at("first"), "l", "a"),
            lua("AddBefore", at("envoy.filters.http.cors"), "l", "?"),
        ]));
        assert_eq!(sources(&all, &place("inbound", Protocol::Http, None)), "abced");
        assert_eq!(sources(&all, &place("inbound", Protocol::Tcp, None)), "");
    }

    #[test]
    fn scripts_are_exchanged_and_removed() {
        let router = json!({"name": "envoy.filters.http.router"});
        let mut all = vec![
            lua("AddBefore", router.clone(), "one", "1"),
            lua("AddBefore", router, "two", "2"),
            lua("Patch", json!({"name": "one"}), "", "x"),
        ];
        let now = |all: &Vec<Value>| sources(&patches(json!(all)), &place("outbound", Protocol::Grpc, None));
        assert_eq!(now(&all), "x2");
        let patch = json!([{"op": "replace", "path": "/inlineCode", "value": "y"}]);
        all.push(
            json!({"httpFilter": {"operation": "Patch", "match": {"name": "two"}, "jsonPatches": patch}}),
        );
        assert_eq!(now(&all), "xy");
        all.push(json!({"httpFilter": {"operation": "Remove", "match": {"name": "one"}}}));
        assert_eq!(now(&all), "y");
        all.push(json!({"httpFilter": {"operation": "Remove"}}));
        assert_eq!(now(&all), "");
    }

    #[test]
    fn a_script_is_only_where_it_matches() {
        let tags: BTreeMap<String, String> = [("kuma.io/service".to_owned(), "web".to_owned())].into();
        let all = patches(json!([
            lua("AddLast", json!({"origin": "inbound"}), "l", "i"),
            lua("AddLast", json!({"origin": "outbound"}), "l", "o"),
            lua("AddLast", json!({"origin": "ingress"}), "l", "?"),
            lua("AddLast", json!({"listenerTags": {"kuma.io/service": "web"}}), "l", "w"),
            lua("AddLast", json!({"listenerName": "inbound:10.0.0.1:80"}), "l", "n"),
            lua("AddLast", json!({"listenerName": "inbound:10.0.0.1:81"}), "l", "?"),
        ]));
        assert_eq!(sources(&all, &place("inbound", Protocol::Http, Some(&tags))), "iwn");
        assert_eq!(sources(&all, &place("outbound", Protocol::Http, Some(&tags))), "ow");
        assert_eq!(sources(&all, &place("outbound", Protocol::Http, None)), "o");
        assert_eq!(all.tags(), BTreeSet::from(["web".to_owned()]));
    }

    #[test]
    fn settings_are_of_what_is_matched() {
        let tags: BTreeMap<String, String> = [("kuma.io/service".to_owned(), "web".to_owned())].into();
        let manager = |more: Value| {
            let mut matched = json!({"name": "envoy.filters.network.http_connection_manager"});
            matched.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let patch = json!([{"op": "add", "path": "/requestHeadersTimeout", "value": "3s"}]);
            json!({"networkFilter": {"operation": "Patch", "match": matched, "jsonPatches": patch}})
        };
        let cluster = |matched: Value, operation: &str| {
            let value = "{connectTimeout: 3s}";
            json!({"cluster": {"operation": operation, "match": matched, "value": value}})
        };
        let unlisted = json!({"name": "envoy.filters.network.rbac"});
        // At an inbound, at an outbound of web, and at one of no tag that is named.
        for (modification, places) in [
            (cluster(json!({}), "Patch"), [true, true, true]),
            (cluster(json!({"origin": "inbound"}), "Patch"), [true, false, false]),
            (cluster(json!({"origin": "outbound"}), "Patch"), [false, true, true]),
            (cluster(json!({"name": "web"}), "Patch"), [false, true, false]),
            (cluster(json!({}), "Add"), [false; 3]),
            (cluster(json!({}), "Remove"), [false; 3]),
            (manager(json!({})), [true, true, true]),
            (manager(json!({"origin": "inbound"})), [true, false, false]),
            (manager(json!({"listenerName": "inbound:10.0.0.1:80"})), [true, false, false]),
            (manager(json!({"listenerTags": {"kuma.io/service": "web"}})), [false, true, false]),
            (manager(unlisted), [false; 3]),
        ] {
            let all = patches(json!([modification]));
            let mut inbound = InboundPolicies::default();
            all.inbound(&place("inbound", Protocol::Http, None), &mut inbound);
            let outbound = |tags| {
                let mut into = DestinationPolicies::default();
                all.destination(&place("outbound", Protocol::Http, tags), &mut into);
                into != DestinationPolicies::default()
            };
            let found = [inbound != InboundPolicies::default(), outbound(Some(&tags)), outbound(None)];
            assert_eq!(found, places, "{modification}");
        }
    }

    #[test]
    fn what_is_removed_is_as_without_it() {
        let all = patches(json!([
            {"cluster": {"operation": "Patch", "jsonPatches": [{"op": "remove", "path": "/circuitBreakers"}]}},
            {"cluster": {"operation": "Patch", "jsonPatches": [{"op": "copy", "from": "/a", "path": "/connectTimeout"}]}},
        ]));
        let mut into = DestinationPolicies::default();
        into.at_once.requests = NonZeroU32::new(5);
        into.connection_timeouts.connect_millis = NonZeroU64::new(7);
        all.destination(&place("outbound", Protocol::Http, None), &mut into);
        assert_eq!(into.at_once, AtOnce::default());
        assert_eq!(into.connection_timeouts.connect_millis, NonZeroU64::new(7), "copies are not made");
    }

    #[test]
    fn limits_are_set_over_those_of_other_policies() {
        let tags: BTreeMap<String, String> = [("kuma.io/service".to_owned(), "web".to_owned())].into();
        let manager = json!({"name": "envoy.filters.network.http_connection_manager"});
        let tcp = json!({"name": "envoy.filters.network.tcp_proxy", "origin": "outbound"});
        let all = patches(json!([
            {"cluster": {"operation": "Patch", "value": "{connectTimeout: 2s, circuitBreakers: {thresholds: [{maxRequests: 9, maxRetries: 8}]}}"}},
            {"cluster": {"operation": "Patch", "match": {"name": "web"}, "jsonPatches": [{"op": "replace", "path": "/connectTimeout", "value": "0.5s"}]}},
            {"networkFilter": {"operation": "Patch", "match": manager, "value": "{typedConfig: {streamIdleTimeout: 7s, commonHttpProtocolOptions: {maxStreamDuration: 8s}}}"}},
            {"networkFilter": {"operation": "Patch", "match": tcp, "value": "{typedConfig: {idleTimeout: 6s, maxConnectAttempts: 3}}"}},
        ]));
        let destination = |protocol, tags| {
            let mut into = DestinationPolicies::default();
            into.stream_timeouts.idle_millis = Some(1);
            all.destination(&place("outbound", protocol, tags), &mut into);
            serde_json::to_value(into).unwrap()
        };
        assert_eq!(
            destination(Protocol::Http, Some(&tags)),
            json!({"connectionTimeouts": {"connectMillis": 500}, "streamTimeouts": {"idleMillis": 7000, "maxMillis": 8000}, "atOnce": {"requests": 9, "retries": 8}})
        );
        assert_eq!(
            destination(Protocol::Tcp, None),
            json!({"connectionTimeouts": {"connectMillis": 2000, "idleMillis": 6000}, "streamTimeouts": {"idleMillis": 1}, "connectAttempts": 3, "atOnce": {"requests": 9, "retries": 8}})
        );
        let mut into = InboundPolicies::default();
        all.inbound(&place("inbound", Protocol::Http, None), &mut into);
        assert_eq!(
            serde_json::to_value(into).unwrap(),
            json!({"connectionTimeouts": {"connectMillis": 2000}, "streamTimeouts": {"idleMillis": 7000, "maxMillis": 8000}, "atOnce": {"requests": 9}})
        );
    }
}
