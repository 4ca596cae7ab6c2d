//! Stores: list and add.

use axum::Json;
use axum::extract::{Path, Query, State};
use http::StatusCode;
use samovar_wire::{Country, StoreId, Timestamp};
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::OnConflict;
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Page;
use crate::app::App;
use crate::auth::{Operator, Role};
use crate::db::entity::store;
use crate::problem::{Failure, chain};
use crate::routes::published;
use crate::{audit, clock};

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list, add)).routes(routes!(one))
}

/// A store.
#[derive(Serialize, ToSchema)]
struct StoreView {
    id: String,
    /// ISO 3166-1 alpha-2.
    country: String,
    name: String,
    created_at: String,
    /// Something that its orders will suffer from; absent when all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
}

/// Stores, by identifier.
#[derive(Serialize, ToSchema)]
struct StoreList {
    stores: Vec<StoreView>,
    /// What to give as `after` for the next page; null at the end.
    next: Option<String>,
}

/// A store with its devices.
#[derive(Serialize, ToSchema)]
struct StoreDetail {
    #[serde(flatten)]
    store: StoreView,
    /// Its devices and how they are doing.
    devices: Vec<super::devices::DeviceView>,
}

/// A store to add.
#[derive(Deserialize, ToSchema)]
struct NewStore {
    id: String,
    /// ISO 3166-1 alpha-2.
    country: String,
    #[serde(default)]
    name: String,
}

/// Stores, by identifier.
#[utoipa::path(get, path = "/api/v1/stores", tag = "stores", params(Page),
    responses((status = 200, body = StoreList), (status = 401)))]
async fn list(
    State(app): State<App>,
    _operator: Operator,
    Query(page): Query<Page>,
) -> Result<Json<StoreList>, Failure> {
    let mut query = store::Entity::find().order_by_asc(store::Column::Id).limit(page.limit());
    if let Some(after) = &page.after {
        query = query.filter(store::Column::Id.gt(after));
    }
    let rows = query.all(app.database.read()).await?;
    let full = u64::try_from(rows.len()).is_ok_and(|found| found == page.limit());
    let next = rows.last().filter(|_| full).map(|row| row.id.clone());
    Ok(Json(StoreList { stores: rows.into_iter().map(view).collect(), next }))
}

/// One store.
#[utoipa::path(get, path = "/api/v1/stores/{id}", tag = "stores", params(("id" = String, Path)),
    responses((status = 200, body = StoreDetail), (status = 401), (status = 404)))]
async fn one(
    State(app): State<App>,
    _operator: Operator,
    Path(id): Path<String>,
) -> Result<Json<StoreDetail>, Failure> {
    let found = store::Entity::find_by_id(&id).one(app.database.read()).await?;
    let store = view(found.ok_or_else(|| Failure::not_found(format!("there is no store {id}")))?);
    Ok(Json(StoreDetail { devices: super::devices::of_store(&app, &store.id).await?, store }))
}

/// Adds a store.
#[utoipa::path(post, path = "/api/v1/stores", tag = "stores", request_body = NewStore,
    responses((status = 201, body = StoreView), (status = 400), (status = 401), (status = 403),
        (status = 409, description = "there is a store of that identifier")))]
async fn add(
    State(app): State<App>,
    operator: Operator,
    Json(new): Json<NewStore>,
) -> Result<(StatusCode, Json<StoreView>), Failure> {
    operator.needs(Role::Netops)?;
    let id: StoreId = new.id.parse().map_err(|error| Failure::malformed(format!("{error}")))?;
    let country: Country = new.country.parse().map_err(|error| Failure::malformed(format!("{error}")))?;
    if !is_name(&new.name) {
        let detail = "a name has 1 to 100 visible characters, and none that change the direction of writing";
        return Err(Failure::malformed(detail));
    }
    let now = clock::now();
    let row = store::Model {
        id: id.to_string(),
        country: country.to_string(),
        name: new.name,
        created_at: now.millis(),
    };
    let write = app.database.write().await?;
    let active = store::ActiveModel {
        id: Set(row.id.clone()),
        country: Set(row.country.clone()),
        name: Set(row.name.clone()),
        created_at: Set(row.created_at),
    };
    let inserted = store::Entity::insert(active)
        .on_conflict(OnConflict::column(store::Column::Id).do_nothing().to_owned())
        .exec_without_returning(&*write)
        .await?;
    if inserted == 0 {
        return Err(Failure::conflict(format!("there is a store {id}")));
    }
    audit::record(&write, now, &operator.name, ("store.add", id.as_str()), format!("country {country}"))
        .await?;
    write.commit().await?;
    // A new country must be in the starter table before its first device asks; if this fails, the hourly check does it.
    if let Err(error) = crate::routes::starter::refresh(&app, now).await {
        tracing::error!(error = %chain(&error), "the starter route table was not re-issued");
    }
    let mut added = view(row);
    if !published::serves(&app.database, &country).await? {
        added.warning =
            Some(format!("the route table in force has no country {country}: orders of this store are held"));
    }
    Ok((StatusCode::CREATED, Json(added)))
}

/// A name as people read it; none at all is fine.
fn is_name(name: &str) -> bool {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    name.is_empty() || (name.chars().count() <= 100 && !name.contains(hidden) && !name.trim().is_empty())
}

fn view(row: store::Model) -> StoreView {
    let created_at = Timestamp::from_millis(row.created_at).to_string();
    StoreView { id: row.id, country: row.country, name: row.name, created_at, warning: None }
}

#[cfg(test)]
mod tests {
    use super::is_name;

    #[test]
    fn names_are_what_people_read() {
        for good in ["", "Main street", "静安寺店", &"x".repeat(100)] {
            assert!(is_name(good), "{good}");
        }
        for bad in [" ", "a\nb", "a\u{202e}b", "\u{200b}", &"x".repeat(101)] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }
}
