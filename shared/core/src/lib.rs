//! What a mesh is made of: resources, their kinds, and what makes one valid.
//!
//! A kind is one file in [`kinds`] (schema, defaults, validation, documentation) plus its line in the registry
//! ([`registry`]), from which REST routes, store, sync, CLI and OpenAPI follow. No I/O here, and no clock.
//!
//! The kinds are Kuma 2.14's: a document that Kuma accepts means the same here, and a wrong one is answered with Kuma's
//! field paths and words. What Kuma ignores silently (an unknown field, a field that nothing executes) is
//! answered here, with a violation or a warning.

mod check;
pub mod document;
pub mod duration;
mod enums;
mod int_or_string;
mod key;
pub mod kinds;
pub mod labels;
pub mod log_format;
pub mod names;
pub mod openapi;
mod registry;
mod resource;
mod shape;
mod spec;
mod target_ref;
mod url;
mod validate;
mod violation;

pub use int_or_string::IntOrString;
pub use key::{Key, Kind};
pub use registry::{Checked, Flow, Format, KindInfo, Scope, Standing, TargetRefs, WrittenAt, kinds, proxies};
pub use resource::{ParseError, Resource};
pub use spec::{Context, Spec};
pub use target_ref::{ProxyType, TargetKind, TargetRef};
pub use violation::{Violation, Violations};
