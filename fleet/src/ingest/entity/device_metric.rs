//! The last reports of numbers of each device, a ring.
#![expect(missing_docs, reason = "columns are described by the schema; the derive adds more public names")]

use sea_orm::entity::prelude::*;

/// One row of `device_metrics`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "device_metrics")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub device: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub slot: i64,
    pub at: i64,
    pub received_at: i64,
    pub numbers: String,
}

/// None: rows name each other by identifier only.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
