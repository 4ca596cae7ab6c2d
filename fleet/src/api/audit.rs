//! The audit log: read only.
#![expect(unused_qualifications, reason = "written by the macro that describes the query parameters")]

use axum::Json;
use axum::extract::{Query, State};
use samovar_wire::Timestamp;
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::PAGE;
use crate::app::App;
use crate::auth::{Operator, Role};
use crate::db::entity::audit;
use crate::problem::Failure;

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list))
}

/// One deed.
#[derive(Serialize, ToSchema)]
struct Deed {
    /// Place in the log; grows.
    position: i64,
    at: String,
    /// An operator, a device, or the server itself.
    actor: String,
    action: String,
    subject: String,
    detail: String,
}

/// A page of the log.
#[derive(Serialize, ToSchema)]
struct AuditPage {
    /// The latest first.
    audit: Vec<Deed>,
    /// What to give as `before` for the next page; null at the end.
    next: Option<i64>,
}

/// Which page.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
struct Older {
    /// Only what is older than this position.
    before: Option<i64>,
    /// How many at most, up to 1000.
    limit: Option<u64>,
}

/// Who did what, the latest first.
#[utoipa::path(get, path = "/api/v1/audit", tag = "audit", params(Older),
    responses((status = 200, body = AuditPage), (status = 401), (status = 403)))]
async fn list(
    State(app): State<App>,
    operator: Operator,
    Query(page): Query<Older>,
) -> Result<Json<AuditPage>, Failure> {
    operator.needs(Role::Support)?;
    let limit = page.limit.unwrap_or(100).clamp(1, PAGE);
    let mut query = audit::Entity::find().order_by_desc(audit::Column::Position).limit(limit);
    if let Some(before) = page.before {
        query = query.filter(audit::Column::Position.lt(before));
    }
    let rows = query.all(app.database.read()).await?;
    let full = u64::try_from(rows.len()).is_ok_and(|found| found == limit);
    let next = rows.last().filter(|_| full).map(|row| row.position);
    Ok(Json(AuditPage { audit: rows.into_iter().map(view).collect(), next }))
}

fn view(row: audit::Model) -> Deed {
    Deed {
        position: row.position,
        at: Timestamp::from_millis(row.at).to_string(),
        actor: row.actor,
        action: row.action,
        subject: row.subject,
        detail: row.detail,
    }
}
