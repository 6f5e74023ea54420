//! The program itself, as a process: exit codes, pipes, and a real global control plane to speak to.

#[cfg(test)]
mod offline;
#[cfg(test)]
mod online;
#[cfg(test)]
mod support;
