//! What of Envoy's types has a meaning here: Lua filters, and some numbers. One reading serves the check of a document and
//! the zones that execute it, so that what is warned of is what is left out.

use super::{FilterMatch, FilterOperation, JsonPatch, JsonPatchOperation, Patch};
use crate::document;
use crate::duration::ProtoDuration;
use base64::Engine;
use serde_json::Value;
use std::time::Duration;

/// Filters that the proxies have in their own form, always: names that a new filter may be placed beside. All scripts run
/// after permission, faults, rate limits and request filters, whichever of these they stand before.
pub const PLACES: [&str; 4] =
    ["envoy.filters.http.rbac", "envoy.filters.http.fault", "envoy.filters.http.local_ratelimit", ROUTER];
/// The last of a chain.
pub const ROUTER: &str = "envoy.filters.http.router";
/// Where modifications have an effect.
pub const ORIGINS: [&str; 2] = ["inbound", "outbound"];

const LUA_TYPE: &str = "envoy.extensions.filters.http.lua.v3.Lua";
const CONNECTION_MANAGER: &str = "envoy.filters.network.http_connection_manager";
const TCP_PROXY: &str = "envoy.filters.network.tcp_proxy";

/// A filter that runs a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LuaFilter {
    pub name: String,
    pub source: String,
}

/// What is set, of Envoy's types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Of a cluster.
    ConnectTimeout,
    MaxConnections,
    MaxPendingRequests,
    MaxRequests,
    MaxRetries,
    /// Of the connection manager.
    StreamIdleTimeout,
    RequestHeadersTimeout,
    HttpIdleTimeout,
    MaxStreamDuration,
    /// Of the TCP proxy.
    TcpIdleTimeout,
    MaxConnectAttempts,
}

/// To what a setting is set; `None`: back to what holds without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    Time(Option<Duration>),
    Count(Option<u32>),
}

const THRESHOLDS: &str = "/circuitBreakers/thresholds/0";
const CLUSTER: [(&str, Setting); 5] = [
    ("/connectTimeout", Setting::ConnectTimeout),
    ("/circuitBreakers/thresholds/0/maxConnections", Setting::MaxConnections),
    ("/circuitBreakers/thresholds/0/maxPendingRequests", Setting::MaxPendingRequests),
    ("/circuitBreakers/thresholds/0/maxRequests", Setting::MaxRequests),
    ("/circuitBreakers/thresholds/0/maxRetries", Setting::MaxRetries),
];
const MANAGER: [(&str, Setting); 4] = [
    ("/streamIdleTimeout", Setting::StreamIdleTimeout),
    ("/requestHeadersTimeout", Setting::RequestHeadersTimeout),
    ("/commonHttpProtocolOptions/idleTimeout", Setting::HttpIdleTimeout),
    ("/commonHttpProtocolOptions/maxStreamDuration", Setting::MaxStreamDuration),
];
const TCP: [(&str, Setting); 2] =
    [("/idleTimeout", Setting::TcpIdleTimeout), ("/maxConnectAttempts", Setting::MaxConnectAttempts)];

/// What a patch sets, and where it sets what has no effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub set: Vec<(Setting, Amount)>,
    /// Pointers.
    pub ignored: Vec<String>,
    /// Pointers, of values that are none.
    pub wrong: Vec<String>,
}

impl Setting {
    fn amount(self, value: Option<&Value>) -> Option<Amount> {
        match self {
            Self::ConnectTimeout
            | Self::StreamIdleTimeout
            | Self::RequestHeadersTimeout
            | Self::HttpIdleTimeout
            | Self::MaxStreamDuration
            | Self::TcpIdleTimeout => {
                let Some(value) = value else { return Some(Amount::Time(None)) };
                let time = ProtoDuration::parse(value.as_str()?).ok()?.0;
                let possible = self != Self::ConnectTimeout || !time.is_zero();
                possible.then_some(Amount::Time(Some(time)))
            }
            _ => {
                let Some(value) = value else { return Some(Amount::Count(None)) };
                let count = value.as_u64().or_else(|| value.as_str()?.parse().ok())?;
                Some(Amount::Count(Some(u32::try_from(count).ok().filter(|count| *count > 0)?)))
            }
        }
    }
}

impl<O, M> Patch<O, M> {
    /// What a patch of a cluster sets.
    pub fn cluster_settings(&self) -> Settings {
        self.settings(&CLUSTER)
    }

    fn settings(&self, known: &[(&str, Setting)]) -> Settings {
        let mut leaves = Vec::new();
        if let Some(value) = self.value.as_deref().and_then(|value| document::parse_text(value).ok()) {
            // A filter's own configuration is below its name.
            let config = typed_config(&value).unwrap_or(&value);
            collect(String::new(), config, &mut leaves);
        }
        for patch in self.json_patches.iter().flatten() {
            patch.leaves(&mut leaves);
        }
        let mut settings = Settings::default();
        for (pointer, value) in leaves {
            let found = known.iter().find(|(known, _)| *known == pointer);
            // Taking away a whole takes away its parts.
            let below: Vec<Setting> = match (found, &value) {
                (Some((_, setting)), _) => vec![*setting],
                (None, None) => {
                    let parent = format!("{pointer}/");
                    let parts = known.iter().filter(|(known, _)| known.starts_with(&parent));
                    parts.map(|(_, setting)| *setting).collect()
                }
                (None, Some(_)) => Vec::new(),
            };
            if below.is_empty() {
                settings.ignored.push(pointer);
                continue;
            }
            for setting in below {
                match setting.amount(value.as_ref()) {
                    Some(amount) => settings.set.push((setting, amount)),
                    None => settings.wrong.push(pointer.clone()),
                }
            }
        }
        settings
    }
}

impl Patch<FilterOperation, FilterMatch> {
    /// What a patch of a network filter sets; `None`: the filter is none of those that the proxies have.
    pub fn network_settings(&self) -> Option<Settings> {
        match self.match_.as_ref()?.name.as_deref()? {
            _ if self.operation != FilterOperation::Patch => None,
            CONNECTION_MANAGER => Some(self.settings(&MANAGER)),
            TCP_PROXY => Some(self.settings(&TCP)),
            _ => None,
        }
    }

    /// The Lua filter that is added, or the script that takes another's place. `None`: it is about another filter.
    ///
    /// # Errors
    /// Why its script can't be run.
    pub fn lua(&self) -> Result<Option<LuaFilter>, String> {
        if let Some(value) = self.value.as_deref() {
            let Ok(value) = document::parse_text(value) else { return Ok(None) };
            return lua_filter(&value);
        }
        let name = self.match_.as_ref().and_then(|matched| matched.name.clone()).unwrap_or_default();
        let mut leaves = Vec::new();
        self.json_patches.iter().flatten().for_each(|patch| patch.leaves(&mut leaves));
        let script = |pointer: &str| matches!(pointer, "/inlineCode" | "/defaultSourceCode/inlineString");
        let found = leaves.into_iter().rev().find(|(pointer, value)| script(pointer) && value.is_some());
        let source = found.and_then(|(_, value)| value?.as_str().map(str::to_owned));
        Ok(source.map(|source| LuaFilter { name, source }))
    }
}

impl JsonPatch {
    fn leaves(&self, out: &mut Vec<(String, Option<Value>)>) {
        match (&self.op, &self.value) {
            (JsonPatchOperation::Add | JsonPatchOperation::Replace, Some(value)) => {
                collect(self.path.clone(), value, out);
            }
            (JsonPatchOperation::Remove, _) => out.push((self.path.clone(), None)),
            // What is moved is not known here.
            _ => out.push((format!("{} ({})", self.path, self.op), Some(Value::Null))),
        }
    }
}

/// The single values of a tree, by their pointers in camelCase: Envoy takes snake_case as well.
fn collect(pointer: String, value: &Value, out: &mut Vec<(String, Option<Value>)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields.iter().filter(|(name, _)| name.as_str() != "@type") {
                collect(format!("{pointer}/{}", camel(name)), value, out);
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                let pointer = format!("{pointer}/{i}");
                // The thresholds of ordinary requests are the ones that are executed; saying so is nothing more.
                let ordinary =
                    pointer == THRESHOLDS && item.get("priority").is_some_and(|it| it == "DEFAULT");
                let mut item = item.clone();
                if let Some(fields) = item.as_object_mut().filter(|_| ordinary) {
                    fields.remove("priority");
                }
                collect(pointer, &item, out);
            }
        }
        leaf => out.push((pointer, Some(leaf.clone()))),
    }
}

fn camel(name: &str) -> String {
    let mut out = String::new();
    let mut parts = name.split('_');
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let mut letters = part.chars();
        out.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
        out.push_str(letters.as_str());
    }
    out
}

fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    value.as_object()?.iter().find(|(found, _)| camel(found) == name).map(|(_, value)| value)
}

fn typed_config(value: &Value) -> Option<&Value> {
    field(value, "typedConfig")
}

fn lua_filter(value: &Value) -> Result<Option<LuaFilter>, String> {
    let name = value.get("name").and_then(Value::as_str).unwrap_or_default();
    let typed = typed_config(value);
    let type_ = typed.and_then(|config| config.get("@type")?.as_str()).unwrap_or_default();
    let Some(config) = typed.filter(|_| type_.ends_with(LUA_TYPE)) else {
        let is_lua = name == "envoy.filters.http.lua";
        return if is_lua { Err(format!("its typedConfig is no {LUA_TYPE}")) } else { Ok(None) };
    };
    let mut sources = Vec::new();
    for (name, value) in config.as_object().into_iter().flatten() {
        match camel(name).as_str() {
            // Counters have names of their own, and a route is chosen before scripts and stays.
            "@type" | "statPrefix" | "clearRouteCache" => {}
            "inlineCode" => sources.push(value.as_str().unwrap_or_default().to_owned()),
            "defaultSourceCode" => sources.push(source(value)?),
            "sourceCodes" => return Err("scripts for single routes (sourceCodes) are not run".to_owned()),
            other => return Err(format!("{other} is not understood")),
        }
    }
    sources.retain(|source| !source.is_empty());
    match (sources.pop(), sources.is_empty()) {
        (Some(source), true) => Ok(Some(LuaFilter { name: name.to_owned(), source })),
        (None, _) => Err("it has no script: give inlineCode or defaultSourceCode.inlineString".to_owned()),
        (Some(_), false) => Err("it has two scripts: give inlineCode or defaultSourceCode".to_owned()),
    }
}

fn source(value: &Value) -> Result<String, String> {
    if let Some(text) = field(value, "inlineString").and_then(Value::as_str) {
        return Ok(text.to_owned());
    }
    let bytes = field(value, "inlineBytes").and_then(Value::as_str);
    let decoded = bytes.and_then(|bytes| base64::engine::general_purpose::STANDARD.decode(bytes).ok());
    decoded
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| "a script is given as text: inlineString or inlineBytes".to_owned())
}
