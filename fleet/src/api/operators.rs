//! Operators: list, add, change, disable.

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use samovar_wire::Timestamp;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait as _, EntityTrait as _, PaginatorTrait as _, QueryFilter as _, QueryOrder as _};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::auth::operators::{AddError, add as add_operator, set_password};
use crate::auth::password::PasswordError;
use crate::auth::{Operator, Role, role_name, role_of, session};
use crate::db::entity::operator;
use crate::problem::Failure;
use crate::{audit, clock};

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list, add)).routes(routes!(disable)).routes(routes!(password))
}

/// An operator.
#[derive(Serialize, ToSchema)]
struct OperatorView {
    name: String,
    role: String,
    created_at: String,
    /// When they were shut out; null while they may log in.
    disabled_at: Option<String>,
}

/// Operators, by name.
#[derive(Serialize, ToSchema)]
struct OperatorList {
    operators: Vec<OperatorView>,
}

/// An operator to add.
#[derive(Deserialize, ToSchema)]
struct NewOperator {
    name: String,
    /// At least 10 characters.
    password: String,
    /// `admin`, `netops`, `field`, `support` or `viewer`.
    role: String,
}

/// A new password.
#[derive(Deserialize, ToSchema)]
struct NewPassword {
    /// At least 10 characters.
    password: String,
}

/// Operators, by name.
#[utoipa::path(get, path = "/api/v1/operators", tag = "operators",
    responses((status = 200, body = OperatorList), (status = 401), (status = 403)))]
async fn list(State(app): State<App>, operator: Operator) -> Result<Json<OperatorList>, Failure> {
    operator.needs(Role::Admin)?;
    let rows = operator::Entity::find().order_by_asc(operator::Column::Name).all(app.database.read()).await?;
    Ok(Json(OperatorList { operators: rows.into_iter().map(view).collect() }))
}

/// Adds an operator.
#[utoipa::path(post, path = "/api/v1/operators", tag = "operators", request_body = NewOperator,
    responses((status = 201, body = OperatorView), (status = 400), (status = 401), (status = 403), (status = 409)))]
async fn add(
    State(app): State<App>,
    operator: Operator,
    Json(new): Json<NewOperator>,
) -> Result<(StatusCode, Json<OperatorView>), Failure> {
    operator.needs(Role::Admin)?;
    let role = role_of(&new.role)
        .ok_or_else(|| Failure::malformed("the role is one of admin, netops, field, support, viewer"))?;
    let now = clock::now();
    add_operator(&app.database, (&new.name, new.password), role, &operator.name, now)
        .await
        .map_err(|error| failure(&error))?;
    let view =
        OperatorView { name: new.name, role: new.role, created_at: now.to_string(), disabled_at: None };
    Ok((StatusCode::CREATED, Json(view)))
}

/// Shuts an operator out at once, sessions included. The last admin stays.
#[utoipa::path(post, path = "/api/v1/operators/{name}/disable", tag = "operators", params(("name" = String, Path)),
    responses((status = 204), (status = 401), (status = 403), (status = 404), (status = 409, description = "the last admin")))]
async fn disable(
    State(app): State<App>,
    operator: Operator,
    Path(name): Path<String>,
) -> Result<StatusCode, Failure> {
    operator.needs(Role::Admin)?;
    let now = clock::now();
    let write = app.database.write().await?;
    let found = operator::Entity::find_by_id(&name).one(&*write).await?;
    let found = found.ok_or_else(|| Failure::not_found(format!("there is no operator {name}")))?;
    let others = operator::Entity::find()
        .filter(operator::Column::Role.eq(role_name(Role::Admin)))
        .filter(operator::Column::DisabledAt.is_null())
        .filter(operator::Column::Name.ne(&name))
        .count(&*write)
        .await?;
    if found.role == role_name(Role::Admin) && others == 0 {
        return Err(Failure::conflict("the last admin cannot be disabled"));
    }
    operator::Entity::update_many()
        .col_expr(operator::Column::DisabledAt, Expr::value(now.millis()))
        .filter(operator::Column::Name.eq(&name))
        .filter(operator::Column::DisabledAt.is_null())
        .exec(&*write)
        .await?;
    session::close_all(&write, &name).await?;
    audit::record(&write, now, &operator.name, ("operator.disable", &name), "").await?;
    write.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sets a password: one's own, or anybody's for an admin. Ends the sessions of that operator.
#[utoipa::path(post, path = "/api/v1/operators/{name}/password", tag = "operators", params(("name" = String, Path)),
    request_body = NewPassword,
    responses((status = 204), (status = 400), (status = 401), (status = 403), (status = 404)))]
async fn password(
    State(app): State<App>,
    operator: Operator,
    Path(name): Path<String>,
    Json(new): Json<NewPassword>,
) -> Result<StatusCode, Failure> {
    if operator.name != name {
        operator.needs(Role::Admin)?;
    }
    let done = set_password(&app.database, &name, new.password, &operator.name, clock::now()).await;
    done.map(|()| StatusCode::NO_CONTENT).map_err(|error| failure(&error))
}

fn failure(error: &AddError) -> Failure {
    match error {
        AddError::Name | AddError::Password(PasswordError::TooShort) => Failure::malformed(error.to_string()),
        AddError::Exists => Failure::conflict(error.to_string()),
        AddError::Unknown => Failure::not_found(error.to_string()),
        AddError::Password(error) => Failure::unavailable(error),
        AddError::Database(error) => Failure::unavailable(error),
    }
}

fn view(row: operator::Model) -> OperatorView {
    let text = |at: i64| Timestamp::from_millis(at).to_string();
    OperatorView {
        name: row.name,
        role: row.role,
        created_at: text(row.created_at),
        disabled_at: row.disabled_at.map(text),
    }
}
