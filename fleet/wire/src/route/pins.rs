//! Pins with an index by ID, built once when a table is read: a table may pin ten thousand IDs, and every request asks
//! for three.

use super::table::Pin;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::ops::Deref;

/// The pins of a table, in listed order. Read as a slice; found by ID with [`Pins::of`].
#[derive(Debug, Clone, Default)]
pub struct Pins {
    listed: Vec<Pin>,
    /// Pin and ID within it, sorted by the text of the ID, then in listed order. Positions instead of copies: the texts
    /// are there once.
    by_id: Vec<(u32, u32)>,
}

impl Pins {
    /// The pins that name an ID such as `store:US-0001`, in listed order.
    pub fn of<'a>(&'a self, id: &'a str) -> impl Iterator<Item = &'a Pin> {
        let start = self.by_id.partition_point(|at| self.text(*at) < id);
        self.by_id[start..]
            .iter()
            .take_while(move |at| self.text(**at) == id)
            .filter_map(|(pin, _)| self.listed.get(usize::try_from(*pin).ok()?))
    }

    fn text(&self, (pin, id): (u32, u32)) -> &str {
        let at = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        self.listed.get(at(pin)).and_then(|pin| pin.ids.get(at(id))).map_or("", String::as_str)
    }
}

impl From<Vec<Pin>> for Pins {
    fn from(listed: Vec<Pin>) -> Self {
        let mut pins = Self { listed, by_id: Vec::new() };
        // A table is at most 1 MiB: its pins can be counted in 32 bits.
        let mut by_id: Vec<(u32, u32)> = (0_u32..)
            .zip(&pins.listed)
            .flat_map(|(number, pin)| (0_u32..).zip(&pin.ids).map(move |(id, _)| (number, id)))
            .collect();
        by_id.sort_by(|one, other| pins.text(*one).cmp(pins.text(*other)).then(one.cmp(other)));
        // An ID that one pin names twice is named once.
        by_id.dedup_by(|next, kept| next.0 == kept.0 && pins.text(*next) == pins.text(*kept));
        pins.by_id = by_id;
        pins
    }
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
