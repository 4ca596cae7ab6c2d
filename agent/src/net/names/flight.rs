//! One look-up under way (IO): climbs the ladder, and measures what the names behind a name cost.

use super::answer::Reply;
use super::direct;
use super::doh::Doh;
use super::ladder::{Kind, Ladder, Next, Source, Trust, Verdict, Voice};
use super::message::Family;
use super::system::System;
use crate::clock::{Mono, instant, mono};
use samovar_wire::status::ChainLink;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::task::JoinSet;

/// Longest time of a look-up; those who wait are served long before.
const LIMIT: Duration = Duration::from_secs(5);

/// Somebody to ask.
#[derive(Clone)]
pub(super) enum Asked {
    System(System),
    Server(SocketAddr),
    Doh(Doh),
}

/// Whom a look-up may ask, in the order of the ladder.
#[derive(Clone, Default)]
pub(super) struct Sources(Vec<(Source, Asked)>);

impl Sources {
    pub(super) fn system(&mut self, system: System) {
        self.push(Kind::System, Voice::Network, Asked::System(system));
    }

    /// A server that came with the network.
    pub(super) fn of_network(&mut self, server: SocketAddr) {
        self.push(Kind::Direct, Voice::Network, Asked::Server(server));
    }

    /// A server that somebody chose; it speaks for itself.
    pub(super) fn chosen(&mut self, server: SocketAddr) {
        let known = |(_, asked): &(Source, Asked)| matches!(asked, Asked::Server(known) if *known == server);
        if !self.0.iter().any(known) {
            self.push(Kind::Direct, Voice::Chosen(self.0.len()), Asked::Server(server));
        }
    }

    pub(super) fn doh(&mut self, doh: Doh) {
        self.push(Kind::Doh, Voice::Chosen(self.0.len()), Asked::Doh(doh));
    }

    fn push(&mut self, kind: Kind, voice: Voice, asked: Asked) {
        self.0.push((Source { kind, voice }, asked));
    }

    fn servers(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.iter().filter_map(|(_, asked)| match asked {
            Asked::Server(server) => Some(*server),
            _ => None,
        })
    }
}

/// Looks a name up.
pub(super) async fn look_up(host: &str, sources: &Sources, trust: Trust, started: Mono) -> Verdict {
    let list: Vec<Source> = sources.0.iter().map(|(source, _)| *source).collect();
    let mut ladder = Ladder::new(started, &list, trust);
    let end = started.plus(LIMIT);
    // Ends with this function, and with it everything that was asked.
    let mut asked = JoinSet::new();
    loop {
        let until = match ladder.next(mono()) {
            Next::Done(verdict) => return verdict,
            Next::Wait(until) => until.unwrap_or(end).min(end),
            Next::Ask(indices) => {
                for index in indices {
                    if let Some((_, source)) = sources.0.get(index) {
                        let (source, host) = (source.clone(), host.to_owned());
                        asked.spawn(async move { (index, source.ask(host).await) });
                    }
                }
                continue;
            }
        };
        tokio::select! {
            Some(Ok((index, reply))) = asked.join_next() => ladder.replied(index, reply),
            () = tokio::time::sleep_until(instant(until)) => {
                if until >= end {
                    return ladder.give_up();
                }
            }
        }
    }
}

impl Asked {
    async fn ask(self, host: String) -> Reply {
        match self {
            Self::System(system) => system(host).await,
            Self::Server(server) => direct::ask(server, &host).await,
            Self::Doh(doh) => doh.ask(&host).await,
        }
    }
}

/// The names that a name stands for, and what each costs to find; `None` when nobody says.
///
/// A server that has just found a name has all of its chain at hand, so its answers show nothing. They are asked for
/// again when their life is over, the last name first: what then takes time is that one name's own record.
pub(super) async fn chain(host: &str, sources: &Sources) -> Option<Vec<ChainLink>> {
    let (server, names, life) = first_chain(host, sources).await?;
    if names.is_empty() {
        return Some(Vec::new());
    }
    tokio::time::sleep(life.clamp(Duration::from_secs(1), Duration::from_secs(300))).await;
    let mut links = Vec::new();
    for name in names.into_iter().rev() {
        let began = mono();
        let reply = direct::exchange(server, &name, Family::V4).await;
        let found = matches!(reply, Reply::Found(_));
        let ms = found.then(|| u32::try_from(mono().after(began).as_millis()).unwrap_or(u32::MAX));
        links.push(ChainLink { name, ms });
    }
    links.reverse();
    Some(links)
}

async fn first_chain(host: &str, sources: &Sources) -> Option<(SocketAddr, Vec<String>, Duration)> {
    for server in sources.servers() {
        if let Reply::Found(answer) = direct::exchange(server, host, Family::V4).await {
            return Some((server, answer.chain, answer.ttl.unwrap_or_default()));
        }
    }
    None
}
