//! Events that take several ways, and devices that are no longer listened to.

use super::*;
use crate::db::entity::certificate;
use crate::overload::admission::Class;

pub(super) async fn events_that_overtake_each_other_are_all_stored(world: World) {
    let mut pos = Device::connect(&world, POS, 1).await;
    pos.events_kept(102..=102, 100).await;
    pos.acknowledged(99).await;
    pos.events_kept(100..=101, 100).await;
    pos.acknowledged(102).await;
    assert_eq!(world.events().await, 3);
    // Another server was told that nothing below 200 is kept any more, while 150 was still on its way here.
    pos.events_kept(200..=200, 200).await;
    pos.acknowledged(200).await;
    pos.events_kept(150..=150, 150).await;
    until("the late event", async || world.events().await == 5).await;
    pos.die().await;
}

pub(super) async fn a_revoked_device_is_not_listened_to_and_told_nothing(world: World) {
    let mut pos = Device::connect(&world, POS, 1).await;
    pos.birth(None, 0).await;
    until("the birth", async || world.status().await.is_some_and(|row| row.online)).await;
    let row = certificate::ActiveModel {
        serial: Set("01".to_owned()),
        device: Set(POS.to_owned()),
        pem: Set(String::new()),
        issued_at: Set(1),
        not_after: Set(i64::MAX),
        revoked_at: Set(None),
    };
    let write = world.database.write().await.unwrap();
    certificate::Entity::insert(row).exec_without_returning(&*write).await.unwrap();
    let revoked = crate::activation::revocation::revoke(&write, POS, crate::clock::now()).await.unwrap();
    write.commit().await.unwrap();
    assert_eq!((revoked, world.status().await.unwrap().online), (1, false));
    pos.birth(None, 0).await;
    pos.events(1..=1).await;
    until("both to be dropped", async || world.ingest.counters().revoked.load(Ordering::Relaxed) == 2).await;
    assert_eq!((world.events().await, world.status().await.unwrap().online), (0, false));
    world.publish_table(1).await;
    register(&world.database, "POS-2", 1).await;
    world.publish_table(2).await;
    let desired = || device_desired::Entity::find().all(world.database.read());
    until("the table to be sent", async || !desired().await.unwrap().is_empty()).await;
    assert!(desired().await.unwrap().iter().all(|row| row.device == "POS-2"));
    pos.die().await;
}

pub(super) async fn when_orders_need_the_database_only_last_values_and_every_event_are_stored(world: World) {
    let hand = [world.overload.enter(), world.overload.enter()];
    let mut pos = Device::connect(&world, POS, 1).await;
    for letter in ["a", "b", "c", "d"].into_iter().cycle().take(39).chain(["e"]) {
        pos.state(letter).await;
        pos.send("up/metrics", "samovar.metrics.v1", json!({ "metrics": { "rss_bytes": 1.5 } })).await;
    }
    for seq in 1..=20 {
        pos.events(seq..=seq).await;
    }
    pos.acknowledged(20).await;
    assert_eq!(world.events().await, 20, "what is acknowledged is stored");
    until("the last state", async || {
        world.status().await.is_some_and(|row| row.state_sha256 == Some("e".repeat(64)))
    })
    .await;
    let shed = world.overload.refusals(Class::Status);
    assert!(shed >= 40, "{shed} of 80 reports were replaced before they were stored");
    drop(hand);
    let before = world.overload.refusals(Class::Status);
    pos.state("f").await;
    pos.state("0").await;
    until("the next state", async || {
        world.status().await.is_some_and(|row| row.state_sha256 == Some("0".repeat(64)))
    })
    .await;
    assert_eq!(world.overload.refusals(Class::Status), before, "nothing is left out in quiet times");
    pos.die().await;
}
