//! The hosts file follows the list: written by ourselves or by the helper, looked after, and told how it is (IO).

use super::apply::{ApplyError, HostsFile, Outcome, Seen};
use super::file::{Block, Conflict};
use super::helper;
use super::state::{FileState, Scope};
use super::trample::Trample;
use crate::clock::{Mono, mono};
use crate::net::explain;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Before a hosts file that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// A hosts file and what is known of it.
pub(super) struct Follower {
    /// `None` leaves it alone.
    file: Option<HostsFile>,
    helper: Option<PathBuf>,
    state: FileState,
    conflicts: Vec<Conflict>,
    seen: Option<Seen>,
    /// The file may hold lines of ours.
    dirty: bool,
    trample: Trample,
    retry: Option<Mono>,
}

/// What an apply did that is worth telling.
#[derive(Debug, Default)]
pub(super) struct Followed {
    /// What became of it, and by whom, when the file was written.
    pub(super) written: Option<(Outcome, &'static str)>,
    /// Foreign lines in the way that were not there before.
    pub(super) conflicts: Vec<Conflict>,
}

impl Follower {
    pub(super) fn new(file: Option<HostsFile>, helper: Option<PathBuf>) -> Self {
        let path = file.as_ref().map(|file| file.path().to_owned()).unwrap_or_default();
        Self {
            file,
            helper,
            state: FileState { path, state: "off", by: None, why: None },
            conflicts: Vec::new(),
            seen: None,
            dirty: false,
            trample: Trample::default(),
            retry: None,
        }
    }

    pub(super) const fn state(&self) -> &FileState {
        &self.state
    }

    /// When to try again.
    pub(super) const fn retry(&self) -> Option<Mono> {
        self.retry
    }

    /// For whom an override of this name holds, and why not for everybody.
    pub(super) fn scope(&self, name: &str) -> (Scope, Option<String>) {
        let in_the_way = self.conflicts.iter().any(|conflict| conflict.name == name);
        match self.state.state {
            "applied" => (Scope::Device, None),
            "conflict" if !in_the_way => (Scope::Device, None),
            "off" => (Scope::Agent, Some("hosts.file is \"\": the hosts file is left alone".into())),
            _ => (Scope::Agent, self.state.why.clone()),
        }
    }

    /// What a person should look at; `unwanted` when no line of ours should be there.
    pub(super) fn trouble(&self, unwanted: bool) -> Option<String> {
        let trouble = matches!(self.state.state, "conflict" | "trampled") || (self.dirty && unwanted);
        self.state.why.clone().filter(|_| trouble)
    }

    /// A foreign line in the way of this name.
    pub(super) async fn in_the_way(&self, block: Block, name: &str) -> Option<Conflict> {
        let file = self.file.clone()?;
        let found = tokio::task::spawn_blocking(move || file.preview(&block)).await;
        // A file that cannot be read is told by the apply that follows.
        found.ok()?.ok()?.into_iter().find(|conflict| conflict.name == name)
    }

    /// Somebody changed an override: whatever was stopped is tried again.
    pub(super) fn forget(&mut self) {
        self.trample.forget();
    }

    /// Whether somebody else changed the file.
    pub(super) fn is_changed(&self) -> bool {
        self.file.as_ref().is_some_and(|file| file.seen() != self.seen) && !self.trample.stopped()
    }

    /// Our lines were taken out and put back. Gives whether that was once too often.
    pub(super) fn put_back(&mut self) -> bool {
        let path = self.state.path.display();
        tracing::warn!(%path, "lines of ours were changed in the hosts file and put back");
        if self.trample.hit(mono()) {
            self.state.state = "trampled";
            self.state.why = Some("another program takes our lines out again and again; we stopped".into());
        }
        self.trample.stopped()
    }

    /// Brings the file to a block.
    pub(super) async fn apply(&mut self, block: Block) -> Followed {
        self.retry = None;
        let Some(file) = self.file.clone() else { return Followed::default() };
        let (helper, lines) = (self.helper.clone(), block.lines.len());
        let applying = tokio::task::spawn_blocking(move || {
            let result = apply_either(&file, helper.as_deref(), &block);
            let after = result.is_err().then(|| (file.seen(), file.holds_ours()));
            (result, after)
        });
        let failed = |ended: tokio::task::JoinError| (Err(("failing", ended.to_string())), None);
        match applying.await.unwrap_or_else(failed) {
            (Ok((outcome, by)), _) => self.applied(outcome, by, lines),
            (Err((state, why)), after) => {
                // Tried again after a while, or when somebody changes the file.
                (self.seen, self.dirty) = after.unwrap_or((None, true));
                self.state = FileState { path: self.state.path.clone(), state, by: None, why: Some(why) };
                self.conflicts = Vec::new();
                self.retry = (self.dirty || lines > 0).then(|| mono().plus(RETRY));
                Followed::default()
            }
        }
    }

    fn applied(&mut self, outcome: Outcome, by: &'static str, lines: usize) -> Followed {
        let before = std::mem::replace(&mut self.conflicts, outcome.conflicts.clone());
        self.dirty = lines > self.conflicts.len();
        self.seen = outcome.seen;
        let why = self.conflicts.first().map(|conflict| {
            format!("a line that is not ours is in the way of {}: `{}`", conflict.name, conflict.line)
        });
        let state = if why.is_some() { "conflict" } else { "applied" };
        self.state = FileState { path: self.state.path.clone(), state, by: Some(by), why };
        let conflicts =
            self.conflicts.iter().filter(|conflict| !before.contains(conflict)).cloned().collect();
        Followed { written: (outcome.written || outcome.recovered).then_some((outcome, by)), conflicts }
    }
}

/// By ourselves, or by the helper when we lack the rights; with the state of the file and why when neither can.
fn apply_either(
    file: &HostsFile,
    helper: Option<&Path>,
    block: &Block,
) -> Result<(Outcome, &'static str), (&'static str, String)> {
    let own = match file.apply(block) {
        Ok(outcome) => return Ok((outcome, "agent")),
        Err(error) => error,
    };
    let why = explain(&own);
    let rights = matches!(own, ApplyError::NotPermitted { .. } | ApplyError::Unsupported { .. });
    let Some(helper) = helper.filter(|_| rights) else {
        return Err((if rights { "unsupported" } else { "failing" }, why));
    };
    match helper::apply(helper, block) {
        Ok(outcome) => Ok((outcome, "helper")),
        Err(error) => Err(("unsupported", format!("{why}; {}", explain(&error)))),
    }
}
