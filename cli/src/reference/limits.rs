//! Limits and times as tables: the documented constants of the sources, where they stand. Read as text, since most are
//! private to the module that needs them.

use super::flags::escaped;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

const INTRODUCTION: &str = "\
Nothing sets them. Where a number is Kuma's default it says so.
";

/// What runs, and where its sources are.
const PARTS: &[(&str, &[&str])] = &[
    ("Proxies", &["shared/proxy/src"]),
    ("Scripts", &["shared/lua/src"]),
    ("Zone control plane", &["zone-cp/src"]),
    ("Global control plane", &["global-cp/src"]),
    (
        "REST, resources, tokens, certificates",
        &["shared/api/src", "shared/core/src", "shared/auth/src", "shared/pki/src"],
    ),
    ("Streams between processes", &["shared/delta/src", "shared/proxy-config/src"]),
    ("Store", &["shared/store/src"]),
    ("Command line", &["cli/src"]),
];

/// Constants that are no limits: numbers of a format, of a protocol, or of a test.
const OTHERS: &[&str] =
    &["NOBODY", "LOCK", "HOSTS", "PARTS_BITS", "MAX_EXPONENT", "DEADLINE", "NONCE", "TAG", "CURRENT"];

struct Limit {
    module: String,
    name: String,
    value: String,
    why: String,
}

pub(super) fn render(root: &Path, page: &mut String) {
    page.push_str(INTRODUCTION);
    for (part, directories) in PARTS {
        let limits: Vec<Limit> =
            directories.iter().flat_map(|directory| in_directory(root, directory)).collect();
        assert!(!limits.is_empty(), "no constants in {directories:?}");
        let _ = write!(page, "\n### {part}\n\n| where | name | value | |\n|---|---|---|---|\n");
        for Limit { module, name, value, why } in limits {
            let _ = writeln!(page, "| {module} | `{name}` | {value} | {} |", escaped(&why));
        }
    }
}

fn in_directory(root: &Path, directory: &str) -> Vec<Limit> {
    let mut files = Vec::new();
    sources(&root.join(directory), &mut files);
    files.sort();
    let mut limits = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let module = file.strip_prefix(root.join(directory)).unwrap().with_extension("");
        let module = module.display().to_string().replace("/mod", "");
        in_text(&text, &module, &mut limits);
    }
    limits
}

fn sources(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !["tests", "demo", "reference"].contains(&name.as_str()) {
            sources(&path, files);
        } else if name.ends_with(".rs") && !["tests.rs", "rig.rs"].contains(&name.as_str()) {
            files.push(path);
        }
    }
}

/// The constants of a file, and the numbers of its `Default`s.
fn in_text(text: &str, module: &str, limits: &mut Vec<Limit>) {
    let mut comment = Vec::new();
    let mut fields = BTreeMap::new();
    let mut defaults_of = None;
    for line in text.lines().map(str::trim).take_while(|line| *line != "mod tests {") {
        if let Some(words) = line.strip_prefix("///") {
            comment.push(words.trim());
            continue;
        }
        if let Some((name, kind, value)) = constant(line)
            && !OTHERS.contains(&name)
        {
            let is_time = kind.ends_with("Duration");
            let why = comment.join(" ");
            assert!(!is_time || !why.is_empty(), "{module}: {name} does not say what it is for");
            if is_time || (matches!(kind, "usize" | "u64" | "u32" | "i64" | "i32") && !why.is_empty()) {
                limits.push(Limit {
                    module: module.to_owned(),
                    name: name.to_owned(),
                    value: shown(value),
                    why,
                });
            }
        }
        if let Some((field, _)) = line.strip_prefix("pub ").and_then(|line| line.split_once(": ")) {
            fields.insert(field, comment.join(" "));
        } else if let Some(name) = line.strip_prefix("impl Default for ") {
            defaults_of = name.strip_suffix(" {");
        } else if let (Some(of), Some((field, value))) = (defaults_of, line.split_once(": "))
            && let (Some(why), value) = (fields.get(field), shown(value.trim_end_matches(',')))
            && !value.starts_with('`')
        {
            let name = format!("{of}.{field}");
            limits.push(Limit { module: module.to_owned(), name, value, why: why.clone() });
        }
        comment.clear();
    }
}

/// `pub const NAME: TYPE = VALUE;` in parts.
fn constant(line: &str) -> Option<(&str, &str, &str)> {
    let (_, rest) =
        line.split_once("const ").filter(|(before, _)| before.is_empty() || before.starts_with("pub"))?;
    let (name, rest) = rest.split_once(": ")?;
    let (kind, value) = rest.strip_suffix(';')?.split_once(" = ")?;
    Some((name, kind, value))
}

/// A value as a reader would write it: 15 s, 64 KiB; as it stands in the source where it is neither.
fn shown(value: &str) -> String {
    if let Some((make, number)) = value.strip_suffix(')').and_then(|value| value.split_once('(')) {
        let unit = match make.rsplit("::").next().unwrap_or_default() {
            "from_millis" => "ms",
            "from_secs" | "seconds" => "s",
            "from_mins" | "minutes" => "min",
            "from_hours" | "hours" => "h",
            "days" => "d",
            _ => return format!("`{value}`"),
        };
        return format!("{} {unit}", number.replace('_', ""));
    }
    let plain = |text: &str| text.trim().replace('_', "").parse::<u64>().ok();
    let bytes = match (value.split_once("<<"), value.rsplit_once(" * 1024")) {
        (Some((number, shift)), _) => plain(number).zip(plain(shift)).map(|(number, shift)| number << shift),
        (_, Some((number, ""))) => {
            let (number, more) =
                number.split_once(" * 1024").map_or((number, 1), |(number, _)| (number, 1024));
            plain(number).map(|number| number * more * 1024)
        }
        _ => None,
    };
    match (bytes, plain(value)) {
        (Some(bytes), _) if bytes % (1 << 30) == 0 => format!("{} GiB", bytes >> 30),
        (Some(bytes), _) if bytes % (1 << 20) == 0 => format!("{} MiB", bytes >> 20),
        (Some(bytes), _) => format!("{} KiB", bytes >> 10),
        (None, Some(number)) => number.to_string(),
        (None, None) => format!("`{value}`"),
    }
}

#[test]
fn values_are_shown_with_their_units() {
    for (value, expected) in [
        ("Duration::from_secs(15)", "15 s"),
        ("std::time::Duration::from_millis(300)", "300 ms"),
        ("64 << 10", "64 KiB"),
        ("1024 * 1024", "1 MiB"),
        ("256 * 1024", "256 KiB"),
        ("1_000", "1000"),
        ("2 * STREAM_WINDOW", "`2 * STREAM_WINDOW`"),
    ] {
        assert_eq!(shown(value), expected);
    }
}
