//! MeshRequestFilter.

use meridian_core::kinds::mesh_request_filter::{
    Action, Conf, DEFAULT_MAX_BYTES, DEFAULT_STATUS, Pattern, Place, RuleSet,
};
use meridian_core::kinds::mesh_traffic_permission::RuleMatch;
use meridian_proxy_config::{self as config, FilterAction, FilterPattern, InboundPolicies, RequestPart};

const EVERYWHERE: [RequestPart; 6] = [
    RequestPart::Path,
    RequestPart::Query,
    RequestPart::HeaderNames,
    RequestPart::Headers,
    RequestPart::Body,
    RequestPart::Trailers,
];

/// The kind has no matches: one configuration holds for everybody.
pub(crate) fn inbound(confs: &[(Option<RuleMatch>, Conf)], into: &mut InboundPolicies) {
    let conf = confs.iter().find(|(matched, _)| matched.is_none());
    into.filter = conf.map(|(_, conf)| filter(conf));
}

/// In place of a filter that can't be read: what it guards is refused. Every path matches.
pub(crate) fn close(into: &mut InboundPolicies) {
    let everything = FilterPattern {
        name: "a policy that can't be read".to_owned(),
        regex: String::new(),
        places: vec![RequestPart::Path],
    };
    into.filter = Some(config::RequestFilter { patterns: vec![everything], ..filter(&Conf::default()) });
}

/// Which policy reports name: the strongest of those that were merged.
pub(crate) fn named(policy: &str, into: &mut InboundPolicies) {
    if let Some(filter) = &mut into.filter {
        policy.clone_into(&mut filter.policy);
    }
}

fn filter(conf: &Conf) -> config::RequestFilter {
    let action = action(conf.action.as_ref(), FilterAction::Block);
    let body = conf.body.clone().unwrap_or_default();
    let status = conf.status.and_then(|status| u16::try_from(status).ok());
    config::RequestFilter {
        policy: String::new(),
        rule_sets: rule_sets(conf.rule_sets.as_deref()),
        patterns: conf.patterns.iter().flatten().map(pattern).collect(),
        action,
        status: status.unwrap_or(DEFAULT_STATUS),
        max_body_bytes: body.max_bytes.unwrap_or(DEFAULT_MAX_BYTES),
        on_limit: self::action(body.on_limit.as_ref(), action),
    }
}

fn rule_sets(sets: Option<&[RuleSet]>) -> Vec<config::RuleSet> {
    match sets {
        Some(sets) if !sets.contains(&RuleSet::Log4shell) => Vec::new(),
        Some(_) | None => vec![config::RuleSet::Log4shell],
    }
}

fn action(action: Option<&Action>, unset: FilterAction) -> FilterAction {
    match action {
        None => unset,
        Some(Action::Observe) => FilterAction::Observe,
        Some(Action::Block | Action::Other(_)) => FilterAction::Block,
    }
}

fn pattern(pattern: &Pattern) -> FilterPattern {
    let places = pattern.places.as_ref();
    FilterPattern {
        name: pattern.name.clone(),
        regex: pattern.regex.clone(),
        places: places.map_or(EVERYWHERE.to_vec(), |places| places.iter().filter_map(part).collect()),
    }
}

fn part(place: &Place) -> Option<RequestPart> {
    match place {
        Place::Path => Some(RequestPart::Path),
        Place::Query => Some(RequestPart::Query),
        Place::HeaderNames => Some(RequestPart::HeaderNames),
        Place::Headers => Some(RequestPart::Headers),
        Place::Body => Some(RequestPart::Body),
        Place::Trailers => Some(RequestPart::Trailers),
        Place::Other(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn compiled(conf: serde_json::Value) -> serde_json::Value {
        let mut policies = InboundPolicies::default();
        inbound(&[(None, serde_json::from_value(conf).unwrap())], &mut policies);
        named("lookups", &mut policies);
        serde_json::to_value(policies.filter).unwrap()
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let expected = json!({
            "policy": "lookups", "ruleSets": ["log4shell"], "action": "block", "status": 403,
            "maxBodyBytes": 1_048_576, "onLimit": "block",
        });
        assert_eq!(compiled(json!({})), expected);
    }

    #[test]
    fn what_is_said_is_taken_over() {
        let conf = json!({
            "ruleSets": [], "action": "Observe", "status": 400, "body": { "maxBytes": 5 },
            "patterns": [{ "name": "a", "regex": "b", "in": ["Path", "Trailers"] }, { "name": "c", "regex": "d" }],
        });
        let everywhere = ["path", "query", "headerNames", "headers", "body", "trailers"];
        let expected = json!({
            "policy": "lookups", "action": "observe", "status": 400, "maxBodyBytes": 5, "onLimit": "observe",
            "patterns": [
                { "name": "a", "regex": "b", "in": ["path", "trailers"] },
                { "name": "c", "regex": "d", "in": everywhere },
            ],
        });
        assert_eq!(compiled(conf), expected);
        let blocking = compiled(json!({ "action": "Observe", "body": { "onLimit": "Block" } }));
        assert_eq!(blocking["onLimit"], "block");
    }

    #[test]
    fn no_policy_is_no_filter() {
        let mut policies = InboundPolicies::default();
        inbound(&[], &mut policies);
        named("lookups", &mut policies);
        assert_eq!(policies, InboundPolicies::default());
    }
}
