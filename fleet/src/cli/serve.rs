//! `samovar-fleet serve`.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use samovar_wire::plain;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::assemble::{self, StartError};
use crate::config::{self, Config, ConfigError};
use crate::problem::chain;

/// Requests in hand get about a second; everything together has to be over in two.
const STOP: Duration = Duration::from_millis(1900);

#[derive(clap::Args)]
pub(super) struct Serve {
    /// Everything the server writes is in here
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Plain HTTP for console and API [default: 127.0.0.1:7700]; with port 0 the other listeners take free ports too,
    /// unless they are named
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// HTTPS for devices [default: 0.0.0.0:7743]
    #[arg(long, value_name = "ADDR")]
    https_listen: Option<String>,
    /// `sqlite://PATH` or `postgres://…` [default: fleet.db in the data directory]
    #[arg(long, value_name = "URL")]
    database: Option<String>,
    /// `embedded`, `none`, or `mqtt://…` / `mqtts://…` [default: embedded]
    #[arg(long, value_name = "BROKER")]
    broker: Option<String>,
    /// One setting, such as intake.origin=apac; may be given several times
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

impl Serve {
    fn config(&self) -> Result<Config, ConfigError> {
        let mut config = Config::load(self.config.as_deref(), &self.set)?;
        let given = [
            (&self.listen, &mut config.server.listen),
            (&self.https_listen, &mut config.server.https_listen),
            (&self.database, &mut config.database.url),
            (&self.broker, &mut config.broker.url),
        ];
        for (value, key) in given {
            if let Some(value) = value {
                key.clone_from(value);
            }
        }
        config.follow_free_port();
        config::broker_choice(&config.broker.url)?;
        Ok(config)
    }
}

pub(super) fn run(serve: Serve) -> ExitCode {
    let config = match serve.config() {
        Ok(config) => config,
        Err(error) => return failed(&StartError::Config(error)),
    };
    log(&config.log);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("samovar-fleet: no threads to work with: {error}");
            return ExitCode::from(4);
        }
    };
    let code = runtime.block_on(serve_until_told(config, serve));
    // A hashing thread in the middle of its work is not waited for.
    runtime.shutdown_background();
    code
}

async fn serve_until_told(config: Config, serve: Serve) -> ExitCode {
    let (mut terminate, mut interrupt) =
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
            (Err(error), _) | (_, Err(error)) => {
                eprintln!("samovar-fleet: signals cannot be received: {error}");
                return ExitCode::from(4);
            }
        };
    let started = tokio::select! {
        started = assemble::start(config, &serve.data) => started,
        _ = terminate.recv() => return ExitCode::SUCCESS,
        _ = interrupt.recv() => return ExitCode::SUCCESS,
    };
    let running = match started {
        Ok(running) => running,
        Err(error) => return failed(&error),
    };
    if let Some((name, password)) = &running.first_admin {
        println!(
            "first admin: {name}, password: {password} (also in {})",
            serve.data.join("admin.txt").display()
        );
    }
    let addresses = &running.app.addresses;
    tracing::info!(http = %addresses.http, https = %addresses.https, mqtt = ?addresses.mqtt, "ready");
    // Outside systemd there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    if tokio::time::timeout(STOP, running.stop()).await.is_err() {
        tracing::warn!("stopped with work still in hand");
    }
    ExitCode::SUCCESS
}

fn failed(error: &StartError) -> ExitCode {
    super::print::complaint(&chain(error));
    ExitCode::from(error.exit_code())
}

fn log(config: &config::Log) {
    let filter = EnvFilter::try_new(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(io::stdout().is_terminal());
    // A second subscriber is refused, which happens in tests only.
    let _ = if config.json {
        builder.json().with_writer(|| Harmless(plain::json)).try_init()
    } else {
        builder.with_writer(|| Harmless(plain::log_line)).try_init()
    };
}

/// Standard output for log lines: what strangers wrote into a value cannot steer the terminal, nor forge a line.
struct Harmless(fn(&str) -> Cow<'_, str>);

impl io::Write for Harmless {
    // The subscriber hands over each event in one piece.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        io::stdout().write_all((self.0)(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}
