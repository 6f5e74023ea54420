//! What a script is told of the connection, and what scripts tell each other.

use crate::value::{Data, Size};
use std::{cell::RefCell, collections::BTreeMap};

/// Of the connection that a request came over.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// `HTTP/1.1` or `HTTP/2`.
    pub protocol: &'static str,
    /// Address and port where it came in.
    pub local: String,
    /// Address and port of who opened the connection.
    pub remote: String,
    /// The session's server name.
    pub server_name: String,
    /// Unset: plaintext.
    pub peer: Option<PeerFacts>,
}

/// Who called, verified.
#[derive(Clone, Debug, Default)]
pub struct PeerFacts {
    /// Of its certificate.
    pub uris: Vec<String>,
    /// Of the session, as OpenSSL names it: `TLSv1.3`.
    pub tls_version: &'static str,
}

/// Dynamic metadata: what scripts on one request leave for the next one, and for its answer.
#[derive(Debug, Default)]
pub struct Dynamic(RefCell<Filters>);

#[derive(Debug, Default)]
struct Filters {
    by_name: BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Data>>,
    size: usize,
}

impl Dynamic {
    pub(crate) fn set(&self, filter: &[u8], key: &[u8], value: Data) -> Result<(), String> {
        let mut filters = self.0.borrow_mut();
        let of = |key: &[u8], value: &Data| filter.len() + key.len() + value.size();
        let old = filters.by_name.get(filter).and_then(|keys| keys.get(key));
        let size = filters.size - old.map_or(0, |old| of(key, old)) + of(key, &value);
        if size > crate::limits::MAX_METADATA {
            return Err(format!("dynamic metadata have at most {} bytes", crate::limits::MAX_METADATA));
        }
        filters.size = size;
        filters.by_name.entry(filter.to_vec()).or_default().insert(key.to_vec(), value);
        Ok(())
    }

    pub(crate) fn of(&self, filter: &[u8]) -> Option<Data> {
        self.0.borrow().by_name.get(filter).map(table)
    }

    pub(crate) fn all(&self) -> Vec<(Data, Data)> {
        let filters = self.0.borrow();
        filters.by_name.iter().map(|(name, keys)| (Data::Text(name.clone()), table(keys))).collect()
    }
}

fn table(keys: &BTreeMap<Vec<u8>, Data>) -> Data {
    Data::Table(keys.iter().map(|(key, value)| (Data::Text(key.clone()), value.clone())).collect())
}
