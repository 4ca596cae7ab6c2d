//! What each device should be, as it was last signed.
#![expect(missing_docs, reason = "columns are described by the schema; the derive adds more public names")]

use sea_orm::entity::prelude::*;

/// One row of `device_desired`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "device_desired")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub device: String,
    pub revision: i64,
    pub content_sha256: String,
    pub route_table: Option<i64>,
    pub signed_at: i64,
}

/// None: rows name each other by identifier only.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
