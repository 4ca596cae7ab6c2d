//! The agent on MQTT, against a real mosquitto, with head office at the other end (`mqtt.md`).

use crate::shop::{AFTER_RETRY, SOON, accepted, place_many, sale, sale_with, settled};
use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use samovar_tests::head_office::Message;
use samovar_tests::table::ENVIRONMENT;
use samovar_tests::{Agent, Broker, HeadOffice, Origin, TableBuilder, eventually};
use samovar_wire::mqtt::{Channel, Topic};
use serde_json::json;
use std::time::Duration;

const DEVICE: &str = "POS-US-0001";

struct World {
    agent: Agent,
    origin: Origin,
    broker: Broker,
    office: HeadOffice,
}

async fn world() -> Result<World> {
    let (origin, broker) = (Origin::start("us-west").await?, Broker::start().await?);
    let office = HeadOffice::listen(broker.address(), ENVIRONMENT).await?;
    let table = TableBuilder::new()?.origin("us-west", origin.address());
    let agent = Agent::setup().table(&table).broker(&broker).start().await?;
    Ok(World { agent, origin, broker, office })
}

impl World {
    /// Waits for a message of a channel that has what is wanted.
    async fn hears(
        &self,
        what: &str,
        channel: Channel,
        wanted: impl Fn(&Message) -> bool,
    ) -> Result<Message> {
        let waited = eventually(what, SOON, async || {
            self.office.heard().on(channel).rev().find(|message| wanted(message)).cloned()
        })
        .await;
        waited.map_err(|error| error.context(self.agent.last_words()))
    }
}

#[tokio::test]
async fn a_birth_says_who_is_there_in_the_documented_envelope() -> Result<()> {
    let world = world().await?;
    let birth =
        world.hears("a birth", Channel::Online, |message| message.envelope.data["online"] == true).await?;
    let envelope = &birth.envelope;
    assert_eq!((envelope.v, envelope.kind.as_str()), (1, "samovar.online.v1"));
    assert_eq!(envelope.id.as_bytes().get(14), Some(&b'7'), "a UUIDv7: {}", envelope.id);
    assert_eq!(birth.qos, 1);
    assert_eq!(birth.topic.device.as_str(), DEVICE);
    let data = &envelope.data;
    assert_eq!(data["epoch"], envelope.epoch);
    assert_eq!(data["route_table"], 1, "{data}");
    for field in ["boot_id", "version", "nonce"] {
        assert!(data[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {data}");
    }
    assert!(data["capabilities"].is_array() && data["config_revision"].is_u64(), "{data}");
    Ok(())
}

#[tokio::test]
async fn a_state_is_whole_retained_and_follows_the_orders() -> Result<()> {
    let world = world().await?;
    place_many(world.agent.api(), "S", 5).await?;
    settled(&world.agent, 5, SOON).await?;
    let state = world
        .hears("a state with 5 settled orders", Channel::State, |message| {
            message.envelope.data["state"]["orders"]["settled"] == 5
        })
        .await?;
    assert_eq!(state.envelope.kind, "samovar.state.v1");
    let (data, document) = (&state.envelope.data, &state.envelope.data["state"]);
    assert_eq!(data["sha256"].as_str().map(str::len), Some(64), "{data}");
    assert_eq!(document["identity"]["device"], DEVICE);
    assert_eq!(document["origin"]["origin"], "us-west");
    // Somebody who comes later finds the last state at the broker.
    let later = HeadOffice::listen(world.broker.address(), ENVIRONMENT).await;
    drop(world.office);
    let later = later?;
    eventually("birth and state are retained", SOON, async || {
        let heard = later.heard();
        let kept = |channel| heard.on(channel).any(|message| message.retained);
        (kept(Channel::Online) && kept(Channel::State)).then_some(())
    })
    .await
}

#[tokio::test]
async fn a_busy_till_reports_at_most_once_a_second() -> Result<()> {
    let world = world().await?;
    world.hears("a first state", Channel::State, |_| true).await?;
    let started = samovar_tests::clock::now();
    let before = world.office.heard().on(Channel::State).count();
    for round in 0..6 {
        place_many(world.agent.api(), &format!("r{round}"), 50).await?;
    }
    settled(&world.agent, 300, SOON).await?;
    world
        .hears("the last state", Channel::State, |m| m.envelope.data["state"]["orders"]["settled"] == 300)
        .await?;
    let reports = world.office.heard().on(Channel::State).count() - before;
    let seconds = usize::try_from(started.elapsed().as_secs())?;
    assert!(reports <= seconds + 2, "{reports} reports in {seconds} s");
    Ok(())
}

#[tokio::test]
async fn a_killed_agent_is_followed_by_its_will_and_a_newer_birth() -> Result<()> {
    let mut world = world().await?;
    let birth =
        world.hears("a birth", Channel::Online, |message| message.envelope.data["online"] == true).await?;
    world.agent.sigkill().await?;
    // The will waits 30 s for the agent to come back.
    let will = eventually("the will", Duration::from_secs(60), async || {
        let heard = world.office.heard();
        heard.on(Channel::Online).find(|message| message.envelope.data["online"] == false).cloned()
    })
    .await?;
    assert_eq!(will.envelope.epoch, birth.envelope.epoch);
    assert_eq!(will.envelope.seq, 0);
    assert_eq!(will.envelope.data, json!({ "online": false, "epoch": birth.envelope.epoch }));
    world.agent.start().await?;
    let newer = world
        .hears("a newer birth", Channel::Online, |message| {
            message.envelope.data["online"] == true && message.envelope.epoch > birth.envelope.epoch
        })
        .await?;
    assert_eq!(newer.envelope.data["epoch"], newer.envelope.epoch);
    Ok(())
}

#[tokio::test]
async fn messages_of_one_epoch_have_growing_numbers() -> Result<()> {
    let world = world().await?;
    place_many(world.agent.api(), "S", 3).await?;
    let other = sale_with("S-0001", &json!({ "total": "0.01" }));
    world.agent.api().place(&other).await?;
    world.hears("an event", Channel::Events, |_| true).await?;
    world.hears("a state", Channel::State, |m| m.envelope.data["state"]["orders"]["settled"] == 3).await?;
    let heard = world.office.heard();
    let seqs: Vec<_> = [Channel::Online, Channel::State, Channel::Events, Channel::Metrics]
        .into_iter()
        .flat_map(|channel| heard.on(channel))
        .map(|message| message.envelope.seq)
        .collect();
    let unique: std::collections::BTreeSet<_> = seqs.iter().collect();
    assert_eq!(unique.len(), seqs.len(), "{seqs:?}");
    assert!(heard.unreadable().is_empty(), "{:?}", heard.unreadable());
    Ok(())
}

#[tokio::test]
async fn a_request_for_the_whole_state_is_answered() -> Result<()> {
    let world = world().await?;
    world.hears("a first state", Channel::State, |m| m.envelope.data["state"].is_object()).await?;
    let count =
        || world.office.heard().on(Channel::State).filter(|m| m.envelope.data["state"].is_object()).count();
    let before = count();
    let topic = Topic { environment: ENVIRONMENT.into(), device: DEVICE.parse()?, channel: Channel::Ack };
    world.office.publish(&topic, false, br#"{"resync":true}"#.to_vec())?;
    eventually("another whole state", SOON, async || (count() > before).then_some(())).await
}

#[tokio::test]
async fn nonsense_from_the_broker_changes_nothing() -> Result<()> {
    let world = world().await?;
    world.hears("a birth", Channel::Online, |_| true).await?;
    for channel in [Channel::Ack, Channel::Command, Channel::Desired] {
        let topic = Topic { environment: ENVIRONMENT.into(), device: DEVICE.parse()?, channel };
        for payload in [&b""[..], b"[]", b"{}", b"null", b"\xff\xfe", br#"{"stream":"events","up_to":-1}"#] {
            world.office.publish(&topic, false, payload.to_vec())?;
        }
        world.office.publish(&topic, false, vec![b'x'; 100_000])?;
    }
    place_many(world.agent.api(), "N", 5).await?;
    settled(&world.agent, 5, SOON).await?;
    world
        .hears("a state afterwards", Channel::State, |m| m.envelope.data["state"]["orders"]["settled"] == 5)
        .await
        .map(drop)
}

#[tokio::test]
async fn orders_do_not_wait_for_a_broker_that_is_not_there() -> Result<()> {
    let origin = Origin::start("us-west").await?;
    let table = TableBuilder::new()?.origin("us-west", origin.address());
    let nowhere = samovar_tests::broker::free_address().await?;
    let agent = Agent::setup().table(&table).relay(&format!("mqtt://{nowhere}")).start().await?;
    place_many(agent.api(), "B", 50).await?;
    settled(&agent, 50, SOON).await
}

/// A broker away for the time of 5,000 events: all arrive, memory stays flat, the relay works afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_a_long_outage_arrive_and_memory_stays_flat() -> Result<()> {
    const CONFLICTS: usize = 5_000;
    let mut world = world().await?;
    accepted(world.agent.api(), &sale("K")).await?;
    settled(&world.agent, 1, SOON).await?;
    // Everything has been used once before memory is measured.
    conflicts(&world, 0, 200).await?;
    eventually("the first events", AFTER_RETRY, async || {
        (world.office.heard().events(DEVICE).count() >= 200).then_some(())
    })
    .await?;
    let before = world.agent.resident_bytes()?;
    world.broker.stop().await?;
    conflicts(&world, 200, CONFLICTS).await?;
    let during = world.agent.resident_bytes()?;
    world.broker.restart().await?;
    let all = 200 + CONFLICTS;
    eventually("all events", Duration::from_secs(180), async || {
        (world.office.heard().events(DEVICE).count() >= all).then_some(())
    })
    .await
    .with_context(|| format!("{} of {all} events", world.office.heard().events(DEVICE).count()))?;
    let after = world.agent.resident_bytes()?;
    println!("resident: {before} before, {during} during, {after} after");
    assert_eq!(world.office.heard().gaps(DEVICE), []);
    for (when, bytes) in [("during", during), ("after", after)] {
        let grown = bytes.saturating_sub(before) / 1024;
        assert!(grown <= 10 * 1024, "{grown} KiB more {when} the outage");
    }
    accepted(world.agent.api(), &sale("afterwards")).await?;
    settled(&world.agent, 2, SOON).await?;
    world
        .hears("a state afterwards", Channel::State, |m| m.envelope.data["state"]["orders"]["settled"] == 2)
        .await?;
    assert_eq!(world.origin.orders(), 2);
    Ok(())
}

/// Orders under a known key with other content: each is kept, quarantined, and an event.
async fn conflicts(world: &World, from: usize, count: usize) -> Result<()> {
    stream::iter(from..from + count)
        .map(|n| async move {
            let order = sale_with("K", &json!({ "total": n.to_string() }));
            let answer = world.agent.api().place(&order).await?;
            ensure!(answer.status == 422, "{}", answer.status);
            Ok(())
        })
        .buffer_unordered(32)
        .try_collect()
        .await
}
