//! The `samovar-fleet` program: see `samovar_fleet::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    // First of all: whoever asks rustls for a default gets ring. A second provider is linked in by the broker.
    let _ = rustls::crypto::ring::default_provider().install_default();
    samovar_fleet::cli::main()
}
