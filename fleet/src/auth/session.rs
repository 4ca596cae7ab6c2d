//! Sessions: a secret that its holder shows, kept here as a digest with an end.

use std::time::Duration;

use samovar_wire::Timestamp;
use samovar_wire::encoding::{hex, sha256};
use sea_orm::ActiveValue::Set;
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _};

use super::{Role, role_of};
use crate::audit;
use crate::db::entity::{operator, session};
use crate::db::{Database, DatabaseError};

/// Whether a session is shown as a bearer token or as a cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `Authorization: Bearer`.
    Bearer,
    /// The console's cookie.
    Cookie,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Bearer => "bearer",
            Self::Cookie => "cookie",
        }
    }
}

/// A session just made. The secrets exist here and at their holder only.
#[derive(Debug)]
pub struct Opened {
    /// What the holder shows.
    pub token: String,
    /// For cookies: what forms and scripts show in addition.
    pub csrf: String,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// A session could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No secret.
    #[error(transparent)]
    Random(#[from] crate::random::NoRandomness),
    /// Not stored.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// Whose session it is.
#[derive(Clone, Debug)]
pub struct Holder {
    /// The operator's name.
    pub name: String,
    /// Their role.
    pub role: Role,
    /// For cookies: the CSRF token expected.
    pub csrf: Option<String>,
}

/// Opens a session for an operator.
///
/// # Errors
/// When there is no randomness or the database refuses.
pub async fn open(
    database: &Database,
    operator: &str,
    kind: Kind,
    lasting: Duration,
    now: Timestamp,
) -> Result<Opened, SessionError> {
    let opened = Opened {
        token: crate::random::token()?,
        csrf: crate::random::token()?,
        expires_at: now.plus(lasting),
    };
    let row = session::ActiveModel {
        token_hash: Set(digest(&opened.token)),
        operator: Set(operator.to_owned()),
        kind: Set(kind.name().to_owned()),
        csrf: Set((kind == Kind::Cookie).then(|| opened.csrf.clone())),
        created_at: Set(now.millis()),
        expires_at: Set(opened.expires_at.millis()),
    };
    let write = database.write().await?;
    session::Entity::insert(row).exec_without_returning(&*write).await.map_err(DatabaseError::Statement)?;
    session::Entity::delete_many()
        .filter(session::Column::ExpiresAt.lt(now.millis()))
        .exec(&*write)
        .await
        .map_err(DatabaseError::Statement)?;
    audit::record(&write, now, operator, ("operator.login", operator), kind.name()).await?;
    write.commit().await?;
    Ok(opened)
}

/// Finds whose session a secret opens; `None` when nobody's, ended, or the operator is disabled.
///
/// # Errors
/// When the database does not answer.
pub async fn find(
    database: &Database,
    token: &str,
    kind: Kind,
    now: Timestamp,
) -> Result<Option<Holder>, DatabaseError> {
    let found = session::Entity::find_by_id(digest(token))
        .filter(session::Column::Kind.eq(kind.name()))
        .filter(session::Column::ExpiresAt.gt(now.millis()))
        .one(database.read())
        .await?;
    let Some(found) = found else { return Ok(None) };
    let holder = operator::Entity::find_by_id(&found.operator)
        .filter(operator::Column::DisabledAt.is_null())
        .one(database.read())
        .await?;
    Ok(holder.and_then(|holder| {
        role_of(&holder.role).map(|role| Holder { name: holder.name, role, csrf: found.csrf })
    }))
}

/// Ends a session.
///
/// # Errors
/// When the database refuses.
pub async fn close(database: &Database, token: &str) -> Result<(), DatabaseError> {
    let write = database.write().await?;
    session::Entity::delete_by_id(digest(token)).exec(&*write).await?;
    write.commit().await
}

/// Ends every session of an operator, inside a transaction of the caller.
///
/// # Errors
/// When the database refuses.
pub async fn close_all(write: &crate::db::Write, operator: &str) -> Result<(), DatabaseError> {
    session::Entity::delete_many().filter(session::Column::Operator.eq(operator)).exec(&**write).await?;
    Ok(())
}

/// What is stored of a secret. It has 256 random bits, so one round of SHA-256 is enough.
fn digest(token: &str) -> String {
    hex(&sha256(token.as_bytes()))
}
