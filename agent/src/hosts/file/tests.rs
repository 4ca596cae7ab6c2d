use super::*;
use proptest::prelude::*;

fn line(id: u32, name: &str, address: &str, forced: bool) -> Line {
    Line {
        id: format!("{id:08x}"),
        name: name.into(),
        address: address.parse().unwrap(),
        until: Timestamp::from_millis(1_800_000_000_000),
        forced,
    }
}

fn block(generation: u64, lines: Vec<Line>) -> Block {
    Block { generation, lines }
}

fn rendered(old: &[u8], wanted: &Block) -> Vec<u8> {
    render(old, wanted).unwrap().bytes
}

fn cleared(old: &[u8]) -> Vec<u8> {
    rendered(old, &Block::default())
}

fn one() -> Block {
    block(7, vec![line(0x0a1b_2c3d, "us.store.example", "203.0.113.10", false)])
}

#[test]
fn the_block_stands_at_the_end_and_goes_without_a_trace() {
    let old = b"127.0.0.1 localhost\n";
    let new = rendered(old, &one());
    let text = String::from_utf8(new.clone()).unwrap();
    assert!(text.starts_with("127.0.0.1 localhost\n# BEGIN samovar overrides v1 gen=7 nl=- body="), "{text}");
    assert!(
        text.contains("\n203.0.113.10 us.store.example # samovar-override id=0a1b2c3d until=2027-"),
        "{text}"
    );
    assert!(text.ends_with("\n# END samovar overrides\n"), "{text}");
    assert_eq!(rendered(&new, &one()), new, "what is as it should be stays as it is");
    assert_eq!(cleared(&new), old);
    assert!(!render(&new, &one()).unwrap().tampered);
}

#[test]
fn a_last_line_without_an_end_gets_one_only_for_as_long_as_the_block_stands() {
    for old in [&b"127.0.0.1 localhost"[..], b"a\r\nb\r", b"\0", b"x\n\n y"] {
        let new = rendered(old, &one());
        assert_eq!(cleared(&new), old);
        // Another generation renders from the same foreign bytes.
        assert_eq!(cleared(&rendered(&new, &block(8, one().lines))), old);
    }
    assert_eq!(cleared(&rendered(b"", &one())), b"");
}

#[test]
fn what_an_editor_adds_behind_or_before_the_block_stays_in_its_own_line() {
    let mut new = rendered(b"10.0.0.1 a", &one());
    new.extend_from_slice(b"10.0.0.2 b\n");
    assert_eq!(cleared(&new), b"10.0.0.1 a\n10.0.0.2 b\n");
    let new = String::from_utf8(rendered(b"10.0.0.1 a", &one())).unwrap();
    let edited = new.replace("# BEGIN", "10.0.0.2 b\n# BEGIN");
    assert_eq!(cleared(edited.as_bytes()), b"10.0.0.1 a\n10.0.0.2 b\n");
}

#[test]
fn a_foreign_line_for_the_name_is_a_conflict_unless_it_says_the_same() {
    let conflicts = |old: &[u8]| render(old, &one()).unwrap().conflicts.len();
    for old in [
        &b"10.0.0.9 us.store.example\n"[..],
        b"10.0.0.9\tother US.Store.Example # why\r\n",
        b"x\n10.0.0.9 a us.store.example",
        b"\xef\xbb\xbf10.0.0.9 us.store.example\n",
        b"10.0.0.9 a\0us.store.example\n",
        b"not-an-address us.store.example\n",
    ] {
        assert_eq!(conflicts(old), 1, "{}", String::from_utf8_lossy(old));
        assert_eq!(rendered(old, &one()), old, "and then nothing is written");
    }
    for old in [
        &b"# 10.0.0.9 us.store.example\n"[..],
        b"10.0.0.9 a # us.store.example\n",
        b"10.0.0.9 www.us.store.example us.store.example.org\n",
        b"203.0.113.10 us.store.example\n",
        b"us.store.example\n",
    ] {
        assert_eq!(conflicts(old), 0, "{}", String::from_utf8_lossy(old));
    }
}

#[test]
fn a_forced_override_puts_foreign_lines_out_of_the_way_and_gives_them_back() {
    let old = b"\xef\xbb\xbf10.0.0.8 us.store.example\r\n10.0.0.1 a\n10.0.0.9 b us.store.example\0";
    let forced = block(7, vec![line(0x0a1b_2c3d, "us.store.example", "203.0.113.10", true)]);
    let new = rendered(old, &forced);
    let off: Vec<_> = new.split(|b| *b == b'\n').filter(|l| l.starts_with(OFF)).collect();
    assert_eq!(off.len(), 2);
    assert_eq!(rendered(&new, &forced), new);
    assert_eq!(cleared(&new), old);
    // The same override without force: the lines come back and are in the way.
    let back = render(&new, &one()).unwrap();
    assert_eq!((back.bytes.as_slice(), back.conflicts.len()), (&old[..], 1));
}

#[test]
fn torn_and_doubled_markers_lose_nothing_foreign() {
    let whole = String::from_utf8(rendered(b"10.0.0.1 a\n", &one())).unwrap();
    let block = whole.strip_prefix("10.0.0.1 a\n").unwrap();
    let without_end = block.replace("# END samovar overrides\n", "");
    let without_begin = block.split_once('\n').unwrap().1;
    for (old, foreign) in [
        (format!("10.0.0.1 a\n{block}{block}10.0.0.2 b\n"), "10.0.0.1 a\n10.0.0.2 b\n"),
        (format!("10.0.0.1 a\n{without_end}10.0.0.2 b\n"), "10.0.0.1 a\n10.0.0.2 b\n"),
        (format!("{without_end}{block}10.0.0.2 b"), "10.0.0.2 b"),
        (format!("10.0.0.1 a\n{without_begin}"), "10.0.0.1 a\n"),
        (block.replace("203.0.113.10", "192.0.2.66"), ""),
        (block.replace("203.0.113.10", "10.0.0.3 c\n203.0.113.10"), "10.0.0.3 c\n"),
        (block.replace('\n', "\r\n"), ""),
        (block.trim_end().to_owned(), ""),
        ("# END samovar overrides\n".to_owned(), ""),
    ] {
        assert_eq!(String::from_utf8(cleared(old.as_bytes())).unwrap(), foreign, "{old}");
    }
    let tampered = |old: &str| render(old.as_bytes(), &one()).unwrap().tampered;
    assert!(tampered(&block.replace("203.0.113.10", "192.0.2.66")));
    assert!(tampered(&without_end) && tampered(without_begin) && tampered(&format!("{without_end}{block}")));
    assert!(!tampered(block) && !tampered("10.0.0.1 a\n"));
}

#[test]
fn one_mebibyte_is_kept_and_one_byte_more_is_refused() {
    let mut old: Vec<u8> = (0..FOREIGN_MAX).map(|n| [b'a', 0, b'\r', 0xff, b'\n'][n % 5]).collect();
    assert_eq!(cleared(&rendered(&old, &one())), old);
    old.push(b'x');
    assert!(render(&old, &one()).is_err());
    // Marks before very many lines would make the file too long.
    let many = b"1.1.1.1 us.store.example\n".repeat(FOREIGN_MAX / 26);
    let forced = block(1, vec![line(1, "us.store.example", "203.0.113.10", true)]);
    assert!(render(&many, &forced).map_or(true, |new| new.bytes.len() <= FILE_MAX));
}

#[derive(Debug, Clone)]
enum Step {
    Set(Vec<(usize, u8, bool)>),
    Clear,
}

fn step() -> impl Strategy<Value = Step> {
    let entry = (0..3_usize, any::<u8>(), any::<bool>());
    prop_oneof![3 => proptest::collection::vec(entry, 1..4).prop_map(Step::Set), 1 => Just(Step::Clear)]
}

/// Bytes that look like a hosts file, among bytes that do not.
fn foreign() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        Just(b"10.0.0.9 n0.example\n".to_vec()),
        Just(b"10.0.0.9\tx N1.Example # c\r\n".to_vec()),
        Just(b"::1 n2.example".to_vec()),
        Just(b"\xef\xbb\xbf".to_vec()),
        Just(b"\r\n\n\0".to_vec()),
        Just(b"# END samovar".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..40),
    ];
    proptest::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn foreign_bytes_survive_any_series_of_changes(old in foreign(), steps in proptest::collection::vec(step(), 1..8)) {
        let mut file = old.clone();
        for (generation, step) in steps.iter().enumerate() {
            let wanted = match step {
                Step::Clear => Block::default(),
                Step::Set(entries) => {
                    let mut lines: Vec<Line> = entries.iter().map(|(name, last, forced)| {
                        line(u32::try_from(*name).unwrap(), &format!("n{name}.example"), &format!("192.0.2.{last}"), *forced)
                    }).collect();
                    lines.sort_by(|a, b| a.name.cmp(&b.name));
                    lines.dedup_by(|a, b| a.name == b.name);
                    block(generation as u64, lines)
                }
            };
            let new = render(&file, &wanted).unwrap();
            prop_assert!(!new.tampered);
            prop_assert_eq!(&render(&new.bytes, &wanted).unwrap().bytes, &new.bytes, "the second time changes nothing");
            prop_assert_eq!(cleared(&new.bytes), old.clone());
            file = new.bytes;
        }
    }

    #[test]
    fn no_bytes_at_all_make_it_fall_over(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0..200_usize) {
        let mut file = rendered(b"10.0.0.1 a", &one());
        file.truncate(cut);
        file.extend_from_slice(&bytes);
        let clean = cleared(&file);
        prop_assert_eq!(cleared(&clean), clean);
    }
}
