//! The table of host overrides, as a step of the migrations.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{big_integer, big_integer_null, boolean, string, text, text_null};

/// Host overrides that the fleet wants.
pub struct M0008HostOverrides;

impl MigrationName for M0008HostOverrides {
    fn name(&self) -> &'static str {
        "m0008_host_overrides"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for M0008HostOverrides {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut overrides = Table::create();
        overrides
            .table("host_overrides")
            .if_not_exists()
            .col(string("id").primary_key())
            .col(string("device"))
            .col(string("name"))
            .col(string("address"))
            .col(string("owner"))
            .col(text("reason"))
            .col(text_null("ticket"))
            .col(boolean("forced"))
            .col(big_integer("set_at"))
            .col(big_integer("until"))
            .col(big_integer_null("cleared_at"));
        manager.create_table(overrides).await?;
        for (name, column) in [("host_overrides_device", "device"), ("host_overrides_until", "until")] {
            let mut index = Index::create();
            index.name(name).table("host_overrides").col(column);
            manager.create_index(index).await?;
        }
        Ok(())
    }
}
