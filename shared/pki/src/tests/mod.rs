//! Attacks and the ordinary way, on the real parts: certificates made here, verified here, in real handshakes.

mod chains;
mod files;
mod forge;
mod issuing;
mod links;
mod provided;
mod sessions;
mod world;
