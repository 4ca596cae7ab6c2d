//! Operators: adding, disabling, logging in, and the first admin.

use std::time::Duration;

use samovar_wire::Timestamp;
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::{Expr, OnConflict};
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _};

use super::lockout::LoginGate;
use super::password::{self, PasswordError};
use super::session::{self, Kind, Opened, SessionError};
use super::{Role, role_name, role_of};
use crate::audit;
use crate::db::entity::operator;
use crate::db::{Database, DatabaseError};

/// A login failed.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// Name or password is wrong, or the operator is disabled; which of them is not told.
    #[error("the name or the password is wrong")]
    Wrong,
    /// Too many failures.
    #[error("too many failures; wait {} s", wait.as_secs() + 1)]
    Wait {
        /// How long.
        wait: Duration,
    },
    /// The check could not be made.
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// The session could not be made.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The database did not answer.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// An operator could not be added.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// Not a usable name.
    #[error("a name has 1 to 64 letters, digits, and . _ - @")]
    Name,
    /// There is one of that name.
    #[error("there is an operator of that name")]
    Exists,
    /// There is none of that name.
    #[error("there is no operator of that name")]
    Unknown,
    /// Not a usable password.
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// Not stored.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// Checks name and password and opens a session. `address` is where the caller is.
///
/// # Errors
/// [`LoginError`].
pub async fn log_in(
    database: &Database,
    gate: &LoginGate,
    (name, password): (&str, String),
    address: &str,
    (kind, lasting): (Kind, Duration),
    now: Timestamp,
) -> Result<(Opened, Role), LoginError> {
    let wait = gate.wait(name, address, now);
    if !wait.is_zero() {
        return Err(LoginError::Wait { wait });
    }
    let found =
        operator::Entity::find_by_id(name).one(database.read()).await.map_err(DatabaseError::Statement)?;
    let found = found.filter(|found| found.disabled_at.is_none());
    let right = password::matches(password, found.as_ref().map(|found| found.password_hash.clone())).await?;
    let role = found.as_ref().and_then(|found| role_of(&found.role));
    let (true, Some(role)) = (right, role) else {
        gate.failed(name, address, now);
        note_failure(database, name, address, now).await?;
        return Err(LoginError::Wrong);
    };
    gate.succeeded(name, address);
    Ok((session::open(database, name, kind, lasting, now).await?, role))
}

/// Waiting bounds how many of these there are.
async fn note_failure(
    database: &Database,
    name: &str,
    address: &str,
    now: Timestamp,
) -> Result<(), DatabaseError> {
    // The name is whatever a stranger typed.
    let name: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
    let write = database.write().await?;
    let actor = format!("address {address}");
    audit::record(&write, now, &actor, ("operator.login-failed", &name), "wrong name or password").await?;
    write.commit().await
}

/// Adds an operator.
///
/// # Errors
/// [`AddError`].
pub async fn add(
    database: &Database,
    (name, password): (&str, String),
    role: Role,
    by: &str,
    now: Timestamp,
) -> Result<(), AddError> {
    let usable = (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte));
    if !usable {
        return Err(AddError::Name);
    }
    let row = operator::ActiveModel {
        name: Set(name.to_owned()),
        password_hash: Set(password::hash(password).await?),
        role: Set(role_name(role).to_owned()),
        created_at: Set(now.millis()),
        disabled_at: Set(None),
    };
    let write = database.write().await?;
    let inserted = operator::Entity::insert(row)
        .on_conflict(OnConflict::column(operator::Column::Name).do_nothing().to_owned())
        .exec_without_returning(&*write)
        .await
        .map_err(DatabaseError::Statement)?;
    if inserted == 0 {
        return Err(AddError::Exists);
    }
    audit::record(&write, now, by, ("operator.add", name), format!("role {}", role_name(role))).await?;
    write.commit().await?;
    Ok(())
}

/// Whether there is no operator at all, so that a first admin is needed.
///
/// # Errors
/// When the database does not answer.
pub async fn is_empty(database: &Database) -> Result<bool, DatabaseError> {
    Ok(operator::Entity::find().one(database.read()).await?.is_none())
}

/// Gives an operator a new password and ends their sessions.
///
/// # Errors
/// [`AddError::Unknown`] and failures inside.
pub async fn set_password(
    database: &Database,
    name: &str,
    password: String,
    by: &str,
    now: Timestamp,
) -> Result<(), AddError> {
    let digest = password::hash(password).await?;
    let write = database.write().await?;
    let changed = operator::Entity::update_many()
        .col_expr(operator::Column::PasswordHash, Expr::value(digest))
        .filter(operator::Column::Name.eq(name))
        .exec(&*write)
        .await
        .map_err(DatabaseError::Statement)?
        .rows_affected;
    if changed == 0 {
        return Err(AddError::Unknown);
    }
    session::close_all(&write, name).await?;
    audit::record(&write, now, by, ("operator.password", name), "").await?;
    Ok(write.commit().await?)
}
