//! Cuts the power at every operation of a log and examines what each fate leaves.

use crate::cycle::{Act, Cycle};
use crate::disk::{Disk, Op};
use crate::image::{Fate, Image, Playback};
use crate::model::Model;
use crate::{oracle, till};
use fastrand::Rng;
use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::sync::Arc;
use tokio::task::JoinSet;

/// Images that are examined at once.
const AT_ONCE: usize = 4;
/// Failures that are told in full.
const TOLD: usize = 40;

/// The seed of this run: `SAMOVAR_SEED`, else always the same.
pub(crate) fn seed() -> u64 {
    let seed = std::env::var("SAMOVAR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_120);
    println!("SAMOVAR_SEED={seed}");
    seed
}

/// How many images are wanted by hand: `SAMOVAR_POWER_IMAGES`.
pub(crate) fn soak() -> Option<usize> {
    std::env::var("SAMOVAR_POWER_IMAGES").ok().and_then(|images| images.parse().ok())
}

/// What was recorded of a life.
pub(crate) struct Recording {
    pub(crate) log: Vec<Op>,
    pub(crate) model: Arc<Model>,
    /// Files that the product keeps beside the ledger and writes without SQLite.
    pub(crate) beside: Image,
}

/// Lives a life on a disk that does not fail.
pub(crate) async fn record(acts: &[Act], powersafe: bool, rng: Rng) -> Recording {
    let directory = till::directory();
    let disk = Disk::watch(directory.path(), powersafe);
    let mut cycle = Cycle::on(disk, directory.path().to_owned(), rng);
    cycle.open().await.expect("a ledger that opens");
    for act in acts {
        cycle.act(*act).await.expect("a ledger that opens again");
    }
    assert!(cycle.errors.is_empty(), "on a good disk nothing fails: {:?}", cycle.errors);
    let recording = recorded(&cycle, directory.path());
    // The harness knows what it expects: the living ledger says the same.
    let mut finding = oracle::Finding::default();
    oracle::examine_open(&cycle.ledger(), &cycle.model, usize::MAX, &mut Rng::with_seed(1), &mut finding)
        .await;
    assert!(finding.wrong.is_empty(), "without any cut: {:#?}", finding.wrong);
    recording
}

/// What was recorded so far.
pub(crate) fn recorded(cycle: &Cycle, directory: &Path) -> Recording {
    Recording { log: cycle.disk.log(), model: Arc::new(cycle.model.clone()), beside: beside(directory) }
}

pub(crate) fn beside(directory: &Path) -> Image {
    let entries = std::fs::read_dir(directory).expect("a directory").filter_map(Result::ok);
    entries
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, std::fs::read(entry.path()).ok()?)))
        .filter(|(name, _)| !name.starts_with("orders.db"))
        .collect()
}

/// Which cuts.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) fates: Vec<Fate>,
    /// The disk says that it flushed and did not.
    pub(crate) lies: bool,
    /// How often the fates that are chance are tried at one place.
    pub(crate) times: usize,
    /// Of the fates that are chance, only one at each place.
    pub(crate) sparing: bool,
    /// Of the places, one in so many.
    pub(crate) one_in: usize,
    /// Only cuts from this place on.
    pub(crate) from: usize,
    /// Only cuts at these places, if any are named.
    pub(crate) only: Option<HashSet<usize>>,
}

impl Plan {
    pub(crate) fn of(fates: &[Fate]) -> Self {
        Self { fates: fates.to_vec(), lies: false, times: 1, sparing: false, one_in: 1, from: 0, only: None }
    }

    /// Every fate at every place by hand, a sample after every change.
    pub(crate) fn everything() -> Self {
        let quick = soak().is_none();
        Self { sparing: quick, one_in: if quick { 4 } else { 1 }, ..Self::of(&Fate::ALL) }
    }

    /// The fates at one place.
    pub(crate) fn draw(&self, rng: &mut Rng) -> Vec<Fate> {
        let (mut drawn, chance): (Vec<_>, Vec<_>) =
            self.fates.iter().partition(|fate| matches!(fate, Fate::Kept | Fate::Lost));
        if self.sparing {
            drawn.extend(rng.choice(&chance));
        } else {
            chance.into_iter().for_each(|fate| drawn.extend(std::iter::repeat_n(fate, self.times)));
        }
        drawn
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) cuts: usize,
    /// Images made, and those that differed from all before.
    pub(crate) images: usize,
    pub(crate) distinct: usize,
    /// Images that lack something acknowledged, and what they lack together and at most.
    pub(crate) losing: usize,
    pub(crate) lost: usize,
    pub(crate) most: usize,
    /// Images with anything wrong.
    pub(crate) wrong: usize,
    pub(crate) told: Vec<String>,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.cuts += other.cuts;
        self.images += other.images;
        self.distinct += other.distinct;
        self.losing += other.losing;
        self.lost += other.lost;
        self.most = self.most.max(other.most);
        self.wrong += other.wrong;
        self.told.extend(other.told);
        self.told.truncate(TOLD);
    }

    pub(crate) fn note(&mut self, place: &str, finding: oracle::Finding) {
        self.losing += usize::from(finding.lost > 0);
        self.lost += finding.lost;
        self.most = self.most.max(finding.lost);
        if !finding.wrong.is_empty() {
            self.wrong += 1;
            if self.told.len() < TOLD {
                let mut what = finding.wrong;
                what.truncate(4);
                self.told.push(format!("{place}: {}", what.join("; ")));
            }
        }
    }

    /// Fails when anything was wrong.
    pub(crate) fn must_be_clean(&self) {
        println!("{self}");
        let told = &self.told[..self.told.len().min(5)];
        assert_eq!(self.wrong, 0, "{self}\n{}", told.join("\n"));
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cuts, images, distinct, losing, lost, most, wrong, .. } = self;
        write!(
            f,
            "{cuts} cuts, {images} images, {distinct} of them different and examined; {wrong} with something wrong, \
             {losing} lacking acknowledged orders: {lost} in all, {most} at most in one"
        )
    }
}

/// Cuts everywhere that the plan says.
pub(crate) async fn sweep(recording: &Recording, plan: &Plan, rng: &mut Rng) -> Tally {
    let mut tally = Tally::default();
    let mut disk = Playback::new(plan.lies, rng);
    let mut seen = HashSet::new();
    let mut examined: JoinSet<(String, oracle::Finding)> = JoinSet::new();
    for (index, op) in recording.log.iter().enumerate() {
        disk.apply(op, rng);
        let cut = index + 1;
        let named = plan.only.as_ref().is_none_or(|only| only.contains(&cut));
        if cut < plan.from || !named || rng.usize(0..plan.one_in) > 0 {
            continue;
        }
        tally.cuts += 1;
        for fate in plan.draw(rng) {
            tally.images += 1;
            let image = complete(disk.cut(fate, rng), recording, cut, rng);
            if !seen.insert(fingerprint(&image, &recording.model, cut)) {
                continue;
            }
            tally.distinct += 1;
            if examined.len() >= AT_ONCE
                && let Some(Ok((place, finding))) = examined.join_next().await
            {
                tally.note(&place, finding);
            }
            let (model, seed) = (Arc::clone(&recording.model), rng.u64(..));
            let place = format!("cut after operation {cut} ({}), {fate:?}", short(op));
            examined.spawn(async move {
                (place, oracle::examine(&image, &model, cut, &mut Rng::with_seed(seed)).await)
            });
        }
    }
    while let Some(ended) = examined.join_next().await {
        let (place, finding) = ended.expect("an examination that ends");
        tally.note(&place, finding);
    }
    tally
}

/// The image with the files beside the ledger. Before it was open for the first time they may be missing.
pub(crate) fn complete(mut image: Image, recording: &Recording, cut: usize, rng: &mut Rng) -> Image {
    let surely = recording.model.opened_at.is_some_and(|opened| opened <= cut);
    for (name, content) in &recording.beside {
        if surely || rng.bool() {
            image.insert(name.clone(), content.clone());
        }
    }
    image
}

/// Two cuts that leave the same files while the same was promised are one.
fn fingerprint(image: &Image, model: &Model, cut: usize) -> u64 {
    let mut hasher = DefaultHasher::new();
    image.hash(&mut hasher);
    for known in &model.orders {
        (known.acknowledged(cut), known.issued(cut), known.allowed(cut).len()).hash(&mut hasher);
    }
    hasher.finish()
}

fn short(op: &Op) -> String {
    match op {
        Op::Found { name, .. } => format!("found {name}"),
        Op::Created { inode, name } => format!("created {inode} as {name}"),
        Op::Wrote { inode, at, bytes } => format!("wrote {} bytes at {at} of {inode}", bytes.len()),
        Op::Truncated { inode, size } => format!("truncated {inode} to {size}"),
        Op::Synced { inode, good } => format!("sync of {inode}, {}", if *good { "good" } else { "failed" }),
        Op::Deleted { name, .. } => format!("deleted {name}"),
        Op::DirectorySynced => "synced the directory".into(),
    }
}
