//! The pages of route tables as a browser without scripts uses them: forms, redirects, both languages.

use http::StatusCode;
use serde_json::{Value, json};

use crate::world::{Backend, Fleet, client};

/// A browser that is signed in.
struct Browser {
    http: reqwest::Client,
    base: String,
    cookie: String,
}

struct Page {
    status: StatusCode,
    location: String,
    text: String,
}

impl Browser {
    async fn open(fleet: &Fleet, name: &str, password: &str) -> Self {
        let mut browser = Self { http: client(None, None), base: fleet.http(), cookie: String::new() };
        let form = format!("name={name}&password={}", password.replace(' ', "+"));
        let request = browser.http.post(format!("{}/console/sign-in", browser.base)).body(form);
        let answer =
            request.header("content-type", "application/x-www-form-urlencoded").send().await.unwrap();
        let cookie = answer.headers()["set-cookie"].to_str().unwrap();
        browser.cookie = cookie.split(';').next().unwrap().to_owned();
        browser
    }

    async fn get(&self, path: &str) -> Page {
        self.send(self.http.get(format!("{}{path}", self.base))).await
    }

    async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Page {
        let form: Vec<String> =
            fields.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        let request = self.http.post(format!("{}{path}", self.base)).body(form.join("&"));
        self.send(request.header("content-type", "application/x-www-form-urlencoded")).await
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Page {
        let answer = request.header("cookie", &self.cookie).send().await.unwrap();
        let location = answer.headers().get("location").map(|value| value.to_str().unwrap().to_owned());
        let status = answer.status();
        Page { status, location: location.unwrap_or_default(), text: answer.text().await.unwrap() }
    }
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(
            |byte| {
                if byte.is_ascii_alphanumeric() {
                    char::from(byte).to_string()
                } else {
                    format!("%{byte:02X}")
                }
            },
        )
        .collect()
}

/// The value of a hidden field.
fn hidden(page: &Page, name: &str) -> String {
    let (_, rest) = page
        .text
        .split_once(&format!("name=\"{name}\" value=\""))
        .unwrap_or_else(|| panic!("{name} in {}", page.text));
    rest.split('"').next().unwrap().to_owned()
}

async fn fleet_with_stores(settings: &[&str]) -> Fleet {
    let fleet = Fleet::start(Backend::Sqlite, settings).await;
    fleet.store("US-0001").await;
    let japan = json!({"id": "JP-0001", "country": "JP", "name": "x"});
    assert_eq!(fleet.post("/api/v1/stores", japan).await.status, StatusCode::CREATED);
    for (name, role) in [("ann", "netops"), ("bob", "netops"), ("vic", "viewer")] {
        let body = json!({"name": name, "password": "a long password", "role": role});
        assert_eq!(fleet.post("/api/v1/operators", body).await.status, StatusCode::CREATED);
    }
    fleet
}

/// Begins a draft by its form; the draft's page, and its table without Japan.
async fn draft_without_japan(fleet: &Fleet, browser: &Browser) -> (String, String) {
    let csrf = hidden(&browser.get("/console/routes").await, "csrf");
    let forged = browser.post("/console/routes/drafts", &[("csrf", "x"), ("title", "t")]).await;
    assert_eq!(forged.status, StatusCode::FORBIDDEN);
    let made = browser.post("/console/routes/drafts", &[("csrf", &csrf), ("title", "drop <Japan>")]).await;
    assert_eq!(made.status, StatusCode::SEE_OTHER, "{}", made.text);
    let place = made.location;
    assert!(browser.get(&place).await.text.contains("drop &#60;Japan&#62;"), "escaped");
    let id = place.rsplit('/').next().unwrap();
    let current = fleet.get(&format!("/api/v1/routes/drafts/{id}")).await.body;
    let mut table: Value = serde_json::from_str(current["document"].as_str().unwrap()).unwrap();
    table["countries"].as_object_mut().unwrap().remove("JP");
    (place, table.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_goes_from_draft_to_force_and_back_by_forms_alone() {
    let fleet = fleet_with_stores(&["routes.four_eyes=true"]).await;
    let ann = Browser::open(&fleet, "ann", "a long password").await;
    let bob = Browser::open(&fleet, "bob", "a long password").await;
    let (place, text) = draft_without_japan(&fleet, &ann).await;
    let page = ann.get(&place).await;
    let (csrf, revision) = (hidden(&page, "csrf"), hidden(&page, "revision"));
    let fields = |deed: &'static str, text: &str, revision: &str| {
        [
            ("csrf", csrf.clone()),
            ("do", deed.to_owned()),
            ("title", "drop Japan".to_owned()),
            ("document", text.to_owned()),
            ("revision", revision.to_owned()),
        ]
    };
    let post = async |deed: &'static str, text: &str, revision: &str| {
        let fields = fields(deed, text, revision);
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        ann.post(&place, &fields).await
    };
    let broken = post("save", "{\"schema\": 1,", &revision).await;
    assert_eq!(broken.status, StatusCode::SEE_OTHER, "a draft may be broken");
    let page = ann.get(&format!("{place}?lang=zh")).await;
    assert!(page.text.contains("无法解析") && page.text.contains("整个文档"), "{}", page.text);
    let late = post("save", &text, &revision).await;
    assert_eq!(late.status, StatusCode::CONFLICT);
    assert!(late.text.contains("us") && late.text.contains("&#34;countries&#34;"), "the text is not lost");
    let revision = hidden(&page, "revision");
    assert_eq!(post("preview", &text, &revision).await.location, format!("{place}/preview"));
    let preview = ann.get(&format!("{place}/preview?lang=en&store=JP-0001")).await;
    assert!(
        preview.text.contains("no longer served") && preview.text.contains("class=\"held\""),
        "{}",
        preview.text
    );
    assert!(preview.text.contains("JP is not in the route table"), "asked for one store");
    let senseless = ann.get(&format!("{place}/preview?at=soon")).await;
    assert_eq!(senseless.status, StatusCode::OK);
    assert!(senseless.text.contains("role=\"alert\""));
    let revision = hidden(&ann.get(&place).await, "revision");
    assert_eq!(post("propose", &text, &revision).await.location, place);
    let revision = hidden(&ann.get(&place).await, "revision");
    let own = ann.post(&place, &[("csrf", &csrf), ("do", "approve"), ("revision", &revision)]).await;
    assert!(own.status == StatusCode::CONFLICT && own.text.contains("another operator"), "{}", own.text);
    let csrf = hidden(&bob.get(&place).await, "csrf");
    let unseen = bob.post(&place, &[("csrf", &csrf), ("do", "approve"), ("revision", "1")]).await;
    assert!(
        unseen.status == StatusCode::CONFLICT && unseen.text.contains("look at it again"),
        "{}",
        unseen.text
    );
    let approved = bob.post(&place, &[("csrf", &csrf), ("do", "approve"), ("revision", &revision)]).await;
    assert_eq!(approved.status, StatusCode::SEE_OTHER, "{}", approved.text);
    let version: u64 = approved.location.rsplit('/').next().unwrap().parse().unwrap();
    assert!(bob.get(&approved.location).await.text.contains("countries removed: JP"));
    let older = format!("/console/routes/{}", version - 1);
    let back = bob.post(&older, &[("csrf", &csrf), ("reason", "too early")]).await;
    assert_eq!((back.status, back.location.as_str()), (StatusCode::SEE_OTHER, "/console/routes"));
    let current = fleet.get("/api/v1/routes/current").await.body;
    assert!(
        current["version"] == version + 1 && current["document"]["countries"]["JP"].is_object(),
        "{current}"
    );
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn viewers_see_every_page_in_both_languages_and_no_button_that_changes_something() {
    let fleet = fleet_with_stores(&[]).await;
    let admin = fleet.post("/api/v1/routes/drafts", json!({"title": "t"})).await;
    let draft = format!("/console/routes/drafts/{}", admin.body["id"]);
    let vic = Browser::open(&fleet, "vic", "a long password").await;
    let pages = [
        "/console/routes".to_owned(),
        "/console/routes/1".to_owned(),
        "/console/routes/1/preview".to_owned(),
        "/console/routes/stragglers?minutes=0".to_owned(),
        draft.clone(),
        format!("{draft}/preview"),
    ];
    for path in pages {
        for (language, word) in [("en", "Routes"), ("zh", "路由")] {
            let join = if path.contains('?') { '&' } else { '?' };
            let page = vic.get(&format!("{path}{join}lang={language}")).await;
            assert_eq!(page.status, StatusCode::OK, "{path}: {}", page.text);
            assert!(page.text.contains(word), "{path} {language}");
            for button in ["name=\"do\"", "name=\"reason\"", "/console/routes/drafts\""] {
                assert!(!page.text.contains(button), "{path}: {button}");
            }
        }
    }
    let csrf = hidden(&vic.get("/console").await, "csrf");
    let refused = vic.post(&draft, &[("csrf", &csrf), ("do", "discard")]).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert_eq!(vic.get("/console/routes/999").await.status, StatusCode::NOT_FOUND);
    assert_eq!(vic.get("/console/routes/drafts/999").await.status, StatusCode::NOT_FOUND);
    fleet.running.stop().await;
}
