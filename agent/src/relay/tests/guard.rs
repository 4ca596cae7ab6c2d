//! Each of the five rules has tests that fail without it.

use super::fake::{Fake, LIMIT, Peer, connack_properties, within};
use crate::clock::mono;
use crate::relay::guard::{ConnectWith, Ended, Link, LinkError, LinkEvent, SubmitError};
use crate::relay::settings::RelaySettings;
use bytes::Bytes;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnAck, ConnectReturnCode, LastWill, Packet, Publish};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

const REPLY: &str = "samovar/v1/test/D/up/reply";
const FILTER: &str = "samovar/v1/test/D/dn/+";

fn settings(fake: &Fake) -> RelaySettings {
    let url = format!("mqtt://127.0.0.1:{}", fake.port).parse().unwrap();
    let mut settings = RelaySettings::new(url, "test", "D".parse().unwrap(), 1);
    settings.keep_alive = Duration::from_secs(5);
    settings.connect_timeout = Duration::from_secs(2);
    settings
}

fn with(saved: VecDeque<Publish>, subscribed: bool) -> ConnectWith {
    ConnectWith {
        will: LastWill::new("samovar/v1/test/D/up/online", "will", QoS::AtLeastOnce, true, None),
        clean_start: false,
        tls: None,
        filter: FILTER.into(),
        subscribed,
        saved,
        worth_saving: |publish| publish.topic == REPLY.as_bytes(),
    }
}

fn open(fake: &Fake, saved: VecDeque<Publish>) -> Link {
    Link::open(&settings(fake), with(saved, false))
}

async fn connected(link: &mut Link) -> usize {
    match within("the connection", link.next()).await {
        Some(LinkEvent::Connected { requeued, .. }) => requeued,
        other => panic!("{other:?}"),
    }
}

async fn ended(link: &mut Link) -> Ended {
    within("the end of the connection", async {
        loop {
            if let LinkEvent::Ended(ended) = link.next().await.expect("an end") {
                return ended;
            }
        }
    })
    .await
}

async fn acknowledgement(link: &mut Link) -> Result<(), String> {
    loop {
        if let LinkEvent::Acknowledged(result) = link.next().await.expect("a connection") {
            return result;
        }
    }
}

fn submit(link: &Link, payload: &str) -> Result<(), SubmitError> {
    link.submit(REPLY, QoS::AtLeastOnce, false, Bytes::copy_from_slice(payload.as_bytes()))
}

fn payloads<'a>(publishes: impl IntoIterator<Item = &'a Publish>) -> BTreeSet<String> {
    publishes.into_iter().map(|publish| String::from_utf8(publish.payload.to_vec()).unwrap()).collect()
}

fn numbered(range: std::ops::RangeInclusive<u32>) -> BTreeSet<String> {
    range.map(|number| format!("{number:03}")).collect()
}

/// Reads `count` publishes and acknowledges them.
async fn take(peer: &mut Peer, count: usize) -> Vec<Publish> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let publish = peer.publish().await;
        peer.acknowledge(publish.pkid).await;
        taken.push(publish);
    }
    taken
}

// Rule 1.

#[tokio::test]
async fn a_peer_that_stops_reading_is_left_after_one_and_a_half_keep_alives() {
    let fake = Fake::bind().await;
    let mut link = open(&fake, VecDeque::new());
    let (_peer, _) = fake.welcome(false, None).await;
    connected(&mut link).await;
    let large = Bytes::from(vec![b'x'; 250 * 1024]);
    for _ in 0..64 {
        link.submit(REPLY, QoS::AtLeastOnce, false, large.clone()).unwrap();
    }
    let ended = ended(&mut link).await;
    assert!(
        matches!(ended.why, LinkError::Stalled(limit) if limit == Duration::from_millis(7_500)),
        "{:?}",
        ended.why
    );
    assert_eq!(ended.saved.len(), 64);
}

#[tokio::test]
async fn a_peer_that_accepts_and_never_answers_is_left() {
    let fake = Fake::bind().await;
    let mut link = open(&fake, VecDeque::new());
    let _peer = fake.accept().await;
    assert!(matches!(ended(&mut link).await.why, LinkError::Connection(_)));
}

#[tokio::test]
async fn a_peer_that_reads_and_never_answers_is_left() {
    let fake = Fake::bind().await;
    let mut link = open(&fake, VecDeque::new());
    let (mut peer, _) = fake.welcome(false, None).await;
    let silent = tokio::spawn(async move { while peer.read_or_end().await.is_some() {} });
    let started = mono();
    assert!(matches!(ended(&mut link).await.why, LinkError::Connection(_)));
    assert!(mono().after(started) < LIMIT);
    silent.await.unwrap();
}

// Rule 2.

#[tokio::test]
async fn a_publish_that_waits_for_its_packet_id_survives_the_connection() {
    let fake = Fake::bind().await;
    let mut link = open(&fake, VecDeque::new());
    let (mut peer, _) = fake.welcome(false, None).await;
    connected(&mut link).await;
    // The subscription has taken ID 1. Everything but the first publish is acknowledged, so that the numbers come
    // round to one that is still in use.
    for number in 1..=64 {
        submit(&link, &format!("{number:03}")).unwrap();
    }
    let mut first = None;
    for _ in 0..64 {
        let publish = peer.publish().await;
        match first {
            None => first = Some(publish.pkid),
            Some(_) => peer.acknowledge(publish.pkid).await,
        }
    }
    for number in 65..=70 {
        // Room appears as the acknowledgements are read.
        within("room", async {
            while submit(&link, &format!("{number:03}")).is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
    let arrived = peer.read_until_quiet(Duration::from_millis(500)).await;
    drop(peer);
    let ended = ended(&mut link).await;
    let arrived = arrived.iter().filter_map(|packet| match packet {
        Packet::Publish(publish) => Some(publish),
        _ => None,
    });
    let kept: BTreeSet<_> = payloads(arrived).union(&payloads(&ended.saved)).cloned().collect();
    let mut expected = numbered(65..=70);
    expected.insert("001".into());
    assert!(kept.is_superset(&expected), "{kept:?}");
    assert!(
        payloads(&ended.saved).is_superset(&expected),
        "all of them lack an acknowledgement: {:?}",
        ended.saved
    );
}

#[tokio::test]
async fn requests_that_were_never_sent_survive_and_what_others_send_again_does_not() {
    let fake = Fake::bind().await;
    let mut link = open(&fake, VecDeque::new());
    let (peer, _) = fake
        .welcome(
            false,
            Some({
                let mut properties = connack_properties();
                properties.receive_max = Some(2);
                properties
            }),
        )
        .await;
    connected(&mut link).await;
    link.submit("samovar/v1/test/D/up/state", QoS::AtLeastOnce, true, Bytes::from_static(b"state")).unwrap();
    for number in 1..=20 {
        submit(&link, &format!("{number:03}")).unwrap();
    }
    drop(peer);
    assert_eq!(payloads(&ended(&mut link).await.saved), numbered(1..=20));
}

#[tokio::test]
async fn a_message_read_just_before_the_end_is_delivered() {
    let fake = Fake::bind().await;
    let mut link = open(&fake, VecDeque::new());
    let mut peer = fake.accept().await;
    peer.read().await;
    peer.write(&Packet::ConnAck(ConnAck {
        session_present: false,
        code: ConnectReturnCode::Success,
        properties: None,
    }))
    .await;
    peer.send("samovar/v1/test/D/dn/command", b"last words".to_vec()).await;
    drop(peer);
    connected(&mut link).await;
    let event = within("the message", link.next()).await;
    assert!(matches!(event, Some(LinkEvent::Received(publish)) if publish.payload == "last words"));
}

// Rule 3.

#[tokio::test]
async fn a_lost_session_loses_nothing_and_is_subscribed_again_with_fresh_packet_ids() {
    let fake = Fake::bind().await;
    let mut link = open(&fake, VecDeque::new());
    let (mut peer, _) = fake.welcome(false, None).await;
    connected(&mut link).await;
    for number in 1..=40 {
        submit(&link, &format!("{number:03}")).unwrap();
    }
    let before = payloads(&take(&mut peer, 10).await);
    peer.read_until_quiet(Duration::from_millis(200)).await;
    drop(peer);
    let saved = ended(&mut link).await.saved;
    let lowest = saved.iter().map(|publish| publish.pkid).min();
    assert!(lowest > Some(10), "the saved publishes carry the packet IDs of the old session: {lowest:?}");

    let mut link = Link::open(&settings(&fake), with(saved, true));
    let (mut peer, _) = fake.welcome(false, None).await;
    assert_eq!(connected(&mut link).await, 30);
    assert!(matches!(peer.read().await, Packet::Subscribe(subscribe) if subscribe.filters[0].path == FILTER));
    let after = take(&mut peer, 30).await;
    assert_eq!(&before | &payloads(&after), numbered(1..=40));
    assert!(after.iter().all(|publish| publish.pkid <= 40), "the old session's packet IDs are not used");
    assert!(after.iter().any(|publish| publish.pkid <= 10), "packet IDs begin anew");
}

#[tokio::test]
async fn a_kept_session_gets_the_same_packet_ids_and_no_second_subscription() {
    let fake = Fake::bind().await;
    let mut saved = VecDeque::new();
    for pkid in [7, 9] {
        let mut publish = Publish::new(REPLY, QoS::AtLeastOnce, format!("{pkid:03}"), None);
        publish.pkid = pkid;
        saved.push_back(publish);
    }
    let mut link = Link::open(&settings(&fake), with(saved, true));
    let (mut peer, _) = fake.welcome(true, None).await;
    assert_eq!(connected(&mut link).await, 2);
    let packets = peer.read_until_quiet(Duration::from_millis(300)).await;
    let ids: Vec<_> = packets
        .iter()
        .map(|packet| match packet {
            Packet::Publish(publish) => publish.pkid,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ids, [7, 9]);
}

#[tokio::test]
async fn saved_publishes_keep_within_the_window_the_broker_gives() {
    let fake = Fake::bind().await;
    let saved = (1..=30).map(|n| Publish::new(REPLY, QoS::AtLeastOnce, format!("{n:03}"), None)).collect();
    let mut link = open(&fake, saved);
    let mut properties = connack_properties();
    properties.receive_max = Some(4);
    let (mut peer, _) = fake.welcome(false, Some(properties)).await;
    assert_eq!(connected(&mut link).await, 30);
    let packets = peer.read_until_quiet(Duration::from_millis(300)).await;
    let first: Vec<_> = packets
        .iter()
        .filter_map(|packet| match packet {
            Packet::Publish(publish) => Some(publish.pkid),
            _ => None,
        })
        .collect();
    assert_eq!(first.len(), 4);
    for pkid in first {
        peer.acknowledge(pkid).await;
    }
    take(&mut peer, 26).await;
}

// Rule 4.

#[tokio::test]
async fn a_burst_larger_than_the_queue_is_refused_at_once_and_what_was_taken_arrives() {
    let fake = Fake::bind().await;
    let mut link = open(&fake, VecDeque::new());
    let (mut peer, _) = fake.welcome(false, None).await;
    connected(&mut link).await;
    // Nobody takes what the connection says, so a submit that waited for room would wait for ever: in a thread of its
    // own, so that the test can tell.
    let (answer, burst) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let taken = (0..1_000).take_while(|number| submit(&link, &format!("{number:03}")).is_ok()).count();
        // The test may have given up.
        let _ = answer.send((link, taken));
    });
    let (mut link, taken) = within("a burst to be refused", burst).await.unwrap();
    assert!((64..1_000).contains(&taken), "{taken}");
    let acknowledged = within("the acknowledgements", async {
        for _ in 0..taken {
            assert!(matches!(acknowledgement(&mut link).await, Ok(())));
        }
    });
    tokio::join!(take(&mut peer, taken), acknowledged);
    submit(&link, "after the burst").unwrap();
    assert_eq!(peer.publish().await.payload, "after the burst");
}

// Rule 5.

#[tokio::test]
async fn the_connect_packet_carries_our_limits() {
    let fake = Fake::bind().await;
    let mut link = open(&fake, VecDeque::new());
    let (_peer, connect) = fake.welcome(false, None).await;
    connected(&mut link).await;
    let Packet::Connect(connect, Some(will), None) = connect else { panic!("{connect:?}") };
    assert_eq!((connect.client_id.as_str(), connect.clean_start, connect.keep_alive), ("D", false, 5));
    let properties = connect.properties.unwrap();
    assert_eq!(properties.session_expiry_interval, Some(86_400));
    assert_eq!(properties.max_packet_size, Some(260 * 1024));
    assert_eq!(properties.topic_alias_max, Some(0));
    assert_eq!(properties.receive_maximum, Some(16));
    assert!(will.retain);
}

#[tokio::test]
async fn a_message_of_256_kib_arrives_and_one_beyond_the_limits_is_not_sent() {
    let fake = Fake::bind().await;
    let mut link = open(&fake, VecDeque::new());
    let (mut peer, _) = fake.welcome(false, None).await;
    connected(&mut link).await;
    peer.send("samovar/v1/test/D/dn/desired", vec![b'x'; 256 * 1024]).await;
    let event = within("the message", link.next()).await;
    assert!(matches!(event, Some(LinkEvent::Received(publish)) if publish.payload.len() == 256 * 1024));
    let larger = Bytes::from(vec![b'x'; 261 * 1024]);
    assert!(matches!(link.submit(REPLY, QoS::AtLeastOnce, false, larger), Err(SubmitError::TooLarge { .. })));
}

#[tokio::test]
async fn the_brokers_smaller_limit_is_kept_also_for_saved_publishes() {
    let fake = Fake::bind().await;
    let saved = VecDeque::from([
        Publish::new(REPLY, QoS::AtLeastOnce, vec![b'x'; 2_000], None),
        Publish::new(REPLY, QoS::AtLeastOnce, "small", None),
    ]);
    let mut link = open(&fake, saved);
    let mut properties = connack_properties();
    properties.max_packet_size = Some(1_000);
    let (mut peer, _) = fake.welcome(false, Some(properties)).await;
    assert_eq!(connected(&mut link).await, 1);
    let large = Bytes::from(vec![b'x'; 1_000]);
    assert!(matches!(
        link.submit(REPLY, QoS::AtLeastOnce, false, large),
        Err(SubmitError::TooLarge { limit: 1_000, .. })
    ));
    assert_eq!(peer.publish().await.payload, "small");
}

#[tokio::test]
async fn at_most_64_publishes_wait_for_the_broker() {
    let fake = Fake::bind().await;
    let mut link = open(&fake, VecDeque::new());
    let (mut peer, _) = fake.welcome(false, None).await;
    connected(&mut link).await;
    for number in 0..75 {
        submit(&link, &format!("{number:03}")).unwrap();
    }
    let packets = peer.read_until_quiet(Duration::from_millis(300)).await;
    assert_eq!(packets.iter().filter(|packet| matches!(packet, Packet::Publish(_))).count(), 64);
}

#[tokio::test]
async fn a_keep_alive_below_five_seconds_is_raised() {
    let fake = Fake::bind().await;
    let mut settings = settings(&fake);
    settings.keep_alive = Duration::from_secs(1);
    let mut link = Link::open(&settings, with(VecDeque::new(), false));
    let (_peer, connect) = fake.welcome(false, None).await;
    connected(&mut link).await;
    assert!(matches!(connect, Packet::Connect(connect, ..) if connect.keep_alive == 5));
}

#[tokio::test]
async fn a_broker_without_keep_alive_is_not_flooded_with_pings() {
    let fake = Fake::bind().await;
    let mut link = open(&fake, VecDeque::new());
    let mut properties = connack_properties();
    properties.server_keep_alive = Some(0);
    let (mut peer, _) = fake.welcome(false, Some(properties)).await;
    connected(&mut link).await;
    let packets = peer.read_until_quiet(Duration::from_millis(500)).await;
    assert!(packets.len() <= 2, "{packets:?}");
    submit(&link, "still connected").unwrap();
    assert_eq!(peer.publish().await.payload, "still connected");
}

#[tokio::test]
async fn a_broker_that_lets_nothing_wait_is_left() {
    let fake = Fake::bind().await;
    let mut link = open(&fake, VecDeque::new());
    let mut properties = connack_properties();
    properties.receive_max = Some(0);
    let (_peer, _) = fake.welcome(false, Some(properties)).await;
    assert!(matches!(ended(&mut link).await.why, LinkError::NoWindow));
}

#[tokio::test]
async fn an_encrypted_address_without_a_certificate_is_an_answer_not_a_wait() {
    let fake = Fake::bind().await;
    let mut settings = settings(&fake);
    settings.url = format!("mqtts://127.0.0.1:{}", fake.port).parse().unwrap();
    let saved = VecDeque::from([Publish::new(REPLY, QoS::AtLeastOnce, "kept", None)]);
    let mut link = Link::open(&settings, with(saved, false));
    let ended = ended(&mut link).await;
    assert!(matches!(ended.why, LinkError::NoTls));
    assert_eq!(ended.saved.len(), 1);
}
