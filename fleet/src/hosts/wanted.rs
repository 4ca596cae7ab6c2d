//! What the fleet wants: set, cleared and read (IO). The rules are those of the device itself.

use std::collections::HashMap;
use std::time::Duration;

use samovar_wire::Timestamp;
use samovar_wire::hosts::{self as rules, OVERRIDES_MAX, Refused, TTL_DEFAULT, TTL_MAX};
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::Expr;
use sea_orm::{
    ColumnTrait as _, Condition, ConnectionTrait, DbErr, EntityTrait as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _,
};
use serde_json::{Value, json};

use crate::activation::revocation;
use crate::app::App;
use crate::auth::{Operator, Role};
use crate::db::entity::host_override::{ActiveModel, Column, Entity, Model};
use crate::db::entity::{device, store};
use crate::db::{Database, DatabaseError, Write};
use crate::routes::published;
use crate::{audit, clock};

/// For how long the role `field` may override.
pub const TTL_FIELD: Duration = Duration::from_secs(4 * 3_600);
/// How long rows are kept after their end: longer than any override lasts, so that no change of a list goes unnoticed.
const KEEP: Duration = Duration::from_secs(4 * 24 * 3_600);

/// What somebody asks for, as it was written.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// The name.
    pub name: String,
    /// Where it shall point.
    pub address: String,
    /// Why.
    pub reason: String,
    /// The ticket, if there is one.
    pub ticket: Option<String>,
    /// For how long; four hours unless told.
    pub ttl_s: Option<u64>,
    /// Also when the address does not prove that it is the name.
    pub force: bool,
}

/// An override was not set or cleared.
#[derive(Debug, thiserror::Error)]
pub enum WantError {
    /// It may not be.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// There is no such device.
    #[error("there is no device {0}")]
    NoDevice(String),
    /// The device is let in nowhere.
    #[error("{0} is revoked: nothing is sent to it")]
    Revoked(String),
    /// The role may not.
    #[error("{0}")]
    Forbidden(String),
    /// There is none.
    #[error("the fleet does not override `{name}` on {device}")]
    Absent {
        /// The device.
        device: String,
        /// The name.
        name: String,
    },
    /// The database did not answer.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl From<DbErr> for WantError {
    fn from(error: DbErr) -> Self {
        Self::Database(error.into())
    }
}

/// A device with its place.
#[derive(Debug, Clone)]
pub struct Place {
    /// The device.
    pub device: device::Model,
    /// Its store's country.
    pub country: String,
}

/// A wish in its exact form.
struct Checked {
    name: String,
    address: String,
    reason: String,
    ticket: Option<String>,
    ttl: Duration,
    forced: bool,
}

/// Points a name of a device elsewhere; the device is told at once, or when it comes.
///
/// # Errors
/// [`WantError`].
pub async fn set(app: &App, operator: &Operator, device: &str, wish: Wish) -> Result<Model, WantError> {
    may(operator)?;
    let wish = check(app, operator, wish).await?;
    let now = clock::now();
    let write = app.database.write().await?;
    let found = lock(&write, device).await?;
    if revocation::among(&*write, &[device]).await?.contains(device) {
        return Err(WantError::Revoked(device.to_owned()));
    }
    let mut others = active(&*write, &[device], now).await?.remove(device).unwrap_or_default();
    let replaced = others.iter().position(|row| row.name == wish.name).map(|at| others.remove(at));
    if others.len() >= OVERRIDES_MAX {
        return Err(Refused::TooMany.into());
    }
    if let Some(replaced) = &replaced {
        end(&write, replaced, now).await?;
    }
    let row = Model {
        id: uuid::Uuid::now_v7().to_string(),
        device: device.to_owned(),
        name: wish.name,
        address: wish.address,
        owner: operator.name.clone(),
        reason: wish.reason,
        ticket: wish.ticket,
        forced: wish.forced,
        set_at: now.millis(),
        until: now.plus(wish.ttl).millis(),
        cleared_at: None,
    };
    Entity::insert(inserted(row.clone())).exec_without_returning(&*write).await?;
    audit::record(&write, now, &operator.name, ("hosts.set", device), told(&row)).await?;
    write.commit().await?;
    tell(app, &found);
    Ok(row)
}

/// Ends an override; gives it as it was.
///
/// # Errors
/// [`WantError`].
pub async fn clear(app: &App, operator: &Operator, device: &str, name: &str) -> Result<Model, WantError> {
    may(operator)?;
    let name = rules::name(name)?;
    let now = clock::now();
    let write = app.database.write().await?;
    let found = lock(&write, device).await?;
    let rows = active(&*write, &[device], now).await?.remove(device).unwrap_or_default();
    let absent = || WantError::Absent { device: device.to_owned(), name: name.clone() };
    let row = rows.into_iter().find(|row| row.name == name).ok_or_else(absent)?;
    end(&write, &row, now).await?;
    let detail = format!("{} no longer at {}; set by {}", row.name, row.address, row.owner);
    audit::record(&write, now, &operator.name, ("hosts.clear", device), detail).await?;
    write.commit().await?;
    tell(app, &found);
    Ok(row)
}

/// Host overrides are changed from the role `field` up.
fn may(operator: &Operator) -> Result<(), WantError> {
    operator.needs(Role::Field).map_err(|failure| WantError::Forbidden(failure.problem().detail.clone()))
}

/// By the rules of the device, under the table in force.
async fn check(app: &App, operator: &Operator, wish: Wish) -> Result<Checked, WantError> {
    let ttl = rules::ttl(wish.ttl_s.map_or(TTL_DEFAULT, Duration::from_secs))?;
    if ttl > TTL_FIELD && operator.role < Role::Netops {
        let (own, more) = (TTL_FIELD.as_secs() / 3_600, TTL_MAX.as_secs() / 3_600);
        let detail = format!("the role field overrides for {own} hours at most; up to {more} needs netops");
        return Err(WantError::Forbidden(detail));
    }
    let ticket = wish.ticket.map(|ticket| rules::text("ticket", &ticket)).transpose()?;
    let checked = Checked {
        name: rules::name(&wish.name)?,
        address: rules::unicast(rules::address(&wish.address)?)?.to_string(),
        reason: rules::required("reason", "say why", &wish.reason)?,
        ticket: ticket.filter(|ticket| !ticket.is_empty()),
        ttl,
        forced: wish.force,
    };
    let table = published::in_force(&app.database).await?.as_ref().and_then(published::table);
    rules::standing(&table.ok_or(Refused::NoTable)?, &checked.name)?;
    Ok(checked)
}

/// Two who change the overrides of one device wait for each other.
async fn lock(write: &Write, device: &str) -> Result<device::Model, WantError> {
    let found = device::Entity::find_by_id(device).lock_exclusive().one(&**write).await?;
    found.ok_or_else(|| WantError::NoDevice(device.to_owned()))
}

async fn end(write: &Write, row: &Model, now: Timestamp) -> Result<(), DbErr> {
    Entity::update_many()
        .col_expr(Column::ClearedAt, Expr::value(now.millis()))
        .filter(Column::Id.eq(&row.id))
        .exec(&**write)
        .await?;
    Ok(())
}

fn tell(app: &App, found: &device::Model) {
    if let Ok(device) = found.id.parse() {
        app.ingest.desired_changed(&device, &found.store);
    }
}

/// For the audit log.
fn told(row: &Model) -> String {
    let until = Timestamp::from_millis(row.until);
    let mut text = format!("{} at {} until {until}: {}", row.name, row.address, row.reason);
    text.extend(row.ticket.iter().map(|ticket| format!(" ({ticket})")));
    text.push_str(if row.forced { "; forced" } else { "" });
    text
}

fn inserted(row: Model) -> ActiveModel {
    ActiveModel {
        id: Set(row.id),
        device: Set(row.device),
        name: Set(row.name),
        address: Set(row.address),
        owner: Set(row.owner),
        reason: Set(row.reason),
        ticket: Set(row.ticket),
        forced: Set(row.forced),
        set_at: Set(row.set_at),
        until: Set(row.until),
        cleared_at: Set(row.cleared_at),
    }
}

/// Which rows are still wanted.
#[must_use]
pub fn is_active(now: Timestamp) -> Condition {
    Condition::all().add(Column::ClearedAt.is_null()).add(Column::Until.gt(now.millis()))
}

/// What is wanted of some devices, by name.
///
/// # Errors
/// When the database does not answer.
pub async fn active<C: ConnectionTrait>(
    connection: &C,
    devices: &[&str],
    now: Timestamp,
) -> Result<HashMap<String, Vec<Model>>, DbErr> {
    let rows = Entity::find()
        .filter(Column::Device.is_in(devices.iter().copied()))
        .filter(is_active(now))
        .order_by_asc(Column::Device)
        .order_by_asc(Column::Name)
        .all(connection)
        .await?;
    Ok(by_device(rows))
}

/// What is wanted of each device whose list changed not long ago, or is not empty.
///
/// # Errors
/// When the database does not answer.
pub async fn recent(
    database: &Database,
    now: Timestamp,
) -> Result<HashMap<String, Vec<Model>>, DatabaseError> {
    let rows = Entity::find()
        .order_by_asc(Column::Device)
        .order_by_asc(Column::Name)
        .all(database.read())
        .await
        .map_err(DatabaseError::from)?;
    let mut lists = by_device(rows);
    for rows in lists.values_mut() {
        rows.retain(|row| row.cleared_at.is_none() && row.until > now.millis());
    }
    Ok(lists)
}

fn by_device(rows: Vec<Model>) -> HashMap<String, Vec<Model>> {
    let mut lists: HashMap<String, Vec<Model>> = HashMap::new();
    for row in rows {
        lists.entry(row.device.clone()).or_default().push(row);
    }
    lists
}

/// Deletes rows that have been over for long.
///
/// # Errors
/// When the database does not take it.
pub async fn forget(database: &Database, now: Timestamp) -> Result<(), DatabaseError> {
    let before = clock::earlier(now, KEEP).millis();
    let over = Condition::any().add(Column::ClearedAt.lt(before)).add(Column::Until.lt(before));
    let write = database.write().await?;
    Entity::delete_many().filter(over).exec(&*write).await.map_err(DatabaseError::from)?;
    write.commit().await
}

/// The list as a desired state carries it: with the seconds that are left now.
#[must_use]
pub fn entries(rows: &[Model], now: Timestamp) -> Value {
    let entry = |row: &Model| {
        let until = Timestamp::from_millis(row.until);
        json!({
            "id": row.id, "name": row.name, "address": row.address, "owner": row.owner, "reason": row.reason,
            "ticket": row.ticket, "ttl_s": until.since(now).as_secs().max(1), "until": until, "force": row.forced,
        })
    };
    rows.iter().map(entry).collect()
}

/// A device and its country.
///
/// # Errors
/// When there is none, or the database does not answer.
pub async fn place(database: &Database, device: &str) -> Result<Place, WantError> {
    let found = device::Entity::find_by_id(device).one(database.read()).await?;
    let found = found.ok_or_else(|| WantError::NoDevice(device.to_owned()))?;
    let store = store::Entity::find_by_id(&found.store).one(database.read()).await?;
    Ok(Place { device: found, country: store.map(|store| store.country).unwrap_or_default() })
}
