//! Who sends: the certificate says so, or a token vouches for the name (IO).

use http::{HeaderMap, StatusCode};
use samovar_wire::DeviceId;
use samovar_wire::orders::{HEADER_DEVICE, HEADER_LEDGER, HEADER_STORE, HEADER_UDL};
use sea_orm::EntityTrait as _;

use crate::app::App;
use crate::auth::extract::{bearer, same};
use crate::db::entity::certificate;
use crate::pki::PeerCertificate;
use crate::problem::Failure;

/// Who sent a batch.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    pub(super) device: DeviceId,
    pub(super) store: String,
    pub(super) ledger: String,
    pub(super) udl: String,
    pub(super) origin: String,
}

/// The sender of a batch, by its headers.
pub(super) async fn sender(
    app: &App,
    peer: Option<PeerCertificate>,
    headers: &HeaderMap,
) -> Result<Sender, Failure> {
    vouched(app, peer.as_ref(), headers)?;
    let named = text(headers, HEADER_DEVICE)
        .ok_or_else(|| Failure::malformed("the header Samovar-Device is missing"))?;
    let device: DeviceId =
        named.parse().map_err(|_| Failure::malformed("Samovar-Device is not a device ID"))?;
    is_named(app, peer.as_ref(), &device).await?;
    let store = peer.and_then(|peer| peer.store).or_else(|| text(headers, HEADER_STORE)).unwrap_or_default();
    let sender = Sender {
        device,
        store,
        ledger: text(headers, HEADER_LEDGER).unwrap_or_default(),
        udl: text(headers, HEADER_UDL).unwrap_or_default(),
        origin: app.config.intake.origin.clone(),
    };
    if [&sender.store, &sender.ledger, &sender.udl].iter().any(|text| text.len() > 128) {
        return Err(Failure::malformed("Samovar-Store, Samovar-Ledger or UDL is too long"));
    }
    Ok(sender)
}

/// Refuses whoever shows neither a certificate nor a token.
pub(super) fn vouched(app: &App, peer: Option<&PeerCertificate>, headers: &HeaderMap) -> Result<(), Failure> {
    let tokens = &app.config.intake.tokens;
    if peer.is_some() || bearer(headers).is_some_and(|shown| tokens.iter().any(|token| same(token, shown))) {
        return Ok(());
    }
    let detail = "a client certificate or a bearer token is needed";
    Err(Failure::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail))
}

/// Refuses a certificate of another device than the one named, and one that has been revoked.
pub(super) async fn is_named(
    app: &App,
    peer: Option<&PeerCertificate>,
    device: &DeviceId,
) -> Result<(), Failure> {
    let Some(peer) = peer else { return Ok(()) };
    if peer.device != *device {
        let detail = format!("the certificate is {}'s, the request says {device}", peer.device);
        return Err(Failure::new(StatusCode::FORBIDDEN, "device-mismatch", detail));
    }
    refuse_revoked(app, peer).await
}

/// Refuses a request whose header names another device than its document.
pub(super) fn agrees(headers: &HeaderMap, device: &DeviceId) -> Result<(), Failure> {
    match text(headers, HEADER_DEVICE) {
        Some(named) if named != device.as_str() => {
            let detail = format!("the header Samovar-Device says {named:?}, the request says {device}");
            Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "device-mismatch", detail))
        }
        _ => Ok(()),
    }
}

/// Certificates of other authorities (an origin of another fleet) have no row here and pass.
pub(crate) async fn refuse_revoked(app: &App, peer: &PeerCertificate) -> Result<(), Failure> {
    let found = certificate::Entity::find_by_id(&peer.serial).one(app.database.read()).await?;
    if found.is_some_and(|found| found.revoked_at.is_some()) {
        let detail = "this certificate has been revoked";
        return Err(Failure::new(StatusCode::FORBIDDEN, "certificate-revoked", detail));
    }
    Ok(())
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}
