use super::*;
use crate::config::Config;
use crate::identity::testing::{Fleet, Manner, files_below};
use crate::identity::{activate, activate::Request, load};
use tempfile::TempDir;

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

fn present(dir: &TempDir) -> Present {
    let loaded = load(dir.path(), &Config::default()).unwrap();
    let tls = loaded.client_config().unwrap();
    Present { dir: dir.path().to_owned(), activation: loaded.activation.unwrap(), tls }
}

fn shown(dir: &TempDir) -> [u8; 32] {
    load(dir.path(), &Config::default()).unwrap().credential.unwrap().fingerprint()
}

#[tokio::test]
async fn a_new_certificate_is_kept_after_it_has_connected() {
    let (fleet, dir) = activated().await;
    let before = shown(&dir);
    renew(present(&dir)).await.unwrap();
    assert_ne!(shown(&dir), before);
    // It is what the device shows from now on.
    renew(present(&dir)).await.unwrap();
    fleet.heard(|heard| assert_eq!(heard.renewals, ["POS-US-0001", "POS-US-0001"]));
    assert_eq!(files_below(dir.path()).len(), 5, "{:?}", files_below(dir.path()));
}

#[tokio::test]
async fn a_certificate_that_does_not_connect_is_dropped_and_the_old_one_stays() {
    let (fleet, dir) = activated().await;
    let before = (shown(&dir), files_below(dir.path()));
    fleet.answers(Manner::UnacceptedAuthority);
    let error = renew(present(&dir)).await.unwrap_err();
    assert!(matches!(error, RenewError::DoesNotConnect(_)), "{}", crate::net::explain(&error));
    assert_eq!((shown(&dir), files_below(dir.path())), before);
    // The old one still works.
    fleet.answers(Manner::Honest);
    renew(present(&dir)).await.unwrap();
}

#[tokio::test]
async fn a_refusal_or_an_answer_that_is_wrong_keeps_the_old_certificate() {
    let (fleet, dir) = activated().await;
    let before = (shown(&dir), files_below(dir.path()));
    for manner in [
        Manner::Problem(403, "device-blocked"),
        Manner::Problem(503, "busy"),
        Manner::OtherKey,
        Manner::OtherName,
        Manner::ForeignAuthority,
        Manner::Ended,
    ] {
        fleet.answers(manner.clone());
        let error = renew(present(&dir)).await.unwrap_err();
        assert!(matches!(error, RenewError::Refused { .. } | RenewError::Answer(_)), "{manner:?}: {error}");
        assert_eq!((shown(&dir), files_below(dir.path())), before, "{manner:?}");
    }
}

#[tokio::test]
async fn a_renewal_never_brings_back_an_identity_that_was_replaced_meanwhile() {
    let (fleet, dir) = activated().await;
    let old = present(&dir);
    let again = Request {
        server: &fleet.url,
        claim: "USW-2",
        ca: Some(&fleet.ca_file),
        data: dir.path(),
        replace: true,
        pending: 0,
    };
    activate(&again).await.unwrap();
    let replaced = shown(&dir);
    let error = renew(old).await.unwrap_err();
    assert!(matches!(error, RenewError::Files(FilesError::Changed)), "{error}");
    assert_eq!(shown(&dir), replaced);
}
