//! Restarts, and several servers over one database.

use http::StatusCode;
use rcgen::KeyPair;
use samovar_fleet::assemble::{self, StartError};
use samovar_fleet::config::Config;

use crate::world::{Backend, Device, Fleet, batch, config, fresh_postgres, order, read, statuses};

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_authority_keys_orders_and_operators() {
    let fleet = Fleet::start(Backend::Sqlite, &[]).await;
    let device = fleet.device("US-0001", "POS-US-0001").await;
    let sent = batch(&[order("a", 1, "{}")]);
    assert_eq!(statuses(&device.send(&fleet.https(), &sent).await), ["settled"]);
    let (ca, admin) = (fleet.ca(), read(fleet.dir.path(), "admin.txt"));
    let Fleet { running, dir, .. } = fleet;
    running.stop().await;
    let again = assemble::start(config(&[]), dir.path()).await.unwrap();
    assert!(again.first_admin.is_none());
    assert_eq!((again.app.authority.pem(), read(dir.path(), "admin.txt")), (ca.as_str(), admin));
    let origin = format!("https://localhost:{}", again.app.addresses.https.port());
    assert_eq!(
        statuses(&device.send(&origin, &sent).await),
        ["duplicate"],
        "the old certificate and key still count"
    );
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_directory_belongs_to_one_server_at_a_time() {
    let fleet = Fleet::start(Backend::Sqlite, &[]).await;
    let second = assemble::start(config(&[]), fleet.dir.path()).await;
    let Err(error) = second else { panic!("the second server started") };
    assert!(matches!(error, StartError::InUse { .. }), "{error}");
    assert_eq!(error.exit_code(), 3);
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_of_one_postgres_are_one_fleet() {
    if std::env::var("SAMOVAR_TEST_POSTGRES").is_err() {
        return;
    }
    let shared =
        Config { database: samovar_fleet::config::Database { url: fresh_postgres().await }, ..config(&[]) };
    let (one, mut other) = tokio::join!(Fleet::start_with(shared.clone()), Fleet::start_with(shared));
    let one = if one.admin.is_empty() { std::mem::replace(&mut other, one) } else { one };
    assert!(other.admin.is_empty(), "only one of them made the first admin");
    assert_eq!(one.ca(), other.ca());
    one.store("US-0001").await;
    let key = KeyPair::generate().unwrap();
    let answer = other.activate(&one.claim("US-0001", "POS-US-0001", 600).await, &key).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
    let device = Device::new(&answer.body, &key);
    let sent = batch(&(1..=30).map(|n| order(&format!("k{n}"), n, "{}")).collect::<Vec<_>>());
    let (here, there) = (one.https(), other.https());
    let answers = futures_util::future::join_all(
        (0..10).map(|n| device.send(if n % 2 == 0 { &here } else { &there }, &sent)),
    )
    .await;
    let settled: usize = answers
        .iter()
        .map(|answer| statuses(answer).iter().filter(|status| *status == "settled").count())
        .sum();
    assert_eq!((settled, one.count("").await), (30, 30));
    one.running.stop().await;
    other.running.stop().await;
}
