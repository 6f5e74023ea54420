//! What a user can do to a mesh. Each command is one file: its flags, and what it does with them.

pub(crate) mod apply;
pub(crate) mod config;
pub(crate) mod delete;
pub(crate) mod denials;
pub(crate) mod documents;
pub(crate) mod explain;
pub(crate) mod generate;
pub(crate) mod get;
pub(crate) mod inspect;
pub(crate) mod kind;
pub(crate) mod operate;
