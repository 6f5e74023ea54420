//! Scripts as policies give them, compiled. They are run in [`crate::scripts`].

use meridian_lua::Program;
use meridian_proxy_config as config;
use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

/// The scripts of an inbound or of calls to a destination, in the order of requests.
pub type Chain = Arc<[Script]>;

#[derive(Debug)]
pub struct Script {
    /// For logs and reports.
    pub policy: String,
    pub program: Arc<Program>,
}

/// Equal texts are one program: a script keeps its state when something else changes, and has one state a worker, however
/// many inbounds and destinations it stands before.
#[derive(Default)]
pub struct Programs(HashMap<String, Weak<Program>>);

impl Programs {
    /// `None`: there is none.
    ///
    /// # Errors
    /// One of them is no script. What it was to decide can't be decided.
    pub fn chain(&mut self, scripts: &[config::Script]) -> Result<Option<Chain>, String> {
        if scripts.is_empty() {
            return Ok(None);
        }
        self.0.retain(|_, program| program.strong_count() > 0);
        let compiled = |script: &config::Script| {
            let program = self.program(&script.source);
            let program = program.map_err(|error| format!("the script of {}: {error}", script.policy))?;
            Ok(Script { policy: script.policy.clone(), program })
        };
        scripts.iter().map(compiled).collect::<Result<_, String>>().map(Some)
    }

    fn program(&mut self, source: &str) -> Result<Arc<Program>, String> {
        if let Some(program) = self.0.get(source).and_then(Weak::upgrade) {
            return Ok(program);
        }
        let program = Arc::new(Program::compile(source)?);
        self.0.insert(source.to_owned(), Arc::downgrade(&program));
        Ok(program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(source: &str) -> config::Script {
        config::Script { policy: "p".into(), source: source.into() }
    }

    #[test]
    fn equal_texts_are_one_program_as_long_as_somebody_has_it() {
        let mut programs = Programs::default();
        assert!(programs.chain(&[]).unwrap().is_none());
        let first = programs.chain(&[script("a = 1"), script("a = 2")]).unwrap().unwrap();
        let second = programs.chain(&[script("a = 2")]).unwrap().unwrap();
        assert!(Arc::ptr_eq(&first[1].program, &second[0].program));
        drop((first, second));
        programs.chain(&[script("a = 3")]).unwrap();
        assert_eq!(programs.0.len(), 1);
        assert_eq!(
            programs.chain(&[script("a = ")]).unwrap_err(),
            "the script of p: line 1: Expected identifier when parsing expression, got <eof>"
        );
    }
}
