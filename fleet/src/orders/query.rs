//! What the intake has, for operators and for checks that nothing was lost.
#![expect(unused_qualifications, reason = "written by the macro that describes the query parameters")]

use axum::Json;
use axum::extract::{Path, Query, State};
use samovar_wire::Timestamp;
use sea_orm::{
    ColumnTrait as _, EntityTrait as _, PaginatorTrait as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _, Select,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::auth::Operator;
use crate::db::entity::order;
use crate::problem::Failure;

/// Orders of one page at most.
const PAGE: u64 = 1000;

/// Orders of one id that are listed.
const MATCHES: u64 = 100;

/// The routes.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(count)).routes(routes!(one))
}

/// Which orders.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
struct Filter {
    /// Of this store only.
    store: Option<String>,
    /// Of this device only.
    device: Option<String>,
    /// With this key only.
    key: Option<String>,
}

/// Which page.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
struct Page {
    /// The `position` (or `next`) of the last order seen; the page begins after it.
    after: Option<i64>,
    /// How many at most, up to 1000.
    limit: Option<u64>,
}

/// One order as recorded.
#[derive(Debug, Serialize, ToSchema)]
struct OrderView {
    /// Place in the intake; grows.
    position: i64,
    /// The order's id, made on the device.
    id: String,
    /// Idempotency key.
    key: String,
    /// Lower-case hex digest of the body.
    sha256: String,
    /// The till's number.
    order_no: Option<String>,
    /// The device that sent it.
    device: String,
    /// Its store.
    store: String,
    /// The ledger that its device has it in.
    ledger: String,
    /// Its place in that ledger.
    seq: i64,
    /// User data location.
    udl: String,
    /// The origin that answered for it.
    origin: String,
    /// The batch it came in.
    batch: String,
    /// When the device made it durable.
    accepted_at: String,
    /// When it was recorded here.
    received_at: String,
}

/// A page of orders.
#[derive(Debug, Serialize, ToSchema)]
struct OrderPage {
    /// The orders, by position.
    orders: Vec<OrderView>,
    /// What to give as `after` for the next page; null at the end.
    next: Option<i64>,
}

/// How many orders.
#[derive(Debug, Serialize, ToSchema)]
struct OrderCount {
    /// So many.
    count: u64,
}

/// One order with its body, byte for byte.
#[derive(Debug, Serialize, ToSchema)]
struct OrderWithBody {
    #[serde(flatten)]
    order: OrderView,
    /// Every order of this id, this one included, the newest first: an id is a device's own, and two devices may have
    /// used the same one. 100 at most.
    matches: Vec<OrderView>,
    /// The document; null when it has been forgotten.
    #[schema(value_type = Option<Object>)]
    body: Option<Box<RawValue>>,
}

/// Orders that the intake has, oldest first.
#[utoipa::path(get, path = "/api/v1/orders", tag = "orders", params(Filter, Page),
    responses((status = 200, body = OrderPage), (status = 401), (status = 400)))]
async fn list(
    State(app): State<App>,
    _operator: Operator,
    Query(filter): Query<Filter>,
    Query(page): Query<Page>,
) -> Result<Json<OrderPage>, Failure> {
    let limit = page.limit.unwrap_or(100).clamp(1, PAGE);
    let mut query = matching(&filter).order_by_asc(order::Column::Position).limit(limit + 1);
    if let Some(after) = page.after {
        query = query.filter(order::Column::Position.gt(after));
    }
    let columns = query.select_only().columns(WITHOUT_BODY);
    let mut rows: Vec<OrderRow> = columns.into_model().all(app.database.read()).await?;
    let more = u64::try_from(rows.len()).unwrap_or(u64::MAX) > limit;
    rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let next = rows.last().filter(|_| more).map(|row| row.position);
    Ok(Json(OrderPage { orders: rows.into_iter().map(OrderView::from).collect(), next }))
}

/// How many orders the intake has.
#[utoipa::path(get, path = "/api/v1/orders:count", tag = "orders", params(Filter),
    responses((status = 200, body = OrderCount), (status = 401)))]
async fn count(
    State(app): State<App>,
    _operator: Operator,
    Query(filter): Query<Filter>,
    // Counting has no pages; a value that makes no sense is still said to be one.
    Query(_page): Query<Page>,
) -> Result<Json<OrderCount>, Failure> {
    Ok(Json(OrderCount { count: matching(&filter).count(app.database.read()).await? }))
}

/// Whose order.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
struct Whose {
    /// Of this device only.
    device: Option<String>,
}

/// One order by its id, with its body: the newest, and all others of that id in `matches`.
#[utoipa::path(get, path = "/api/v1/orders/{id}", tag = "orders", params(("id" = String, Path, description = "the order's id"), Whose),
    responses((status = 200, body = OrderWithBody), (status = 401), (status = 404)))]
async fn one(
    State(app): State<App>,
    _operator: Operator,
    Path(id): Path<String>,
    Query(whose): Query<Whose>,
) -> Result<Json<OrderWithBody>, Failure> {
    let filter = Filter { device: whose.device, ..Filter::default() };
    let query = matching(&filter).filter(order::Column::Id.eq(&id)).order_by_desc(order::Column::Position);
    let all = query.clone().limit(MATCHES).select_only().columns(WITHOUT_BODY).into_model::<OrderRow>();
    let matches = all.all(app.database.read()).await?.into_iter().map(OrderView::from).collect();
    let found = query.one(app.database.read()).await?;
    let found = found.ok_or_else(|| Failure::not_found(format!("there is no order {id}")))?;
    // It was read as JSON when it came in.
    let body =
        found.body.clone().and_then(|bytes| RawValue::from_string(String::from_utf8(bytes).ok()?).ok());
    Ok(Json(OrderWithBody { order: OrderRow::from(found).into(), matches, body }))
}

const WITHOUT_BODY: [order::Column; 14] = [
    order::Column::Position,
    order::Column::Id,
    order::Column::Key,
    order::Column::Sha256,
    order::Column::OrderNo,
    order::Column::Device,
    order::Column::Store,
    order::Column::Ledger,
    order::Column::Seq,
    order::Column::Udl,
    order::Column::Origin,
    order::Column::Batch,
    order::Column::AcceptedAt,
    order::Column::ReceivedAt,
];

/// A row without its body, which a page does not need.
#[derive(Debug, sea_orm::FromQueryResult)]
struct OrderRow {
    position: i64,
    id: String,
    key: String,
    sha256: String,
    order_no: Option<String>,
    device: String,
    store: String,
    ledger: String,
    seq: i64,
    udl: String,
    origin: String,
    batch: String,
    accepted_at: String,
    received_at: i64,
}

impl From<order::Model> for OrderRow {
    fn from(row: order::Model) -> Self {
        Self {
            position: row.position,
            id: row.id,
            key: row.key,
            sha256: row.sha256,
            order_no: row.order_no,
            device: row.device,
            store: row.store,
            ledger: row.ledger,
            seq: row.seq,
            udl: row.udl,
            origin: row.origin,
            batch: row.batch,
            accepted_at: row.accepted_at,
            received_at: row.received_at,
        }
    }
}

impl From<OrderRow> for OrderView {
    fn from(row: OrderRow) -> Self {
        Self {
            position: row.position,
            id: row.id,
            key: row.key,
            sha256: row.sha256,
            order_no: row.order_no,
            device: row.device,
            store: row.store,
            ledger: row.ledger,
            seq: row.seq,
            udl: row.udl,
            origin: row.origin,
            batch: row.batch,
            accepted_at: row.accepted_at,
            received_at: Timestamp::from_millis(row.received_at).to_string(),
        }
    }
}

fn matching(filter: &Filter) -> Select<order::Entity> {
    let mut query = order::Entity::find();
    for (column, wanted) in [
        (order::Column::Store, &filter.store),
        (order::Column::Device, &filter.device),
        (order::Column::Key, &filter.key),
    ] {
        if let Some(wanted) = wanted {
            query = query.filter(column.eq(wanted));
        }
    }
    query
}
