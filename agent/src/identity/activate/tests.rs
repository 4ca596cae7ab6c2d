use super::*;
use crate::identity::http::HttpError;
use crate::identity::testing::{Fleet, Manner, files_below, nobody, until};
use samovar_wire::dsse::Envelope;
use std::path::PathBuf;
use tempfile::TempDir;

const CLAIM: &str = "USW-7K2M-9QXD";
const OTHER_CLAIM: &str = "USW-AAAA-BBBB";

/// A data directory that does not exist yet, and how it is activated.
struct Device {
    _parent: TempDir,
    data: PathBuf,
    ca: PathBuf,
}

impl Device {
    fn of(fleet: &Fleet) -> Self {
        let parent = tempfile::tempdir().unwrap();
        Self { data: parent.path().join("data"), ca: fleet.ca_file.clone(), _parent: parent }
    }

    fn request<'a>(&'a self, server: &'a str, claim: &'a str) -> Request<'a> {
        Request { server, claim, ca: Some(&self.ca), data: &self.data, replace: false, pending: 0 }
    }

    async fn activate(&self, server: &str, claim: &str) -> Result<Activated, ActivateError> {
        activate(&self.request(server, claim)).await
    }

    fn kept(&self) -> Vec<String> {
        files_below(&self.data)
    }
}

#[tokio::test]
async fn a_valid_claim_makes_an_activation_with_everything_the_fleet_granted() {
    let fleet = Fleet::start().await;
    let device = Device::of(&fleet);
    let granted = device.activate(&fleet.url, &format!(" {CLAIM}\n")).await.unwrap();
    assert_eq!(granted.device.as_str(), "POS-US-0001");
    assert_eq!(granted.fleet_url, fleet.url, "without a fleet_url it is the server that answered");
    let loaded = crate::identity::load(&device.data, &crate::config::Config::default()).unwrap();
    let who = loaded.identity.unwrap();
    assert_eq!((who.store.as_str(), who.country.as_str(), who.class.as_str()), ("US-0001", "US", "pos"));
    assert_eq!(who.mqtt_url.as_deref(), Some("mqtts://localhost:8883"));
    assert!(who.trusted_keys.contains_key("k1"));
    assert_eq!(loaded.credential.unwrap().common_name(), "POS-US-0001");
    let table = store::read(&device.data.join(files::ROUTE_TABLE)).unwrap().unwrap();
    let table: Envelope = serde_json::from_slice(&table).unwrap();
    assert!(table.open(samovar_wire::dsse::ROUTE_TABLE, &who.trusted_keys).is_ok());
    assert_eq!(device.kept().len(), 5, "{:?}", device.kept());
    fleet.heard(|heard| assert_eq!(heard.hardware[0]["agent"], env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn a_refused_claim_says_why_and_what_to_do_and_leaves_no_trace() {
    let fleet = Fleet::start().await;
    for (status, slug, advice) in [
        (404, "unknown-claim", words::UNKNOWN),
        (409, "claim-used", words::USED),
        (410, "claim-expired", words::EXPIRED),
        (422, "invalid-csr", words::SUPPORT),
    ] {
        let device = Device::of(&fleet);
        fleet.answers(Manner::Problem(status, slug));
        let error = device.activate(&fleet.url, CLAIM).await.unwrap_err();
        assert!(error.is_refusal(), "{error}");
        assert!(error.to_string().contains(&format!("({status}): the fleet says {slug}")), "{error}");
        assert_eq!(error.advice(), advice);
        assert!(!device.data.exists(), "{:?}", device.kept());
    }
}

#[tokio::test]
async fn a_directory_that_was_there_before_stays_after_a_refusal() {
    let fleet = Fleet::start().await;
    fleet.answers(Manner::Problem(404, "unknown-claim"));
    let device = Device::of(&fleet);
    std::fs::create_dir(&device.data).unwrap();
    device.activate(&fleet.url, CLAIM).await.unwrap_err();
    assert!(device.data.exists());
    assert!(device.kept().is_empty(), "{:?}", device.kept());
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_with_the_same_key() {
    let fleet = Fleet::start().await;
    let device = Device::of(&fleet);
    fleet.answers(Manner::CutShort);
    let error = device.activate(&fleet.url, CLAIM).await.unwrap_err();
    assert!(error.may_have_arrived(), "{error}");
    assert_eq!(error.advice(), words::AGAIN);
    assert_eq!(device.kept().len(), 1, "only the key of the claim is kept: {:?}", device.kept());
    // A mistyped code in between, and a fleet that is away for a moment, do not cost the key.
    fleet.answers(Manner::Problem(404, "unknown-claim"));
    device.activate(&fleet.url, OTHER_CLAIM).await.unwrap_err();
    let away = format!("https://{}", nobody().await);
    let error = device.activate(&away, CLAIM).await.unwrap_err();
    assert!(matches!(error, ActivateError::Http(HttpError::NotConnected { .. })), "{error}");
    fleet.answers(Manner::Problem(503, "starting"));
    assert!(matches!(device.activate(&fleet.url, CLAIM).await, Err(ActivateError::Busy { .. })));
    fleet.answers(Manner::Honest);
    device.activate(&fleet.url, CLAIM).await.unwrap();
    fleet.heard(|heard| {
        let [first, mistyped, .., last] = heard.claimed.as_slice() else { panic!() };
        assert_eq!(first, last);
        assert_ne!(first, mistyped);
    });
    assert_eq!(device.kept().len(), 5, "{:?}", device.kept());
}

#[tokio::test]
async fn an_answer_that_is_wrong_in_any_way_activates_nothing() {
    let fleet = Fleet::start().await;
    for (manner, words) in [
        (Manner::OtherKey, "not for this device's key"),
        (Manner::OtherName, "is for `POS-US-9999`"),
        (Manner::ForeignAuthority, "was not issued by the certificate authority"),
        (Manner::Ended, "expired at"),
        (Manner::StrangersTable, "route table in the answer not trusted"),
        (Manner::OtherEnvironment, "is for environment `test`"),
        (Manner::BadId, "`POS/../1` is not valid"),
        (Manner::BadMqtt, "the mqtt_url `gopher://x`"),
        (Manner::Page(200, "<html>please sign in</html>"), "is not a grant"),
        (Manner::Page(201, "{}"), "is not a grant"),
    ] {
        let device = Device::of(&fleet);
        fleet.answers(manner.clone());
        let error = device.activate(&fleet.url, CLAIM).await.unwrap_err();
        assert!(matches!(error, ActivateError::Answer { .. }), "{manner:?}: {error}");
        assert!(error.to_string().contains(words), "{manner:?}: {error}");
        assert_eq!(device.kept().len(), 1, "{manner:?}: only the key of the claim: {:?}", device.kept());
        let loaded = crate::identity::load(&device.data, &crate::config::Config::default()).unwrap();
        assert!(loaded.identity.is_none(), "{manner:?}");
        // Nothing of it stands in the way of the right answer.
        fleet.answers(Manner::Honest);
        device.activate(&fleet.url, CLAIM).await.unwrap();
    }
}

#[tokio::test]
async fn a_claim_is_passed_on_to_the_fleet_that_made_it() {
    let (first, second) = (Fleet::start().await, Fleet::start().await);
    let device = Device::of(&first);
    let both = [&first.ca_file, &second.ca_file].map(|file| store::read(file).unwrap().unwrap()).concat();
    store::replace(&first.ca_file, &both, 0o644).unwrap();
    first.answers(Manner::Elsewhere(format!("{}{CLAIMS}", second.url)));
    let granted = device.activate(&first.url, CLAIM).await.unwrap();
    assert_eq!(granted.fleet_url, second.url);
    let keys = [&first, &second].map(|fleet| fleet.heard(|heard| heard.claimed.clone()));
    assert_eq!(keys[0], keys[1]);
}

#[tokio::test]
async fn a_claim_goes_neither_round_in_circles_nor_out_of_tls() {
    let fleet = Fleet::start().await;
    let device = Device::of(&fleet);
    fleet.answers(Manner::Elsewhere(CLAIMS.to_owned()));
    let error = device.activate(&fleet.url, CLAIM).await.unwrap_err();
    assert!(matches!(error, ActivateError::TooManyHops), "{error}");
    fleet.heard(|heard| assert_eq!(heard.claimed.len(), 1 + MAX_HOPS));
    for elsewhere in ["http://127.0.0.1:9/x", "http://fleet.example/x", "ftp://x", ""] {
        fleet.answers(Manner::Elsewhere(elsewhere.to_owned()));
        let error = device.activate(&fleet.url, CLAIM).await.unwrap_err();
        assert!(matches!(error, ActivateError::Redirect { .. }), "{elsewhere}: {error}");
    }
    assert!(!device.data.exists(), "{:?}", device.kept());
}

#[tokio::test]
async fn what_is_no_fleet_is_told_apart_from_a_refusal() {
    let fleet = Fleet::start().await;
    let device = Device::of(&fleet);
    for status in [204, 302, 403, 404, 511] {
        fleet.answers(Manner::Page(status, "<html>"));
        let error = device.activate(&fleet.url, CLAIM).await.unwrap_err();
        let expected = if status == 511 { "cannot answer now" } else { "which no fleet does" };
        assert!(error.to_string().contains(expected), "{status}: {error}");
        assert!(!error.is_refusal());
    }
}

#[tokio::test]
async fn a_fleet_on_this_machine_may_do_without_tls() {
    let fleet = Fleet::start().await;
    let device = Device::of(&fleet);
    let request = Request { ca: None, ..device.request(&fleet.plain_url, CLAIM) };
    assert_eq!(activate(&request).await.unwrap().fleet_url, fleet.plain_url);
}

#[tokio::test]
async fn only_named_authorities_are_believed() {
    let (fleet, stranger) = (Fleet::start().await, Fleet::start().await);
    let device = Device::of(&stranger);
    let error = device.activate(&fleet.url, CLAIM).await.unwrap_err();
    assert!(
        crate::net::explain(&error).contains("invalid peer certificate"),
        "{}",
        crate::net::explain(&error)
    );
    assert_eq!(error.advice(), words::LINE);
    assert!(!device.data.exists(), "{:?}", device.kept());
    fleet.heard(|heard| assert!(heard.claimed.is_empty()));
}

#[tokio::test]
async fn bad_requests_are_refused_before_anything_is_sent_or_written() {
    let fleet = Fleet::start().await;
    let device = Device::of(&fleet);
    for (server, claim) in [
        ("http://fleet.example", CLAIM),
        ("fleet.example", CLAIM),
        (fleet.url.as_str(), ""),
        (fleet.url.as_str(), "a b"),
        (fleet.url.as_str(), &"A".repeat(65)),
    ] {
        let error = device.activate(server, claim).await.unwrap_err();
        assert!(matches!(error, ActivateError::Server(_) | ActivateError::Claim(_)), "{error}");
    }
    let missing = device.data.with_file_name("missing.pem");
    let error =
        activate(&Request { ca: Some(&missing), ..device.request(&fleet.url, CLAIM) }).await.unwrap_err();
    assert!(error.to_string().contains("missing.pem does not exist"), "{error}");
    assert!(!device.data.exists());
    fleet.heard(|heard| assert!(heard.claimed.is_empty()));
}

#[tokio::test]
async fn an_identity_is_replaced_only_on_demand_and_never_while_orders_wait() {
    let fleet = Fleet::start().await;
    let device = Device::of(&fleet);
    device.activate(&fleet.url, CLAIM).await.unwrap();
    let error = device.activate(&fleet.url, OTHER_CLAIM).await.unwrap_err();
    assert!(matches!(error, ActivateError::AlreadyActive(_)), "{error}");
    let again = Request { replace: true, pending: 3, ..device.request(&fleet.url, OTHER_CLAIM) };
    let error = activate(&again).await.unwrap_err();
    assert!(matches!(error, ActivateError::OrdersPending(3)), "{error}");
    fleet.heard(|heard| assert_eq!(heard.claimed.len(), 1));
    // A refusal leaves the identity that is there.
    fleet.answers(Manner::Problem(410, "claim-expired"));
    activate(&Request { pending: 0, ..again }).await.unwrap_err();
    assert_eq!(device.kept().len(), 5, "{:?}", device.kept());
    fleet.answers(Manner::Honest);
    activate(&Request { pending: 0, ..again }).await.unwrap();
    assert_eq!(device.kept().len(), 5, "{:?}", device.kept());
}

#[tokio::test]
async fn a_device_whose_certificate_is_lost_or_over_is_activated_again_with_its_waiting_orders_but_as_no_other()
 {
    let fleet = Fleet::start().await;
    for lost in [true, false] {
        let device = Device::of(&fleet);
        fleet.answers(if lost { Manner::Honest } else { Manner::NearEnd(1) });
        device.activate(&fleet.url, CLAIM).await.unwrap();
        if lost {
            store::replace(&device.data.join("identity/credential-1/device.key"), b"", 0o600).unwrap();
        } else {
            until("the certificate has ended", || !still_valid(&device.data)).await;
        }
        let again = Request { replace: true, pending: 3, ..device.request(&fleet.url, OTHER_CLAIM) };
        fleet.answers(Manner::OtherDevice);
        let error = activate(&again).await.unwrap_err();
        assert!(matches!(error, ActivateError::OtherDevice { .. }), "{error}");
        fleet.answers(Manner::Honest);
        activate(&again).await.unwrap();
        assert!(still_valid(&device.data));
    }
}

fn still_valid(data: &Path) -> bool {
    let loaded = crate::identity::load(data, &crate::config::Config::default()).unwrap();
    loaded.credential.is_some_and(|own| own.validity().not_after > clock::wall())
}

#[tokio::test]
async fn a_key_is_never_in_what_is_printed() {
    let fleet = Fleet::start().await;
    let device = Device::of(&fleet);
    device.activate(&fleet.url, CLAIM).await.unwrap();
    let loaded = crate::identity::load(&device.data, &crate::config::Config::default()).unwrap();
    let (pem, printed) =
        (store::read(&device.data.join("identity/credential-1/device.key")), format!("{loaded:?}"));
    let pem = String::from_utf8(pem.unwrap().unwrap()).unwrap();
    let key = certificate::read_key(pem.as_bytes()).unwrap();
    let secret = key.secret_der()[36..68].iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    assert!(!printed.contains(&secret));
}
