//! More work than there is room for: what one device may do, and who is refused first.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::world::{Answer, Backend, Fleet, LEDGER, backends, batch, client, order, send, statuses};

fn retry_after(answer: &Answer) -> u64 {
    answer.headers["retry-after"].to_str().unwrap().parse().unwrap()
}

async fn metrics(fleet: &Fleet) -> String {
    client(None, None).get(format!("{}/metrics", fleet.http())).send().await.unwrap().text().await.unwrap()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_too_fast_is_told_to_wait_and_others_are_not_concerned() {
    let settings = ["intake.device_orders_per_s=1", "intake.device_reconciles_per_min=2"];
    let fleet = Fleet::start(Backend::Sqlite, &settings).await;
    let (device, other) = (fleet.device("US-0001", "POS-1").await, fleet.device("US-0001", "POS-2").await);
    let many = batch(&(1..=40).map(|n| order(&format!("k{n}"), n, "{}")).collect::<Vec<_>>());
    let https = fleet.https();
    assert_eq!(statuses(&device.send(&https, &many).await).len(), 40, "ten seconds' worth, and a debt");
    let refused = device.send(&https, &many).await;
    assert_eq!((refused.status, refused.slug()), (StatusCode::TOO_MANY_REQUESTS, "too-many"));
    let wait = retry_after(&refused);
    assert!((25..=62).contains(&wait), "{wait} s for a debt of 30 and one more, spread up to twice that");
    assert_eq!(other.send(&https, &many).await.status, StatusCode::OK);
    assert_eq!(
        device.shadow(&https, &many).await.status,
        StatusCode::OK,
        "shadows are counted by themselves"
    );
    for _ in 0..2 {
        assert_eq!(device.reconcile(&https, LEDGER, json!([])).await.status, StatusCode::OK);
    }
    let refused = device.reconcile(&https, LEDGER, json!([])).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert!((28..=61).contains(&retry_after(&refused)), "{}", retry_after(&refused));
    let metrics = metrics(&fleet).await;
    for line in ["{class=\"orders\"} 1", "{class=\"reconcile\"} 1", "{class=\"shadow\"} 0"] {
        assert!(metrics.contains(&format!("samovar_fleet_throttled_total{line}")), "{metrics}");
    }
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_batch_is_judged_like_any_other_and_never_recorded() {
    for backend in backends() {
        let fleet = Fleet::start(backend, &[]).await;
        let device = fleet.device("US-0001", "POS-1").await;
        let https = fleet.https();
        device.send(&https, &batch(&[order("known", 1, "{\"total\":1}"), order("changed", 2, "{}")])).await;
        let mut wrong = order("wrong", 5, "{}");
        wrong["sha256"] = "0".repeat(64).into();
        let mixed = batch(&[
            order("known", 1, "{\"total\":1}"),
            order("changed", 2, "{\"total\":2}"),
            order("new", 3, "{}"),
            order("new", 3, "{}"),
            order("new", 3, "{\"other\":1}"),
            wrong,
        ]);
        let expected = ["duplicate", "conflict", "settled", "duplicate", "conflict", "rejected"];
        for _ in 0..2 {
            let answer = device.shadow(&https, &mixed).await;
            assert_eq!((answer.status, &answer.body["batch"]), (StatusCode::OK, &mixed["batch"]));
            assert_eq!(
                statuses(&answer),
                expected,
                "{backend:?}: the same again, because nothing was recorded"
            );
        }
        let recorded = fleet.get("/api/v1/orders").await.body;
        let keys: Vec<_> = recorded["orders"].as_array().unwrap().iter().map(|order| &order["key"]).collect();
        assert_eq!(keys, ["changed", "known"], "one batch is recorded by key");
        assert_eq!(fleet.count("").await, 2);
        let audit = fleet.get("/api/v1/audit").await.body;
        assert!(!audit.to_string().contains("order.conflict"), "a shadow raises no alarm");
        let metrics = metrics(&fleet).await;
        for line in [
            "samovar_fleet_shadow_batches_total 2",
            "samovar_fleet_shadow_orders_total{status=\"settled\"} 2",
            "samovar_fleet_shadow_orders_total{status=\"conflict\"} 4",
            "samovar_fleet_batches_total 1",
            "samovar_fleet_orders_total{status=\"settled\"} 2",
            "samovar_fleet_orders_total{status=\"conflict\"} 0",
        ] {
            assert!(metrics.contains(line), "{line}\n{metrics}");
        }
        for (bad, status) in
            [("not an origin", StatusCode::BAD_REQUEST), ("us-west", StatusCode::BAD_REQUEST)]
        {
            let request = device.request(&https, &device.id).header("samovar-shadow", bad).body("{}");
            assert_eq!(send(request).await.status, status, "a bad header, and a bad batch");
        }
        assert_eq!(
            statuses(&device.send(&https, &mixed).await)[2],
            "settled",
            "the order itself still settles"
        );
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_overload_shadows_config_and_comparisons_are_refused_before_any_order() {
    let fleet = Fleet::start(Backend::Sqlite, &["intake.in_flight=1"]).await;
    let device = Arc::new(fleet.device("US-0001", "POS-1").await);
    let https = fleet.https();
    let app = fleet.running.app.clone();
    // The disk stalls: whoever wants to write waits.
    let stalled = app.database.write().await.unwrap();
    let send_order = |n: u64| {
        let (device, https) = (Arc::clone(&device), https.clone());
        tokio::spawn(async move { device.send(&https, &batch(&[order(&format!("k{n}"), n, "{}")])).await })
    };
    let shadow = || async { device.shadow(&https, &batch(&[order("s", 9, "{}")])).await };
    let table = || async { send(device.http.get(format!("{https}/device/v1/route-table"))).await };
    let compare = || async { device.reconcile(&https, LEDGER, json!([])).await };
    let in_hand = async |number: usize| {
        until("the orders to be in hand", || app.overload.load().in_hand == number).await;
    };

    assert_eq!((shadow().await.status, table().await.status), (StatusCode::OK, StatusCode::OK));
    let mut orders = vec![send_order(1), send_order(2)];
    in_hand(2).await;
    for refused in [shadow().await, table().await] {
        assert_eq!((refused.status, refused.slug()), (StatusCode::SERVICE_UNAVAILABLE, "overloaded"));
        assert!((15..=120).contains(&retry_after(&refused)));
    }
    orders.push(send_order(3));
    in_hand(3).await;
    assert_eq!(compare().await.status, StatusCode::SERVICE_UNAVAILABLE);
    orders.extend((4..=7).map(send_order));
    in_hand(7).await;
    assert_eq!(fleet.api("", Method::GET, "/.samovar/health", None).await.status, StatusCode::NO_CONTENT);
    stalled.rollback().await.unwrap();
    for order in orders {
        assert_eq!(statuses(&order.await.unwrap()), ["settled"]);
    }
    in_hand(0).await;
    assert_eq!((shadow().await.status, compare().await.status), (StatusCode::OK, StatusCode::OK));
    let metrics = metrics(&fleet).await;
    for (class, number) in [("orders", 0), ("reconcile", 1), ("config", 1), ("shadow", 1), ("status", 0)] {
        let line = format!("samovar_fleet_refused_total{{class=\"{class}\"}} {number}");
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_everything_orders_are_refused_too_and_none_is_lost_that_was_taken() {
    let fleet = Fleet::start(Backend::Sqlite, &["intake.in_flight=1"]).await;
    let device = Arc::new(fleet.device("US-0001", "POS-1").await);
    let https = fleet.https();
    let app = fleet.running.app.clone();
    let stalled = app.database.write().await.unwrap();
    let taken: Vec<_> = (1..=8)
        .map(|n| {
            let (device, https) = (Arc::clone(&device), https.clone());
            tokio::spawn(
                async move { device.send(&https, &batch(&[order(&format!("k{n}"), n, "{}")])).await },
            )
        })
        .collect();
    until("the orders to be in hand", || app.overload.load().in_hand == 8).await;
    let refused = device.send(&https, &batch(&[order("k9", 9, "{}")])).await;
    assert_eq!((refused.status, refused.slug()), (StatusCode::SERVICE_UNAVAILABLE, "overloaded"));
    assert!((2..=4).contains(&retry_after(&refused)));
    drop(stalled);
    for order in taken {
        assert_eq!(statuses(&order.await.unwrap()), ["settled"]);
    }
    let recorded: Value = fleet.get("/api/v1/orders:count").await.body;
    assert_eq!(recorded["count"], 8);
    fleet.running.stop().await;
}
