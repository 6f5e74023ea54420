//! The command line as a whole.

use crate::capture::{Install, Uninstall};
use crate::command::{apply, config, delete, denials, explain, generate, get, inspect, operate};
use crate::failure::EXIT_CODES;
use crate::roles;

/// Meridian: a service mesh over several zones, and its allowlist for what leaves it
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "meridian", version, after_help = EXIT_CODES, arg_required_else_help = true, subcommand_required = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Command {
    Apply(apply::Apply),
    Get(get::Get),
    Delete(delete::Delete),
    #[command(subcommand)]
    Inspect(inspect::Inspect),
    Explain(explain::Explain),
    Denials(denials::Denials),
    #[command(subcommand)]
    Generate(generate::Generate),
    #[command(subcommand)]
    Zone(operate::Zone),
    #[command(subcommand)]
    Mesh(operate::Mesh),
    Config(config::Config),
    #[command(subcommand)]
    Install(Install),
    #[command(subcommand)]
    Uninstall(Uninstall),
    /// Run a global control plane
    GlobalCp(Box<roles::GlobalCp>),
    /// Run a zone's control plane
    ZoneCp(Box<meridian_zone_cp::Config>),
    /// Run a sidecar
    Dataplane(Box<meridian_dataplane::Config>),
    /// Run a zone's ingress
    ZoneIngress(Box<meridian_zone_ingress::Config>),
    /// Run a zone's egress
    ZoneEgress(Box<meridian_zone_egress::Config>),
    #[cfg(feature = "demo")]
    Demo(crate::demo::Demo),
}
