//! Opens what is left after a power cut with the product's own code and holds it against what had been promised.

use crate::image::Image;
use crate::model::{Known, Model, Stand};
use crate::till;
use fastrand::Rng;
use samovar_agent::orders::ledger::{Accepted, Backlog, Group, Ledger, Record, State};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::time::Duration;

/// What is wrong with one image.
#[derive(Debug, Default)]
pub(crate) struct Finding {
    /// Acknowledged orders that are gone, or stand where they must not.
    pub(crate) lost: usize,
    /// In words.
    pub(crate) wrong: Vec<String>,
}

impl Finding {
    fn wrong(&mut self, what: impl Into<String>) {
        self.wrong.push(what.into());
    }

    fn lost(&mut self, what: impl Into<String>) {
        self.lost += 1;
        self.wrong.push(what.into());
    }
}

/// Writes an image to a directory.
pub(crate) fn write(image: &Image, directory: &Path) {
    for (name, content) in image {
        std::fs::write(directory.join(name), content).expect("a file of the image");
    }
}

/// Examines an image as it was at `cut`.
pub(crate) async fn examine(image: &Image, model: &Model, cut: usize, rng: &mut Rng) -> Finding {
    let directory = till::directory();
    write(image, directory.path());
    let mut finding = Finding::default();
    match till::open(directory.path()) {
        Ok(ledger) => {
            examine_open(&ledger, model, cut, rng, &mut finding).await;
            drop(ledger);
            if let Err(problem) = integrity(directory.path()) {
                finding.wrong(format!("integrity_check: {problem}"));
            }
        }
        Err(error) => {
            finding.lost = model.orders.iter().filter(|known| known.acknowledged(cut)).count();
            finding.wrong(format!("it does not open: {error:?}"));
        }
    }
    finding
}

/// Examines a ledger that is open.
pub(crate) async fn examine_open(
    ledger: &Ledger,
    model: &Model,
    cut: usize,
    rng: &mut Rng,
    finding: &mut Finding,
) {
    let aside = ledger.storage().borrow().set_aside.clone();
    if let (Some(told), true) = (aside, model.opened_at.is_some_and(|opened| opened <= cut)) {
        finding.wrong(format!("the ledger was set aside: {told}"));
    }
    // A cut takes no journal away.
    if let Some(told) = ledger.storage().borrow().doubt.clone() {
        finding.wrong(format!("a doubt was raised: {told}"));
    }
    let backlog = ledger.backlog().borrow().clone();
    let records = match all(ledger).await {
        Ok(records) => records,
        Err(problem) => return finding.lost(format!("it cannot be read: {problem}")),
    };
    let by_id: HashMap<&str, &Record> =
        records.iter().map(|record| (record.receipt.id.as_str(), record)).collect();
    if records.len() != by_id.len() {
        finding.wrong("an order is there twice");
    }
    for known in &model.orders {
        order(known, by_id.get(known.new.id.as_str()).copied(), cut, finding);
    }
    strangers(model, &by_id, cut, finding);
    halves(model, &by_id, finding);
    counts(&backlog, &records, finding);
    bodies(ledger, model, &by_id, rng, finding).await;
    goes_on(ledger, model, cut, rng, finding).await;
}

async fn all(ledger: &Ledger) -> Result<Vec<Record>, String> {
    let (mut records, mut after) = (Vec::new(), 0);
    loop {
        let page = ledger.page(None, after, 200).await.map_err(|error| error.to_string())?;
        let Some(last) = page.last() else { return Ok(records) };
        after = last.receipt.seq;
        records.extend(page);
    }
}

/// One order: there if it was acknowledged, the same content, standing where it may.
fn order(known: &Known, record: Option<&Record>, cut: usize, finding: &mut Finding) {
    let key = &known.new.order.key;
    let promised = known.acknowledged(cut);
    let Some(record) = record else {
        if promised {
            finding.lost(format!("{key} was acknowledged and is gone"));
        }
        return;
    };
    if record.sha256 != known.new.order.sha256 || record.key != *key {
        finding.lost(format!("{key} has other content"));
    }
    if promised && known.seq.is_some_and(|seq| seq != record.receipt.seq) {
        finding.wrong(format!("{key} has another place than was told"));
    }
    let (stand, allowed) = (Stand::of(record), known.allowed(cut));
    if !allowed.contains(&stand) {
        finding.lost(format!("{key} stands at {stand:?}, allowed are {allowed:?}"));
    }
}

fn strangers(model: &Model, found: &HashMap<&str, &Record>, cut: usize, finding: &mut Finding) {
    let issued: BTreeSet<&str> =
        model.orders.iter().filter(|known| known.issued(cut)).map(|known| known.new.id.as_str()).collect();
    for id in found.keys().filter(|id| !issued.contains(**id)) {
        finding.wrong(format!("{id} was never handed in"));
    }
}

/// The orders of one request come together or not at all.
fn halves(model: &Model, found: &HashMap<&str, &Record>, finding: &mut Finding) {
    let mut requests: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
    for known in &model.orders {
        let (there, all) = requests.entry(known.request).or_default();
        *there += usize::from(found.contains_key(known.new.id.as_str()));
        *all += 1;
    }
    for (request, (there, all)) in requests.into_iter().filter(|(_, (there, all))| *there > 0 && there < all)
    {
        finding.wrong(format!("request {request} came in by half: {there} of {all} orders"));
    }
}

/// The published counts are those of the rows.
fn counts(backlog: &Backlog, records: &[Record], finding: &mut Finding) {
    let mut states = [0; 5];
    let mut whys: BTreeMap<(u8, String), u64> = BTreeMap::new();
    let mut groups: BTreeMap<Group, u64> = BTreeMap::new();
    for record in records {
        let state = record.receipt.state;
        states[state as usize] += 1;
        if let (State::Held | State::Quarantined, Some(why)) = (state, &record.why) {
            *whys.entry((state as u8, why.clone())).or_default() += 1;
        }
        if state == State::Pending {
            let group = Group { origin: record.origin.clone(), udl: record.udl.clone() };
            *groups.entry(group).or_default() += 1;
        }
    }
    let published: BTreeMap<Group, u64> =
        backlog.groups.iter().map(|(group, waiting)| (group.clone(), waiting.orders)).collect();
    if (backlog.states, &backlog.whys, &published) != (states, &whys, &groups) {
        finding.wrong(format!("counted {:?}, there are {states:?}", backlog.states));
    }
}

/// The bodies of some orders, byte for byte.
async fn bodies(
    ledger: &Ledger,
    model: &Model,
    found: &HashMap<&str, &Record>,
    rng: &mut Rng,
    finding: &mut Finding,
) {
    let there = model.orders.iter().filter(|known| found.contains_key(known.new.id.as_str()));
    for known in rng.choose_multiple(there, 12) {
        match ledger.record(&known.new.id).await {
            Ok(Some(record)) if record.body.as_ref() == Some(&known.new.order.body) => {}
            other => {
                finding.lost(format!("{} has another body: {:?}", known.new.order.key, other.map(|_| ())));
            }
        }
    }
}

/// The ledger takes orders, gives none of the places that were told to anybody again, and knows its keys.
async fn goes_on(ledger: &Ledger, model: &Model, cut: usize, rng: &mut Rng, finding: &mut Finding) {
    let promised: Vec<_> = model.orders.iter().filter(|known| known.acknowledged(cut)).collect();
    let highest = promised.iter().filter_map(|known| known.seq).max().unwrap_or(0);
    let probe = till::order("after-the-cut", "first", None, rng);
    match ledger.accept(vec![probe]).await.map(|mut accepted| accepted.remove(0)) {
        Ok(Accepted::New(receipt)) if receipt.seq > highest => {}
        other => finding.wrong(format!("a new order after place {highest}: {other:?}")),
    }
    let repeated = rng.choice(&promised);
    let Some(known) = repeated else { return };
    let mut again = known.new.clone();
    again.id = format!("{:032x}", rng.u128(..));
    let same = |id: &str| id == known.new.id;
    match ledger.accept(vec![again]).await.map(|mut accepted| accepted.remove(0)) {
        Ok(Accepted::Replay(receipt)) if same(&receipt.id) => {}
        Ok(Accepted::KeyReused { kept, repeated: true, .. }) if same(&kept.id) => {}
        other => finding.lost(format!("{} handed in again: {other:?}", known.new.order.key)),
    }
}

/// SQLite's own check, by a connection of its own once the ledger is closed.
fn integrity(directory: &Path) -> Result<(), String> {
    let check = || -> rusqlite::Result<String> {
        let connection = rusqlite::Connection::open(directory.join("orders.db"))?;
        connection.busy_timeout(Duration::ZERO)?;
        connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))
    };
    let started = samovar_tests::clock::now();
    loop {
        match check() {
            Ok(answer) if answer == "ok" => return Ok(()),
            Ok(answer) => return Err(answer),
            // The ledger's thread is still closing it.
            Err(_) if started.elapsed() < till::DEADLINE => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(error.to_string()),
        }
    }
}
