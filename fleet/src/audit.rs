//! The audit log: who did what, to what, and when. Written in the transaction of the deed, so that there is never the
//! one without the other; rows are only ever added.

use samovar_wire::Timestamp;
use sea_orm::ActiveValue::{NotSet, Set};
use sea_orm::EntityTrait as _;

use crate::db::entity::audit;
use crate::db::{DatabaseError, Write};

/// Records a deed.
///
/// # Errors
/// When the database refuses; the caller's transaction must not be committed then.
pub async fn record(
    write: &Write,
    at: Timestamp,
    actor: &str,
    (action, subject): (&str, &str),
    detail: impl Into<String>,
) -> Result<(), DatabaseError> {
    let row = audit::ActiveModel {
        position: NotSet,
        at: Set(at.millis()),
        actor: Set(actor.to_owned()),
        action: Set(action.to_owned()),
        subject: Set(subject.to_owned()),
        detail: Set(detail.into()),
    };
    audit::Entity::insert(row).exec_without_returning(&**write).await?;
    Ok(())
}
