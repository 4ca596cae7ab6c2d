//! Route tables from draft to force: edited by two people, looked at, approved by four eyes, signed elsewhere, brought
//! back.

use http::{Method, StatusCode};
use samovar_fleet::db::entity::{device, store};
use samovar_fleet::ingest::entity::device_status;
use samovar_wire::dsse::{self, Envelope, SigningKey};
use sea_orm::ActiveValue::Set;
use sea_orm::EntityTrait as _;
use serde_json::{Value, json};

use crate::world::{Answer, Backend, Fleet, backends, client, config, json_body, send};

/// A table of two sites; the stores of Japan go to `jp`.
fn table(version: u64, jp: &str) -> Value {
    let service = |domain: &str| json!({"orders": {"domains": {"default": domain}}});
    json!({
        "schema": 1, "environment": "prod", "version": version, "issued_at": "2026-01-01T00:00:00.000Z",
        "not_before": "2026-01-01T00:00:00.000Z", "expires_at": "2036-01-01T00:00:00.000Z",
        "origins": {"apac": {"endpoints": [{"host": "apac.example"}]}, "usw": {"endpoints": [{"host": "usw.example"}]}},
        "countries": {"JP": {"residency": ["apac", "usw"], "services": service("jp.example")},
                      "US": {"residency": ["usw", "apac"], "services": service("us.example")}},
        "splits": [{"country": "JP", "service": "orders", "salt": "jp", "by": "store",
                    "shares": [{"origin": jp, "basis_points": 10000}]}],
        "fallback": {"mode": "nearest", "candidates": ["usw", "apac"]},
    })
}

/// A request with headers.
async fn ask(
    fleet: &Fleet,
    token: &str,
    method: Method,
    path: &str,
    more: &[(&str, &str)],
    body: Value,
) -> Answer {
    let http = client(None, None);
    let mut request = http.request(method, format!("{}{path}", fleet.http())).bearer_auth(token);
    for (name, value) in more {
        request = request.header(*name, *value);
    }
    send(json_body(request, body.to_string())).await
}

async fn operator(fleet: &Fleet, name: &str) -> String {
    let body = json!({"name": name, "password": "a long password", "role": "netops"});
    let added = fleet.post("/api/v1/operators", body).await;
    assert_eq!(added.status, StatusCode::CREATED, "{}", added.body);
    fleet.token(name, "a long password").await
}

async fn stores(fleet: &Fleet) {
    for (id, country) in [("JP-0001", "JP"), ("JP-0002", "JP"), ("US-0001", "US")] {
        let body = json!({"id": id, "country": country, "name": "x"});
        assert_eq!(fleet.post("/api/v1/stores", body).await.status, StatusCode::CREATED);
    }
}

async fn published(fleet: &Fleet, table: Value) {
    let done = fleet.post("/api/v1/routes", table).await;
    assert_eq!(done.status, StatusCode::CREATED, "{}", done.body);
}

async fn draft(fleet: &Fleet, token: &str, document: Option<Value>) -> (i64, String, Value) {
    let mut body = json!({"title": "move Japan"});
    if let Some(document) = document {
        body["document"] = document;
    }
    let made = fleet.api(token, Method::POST, "/api/v1/routes/drafts", Some(body)).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    let tag = made.headers["etag"].to_str().unwrap().to_owned();
    (made.body["id"].as_i64().unwrap(), tag, made.body)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_is_edited_by_one_proposed_and_approved_by_another_and_everything_is_in_the_audit_log() {
    for backend in backends() {
        let fleet = Fleet::start(backend, &["routes.four_eyes=true"]).await;
        stores(&fleet).await;
        let (ann, bob) = (operator(&fleet, "ann").await, operator(&fleet, "bob").await);
        let refused = fleet.post("/api/v1/routes", table(50, "apac")).await;
        assert_eq!((refused.status, refused.slug()), (StatusCode::FORBIDDEN, "four-eyes"));

        let (id, tag, made) = draft(&fleet, &ann, Some(table(1, "apac"))).await;
        assert_eq!(made["flaws"], json!([]), "an old version is no flaw: the stamp replaces it");
        let path = format!("/api/v1/routes/drafts/{id}");
        let broken = table(1, "moon");
        let change = json!({"document": broken.to_string()});
        let missing = ask(&fleet, &ann, Method::PUT, &path, &[], change.clone()).await;
        assert_eq!(missing.status, StatusCode::PRECONDITION_REQUIRED);
        let saved = ask(&fleet, &ann, Method::PUT, &path, &[("if-match", &tag)], change.clone()).await;
        assert_eq!(saved.status, StatusCode::OK, "{}", saved.body);
        assert_eq!(saved.body["flaws"][0]["path"], "/splits/0/shares/0/origin");
        assert!(saved.body["flaws"][0]["advice"].as_str().unwrap().contains("origins"), "{}", saved.body);
        let late = ask(&fleet, &bob, Method::PUT, &path, &[("if-match", &tag)], change).await;
        assert_eq!((late.status, late.slug()), (StatusCode::PRECONDITION_FAILED, "stale"));
        let flawed = fleet.api(&ann, Method::POST, &format!("{path}/propose"), None).await;
        assert_eq!((flawed.status, flawed.slug()), (StatusCode::UNPROCESSABLE_ENTITY, "invalid-route-table"));

        let tag = saved.headers["etag"].to_str().unwrap();
        let change = json!({"document": table(1, "apac")});
        assert_eq!(
            ask(&fleet, &ann, Method::PUT, &path, &[("if-match", tag)], change).await.status,
            StatusCode::OK
        );
        let early = fleet.api(&bob, Method::POST, &format!("{path}/approve"), None).await;
        assert_eq!((early.status, early.slug()), (StatusCode::CONFLICT, "wrong-state"));
        let proposed = fleet.api(&ann, Method::POST, &format!("{path}/propose"), None).await;
        assert_eq!(
            (proposed.status, &proposed.body["state"]),
            (StatusCode::OK, &json!("proposed")),
            "{}",
            proposed.body
        );
        let own = fleet.api(&ann, Method::POST, &format!("{path}/approve"), None).await;
        assert_eq!((own.status, own.slug()), (StatusCode::FORBIDDEN, "four-eyes"));
        let unseen = [("if-match", tag)];
        let unseen = ask(&fleet, &bob, Method::POST, &format!("{path}/approve"), &unseen, json!({})).await;
        assert_eq!((unseen.status, unseen.slug()), (StatusCode::PRECONDITION_FAILED, "stale"));
        let approved = fleet.api(&bob, Method::POST, &format!("{path}/approve"), None).await;
        assert_eq!(approved.status, StatusCode::CREATED, "{}", approved.body);
        assert_eq!(
            (&approved.body["published_by"], &approved.body["proposed_by"]),
            (&json!("bob"), &json!("ann"))
        );
        let current = fleet.get("/api/v1/routes/current").await.body;
        assert_eq!(current["version"], approved.body["version"]);
        assert_eq!(fleet.get(&path).await.body["state"], "published");
        let log = fleet.get("/api/v1/audit?limit=20").await.body["audit"].clone();
        let deeds: Vec<_> =
            log.as_array().unwrap().iter().map(|deed| deed["action"].as_str().unwrap()).collect();
        for deed in ["routes.publish", "routes.draft.propose", "routes.draft.edit", "routes.draft.create"] {
            assert!(deeds.contains(&deed), "{deed} in {deeds:?}");
        }
        let publish = log.as_array().unwrap().iter().find(|deed| deed["action"] == "routes.publish").unwrap();
        let detail = publish["detail"].as_str().unwrap();
        assert!(detail.contains("country JP") && detail.contains("proposed by ann"), "{detail}");
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_that_would_undo_a_newer_table_is_proposed_over_it_only_when_that_is_said() {
    let fleet = Fleet::start(Backend::Sqlite, &[]).await;
    published(&fleet, table(10, "apac")).await;
    let (id, _, made) = draft(&fleet, &fleet.admin, None).await;
    assert!(made["document"].as_str().unwrap().contains("\n  \"version\": 11"), "{}", made["document"]);
    published(&fleet, table(11, "usw")).await;
    let path = format!("/api/v1/routes/drafts/{id}/propose");
    let refused = fleet.post(&path, json!({})).await;
    assert_eq!((refused.status, refused.slug()), (StatusCode::CONFLICT, "outdated"));
    assert_eq!(fleet.post(&path, json!({"over": 11})).await.status, StatusCode::OK);
    let approved = fleet.post(&format!("/api/v1/routes/drafts/{id}/approve"), json!({})).await;
    assert_eq!((approved.status, &approved.body["version"]), (StatusCode::CREATED, &json!(12)));
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_counts_who_moves_and_one_store_is_told_where_it_would_go_and_why() {
    for backend in backends() {
        let fleet = Fleet::start(backend, &[]).await;
        stores(&fleet).await;
        fleet.device("JP-0001", "POS-JP-1").await;
        fleet.device("JP-0001", "POS-JP-2").await;
        published(&fleet, table(50, "apac")).await;
        let (id, ..) = draft(&fleet, &fleet.admin, Some(table(51, "usw"))).await;
        let seen = fleet.get(&format!("/api/v1/routes/drafts/{id}/preview")).await.body;
        assert_eq!(
            (&seen["stores"], &seen["devices"], &seen["moved"]),
            (&json!(3), &json!(4), &json!(3)),
            "{seen}"
        );
        let apac = &seen["origins"][0];
        assert_eq!(
            (&apac["origin"], &apac["stores_before"], &apac["stores_after"]),
            (&json!("apac"), &json!(2), &json!(0))
        );
        assert_eq!(seen["moves"][0]["device"], "POS-JP-1");
        assert!(seen["moves"][0]["reason"].as_str().unwrap().contains("bucket"), "{seen}");
        let page =
            fleet.get(&format!("/api/v1/routes/drafts/{id}/preview?offset=2&limit=5&country=JP")).await.body;
        assert_eq!((page["moves"].as_array().unwrap().len(), &page["moves_total"]), (1, &json!(3)));

        let told = fleet.get(&format!("/api/v1/routes/drafts/{id}/explain?device=POS-JP-1")).await.body;
        assert_eq!((&told["in_force"]["origin"], &told["there"]["origin"]), (&json!("apac"), &json!("usw")));
        let rules: Vec<_> =
            told["there"]["reason"].as_array().unwrap().iter().map(|one| &one["rule"]).collect();
        assert_eq!(rules[..5], ["protected", "emergency", "user-pin", "device-pin", "store-pin"]);
        let down =
            fleet.get(&format!("/api/v1/routes/drafts/{id}/explain?store=JP-0002&down=usw")).await.body;
        assert_eq!(down["there"]["origin"], "apac");
        let held = fleet.get(&format!("/api/v1/routes/drafts/{id}/explain?store=JP-0002&udl=DE")).await.body;
        assert_eq!((&held["there"]["origin"], &held["there"]["held"]), (&Value::Null, &json!("residency")));
        let unknown = fleet.get(&format!("/api/v1/routes/drafts/{id}/explain?store=NO-1")).await;
        assert_eq!(unknown.status, StatusCode::NOT_FOUND);
        let elsewhere = fleet.post("/api/v1/routes/preview", table(51, "usw")).await.body;
        assert_eq!(elsewhere["moved"], 3);
        assert_eq!(
            fleet.post("/api/v1/routes/preview", json!({"x": 1})).await.status,
            StatusCode::UNPROCESSABLE_ENTITY
        );
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_version_is_brought_back_under_a_higher_one_by_one_operator() {
    let fleet = Fleet::start(Backend::Sqlite, &[]).await;
    published(&fleet, table(10, "apac")).await;
    published(&fleet, table(11, "usw")).await;
    let back = fleet.post("/api/v1/routes/10/rollback", json!({"reason": "orders pile up"})).await;
    assert_eq!(back.status, StatusCode::CREATED, "{}", back.body);
    let made = &back.body["published"];
    assert_eq!((&made["version"], &made["reissue_of"]), (&json!(12), &json!(10)));
    let current = fleet.get("/api/v1/routes/current").await.body["document"].clone();
    assert_eq!(current["splits"], table(1, "apac")["splits"]);
    assert_ne!(current["issued_at"], table(1, "apac")["issued_at"], "with new dates");
    let deed = fleet.get("/api/v1/audit?limit=1").await.body["audit"][0].clone();
    assert_eq!(deed["action"], "routes.rollback");
    let detail = deed["detail"].as_str().unwrap();
    assert!(
        detail.contains("version 10") && detail.contains("orders pile up") && detail.contains("split JP"),
        "{detail}"
    );
    assert_eq!(fleet.post("/api/v1/routes/99/rollback", json!({})).await.status, StatusCode::NOT_FOUND);
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_key_publishes_what_was_signed_elsewhere_and_nothing_else() {
    let key = SigningKey::from_seed("k1", &dsse::new_seed().unwrap()).unwrap();
    let public: String = key.public().into();
    let trusted = format!("routes.trusted_keys={{k1=\"{public}\"}}");
    let fleet = Fleet::start_with(config(&["routes.sign=false", "routes.four_eyes=true", &trusted])).await;
    assert!(!fleet.dir.path().join("keys/routes.seed").exists());
    assert_eq!(fleet.get("/api/v1/routes/keys").await.body, json!({"k1": public}));
    assert_eq!(fleet.get("/api/v1/routes/current").await.status, StatusCode::NOT_FOUND, "no starter table");
    let plain = fleet.post("/api/v1/routes", table(1, "apac")).await;
    assert_eq!((plain.status, plain.slug()), (StatusCode::CONFLICT, "offline-signing"));

    let (id, ..) = draft(&fleet, &fleet.admin, Some(table(1, "apac"))).await;
    let path = format!("/api/v1/routes/drafts/{id}");
    let proposed = fleet.post(&format!("{path}/propose"), json!({})).await;
    assert_eq!(proposed.status, StatusCode::OK, "{}", proposed.body);
    assert_eq!(fleet.post(&format!("{path}/approve"), json!({})).await.slug(), "four-eyes");
    let bob = operator(&fleet, "bob").await;
    let approve = fleet.api(&bob, Method::POST, &format!("{path}/approve"), None).await;
    assert_eq!(approve.slug(), "offline-signing");
    let exported =
        client(None, None).get(format!("{}{path}/document", fleet.http())).bearer_auth(&fleet.admin);
    let bytes = exported.send().await.unwrap().bytes().await.unwrap();
    let envelope = serde_json::to_value(Envelope::sign(dsse::ROUTE_TABLE, &bytes, &[&key])).unwrap();
    published(&fleet, envelope).await;
    assert_eq!(fleet.get(&path).await.body["state"], "published", "the same bytes: it is that proposal");
    let back = fleet.post("/api/v1/routes/1/rollback", json!({})).await;
    assert_eq!(back.status, StatusCode::ACCEPTED, "{}", back.body);
    let waiting = fleet.get(&format!("/api/v1/routes/drafts/{}", back.body["draft"])).await.body;
    assert_eq!((&waiting["state"], &waiting["flaws"]), (&json!("proposed"), &json!([])));
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_have_the_table_is_listed_with_why_once_it_had_its_time() {
    for backend in backends() {
        let fleet = Fleet::start(backend, &[]).await;
        fleet.device("US-0001", "POS-1").await;
        let early = fleet.get("/api/v1/routes/stragglers").await.body;
        assert_eq!((&early["due"], &early["stragglers"]), (&json!(false), &json!([])), "{early}");
        let due = fleet.get("/api/v1/routes/stragglers?minutes=0").await.body;
        let one = &due["stragglers"][0];
        assert_eq!(
            (&one["device"], &one["why"], &one["country"]),
            (&json!("POS-1"), &json!("never-seen"), &json!("US"))
        );
        assert_eq!((&due["devices"], &due["have_it"]), (&json!(1), &json!(0)));
        assert_eq!(due["versions"], json!([{"version": null, "devices": 1}]));
        fleet.running.stop().await;
    }
}

/// What a device has reported.
async fn reported(fleet: &Fleet, id: &str, version: i64, online: bool, state: Option<Value>) {
    let database = &fleet.running.app.database;
    let device = device::Entity::find_by_id(id).one(database.read()).await.unwrap().unwrap();
    let row = device_status::ActiveModel {
        device: Set(id.to_owned()),
        activation: Set(device.activated_at),
        online: Set(online),
        since: Set(1_795_000_000_000),
        epoch: Set(1),
        seq: Set(1),
        birth_seq: Set(1),
        birth_at: Set(1),
        connected_at: Set(1),
        state_epoch: Set(1),
        state_seq: Set(1),
        state: Set(state.map(|state| state.to_string())),
        reported_at: Set(1),
        last_seen: Set(1_795_000_000_000),
        route_table: Set(Some(version)),
        config_revision: Set(0),
        ..Default::default()
    };
    let write = database.write().await.unwrap();
    device_status::Entity::insert(row).exec_without_returning(&*write).await.unwrap();
    write.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_counted_by_the_version_they_report_and_a_refusal_is_told_in_their_words() {
    for backend in backends() {
        let fleet = Fleet::start(backend, &[]).await;
        for device in ["POS-1", "POS-2", "POS-3", "POS-4"] {
            fleet.device("US-0001", device).await;
        }
        published(&fleet, table(50, "apac")).await;
        published(&fleet, table(51, "usw")).await;
        let refusal =
            json!({"conditions": [{"name": "route-table-refused", "detail": "for environment `lab`"}]});
        reported(&fleet, "POS-1", 51, true, None).await;
        reported(&fleet, "POS-2", 50, true, Some(refusal)).await;
        reported(&fleet, "POS-3", 50, false, None).await;
        let spread = fleet.get("/api/v1/routes/stragglers?minutes=0&limit=2").await.body;
        let versions = json!([{"version": 51, "devices": 1}, {"version": 50, "devices": 2}, {"version": null, "devices": 1}]);
        assert_eq!((&spread["have_it"], &spread["versions"]), (&json!(1), &versions));
        let told: Vec<_> = spread["stragglers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| (&one["device"], &one["why"]))
            .collect();
        assert_eq!(told, [(&json!("POS-2"), &json!("refused")), (&json!("POS-3"), &json!("offline"))]);
        assert_eq!(spread["stragglers"][0]["detail"], "for environment `lab`");
        let next =
            format!("/api/v1/routes/stragglers?minutes=0&limit=2&after={}", spread["next"].as_str().unwrap());
        let rest = fleet.get(&next).await.body;
        assert_eq!((&rest["stragglers"][0]["why"], &rest["next"]), (&json!("never-seen"), &Value::Null));
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_of_ten_thousand_stores_counts_them_all() {
    let fleet = Fleet::start(Backend::Sqlite, &[]).await;
    published(&fleet, table(50, "apac")).await;
    let write = fleet.running.app.database.write().await.unwrap();
    for chunk in (0..10_000).collect::<Vec<_>>().chunks(1000) {
        let rows = chunk.iter().map(|number| store::ActiveModel {
            id: Set(format!("JP-{number:05}")),
            country: Set("JP".to_owned()),
            name: Set(String::new()),
            created_at: Set(1),
        });
        store::Entity::insert_many(rows).exec_without_returning(&*write).await.unwrap();
    }
    write.commit().await.unwrap();
    let mut half = table(51, "apac");
    half["splits"][0]["shares"] =
        json!([{"origin": "apac", "basis_points": 7500}, {"origin": "usw", "basis_points": 2500}]);
    let seen = fleet.post("/api/v1/routes/preview?limit=1", half).await.body;
    let moved = seen["moved"].as_u64().unwrap();
    assert_eq!((&seen["stores"], &seen["moves_total"]), (&json!(10_000), &json!(moved)));
    assert!((2_400..=2_600).contains(&moved), "{moved} of 10000 at 2500 basis points");
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn viewers_look_and_change_nothing() {
    let fleet = Fleet::start(Backend::Sqlite, &[]).await;
    fleet.store("US-0001").await;
    let body = json!({"name": "vic", "password": "a long password", "role": "field"});
    fleet.post("/api/v1/operators", body).await;
    let vic = fleet.token("vic", "a long password").await;
    let (id, ..) = draft(&fleet, &fleet.admin, None).await;
    for path in [
        "/api/v1/routes/drafts".to_owned(),
        format!("/api/v1/routes/drafts/{id}/propose"),
        format!("/api/v1/routes/drafts/{id}/withdraw"),
        format!("/api/v1/routes/drafts/{id}/approve"),
        "/api/v1/routes/1/rollback".to_owned(),
    ] {
        let refused = fleet.api(&vic, Method::POST, &path, Some(json!({}))).await;
        assert_eq!((refused.status, refused.slug()), (StatusCode::FORBIDDEN, "forbidden"), "{path}");
    }
    let looked = fleet.api(&vic, Method::GET, &format!("/api/v1/routes/drafts/{id}/preview"), None).await;
    assert_eq!(looked.status, StatusCode::OK);
    fleet.running.stop().await;
}
