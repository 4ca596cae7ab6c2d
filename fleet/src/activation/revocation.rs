//! Certificates that are no longer good, and the devices that have no other (IO).
//!
//! A device is *revoked* when every certificate that this fleet ever gave it has been revoked: it is let in nowhere, what
//! it says is ignored, and it is sent nothing. A device that never had one here (its certificates come from another
//! authority) is not. Whoever has been let in before is cut off by the broker inside; with somebody else's broker the
//! connection may stand, but nobody listens.

use std::collections::HashSet;

use samovar_wire::Timestamp;
use sea_orm::sea_query::Expr;
use sea_orm::{
    ColumnTrait as _, ConnectionTrait, DbErr, EntityTrait as _, QueryFilter as _, QuerySelect as _,
};

use crate::db::entity::certificate;
use crate::db::{Database, DatabaseError, Write};
use crate::ingest::entity::device_status;

/// Names in one question to the database.
const ASK: usize = 1000;

/// Revokes every certificate of a device and ends its presence; gives how many.
///
/// # Errors
/// When the database does not take it.
pub async fn revoke(write: &Write, device: &str, now: Timestamp) -> Result<u64, DbErr> {
    let revoked = revoke_but(write, device, "", now).await?;
    // After the certificates: a message that was being stored meanwhile holds this row and is undone by this.
    device_status::Entity::update_many()
        .col_expr(device_status::Column::Online, Expr::value(false))
        .col_expr(device_status::Column::Since, Expr::value(now.millis()))
        .filter(device_status::Column::Device.eq(device))
        .filter(device_status::Column::Online.eq(true))
        .exec(&**write)
        .await?;
    Ok(revoked)
}

/// Revokes every certificate of a device but one; gives how many.
///
/// # Errors
/// When the database does not take it.
pub async fn revoke_but(write: &Write, device: &str, serial: &str, now: Timestamp) -> Result<u64, DbErr> {
    let done = certificate::Entity::update_many()
        .col_expr(certificate::Column::RevokedAt, Expr::value(now.millis()))
        .filter(certificate::Column::Device.eq(device))
        .filter(certificate::Column::Serial.ne(serial))
        .filter(certificate::Column::RevokedAt.is_null())
        .exec(&**write)
        .await?;
    Ok(done.rows_affected)
}

/// Those of some devices that are revoked.
///
/// # Errors
/// When the database does not answer.
pub async fn among<C: ConnectionTrait>(connection: &C, devices: &[&str]) -> Result<HashSet<String>, DbErr> {
    let mut revoked = HashSet::new();
    for some in devices.chunks(ASK) {
        let rows: Vec<(String, i64, i64)> = certificate::Entity::find()
            .select_only()
            .column(certificate::Column::Device)
            .column_as(certificate::Column::Serial.count(), "given")
            .column_as(certificate::Column::RevokedAt.count(), "revoked")
            .filter(certificate::Column::Device.is_in(some.iter().copied()))
            .group_by(certificate::Column::Device)
            .into_tuple()
            .all(connection)
            .await?;
        revoked.extend(rows.into_iter().filter(|(_, given, gone)| given == gone).map(|(device, ..)| device));
    }
    Ok(revoked)
}

/// Certificates revoked since then: devices and serial numbers.
///
/// # Errors
/// When the database does not answer.
pub async fn since(database: &Database, then: Timestamp) -> Result<Vec<(String, String)>, DatabaseError> {
    let rows = certificate::Entity::find()
        .select_only()
        .columns([certificate::Column::Device, certificate::Column::Serial])
        .filter(certificate::Column::RevokedAt.gte(then.millis()));
    Ok(rows.into_tuple().all(database.read()).await?)
}
