//! Shadow batches: judged as a batch would be, never recorded (IO: reads only).

use std::collections::HashMap;

use samovar_wire::orders::{Batch, IncomingOrder, OrderResult};

use super::judge::{self, Stored};
use super::record::stored_for;
use super::who::Sender;
use crate::db::{Database, DatabaseError};

/// Stands for the request itself: what it would have recorded.
const THIS: &str = "shadow";

/// Says what would become of each order. Nothing is written.
///
/// # Errors
/// When the database does not answer.
pub(super) async fn judge(
    database: &Database,
    sender: &Sender,
    batch: &Batch,
) -> Result<Vec<OrderResult>, DatabaseError> {
    let valid: Vec<&IncomingOrder> =
        batch.orders.iter().filter(|order| judge::refusal(order).is_none()).collect();
    let mut stored = stored_for(database.read(), &sender.device, &valid).await?;
    would_record(&mut stored, &valid, sender);
    Ok(judge::results(&batch.orders, &stored, THIS))
}

/// Of a key that nobody has brought yet, the first one of the batch would be recorded.
fn would_record(stored: &mut HashMap<String, Stored>, valid: &[&IncomingOrder], sender: &Sender) {
    for order in valid {
        stored.entry(order.key.clone()).or_insert_with(|| Stored {
            sha256: order.sha256.clone(),
            receipt: THIS.to_owned(),
            ledger: sender.ledger.clone(),
            seq: order.seq,
            origin: sender.origin.clone(),
        });
    }
}
