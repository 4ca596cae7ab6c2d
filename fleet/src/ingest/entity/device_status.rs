//! How each device is doing, as far as it has said.
#![expect(missing_docs, reason = "columns are described by the schema; the derive adds more public names")]

use sea_orm::entity::prelude::*;

/// One row of `device_status`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "device_status")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub device: String,
    pub activation: i64,
    pub online: bool,
    pub since: i64,
    pub epoch: i64,
    pub seq: i64,
    pub birth_seq: i64,
    pub birth_at: i64,
    pub connected_at: i64,
    pub state_epoch: i64,
    pub state_seq: i64,
    pub state: Option<String>,
    pub state_sha256: Option<String>,
    pub reported_at: i64,
    pub last_seen: i64,
    pub version: Option<String>,
    pub nonce: Option<String>,
    pub boot_id: Option<String>,
    pub capabilities: Option<String>,
    pub route_table: Option<i64>,
    pub config_revision: i64,
}

/// None: rows name each other by identifier only.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
