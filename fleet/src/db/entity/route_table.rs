//! Every route table ever published, as it was signed.
#![expect(missing_docs, reason = "columns are described by the schema; the derive adds more public names")]

use sea_orm::entity::prelude::*;

/// One row of `route_tables`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "route_tables")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub version: i64,
    pub sha256: String,
    pub envelope: String,
    pub origin: String,
    pub published_at: i64,
    pub published_by: String,
    /// Who put it forward, when that was somebody else's part.
    pub proposed_by: Option<String>,
    /// What it says otherwise than the one before.
    pub summary: Option<String>,
    /// The same in Chinese.
    pub summary_zh: Option<String>,
    /// The version that it brings back.
    pub reissue_of: Option<i64>,
}

/// None: rows name each other by identifier only.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
