//! Logs go to standard error, one line an event.

use std::{io::IsTerminal, str::FromStr};
use thiserror::Error;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// Environment variable with the filter (`info`, `meridian_delta=debug,info`).
pub const FILTER_VARIABLE: &str = "MERIDIAN_LOG";
/// Environment variable with the format: `text` or `json`.
pub const FORMAT_VARIABLE: &str = "MERIDIAN_LOG_FORMAT";

const DEFAULT_FILTER: &str = "info";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// How to log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// Levels by target, as tracing-subscriber's `EnvFilter` reads them.
    pub filter: String,
    pub format: Format,
}

#[derive(Debug, Error)]
pub enum LogError {
    #[error("log format `{0}`: use `text` or `json`")]
    Format(String),
    #[error(
        "log filter `{filter}`: {reason}; use a level (`info`) or targets with levels (`meridian_delta=debug,info`)"
    )]
    Filter { filter: String, reason: String },
    #[error("logging was set up before")]
    AlreadySet,
}

impl FromStr for Format {
    type Err = LogError;

    fn from_str(text: &str) -> Result<Self, LogError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(LogError::Format(other.to_owned())),
        }
    }
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { filter: DEFAULT_FILTER.to_owned(), format: Format::Text }
    }
}

impl LogOptions {
    /// From `MERIDIAN_LOG` and `MERIDIAN_LOG_FORMAT`.
    pub fn from_env() -> Result<Self, LogError> {
        let filter = std::env::var(FILTER_VARIABLE).ok().filter(|text| !text.is_empty());
        let format = std::env::var(FORMAT_VARIABLE).ok().filter(|text| !text.is_empty());
        Ok(Self {
            filter: filter.unwrap_or_else(|| DEFAULT_FILTER.to_owned()),
            format: format.map(|text| text.parse()).transpose()?.unwrap_or_default(),
        })
    }

    fn filter(&self) -> Result<EnvFilter, LogError> {
        EnvFilter::builder()
            .parse(&self.filter)
            .map_err(|error| LogError::Filter { filter: self.filter.clone(), reason: error.to_string() })
    }
}

/// Sets the process's logging up; once, in `main`.
pub fn init(options: &LogOptions) -> Result<(), LogError> {
    let registry = tracing_subscriber::registry().with(options.filter()?);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let done = match options.format {
        Format::Text => registry.with(lines.with_ansi(std::io::stderr().is_terminal())).try_init(),
        Format::Json => registry.with(lines.json().flatten_event(true).with_current_span(false)).try_init(),
    };
    done.map_err(|_| LogError::AlreadySet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_or_format_says_what_to_write() {
        let options = LogOptions { filter: "a=b=c".into(), format: Format::Text };
        assert!(options.filter().unwrap_err().to_string().contains("meridian_delta=debug,info"));
        assert!("xml".parse::<Format>().unwrap_err().to_string().contains("`text` or `json`"));
    }
}
