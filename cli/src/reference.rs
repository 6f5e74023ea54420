//! `docs/reference.md`: every command, flag, variable, default and limit, written from their definitions. The test
//! fails when the page is not what they say; `UPDATE_DOCS=1 cargo test -p meridian reference` writes it anew.

mod flags;
mod limits;

use crate::arguments::Arguments;
use clap::CommandFactory;
use meridian_api::access::Access;
use std::fmt::Write;
use std::path::{Path, PathBuf};

const INTRODUCTION: &str = "\
# Reference

Written from the definitions in the code by a test (`UPDATE_DOCS=1 cargo test -p meridian reference`); don't edit it.

Flags win over the environment, the environment over a file, a file over the default. A flag marked * must be given;
one marked + may be given several times; a list in a variable is separated by commas. Bad flags and bad configuration
end with exit code 64, before anything is opened, and every mistake is told at once.

The three proxies are also programs of their own, `meridian-dataplane`, `meridian-zone-ingress` and
`meridian-zone-egress`, with the flags of `meridian dataplane`, `meridian zone-ingress` and `meridian zone-egress`.
";

const ENVIRONMENT: &str = "\
Every process reads, beside the variables of its flags:

| variable | default | |
|---|---|---|
| `MERIDIAN_LOG` | `info` | Level, or levels by target: `meridian_delta=debug,info` |
| `MERIDIAN_LOG_FORMAT` | `text` | `text` or `json`; logs go to standard error |
";

const FILES: &str = "\
`meridian global-cp` and `meridian zone-cp` read a YAML file (`--config`) with the same settings: the key of a flag is its
name in camelCase (`--store-url` is `storeUrl`), lists are YAML lists, and an unknown key is refused. `deploy/multizone/config`
has examples.

`GET /config` shows what a control plane runs with, by Kuma's names where it has them, to whom `controlPlaneMetadata` names: `mode`,
`dataDir`, `store.type` (not its address, which may hold a password), `apiServer`, `access`, `multizone`, `diagnostics`, `tls`, and at a zone
`dpServer` and `dnsServer`.

`access` is only in the file: who may do what over REST, by user name and group. A request without credentials is of the
group `mesh-system:unauthenticated`, one with a valid user token also of `mesh-system:authenticated`; nobody gets these two
by claim. A list that is given replaces its default. The defaults:
";

const ACCESS: &[(&str, &str)] = &[
    ("adminResources", "reading secrets"),
    ("generateDpToken", "`generate dataplane-token`"),
    ("generateUserToken", "`generate user-token`"),
    ("generateZoneToken", "`generate zone-token`"),
    ("controlPlaneMetadata", "`GET /config`"),
    ("read", "reading everything but secrets"),
    ("write", "creating, changing and deleting resources, secrets too"),
    ("operate", "`zone revoke`, `zone accept-global`, `zone confirm-deletions`, `mesh rotate-ca`"),
    ("localIsAdmin", "whoever connects from a loopback address without credentials is an administrator"),
];

#[test]
fn the_reference_is_what_the_code_says() {
    let page = root().join("docs/reference.md");
    let rendered = render();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&page, &rendered).unwrap();
    }
    let written = std::fs::read_to_string(&page).unwrap_or_default();
    let differs = rendered.lines().zip(written.lines()).find(|(now, then)| now != then);
    assert!(
        rendered == written,
        "docs/reference.md is not what the code says: UPDATE_DOCS=1 cargo test -p meridian reference\n{differs:#?}"
    );
}

fn render() -> String {
    let mut page = INTRODUCTION.to_owned();
    page.push_str("\n## Commands\n\n");
    let mut command = Arguments::command();
    command.build();
    flags::render(&command, &mut page);
    let _ =
        write!(page, "## Environment\n\n{ENVIRONMENT}\n## Configuration files\n\n{FILES}\n{}\n", access());
    page.push_str("## Limits and times\n\n");
    limits::render(&root(), &mut page);
    page
}

/// The defaults as they would be written, with what each is for.
fn access() -> String {
    let default = serde_json::to_value(Access::default()).unwrap();
    let fields = default.as_object().unwrap();
    let mut described: Vec<&str> = ACCESS.iter().map(|(key, _)| *key).collect();
    described.sort_unstable();
    assert!(fields.keys().map(String::as_str).eq(described), "{fields:?}");
    let mut out = "```yaml\naccess:\n".to_owned();
    for (key, what) in ACCESS {
        let value = serde_json::to_string(&fields[*key]).unwrap().replace('"', "").replace(':', ": ");
        let value = value.replace("mesh-system: ", "mesh-system:").replace(',', ", ");
        let _ = writeln!(out, "  {:<72} # {what}", format!("{key}: {value}"));
    }
    out + "```\n"
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
