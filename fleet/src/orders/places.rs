//! Where the device has an order: ledger, place in it, and the origin that answered for it (IO).
//!
//! An order keeps its key for ever, but not its place: when a damaged ledger is salvaged, its orders get new places in
//! a new one. A row follows to the place that the device named last, so that both sides count it in the same range.
//! What proves when and how it came (`batch`, `receipt`, `accepted_at`, `received_at`) is never changed.

use samovar_wire::DeviceId;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait as _, DbErr, EntityTrait as _, QueryFilter as _};

use crate::db::Write;
use crate::db::entity::order;

/// Moves orders of a device, given by key, to places in one ledger.
///
/// # Errors
/// When the database does not take it.
pub(super) async fn move_to(
    write: &Write,
    device: &DeviceId,
    (ledger, origin): (&str, &str),
    moved: impl IntoIterator<Item = (&str, u64)>,
) -> Result<(), DbErr> {
    let mut moved: Vec<_> = moved.into_iter().collect();
    // In the same order in every transaction, so that two of them never wait for each other in a circle.
    moved.sort_unstable();
    for (key, seq) in &moved {
        order::Entity::update_many()
            .col_expr(order::Column::Ledger, Expr::value(ledger))
            .col_expr(order::Column::Seq, Expr::value(i64::try_from(*seq).unwrap_or(i64::MAX)))
            .col_expr(order::Column::Origin, Expr::value(origin))
            .filter(order::Column::Device.eq(device.as_str()))
            .filter(order::Column::Key.eq(*key))
            .exec(&**write)
            .await?;
    }
    if !moved.is_empty() {
        tracing::info!(%device, ledger, orders = moved.len(), "orders have moved to another place of their device");
    }
    Ok(())
}
