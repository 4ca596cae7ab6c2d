//! When a device's ledger was last compared with the intake, and what came of it: for people.

use std::collections::HashMap;

use samovar_wire::Timestamp;
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _};
use serde::Serialize;
use utoipa::ToSchema;

use crate::db::entity::reconciliation;
use crate::db::{Database, DatabaseError};

/// Devices in one question to the database.
const ASK: usize = 1000;

/// The last comparison of a device's newest ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Compared {
    /// The ledger.
    pub ledger: String,
    /// When it was compared last.
    pub last_at: String,
    /// When both sides last had the same orders in everything that was compared; null when they never did.
    pub last_match_at: Option<String>,
    /// Ranges of the last comparison.
    pub ranges: i64,
    /// Ranges that are known to differ, whichever request found it.
    pub differing: i64,
    /// Orders that were found missing here in them; the device sends them again.
    pub missing: i64,
    /// Orders that are here in them and that the device did not name.
    pub unknown: i64,
}

/// The last comparisons of some devices, by device. Devices that were never compared are absent.
///
/// # Errors
/// When the database does not answer.
pub async fn of(database: &Database, devices: &[&str]) -> Result<HashMap<String, Compared>, DatabaseError> {
    use reconciliation::Column as C;
    let mut found = HashMap::with_capacity(devices.len());
    for some in devices.chunks(ASK) {
        let rows = reconciliation::Entity::find()
            .filter(C::Device.is_in(some.iter().copied()))
            .order_by_asc(C::LastAt)
            .all(database.read())
            .await?;
        // The newest ledger comes last.
        found.extend(rows.into_iter().map(|row| (row.device.clone(), Compared::from(row))));
    }
    Ok(found)
}

impl From<reconciliation::Model> for Compared {
    fn from(row: reconciliation::Model) -> Self {
        let time = |millis| Timestamp::from_millis(millis).to_string();
        Self {
            ledger: row.ledger,
            last_at: time(row.last_at),
            last_match_at: row.last_match_at.map(time),
            ranges: row.ranges,
            differing: row.differing,
            missing: row.missing,
            unknown: row.unknown,
        }
    }
}
