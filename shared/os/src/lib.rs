//! What the system does only for `unsafe` calls: the one crate that has any.

mod program;

pub use program::unmap_program;
