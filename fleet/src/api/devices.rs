//! Devices: what is known of them for certain.
#![expect(unused_qualifications, reason = "written by the macro that describes the query parameters")]

use std::collections::HashMap;

use axum::Json;
use axum::extract::{Path, Query, State};
use http::StatusCode;
use samovar_wire::Timestamp;
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Page;
use crate::activation::revocation;
use crate::app::App;
use crate::auth::{Operator, Role};
use crate::db::entity::{certificate, device, store};
use crate::ingest::live::{self, Detailed, Live};
use crate::orders::compared::{self, Compared};
use crate::problem::Failure;
use crate::{audit, clock};

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(one)).routes(routes!(revoke))
}

/// A device.
#[derive(Serialize, ToSchema)]
pub(super) struct DeviceView {
    id: String,
    store: String,
    country: Option<String>,
    class: String,
    /// What it says of itself.
    hardware: Option<serde_json::Value>,
    activated_at: String,
    /// When its latest certificate ends; null without a valid one.
    certificate_ends_at: Option<String>,
    /// When its ledger and the orders recorded here last matched; null when they never did.
    last_match_at: Option<String>,
    #[serde(flatten)]
    live: Live,
}

/// A device with everything it reports.
#[derive(Serialize, ToSchema)]
struct DeviceDetail {
    #[serde(flatten)]
    device: DeviceView,
    /// What it reported last, as it was sent; null before the first report.
    #[schema(value_type = Object)]
    state: serde_json::Value,
    /// The last comparison of its ledger with the orders recorded here; null before the first.
    reconcile: Option<Compared>,
}

/// Devices, by identifier.
#[derive(Serialize, ToSchema)]
struct DeviceList {
    devices: Vec<DeviceView>,
    /// What to give as `after` for the next page; null at the end.
    next: Option<String>,
}

/// How many certificates were revoked.
#[derive(Serialize, ToSchema)]
struct Revoked {
    revoked: u64,
}

/// Which devices.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
struct Filter {
    /// Of this store only.
    store: Option<String>,
    /// Of this class only.
    class: Option<String>,
}

/// Devices, by identifier.
#[utoipa::path(get, path = "/api/v1/devices", tag = "devices", params(Filter, Page),
    responses((status = 200, body = DeviceList), (status = 401)))]
async fn list(
    State(app): State<App>,
    _operator: Operator,
    Query(filter): Query<Filter>,
    Query(page): Query<Page>,
) -> Result<Json<DeviceList>, Failure> {
    let mut query = device::Entity::find().order_by_asc(device::Column::Id).limit(page.limit());
    if let Some(after) = &page.after {
        query = query.filter(device::Column::Id.gt(after));
    }
    if let Some(store) = &filter.store {
        query = query.filter(device::Column::Store.eq(store));
    }
    if let Some(class) = &filter.class {
        query = query.filter(device::Column::Class.eq(class));
    }
    let rows = query.all(app.database.read()).await?;
    let full = u64::try_from(rows.len()).is_ok_and(|found| found == page.limit());
    let next = rows.last().filter(|_| full).map(|row| row.id.clone());
    let devices = views(&app, rows).await?.into_iter().map(|detail| detail.device).collect();
    Ok(Json(DeviceList { devices, next }))
}

/// One device.
#[utoipa::path(get, path = "/api/v1/devices/{id}", tag = "devices", params(("id" = String, Path)),
    responses((status = 200, body = DeviceDetail), (status = 401), (status = 404)))]
async fn one(
    State(app): State<App>,
    _operator: Operator,
    Path(id): Path<String>,
) -> Result<Json<DeviceDetail>, Failure> {
    let found = device::Entity::find_by_id(&id).one(app.database.read()).await?;
    let view = views(&app, found.into_iter().collect()).await?.pop();
    view.map(Json).ok_or_else(|| Failure::not_found(format!("there is no device {id}")))
}

/// Revokes every certificate of a device: a stolen or replaced machine is let in no more.
#[utoipa::path(post, path = "/api/v1/devices/{id}/revoke", tag = "devices", params(("id" = String, Path)),
    responses((status = 200, body = Revoked), (status = 401), (status = 403), (status = 404)))]
async fn revoke(
    State(app): State<App>,
    operator: Operator,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<Revoked>), Failure> {
    operator.needs(Role::Netops)?;
    let now = clock::now();
    let write = app.database.write().await?;
    let Some(found) = device::Entity::find_by_id(&id).one(&*write).await? else {
        return Err(Failure::not_found(format!("there is no device {id}")));
    };
    let revoked = revocation::revoke(&write, &id, now).await?;
    audit::record(&write, now, &operator.name, ("device.revoke", &id), format!("{revoked} certificates"))
        .await?;
    write.commit().await?;
    if let Ok(device) = found.id.parse() {
        app.ingest.revoked(&device, &found.store);
    }
    Ok((StatusCode::OK, Json(Revoked { revoked })))
}

/// The devices of a store.
pub(super) async fn of_store(app: &App, store: &str) -> Result<Vec<DeviceView>, Failure> {
    let rows = device::Entity::find()
        .filter(device::Column::Store.eq(store))
        .order_by_asc(device::Column::Id)
        .all(app.database.read())
        .await?;
    Ok(views(app, rows).await?.into_iter().map(|detail| detail.device).collect())
}

async fn views(app: &App, rows: Vec<device::Model>) -> Result<Vec<DeviceDetail>, Failure> {
    let mut live =
        live::of(&app.database, rows.iter().map(|row| (row.id.as_str(), row.activated_at))).await?;
    let stores = store::Entity::find()
        .filter(store::Column::Id.is_in(rows.iter().map(|row| row.store.as_str())))
        .all(app.database.read())
        .await?;
    let countries: HashMap<String, String> = stores.into_iter().map(|row| (row.id, row.country)).collect();
    let ends: Vec<(String, i64)> = certificate::Entity::find()
        .select_only()
        .column(certificate::Column::Device)
        .column_as(certificate::Column::NotAfter.max(), "not_after")
        .filter(certificate::Column::Device.is_in(rows.iter().map(|row| row.id.as_str())))
        .filter(certificate::Column::RevokedAt.is_null())
        .group_by(certificate::Column::Device)
        .into_tuple()
        .all(app.database.read())
        .await?;
    let ends: HashMap<String, i64> = ends.into_iter().collect();
    let names: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    let mut compared = compared::of(&app.database, &names).await?;
    let mut view = |row: device::Model| {
        let Detailed { live, state } = live.remove(&row.id).unwrap_or_default();
        let reconcile = compared.remove(&row.id);
        let device = DeviceView {
            live,
            country: countries.get(&row.store).cloned(),
            certificate_ends_at: ends.get(&row.id).map(|end| Timestamp::from_millis(*end).to_string()),
            hardware: row.hardware.and_then(|text| serde_json::from_str(&text).ok()),
            activated_at: Timestamp::from_millis(row.activated_at).to_string(),
            last_match_at: reconcile.as_ref().and_then(|compared| compared.last_match_at.clone()),
            id: row.id,
            store: row.store,
            class: row.class,
        };
        DeviceDetail { device, state, reconcile }
    };
    Ok(rows.into_iter().map(&mut view).collect())
}
