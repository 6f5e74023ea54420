//! The check of one spec: shape, then defaults, then validation, then what nothing executes.

use crate::registry::Standing;
use crate::{Checked, Context, Format, KindInfo, Spec, Violation, Violations};
use schemars::Schema;
use serde_json::Value;

pub(crate) fn schema<T: Spec>() -> Schema {
    schemars::schema_for!(T)
}

pub(crate) fn check<T: Spec>(
    info: &KindInfo,
    context: &Context<'_>,
    spec: &Value,
) -> Result<Checked, Vec<Violation>> {
    let mut violations = Violations::default();
    let normalised = info.shape().normalise(spec, &mut violations);
    let mut parsed: T = match serde_path_to_error::deserialize(&normalised) {
        Ok(parsed) => parsed,
        // What made it fail is mostly among the violations already; serde's own word only if nothing is.
        Err(_) if !violations.is_empty() => return Err(violations.into_vec()),
        Err(error) => {
            return Err(vec![Violation {
                field: error.path().to_string(),
                reason: error.inner().to_string(),
            }]);
        }
    };
    let mut warnings = Vec::new();
    parsed.complete(context, &mut warnings);
    parsed.validate(context, &mut violations);
    parsed.warnings(context, &mut warnings);
    let spec = serde_json::to_value(&parsed).unwrap_or_default();
    apply_standings(info, &spec, &mut warnings, &mut violations);
    if violations.is_empty() { Ok(Checked { spec, warnings }) } else { Err(violations.into_vec()) }
}

/// Warns of, or refuses, the fields that nothing executes.
fn apply_standings(info: &KindInfo, spec: &Value, warnings: &mut Vec<String>, violations: &mut Violations) {
    let root = match info.format {
        Format::Legacy => "",
        Format::Spec => "spec",
    };
    for (pattern, standing) in info.fields {
        let mut present = Vec::new();
        if *standing != Standing::Executed {
            find(spec, pattern, root.to_owned(), &mut present);
        }
        for path in present {
            match standing {
                Standing::Executed => {}
                Standing::Warned(reason) => warnings.push(format!("{path} has no effect: {reason}")),
                Standing::Refused(reason) => violations.push(path, format!("{NOT_SUPPORTED}: {reason}")),
            }
        }
    }
}

/// Begins the reasons that are ours: Kuma would take the document.
pub(crate) const NOT_SUPPORTED: &str = "not supported yet";

/// Where `pattern` (`a.b[].c`) occurs in `value`.
fn find(value: &Value, pattern: &str, path: String, out: &mut Vec<String>) {
    let (head, rest) = pattern.split_once('.').unwrap_or((pattern, ""));
    let (name, in_list) = head.strip_suffix("[]").map_or((head, false), |name| (name, true));
    let Some(inner) = value.get(name) else {
        return;
    };
    let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match (in_list, inner) {
        (true, Value::Array(items)) => {
            for (i, item) in items.iter().enumerate() {
                let path = format!("{path}[{i}]");
                if rest.is_empty() { out.push(path) } else { find(item, rest, path, out) }
            }
        }
        (false, _) if rest.is_empty() => out.push(path),
        _ => find(inner, rest, path, out),
    }
}
