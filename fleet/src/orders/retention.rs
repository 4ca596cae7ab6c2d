//! What the intake forgets, and when: bodies first (if configured), keys not before their 180 days.
//!
//! Deleting goes in small steps, so that batches that arrive meanwhile wait for milliseconds only.

use std::time::Duration;

use samovar_wire::Timestamp;
use sea_orm::sea_query::Expr;
use sea_orm::{
    ColumnTrait as _, Condition, EntityTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _,
};

use crate::clock::earlier;
use crate::config;
use crate::db::entity::order;
use crate::db::{Database, DatabaseError};

/// Rows of one step.
const STEP: u64 = 1000;

/// Up to when things are forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cutoffs {
    /// Rows received before are deleted.
    pub keys: Timestamp,
    /// Bodies received before are emptied; `None` = never.
    pub bodies: Option<Timestamp>,
}

/// Marks: which times follow from the configuration.
#[must_use]
pub fn cutoffs(config: &config::Intake, now: Timestamp) -> Cutoffs {
    let before = |days: u32| earlier(now, Duration::from_hours(24) * days);
    Cutoffs {
        keys: before(config.keep_keys_days.max(180)),
        bodies: (config.keep_bodies_days > 0).then(|| before(config.keep_bodies_days)),
    }
}

/// Acts: forgets what the cut-offs say, and says how many rows were deleted and emptied.
///
/// # Errors
/// When the database refuses; what was done stays done.
pub async fn forget(database: &Database, cutoffs: Cutoffs) -> Result<(u64, u64), DatabaseError> {
    let mut deleted = 0;
    loop {
        let due =
            positions(database, Condition::all().add(order::Column::ReceivedAt.lt(cutoffs.keys.millis())))
                .await?;
        if due.is_empty() {
            break;
        }
        let write = database.write().await?;
        deleted += order::Entity::delete_many()
            .filter(order::Column::Position.is_in(due))
            .exec(&*write)
            .await?
            .rows_affected;
        write.commit().await?;
    }
    let mut emptied = 0;
    while let Some(before) = cutoffs.bodies {
        let old = Condition::all()
            .add(order::Column::ReceivedAt.lt(before.millis()))
            .add(order::Column::Body.is_not_null());
        let due = positions(database, old).await?;
        if due.is_empty() {
            break;
        }
        let write = database.write().await?;
        emptied += order::Entity::update_many()
            .col_expr(order::Column::Body, Expr::value(Option::<Vec<u8>>::None))
            .filter(order::Column::Position.is_in(due))
            .exec(&*write)
            .await?
            .rows_affected;
        write.commit().await?;
    }
    Ok((deleted, emptied))
}

async fn positions(database: &Database, filter: Condition) -> Result<Vec<i64>, DatabaseError> {
    Ok(order::Entity::find()
        .select_only()
        .column(order::Column::Position)
        .filter(filter)
        .order_by_asc(order::Column::Position)
        .limit(STEP)
        .into_tuple()
        .all(database.read())
        .await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_never_forgotten_before_180_days_whatever_the_configuration_says() {
        let now = Timestamp::from_millis(1_800_000_000_000);
        let config = config::Intake { keep_keys_days: 1, keep_bodies_days: 30, ..Default::default() };
        let cutoffs = cutoffs(&config, now);
        assert_eq!(now.since(cutoffs.keys), Duration::from_hours(24 * 180));
        assert_eq!(now.since(cutoffs.bodies.unwrap()), Duration::from_hours(24 * 30));
    }
}
