//! Host overrides at head office: who may set what, what devices are told, and that time runs out everywhere.

use http::{Method, StatusCode};
use samovar_fleet::hosts::wanted;
use samovar_wire::Timestamp;
use serde_json::{Value, json};

use crate::world::{Answer, Backend, Fleet, backends, client};

const DEVICE: &str = "POS-US-0001";

/// A fleet with one device whose orders have a name that may be pointed elsewhere, and an operator of each role.
async fn fleet(backend: Backend) -> Fleet {
    let fleet = Fleet::start(backend, &[]).await;
    fleet.device("US-0001", DEVICE).await;
    for role in ["viewer", "support", "field", "netops"] {
        let body = json!({"name": role, "password": "a long password", "role": role});
        assert_eq!(fleet.post("/api/v1/operators", body).await.status, StatusCode::CREATED);
    }
    publish(&fleet, |_| ()).await;
    fleet
}

async fn publish(fleet: &Fleet, change: impl FnOnce(&mut Value)) {
    let current = fleet.get("/api/v1/routes/current").await.body;
    let mut table = current["document"].clone();
    table["version"] = json!(table["version"].as_u64().unwrap() + 1);
    let services = &mut table["countries"]["US"]["services"];
    services["orders"]["domains"]["default"] = json!("us.store.example");
    services["orders"]["overridable"] = json!(true);
    for n in 0..21 {
        services["orders"]["domains"][format!("class-{n}")] = json!(format!("n{n}.store.example"));
    }
    change(&mut table);
    let answer = fleet.post("/api/v1/routes", table).await;
    assert!(answer.status.is_success(), "{}", answer.body);
}

fn path(name: &str) -> String {
    format!("/api/v1/devices/{DEVICE}/hosts/{name}")
}

fn to_new() -> Value {
    json!({ "address": "192.0.2.7", "reason": "the origin has moved", "ticket": "T-1" })
}

async fn set(fleet: &Fleet, role: &str, name: &str, body: Value) -> Answer {
    let token =
        if role == "admin" { fleet.admin.clone() } else { fleet.token(role, "a long password").await };
    fleet.api(&token, Method::PUT, &path(name), Some(body)).await
}

async fn listed(fleet: &Fleet) -> Value {
    fleet.get("/api/v1/hosts").await.body["hosts"].take()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_override_is_wanted_replaced_and_cleared_and_every_deed_is_recorded() {
    for backend in backends() {
        let fleet = fleet(backend).await;
        let answer = set(&fleet, "field", "US.Store.Example.", to_new()).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.body);
        let entry = &answer.body;
        for (field, value) in [
            ("device", json!(DEVICE)),
            ("country", json!("US")),
            ("name", json!("us.store.example")),
            ("address", json!("192.0.2.7")),
            ("owner", json!("field")),
            ("ticket", json!("T-1")),
            ("wanted", json!(true)),
            ("in_force", json!(false)),
            ("effective", Value::Null),
        ] {
            assert_eq!(entry[field], value, "{field}: {entry}");
        }
        let left = entry["remaining_s"].as_u64().unwrap();
        assert!((14_390..=14_400).contains(&left), "four hours unless told: {left}");
        assert!(entry["why"].as_str().unwrap().contains("offline"), "{entry}");

        let mut other = to_new();
        other["address"] = json!("2001:db8::7");
        other["ttl_s"] = json!(72 * 3_600);
        let replaced = set(&fleet, "netops", "us.store.example", other).await;
        assert_eq!(replaced.status, StatusCode::ACCEPTED, "{}", replaced.body);
        let hosts = listed(&fleet).await;
        assert_eq!((hosts.as_array().unwrap().len(), &hosts[0]["owner"]), (1, &json!("netops")), "{hosts}");
        assert_ne!(hosts[0]["id"], entry["id"]);
        assert_eq!(fleet.get("/api/v1/hosts?country=JP").await.body["hosts"], json!([]));
        assert_eq!(fleet.get("/api/v1/hosts?store=US-0001&limit=1").await.body["next"], json!(DEVICE));

        let cleared = fleet.api(&fleet.admin, Method::DELETE, &path("us.store.example"), None).await;
        assert_eq!((cleared.status, &cleared.body["cleared"]["owner"]), (StatusCode::OK, &json!("netops")));
        assert_eq!(listed(&fleet).await, json!([]));
        let again = fleet.api(&fleet.admin, Method::DELETE, &path("us.store.example"), None).await;
        assert_eq!((again.status, again.slug()), (StatusCode::NOT_FOUND, "no-override"));
        let audit = fleet.get("/api/v1/audit").await.body["audit"].take();
        let ours = |deed: &&Value| deed["action"].as_str().unwrap().starts_with("hosts.");
        let deeds: Vec<_> = audit.as_array().unwrap().iter().filter(ours).collect();
        let told: Vec<_> = deeds.iter().map(|deed| (&deed["actor"], &deed["action"])).collect();
        let actors = [fleet.get("/api/v1/me").await.body["name"].take(), json!("netops"), json!("field")];
        let actions = [json!("hosts.clear"), json!("hosts.set"), json!("hosts.set")];
        assert_eq!(told, actors.iter().zip(&actions).collect::<Vec<_>>());
        assert!(deeds[2]["detail"].as_str().unwrap().contains("192.0.2.7"), "{audit}");
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_device_would_refuse_is_refused_here_and_roles_have_their_limits() {
    let fleet = fleet(Backend::Sqlite).await;
    let with = |field: &str, value: Value| {
        let mut body = to_new();
        body[field] = value;
        body
    };
    let refused = async |role: &str, name: &str, body: Value| {
        let answer = set(&fleet, role, name, body).await;
        (answer.status.as_u16(), answer.slug().to_owned())
    };
    for role in ["viewer", "support"] {
        assert_eq!(refused(role, "us.store.example", to_new()).await, (403, "forbidden".into()), "{role}");
    }
    let long = with("ttl_s", json!(4 * 3_600 + 1));
    assert_eq!(refused("field", "us.store.example", long.clone()).await, (403, "forbidden".into()));
    assert_eq!(refused("netops", "us.store.example", long).await.0, 202);
    for (field, value) in [
        ("address", json!("224.0.0.1")),
        ("address", json!("nowhere")),
        ("reason", json!(" ")),
        ("ttl_s", json!(0)),
        ("ttl_s", json!(72 * 3_600 + 1)),
    ] {
        let answer = refused("admin", "us.store.example", with(field, value.clone())).await;
        assert_eq!(answer, (422, "invalid-override".into()), "{field} {value}");
    }
    assert_eq!(refused("admin", "localhost", to_new()).await.0, 422);
    assert_eq!(refused("admin", "www.example", to_new()).await, (404, "unknown-name".into()));
    let nobody =
        fleet.api(&fleet.admin, Method::PUT, "/api/v1/devices/X/hosts/us.store.example", Some(to_new()));
    assert_eq!(nobody.await.status, StatusCode::NOT_FOUND);
    // One is there; nineteen more, and no other.
    for n in 0..19 {
        assert_eq!(refused("admin", &format!("n{n}.store.example"), to_new()).await.0, 202, "{n}");
    }
    assert_eq!(refused("admin", "n19.store.example", to_new()).await, (409, "too-many-overrides".into()));
    assert_eq!(refused("admin", "n3.store.example", to_new()).await.0, 202, "replacing needs no room");
    publish(&fleet, |table| table["protected"] = json!(["us.store.example"])).await;
    assert_eq!(refused("admin", "us.store.example", to_new()).await, (403, "protected-name".into()));
    publish(&fleet, |table| table["countries"]["US"]["services"]["orders"]["overridable"] = json!(false))
        .await;
    assert_eq!(refused("admin", "n3.store.example", to_new()).await, (403, "not-overridable".into()));
    publish(&fleet, |table| table["disable_overrides"] = json!(true)).await;
    assert_eq!(refused("admin", "n3.store.example", to_new()).await, (403, "overrides-disabled".into()));
    fleet.post(&format!("/api/v1/devices/{DEVICE}/revoke"), json!({})).await;
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_hears_late_is_told_what_is_left_and_of_what_is_over_nothing() {
    let fleet = fleet(Backend::Sqlite).await;
    let mut body = to_new();
    body["ttl_s"] = json!(600);
    set(&fleet, "admin", "us.store.example", body).await;
    let database = &fleet.running.app.database;
    let at = |after: i64| Timestamp::from_millis(samovar_fleet::clock::now().millis() + after * 1_000);
    let told = async |after: i64| {
        let rows = wanted::active(database.read(), &[DEVICE], at(after)).await.unwrap();
        wanted::entries(rows.get(DEVICE).map(Vec::as_slice).unwrap_or_default(), at(after))
    };
    let (soon, late) = (told(0).await, told(500).await);
    assert!((595..=600).contains(&soon[0]["ttl_s"].as_u64().unwrap()), "{soon}");
    assert!((95..=100).contains(&late[0]["ttl_s"].as_u64().unwrap()), "{late}");
    assert_eq!((&soon[0]["id"], &soon[0]["until"]), (&late[0]["id"], &late[0]["until"]));
    assert_eq!(told(601).await, json!([]));
    assert!(wanted::recent(database, at(601)).await.unwrap()[DEVICE].is_empty(), "an end is a change");
    wanted::forget(database, at(601)).await.unwrap();
    assert!(
        wanted::recent(database, at(601)).await.unwrap().contains_key(DEVICE),
        "kept for servers that were away"
    );
    wanted::forget(database, at(600 + 5 * 86_400)).await.unwrap();
    assert!(wanted::recent(database, at(0)).await.unwrap().is_empty());
    fleet.running.stop().await;
}

/// A page, read or posted to by a signed-in browser.
async fn browse(fleet: &Fleet, cookie: &str, path: &str, form: Option<&str>) -> (StatusCode, String) {
    let url = format!("{}{path}", fleet.http());
    let request = match form {
        None => client(None, None).get(url),
        Some(form) => client(None, None)
            .post(url)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form.to_owned()),
    };
    let answer = request.header("cookie", cookie).send().await.unwrap();
    (answer.status(), answer.text().await.unwrap())
}

async fn sign_in(fleet: &Fleet, name: &str) -> String {
    let request = client(None, None)
        .post(format!("{}/console/sign-in", fleet.http()))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(format!("name={name}&password=a+long+password"));
    let answer = request.send().await.unwrap();
    answer.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_technician_sets_and_clears_by_forms_alone() {
    let fleet = fleet(Backend::Sqlite).await;
    let (device, place) = (format!("/console/devices/{DEVICE}"), format!("/console/devices/{DEVICE}/hosts"));
    let cookie = sign_in(&fleet, "field").await;
    let (_, page) = browse(&fleet, &cookie, &place, None).await;
    assert!(page.contains("<option value=\"us.store.example\">"), "{page}");
    let csrf = page.split_once("name=\"csrf\" value=\"").unwrap().1.split('"').next().unwrap().to_owned();
    let fields = "do=set&name=us.store.example&address=192.0.2.7&reason=moved+%3Cb%3E&ticket=T-9";
    let (status, _) = browse(&fleet, &cookie, &place, Some(&format!("csrf=x&hours=1&{fields}"))).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "forged");
    let (status, page) =
        browse(&fleet, &cookie, &place, Some(&format!("csrf={csrf}&hours=soon&{fields}"))).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(page.contains("role=\"alert\"") && page.contains("value=\"192.0.2.7\""), "what was typed stays");
    let (status, page) =
        browse(&fleet, &cookie, &place, Some(&format!("csrf={csrf}&hours=5&{fields}"))).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "more than the role has: {page}");
    let (status, _) =
        browse(&fleet, &cookie, &place, Some(&format!("csrf={csrf}&hours=0.51&{fields}"))).await;
    assert_eq!(status, StatusCode::SEE_OTHER);
    for path in [&device, &place, "/console/hosts", "/console/hosts?country=US"] {
        for (language, words) in
            [("en", ["30 min", "waits for the device"]), ("zh", ["30 分钟", "等待设备确认"])]
        {
            let join = if path.contains('?') { '&' } else { '?' };
            let (_, page) = browse(&fleet, &cookie, &format!("{path}{join}lang={language}"), None).await;
            let escaped = page.contains("moved &#60;b&#62; · T-9") && page.contains("192.0.2.7");
            assert!(escaped && words.iter().all(|word| page.contains(word)), "{path} {language}: {page}");
        }
    }
    let (_, page) = browse(&fleet, &cookie, "/console/hosts?country=JP&lang=en", None).await;
    assert!(page.contains("No name points elsewhere."), "{page}");

    let viewer = sign_in(&fleet, "viewer").await;
    let (_, page) = browse(&fleet, &viewer, &place, None).await;
    assert!(page.contains("192.0.2.7") && !page.contains("name=\"do\""), "a viewer only looks: {page}");
    let csrf_of_viewer =
        page.split_once("name=\"csrf\" value=\"").unwrap().1.split('"').next().unwrap().to_owned();
    let clear = |csrf: &str| format!("csrf={csrf}&do=clear&name=us.store.example");
    assert_eq!(browse(&fleet, &viewer, &place, Some(&clear(&csrf_of_viewer))).await.0, StatusCode::FORBIDDEN);
    assert_eq!(browse(&fleet, &cookie, &place, Some(&clear(&csrf))).await.0, StatusCode::SEE_OTHER);
    assert_eq!(listed(&fleet).await, json!([]));
    assert_eq!(browse(&fleet, &cookie, "/console/devices/X/hosts", None).await.0, StatusCode::NOT_FOUND);
    fleet.running.stop().await;
}
