//! One look-up as a ladder of sources: who is asked when, and whose word counts. Pure.
//!
//! ```text
//!  0 ms          300 ms                1,200 ms             1,800 ms
//!  system ─────► servers, all at once ─► HTTPS, by address ──► whoever waits gets what is known; the ladder goes on
//! ```
//!
//! A rung is climbed early when everybody asked so far was of no use. An address that is public is an answer. One that
//! is private, and "no such name", are also what a portal or a hijacked router says: they count when a second voice says
//! the same (the system's resolver and the servers that came with the network are one voice), and a private one also when
//! TLS has proved it on this network before.

use super::answer::{Answer, Reply, is_dialable, is_private};
use crate::clock::Mono;
use std::net::IpAddr;
use std::time::Duration;

/// When the servers are asked, if the system has not answered.
pub(super) const SERVERS_AFTER: Duration = Duration::from_millis(300);
/// When servers are asked over HTTPS.
pub(super) const DOH_AFTER: Duration = Duration::from_millis(1_200);

/// Which kind of source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    System,
    Direct,
    Doh,
}

/// Whose word a source repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Voice {
    /// The network that the device happens to be in.
    Network,
    /// Somebody who was chosen: by the configuration or the route table.
    Chosen(usize),
}

/// Somebody who can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) kind: Kind,
    pub(super) voice: Voice,
}

/// What a look-up came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// An answer that counts.
    Good(Answer, Kind),
    /// Nobody gave one. What was said all the same, and what went wrong.
    Nothing {
        /// Addresses on one voice's word.
        suspects: Vec<IpAddr>,
        /// Whether somebody said that there is no such name or address.
        denied: bool,
        /// In the words of the sources.
        errors: Vec<String>,
    },
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// Ask these sources, by their place in the list.
    Ask(Vec<usize>),
    /// Wait for replies, and at most until then.
    Wait(Option<Mono>),
    /// It is over.
    Done(Verdict),
}

#[derive(Debug, PartialEq)]
enum Rung {
    Waiting,
    Asked,
    Replied(Reply),
}

/// What the ladder must know besides the replies.
#[derive(Debug, Clone, Default)]
pub(super) struct Trust {
    /// Addresses that TLS proved for this name on this network.
    pub(super) proven: Vec<IpAddr>,
    /// Loopback addresses are what is wanted: origins are spoken to in the open, or the host is this very device.
    pub(super) loopback: bool,
}

/// A look-up under way.
#[derive(Debug)]
pub(super) struct Ladder {
    started: Mono,
    rungs: Vec<(Source, Rung)>,
    trust: Trust,
}

impl Ladder {
    pub(super) fn new(started: Mono, sources: &[Source], trust: Trust) -> Self {
        Self { started, rungs: sources.iter().map(|source| (*source, Rung::Waiting)).collect(), trust }
    }

    pub(super) fn replied(&mut self, index: usize, reply: Reply) {
        if let Some((_, rung)) = self.rungs.get_mut(index) {
            *rung = Rung::Replied(reply);
        }
    }

    /// Sources named in [`Next::Ask`] count as asked.
    pub(super) fn next(&mut self, now: Mono) -> Next {
        if let Some(verdict) = self.good() {
            return Next::Done(verdict);
        }
        let waiting = self.rungs.iter().filter(|(_, rung)| *rung == Rung::Waiting);
        let first = waiting.map(|(source, _)| source.kind).min();
        let idle = !self.rungs.iter().any(|(_, rung)| *rung == Rung::Asked);
        let Some(first) = first else {
            return if idle { Next::Done(self.nothing()) } else { Next::Wait(None) };
        };
        let at = self.due(first);
        if now < at && !idle {
            return Next::Wait(Some(at));
        }
        let mut ask = Vec::new();
        for (index, (source, rung)) in self.rungs.iter_mut().enumerate() {
            if source.kind == first && *rung == Rung::Waiting {
                *rung = Rung::Asked;
                ask.push(index);
            }
        }
        Next::Ask(ask)
    }

    /// Without a system to ask first, the servers need not wait for it.
    fn due(&self, kind: Kind) -> Mono {
        let has_system = self.rungs.iter().any(|(source, _)| source.kind == Kind::System);
        let after = match kind {
            Kind::System => Duration::ZERO,
            Kind::Direct if !has_system => Duration::ZERO,
            Kind::Direct => SERVERS_AFTER,
            Kind::Doh => DOH_AFTER,
        };
        self.started.plus(after)
    }

    fn replies(&self) -> impl Iterator<Item = (Source, &Reply)> {
        self.rungs.iter().filter_map(|(source, rung)| match rung {
            Rung::Replied(reply) => Some((*source, reply)),
            _ => None,
        })
    }

    fn good(&self) -> Option<Verdict> {
        for (source, reply) in self.replies() {
            let Reply::Found(answer) = reply else { continue };
            let counts = |address: &&IpAddr| is_dialable(address) && self.counts(source.voice, **address);
            let addresses: Vec<IpAddr> = answer.addresses.iter().filter(counts).copied().collect();
            if !addresses.is_empty() {
                return Some(Verdict::Good(Answer { addresses, ..answer.clone() }, source.kind));
            }
        }
        self.denied_twice().then(|| self.nothing())
    }

    fn counts(&self, voice: Voice, address: IpAddr) -> bool {
        let says_so = |(source, reply): (Source, &Reply)| {
            source.voice != voice
                && matches!(reply, Reply::Found(answer) if answer.addresses.contains(&address))
        };
        let expected = self.trust.loopback && address.is_loopback();
        !is_private(&address)
            || expected
            || self.trust.proven.contains(&address)
            || self.replies().any(says_so)
    }

    fn denied_twice(&self) -> bool {
        let mut voices = self.replies().filter(|(_, reply)| is_denial(reply)).map(|(source, _)| source.voice);
        let Some(first) = voices.next() else { return false };
        voices.any(|voice| voice != first)
    }

    /// What there is when nobody waits any longer.
    pub(super) fn give_up(&self) -> Verdict {
        self.good().unwrap_or_else(|| self.nothing())
    }

    fn nothing(&self) -> Verdict {
        let (mut suspects, mut errors) = (Vec::new(), Vec::new());
        for (_, reply) in self.replies() {
            match reply {
                Reply::Found(answer) => {
                    let usable = answer.addresses.iter().filter(|address| is_dialable(address));
                    for address in usable {
                        if !suspects.contains(address) {
                            suspects.push(*address);
                        }
                    }
                }
                Reply::NoSuchName => errors.push("no such name".to_owned()),
                Reply::NoAddress => errors.push("no address".to_owned()),
                Reply::Failed(why) => errors.push(why.clone()),
            }
        }
        errors.dedup();
        Verdict::Nothing { suspects, denied: self.replies().any(|(_, reply)| is_denial(reply)), errors }
    }
}

const fn is_denial(reply: &Reply) -> bool {
    matches!(reply, Reply::NoSuchName | Reply::NoAddress)
}

#[cfg(test)]
mod tests;
