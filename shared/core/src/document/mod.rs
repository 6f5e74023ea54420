//! Documents: what users write and read, in Kuma's Universal form (YAML or JSON) or in the Kubernetes envelope.

mod envelope;
mod text;
mod write;

pub use text::{MissingVariable, parse_text, split, substitute};
pub use write::{kri, to_json, to_yaml};

use crate::kinds::unsupported;
use crate::{
    Checked, Context, Format, Key, Kind, KindInfo, Resource, Scope, Violation, Violations, labels, names,
};
use envelope::Envelope;
use serde_json::Value;

/// The largest encoded resource: what one message between processes carries.
pub const MAX_BYTES: usize = 512 * 1024;

/// The mesh of a document that names none.
pub const DEFAULT_MESH: &str = "default";

/// A document that passed its check.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    pub resource: Resource,
    pub warnings: Vec<String>,
}

/// Why a document is refused: the body of an error answer, but for its status (which is 400).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{title}: {detail}")]
pub struct Problem {
    pub title: String,
    pub detail: String,
    pub violations: Vec<Violation>,
}

/// What the address of a request says, to which its body must agree. A body may leave out what the address says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected<'a> {
    pub kind: Kind,
    /// Empty for kinds of global scope.
    pub mesh: &'a str,
    pub name: &'a str,
}

impl Problem {
    fn unreadable(detail: impl Into<String>) -> Self {
        Self { title: "Could not read the document".into(), detail: detail.into(), violations: Vec::new() }
    }

    fn invalid(violations: Vec<Violation>) -> Self {
        Self {
            title: "Could not process a resource".into(),
            detail: "Resource is not valid".into(),
            violations,
        }
    }

    fn unknown_kind(name: &str) -> Self {
        let (title, detail) = match unsupported::by_kind(name) {
            Some(unsupported) => ("Kind is not supported", unsupported.advice()),
            None => ("Unknown kind", format!("{name:?} is not a kind of resource")),
        };
        Self { title: title.into(), detail, violations: Vec::new() }
    }
}

/// Checks one document. The zone of its key stays empty: the caller knows where it is written.
pub fn check(document: &Value, expected: Option<&Expected<'_>>) -> Result<Document, Problem> {
    check_among(crate::kinds(), document, expected)
}

/// The same where no other kinds are known than these: [`crate::proxies`].
pub fn check_among(
    kinds: &'static [KindInfo],
    document: &Value,
    expected: Option<&Expected<'_>>,
) -> Result<Document, Problem> {
    let mut violations = Violations::default();
    let (info, envelope, key) = read(kinds, document, expected, &mut violations)?;
    check_meta(info, &key, &envelope, &mut violations);
    let context = Context { key: &key, labels: &envelope.labels };
    let checked = info.check(&context, &Value::Object(envelope.spec)).map_err(|more| {
        let mut all = std::mem::take(&mut violations).into_vec();
        all.extend(more);
        Problem::invalid(all)
    })?;
    if !violations.is_empty() {
        return Err(Problem::invalid(violations.into_vec()));
    }
    let resource = Resource { key, labels: envelope.labels, spec: checked.spec, status: None };
    let size = resource.canonical().len();
    if size > MAX_BYTES {
        let reason = format!("is {size} bytes long, more than {MAX_BYTES}");
        return Err(Problem::invalid(vec![Violation { field: String::new(), reason }]));
    }
    let warnings = envelope.warnings.into_iter().chain(checked.warnings).collect();
    Ok(Document { resource, warnings })
}

/// The key that a document names, without a check of the rest: to delete what a file lists.
pub fn key_of(document: &Value) -> Result<Key, Problem> {
    let mut violations = Violations::default();
    let (_, _, key) = read(crate::kinds(), document, None, &mut violations)?;
    if key.name.is_empty() {
        violations.push("name", "cannot be empty");
    }
    if violations.is_empty() { Ok(key) } else { Err(Problem::invalid(violations.into_vec())) }
}

/// Checks a resource that came from a peer: its spec must be valid, but its name may be one that only control planes
/// give (a hashed one).
pub fn check_resource(resource: &Resource) -> Result<Checked, Problem> {
    let context = Context { key: &resource.key, labels: &resource.labels };
    resource.key.kind.info().check(&context, &resource.spec).map_err(Problem::invalid)
}

fn read(
    kinds: &'static [KindInfo],
    document: &Value,
    expected: Option<&Expected<'_>>,
    violations: &mut Violations,
) -> Result<(&'static KindInfo, Envelope, Key), Problem> {
    let Value::Object(fields) = document else {
        return Err(Problem::unreadable("a document must be an object"));
    };
    let envelope = Envelope::read(kinds, fields, expected.map(|expected| expected.kind), violations)?;
    let info = envelope.info;
    let global = info.scope == Scope::Global;
    let mut key = Key::global(info.kind, "", envelope.name.clone().unwrap_or_default());
    match (&envelope.mesh, expected) {
        (Some(mesh), _) if global && !mesh.is_empty() => {
            violations.push("mesh", format!("mesh must not be defined: a {} belongs to no mesh", info.kind));
        }
        _ if global => {}
        (Some(mesh), _) => key.mesh.clone_from(mesh),
        (None, Some(expected)) => expected.mesh.clone_into(&mut key.mesh),
        (None, None) => DEFAULT_MESH.clone_into(&mut key.mesh),
    }
    if let Some(expected) = expected {
        if info.kind != expected.kind {
            violations.push("type", "type from the URL has to be the same as in body");
        }
        match &envelope.name {
            None => expected.name.clone_into(&mut key.name),
            Some(name) if name != expected.name => {
                violations.push("name", "name from the URL has to be the same as in body");
            }
            Some(_) => {}
        }
        if !global && key.mesh != expected.mesh {
            violations.push("mesh", "mesh from the URL has to be the same as in body");
        }
    }
    Ok((info, envelope, key))
}

fn check_meta(info: &KindInfo, key: &Key, envelope: &Envelope, violations: &mut Violations) {
    if let Some(reason) = names::invalid_name(&key.name, info.short_names) {
        violations.push("name", reason);
    }
    if info.scope == Scope::Mesh
        && let Some(reason) = names::invalid_mesh_name(&key.mesh)
    {
        violations.push("mesh", reason);
    }
    for (label, value) in &envelope.labels {
        if let Some(reason) = labels::invalid_key(label).or_else(|| labels::invalid_value(value)) {
            violations.push(format!("labels[{label:?}]"), reason);
        }
    }
    let role = envelope.labels.get(labels::POLICY_ROLE);
    if let (Some(role), true) = (role, info.targets.is_some()) {
        let computed = labels::policy_role(&envelope.labels);
        if role != computed {
            // It decides which policy wins, so it can't be a matter of taste.
            violations.push(
                format!("labels[{:?}]", labels::POLICY_ROLE),
                format!("must be {computed:?} or left out"),
            );
        }
    }
    let effect = envelope.labels.get(labels::EFFECT).filter(|_| info.targets.is_some());
    if effect.is_some_and(|effect| effect != labels::EFFECT_SHADOW) {
        // Misspelt, it would put into force what was to be tried out.
        violations.push(
            format!("labels[{:?}]", labels::EFFECT),
            format!("must be {:?} or left out", labels::EFFECT_SHADOW),
        );
    }
    if let (Some(mesh), Scope::Mesh) = (envelope.labels.get(labels::MESH), info.scope)
        && *mesh != key.mesh
    {
        violations.push(format!("labels[{:?}]", labels::MESH), "must be the resource's mesh");
    }
    if info.format == Format::Spec && envelope.spec_missing {
        violations.push("spec", "must be defined");
    }
}

#[cfg(test)]
mod tests;
