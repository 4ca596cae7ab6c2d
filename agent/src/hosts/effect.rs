//! What another program of the device gets for a name: asked by a fresh process, because a running one may remember
//! (IO).

use crate::clock::mono;
use std::io::Read;
use std::net::{IpAddr, ToSocketAddrs};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Longest wait for the answer; a look-up that the hosts file answers takes no time at all.
const LIMIT: Duration = Duration::from_secs(3);

/// The addresses that the C library gives out for a name, in its order. Blocks; for the fresh process.
///
/// # Errors
/// The resolver's words.
pub fn look_up(name: &str) -> Result<Vec<IpAddr>, String> {
    let found = (name, 0).to_socket_addrs().map_err(|error| error.to_string())?;
    let mut addresses = Vec::new();
    for address in found.map(|socket| socket.ip()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

/// Asks a fresh process. Blocks.
pub(super) fn look_up_afresh(name: &str) -> Result<Vec<IpAddr>, String> {
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let mut child = Command::new(program)
        .args(["hosts", "lookup", name])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot start a look-up: {error}"))?;
    let since = mono();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if mono().after(since) < LIMIT => std::thread::sleep(Duration::from_millis(10)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("no answer within {} s", LIMIT.as_secs()));
            }
        }
    };
    let mut text = String::new();
    if let Some(output) = child.stdout.take() {
        // A name has a few dozen addresses at most.
        let _ = output.take(64 * 1024).read_to_string(&mut text);
    }
    if !status.success() {
        return Err("the name does not resolve".into());
    }
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}
