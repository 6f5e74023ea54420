//! Lines and spans on their way to the outside: files, TCP listeners, collectors.
//!
//! A worker hands over what it has to say and goes on: there is one bounded queue a backend, shared by the workers, and
//! one task that empties it, on a thread of its own. A backend that is slow or gone costs entries, which are counted,
//! and never a request's time. Rejected: writing from the workers (a full disk would stop traffic), and the exporters of
//! OpenTelemetry's SDK (threads and queues for each, that neither share nor count as we do).

mod deliver;
mod file;
mod otlp;
mod post;
mod queue;
mod sinks;
mod tcp;

pub(crate) use deliver::{Failure, Seldom};
pub use otlp::Of;
pub(crate) use post::{Post, http_uri};
pub use queue::{Counts, Sender};
pub use sinks::{FLUSH_LIMIT, LineKey, Sinks, SpanKey};
