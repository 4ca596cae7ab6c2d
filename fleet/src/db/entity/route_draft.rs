//! Route tables that are being written.
#![expect(missing_docs, reason = "columns are described by the schema; the derive adds more public names")]

use sea_orm::entity::prelude::*;

/// One row of `route_drafts`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "route_drafts")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub title: String,
    /// `draft`, `proposed`, `published` or `discarded`.
    pub state: String,
    /// The version in force when it was begun, or looked at when it was put forward.
    pub base_version: i64,
    pub revision: i64,
    pub document: String,
    /// Everybody who wrote at it, a JSON list.
    pub authors: String,
    pub created_at: i64,
    pub created_by: String,
    pub updated_at: i64,
    pub updated_by: String,
    pub proposed_at: Option<i64>,
    pub proposed_by: Option<String>,
    /// Digest of the document as proposed.
    pub sha256: Option<String>,
    pub decided_at: Option<i64>,
    pub decided_by: Option<String>,
    /// The version under which it was published.
    pub version: Option<i64>,
}

/// None: rows name each other by identifier only.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
