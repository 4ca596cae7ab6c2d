//! The command line: `run`, and the commands that speak to the running agent through its local API.

pub mod activate;
mod ask;
mod hosts;
mod hwcheck;
mod orders;
mod resolve;
mod status;

use crate::assemble::{self, Options};
use crate::config::Config;
use crate::net::explain;
use ask::Agent;
use clap::{Args, Parser, Subcommand};
use samovar_wire::plain;
use std::path::PathBuf;

/// The agent on a store device: keeps orders safe, finds their origin, tells head office how the device is doing.
#[derive(Debug, Parser)]
#[command(name = "samovar-agent", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent
    Run(RunArgs),
    /// Make this machine a device of a store, with a claim code
    Activate(activate::ActivateArgs),
    /// How the device is doing
    Status(AskArgs),
    /// Look at orders, or do something about one
    Orders(orders::OrdersArgs),
    /// Where a service is now, and why
    Resolve(resolve::ResolveArgs),
    /// Names of this device that point elsewhere for a while
    Hosts(hosts::HostsArgs),
    /// Serve one call that needs more rights than the agent has; started by the service manager
    #[command(hide = true)]
    Helper(hosts::HelperArgs),
    /// Check a configuration without starting
    CheckConfig(CheckArgs),
    /// Which serial ports this machine has, and how its disk syncs
    Hwcheck(hwcheck::HwcheckArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Everything the agent writes
    #[arg(long, value_name = "DIR", default_value = DATA)]
    data: PathBuf,
    #[command(flatten)]
    config: ConfigArgs,
    /// Address and port of the local API; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    listen: Option<std::net::SocketAddr>,
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// The configuration (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Lay a single key over the configuration
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print every key with its value, as the agent would use it
    #[arg(long)]
    json: bool,
}

/// How to find the running agent, and how to print.
#[derive(Debug, Args)]
struct AskArgs {
    /// The agent's data directory
    #[arg(long, value_name = "DIR", default_value = DATA)]
    data: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Where the agent keeps everything unless told otherwise.
const DATA: &str = "/var/lib/samovar";

impl Cli {
    /// Does what was asked and gives the exit code.
    pub async fn run(self) -> u8 {
        match self.command {
            Command::Run(args) => run(args).await,
            Command::CheckConfig(args) => check_config(&args),
            Command::Activate(args) => activate::run(&args, async |data| pending(data).await).await,
            Command::Hwcheck(args) => told(hwcheck::run(&args)),
            Command::Status(args) => told(status::run(&Agent::find(&args.data), args.json).await),
            Command::Orders(args) => told(orders::run(&args).await),
            Command::Resolve(args) => told(resolve::run(&args).await),
            Command::Hosts(args) => told(hosts::run(&args).await),
            Command::Helper(args) => told(hosts::serve(&args)),
        }
    }
}

async fn run(args: RunArgs) -> u8 {
    let mut config = match Config::load(args.config.config.as_deref(), &args.config.set) {
        Ok(config) => config,
        Err(error) => return failed(&error.to_string(), 2),
    };
    if let Some(listen) = args.listen {
        config.local_api.listen = listen;
    }
    match assemble::run(Options { data: args.data, config }, stopping()).await {
        Ok(()) => 0,
        Err(error) => failed(&explain(&error), error.exit_code()),
    }
}

/// Ends when the service manager or a person asks the agent to stop.
async fn stopping() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        // A terminal that is closed, or a habit of operators, must not end the agent: being listened for is enough.
        let _hangup = signal(SignalKind::hangup());
        if let (Ok(mut terminate), Ok(mut interrupt)) =
            (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}

fn check_config(args: &CheckArgs) -> u8 {
    match Config::load(args.config.config.as_deref(), &args.config.set) {
        Ok(config) => {
            let shown = if args.json { serde_json::to_string_pretty(&redacted(config)).ok() } else { None };
            say(&shown.unwrap_or_else(|| "the configuration is good".into()));
            0
        }
        Err(error) => failed(&error.to_string(), 2),
    }
}

/// Secrets are not printed, not even to who wrote them.
fn redacted(mut config: Config) -> Config {
    for secret in [&mut config.origin.token, &mut config.relay.password] {
        if !secret.is_empty() {
            *secret = "(hidden)".into();
        }
    }
    config
}

/// Orders that have not reached their origin: asked of the running agent, or counted in the ledger.
async fn pending(data: &std::path::Path) -> Result<u64, String> {
    if !data.join("orders.db").exists() {
        return Ok(0);
    }
    let summary = Agent::find(data).get("/v1/orders:summary").await.map_err(|error| error.to_string())?;
    let count = |state: &str| summary[state].as_u64().unwrap_or(0);
    Ok(count("pending") + count("held"))
}

/// Prints an answer or an error; gives the exit code.
fn told(result: Result<String, ask::AskError>) -> u8 {
    match result {
        Ok(text) => {
            say(&text);
            0
        }
        Err(error) => {
            if let ask::AskError::Failed { shown, .. } = &error {
                say(shown);
            }
            failed(&error.to_string(), error.exit_code())
        }
    }
}

fn failed(message: &str, code: u8) -> u8 {
    use std::io::Write;
    // Nobody may be listening, as in `samovar-agent … 2>&1 | head`.
    let _ = writeln!(std::io::stderr(), "samovar-agent: {}", plain::message(message));
    code
}

fn say(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{}", plain::message(text.trim_end()));
}
