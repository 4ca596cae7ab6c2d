use super::*;
use crate::identity::certificate::CertificateError;
use crate::identity::testing::{Authority, Fleet, MONTHS};
use crate::identity::{activate, activate::Request};
use crate::store;
use tempfile::TempDir;

const KEY: &str = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";

fn config(text: &str) -> Config {
    toml::from_str(text).unwrap()
}

const STANDALONE: &str =
    r#"identity = { device = "POS-JP-0007", store = "JP-0001", country = "JP", class = "kiosk" }"#;

async fn activated() -> (Fleet, TempDir) {
    let (fleet, dir) = (Fleet::start().await, tempfile::tempdir().unwrap());
    let request = Request {
        server: &fleet.url,
        claim: "USW-1",
        ca: Some(&fleet.ca_file),
        data: dir.path(),
        replace: false,
        pending: 0,
    };
    activate(&request).await.unwrap();
    (fleet, dir)
}

#[test]
fn nobody_has_said_who_the_device_is() {
    let dir = tempfile::tempdir().unwrap();
    let loaded = load(dir.path(), &config("[routing]\nenvironment = \"test\"")).unwrap();
    assert_eq!(loaded.identity, None);
    assert!(loaded.credential.is_none() && loaded.set_aside.is_empty());
}

#[test]
fn a_configured_device_needs_no_activation() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "{STANDALONE}\nrelay = {{ url = \"mqtt://127.0.0.1:1883\" }}\nrouting = {{ trusted_keys = {{ k9 = \"{KEY}\" }} }}"
    );
    let who = load(dir.path(), &config(&text)).unwrap().identity.unwrap();
    assert_eq!((who.device.as_str(), who.environment.as_str()), ("POS-JP-0007", "prod"));
    assert_eq!(who.mqtt_url.as_deref(), Some("mqtt://127.0.0.1:1883"));
    assert_eq!(who.fleet_url, None);
    assert!(who.trusted_keys.contains_key("k9") && who.commands_keys.is_empty());
}

#[tokio::test]
async fn the_configuration_goes_over_the_activation_and_keys_are_those_of_both() {
    let (fleet, dir) = activated().await;
    let text = format!(
        "{STANDALONE}\nrelay = {{ url = \"\" }}\nrouting = {{ environment = \"lab\", trusted_keys = {{ k9 = \"{KEY}\" }} }}"
    );
    let who = load(dir.path(), &config(&text)).unwrap().identity.unwrap();
    assert_eq!((who.device.as_str(), who.environment.as_str()), ("POS-JP-0007", "lab"));
    assert_eq!(who.mqtt_url, None, "an empty URL is off");
    assert_eq!(who.fleet_url.as_deref(), Some(fleet.url.as_str()));
    assert_eq!(who.trusted_keys.keys().collect::<Vec<_>>(), ["k1", "k9"]);
    assert_eq!(who.trusted_keys["k1"], fleet.signer().public());
}

#[tokio::test]
async fn the_activation_brings_certificate_and_roots_unless_the_configuration_does() {
    let (fleet, dir) = activated().await;
    let loaded = load(dir.path(), &Config::default()).unwrap();
    assert!(loaded.renewable && loaded.roots.is_some() && loaded.client_config().is_ok());
    assert_eq!(loaded.credential.as_ref().unwrap().common_name(), "POS-US-0001");
    let own = Files::new(fleet.authority());
    let loaded = load(dir.path(), &own.config()).unwrap();
    assert_eq!(loaded.credential.as_ref().unwrap().common_name(), "OWN");
    assert!(!loaded.renewable, "what a person provided is not the fleet's to renew");
}

/// Files that a configuration names.
struct Files(TempDir);

impl Files {
    fn new(authority: &Authority) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        let key = rcgen::KeyPair::generate().unwrap();
        files.write("key.pem", &key.serialize_pem());
        files.write("cert.pem", &authority.sign_device(&key, "OWN", MONTHS));
        files.write("ca.pem", &authority.pem);
        files
    }

    fn write(&self, name: &str, content: &str) {
        store::replace(&self.0.path().join(name), content.as_bytes(), 0o600).unwrap();
    }

    fn config(&self) -> Config {
        let mut config = Config::default();
        let path = |name: &str| Some(self.0.path().join(name));
        config.origin.tls = Some(crate::config::OriginTls {
            ca: path("ca.pem"),
            cert: path("cert.pem"),
            key: path("key.pem"),
        });
        config
    }
}

#[test]
fn a_configured_file_that_is_not_what_it_should_be_is_named_with_its_problem() {
    let authority = Authority::new("ca");
    let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let cases: [(&str, &str, CertificateError); 4] = [
        ("ca.pem", "nothing", CertificateError::NoCertificate),
        ("cert.pem", "nothing", CertificateError::NoCertificate),
        ("key.pem", "nothing", CertificateError::NoKey),
        ("key.pem", &other, CertificateError::KeyMismatch),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (name, content, expected) in cases {
        let files = Files::new(&authority);
        assert!(load(dir.path(), &files.config()).unwrap().client_config().is_ok());
        files.write(name, content);
        let Err(LoadError::Tls(TlsError::File { path, problem })) = load(dir.path(), &files.config()) else {
            panic!("{name} was accepted");
        };
        assert_eq!(problem, expected);
        let named = if problem == CertificateError::KeyMismatch { "cert.pem" } else { name };
        assert_eq!(path.file_name().unwrap(), named);
        assert!(files.0.path().join(name).exists(), "a person's file is never moved");
    }
    let files = Files::new(&authority);
    std::fs::remove_file(files.0.path().join("key.pem")).unwrap();
    assert!(matches!(load(dir.path(), &files.config()), Err(LoadError::Tls(TlsError::Missing(_)))));
}
