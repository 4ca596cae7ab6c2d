//! The small program with the rights that the agent lacks: one connection, one typed call, then it ends (IO).
//!
//! The service manager listens and hands the connection over as standard input, so that nothing with rights runs while
//! nobody asks. Who asks is read from the socket, not from the message: root, or the owner of the data directory. The
//! call names no path and no text of a line, only names, addresses and times, which are checked here again; the lines
//! are made here. Absent on purpose: any way to run a command or to write another file.

use super::apply::{ApplyError, HostsFile, Outcome};
use super::file::Block;
use super::wish::{OVERRIDES_MAX, not_unicast};
use crate::clock::{Mono, mono};
use crate::net::explain;
use samovar_wire::hosts::name;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longest call or answer.
const MESSAGE_MAX: usize = 64 * 1024;
/// Longest time for a whole conversation, the disk included.
const LIMIT: Duration = Duration::from_secs(10);

/// What may be asked for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "kebab-case", deny_unknown_fields)]
enum Call {
    /// Make the hosts file hold this block.
    HostsApply { block: Block },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Done(Outcome),
    Refused { why: String },
}

/// The helper did not do it.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// It cannot be asked.
    #[error("the helper cannot be reached")]
    Unreachable(#[source] io::Error),
    /// It said no.
    #[error("the helper says: {0}")]
    Refused(String),
    /// Its answer makes no sense.
    #[error("the helper's answer cannot be read")]
    Unreadable(#[source] serde_json::Error),
}

/// Asks the helper to apply a block. Blocks.
///
/// # Errors
/// When it does not.
pub fn apply(socket: &Path, block: &Block) -> Result<Outcome, HelperError> {
    let deadline = mono().plus(LIMIT);
    let stream = UnixStream::connect(socket).map_err(HelperError::Unreachable)?;
    let mut call =
        serde_json::to_vec(&Call::HostsApply { block: block.clone() }).map_err(HelperError::Unreadable)?;
    call.push(b'\n');
    write(&stream, &call, deadline).map_err(HelperError::Unreachable)?;
    let answer = read_line(&stream, deadline).map_err(HelperError::Unreachable)?;
    match serde_json::from_slice(&answer).map_err(HelperError::Unreadable)? {
        Answer::Done(outcome) => Ok(outcome),
        Answer::Refused { why } => Err(HelperError::Refused(why)),
    }
}

/// Serves the one connection that is standard input. `data` is the agent's data directory: its owner may ask.
///
/// # Errors
/// When there is no such connection, or it breaks off.
pub fn serve(file: &HostsFile, data: &Path) -> io::Result<()> {
    let stream = UnixStream::from(rustix::stdio::stdin().try_clone_to_owned()?);
    serve_on(&stream, file, data)
}

fn serve_on(stream: &UnixStream, file: &HostsFile, data: &Path) -> io::Result<()> {
    let deadline = mono().plus(LIMIT);
    let answer = match may_ask(stream, data)? {
        Some(why) => Answer::Refused { why },
        None => {
            let call = read_line(stream, deadline)?;
            match carry_out(&call, file) {
                Ok(outcome) => Answer::Done(outcome),
                Err(why) => Answer::Refused { why },
            }
        }
    };
    let mut answer = serde_json::to_vec(&answer)?;
    answer.push(b'\n');
    write(stream, &answer, deadline)
}

/// Why whoever is at the other end may not ask.
#[cfg(target_os = "linux")]
fn may_ask(stream: &UnixStream, data: &Path) -> io::Result<Option<String>> {
    let peer = rustix::net::sockopt::socket_peercred(stream.as_fd())?;
    let owner = std::fs::symlink_metadata(data)?.uid();
    let uid = peer.uid.as_raw();
    Ok((uid != 0 && uid != owner)
        .then(|| format!("user {uid} may not ask: only the owner of {} may", data.display())))
}

#[cfg(not(target_os = "linux"))]
fn may_ask(_stream: &UnixStream, _data: &Path) -> io::Result<Option<String>> {
    Ok(Some("this system does not tell who asks".into()))
}

fn carry_out(call: &[u8], file: &HostsFile) -> Result<Outcome, String> {
    let Call::HostsApply { block } =
        serde_json::from_slice(call).map_err(|error| format!("the call cannot be read: {error}"))?;
    check(&block)?;
    file.apply(&block).map_err(|error: ApplyError| explain(&error))
}

/// The caller is not believed: what it wants written must be what only an override looks like.
pub(super) fn check(block: &Block) -> Result<(), String> {
    if block.lines.len() > OVERRIDES_MAX {
        return Err(format!("more than {OVERRIDES_MAX} lines"));
    }
    if !block.lines.is_sorted_by(|a, b| a.name < b.name) {
        return Err("names are not in order, or one stands there twice".into());
    }
    for line in &block.lines {
        let exact = name(&line.name).map_err(|error| error.to_string())?;
        let id = line.id.len() == 8 && line.id.bytes().all(|b| b.is_ascii_hexdigit());
        if exact != line.name || !id {
            return Err(format!("`{exact}` is not in its exact form"));
        }
        if let Some(why) = not_unicast(line.address) {
            return Err(format!("{} {why}", line.address));
        }
    }
    Ok(())
}

fn left(deadline: Mono) -> io::Result<Duration> {
    let left = deadline.after(mono());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn write(mut stream: &UnixStream, bytes: &[u8], deadline: Mono) -> io::Result<()> {
    stream.set_write_timeout(Some(left(deadline)?))?;
    stream.write_all(bytes)
}

/// Reads up to the end of a line. Each wait is what is left of the whole time, so that a byte now and then gains nothing.
fn read_line(mut stream: &UnixStream, deadline: Mono) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut part = [0_u8; 4096];
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        let length = stream.read(&mut part)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.extend_from_slice(&part[..length]);
        if line.last() == Some(&b'\n') {
            return Ok(line);
        }
        if line.len() > MESSAGE_MAX {
            return Err(io::Error::other("the message is too long"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::Line;
    use super::*;
    use samovar_wire::Timestamp;

    fn line(name: &str) -> Line {
        Line {
            id: "0a1b2c3d".into(),
            name: name.into(),
            address: "203.0.113.10".parse().unwrap(),
            until: Timestamp::from_millis(1_800_000_000_000),
            forced: true,
        }
    }

    fn refused(lines: Vec<Line>) -> bool {
        check(&Block { generation: 1, lines }).is_err()
    }

    #[test]
    fn only_what_an_override_looks_like_is_written() {
        assert!(!refused(vec![line("a.example"), line("b.example")]));
        assert!(refused(vec![line("b.example"), line("a.example")]));
        assert!(refused(vec![line("a.example"), line("a.example")]));
        assert!(refused((0..21).map(|n| line(&format!("n{n:02}.example"))).collect()));
        for name in ["localhost", "A.example", "a.example.", "a.example\n1.1.1.1 x", ""] {
            assert!(refused(vec![line(name)]), "{name}");
        }
        assert!(refused(vec![Line { id: "# x".into(), ..line("a.example") }]));
        assert!(refused(vec![Line { address: "224.0.0.1".parse().unwrap(), ..line("a.example") }]));
    }

    #[test]
    fn a_call_is_carried_out_for_the_owner_of_the_data() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        std::fs::write(&path, "127.0.0.1 localhost\n").unwrap();
        let file = HostsFile::new(&path, &dir.path().join("state"));
        let socket = dir.path().join("helper.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let block = Block { generation: 1, lines: vec![line("a.example")] };
        let calls: [&[u8]; 3] = [b"{\"call\":\"run\",\"command\":\"sh\"}\n", b"not json\n", b"{}\n"];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..=calls.len() {
                    let (stream, _) = listener.accept().unwrap();
                    serve_on(&stream, &file, dir.path()).unwrap();
                }
            });
            assert!(apply(&socket, &block).unwrap().written);
            for call in calls {
                let stream = UnixStream::connect(&socket).unwrap();
                write(&stream, call, mono().plus(LIMIT)).unwrap();
                let answer = read_line(&stream, mono().plus(LIMIT)).unwrap();
                assert!(matches!(serde_json::from_slice(&answer).unwrap(), Answer::Refused { .. }));
            }
        });
        assert!(std::fs::read_to_string(&path).unwrap().contains("203.0.113.10 a.example"));
        assert!(matches!(apply(&dir.path().join("nobody.sock"), &block), Err(HelperError::Unreachable(_))));
    }
}
