//! What makes a MeshProxyPatch valid.

use super::effect::{ORIGINS, PLACES, Settings};
use super::{
    FilterMatch, FilterOperation, JsonPatch, JsonPatchOperation, MeshProxyPatch, Modification, NO_ENVOY,
    Patch, ResourceOperation, VirtualHostMatch,
};
use crate::check::NOT_SUPPORTED;
use crate::kinds::policy;
use crate::validate::{self, MUST_BE_DEFINED, MUST_NOT_BE_DEFINED, MUST_NOT_BE_EMPTY, exactly_one, only_one};
use crate::{Context, Kind, Spec, Violations, document};
use meridian_lua::Program;

/// Filters that decide who may pass, or may answer by themselves: a patch with one of them is no tuning.
const DECIDING: [&str; 13] = [
    "rbac",
    "ext_authz",
    "jwt_authn",
    "basic_auth",
    "api_key_auth",
    "oauth2",
    "client_ssl_auth",
    "csrf",
    "ext_proc",
    "wasm",
    "golang",
    "dynamic_modules",
    "direct_response",
];

/// Fields that keep callers out, as they are compared: in lower case, without underscores, since Envoy takes both forms.
const RESTRICTING: [&str; 4] =
    ["directresponse", "requireclientcertificate", "tlsminimumprotocolversion", "validationcontext"];

impl Spec for MeshProxyPatch {
    const KIND: Kind = MeshProxyPatch::KIND;

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        policy::check_top(self.target_ref.as_ref(), &policy::TOP, false, out);
        let path = "spec.default.appendModifications";
        let modifications = self.default.append_modifications.as_deref().unwrap_or_default();
        if modifications.is_empty() {
            out.push(path, MUST_NOT_BE_EMPTY);
        }
        for (i, modification) in modifications.iter().enumerate() {
            modification.check(&format!("{path}[{i}]"), out);
        }
    }

    fn warnings(&self, _context: &Context<'_>, out: &mut Vec<String>) {
        policy::warn_of_top(self.target_ref.as_ref(), out);
        for (i, modification) in self.default.append_modifications.iter().flatten().enumerate() {
            let path = format!("spec.default.appendModifications[{i}]");
            modification.warn(&path, out);
        }
    }
}

impl Modification {
    fn check(&self, path: &str, out: &mut Violations) {
        let Self { cluster, listener, network_filter, http_filter, virtual_host } = self;
        let given = [
            cluster.is_some(),
            listener.is_some(),
            network_filter.is_some(),
            http_filter.is_some(),
            virtual_host.is_some(),
        ];
        let given = given.into_iter().filter(|given| *given).count();
        if given != 1 {
            let reason = "exactly one modification can be defined at a time. Currently,";
            return out.push(path, format!("{reason} {given} modifications are defined"));
        }
        if let Some(patch) = cluster {
            patch.check_resource(path, "cluster", |_| Some("match"), out);
            if patch.operation == ResourceOperation::Patch {
                patch.cluster_settings().check(&format!("{path}.cluster"), out);
            }
        }
        if let Some(patch) = listener {
            patch.check_resource(path, "listener", |_| Some("match"), out);
        }
        if let Some(patch) = network_filter {
            patch.check_filter(path, "networkFilter", out);
            if let Some(settings) = patch.network_settings() {
                settings.check(&format!("{path}.networkFilter"), out);
            }
        }
        if let Some(patch) = http_filter {
            patch.check_filter(path, "httpFilter", out);
        }
        if let Some(patch) = virtual_host {
            // The rest says into which route configurations it goes.
            let unfit = |matched: &VirtualHostMatch| matched.name.is_some().then_some("match.name");
            patch.check_resource(path, "virtualHost", unfit, out);
        }
    }
}

impl<M> Patch<ResourceOperation, M> {
    /// `unfit` names the field by which something new can't be matched, since it is not there yet.
    fn check_resource(
        &self,
        path: &str,
        what: &str,
        unfit: fn(&M) -> Option<&'static str>,
        out: &mut Violations,
    ) {
        let path = &format!("{path}.{what}");
        match &self.operation {
            ResourceOperation::Add => {
                if let Some(field) = self.match_.as_ref().and_then(unfit) {
                    out.push(format!("{path}.{field}"), MUST_NOT_BE_DEFINED);
                }
                self.check_added(path, out);
            }
            ResourceOperation::Patch => self.check_patched(path, what, out),
            ResourceOperation::Remove => {
                self.check_removed(path, out);
                if self.value().is_none() && self.patches().is_empty() {
                    out.push(path, format!("{NOT_SUPPORTED}: what it takes away would stay open"));
                }
                return;
            }
            ResourceOperation::Other(_) => {
                return out.push(format!("{path}.operation"), operations(ResourceOperation::VALUES));
            }
        }
        self.refuse_decisions(path, None, out);
    }
}

impl Patch<FilterOperation, FilterMatch> {
    fn check_filter(&self, path: &str, what: &str, out: &mut Violations) {
        let path = &format!("{path}.{what}");
        let name = self.match_.as_ref().and_then(|matched| matched.name.as_deref());
        let unnamed = name.is_none_or(str::is_empty);
        let side = match self.operation {
            FilterOperation::AddBefore => ". You need to pick a filter before which this one will be added",
            FilterOperation::AddAfter => ". You need to pick a filter after which this one will be added",
            _ => "",
        };
        let placed = [FilterOperation::AddBefore, FilterOperation::AddAfter, FilterOperation::Patch];
        if unnamed && placed.contains(&self.operation) {
            out.push(format!("{path}.match.name"), format!("{MUST_BE_DEFINED}{side}"));
        }
        match &self.operation {
            FilterOperation::AddFirst
            | FilterOperation::AddLast
            | FilterOperation::AddBefore
            | FilterOperation::AddAfter => self.check_added(path, out),
            FilterOperation::Patch => self.check_patched(path, what, out),
            FilterOperation::Remove => return self.check_removed(path, out),
            FilterOperation::Other(_) => {
                return out.push(format!("{path}.operation"), operations(FilterOperation::VALUES));
            }
        }
        let patched = name.filter(|_| self.operation == FilterOperation::Patch);
        match self.lua() {
            Ok(Some(filter)) if what == "httpFilter" => self.check_script(path, &filter.source, out),
            Err(reason) if what == "httpFilter" => {
                out.push(format!("{path}.value"), format!("{NOT_SUPPORTED}: {reason}"));
            }
            _ => self.refuse_decisions(path, patched, out),
        }
    }

    /// A script must be one; and one that may answer requests must be run, as its author means it.
    fn check_script(&self, path: &str, source: &str, out: &mut Violations) {
        let field = if self.value().is_some() { "value" } else { "jsonPatches" };
        let field = format!("{path}.{field}");
        let program = match Program::compile(source) {
            Ok(program) => program,
            Err(reason) => return out.push(field, format!("the script is none: {reason}")),
        };
        if !program.decides() {
            return;
        }
        if let Some(name) = Program::unsupported(source).next() {
            out.push(
                &field,
                format!("{NOT_SUPPORTED}: its script answers requests, and {name} is not there"),
            );
        }
        if let Some(why) = self.nowhere() {
            out.push(
                field,
                format!("{NOT_SUPPORTED}: its script answers requests, and would not be run: {why}"),
            );
        }
    }

    /// Why a filter would be in no chain of ours.
    fn nowhere(&self) -> Option<String> {
        let matched = self.match_.as_ref()?;
        let origin = matched.origin.as_deref();
        if let Some(origin) = origin.filter(|origin| !ORIGINS.contains(origin)) {
            return Some(format!("origin {origin:?} is none of {}", ORIGINS.join(", ")));
        }
        if origin == Some("outbound") && matched.listener_name.is_some() {
            return Some("listenerName selects inbounds only".to_owned());
        }
        let protocol = matched.listener_tags.as_ref().and_then(|tags| tags.get("kuma.io/protocol"));
        match protocol.map(String::as_str) {
            None | Some("http" | "http2" | "grpc") => None,
            Some(other) => Some(format!("{other} has no requests")),
        }
    }
}

impl Settings {
    fn check(&self, path: &str, out: &mut Violations) {
        for pointer in &self.wrong {
            out.push(path, format!("native Envoy resource is not valid: {pointer}"));
        }
    }

    fn warn(&self, path: &str, out: &mut Vec<String>) {
        out.extend(self.ignored.iter().map(|pointer| format!("{path}: {pointer} has no effect: {NO_ENVOY}")));
    }
}

impl Modification {
    /// Of what is left out of changes that are executed in part; the others' fields are warned of as a whole.
    fn warn(&self, path: &str, out: &mut Vec<String>) {
        if let Some(patch) = &self.cluster {
            let path = format!("{path}.cluster");
            let origin = patch.match_.as_ref().and_then(|matched| matched.origin.as_deref());
            if patch.operation != ResourceOperation::Patch || origin.is_some_and(|it| !ORIGINS.contains(&it))
            {
                out.push(format!("{path} has no effect: {NO_ENVOY}"));
            } else {
                patch.cluster_settings().warn(&path, out);
            }
        }
        if let Some(patch) = &self.network_filter {
            let path = format!("{path}.networkFilter");
            match patch.network_settings().filter(|_| patch.nowhere_of_connections().is_none()) {
                Some(settings) => settings.warn(&path, out),
                None => out.push(format!("{path} has no effect: {NO_ENVOY}")),
            }
        }
        if let Some(patch) = &self.http_filter {
            patch.warn_of_http(&format!("{path}.httpFilter"), out);
        }
    }
}

impl Patch<FilterOperation, FilterMatch> {
    /// As [`Self::nowhere`], for what needs no requests.
    fn nowhere_of_connections(&self) -> Option<String> {
        self.nowhere().filter(|why| !why.ends_with("has no requests"))
    }

    fn warn_of_http(&self, path: &str, out: &mut Vec<String>) {
        let name = self.match_.as_ref().and_then(|matched| matched.name.as_deref()).unwrap_or_default();
        let ours = PLACES.contains(&name);
        let executed = match self.operation {
            FilterOperation::Remove => !ours,
            FilterOperation::Patch => !ours && self.lua().is_ok_and(|lua| lua.is_some()),
            _ => self.lua().is_ok_and(|lua| lua.is_some()),
        };
        if !executed {
            return out.push(format!("{path} has no effect: {NO_ENVOY}"));
        }
        if let Some(why) = self.nowhere() {
            out.push(format!("{path} has no effect: {why}"));
        }
        let beside = matches!(self.operation, FilterOperation::AddBefore | FilterOperation::AddAfter);
        if beside && !ours {
            let known = PLACES.join(", ");
            out.push(format!("{path}.match.name: the filter is added only if another one of that name is added before; always there are {known}"));
        }
        if let Ok(Some(filter)) = self.lua() {
            let missing: Vec<_> = Program::unsupported(&filter.source).collect();
            if !missing.is_empty() {
                out.push(format!(
                    "{path}: the script fails where it calls {}: not supported yet",
                    missing.join(", ")
                ));
            }
        }
    }
}

impl<O, M> Patch<O, M> {
    fn value(&self) -> Option<&str> {
        self.value.as_deref().filter(|value| !value.is_empty())
    }

    fn patches(&self) -> &[JsonPatch] {
        self.json_patches.as_deref().unwrap_or_default()
    }

    fn check_added(&self, path: &str, out: &mut Violations) {
        match self.value() {
            None => out.push(format!("{path}.value"), MUST_BE_DEFINED),
            Some(value) => check_value(path, value, out),
        }
        self.refuse_patches(path, out);
    }

    fn check_patched(&self, path: &str, what: &str, out: &mut Violations) {
        const WAYS: [&str; 2] = ["value", "jsonPatches"];
        match (self.value(), self.patches()) {
            (None, []) => out.push(path, exactly_one(what, &WAYS)),
            (Some(value), []) => check_value(path, value, out),
            (Some(_), _) => out.push(path, only_one(what, &WAYS)),
            (None, patches) => {
                for (i, patch) in patches.iter().enumerate() {
                    patch.check(&format!("{path}.jsonPatches[{i}]"), out);
                }
            }
        }
    }

    fn check_removed(&self, path: &str, out: &mut Violations) {
        if self.value().is_some() {
            out.push(format!("{path}.value"), MUST_NOT_BE_DEFINED);
        }
        self.refuse_patches(path, out);
    }

    fn refuse_patches(&self, path: &str, out: &mut Violations) {
        if !self.patches().is_empty() {
            out.push(format!("{path}.jsonPatches"), MUST_NOT_BE_DEFINED);
        }
    }

    /// Ignoring what keeps callers out would let them in. `patched` names the filter that is changed, if one is: beside
    /// which other a new one stands decides nothing.
    fn refuse_decisions(&self, path: &str, patched: Option<&str>, out: &mut Violations) {
        // As it is read, not as it is written: YAML can spell a name in many ways.
        let value = self.value().and_then(|value| document::parse_text(value).ok());
        let text = serde_json::to_string(&(&value, &self.json_patches, patched)).unwrap_or_default();
        let plain = text.to_ascii_lowercase().replace('_', "");
        let names = |filter: &str| {
            ["http", "network"].iter().any(|layer| text.contains(&format!("filters.{layer}.{filter}")))
        };
        let reason = if let Some(filter) = DECIDING.iter().find(|filter| names(filter)) {
            format!("what its {filter} filter forbids would be let through; use MeshTrafficPermission")
        } else if let Some(field) = RESTRICTING.iter().find(|field| plain.contains(**field)) {
            format!("what its {field} keeps out would be let through")
        } else if names("lua") && text.contains("respond") {
            "what its script answers itself would be let through".to_owned()
        } else {
            return;
        };
        out.push(path, format!("{NOT_SUPPORTED}: {reason}"));
    }
}

fn operations(values: &[&str]) -> String {
    let values: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
    format!("invalid operation. Available operations: {}", values.join(", "))
}

/// Whether the text can be one of Envoy's types at all: an object. Of which fields, only Envoy knows.
fn check_value(path: &str, value: &str, out: &mut Violations) {
    let reason = match document::parse_text(value) {
        Ok(value) if value.is_object() => return,
        Ok(_) => "it is no object",
        // Kuma's word for text that ends too early; it has others for other mistakes.
        Err(_) => "unexpected EOF",
    };
    out.push(format!("{path}.value"), format!("native Envoy resource is not valid: {reason}"));
}

impl JsonPatch {
    fn check(&self, path: &str, out: &mut Violations) {
        if !self.op.is_known() {
            out.push(format!("{path}.op"), validate::one_of("op", JsonPatchOperation::VALUES));
        }
        let moved = matches!(self.op, JsonPatchOperation::Move | JsonPatchOperation::Copy);
        if moved && self.from.is_none() {
            out.push(format!("{path}.from"), MUST_BE_DEFINED);
        }
        for (name, pointer) in [("path", Some(&self.path)), ("from", self.from.as_ref())] {
            if pointer.is_some_and(|pointer| !pointer.is_empty() && !pointer.starts_with('/')) {
                out.push(format!("{path}.{name}"), "must be a JSON pointer, like /connectTimeout");
            }
        }
    }
}
