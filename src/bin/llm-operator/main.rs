//! The command line of `llm_operator`.

fn main() {}
