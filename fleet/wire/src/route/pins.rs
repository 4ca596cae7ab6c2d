//! Pins with an index by ID, built once when a table is read: a table may pin ten thousand IDs, and every request asks
//! for three.

use super::table::Pin;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::hash::{DefaultHasher, Hasher};
use std::ops::Deref;

/// The pins of a table, in listed order. Read as a slice; found by ID with [`Pins::of`].
#[derive(Debug, Clone, Default)]
pub struct Pins {
    listed: Vec<Pin>,
    /// Hash of an ID, pin, and ID within it; sorted. Positions instead of copies: the texts are there once.
    by_id: Vec<(u64, u32, u32)>,
}

impl Pins {
    /// The pins that name an ID such as `store:US-0001`, in listed order.
    pub fn of<'a>(&'a self, id: &str) -> impl Iterator<Item = &'a Pin> {
        let wanted = hash(id);
        let start = self.by_id.partition_point(|(found, ..)| *found < wanted);
        self.by_id[start..]
            .iter()
            .take_while(move |(found, ..)| *found == wanted)
            .filter(move |(_, pin, at)| self.text(*pin, *at) == id)
            .filter_map(|(_, pin, _)| self.listed.get(usize::try_from(*pin).ok()?))
    }

    fn text(&self, pin: u32, id: u32) -> &str {
        let at = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        self.listed.get(at(pin)).and_then(|pin| pin.ids.get(at(id))).map_or("", String::as_str)
    }
}

impl From<Vec<Pin>> for Pins {
    fn from(listed: Vec<Pin>) -> Self {
        // A table is at most 1 MiB: its pins can be counted in 32 bits.
        let mut by_id: Vec<(u64, u32, u32)> = (0_u32..)
            .zip(&listed)
            .flat_map(|(number, pin)| (0_u32..).zip(&pin.ids).map(move |(at, id)| (hash(id), number, at)))
            .collect();
        by_id.sort_unstable();
        let mut pins = Self { listed, by_id: Vec::new() };
        // An ID that one pin names twice is named once.
        by_id.dedup_by(|next, kept| {
            (next.0, next.1) == (kept.0, kept.1) && pins.text(next.1, next.2) == pins.text(kept.1, kept.2)
        });
        pins.by_id = by_id;
        pins
    }
}

/// The same for equal texts within one run of the program; who is found is decided by the text.
fn hash(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(id.as_bytes());
    hasher.finish()
}

impl Deref for Pins {
    type Target = [Pin];

    fn deref(&self) -> &[Pin] {
        &self.listed
    }
}

impl PartialEq for Pins {
    fn eq(&self, other: &Self) -> bool {
        self.listed == other.listed
    }
}

impl Eq for Pins {}

impl Serialize for Pins {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.listed.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Pins {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(ids: &[String], reason: usize) -> Pin {
        Pin {
            ids: ids.to_vec(),
            services: vec!["*".to_owned()],
            origin: "apac".parse().unwrap(),
            until: None,
            reason: reason.to_string(),
        }
    }

    proptest::proptest! {
        #[test]
        fn the_index_finds_what_a_search_through_the_list_finds_in_the_same_order(
            lists in proptest::collection::vec(proptest::collection::vec("(store|device|user):[a-c]{1,2}", 0..6), 0..12),
            wanted in "(store|device|user):[a-c]{1,2}",
        ) {
            let pins = Pins::from(lists.iter().enumerate().map(|(n, ids)| pin(ids, n)).collect::<Vec<_>>());
            let searched: Vec<&Pin> = pins.iter().filter(|pin| pin.ids.contains(&wanted)).collect();
            proptest::prop_assert_eq!(pins.of(&wanted).collect::<Vec<_>>(), searched);
            let text = serde_json::to_string(&pins).unwrap();
            proptest::prop_assert_eq!(serde_json::from_str::<Pins>(&text).unwrap(), pins);
        }
    }
}
