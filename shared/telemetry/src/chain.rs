use std::error::Error;

/// An error and its causes, in one line. A cause that an error has repeated already is not said twice.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{said}")]
    struct Step {
        said: &'static str,
        source: Option<Box<Step>>,
    }

    fn step(said: &'static str, source: Option<Step>) -> Step {
        Step { said, source: source.map(Box::new) }
    }

    #[test]
    fn every_cause_is_said_once() {
        let refused = || step("refused", None);
        let all = step("not sent", Some(step("no connection", Some(refused()))));
        assert_eq!(chain(&all), "not sent: no connection: refused");
        assert_eq!(chain(&step("not sent: refused", Some(refused()))), "not sent: refused");
    }
}
