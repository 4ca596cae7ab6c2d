//! The agent's program: arguments in, exit code out.

use clap::Parser;
use samovar_agent::cli::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    // First of all: whatever speaks TLS later finds the one provider this house uses.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = Cli::parse();
    // Two threads: one for the tills while the other looks after the rest; storage has threads of its own.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(cli.run());
            runtime.shutdown_timeout(std::time::Duration::from_millis(200));
            ExitCode::from(code)
        }
        Err(error) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "samovar-agent: the system gives no threads: {error}");
            ExitCode::from(4)
        }
    }
}
