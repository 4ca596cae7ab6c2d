//! Reconciliation: a device and its origin find out what only one of them has.

use http::StatusCode;
use samovar_wire::encoding::sha256_from_hex;
use samovar_wire::reconcile::Digest;
use sea_orm::ConnectionTrait as _;
use serde_json::{Value, json};

use crate::world::{
    Backend, Device, Fleet, LEDGER, backends, batch, client, json_body, order, send, statuses,
};

fn orders(count: u64) -> Vec<Value> {
    (1..=count).map(|n| order(&format!("k{n}"), n, &format!("{{\"total\":{n}}}"))).collect()
}

/// A range as a device says it that has these orders there.
fn range(from_seq: u64, to_seq: u64, orders: &[Value]) -> Value {
    let mut digest = Digest::default();
    for order in orders {
        let body = sha256_from_hex(order["sha256"].as_str().unwrap()).unwrap();
        digest.add(order["key"].as_str().unwrap(), &body);
    }
    json!({"from_seq": from_seq, "to_seq": to_seq, "count": orders.len(), "digest": digest})
}

/// The same with its keys.
fn leaf(from_seq: u64, to_seq: u64, orders: &[Value]) -> Value {
    let mut range = range(from_seq, to_seq, orders);
    let key = |order: &Value| json!({"seq": order["seq"], "key": order["key"], "sha256": order["sha256"]});
    range["keys"] = orders.iter().map(key).collect();
    range
}

/// A fleet and a device that has sent these orders.
async fn settled(backend: Backend, settings: &[&str], orders: &[Value]) -> (Fleet, Device) {
    let fleet = Fleet::start(backend, settings).await;
    let device = fleet.device("US-0001", "POS-US-0001").await;
    for some in orders.chunks(500) {
        let answer = device.send(&fleet.https(), &batch(some)).await;
        assert!(statuses(&answer).iter().all(|status| status == "settled"), "{}", answer.body);
    }
    (fleet, device)
}

async fn ask(fleet: &Fleet, device: &Device, ledger: &str, ranges: Value) -> Value {
    let answer = device.reconcile(&fleet.https(), ledger, ranges).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    answer.body["ranges"].clone()
}

/// Does something to the stored orders that no server would.
async fn tamper(fleet: &Fleet, statement: &str) {
    let write = fleet.running.app.database.write().await.unwrap();
    assert_eq!(write.execute_unprepared(statement).await.unwrap().rows_affected(), 1);
    write.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_ledgers_match_and_people_see_when_they_last_did() {
    for backend in backends() {
        let orders = orders(700);
        let (fleet, device) = settled(backend, &[], &orders).await;
        let detail = fleet.get("/api/v1/devices/POS-US-0001").await.body;
        assert_eq!((&detail["reconcile"], &detail["last_match_at"]), (&Value::Null, &Value::Null));
        let halves = json!([range(351, 9000, &orders[350..]), range(1, 350, &orders[..350])]);
        assert_eq!(
            ask(&fleet, &device, LEDGER, halves).await,
            json!([{"from_seq": 351, "to_seq": 9000, "match": true}, {"from_seq": 1, "to_seq": 350, "match": true}])
        );
        let matched = fleet.get("/api/v1/devices/POS-US-0001").await.body;
        assert_eq!(matched["reconcile"]["ledger"], LEDGER);
        assert_eq!(
            (&matched["reconcile"]["ranges"], &matched["reconcile"]["differing"]),
            (&json!(2), &json!(0))
        );
        assert!(matched["last_match_at"].is_string());
        let differs = ask(&fleet, &device, LEDGER, json!([range(1, 700, &orders[1..])])).await;
        assert_eq!(differs, json!([{"from_seq": 1, "to_seq": 700, "match": false}]), "too wide for lists");
        let differing = fleet.get("/api/v1/devices/POS-US-0001").await.body;
        assert_eq!(differing["reconcile"]["differing"], 1);
        assert_eq!(
            differing["last_match_at"], matched["last_match_at"],
            "the last match stays the last match"
        );
        let list = fleet.get("/api/v1/devices").await.body;
        assert_eq!(list["devices"][0]["last_match_at"], matched["last_match_at"]);
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_the_origin_lost_is_named_sent_again_and_matches() {
    for backend in backends() {
        let orders = orders(20);
        let (fleet, device) = settled(backend, &[], &orders).await;
        tamper(&fleet, "DELETE FROM orders WHERE key = 'k7'").await;
        let named = ask(&fleet, &device, LEDGER, json!([leaf(1, 20, &orders)])).await;
        let expected =
            json!([{"from_seq": 1, "to_seq": 20, "match": false, "missing": ["k7"], "unknown": []}]);
        assert_eq!(named, expected);
        assert_eq!(fleet.get("/api/v1/devices/POS-US-0001").await.body["reconcile"]["missing"], 1);
        assert_eq!(statuses(&device.send(&fleet.https(), &batch(&orders[6..7])).await), ["settled"]);
        assert_eq!(ask(&fleet, &device, LEDGER, json!([range(1, 20, &orders)])).await[0]["match"], true);
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_that_found_a_difference_is_no_match_whatever_its_last_request_says() {
    for backend in backends() {
        let orders = orders(600);
        let (fleet, device) = settled(backend, &[], &orders).await;
        let seen = async || {
            let detail = fleet.get("/api/v1/devices/POS-US-0001").await.body;
            let list = fleet.get("/api/v1/devices").await.body;
            assert_eq!(list["devices"][0]["last_match_at"], detail["last_match_at"]);
            (detail["last_match_at"].clone(), detail["reconcile"].clone())
        };
        ask(&fleet, &device, LEDGER, json!([range(1, 4095, &orders)])).await;
        let matched = seen().await.0;
        assert!(matched.is_string());
        tamper(&fleet, "DELETE FROM orders WHERE key = 'k300'").await;
        // As an agent narrows down, and goes on with another part that matches.
        ask(&fleet, &device, LEDGER, json!([range(1, 4095, &orders)])).await;
        let halves = json!([range(1, 255, &orders[..255]), range(256, 511, &orders[255..511])]);
        ask(&fleet, &device, LEDGER, halves).await;
        ask(&fleet, &device, LEDGER, json!([leaf(256, 511, &orders[255..511])])).await;
        ask(&fleet, &device, LEDGER, json!([range(512, 4095, &orders[511..]), range(5000, 9000, &[])])).await;
        let (last, differs) = seen().await;
        assert_eq!(last, matched, "{backend:?}: {differs}");
        assert_eq!((&differs["differing"], &differs["missing"]), (&json!(1), &json!(1)), "{differs}");
        device.send(&fleet.https(), &batch(&orders[299..300])).await;
        ask(&fleet, &device, LEDGER, json!([range(256, 511, &orders[255..511])])).await;
        let (last, equal) = seen().await;
        assert_ne!(last, matched, "{backend:?}");
        assert_eq!((&equal["differing"], &equal["missing"]), (&json!(0), &json!(0)), "{equal}");
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_origin_has_is_unknown_and_other_content_is_missing() {
    for backend in backends() {
        let orders = orders(5);
        let (fleet, device) = settled(backend, &[], &orders).await;
        let mut theirs = orders.clone();
        theirs[1]["sha256"] = "0".repeat(64).into();
        theirs.remove(4);
        let answer = ask(&fleet, &device, LEDGER, json!([leaf(1, 9, &theirs)])).await;
        assert_eq!((&answer[0]["missing"], &answer[0]["unknown"]), (&json!(["k2"]), &json!(["k5"])));
        let nothing = ask(&fleet, &device, LEDGER, json!([range(4, 4, &[]), range(5, 9, &[])])).await;
        assert_eq!((&nothing[0]["unknown"], &nothing[1]["unknown"]), (&json!(["k4"]), &json!(["k5"])));
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_moved_to_another_ledger_are_found_there_and_not_sent_again() {
    for backend in backends() {
        let orders = orders(10);
        let (fleet, device) = settled(backend, &[], &orders).await;
        let mut salvaged = orders.clone();
        for (place, order) in salvaged.iter_mut().enumerate() {
            order["seq"] = (100 + place).into();
        }
        let bare = json!([range(1, 500, &salvaged)]);
        assert_eq!(ask(&fleet, &device, "new-ledger", bare.clone()).await[0]["match"], false);
        let keyed = ask(&fleet, &device, "new-ledger", json!([leaf(100, 120, &salvaged)])).await;
        assert_eq!(keyed, json!([{"from_seq": 100, "to_seq": 120, "match": true}]), "{backend:?}");
        assert_eq!(ask(&fleet, &device, "new-ledger", bare).await[0]["match"], true);
        assert_eq!(ask(&fleet, &device, LEDGER, json!([range(1, 500, &[])])).await[0]["match"], true);
        assert_eq!(fleet.count("").await, 10);
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_sent_again_from_another_place_is_a_duplicate_and_counts_there() {
    for backend in backends() {
        let orders = orders(3);
        let (fleet, device) = settled(backend, &[], &orders).await;
        let mut again = orders.clone();
        again[0]["seq"] = 41.into();
        again[1]["seq"] = 42.into();
        again[1]["body"] = json!({"other": 1});
        again[1]["sha256"] = order("", 1, "{\"other\":1}")["sha256"].clone();
        let answer = device.send(&fleet.https(), &batch(&again[..2])).await;
        assert_eq!(statuses(&answer), ["duplicate", "conflict"]);
        let ranges = json!([range(1, 3, &orders[1..]), range(41, 42, &again[..1])]);
        let answer = ask(&fleet, &device, LEDGER, ranges).await;
        assert_eq!((&answer[0]["match"], &answer[1]["match"]), (&json!(true), &json!(true)), "{backend:?}");
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_this_origin_recorded_for_this_device_and_ledger_is_compared() {
    let orders = orders(4);
    let (fleet, device) = settled(Backend::Sqlite, &[], &orders).await;
    let other = fleet.device("US-0001", "POS-US-0002").await;
    other.send(&fleet.https(), &batch(&[order("x", 2, "{}")])).await;
    tamper(&fleet, "UPDATE orders SET origin = 'elsewhere' WHERE key = 'k4'").await;
    assert_eq!(ask(&fleet, &device, LEDGER, json!([range(1, 9, &orders[..3])])).await[0]["match"], true);
    assert_eq!(ask(&fleet, &device, "another", json!([range(1, 9, &[])])).await[0]["match"], true);
    fleet.running.stop().await;
}

/// Of `SAMOVAR_GAP_ORDERS` orders, 3,000 unless told otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn comparisons_of_everything_keep_no_order_waiting() {
    let count = std::env::var("SAMOVAR_GAP_ORDERS").map_or(3_000, |count| count.parse().unwrap());
    for backend in backends() {
        let limits = ["intake.device_orders_per_s=1000000", "intake.device_requests_per_s=10000"];
        let settings = [limits[0], limits[1], "intake.device_reconciles_per_min=100000"];
        let orders = orders(count);
        let (fleet, device) = settled(backend, &settings, &orders).await;
        let other = fleet.device("US-0001", "POS-US-0002").await;
        let wide: Vec<_> = (orders.chunks(4_096).zip(0..))
            .map(|(some, part)| range(part * 4_096 + 1, part * 4_096 + 4_096, some))
            .collect();
        let begun = std::time::Instant::now();
        let answer = ask(&fleet, &device, LEDGER, json!(wide)).await;
        assert!(answer.as_array().unwrap().iter().all(|range| range["match"] == true), "{answer}");
        let alone = begun.elapsed();
        let done = std::sync::atomic::AtomicBool::new(false);
        let comparing = async {
            let mut passes = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                ask(&fleet, &device, LEDGER, json!(wide)).await;
                passes += 1;
            }
            passes
        };
        let selling = async {
            let mut waits = Vec::new();
            for n in 1..=50 {
                let begun = std::time::Instant::now();
                let sent = batch(&[order(&format!("live-{n}"), n, "{}")]);
                assert_eq!(statuses(&other.send(&fleet.https(), &sent).await), ["settled"]);
                waits.push(begun.elapsed());
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            waits.sort_unstable();
            waits
        };
        let (passes, waits) = futures_util::future::join(comparing, selling).await;
        println!(
            "{backend:?}: {count} orders compared in {alone:?}; {passes} times more while 50 orders came,"
        );
        println!("which took {:?} in the middle and {:?} at most", waits[25], waits[49]);
        assert!(waits[49] < std::time::Duration::from_secs(5), "{waits:?}");
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_is_as_guarded_as_a_batch() {
    let token = "0123456789abcdef-token";
    let settings = [&format!("intake.tokens=[\"{token}\"]")[..]];
    let (fleet, device) = settled(Backend::Sqlite, &settings, &orders(2)).await;
    let body =
        |named: &str, ranges: Value| json!({"device": named, "ledger": LEDGER, "ranges": ranges}).to_string();
    let url = format!("{}/v1/orders:reconcile", fleet.https());
    let post = |http: &reqwest::Client, body: String| send(json_body(http.post(&url), body));
    let other = post(&device.http, body("POS-US-0002", json!([]))).await;
    assert_eq!((other.status, other.slug()), (StatusCode::FORBIDDEN, "device-mismatch"));
    let contradicts = json_body(device.http.post(&url), body(&device.id, json!([])));
    let contradicts = send(contradicts.header("samovar-device", "POS-US-0002")).await;
    assert_eq!(
        (contradicts.status, contradicts.slug()),
        (StatusCode::UNPROCESSABLE_ENTITY, "device-mismatch")
    );
    let stranger = client(Some(&fleet.ca()), None);
    assert_eq!(post(&stranger, body(&device.id, json!([]))).await.status, StatusCode::UNAUTHORIZED);
    let plain = json_body(
        client(None, None).post(format!("{}/v1/orders:reconcile", fleet.http())),
        body(&device.id, json!([])),
    );
    assert_eq!(send(plain.bearer_auth(token)).await.status, StatusCode::OK, "a token vouches");
    for bad in ["", "{}", "[]", "{\"device\":\"a b\",\"ledger\":\"l\",\"ranges\":[]}"] {
        assert_eq!(post(&device.http, bad.to_owned()).await.status, StatusCode::BAD_REQUEST, "{bad}");
    }
    for bad in [
        json!([range(2, 1, &[])]),
        json!([range(1, (1 << 53) + 1, &[])]),
        json!([range(1, 5, &[]), range(5, 9, &[])]),
        (0..257).map(|seq| range(seq, seq, &[])).collect(),
    ] {
        let answer = post(&device.http, body(&device.id, bad.clone())).await;
        assert_eq!(
            (answer.status, answer.slug()),
            (StatusCode::UNPROCESSABLE_ENTITY, "invalid-ranges"),
            "{bad}"
        );
        assert!(answer.body["detail"].as_str().unwrap().contains("range"));
    }
    let text = device.http.post(&url).body(body(&device.id, json!([])));
    assert_eq!(send(text).await.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    fleet.post("/api/v1/devices/POS-US-0001/revoke", json!({})).await;
    let revoked = post(&device.http, body(&device.id, json!([]))).await;
    assert_eq!((revoked.status, revoked.slug()), (StatusCode::FORBIDDEN, "certificate-revoked"));
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_cannot_fill_the_server_with_ledgers() {
    for backend in backends() {
        let (fleet, device) = settled(backend, &[], &orders(1)).await;
        for number in 0..9 {
            ask(&fleet, &device, &format!("ledger-{number}"), json!([range(1, 9, &[])])).await;
        }
        let detail = fleet.get("/api/v1/devices/POS-US-0001").await.body;
        assert_eq!(detail["reconcile"]["ledger"], "ledger-8");
        use sea_orm::{EntityTrait as _, PaginatorTrait as _};
        let rows = samovar_fleet::db::entity::reconciliation::Entity::find();
        assert_eq!(rows.count(fleet.running.app.database.read()).await.unwrap(), 4);
        fleet.running.stop().await;
    }
}
