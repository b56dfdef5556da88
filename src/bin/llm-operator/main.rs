//! The command line of `llm_operator`.
mod bench;
use clap::Parser;
#[derive(Parser)]
enum Cli {
    Bench(bench::Bench),
}
fn main() -> anyhow::Result<()> {
    match Cli::parse() {
        Cli::Bench(b) => b.run(),
    }
}
