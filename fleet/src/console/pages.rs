//! The pages: what they need is read here, what they show is made in [`super::view`] (IO).

use std::collections::HashMap;

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use sea_orm::QueryTrait as _;
use sea_orm::{
    ColumnTrait as _, Condition, EntityTrait as _, PaginatorTrait as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _,
};
use serde::Deserialize;

use super::hosts::{self, HostRow};
use super::page;
use super::view::{self, ConditionRow, Count, DeviceRow, EventRow, Fact, OrderRow, OriginRow, Presence};
use super::visitor::{Shell, Visitor, encoded};
use crate::app::App;
use crate::auth::Role;
use crate::config::{BrokerChoice, broker_choice};
use crate::db::DatabaseError;
use crate::db::entity::{certificate, device, order, store};
use crate::hosts::handlers::failure;
use crate::hosts::wanted::{self, WantError};
use crate::ingest::entity::{device_event, device_status};
use crate::ingest::live::{self, Detailed};
use crate::orders::compared;
use crate::problem::Failure;
use crate::routes::published;

/// Stores of one page.
const STORES: u64 = 50;
/// Devices of one store, or of one page of stores, at most.
const DEVICES: u64 = 2000;
/// Orders and events of one page.
const ROWS: u64 = 50;

#[derive(askama::Template)]
#[template(path = "console/overview.html")]
struct OverviewPage {
    shell: Shell,
    totals: Totals,
    mqtt: (&'static str, &'static str),
    unserved: Option<String>,
    q: String,
    first: bool,
    stores: Vec<StoreRow>,
    next: Option<String>,
}

#[derive(askama::Template)]
#[template(path = "console/store.html")]
struct StorePage {
    shell: Shell,
    id: String,
    name: String,
    country: String,
    devices: Vec<DeviceRow>,
    recorded: u64,
    orders: Vec<OrderRow>,
}

#[derive(askama::Template)]
#[template(path = "console/device.html")]
struct DevicePage {
    shell: Shell,
    id: String,
    class: String,
    store: String,
    presence: Presence,
    counts: Vec<Count>,
    recorded: u64,
    conditions: Vec<ConditionRow>,
    heard: bool,
    facts: Vec<Fact>,
    origins: Vec<OriginRow>,
    orders: Vec<OrderRow>,
    events: Vec<EventRow>,
    hosts: Vec<HostRow>,
    may_override: bool,
    document: String,
}

#[derive(askama::Template)]
#[template(path = "console/message.html")]
struct MessagePage {
    shell: Shell,
    text: &'static str,
}

/// The fleet in five numbers.
struct Totals {
    stores: u64,
    devices: u64,
    online: u64,
    offline: u64,
    orders: u64,
}

struct StoreRow {
    id: String,
    name: String,
    country: String,
    devices: Vec<DeviceRow>,
}

/// Which stores.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Which {
    q: String,
    after: String,
}

/// Stores with their devices.
pub(super) async fn overview(
    State(app): State<App>,
    visitor: Visitor,
    Query(which): Query<Which>,
) -> Result<Response, Failure> {
    let mut query = store::Entity::find().order_by_asc(store::Column::Id).limit(STORES + 1);
    if !which.q.is_empty() {
        let matching = Condition::any()
            .add(store::Column::Id.contains(&which.q))
            .add(store::Column::Name.contains(&which.q))
            .add(
                store::Column::Id.in_subquery(
                    device::Entity::find()
                        .select_only()
                        .column(device::Column::Store)
                        .filter(device::Column::Id.contains(&which.q))
                        .into_query(),
                ),
            );
        query = query.filter(matching);
    }
    if !which.after.is_empty() {
        query = query.filter(store::Column::Id.gt(&which.after));
    }
    let mut stores = query.all(app.database.read()).await?;
    let more = stores.len() > usize::try_from(STORES).unwrap_or(usize::MAX);
    stores.truncate(usize::try_from(STORES).unwrap_or(usize::MAX));
    let next = stores.last().filter(|_| more).map(|row| row.id.clone());
    let mut devices = devices_of(&app, &visitor, stores.iter().map(|row| row.id.as_str())).await?;
    let stores = stores
        .into_iter()
        .map(|row| StoreRow {
            devices: devices.remove(&row.id).unwrap_or_default(),
            id: row.id,
            name: row.name,
            country: row.country,
        })
        .collect();
    let template = OverviewPage {
        shell: visitor.shell(String::new()),
        totals: totals(&app).await?,
        mqtt: mqtt(&app, &visitor),
        unserved: unserved(&app, &visitor).await?,
        q: which.q,
        first: which.after.is_empty(),
        stores,
        next,
    };
    Ok(page(StatusCode::OK, &template, visitor.speech.cookie))
}

/// One store: its devices and its latest orders.
pub(super) async fn store(
    State(app): State<App>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let Some(found) = store::Entity::find_by_id(&id).one(app.database.read()).await? else {
        return Ok(missing(&visitor, visitor.speech.language.words().no_store));
    };
    let devices = devices_of(&app, &visitor, [id.as_str()]).await?.remove(&id).unwrap_or_default();
    let filter = order::Column::Store.eq(&id);
    let template = StorePage {
        shell: visitor.shell(format!("?store={}", encoded(&id))),
        recorded: order::Entity::find().filter(filter.clone()).count(app.database.read()).await?,
        orders: latest_orders(&app, filter).await?,
        id: found.id,
        name: found.name,
        country: found.country,
        devices,
    };
    Ok(page(StatusCode::OK, &template, visitor.speech.cookie))
}

/// One device: everything that is known of it.
pub(super) async fn device(
    State(app): State<App>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let place = match wanted::place(&app.database, &id).await {
        Ok(place) => place,
        Err(WantError::NoDevice(_)) => {
            return Ok(missing(&visitor, visitor.speech.language.words().no_device));
        }
        Err(error) => return Err(failure(&error)),
    };
    let hosts = hosts::of_place(&app, &visitor, &place).await?;
    let found = place.device;
    let lens = visitor.lens();
    let detail: Detailed =
        live::of(&app.database, [(id.as_str(), found.activated_at)]).await?.remove(&id).unwrap_or_default();
    let in_force = published::in_force(&app.database).await?.map(|row| row.version);
    let certificate = certificate_end(&app, &id).await?;
    let compared = compared::of(&app.database, &[&id]).await?.remove(&id);
    let filter = order::Column::Device.eq(&id);
    let template = DevicePage {
        shell: visitor.shell(format!("?device={}", encoded(&id))),
        presence: lens.presence(&detail.live),
        counts: lens.orders(&detail.live, &["accepted", "pending", "held", "quarantined", "settled"]),
        recorded: order::Entity::find().filter(filter.clone()).count(app.database.read()).await?,
        conditions: lens.conditions(&detail.live),
        heard: !detail.state.is_null(),
        facts: lens.facts(&detail, in_force, certificate, compared.as_ref()),
        origins: lens.origins(&detail.state),
        orders: latest_orders(&app, filter).await?,
        events: latest_events(&app, &id).await?,
        hosts,
        may_override: visitor.operator.role >= Role::Field,
        document: if detail.state.is_null() { String::new() } else { format!("{:#}", detail.state) },
        id: found.id,
        class: found.class,
        store: found.store,
    };
    Ok(page(StatusCode::OK, &template, visitor.speech.cookie))
}

/// What no other page answers below `/console`.
pub(super) async fn nothing(visitor: Visitor) -> Response {
    missing(&visitor, visitor.speech.language.words().no_page)
}

pub(super) fn missing(visitor: &Visitor, text: &'static str) -> Response {
    let mut shell = visitor.shell(String::new());
    shell.watch = None;
    page(StatusCode::NOT_FOUND, &MessagePage { shell, text }, None).into_response()
}

/// The devices of some stores, by store.
async fn devices_of(
    app: &App,
    visitor: &Visitor,
    stores: impl IntoIterator<Item = &str>,
) -> Result<HashMap<String, Vec<DeviceRow>>, DatabaseError> {
    let rows = device::Entity::find()
        .filter(device::Column::Store.is_in(stores))
        .order_by_asc(device::Column::Id)
        .limit(DEVICES)
        .all(app.database.read())
        .await?;
    let found = live::of(&app.database, rows.iter().map(|row| (row.id.as_str(), row.activated_at))).await?;
    let lens = visitor.lens();
    let mut by_store: HashMap<String, Vec<DeviceRow>> = HashMap::new();
    for row in rows {
        by_store.entry(row.store.clone()).or_default().push(lens.device(&row, found.get(&row.id)));
    }
    Ok(by_store)
}

async fn latest_orders(
    app: &App,
    filter: impl sea_orm::sea_query::IntoCondition,
) -> Result<Vec<OrderRow>, DatabaseError> {
    let rows = order::Entity::find()
        .filter(filter)
        .order_by_desc(order::Column::Position)
        .limit(ROWS)
        .all(app.database.read())
        .await?;
    Ok(rows.into_iter().map(view::order).collect())
}

async fn latest_events(app: &App, device: &str) -> Result<Vec<EventRow>, DatabaseError> {
    let rows = device_event::Entity::find()
        .filter(device_event::Column::Device.eq(device))
        .order_by_desc(device_event::Column::Position)
        .limit(ROWS)
        .all(app.database.read())
        .await?;
    Ok(rows.into_iter().map(view::event).collect())
}

async fn certificate_end(app: &App, device: &str) -> Result<Option<i64>, DatabaseError> {
    let latest = certificate::Entity::find()
        .filter(certificate::Column::Device.eq(device))
        .filter(certificate::Column::RevokedAt.is_null())
        .order_by_desc(certificate::Column::NotAfter)
        .one(app.database.read())
        .await?;
    Ok(latest.map(|row| row.not_after))
}

async fn totals(app: &App) -> Result<Totals, DatabaseError> {
    let database = app.database.read();
    let devices = device::Entity::find().count(database).await?;
    let online =
        device_status::Entity::find().filter(device_status::Column::Online.eq(true)).count(database).await?;
    // Devices that were never heard of are not there yet; that is no alarm.
    let heard =
        device_status::Entity::find().filter(device_status::Column::LastSeen.gt(0)).count(database).await?;
    Ok(Totals {
        stores: store::Entity::find().count(database).await?,
        devices,
        online,
        offline: heard.saturating_sub(online),
        orders: order::Entity::find().count(database).await?,
    })
}

async fn unserved(app: &App, visitor: &Visitor) -> Result<Option<String>, DatabaseError> {
    let countries = published::unserved(&app.database).await?;
    let form = visitor.speech.language.words().unserved;
    Ok((!countries.is_empty()).then(|| form.replacen("{}", &countries.join(", "), 1)))
}

fn mqtt(app: &App, visitor: &Visitor) -> (&'static str, &'static str) {
    let words = visitor.speech.language.words();
    match broker_choice(&app.config.broker.url) {
        Ok(BrokerChoice::None) => ("", words.no_broker),
        _ if app.ingest.is_connected() => ("", words.connected),
        _ => ("off", words.disconnected),
    }
}
