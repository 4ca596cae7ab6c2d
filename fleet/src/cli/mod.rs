//! The command line: `serve` runs the server, everything else talks to one or works offline.
//!
//! The server is found by `--server`, else `SAMOVAR_SERVER`, else through `--data DIR` (its `run.json`). The token is
//! `SAMOVAR_TOKEN`, else the one kept by `login`, else, with `--data DIR`, a fresh one of the first admin. Answers are
//! printed for people, or as the server sent them with `--json`.
//!
//! Exit codes: 0 done, 1 the command failed, 2 bad usage or configuration, 3 the data directory is in use, 4 storage
//! unusable.

mod ask;
mod client;
mod effect;
mod figures;
mod hosts;
mod logins;
mod offline;
mod origin_cert;
mod print;
mod routes;
mod serve;
mod terminal;

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
    /// Issue a server certificate for an origin from this fleet's authority
    OriginCert(origin_cert::OriginCert),
    /// Make, sign, verify and try route tables without a server
    #[command(subcommand)]
    Route(offline::Route),
    /// Print every configuration key with its default
    Defaults,
    #[command(flatten)]
    Ask(ask::Ask),
}

/// Reads the arguments and does what they say.
#[must_use]
pub fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Serve(serve) => return serve::run(serve),
        Command::OriginCert(wanted) => origin_cert::run(&wanted),
        Command::Route(route) => offline::run(route),
        Command::Defaults => {
            print::line(crate::config::DEFAULTS.trim_end());
            Ok(())
        }
        Command::Ask(ask) => client::block_on(ask::run(ask)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print::complaint(&crate::problem::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
