//! Passwords from the terminal, without showing them.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anyhow::{Context as _, Result, bail};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

/// Reads a password: from a terminal after a prompt and without echo, else the first line of the input.
pub(super) fn password(prompt: &str) -> Result<String> {
    let stdin = std::io::stdin();
    let shown = if stdin.is_terminal() {
        eprint!("{prompt}: ");
        std::io::stderr().flush()?;
        let before = tcgetattr(&stdin).context("the terminal does not answer")?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Flush, &quiet).context("the terminal cannot be made quiet")?;
        let line = line(&stdin);
        tcsetattr(&stdin, OptionalActions::Flush, &before).context("the terminal cannot be put back")?;
        eprintln!();
        line?
    } else {
        line(&stdin)?
    };
    if shown.is_empty() {
        bail!("no password was given");
    }
    Ok(shown)
}

fn line(stdin: &std::io::Stdin) -> Result<String> {
    let mut line = String::new();
    stdin.lock().read_line(&mut line).context("the password cannot be read")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
