//! Events, each stored once.
#![expect(missing_docs, reason = "columns are described by the schema; the derive adds more public names")]

use sea_orm::entity::prelude::*;

/// One row of `device_events`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "device_events")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub position: i64,
    pub device: String,
    pub activation: i64,
    pub stream: String,
    pub seq: i64,
    pub epoch: i64,
    pub at: i64,
    pub kind: String,
    pub data: String,
    pub received_at: i64,
}

/// None: rows name each other by identifier only.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
