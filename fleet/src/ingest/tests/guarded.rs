//! Events that take several ways, and devices that are no longer listened to.

use super::*;
use crate::db::entity::certificate;

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
