//! `meridian-app`: plays applications, and clients of them, in tests and in the demo.

use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    app: meridian_testkit::app::App,
}

#[tokio::main]
async fn main() -> Result<()> {
    meridian_testkit::app::run(Arguments::parse().app).await
}
