use crate::precedence::sorted;
use crate::{Parsed, Subject, selects};
use ipnet::IpNet;
use meridian_core::kinds::mesh::Mesh;
use meridian_core::kinds::mesh_passthrough::{Match, MatchType, MeshPassthrough, PassthroughMode};
use meridian_core::names;
use meridian_proxy_config::{CallerMode, canonical_net};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What a Dataplane may reach outside of the mesh without an external service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passthrough {
    pub mode: CallerMode,
    /// Sorted, each once. Only under `Matched`.
    pub entries: Vec<PassthroughEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PassthroughEntry {
    /// The same for the same match in whatever policy of the mesh: a name for the egress's entry.
    pub key: String,
    /// With its value in canonical form: lower case and no trailing dot, or without host bits.
    pub match_: Match,
    /// Display name of the strongest policy that has it, for logs and "why".
    pub policy: String,
}

/// Merges the MeshPassthroughs (in any order) that select a Dataplane; none: the Mesh's own `passthrough`. The
/// strongest mode holds, matches add up.
pub fn passthrough(
    mesh: &Mesh,
    dataplane: &Subject<'_>,
    policies: &[Parsed<MeshPassthrough>],
) -> Passthrough {
    let selected = policies
        .iter()
        .filter(|policy| selects(&policy.resource, policy.spec.target_ref.as_ref(), dataplane, None));
    let selected = sorted(selected, |spec| spec.target_ref.as_ref());
    if selected.is_empty() {
        let mode = if mesh.passthrough() { CallerMode::All } else { CallerMode::None };
        return Passthrough { mode, entries: Vec::new() };
    }
    let (mut mode, mut entries) = (CallerMode::Matched, BTreeMap::new());
    for policy in selected {
        match policy.spec.default.passthrough_mode {
            Some(PassthroughMode::All) => mode = CallerMode::All,
            Some(PassthroughMode::Matched) => mode = CallerMode::Matched,
            Some(PassthroughMode::None | PassthroughMode::Other(_)) => mode = CallerMode::None,
            None => {}
        }
        let policy_name = names::display(&policy.resource.key.name, &policy.resource.labels);
        for matched in &policy.spec.default.append_match {
            let entry = entry(matched, policy_name);
            entries.insert(entry.key.clone(), entry);
        }
    }
    let entries = if mode == CallerMode::Matched { entries.into_values().collect() } else { Vec::new() };
    Passthrough { mode, entries }
}

fn entry(matched: &Match, policy: &str) -> PassthroughEntry {
    let mut match_ = matched.clone();
    match_.value = canonical(&match_);
    let port = match_.port.map_or_else(|| "*".to_owned(), |port| port.to_string());
    let key = format!("{}/{}/{port}/{}", match_.type_, match_.value, match_.protocol);
    PassthroughEntry { key, match_, policy: policy.to_owned() }
}

/// Two ways to write one destination make one entry. What does not parse stays as it is: nothing matches it.
fn canonical(match_: &Match) -> String {
    let value = &match_.value;
    match match_.type_ {
        MatchType::Ip => {
            value.parse::<IpAddr>().map_or_else(|_| value.clone(), |ip| ip.to_canonical().to_string())
        }
        MatchType::Cidr => {
            value.parse::<IpNet>().map_or_else(|_| value.clone(), |net| canonical_net(net).to_string())
        }
        MatchType::Domain | MatchType::Other(_) => value.trim_end_matches('.').to_ascii_lowercase(),
    }
}
