//! Which adapter starts a program that is given.

use super::{Application, Between, Stack, envoy, haproxy, nginx};
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use std::path::{Path, PathBuf};

/// The proxies that there is an adapter for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Envoy,
    Haproxy,
    Nginx,
}

/// A program to be compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    kind: Kind,
    program: PathBuf,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Envoy => "envoy",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
        }
    }

    /// The kind whose name the file's name begins with: `haproxy-3.0` is HAProxy.
    fn of(program: &Path) -> Result<Self> {
        let name = program.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
        let kind = Self::value_variants().iter().find(|kind| name.starts_with(kind.name()));
        kind.copied().with_context(|| {
            let known: Vec<&str> = Self::value_variants().iter().map(|kind| kind.name()).collect();
            format!(
                "{}: no adapter is known by that name; there are {}: say with --peer-kind which one it is",
                program.display(),
                known.join(", ")
            )
        })
    }
}

impl Peer {
    /// Envoy first, if it is given, and then each program of `programs`, of the kind that `kinds` says in the same place
    /// or, if `kinds` is empty, its name. It is an error if there is none, or two of a kind: their ports are the same.
    pub(crate) fn named(envoy: Option<&Path>, programs: &[PathBuf], kinds: &[Kind]) -> Result<Vec<Self>> {
        ensure!(
            kinds.is_empty() || kinds.len() == programs.len(),
            "--peer-kind: {} for {} of --peer; say it for each, or for none",
            kinds.len(),
            programs.len()
        );
        let mut peers: Vec<Self> =
            envoy.map(|program| Self { kind: Kind::Envoy, program: program.into() }).into_iter().collect();
        for (index, program) in programs.iter().enumerate() {
            let kind = kinds.get(index).copied().map_or_else(|| Kind::of(program), Ok)?;
            if let Some(first) = peers.iter().find(|peer| peer.kind == kind) {
                let (name, first) = (kind.name(), first.program.display());
                bail!("{}: {first} is {name} already, and only one of a kind takes part", program.display());
            }
            peers.push(Self { kind, program: program.clone() });
        }
        ensure!(!peers.is_empty(), "nothing to compare with: --envoy FILE or --peer PATH");
        Ok(peers)
    }

    /// As a mesh configures it, or would.
    pub(crate) fn start(&self, folder: &Path, application: &Application, services: usize) -> Result<Stack> {
        match self.kind {
            Kind::Envoy => envoy::start(&self.program, folder, application, Between::Same, services),
            Kind::Haproxy => haproxy::start(&self.program, folder, application, services),
            Kind::Nginx => nginx::start(&self.program, folder, application, services),
        }
    }

    /// In the other mode that a mesh may choose, if there is one.
    pub(crate) fn start_in_other_mode(
        &self,
        folder: &Path,
        application: &Application,
        services: usize,
    ) -> Result<Option<Stack>> {
        match self.kind {
            Kind::Envoy => {
                envoy::start(&self.program, folder, application, Between::Http2, services).map(Some)
            }
            Kind::Haproxy | Kind::Nginx => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Peer};
    use std::path::{Path, PathBuf};

    fn named(programs: &[&str], kinds: &[Kind]) -> Result<Vec<(Kind, String)>, String> {
        let programs: Vec<PathBuf> = programs.iter().map(PathBuf::from).collect();
        let peers = Peer::named(None, &programs, kinds).map_err(|error| error.to_string())?;
        Ok(peers.into_iter().map(|peer| (peer.kind, peer.program.display().to_string())).collect())
    }

    #[test]
    fn a_files_name_tells_its_kind() {
        for (program, kind) in [
            ("/usr/sbin/haproxy", Kind::Haproxy),
            ("/opt/haproxy-3.0.5", Kind::Haproxy),
            ("nginx", Kind::Nginx),
            ("/opt/nginx/sbin/nginx-debug", Kind::Nginx),
            ("/x/Envoy", Kind::Envoy),
        ] {
            assert_eq!(named(&[program], &[]).unwrap(), [(kind, program.to_owned())]);
        }
    }

    #[test]
    fn an_unknown_kind_is_refused_and_the_known_are_told() {
        for program in ["/opt/linkerd2-proxy", "/usr/sbin/", "/opt/haproxy/sbin/h"] {
            let error = named(&[program], &[]).unwrap_err();
            assert!(error.contains("envoy, haproxy, nginx") && error.contains("--peer-kind"), "{error}");
        }
    }

    #[test]
    fn a_kind_that_is_said_counts_more_than_a_name() {
        let told = named(&["/opt/h", "/opt/haproxy-fork"], &[Kind::Haproxy, Kind::Nginx]).unwrap();
        assert_eq!(told.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [Kind::Haproxy, Kind::Nginx]);
        assert!(named(&["haproxy", "nginx"], &[Kind::Haproxy]).is_err());
        assert!(named(&[], &[Kind::Haproxy]).is_err());
    }

    #[test]
    fn only_one_of_a_kind_takes_part_and_at_least_one() {
        assert!(named(&["haproxy", "haproxy-3.0"], &[]).unwrap_err().contains("haproxy already"));
        assert!(named(&[], &[]).unwrap_err().contains("--envoy"));
        let envoys = Peer::named(Some(Path::new("/a")), &["/b/envoy".into()], &[]);
        assert!(envoys.unwrap_err().to_string().contains("/a is envoy already"));
        assert_eq!(Peer::named(Some(Path::new("/a")), &["nginx".into()], &[]).unwrap().len(), 2);
    }
}
