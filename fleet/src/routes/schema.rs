//! The tables of drafts, and what is known of a published table besides its bytes, as a step of the migrations.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{
    big_integer, big_integer_null, big_pk_auto, string, string_null, text, text_null,
};

/// Drafts, and who put a published table forward.
pub struct M0006Drafts;

impl MigrationName for M0006Drafts {
    fn name(&self) -> &'static str {
        "m0006_route_drafts"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for M0006Drafts {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut drafts = Table::create();
        drafts
            .table("route_drafts")
            .if_not_exists()
            .col(big_pk_auto("id"))
            .col(text("title"))
            .col(string("state"))
            .col(big_integer("base_version"))
            .col(big_integer("revision"))
            .col(text("document"))
            .col(text("authors"))
            .col(big_integer("created_at"))
            .col(string("created_by"))
            .col(big_integer("updated_at"))
            .col(string("updated_by"))
            .col(big_integer_null("proposed_at"))
            .col(string_null("proposed_by"))
            .col(string_null("sha256"))
            .col(big_integer_null("decided_at"))
            .col(string_null("decided_by"))
            .col(big_integer_null("version"));
        manager.create_table(drafts).await?;
        // One column in each statement: SQLite takes no more.
        for column in [string_null("proposed_by"), text_null("summary"), text_null("summary_zh")] {
            let mut change = Table::alter();
            manager.alter_table(change.table("route_tables").add_column(column).take()).await?;
        }
        let mut change = Table::alter();
        manager
            .alter_table(change.table("route_tables").add_column(big_integer_null("reissue_of")).take())
            .await?;
        let mut index = Index::create();
        index.name("route_drafts_state").table("route_drafts").col("state");
        manager.create_index(index).await?;
        let mut index = Index::create();
        index.name("device_status_table").table("device_status").col("route_table");
        manager.create_index(index).await
    }
}
