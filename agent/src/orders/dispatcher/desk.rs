//! Sorts the orders of one group by where they go now. Pure.

use super::batch::Choice;
use super::lane::{Lane, Limits};
use super::model::{Route, RouteQuery};
use crate::clock::Mono;
use crate::orders::ledger::{Group, Head};
use samovar_wire::OriginId;
use std::collections::BTreeMap;

/// What is looked for in a turn of the groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// Groups with live orders.
    Live,
    /// Probes of an origin of which nothing was heard: orders that it may have already.
    Bound,
    /// Everything.
    All,
}

impl Pass {
    pub(super) fn allows(self, lane: &Lane) -> bool {
        match self {
            Self::Live => lane.ready_for_live(),
            Self::Bound => lane.ready_for_all() && lane.is_blind(),
            Self::All => lane.ready_for_all(),
        }
    }
}

/// Sorts the orders of one group by where they go now.
pub(super) struct Desk<'a, 'r> {
    pub(super) group: &'a Group,
    pub(super) route: &'r mut dyn FnMut(RouteQuery<'_>) -> Route,
    /// Without a pin of their own, all orders of a group go the same way: asked once.
    pub(super) common: Option<Route>,
    pub(super) held: Vec<(u64, String)>,
    pub(super) choices: BTreeMap<OriginId, Choice<'a>>,
}

impl<'a> Desk<'a, '_> {
    pub(super) fn offer(
        &mut self,
        heads: impl Iterator<Item = &'a (Head, Mono)>,
        live: bool,
        pass: Pass,
        now: Mono,
        lanes: &mut BTreeMap<OriginId, Lane>,
        limits: Limits,
    ) {
        for (head, ready_at) in heads {
            if *ready_at > now {
                continue;
            }
            match self.way(head) {
                Route::Wait => {}
                Route::Hold(why) => self.held.push((head.seq, why)),
                Route::To(origin) => {
                    let lane = lanes.entry(origin.clone()).or_insert_with(|| Lane::new(limits));
                    let elsewhere = lane.sends_aside() && lane.isolates(head);
                    if elsewhere || !pass.allows(lane) || !(live || lane.ready_for_backlog(now)) {
                        continue;
                    }
                    let choice = self.choices.entry(origin).or_default();
                    if !choice.has_enough(live, lane) {
                        choice.offer(head, live);
                    } else if self.choices.len() == 1 && head.user.is_none() {
                        return;
                    }
                }
            }
        }
    }

    fn way(&mut self, head: &Head) -> Route {
        let query = |user| RouteQuery { country: &self.group.udl, user, bound: self.group.origin.as_ref() };
        match head.user.as_deref() {
            Some(user) => (self.route)(query(Some(user))),
            None => self.common.get_or_insert_with(|| (self.route)(query(None))).clone(),
        }
    }
}
