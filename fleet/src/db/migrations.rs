//! The schema, as steps that are only ever added to.
//!
//! A released step is never edited: a new one follows it. Times are milliseconds since 1970, identifiers text, and
//! bodies bytes, so that both databases hold the same values.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{
    big_integer, big_integer_null, big_pk_auto, blob, blob_null, string, string_null, text, text_null,
};

/// All steps, in order.
pub(super) struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        use crate::ingest::schema::{EndpointFigures, M0002Devices, M0003Held};
        use crate::routes::schema::M0006Drafts;
        vec![
            Box::new(M0001Start),
            Box::new(M0002Devices),
            Box::new(M0003Held),
            Box::new(M0004Reconcile),
            Box::new(M0005Differences),
            Box::new(M0006Drafts),
            Box::new(EndpointFigures),
            Box::new(crate::hosts::schema::M0008HostOverrides),
        ]
    }
}

struct M0001Start;

impl MigrationName for M0001Start {
    fn name(&self) -> &'static str {
        "m0001_start"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for M0001Start {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in [
            operators(),
            sessions(),
            stores(),
            devices(),
            claims(),
            certificates(),
            orders(),
            routes(),
            audit(),
            secrets(),
        ] {
            manager.create_table(table).await?;
        }
        for (name, table, columns, unique) in [
            ("orders_device_key", "orders", &["device", "key"][..], true),
            ("orders_store", "orders", &["store", "position"], false),
            ("orders_device", "orders", &["device", "position"], false),
            ("orders_id", "orders", &["id"], false),
            ("orders_received", "orders", &["received_at"], false),
            ("certificates_device", "certificates", &["device"], false),
            ("devices_store", "devices", &["store"], false),
            ("sessions_expiry", "sessions", &["expires_at"], false),
        ] {
            let mut index = Index::create();
            index.name(name).table(table);
            for column in columns {
                index.col(*column);
            }
            if unique {
                index.unique();
            }
            manager.create_index(index).await?;
        }
        Ok(())
    }
}

/// What a comparison of a ledger reads, and what came of it.
struct M0004Reconcile;

impl MigrationName for M0004Reconcile {
    fn name(&self) -> &'static str {
        "m0004_reconcile"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for M0004Reconcile {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let reconciliations = table("reconciliations")
            .col(string("device"))
            .col(string("ledger"))
            .col(big_integer("last_at"))
            .col(big_integer_null("last_match_at"))
            .col(big_integer("ranges"))
            .col(big_integer("differing"))
            .col(big_integer("missing"))
            .col(big_integer("unknown"))
            .primary_key(Index::create().col("device").col("ledger"))
            .take();
        manager.create_table(reconciliations).await?;
        let mut places = Index::create();
        places.name("orders_place").table("orders").col("device").col("ledger").col("seq");
        manager.create_index(places).await
    }
}

/// Which ranges of a ledger are known to differ, between the requests of a comparison.
struct M0005Differences;

impl MigrationName for M0005Differences {
    fn name(&self) -> &'static str {
        "m0005_differences"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for M0005Differences {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut change = Table::alter();
        manager.alter_table(change.table("reconciliations").add_column(text_null("differences")).take()).await
    }
}

fn table(name: &'static str) -> TableCreateStatement {
    let mut table = Table::create();
    table.table(name).if_not_exists();
    table
}

fn key(name: &'static str) -> ColumnDef {
    string(name).primary_key().take()
}

fn operators() -> TableCreateStatement {
    table("operators")
        .col(key("name"))
        .col(text("password_hash"))
        .col(string("role"))
        .col(big_integer("created_at"))
        .col(big_integer_null("disabled_at"))
        .take()
}

fn sessions() -> TableCreateStatement {
    table("sessions")
        .col(key("token_hash"))
        .col(string("operator"))
        .col(string("kind"))
        .col(string_null("csrf"))
        .col(big_integer("created_at"))
        .col(big_integer("expires_at"))
        .take()
}

fn stores() -> TableCreateStatement {
    table("stores")
        .col(key("id"))
        .col(string("country"))
        .col(text("name"))
        .col(big_integer("created_at"))
        .take()
}

fn devices() -> TableCreateStatement {
    table("devices")
        .col(key("id"))
        .col(string("store"))
        .col(string("class"))
        .col(text_null("hardware"))
        .col(big_integer("activated_at"))
        .col(big_integer("created_at"))
        .take()
}

fn claims() -> TableCreateStatement {
    table("claims")
        .col(key("code"))
        .col(string("store"))
        .col(string("device"))
        .col(string("class"))
        .col(big_integer("created_at"))
        .col(string("created_by"))
        .col(big_integer("expires_at"))
        .col(big_integer_null("used_at"))
        .col(string_null("used_key"))
        .col(string_null("serial"))
        .take()
}

fn certificates() -> TableCreateStatement {
    table("certificates")
        .col(key("serial"))
        .col(string("device"))
        .col(text("pem"))
        .col(big_integer("issued_at"))
        .col(big_integer("not_after"))
        .col(big_integer_null("revoked_at"))
        .take()
}

fn orders() -> TableCreateStatement {
    table("orders")
        .col(big_pk_auto("position"))
        .col(string("device"))
        .col(string("key"))
        .col(string("ledger"))
        .col(big_integer("seq"))
        .col(string("id"))
        .col(string("sha256"))
        .col(text_null("order_no"))
        .col(string("udl"))
        .col(string("store"))
        .col(string("origin"))
        .col(string("batch"))
        .col(string("receipt"))
        .col(string("accepted_at"))
        .col(big_integer("received_at"))
        .col(blob_null("body"))
        .take()
}

fn routes() -> TableCreateStatement {
    table("route_tables")
        .col(big_integer("version").primary_key())
        .col(string("sha256"))
        .col(text("envelope"))
        .col(string("origin"))
        .col(big_integer("published_at"))
        .col(string("published_by"))
        .take()
}

fn audit() -> TableCreateStatement {
    table("audit")
        .col(big_pk_auto("position"))
        .col(big_integer("at"))
        .col(string("actor"))
        .col(string("action"))
        .col(text("subject"))
        .col(text("detail"))
        .take()
}

fn secrets() -> TableCreateStatement {
    table("secrets").col(key("name")).col(blob("value")).col(big_integer("created_at")).take()
}
