use super::*;

const SYSTEM: Source = Source { kind: Kind::System, voice: Voice::Network };
const DHCP: Source = Source { kind: Kind::Direct, voice: Voice::Network };
const TABLE: Source = Source { kind: Kind::Direct, voice: Voice::Chosen(0) };
const DOH: Source = Source { kind: Kind::Doh, voice: Voice::Chosen(1) };

fn at(millis: u64) -> Mono {
    Mono(Duration::from_millis(millis))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn found(address: &str) -> Reply {
    Reply::Found(Answer { addresses: vec![ip(address)], ttl: None, chain: Vec::new() })
}

fn dead() -> Reply {
    Reply::Failed("no answer".into())
}

fn good(next: Next) -> (Vec<IpAddr>, Kind) {
    match next {
        Next::Done(Verdict::Good(answer, kind)) => (answer.addresses, kind),
        other => panic!("{other:?}"),
    }
}

fn suspects(next: Next) -> Vec<IpAddr> {
    match next {
        Next::Done(Verdict::Nothing { suspects, .. }) => suspects,
        other => panic!("{other:?}"),
    }
}

fn ladder(sources: &[Source]) -> Ladder {
    Ladder::new(at(0), sources, Trust::default())
}

#[test]
fn a_system_that_answers_is_the_only_one_asked() {
    let mut ladder = ladder(&[SYSTEM, DHCP, DOH]);
    assert_eq!(ladder.next(at(0)), Next::Ask(vec![0]));
    assert_eq!(ladder.next(at(10)), Next::Wait(Some(at(300))));
    ladder.replied(0, found("203.0.113.1"));
    assert_eq!(good(ladder.next(at(20))), (vec![ip("203.0.113.1")], Kind::System));
}

#[test]
fn a_silent_system_is_joined_by_all_servers_at_300_ms_and_by_https_at_1200_ms() {
    let mut ladder = ladder(&[SYSTEM, DHCP, TABLE, DOH]);
    ladder.next(at(0));
    assert_eq!(ladder.next(at(299)), Next::Wait(Some(at(300))));
    assert_eq!(ladder.next(at(300)), Next::Ask(vec![1, 2]));
    assert_eq!(ladder.next(at(301)), Next::Wait(Some(at(1_200))));
    assert_eq!(ladder.next(at(1_200)), Next::Ask(vec![3]));
    assert_eq!(ladder.next(at(1_201)), Next::Wait(None));
    ladder.replied(2, found("203.0.113.1"));
    assert_eq!(good(ladder.next(at(1_300))).1, Kind::Direct, "one dead server stalls nobody");
}

#[test]
fn a_source_of_no_use_is_followed_at_once() {
    let mut ladder = ladder(&[SYSTEM, DHCP, DOH]);
    ladder.next(at(0));
    ladder.replied(0, dead());
    assert_eq!(ladder.next(at(5)), Next::Ask(vec![1]));
    ladder.replied(1, Reply::Failed("SERVFAIL".into()));
    assert_eq!(ladder.next(at(9)), Next::Ask(vec![2]));
    ladder.replied(2, dead());
    let Next::Done(Verdict::Nothing { errors, denied, .. }) = ladder.next(at(20)) else { panic!() };
    assert_eq!((errors.len(), denied), (3, false));
}

#[test]
fn without_a_system_the_servers_are_asked_at_once() {
    let mut ladder = ladder(&[TABLE, DOH]);
    assert_eq!(ladder.next(at(0)), Next::Ask(vec![0]));
    assert_eq!(ladder.next(at(0)), Next::Wait(Some(at(1_200))));
    assert_eq!(
        Ladder::new(at(0), &[], Trust::default()).next(at(0)),
        Next::Done(Verdict::Nothing { suspects: Vec::new(), denied: false, errors: Vec::new() })
    );
}

#[test]
fn no_such_name_needs_a_second_voice_and_one_liar_is_overruled() {
    let mut liar = ladder(&[SYSTEM, DHCP, TABLE]);
    liar.next(at(0));
    liar.replied(0, Reply::NoSuchName);
    assert_eq!(liar.next(at(1)), Next::Ask(vec![1, 2]), "its word alone ends nothing");
    liar.replied(1, Reply::NoSuchName);
    assert_eq!(liar.next(at(2)), Next::Wait(None), "the network's servers are the same voice");
    liar.replied(2, found("203.0.113.1"));
    assert_eq!(good(liar.next(at(3))).0, [ip("203.0.113.1")]);

    let mut gone = ladder(&[SYSTEM, TABLE, DOH]);
    gone.next(at(0));
    gone.replied(0, Reply::NoSuchName);
    gone.next(at(1));
    gone.replied(1, Reply::NoAddress);
    let Next::Done(Verdict::Nothing { denied, .. }) = gone.next(at(2)) else { panic!() };
    assert!(denied, "two voices: nobody else is asked");
}

#[test]
fn a_private_address_needs_a_second_voice_or_a_proof_by_tls() {
    let mut portal = ladder(&[SYSTEM, DHCP, TABLE]);
    portal.next(at(0));
    portal.replied(0, found("10.0.0.1"));
    assert_eq!(portal.next(at(1)), Next::Ask(vec![1, 2]));
    portal.replied(1, found("10.0.0.1"));
    assert_eq!(portal.next(at(2)), Next::Wait(None), "the same voice twice");
    portal.replied(2, dead());
    assert_eq!(suspects(portal.next(at(3))), [ip("10.0.0.1")], "kept, for TLS to judge when all else fails");

    let mut inside = ladder(&[SYSTEM, TABLE]);
    inside.next(at(0));
    inside.replied(0, found("10.0.0.1"));
    inside.next(at(1));
    inside.replied(1, found("10.0.0.1"));
    assert_eq!(good(inside.next(at(2))).0, [ip("10.0.0.1")]);

    let trust = Trust { proven: vec![ip("10.0.0.1")], loopback: false };
    let mut proven = Ladder::new(at(0), &[SYSTEM, TABLE], trust);
    proven.next(at(0));
    proven.replied(0, found("10.0.0.1"));
    assert_eq!(good(proven.next(at(1))).0, [ip("10.0.0.1")]);
}

#[test]
fn a_loopback_address_is_expected_only_where_origins_are_spoken_to_in_the_open() {
    for (loopback, address, counts) in
        [(true, "127.0.0.1", true), (false, "127.0.0.1", false), (true, "10.0.0.1", false)]
    {
        let mut ladder = Ladder::new(at(0), &[SYSTEM], Trust { proven: Vec::new(), loopback });
        ladder.next(at(0));
        ladder.replied(0, found(address));
        let is_good = matches!(ladder.next(at(1)), Next::Done(Verdict::Good(..)));
        assert_eq!(is_good, counts, "{loopback} {address}");
    }
}

#[test]
fn private_addresses_among_public_ones_and_addresses_that_are_none_are_left_out() {
    let mut ladder = ladder(&[SYSTEM]);
    ladder.next(at(0));
    let addresses = ["0.0.0.0", "10.0.0.1", "203.0.113.1", "224.0.0.1"].map(ip).to_vec();
    ladder.replied(0, Reply::Found(Answer { addresses, ttl: None, chain: Vec::new() }));
    assert_eq!(good(ladder.next(at(1))).0, [ip("203.0.113.1")]);
}

#[test]
fn replies_of_sources_that_nobody_asked_do_no_harm() {
    let mut ladder = ladder(&[SYSTEM]);
    ladder.replied(7, dead());
    ladder.replied(0, dead());
    assert_eq!(suspects(ladder.next(at(0))), [] as [IpAddr; 0]);
}
