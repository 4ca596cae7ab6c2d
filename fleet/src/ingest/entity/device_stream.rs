//! How far each stream of events is stored without a gap.
#![expect(missing_docs, reason = "columns are described by the schema; the derive adds more public names")]

use sea_orm::entity::prelude::*;

/// One row of `device_streams`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "device_streams")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub device: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub activation: i64,
    #[sea_orm(primary_key, auto_increment = false)]
    pub stream: String,
    pub up_to: i64,
    pub gap_start: Option<i64>,
    pub gap_seen: Option<i64>,
    /// The last event that is stored beyond the gap, without another gap before it.
    pub gap_last: Option<i64>,
    /// Epoch of the message that began there.
    pub gap_epoch: Option<i64>,
    /// Its `seq`.
    pub gap_seq: Option<i64>,
}

/// None: rows name each other by identifier only.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
