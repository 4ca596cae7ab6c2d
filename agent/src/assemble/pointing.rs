//! What host overrides see of routing, and how the flow is put together.

use super::{Frame, STUCK};
use crate::hosts::{self, Hosts, HostsFile, Names, Refused, Tried, offline, standing};
use crate::relay::{Outbox, Stream};
use crate::routing::{self, Routing};
use futures_util::future::{BoxFuture, FutureExt};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::watch;

/// Routing, as host overrides ask it.
struct NamesOfRouting(Routing);

impl Names for NamesOfRouting {
    fn standing(&self, name: &str) -> Result<(), Refused> {
        standing(&self.0.table().ok_or(Refused::NoTable)?.table, name)
    }

    fn try_at(&self, name: &str, address: IpAddr) -> BoxFuture<'static, Tried> {
        let (routing, name) = (self.0.clone(), name.to_owned());
        async move { tried(routing.try_at(&name, address).await) }.boxed()
    }

    fn through(&self, name: &str, address: IpAddr) -> BoxFuture<'static, Tried> {
        let (routing, name) = (self.0.clone(), name.to_owned());
        async move { tried(routing.try_through(&name, address).await) }.boxed()
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed()
    }
}

fn tried(tried: routing::Tried) -> Tried {
    match tried {
        routing::Tried::Answered => Tried::Answered,
        routing::Tried::Else(what) => Tried::Else(what),
        routing::Tried::NotReached(why) => Tried::NotReached(why),
    }
}

impl Frame {
    /// Starts the flow of host overrides.
    pub(super) fn hosts(&mut self, kept: hosts::Kept, routing: &Routing, outbox: &Outbox) -> Hosts {
        let state = offline::state_dir(&self.data);
        let outbox = outbox.clone();
        let setup = hosts::Setup {
            data: self.data.clone(),
            file: self.config.hosts.file().map(|path| HostsFile::new(path, &state)),
            helper: self.config.hosts.helper().map(std::path::Path::to_owned),
            names: Arc::new(NamesOfRouting(routing.clone())),
            board: self.board.clone(),
            events: Arc::new(move |kind, data| outbox.record(Stream::Audit, kind, &data)),
        };
        let (hosts, runner) = hosts::start(kept, setup);
        self.spawn("hosts", STUCK, |heartbeat, stop| runner.run(heartbeat, stop));
        hosts
    }
}
