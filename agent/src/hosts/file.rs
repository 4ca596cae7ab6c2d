//! Pure: the hosts file, bytes in and bytes out.
//!
//! ```text
//! …foreign bytes, as they are…
//! #samovar-off:0a1b2c3d# 10.0.0.9 us.store.example        a foreign line that was forced out of the way
//! # BEGIN samovar overrides v1 gen=7 nl=- body=…16 hex…
//! 203.0.113.10 us.store.example # samovar-override id=0a1b2c3d until=2026-11-20T12:00:00.000Z
//! # END samovar overrides
//! ```
//!
//! Ours is what carries our mark: the two markers, lines with our tag, and the prefix of a line that was forced out of
//! the way. Everything else is foreign wherever it stands, also between the markers, and is given back byte for byte:
//! CRLF, NUL, a byte order mark, a last line without an end. So torn and doubled markers need no rules of their own.
//! A foreign line for a name that is overridden is a conflict, because the C library gives out both addresses.

use samovar_wire::Timestamp;
use samovar_wire::encoding::{hex, sha256};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Most foreign bytes that a hosts file may have.
pub(super) const FOREIGN_MAX: usize = 1024 * 1024;
/// Most bytes that it may have with ours.
pub(super) const FILE_MAX: usize = 2 * 1024 * 1024;

const BEGIN: &[u8] = b"# BEGIN samovar overrides";
const END: &[u8] = b"# END samovar overrides";
const TAG: &[u8] = b"# samovar-override id=";
const OFF: &[u8] = b"#samovar-off:";
const OFF_END: &[u8] = b"# ";
const ID: usize = 8;
const BOM: &[u8] = b"\xef\xbb\xbf";

/// One line of the block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Eight hex digits that tell this override from others.
    pub id: String,
    /// The name, in lower case.
    pub name: String,
    /// Where it points.
    pub address: IpAddr,
    /// When it ends, for people who read the file.
    pub until: Timestamp,
    /// Foreign lines for the name are put out of the way.
    pub forced: bool,
}

/// What the block should be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// Grows with each change of the overrides.
    pub generation: u64,
    /// The lines, by name.
    pub lines: Vec<Line>,
}

/// A foreign line that says something else of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The name.
    pub name: String,
    /// The foreign line.
    pub line: String,
}

/// A hosts file as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rendered {
    pub(super) bytes: Vec<u8>,
    /// Names that were left out because a foreign line is in the way.
    pub(super) conflicts: Vec<Conflict>,
    /// Somebody wrote between our markers.
    pub(super) tampered: bool,
}

/// A hosts file that is too long for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the hosts file would have more than {limit} bytes")]
pub(super) struct TooLong {
    limit: usize,
}

/// The file with this block instead of whatever block it has. Without lines: the foreign bytes and nothing else.
pub(super) fn render(old: &[u8], block: &Block) -> Result<Rendered, TooLong> {
    let found = take_apart(old);
    if found.foreign.len() > FOREIGN_MAX {
        return Err(TooLong { limit: FOREIGN_MAX });
    }
    let mut conflicts = Vec::new();
    let mut lines = Vec::new();
    for line in &block.lines {
        match in_the_way(&found.foreign, line).filter(|_| !line.forced) {
            Some(foreign) => conflicts.push(Conflict { name: line.name.clone(), line: printable(foreign) }),
            None => lines.push(line),
        }
    }
    let mut bytes = put_out_of_the_way(&found.foreign, &lines);
    if !lines.is_empty() {
        append_block(&mut bytes, found.foreign.len(), block.generation, &lines);
    }
    if bytes.len() > FILE_MAX {
        return Err(TooLong { limit: FILE_MAX });
    }
    Ok(Rendered { bytes, conflicts, tampered: found.tampered })
}

fn append_block(bytes: &mut Vec<u8>, foreign_len: usize, generation: u64, lines: &[&Line]) {
    let mut body = Vec::new();
    for Line { id, name, address, until, .. } in lines {
        body.extend_from_slice(format!("{address} {name} ").as_bytes());
        body.extend_from_slice(TAG);
        body.extend_from_slice(format!("{id} until={until}\n").as_bytes());
    }
    // A last line without an end gets one, which goes again with the block: the number says where it stands.
    let unfinished = bytes.last().is_some_and(|last| *last != b'\n');
    let added = if unfinished { foreign_len.to_string() } else { "-".to_owned() };
    if unfinished {
        bytes.push(b'\n');
    }
    let digest = digest(&body);
    bytes.extend_from_slice(BEGIN);
    bytes.extend_from_slice(format!(" v1 gen={generation} nl={added} body={digest}\n").as_bytes());
    bytes.extend_from_slice(&body);
    bytes.extend_from_slice(END);
    bytes.push(b'\n');
}

fn digest(body: &[u8]) -> String {
    hex(&sha256(body)[..8])
}

struct TakenApart {
    foreign: Vec<u8>,
    tampered: bool,
}

/// Takes everything of ours out.
fn take_apart(old: &[u8]) -> TakenApart {
    let mut foreign: Vec<u8> = Vec::with_capacity(old.len());
    // Where a line end stands in `foreign` that is ours, until foreign bytes follow it.
    let mut added = None;
    let (mut body, mut expected, mut tampered) = (Vec::new(), None, false);
    for line in old.split_inclusive(|byte| *byte == b'\n') {
        if line.starts_with(BEGIN) {
            added = field(line, "nl").and_then(|at| at.parse().ok()).or(added);
            // A second block, or one that was never ended.
            tampered |= expected.is_some();
            expected = Some(field(line, "body"));
            body.clear();
        } else if line.starts_with(END) {
            tampered |= expected.take() != Some(Some(digest(&body)));
        } else if position(line, TAG).is_some() {
            body.extend_from_slice(line);
            tampered |= expected.is_none();
        } else {
            tampered |= expected.is_some();
            added = None;
            foreign.extend_from_slice(without_off(line));
        }
    }
    tampered |= expected.is_some();
    if added.is_some_and(|at: usize| foreign.len() == at + 1 && foreign.ends_with(b"\n")) {
        foreign.pop();
    }
    TakenApart { foreign, tampered }
}

/// A field of a marker, such as `gen=7`.
fn field(line: &[u8], name: &str) -> Option<String> {
    let text = String::from_utf8_lossy(line);
    text.split_ascii_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
}

fn without_off(line: &[u8]) -> &[u8] {
    let rest = line.strip_prefix(OFF).and_then(|rest| {
        let (id, rest) = rest.split_at_checked(ID)?;
        id.iter().all(u8::is_ascii_hexdigit).then_some(rest)?.strip_prefix(OFF_END)
    });
    rest.unwrap_or(line)
}

/// Foreign lines for the names of these lines, each behind the mark that keeps it from being read.
fn put_out_of_the_way(foreign: &[u8], lines: &[&Line]) -> Vec<u8> {
    let forced: Vec<_> = lines.iter().filter(|line| line.forced).collect();
    let mut bytes = Vec::with_capacity(foreign.len() + 1024);
    for text in foreign.split_inclusive(|byte| *byte == b'\n') {
        if let Some(line) = forced.iter().find(|line| contradicts(text, line)) {
            bytes.extend_from_slice(OFF);
            bytes.extend_from_slice(line.id.as_bytes());
            bytes.extend_from_slice(OFF_END);
        }
        bytes.extend_from_slice(text);
    }
    bytes
}

fn in_the_way<'a>(foreign: &'a [u8], line: &Line) -> Option<&'a [u8]> {
    foreign.split_inclusive(|byte| *byte == b'\n').find(|text| contradicts(text, line))
}

/// Whether a line gives the name another address. Resolvers differ in what they make of a NUL or a byte order mark;
/// whatever any of them would read counts.
fn contradicts(text: &[u8], line: &Line) -> bool {
    let text = text.strip_prefix(BOM).unwrap_or(text);
    let text = text.split(|byte| *byte == b'#').next().unwrap_or_default();
    let mut words = text
        .split(|byte| byte.is_ascii_whitespace() || matches!(byte, 0 | 0x0b))
        .filter(|word| !word.is_empty());
    let Some(address) = words.next() else { return false };
    let same = std::str::from_utf8(address).ok().and_then(|text| text.parse::<IpAddr>().ok());
    same != Some(line.address) && words.any(|word| word.eq_ignore_ascii_case(line.name.as_bytes()))
}

fn position(line: &[u8], part: &[u8]) -> Option<usize> {
    line.windows(part.len()).position(|window| window == part)
}

/// A foreign line as people may be shown it.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text.trim().chars().take(200);
    text.map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests;
