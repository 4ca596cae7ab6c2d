//! Answers that are kept on the disk, one file each (IO).
//!
//! A file is the digest of the rest in one line, what is known of the answer as JSON in the next, then the body as it
//! came. A file that is not what its first line says, or not the answer it is asked for, is removed and never served.
//! All calls wait for the disk. What is kept is only a copy: an error here costs the copy and is logged.

use super::policy::{Key, Vary};
use crate::clock::wall;
use crate::store;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use samovar_wire::Timestamp;
use samovar_wire::encoding::{hex, sha256};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The largest body that is kept.
pub(super) const BODY_MAX: usize = 4 * 1024 * 1024;
/// Beyond a body: digest, headers, names.
const FILE_MAX: u64 = BODY_MAX as u64 + 128 * 1024;
/// An answer that is the same as the kept one is not written again before this time: disks of tills wear out.
const SAME_AGAIN: Duration = Duration::from_secs(600);
/// Ending of the files' names.
const ENDING: &str = ".kept";

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) bytes: u64,
    pub(super) answers: usize,
}

/// A kept answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    /// As the till gets them, without `Age`.
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// When the origin last gave it or said that it still holds.
    pub(super) good_at: Timestamp,
}

impl Kept {
    /// The version, if the origin names it.
    pub(super) fn etag(&self) -> Option<&str> {
        self.headers.get(header::ETAG)?.to_str().ok()
    }
}

/// The second line of a file.
#[derive(Serialize, Deserialize)]
struct Label {
    service: String,
    udl: String,
    target: String,
    good_at: Timestamp,
    headers: Vec<(String, String)>,
}

/// The shelf.
pub(super) struct Shelf {
    directory: PathBuf,
    limits: Limits,
    index: Mutex<Index>,
    /// Held while a file is written: two writers would share its temporary name.
    writing: Mutex<()>,
}

/// What lies there.
#[derive(Default)]
struct Index {
    files: BTreeMap<String, Place>,
    bytes: u64,
    uses: u64,
}

#[derive(Clone, Copy)]
struct Place {
    bytes: u64,
    /// Grows with each use: the least goes first.
    used: u64,
    /// When the origin last confirmed it, if later than the file says.
    good_at: Option<Timestamp>,
}

impl Index {
    fn used(&mut self, name: &str) -> Option<Place> {
        self.uses += 1;
        let place = self.files.get_mut(name)?;
        place.used = self.uses;
        Some(*place)
    }

    fn insert(&mut self, name: String, bytes: u64) {
        self.uses += 1;
        let place = Place { bytes, used: self.uses, good_at: None };
        self.bytes += bytes;
        if let Some(before) = self.files.insert(name, place) {
            self.bytes -= before.bytes;
        }
    }

    fn remove(&mut self, name: &str) -> bool {
        let removed = self.files.remove(name);
        self.bytes -= removed.map_or(0, |place| place.bytes);
        removed.is_some()
    }

    /// The next to go while there is more than `limits` allow.
    fn too_much(&self, limits: Limits) -> Option<String> {
        let full = self.bytes > limits.bytes || self.files.len() > limits.answers;
        let oldest = self.files.iter().min_by_key(|(_, place)| place.used).filter(|_| full);
        oldest.map(|(name, _)| name.clone())
    }
}

impl Shelf {
    /// The shelf in a directory, with what lies there already, in the order in which it was written.
    pub(super) fn open(directory: PathBuf, limits: Limits) -> Self {
        let mut files: Vec<_> = std::fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let facts = entry.metadata().ok().filter(std::fs::Metadata::is_file)?;
                match name.strip_suffix(ENDING) {
                    Some(name) => Some((facts.modified().ok()?, name.to_owned(), facts.len())),
                    // What a power cut left of a file that was being written.
                    None => store::remove(&entry.path()).ok().and(None),
                }
            })
            .collect();
        files.sort();
        let mut index = Index::default();
        for (_, name, bytes) in files {
            index.insert(name, bytes);
        }
        let shelf = Self { directory, limits, index: Mutex::new(index), writing: Mutex::default() };
        shelf.make_room();
        shelf
    }

    /// What is kept for a request.
    pub(super) fn find(&self, key: &Key) -> Option<Kept> {
        Vary::ALL.iter().find_map(|vary| {
            let name = key.name(*vary);
            let place = self.index().used(&name)?;
            match self.read(&name, key) {
                Ok(kept) => Some(Kept { good_at: place.good_at.unwrap_or(kept.good_at), ..kept }),
                Err(why) => {
                    tracing::warn!(
                        service = key.service,
                        target = key.target,
                        why,
                        "a kept answer is dropped"
                    );
                    self.drop_file(&name);
                    None
                }
            }
        })
    }

    /// Keeps an answer in place of what was kept for the request before.
    pub(super) fn keep(&self, key: &Key, vary: Vary, kept: &Kept) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let name = key.name(vary);
        for other in Vary::ALL.iter().filter(|other| **other != vary) {
            self.drop_file(&key.name(*other));
        }
        if self.is_there_already(&name, key, kept) {
            return;
        }
        let content = content(key, kept);
        let bytes = content.len() as u64;
        if bytes > FILE_MAX || bytes > self.limits.bytes {
            self.drop_file(&name);
            return;
        }
        let path = self.path(&name);
        let written = store::make_dir(&self.directory).and_then(|()| store::replace(&path, &content, 0o600));
        match written {
            Ok(()) => {
                self.index().insert(name, bytes);
                self.make_room();
            }
            Err(error) => tracing::warn!(error = crate::net::explain(&error), "an answer could not be kept"),
        }
    }

    /// Removes what is kept for a request.
    pub(super) fn forget(&self, key: &Key) {
        for vary in &Vary::ALL {
            self.drop_file(&key.name(*vary));
        }
    }

    /// Whether the same answer lies there and was written not long ago; it is then only noted that it still holds.
    fn is_there_already(&self, name: &str, key: &Key, kept: &Kept) -> bool {
        if !self.index().files.contains_key(name) {
            return false;
        }
        let Ok(before) = self.read(name, key) else { return false };
        let same = before.body == kept.body && same_headers(&before.headers, &kept.headers);
        let recent = kept.good_at >= before.good_at && kept.good_at.since(before.good_at) < SAME_AGAIN;
        if same
            && recent
            && let Some(place) = self.index().files.get_mut(name)
        {
            place.good_at = Some(kept.good_at);
        }
        same && recent
    }

    fn read(&self, name: &str, key: &Key) -> Result<Kept, &'static str> {
        let path = self.path(name);
        let length = std::fs::metadata(&path).map_err(|_| "it is gone")?.len();
        if length > FILE_MAX {
            return Err("it is longer than anything that is kept");
        }
        let content = store::read(&path).ok().flatten().ok_or("it cannot be read")?;
        let (digest, rest) = line(&content).ok_or("it has no digest")?;
        if digest != hex(&sha256(rest)).as_bytes() {
            return Err("it is damaged");
        }
        let (label, body) = line(rest).ok_or("it has no label")?;
        let label: Label = serde_json::from_slice(label).map_err(|_| "its label cannot be read")?;
        if (&label.service, &label.udl, &label.target) != (&key.service, &key.udl, &key.target) {
            return Err("it is another answer");
        }
        // By a clock that was ahead when it was written, it is as good as new.
        let good_at = label.good_at.min(wall());
        let headers = label.headers.iter().filter_map(|(name, value)| {
            Some((name.parse::<HeaderName>().ok()?, value.parse::<HeaderValue>().ok()?))
        });
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, value);
        }
        Ok(Kept { headers: map, body: Bytes::copy_from_slice(body), good_at })
    }

    fn make_room(&self) {
        loop {
            let next = self.index().too_much(self.limits);
            match next {
                Some(name) => self.drop_file(&name),
                None => return,
            }
        }
    }

    fn drop_file(&self, name: &str) {
        if self.index().remove(name)
            && let Err(error) = store::remove(&self.path(name))
        {
            tracing::warn!(error = crate::net::explain(&error), "a kept answer could not be removed");
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}{ENDING}"))
    }

    fn index(&self) -> std::sync::MutexGuard<'_, Index> {
        // A panic while the index was held cannot leave it half changed.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `Date` is another one in each answer.
fn same_headers(one: &HeaderMap, other: &HeaderMap) -> bool {
    let undated = |headers: &HeaderMap| {
        let mut headers = headers.clone();
        headers.remove(header::DATE);
        headers
    };
    undated(one) == undated(other)
}

fn line(content: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = content.iter().position(|byte| *byte == b'\n')?;
    Some((&content[..end], &content[end + 1..]))
}

fn content(key: &Key, kept: &Kept) -> Vec<u8> {
    let texts = |(name, value): (&HeaderName, &HeaderValue)| {
        Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
    };
    let label = Label {
        service: key.service.clone(),
        udl: key.udl.clone(),
        target: key.target.clone(),
        good_at: kept.good_at,
        headers: kept.headers.iter().filter_map(texts).collect(),
    };
    let mut rest = serde_json::to_vec(&label).unwrap_or_default();
    rest.push(b'\n');
    rest.extend_from_slice(&kept.body);
    let mut content = hex(&sha256(&rest)).into_bytes();
    content.push(b'\n');
    content.extend_from_slice(&rest);
    content
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    fn key(target: &str) -> Key {
        Key {
            service: "menu".into(),
            udl: "US".into(),
            target: target.into(),
            accept: "*/*".into(),
            language: "en".into(),
        }
    }

    fn kept(body: &str) -> Kept {
        let mut headers = HeaderMap::new();
        headers.insert(header::ETAG, HeaderValue::from_static("\"1\""));
        Kept { headers, body: Bytes::copy_from_slice(body.as_bytes()), good_at: wall() }
    }

    fn shelf(directory: &std::path::Path, bytes: u64, answers: usize) -> Shelf {
        Shelf::open(directory.join("gateway"), Limits { bytes, answers })
    }

    fn files(directory: &std::path::Path) -> Vec<(PathBuf, u64)> {
        let entries = std::fs::read_dir(directory.join("gateway")).unwrap().flatten();
        entries.map(|entry| (entry.path(), entry.metadata().unwrap().len())).collect()
    }

    const PLAIN: Vary = Vary::ALL[3];

    #[test]
    fn what_was_kept_is_found_again_after_a_restart_and_what_a_power_cut_left_is_swept_away() {
        let dir = tempfile::tempdir().unwrap();
        let answer = kept("soup\nof the day");
        shelf(dir.path(), 1 << 20, 10).keep(&key("/a"), PLAIN, &answer);
        std::fs::write(dir.path().join("gateway/half.kept.new"), "x").unwrap();
        let again = shelf(dir.path(), 1 << 20, 10);
        assert_eq!(again.find(&key("/a")), Some(answer));
        assert_eq!((again.find(&key("/b")), files(dir.path()).len()), (None, 1));
    }

    #[test]
    fn a_file_of_which_one_byte_is_wrong_is_dropped_wherever_that_byte_is() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = shelf(dir.path(), 1 << 20, 10);
        shelf.keep(&key("/a"), PLAIN, &kept("soup"));
        let (path, length) = files(dir.path()).remove(0);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..usize::try_from(length).unwrap() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x20;
            std::fs::write(&path, &damaged).unwrap();
            shelf.index().insert(key("/a").name(PLAIN), length);
            assert_eq!(shelf.find(&key("/a")), None, "byte {at}");
            assert!(!path.exists(), "byte {at}");
        }
        // The answer to another question is whole, and still not what was asked for.
        std::fs::write(&path, content(&key("/b"), &kept("tea"))).unwrap();
        shelf.index().insert(key("/a").name(PLAIN), length);
        assert_eq!(shelf.find(&key("/a")), None);
    }

    #[test]
    fn neither_bytes_nor_count_grow_beyond_their_limits_and_the_longest_unused_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let limited = shelf(dir.path(), 1 << 20, 3);
        for target in ["/a", "/b", "/c"] {
            limited.keep(&key(target), PLAIN, &kept(target));
        }
        assert!(limited.find(&key("/a")).is_some());
        limited.keep(&key("/d"), PLAIN, &kept("/d"));
        let left = ["/a", "/b", "/c", "/d"].map(|target| limited.find(&key(target)).is_some());
        assert_eq!(left, [true, false, true, true]);
        let one = files(dir.path())[0].1;
        let limited = shelf(dir.path(), 2 * one + 8, 100);
        assert_eq!(files(dir.path()).len(), 2, "what is too much is gone when the shelf is opened");
        for n in 0..50 {
            limited.keep(&key(&format!("/{n:02}")), PLAIN, &kept("/a"));
            assert!(files(dir.path()).iter().map(|(_, bytes)| bytes).sum::<u64>() <= 2 * one + 8);
        }
        assert!(limited.find(&key("/49")).is_some());
        limited.keep(&key("/49"), PLAIN, &kept(&"x".repeat(4_096)));
        assert_eq!(limited.find(&key("/49")), None, "what is larger than the shelf replaces nothing by half");
    }

    #[test]
    fn the_same_answer_is_not_written_again_and_counts_as_good_from_then_on() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = shelf(dir.path(), 1 << 20, 10);
        let first = kept("soup");
        shelf.keep(&key("/a"), PLAIN, &first);
        let (path, _) = files(dir.path()).remove(0);
        let before = std::fs::read(&path).unwrap();
        let later = Kept { good_at: Timestamp::from_millis(first.good_at.millis() + 5_000), ..first.clone() };
        shelf.keep(&key("/a"), PLAIN, &later);
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert_eq!(shelf.find(&key("/a")), Some(later));
        let much_later = Kept { good_at: Timestamp::from_millis(first.good_at.millis() + 700_000), ..first };
        shelf.keep(&key("/a"), PLAIN, &much_later);
        assert_ne!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn an_answer_that_begins_to_vary_replaces_the_one_that_did_not() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = shelf(dir.path(), 1 << 20, 10);
        shelf.keep(&key("/a"), PLAIN, &kept("soup"));
        let mut vary = HeaderMap::new();
        vary.insert(header::VARY, HeaderValue::from_static("accept-language"));
        let vary = super::super::policy::may_keep(StatusCode::OK, &vary).unwrap();
        shelf.keep(&key("/a"), vary, &kept("soup in English"));
        assert_eq!(shelf.find(&key("/a")).unwrap().body, "soup in English");
        let chinese = Key { language: "zh".into(), ..key("/a") };
        assert_eq!(shelf.find(&chinese), None);
        shelf.keep(&chinese, vary, &kept("soup in Chinese"));
        assert_eq!(shelf.find(&key("/a")).unwrap().body, "soup in English");
        shelf.forget(&chinese);
        assert_eq!((shelf.find(&chinese), files(dir.path()).len()), (None, 1));
    }
}
