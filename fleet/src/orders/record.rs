//! Recording a batch: one transaction, insert-if-absent, read back.

use std::collections::HashMap;

use samovar_wire::orders::{Batch, IncomingOrder, OrderResult, Outcome};
use samovar_wire::{DeviceId, Timestamp};
use sea_orm::ActiveValue::{NotSet, Set};
use sea_orm::sea_query::OnConflict;
use sea_orm::{ColumnTrait as _, ConnectionTrait, EntityTrait as _, QueryFilter as _, QuerySelect as _};

use super::judge::{self, Stored};
use super::places;
use super::who::Sender;
use crate::audit;
use crate::db::entity::audit::Column as Audit;
use crate::db::entity::order;
use crate::db::{Database, DatabaseError, Write};

/// Rows of one statement: well below both databases' limits on parameters.
const ROWS: usize = 500;

/// Records what can be recorded and says what became of each order. When this returns, it is durable.
///
/// # Errors
/// [`DatabaseError`]: nothing is known to be recorded; the sender repeats.
pub(super) async fn record(
    database: &Database,
    sender: &Sender,
    batch: &Batch,
    now: Timestamp,
) -> Result<Vec<OrderResult>, DatabaseError> {
    let receipt = uuid::Uuid::now_v7().simple().to_string();
    let mut valid: Vec<&IncomingOrder> =
        batch.orders.iter().filter(|order| judge::refusal(order).is_none()).collect();
    if valid.is_empty() {
        return Ok(judge::results(&batch.orders, &HashMap::new(), &receipt));
    }
    // In the same order in every transaction, so that two of them never wait for each other in a circle. The sort is
    // stable: of a key that comes twice, the first one is recorded.
    valid.sort_by(|one, other| one.key.cmp(&other.key));
    let write = database.write().await?;
    for rows in valid.chunks(ROWS) {
        let rows = rows.iter().map(|order| row(order, sender, (&batch.batch, &receipt), now));
        order::Entity::insert_many(rows)
            .on_conflict(
                OnConflict::columns([order::Column::Device, order::Column::Key]).do_nothing().to_owned(),
            )
            .exec_without_returning(&*write)
            .await?;
    }
    let stored = stored_for(&*write, &sender.device, &valid).await?;
    let results = judge::results(&batch.orders, &stored, &receipt);
    let place = (sender.ledger.as_str(), sender.origin.as_str());
    let moved = judge::moved(&batch.orders, &results, &stored, place, &receipt);
    places::move_to(&write, &sender.device, place, moved).await?;
    alarm_conflicts(&write, sender, batch, &results, now).await?;
    write.commit().await?;
    Ok(results)
}

fn row(
    order: &IncomingOrder,
    sender: &Sender,
    (batch, receipt): (&str, &str),
    now: Timestamp,
) -> order::ActiveModel {
    order::ActiveModel {
        position: NotSet,
        device: Set(sender.device.to_string()),
        key: Set(order.key.clone()),
        ledger: Set(sender.ledger.clone()),
        // Checked by `refusal`.
        seq: Set(i64::try_from(order.seq).unwrap_or(i64::MAX)),
        id: Set(order.id.clone()),
        sha256: Set(order.sha256.clone()),
        order_no: Set(Some(order.order_no.clone())),
        udl: Set(order.udl.clone().unwrap_or_else(|| sender.udl.clone())),
        store: Set(sender.store.clone()),
        origin: Set(sender.origin.clone()),
        batch: Set(batch.to_owned()),
        receipt: Set(receipt.to_owned()),
        accepted_at: Set(order.accepted_at.to_string()),
        received_at: Set(now.millis()),
        body: Set(Some(order.body.get().as_bytes().to_vec())),
    }
}

/// What the database has for the keys of some orders.
pub(super) async fn stored_for<C: ConnectionTrait>(
    connection: &C,
    device: &DeviceId,
    orders: &[&IncomingOrder],
) -> Result<HashMap<String, Stored>, DatabaseError> {
    use order::Column as O;
    let mut stored = HashMap::with_capacity(orders.len());
    for part in orders.chunks(ROWS) {
        let rows: Vec<(String, String, String, String, i64, String)> = order::Entity::find()
            .select_only()
            .columns([O::Key, O::Sha256, O::Receipt, O::Ledger, O::Seq, O::Origin])
            .filter(O::Device.eq(device.as_str()))
            .filter(O::Key.is_in(part.iter().map(|order| order.key.as_str())))
            .into_tuple()
            .all(connection)
            .await?;
        stored.extend(rows.into_iter().map(|(key, sha256, receipt, ledger, seq, origin)| {
            let seq = u64::try_from(seq).unwrap_or_default();
            (key, Stored { sha256, receipt, ledger, seq, origin })
        }));
    }
    Ok(stored)
}

async fn alarm_conflicts(
    write: &Write,
    sender: &Sender,
    batch: &Batch,
    results: &[OrderResult],
    now: Timestamp,
) -> Result<(), DatabaseError> {
    for (order, result) in batch.orders.iter().zip(results) {
        if result.status == Outcome::Conflict {
            tracing::warn!(device = %sender.device, key = order.key, "a key came again with other content");
            let subject = format!("{}/{}", sender.device, order.key);
            let detail = format!("order {} with sha256 {}", order.id, order.sha256);
            let same = Audit::Detail.ends_with(format!("with sha256 {}", order.sha256));
            let before = crate::db::entity::audit::Entity::find()
                .filter(Audit::Subject.eq(&subject))
                .filter(Audit::Action.eq("order.conflict"))
                .filter(same);
            // A device that goes on asking says nothing new.
            if before.one(&**write).await?.is_some() {
                continue;
            }
            audit::record(write, now, sender.device.as_str(), ("order.conflict", &subject), detail).await?;
        }
    }
    Ok(())
}
