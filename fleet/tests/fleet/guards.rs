//! What people cannot do by mistake or in somebody else's name.

use std::time::Duration;

use http::{Method, StatusCode};
use samovar_wire::route;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::world::{Backend, Fleet, backends, batch, client, json_body, order, send};

#[tokio::test(flavor = "multi_thread")]
async fn a_nul_in_any_text_is_refused_before_a_database_sees_it() {
    for backend in backends() {
        let fleet = Fleet::start(backend, &[]).await;
        for path in [
            "/api/v1/devices/a%00b",
            "/api/v1/devices?store=%00",
            "/api/v1/orders/%00",
            "/api/v1/stores/%00",
            "/api/v1/orders?device=%00",
            "/api/v1/devices/x/events?kind=%00",
        ] {
            assert_eq!(fleet.get(path).await.status, StatusCode::BAD_REQUEST, "{backend:?} {path}");
        }
        let login = fleet.log_in("a\0b", "x").await;
        assert_eq!(login.status, StatusCode::BAD_REQUEST, "{backend:?}");
        let disable = fleet.post("/api/v1/operators/%00/disable", json!({})).await;
        assert_eq!(disable.status, StatusCode::BAD_REQUEST);
        let claim = json!({ "claim": "HQ-\0", "csr": "x", "hardware": {} }).to_string();
        let http = client(None, None);
        let claim = send(json_body(http.post(format!("{}/activate/v1/claims", fleet.http())), claim)).await;
        assert_eq!(claim.status, StatusCode::BAD_REQUEST);
        let form = http.post(format!("{}/console/sign-in", fleet.http())).body("name=a%00&password=x");
        let form = send(form.header("content-type", "application/x-www-form-urlencoded")).await;
        assert_eq!(form.status, StatusCode::BAD_REQUEST);
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_a_slip_of_the_finger_is_not_published() {
    let fleet = Fleet::start(Backend::Sqlite, &[]).await;
    fleet.store("US-0001").await;
    let current = fleet.get("/api/v1/routes/current").await.body["document"].clone();
    let version = current["version"].as_u64().unwrap();
    let mut good = current.clone();
    good["version"] = json!(version + 1);
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut table = good.clone();
        change(&mut table);
        table
    };
    for (table, word) in [
        (changed(&|table| table["version"] = json!(version + 1_000_001)), "above"),
        (changed(&|table| table["countries"]["US"]["residency"] = json!([])), "residency"),
        (changed(&|table| table["origins"]["origin-1"]["endpoints"][0]["port"] = json!(0)), "port 0"),
        (changed(&|table| table["origins"]["origin-1"]["endpoints"][0]["host"] = json!("http://x")), "host"),
        (changed(&|table| table["expires_at"] = json!("2020-01-01T00:00:00.000Z")), "expired"),
    ] {
        let refused = fleet.post("/api/v1/routes", table).await;
        assert_eq!(
            (refused.status, refused.slug()),
            (StatusCode::UNPROCESSABLE_ENTITY, "invalid-route-table")
        );
        assert!(refused.body["detail"].as_str().unwrap().contains(word), "{}", refused.body);
    }
    assert_eq!(fleet.post("/api/v1/routes", good.clone()).await.status, StatusCode::CREATED);
    // Devices go by the contract alone.
    let odd = changed(&|table| table["countries"]["US"]["residency"] = json!([]));
    assert!(route::check(odd.to_string().as_bytes(), "prod").is_ok());
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_where_no_route_leads_is_added_with_a_warning() {
    let fleet = Fleet::start(Backend::Sqlite, &[]).await;
    fleet.store("US-0001").await;
    let mut table = fleet.get("/api/v1/routes/current").await.body["document"].clone();
    table["version"] = json!(table["version"].as_u64().unwrap() + 1);
    assert_eq!(fleet.post("/api/v1/routes", table).await.status, StatusCode::CREATED);
    let served = fleet.post("/api/v1/stores", json!({"id": "US-0002", "country": "US"})).await;
    assert_eq!((served.status, served.body.get("warning")), (StatusCode::CREATED, None));
    let added = fleet.post("/api/v1/stores", json!({"id": "JP-0001", "country": "JP"})).await;
    assert_eq!(added.status, StatusCode::CREATED);
    assert!(added.body["warning"].as_str().unwrap().contains("JP"), "{}", added.body);
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_not_hidden_by_another_devices_order_of_the_same_id() {
    let fleet = Fleet::start(Backend::Sqlite, &[]).await;
    let (one, two) = (fleet.device("US-0001", "POS-1").await, fleet.device("US-0001", "POS-2").await);
    let mut mine = order("mine", 1, "{\"a\":1}");
    let mut theirs = order("theirs", 1, "{\"b\":2}");
    mine["id"] = json!("same");
    theirs["id"] = json!("same");
    for (device, order) in [(&one, mine), (&two, theirs)] {
        assert_eq!(device.send(&fleet.https(), &batch(&[order])).await.status, StatusCode::OK);
    }
    let newest = fleet.get("/api/v1/orders/same").await.body;
    let devices: Vec<_> = newest["matches"].as_array().unwrap().iter().map(|one| &one["device"]).collect();
    assert_eq!(devices, ["POS-2", "POS-1"]);
    let first = fleet.get("/api/v1/orders/same?device=POS-1").await.body;
    assert_eq!((&first["key"], &first["body"]), (&json!("mine"), &json!({"a": 1})));
    assert_eq!(fleet.get("/api/v1/orders/same?device=POS-3").await.status, StatusCode::NOT_FOUND);
    assert_eq!(fleet.get("/api/v1/orders:count?limit=abc").await.status, StatusCode::BAD_REQUEST);
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_that_is_asked_again_and_again_is_in_the_audit_log_once() {
    for backend in backends() {
        let fleet = Fleet::start(backend, &[]).await;
        let device = fleet.device("US-0001", "POS-1").await;
        for number in [1, 2, 2, 2, 3] {
            let body = json!({ "n": number }).to_string();
            assert_eq!(
                device.send(&fleet.https(), &batch(&[order("k", 1, &body)])).await.status,
                StatusCode::OK
            );
        }
        let audit = fleet.get("/api/v1/audit").await.body;
        let rows = audit["audit"].as_array().unwrap();
        assert_eq!(rows.iter().filter(|row| row["action"] == "order.conflict").count(), 2, "{backend:?}");
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_login_is_in_the_audit_log() {
    let fleet = Fleet::start(Backend::Sqlite, &[]).await;
    assert_eq!(fleet.log_in("admin", "wrong password").await.status, StatusCode::UNAUTHORIZED);
    let audit = fleet.get("/api/v1/audit").await.body;
    let rows = audit["audit"].as_array().unwrap();
    let failed = rows.iter().find(|row| row["action"] == "operator.login-failed").unwrap();
    assert_eq!((&failed["subject"], &failed["actor"]), (&json!("admin"), &json!("address 127.0.0.1")));
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_changes_ends_when_its_reader_is_shut_out() {
    let fleet = Fleet::start(Backend::Sqlite, &[]).await;
    let body = json!({"name": "sue", "password": "a long password", "role": "viewer"});
    assert_eq!(fleet.post("/api/v1/operators", body).await.status, StatusCode::CREATED);
    let token = fleet.token("sue", "a long password").await;
    let request = client(None, None).get(format!("{}/api/v1/events", fleet.http())).bearer_auth(&token);
    let mut stream = request.send().await.unwrap();
    assert!(stream.chunk().await.unwrap().is_some(), "the first word");
    let shut = fleet.api(&fleet.admin, Method::POST, "/api/v1/operators/sue/disable", None).await;
    assert_eq!(shut.status, StatusCode::NO_CONTENT);
    let end = async { while let Ok(Some(_)) = stream.chunk().await {} };
    assert!(timeout(Duration::from_secs(10), end).await.is_ok(), "the stream goes on");
    fleet.running.stop().await;
}
