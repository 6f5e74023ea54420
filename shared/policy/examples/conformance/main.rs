//! Runs a folder of cases taken from Kuma's tests: `cargo run -p meridian-policy --example conformance -- DIR
//! [REPORT.json]`.
//!
//! `validation.json` goes against the parser and the validators, `matching/**` against the matcher, `rules/**` against
//! order and merge. What is compared is the meaning: values, and order where order matters; times and the names that
//! control planes give are left out. A case that differs on purpose is named in docs/differences.md, in backticks,
//! and counted apart.

#![expect(clippy::indexing_slicing, reason = "a tool for developers: a missing field of a case is null")]

mod case;
mod compare;
mod matching;
mod report;
mod rules;
mod validation;

use report::Report;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(dir) = arguments.next() else {
        eprintln!("usage: conformance DIR [REPORT.json]");
        return ExitCode::from(64);
    };
    let report = arguments.next().unwrap_or_else(|| "target/conformance.json".to_owned());
    match run(Path::new(&dir), Path::new(&report)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("conformance: {error}");
            ExitCode::from(66)
        }
    }
}

fn run(dir: &Path, path: &Path) -> Result<bool, Box<dyn std::error::Error>> {
    let mut report = Report::new()?;
    let validation = dir.join("validation.json");
    if validation.exists() {
        validation::run(&validation, &mut report)?;
    }
    matching::run(dir, &mut report)?;
    rules::run(dir, &mut report)?;
    report.finish(path)
}
