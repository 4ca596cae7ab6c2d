//! Reads rows out of pages of a damaged ledger: bytes in, values out. The format is SQLite's, which never changes; a
//! row counts only when it looks like one of ours in every column.

use rusqlite::types::Value;

/// Type byte of a page that holds rows of a table.
const TABLE_LEAF: u8 = 0x0d;
/// Type bytes of the other trees' pages.
const OTHER_TREES: [u8; 3] = [0x02, 0x05, 0x0a];
/// No order is larger: the body's limit, sealed, and what surrounds it.
const MAX_PAYLOAD: usize = 512 * 1024;

/// A row as it was found.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    /// Its place in the table.
    pub(super) rowid: i64,
    /// Its columns, as far as they could be read.
    pub(super) values: Vec<Value>,
    /// Part of it is missing or beyond the damage.
    pub(super) cut: bool,
}

/// Every row that can be made out on a page. `continued` reads the page on which a long row goes on.
pub(super) fn rows(
    page: &[u8],
    first_page: bool,
    usable: usize,
    continued: &mut dyn FnMut(u32) -> Option<Vec<u8>>,
) -> Vec<Found> {
    let page = page.get(..usable).unwrap_or(page);
    let header = if first_page { 100 } else { 0 };
    let kind = page.get(header).copied().unwrap_or(0);
    if OTHER_TREES.contains(&kind) {
        return Vec::new();
    }
    let cells = big_endian(page, header + 3, 2);
    let believable = kind == TABLE_LEAF && cells > 0 && header + 8 + 2 * cells <= usable;
    // Without a header to believe, a row may begin anywhere.
    let places: Vec<usize> = if believable {
        (0..cells).map(|cell| big_endian(page, header + 8 + 2 * cell, 2)).collect()
    } else {
        (header..page.len()).collect()
    };
    places.into_iter().filter_map(|at| row(page, at, usable, continued)).collect()
}

fn big_endian(bytes: &[u8], at: usize, length: usize) -> usize {
    bytes.get(at..at + length).unwrap_or(&[]).iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<i64> {
    let mut number: u64 = 0;
    for index in 0..9 {
        let byte = *bytes.get(*at)?;
        *at += 1;
        if index == 8 {
            return Some((number << 8 | u64::from(byte)).cast_signed());
        }
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            break;
        }
    }
    Some(number.cast_signed())
}

fn row(
    page: &[u8],
    at: usize,
    usable: usize,
    continued: &mut dyn FnMut(u32) -> Option<Vec<u8>>,
) -> Option<Found> {
    let mut at = at;
    let length =
        usize::try_from(varint(page, &mut at)?).ok().filter(|length| (8..=MAX_PAYLOAD).contains(length))?;
    let rowid = varint(page, &mut at).filter(|rowid| *rowid > 0)?;
    let here = local(length, usable);
    let mut payload = page.get(at..at + here)?.to_vec();
    // Before a long row is followed, what is here must look like a row of ours.
    let types = types(&payload)?;
    if here < length {
        let mut next = u32::try_from(big_endian(page, at + here, 4)).ok()?;
        while payload.len() < length && next != 0 {
            let Some(more) = continued(next) else { break };
            next = u32::try_from(big_endian(&more, 0, 4)).ok()?;
            let rest = (length - payload.len()).min(usable.saturating_sub(4));
            payload.extend_from_slice(more.get(4..4 + rest)?);
        }
    }
    let (values, cut) = values(&payload, types);
    Some(Found { rowid, values, cut })
}

/// How much of a row stands on its own page.
const fn local(length: usize, usable: usize) -> usize {
    let most = usable - 35;
    if length <= most {
        return length;
    }
    let least = (usable - 12) * 32 / 255 - 23;
    let wanted = least + (length - least) % (usable - 4);
    if wanted <= most { wanted } else { least }
}

/// The types of the columns and where their values begin.
fn types(payload: &[u8]) -> Option<(Vec<i64>, usize)> {
    let mut at = 0;
    let end = usize::try_from(varint(payload, &mut at)?).ok().filter(|end| (3..=200).contains(end))?;
    let mut types = Vec::new();
    while at < end {
        types.push(varint(payload, &mut at).filter(|kind| *kind >= 0 && *kind != 10 && *kind != 11)?);
    }
    (at == end && looks_like_ours(&types)).then_some((types, end))
}

/// Orders begin with id, key and digest; what operators did with two numbers and three texts; the last place given is
/// kept beside the word `orders`.
fn looks_like_ours(types: &[i64]) -> bool {
    let text = |index: usize| types.get(index).is_some_and(|kind| *kind >= 13 && kind % 2 == 1);
    let whole = |index: usize| types.get(index).is_some_and(|kind| matches!(kind, 1..=6 | 8 | 9));
    let order =
        types.len() >= 21 && types[0] == 0 && text(1) && text(2) && types[5] == 12 + 2 * 32 && text(6);
    let audit = types.len() == 5 && whole(0) && whole(1) && text(2) && text(3) && text(4);
    let last_place = types.len() == 2 && types[0] == 13 + 2 * 6 && whole(1);
    order || audit || last_place
}

/// The values, and whether the row ends before the last of them.
fn values(payload: &[u8], (types, mut at): (Vec<i64>, usize)) -> (Vec<Value>, bool) {
    let mut cut = false;
    let mut values = Vec::with_capacity(types.len());
    for kind in types {
        let length = match kind {
            0 | 8 | 9 => 0,
            1..=4 => usize::try_from(kind).unwrap_or(0),
            5 => 6,
            6 | 7 => 8,
            _ => usize::try_from((kind - 12) / 2).unwrap_or(usize::MAX),
        };
        let bytes = at.checked_add(length).and_then(|end| payload.get(at..end));
        let Some(bytes) = bytes else {
            cut = true;
            // What is left of a body is kept.
            let rest = payload.get(at..).filter(|_| kind >= 12 && kind % 2 == 0).unwrap_or(&[]);
            values.push(if rest.is_empty() { Value::Null } else { Value::Blob(rest.to_vec()) });
            at = payload.len().saturating_add(1);
            continue;
        };
        at += length;
        values.push(match kind {
            0 => Value::Null,
            8 | 9 => Value::Integer(kind - 8),
            1..=6 => Value::Integer(signed(bytes)),
            7 => Value::Null,
            kind if kind % 2 == 0 => Value::Blob(bytes.to_vec()),
            _ => Value::Text(String::from_utf8_lossy(bytes).into_owned()),
        });
    }
    (values, cut)
}

fn signed(bytes: &[u8]) -> i64 {
    let first = bytes.first().map_or(0, |byte| i64::from(byte.cast_signed()));
    bytes.iter().skip(1).fold(first, |number, byte| number << 8 | i64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_sqlite_writes_them() {
        assert_eq!(signed(&[0xff]), -1);
        assert_eq!(signed(&[0x01, 0x00]), 256);
        let mut at = 0;
        assert_eq!(varint(&[0x81, 0x00], &mut at), Some(128));
        assert_eq!(at, 2);
        assert_eq!(varint(&[0xff; 3], &mut 0), None);
    }

    proptest::proptest! {
        #[test]
        fn no_page_makes_it_panic(mut page in proptest::collection::vec(proptest::num::u8::ANY, 512), leaf: bool) {
            if leaf {
                page[0] = TABLE_LEAF;
            }
            let _ = rows(&page, false, 512, &mut |_| Some(vec![7; 512]));
            let _ = rows(&page, true, 512, &mut |_| None);
        }
    }
}
