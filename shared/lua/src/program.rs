//! A script that was found to be one.

use crate::limits::MAX_SOURCE;
use mlua::chunk::Compiler;
use std::sync::Arc;

/// Functions of Envoy's API that are not here, as a script would write their call.
pub const UNSUPPORTED: [&str; 9] = [
    "importPublicKey",
    "verifySignature",
    "setUpstreamOverrideHost",
    "filterContext",
    "filterState",
    "dynamicTypedMetadata",
    "connectionStreamInfo",
    "drainConnectionUponCompletion",
    "virtualHost",
];

/// A script: shared by all that run it. Each worker makes its own [`crate::Vm`] of it.
#[derive(Debug)]
pub struct Program {
    source: Arc<str>,
    decides: bool,
}

impl Program {
    /// # Errors
    /// Where the text is no Lua, or that it is too long.
    pub fn compile(source: &str) -> Result<Self, String> {
        check(source)?;
        // Nothing but its text says what a script may do; one that hides the word from its readers hides it from us.
        Ok(Self { source: source.into(), decides: source.contains("respond") })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it may answer requests itself: then a request must not pass because the script could not be run.
    pub fn decides(&self) -> bool {
        self.decides
    }

    /// The functions that it would call in vain.
    pub fn unsupported(source: &str) -> impl Iterator<Item = &'static str> {
        UNSUPPORTED.into_iter().filter(move |name| source.contains(name))
    }
}

fn check(source: &str) -> Result<(), String> {
    if source.len() > MAX_SOURCE {
        return Err(format!("a script has at most {MAX_SOURCE} bytes"));
    }
    match Compiler::new().compile(source) {
        Ok(_) => Ok(()),
        // It begins with the line's number.
        Err(mlua::Error::SyntaxError { message, .. }) => {
            Err(crate::log::line(&format!("line {}", message.trim_start_matches(':'))))
        }
        Err(error) => Err(crate::log::line(&error.to_string())),
    }
}
