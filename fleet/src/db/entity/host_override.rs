//! Host overrides that the fleet wants: one row for each that somebody set, kept for a while after its end.
#![expect(missing_docs, reason = "columns are described by the schema; the derive adds more public names")]

use sea_orm::entity::prelude::*;

/// One row of `host_overrides`. A row is never changed, except that it is cleared once.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "host_overrides")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub device: String,
    pub name: String,
    pub address: String,
    pub owner: String,
    pub reason: String,
    pub ticket: Option<String>,
    pub forced: bool,
    pub set_at: i64,
    pub until: i64,
    pub cleared_at: Option<i64>,
}

/// None: rows name each other by identifier only.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
