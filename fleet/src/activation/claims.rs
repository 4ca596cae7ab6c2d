//! Claims in the database: making them and using them up.

use std::collections::BTreeMap;
use std::time::Duration;

use samovar_wire::activation::ClaimRequest;
use samovar_wire::ids::DeviceClass;
use samovar_wire::{Country, DeviceId, StoreId, Timestamp};
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::OnConflict;
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _, sea_query::Expr};

use super::code::ClaimCode;
use super::revocation;
use crate::audit;
use crate::db::entity::{certificate, claim, device, store};
use crate::db::{Database, DatabaseError, Write};
use crate::pki::csr::{Request, RequestError};
use crate::pki::{Authority, PkiError};

/// A claim cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// There is no such store.
    #[error("there is no store {0}")]
    NoStore(StoreId),
    /// No randomness.
    #[error(transparent)]
    Random(#[from] crate::random::NoRandomness),
    /// Not stored.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// A claim cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UseError {
    /// No such code.
    #[error("this claim code is not known; check it letter by letter")]
    Unknown,
    /// Used by another key, or used and ended.
    #[error("this claim code has been used; ask for a new one")]
    Used,
    /// Its time is over.
    #[error("this claim code has expired; ask for a new one")]
    Expired,
    /// The request for a certificate is no good. The claim stays open.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The claim's store or names are no longer valid.
    #[error("the claim names a {0} that no longer exists")]
    Gone(&'static str),
    /// The certificate cannot be issued. The claim stays open.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// Not stored. The claim stays open.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl From<sea_orm::DbErr> for UseError {
    fn from(error: sea_orm::DbErr) -> Self {
        Self::Database(DatabaseError::Statement(error))
    }
}

/// What a claim is for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The store.
    pub store: StoreId,
    /// The device it will be.
    pub device: DeviceId,
    /// Its class.
    pub class: DeviceClass,
    /// How long the code lives.
    pub lasting: Duration,
}

/// What became of a claim: the device and its certificate.
#[derive(Clone, Debug)]
pub struct Activated {
    /// The device.
    pub device: DeviceId,
    /// Its store.
    pub store: StoreId,
    /// The store's country.
    pub country: Country,
    /// The device's class.
    pub class: DeviceClass,
    /// The certificate (PEM).
    pub certificate: String,
    /// The same answer as before, for the same key.
    pub repeated: bool,
}

/// Makes a claim.
///
/// # Errors
/// [`MakeError`].
pub async fn make(
    database: &Database,
    fleet: &str,
    wanted: &Wanted,
    by: &str,
    now: Timestamp,
) -> Result<(ClaimCode, Timestamp), MakeError> {
    let code = ClaimCode::generate(fleet)?;
    let expires_at = now.plus(wanted.lasting);
    let write = database.write().await?;
    let known = store::Entity::find_by_id(wanted.store.as_str())
        .one(&*write)
        .await
        .map_err(DatabaseError::Statement)?;
    if known.is_none() {
        return Err(MakeError::NoStore(wanted.store.clone()));
    }
    let row = claim::ActiveModel {
        code: Set(code.to_string()),
        store: Set(wanted.store.to_string()),
        device: Set(wanted.device.to_string()),
        class: Set(wanted.class.to_string()),
        created_at: Set(now.millis()),
        created_by: Set(by.to_owned()),
        expires_at: Set(expires_at.millis()),
        used_at: Set(None),
        used_key: Set(None),
        serial: Set(None),
    };
    claim::Entity::insert(row).exec_without_returning(&*write).await.map_err(DatabaseError::Statement)?;
    // The code itself is a secret until it is used; the log names what it is for.
    let detail = format!("class {}, until {expires_at}", wanted.class);
    audit::record(&write, now, by, ("claim.make", &format!("{}/{}", wanted.store, wanted.device)), detail)
        .await?;
    write.commit().await?;
    Ok((code, expires_at))
}

/// Uses a claim up and issues the certificate, in one transaction.
///
/// # Errors
/// [`UseError`]; the claim is then as it was.
pub async fn consume(
    database: &Database,
    authority: &Authority,
    (code, request): (&ClaimCode, &ClaimRequest),
    days: u16,
    now: Timestamp,
) -> Result<Activated, UseError> {
    let csr = match Request::parse(&request.csr) {
        Ok(csr) => csr,
        // What is wrong with the code is said first: a technician can do something about it.
        Err(error) => return Err(wrong_code(database, code, now).await?.unwrap_or(UseError::Request(error))),
    };
    let key = csr.key_digest();
    let write = database.write().await?;
    // Taking the row first makes concurrent users of one code wait for each other, on either database.
    let taken = claim::Entity::update_many()
        .col_expr(claim::Column::UsedAt, Expr::value(now.millis()))
        .col_expr(claim::Column::UsedKey, Expr::value(key.clone()))
        .filter(claim::Column::Code.eq(code.to_string()))
        .filter(claim::Column::UsedAt.is_null())
        .filter(claim::Column::ExpiresAt.gt(now.millis()))
        .exec(&*write)
        .await?
        .rows_affected;
    let found = claim::Entity::find_by_id(code.to_string()).one(&*write).await?.ok_or(UseError::Unknown)?;
    if taken == 0 {
        return repeat(&write, &found, &key, now).await;
    }
    let who = identity(&write, &found).await?;
    let issued = authority.issue_device(&csr, (&who.device, &who.store), now, days)?;
    let row = certificate::ActiveModel {
        serial: Set(issued.serial.clone()),
        device: Set(who.device.to_string()),
        pem: Set(issued.pem.clone()),
        issued_at: Set(now.millis()),
        not_after: Set(issued.not_after.millis()),
        revoked_at: Set(None),
    };
    certificate::Entity::insert(row).exec_without_returning(&*write).await?;
    claim::Entity::update_many()
        .col_expr(claim::Column::Serial, Expr::value(issued.serial.clone()))
        .filter(claim::Column::Code.eq(code.to_string()))
        .exec(&*write)
        .await?;
    record_device(&write, &who, request, now).await?;
    // There is one machine of a name: the one before it, stolen or replaced, is let in no more.
    let replaced = revocation::revoke_but(&write, who.device.as_str(), &issued.serial, now).await?;
    let (store, class, serial) = (&who.store, &who.class, &issued.serial);
    let detail = format!("store {store}, class {class}, certificate {serial} replaces {replaced}");
    audit::record(&write, now, &found.created_by, ("device.activate", who.device.as_str()), detail).await?;
    write.commit().await?;
    Ok(Activated { certificate: issued.pem, ..who })
}

async fn wrong_code(
    database: &Database,
    code: &ClaimCode,
    now: Timestamp,
) -> Result<Option<UseError>, UseError> {
    let found = claim::Entity::find_by_id(code.to_string()).one(database.read()).await?;
    Ok(match found {
        None => Some(UseError::Unknown),
        Some(found) if found.used_at.is_some() => Some(UseError::Used),
        Some(found) if found.expires_at <= now.millis() => Some(UseError::Expired),
        Some(_) => None,
    })
}

async fn repeat(
    write: &Write,
    found: &claim::Model,
    key: &str,
    now: Timestamp,
) -> Result<Activated, UseError> {
    let alive = found.expires_at > now.millis();
    match (&found.used_key, &found.serial) {
        (None, _) if !alive => Err(UseError::Expired),
        (Some(used), Some(serial)) if alive && used == key => {
            let stored = certificate::Entity::find_by_id(serial).one(&**write).await?;
            let stored = stored.ok_or(UseError::Gone("certificate"))?;
            if stored.revoked_at.is_some() {
                return Err(UseError::Used);
            }
            let certificate = stored.pem;
            Ok(Activated { certificate, repeated: true, ..identity(write, found).await? })
        }
        _ => Err(UseError::Used),
    }
}

async fn identity(write: &Write, found: &claim::Model) -> Result<Activated, UseError> {
    let store =
        store::Entity::find_by_id(&found.store).one(&**write).await?.ok_or(UseError::Gone("store"))?;
    Ok(Activated {
        device: found.device.parse().map_err(|_| UseError::Gone("device"))?,
        store: store.id.parse().map_err(|_| UseError::Gone("store"))?,
        country: store.country.parse().map_err(|_| UseError::Gone("country"))?,
        class: found.class.parse().map_err(|_| UseError::Gone("class"))?,
        certificate: String::new(),
        repeated: false,
    })
}

/// What a machine says of itself, as much as is worth keeping: no machine is turned away for saying more.
fn described(hardware: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let cut = |text: &str, most: usize| text.chars().filter(|c| !c.is_control()).take(most).collect();
    hardware.iter().take(64).map(|(name, value)| (cut(name, 64), cut(value, 256))).collect()
}

async fn record_device(
    write: &Write,
    who: &Activated,
    request: &ClaimRequest,
    now: Timestamp,
) -> Result<(), UseError> {
    let hardware = serde_json::to_string(&described(&request.hardware)).unwrap_or_default();
    let row = device::ActiveModel {
        id: Set(who.device.to_string()),
        store: Set(who.store.to_string()),
        class: Set(who.class.to_string()),
        hardware: Set((!request.hardware.is_empty()).then_some(hardware)),
        activated_at: Set(now.millis()),
        created_at: Set(now.millis()),
    };
    let columns =
        [device::Column::Store, device::Column::Class, device::Column::Hardware, device::Column::ActivatedAt];
    device::Entity::insert(row)
        .on_conflict(OnConflict::column(device::Column::Id).update_columns(columns).to_owned())
        .exec_without_returning(&**write)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_description_of_hardware_is_kept_in_part() {
        let told: BTreeMap<_, _> =
            (0..100).map(|number| (format!("key {number:03}"), "x\u{7}".repeat(500))).collect();
        let kept = described(&told);
        assert_eq!((kept.len(), kept["key 000"].len()), (64, 256));
    }
}
