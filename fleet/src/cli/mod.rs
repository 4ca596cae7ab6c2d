//! The command line: `serve` runs the server, everything else talks to one or works offline.
//!
//! Exit codes: 0 done, 1 the command failed, 2 bad usage or configuration, 3 the data directory is in use, 4 storage
//! unusable.

mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "samovar-fleet",
    version,
    about = "The Samovar fleet server and the operators' command line"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server
    Serve(serve::Serve),
}

/// Reads the arguments and does what they say.
#[must_use]
pub fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Serve(serve) => serve::run(serve),
    }
}
