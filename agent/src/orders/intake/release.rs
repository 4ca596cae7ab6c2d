//! Frees an order from the origin that it is bound to. The origin may have it already, so this accepts that it arrives
//! twice; it needs the token and a reason, and is kept in the audit log.

use super::{Intake, InterventionRequest, OrderName};
use crate::http::answer::read_json;
use crate::http::{Caller, Failure};
use crate::orders::ledger::Intervention;
use axum::body::Body;
use axum::extract::State;
use axum::{Extension, Json};
use serde_json::Value;

pub(super) async fn release(
    State(intake): State<Intake>,
    Extension(caller): Extension<Caller>,
    OrderName(order): OrderName,
    body: Body,
) -> Result<Json<Value>, Failure> {
    caller.require_token()?;
    let request: InterventionRequest = read_json(body).await?;
    request.require_reason("say why the order may arrive twice")?;
    intake.intervene(&order, Intervention::Release, request, caller).await
}
