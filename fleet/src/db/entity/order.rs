//! What the intake has: one row for each key of a device.
#![expect(missing_docs, reason = "columns are described by the schema; the derive adds more public names")]

use sea_orm::entity::prelude::*;

/// One row of `orders`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "orders")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub position: i64,
    pub device: String,
    pub key: String,
    pub ledger: String,
    pub seq: i64,
    pub id: String,
    pub sha256: String,
    pub order_no: Option<String>,
    pub udl: String,
    pub store: String,
    pub origin: String,
    pub batch: String,
    pub receipt: String,
    pub accepted_at: String,
    pub received_at: i64,
    pub body: Option<Vec<u8>>,
}

/// None: rows name each other by identifier only.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
