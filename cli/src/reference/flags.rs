//! Commands and their flags as tables.

use clap::{Arg, ArgAction, Command};
use std::collections::BTreeMap;
use std::fmt::Write;

/// What is told once although several commands have it.
#[derive(Default)]
struct Told {
    /// Tables of flags under a heading of their own, by heading.
    shared: BTreeMap<String, String>,
    /// Whose flags a table is, by table.
    own: BTreeMap<String, String>,
}

pub(super) fn render(command: &Command, page: &mut String) {
    let mut told = Told::default();
    subcommands(command, page, &mut told);
    for (heading, table) in told.shared {
        let _ = write!(page, "### {heading}\n\n{table}\n");
    }
}

fn subcommands(command: &Command, page: &mut String, told: &mut Told) {
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        if sub.get_subcommands().next().is_none() || sub.get_arguments().any(is_told) {
            one(sub, page, told);
        }
        subcommands(sub, page, told);
    }
}

fn one(command: &Command, page: &mut String, told: &mut Told) {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    let paragraphs: Vec<String> =
        about.split("\n\n").map(|text| format!("{}.", text.trim_end_matches('.'))).collect();
    let _ = write!(page, "### `{name}`\n\n{}\n", paragraphs.join("\n\n"));
    let (common, own): (Vec<&Arg>, Vec<&Arg>) =
        command.get_arguments().filter(|argument| is_told(argument)).partition(|a| is_common(a));
    let mut groups: BTreeMap<&str, Vec<&Arg>> = BTreeMap::new();
    for argument in common {
        groups.entry(argument.get_help_heading().unwrap_or_default()).or_default().push(argument);
    }
    for (heading, arguments) in &groups {
        let anchor = heading.to_lowercase().replace(' ', "-");
        let _ = writeln!(page, "\nAnd the flags of [{heading}](#{anchor}).");
        let table = table(arguments);
        let before = told.shared.insert((*heading).to_owned(), table.clone());
        assert!(before.is_none_or(|before| before == table), "{name}: {heading} means two things");
    }
    let own = table(&own);
    match told.own.get(&own) {
        None if own.is_empty() => {}
        None => {
            let _ = write!(page, "\n{own}");
            // One or two flags are shorter than the name of who else has them.
            if own.lines().count() > 5 {
                told.own.insert(own, name.to_owned());
            }
        }
        Some(other) => {
            let _ = writeln!(page, "\nWith the flags of `{other}`.");
        }
    }
    page.push('\n');
}

fn is_common(argument: &Arg) -> bool {
    argument.get_help_heading() == Some("Control plane")
}

fn is_told(argument: &Arg) -> bool {
    !argument.is_hide_set()
        && !matches!(argument.get_id().as_str(), "help" | "version")
        && !argument.is_global_set()
}

fn table(arguments: &[&Arg]) -> String {
    if arguments.is_empty() {
        return String::new();
    }
    let mut out = "| flag | environment | default | |\n|---|---|---|---|\n".to_owned();
    for argument in arguments {
        let (help, told) = default_in(&help(argument));
        let defaults: Vec<String> = argument
            .get_default_values()
            .iter()
            .filter(|_| !matches!(argument.get_action(), ArgAction::SetTrue))
            .map(|value| value.to_string_lossy().into_owned())
            .collect();
        let default = told.or((!defaults.is_empty()).then(|| defaults.join(",")));
        let environment = argument.get_env().map(|name| code(&name.to_string_lossy())).unwrap_or_default();
        let default = default.as_deref().map(code).unwrap_or_default();
        let _ = writeln!(out, "| {} | {environment} | {default} | {} |", shape(argument), escaped(&help));
    }
    out
}

fn shape(argument: &Arg) -> String {
    let mut flag = String::new();
    if let Some(short) = argument.get_short() {
        let _ = write!(flag, "-{short}, ");
    }
    if let Some(long) = argument.get_long() {
        let _ = write!(flag, "--{long}");
    }
    let takes_value = argument.get_action().takes_values();
    if takes_value {
        let names = argument.get_value_names().unwrap_or_default();
        let id = argument.get_id().as_str().to_uppercase();
        let names: Vec<&str> =
            if names.is_empty() { vec![&id] } else { names.iter().map(|n| n.as_str()).collect() };
        let _ = write!(flag, "{}{}", if flag.is_empty() { "" } else { " " }, names.join(" "));
    }
    let required = if argument.is_required_set() { " *" } else { "" };
    let many = matches!(argument.get_action(), ArgAction::Append)
        || argument.get_num_args().is_some_and(|count| count.max_values() > 1);
    format!("{}{required}{}", code(&flag), if many { " +" } else { "" })
}

fn help(argument: &Arg) -> String {
    let mut help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let values = argument.get_possible_values();
    if argument.get_action().takes_values() && !values.is_empty() {
        let names: Vec<String> = values.iter().map(|value| code(value.get_name())).collect();
        let _ = write!(help, " ({})", names.join(", "));
    }
    help
}

/// Defaults that depend on other settings are told in the help text: `... [default: DATA_DIR/zone.db]`.
fn default_in(help: &str) -> (String, Option<String>) {
    let Some((before, rest)) = help.split_once(" [default: ") else { return (help.to_owned(), None) };
    match rest.split_once(']') {
        Some((default, after)) => (format!("{before}{after}"), Some(default.to_owned())),
        None => (help.to_owned(), None),
    }
}

fn code(text: &str) -> String {
    format!("`{}`", escaped(text))
}

/// A bar would end the cell.
pub(super) fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
