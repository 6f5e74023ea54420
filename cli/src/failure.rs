//! What went wrong, where, and what to do next; and the exit code that says it to scripts.

use std::fmt;

/// Exit codes, after sysexits.h. `meridian --help` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Anything that has no code of its own: not found, a conflict, a failed role.
    Failed = 1,
    /// Bad flags or configuration.
    Usage = 64,
    /// A document is not valid.
    Data = 65,
    /// A file can't be read.
    Input = 66,
    /// The control plane can't be reached, or can't reach its store.
    Unavailable = 69,
    /// Not authenticated, or not allowed.
    Permission = 77,
}

pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0   done
  1   refused or failed otherwise (not found, conflict, not allowed here)
  64  bad flags or configuration
  65  a document is not valid
  66  a file can't be read
  69  the control plane, or its store, can't be reached
  77  not authenticated, or not allowed";

/// An error for people.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    what: String,
    details: Vec<String>,
    next: Option<String>,
}

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub(crate) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), details: Vec::new(), next: None }
    }

    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self::new(Exit::Usage, what)
    }

    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.details.push(detail.into());
        self
    }

    /// What to do about it.
    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Where it happened, before what happened.
    pub(crate) fn at(mut self, place: impl fmt::Display) -> Self {
        self.what = format!("{place}: {}", self.what);
        self
    }

    /// An error with all its sources.
    pub(crate) fn of(exit: Exit, what: impl Into<String>, error: &dyn std::error::Error) -> Self {
        let mut failure = Self::new(exit, what);
        let mut source = Some(error);
        while let Some(error) = source {
            let text = error.to_string();
            if failure.details.last().is_none_or(|last| !last.contains(&text)) {
                failure.details.push(text);
            }
            source = error.source();
        }
        failure
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        for detail in &self.details {
            write!(f, "\n  {}", detail.replace('\n', "\n  "))?;
        }
        if let Some(next) = &self.next {
            write!(f, "\n{next}")?;
        }
        Ok(())
    }
}

/// Errors of a role: bad configuration has its own code.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let configuration = error.chain().any(|cause| {
            cause.is::<meridian_global_cp::ConfigErrors>()
                || cause.is::<meridian_zone_cp::ConfigErrors>()
                || cause.is::<meridian_proxy::control::BadConfiguration>()
        });
        let exit = if configuration { Exit::Usage } else { Exit::Failed };
        Self::of(exit, error.to_string(), error.as_ref()).without_repetition()
    }
}

impl Failure {
    /// The first detail of [`Failure::of`] is the error itself, which is already what happened.
    fn without_repetition(mut self) -> Self {
        if self.details.first() == Some(&self.what) {
            self.details.remove(0);
        }
        self
    }
}
