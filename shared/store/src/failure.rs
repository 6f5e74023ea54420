//! What goes wrong between this crate and a database, before it becomes an error of the public interface.

use crate::error::Source;
use crate::{ChangesError, OpenError, ReadError, WriteError};

#[derive(Debug)]
pub(crate) enum Failure {
    /// Out of reach or too slow; the connection is of no more use, another may be.
    Lost(Source),
    /// The database answered, with an error.
    Refused(Source),
    /// Lost while a commit was under way.
    Uncertain(Source),
    /// It answered, with what this crate would not have written.
    Damaged(String),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        let lost = match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::BeginFailed => true,
            sqlx::Error::Database(answer) => answer.code().is_some_and(|code| passes(&code)),
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
                return Self::Damaged("a column does not hold what it should".to_owned());
            }
            _ => false,
        };
        if lost { Self::Lost(Box::new(error)) } else { Self::Refused(Box::new(error)) }
    }
}

/// SQLSTATEs (Postgres, appendix A) that say something of the moment and not of the statement.
fn passes(code: &str) -> bool {
    let connection_or_shutdown = ["08", "57P0"].iter().any(|class| code.starts_with(class));
    // Too many connections; a standby; idle in a transaction for too long; serialisation and deadlock; cancelled.
    connection_or_shutdown || ["53300", "25006", "25P03", "40001", "40P01", "57014", "55P03"].contains(&code)
}

impl From<Failure> for ReadError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Lost(source) | Failure::Refused(source) | Failure::Uncertain(source) => {
                Self::Unavailable(source)
            }
            Failure::Damaged(what) => Self::Damaged { what },
        }
    }
}

impl From<Failure> for WriteError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Lost(source) | Failure::Refused(source) => Self::Unavailable(source),
            Failure::Uncertain(source) => Self::Uncertain(source),
            Failure::Damaged(what) => Self::Damaged { what },
        }
    }
}

impl From<Failure> for OpenError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Lost(source) | Failure::Refused(source) | Failure::Uncertain(source) => {
                Self::Unavailable(source)
            }
            Failure::Damaged(what) => Self::Damaged { what },
        }
    }
}

impl From<Failure> for ChangesError {
    fn from(failure: Failure) -> Self {
        Self::Read(failure.into())
    }
}

impl From<ReadError> for WriteError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Unavailable(source) => Self::Unavailable(source),
            ReadError::Damaged { what } => Self::Damaged { what },
        }
    }
}
