//! The tables of this flow, as a step of the migrations. A released step is never edited: a new one follows it.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{
    big_integer, big_integer_null, big_pk_auto, boolean, string, string_null, text, text_null,
};

/// Live state, events, metrics and desired state of devices.
pub struct M0002Devices;

impl MigrationName for M0002Devices {
    fn name(&self) -> &'static str {
        "m0002_devices_live"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for M0002Devices {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in [status(), streams(), events(), metrics(), desired()] {
            manager.create_table(table).await?;
        }
        for (name, table, columns, unique) in [
            ("device_events_once", "device_events", &["device", "activation", "stream", "seq"][..], true),
            ("device_events_device", "device_events", &["device", "position"], false),
            ("device_events_received", "device_events", &["received_at"], false),
            ("device_status_seen", "device_status", &["online", "last_seen"], false),
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

/// What is held beyond a gap of a stream, and the connection that a birth belongs to.
pub struct M0003Held;

impl MigrationName for M0003Held {
    fn name(&self) -> &'static str {
        "m0003_held_events"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for M0003Held {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // One column in each statement: SQLite takes no more.
        for column in ["gap_last", "gap_epoch", "gap_seq"] {
            let mut change = Table::alter();
            manager
                .alter_table(change.table("device_streams").add_column(big_integer_null(column)).take())
                .await?;
        }
        for (name, table, column) in
            [("certificates_revoked", "certificates", "revoked_at"), ("audit_subject", "audit", "subject")]
        {
            let mut index = Index::create();
            index.name(name).table(table).col(column);
            manager.create_index(index).await?;
        }
        let mut rename = Table::alter();
        rename.table("device_status").rename_column("previous_birth_at", "connected_at");
        manager.alter_table(rename).await
    }
}

/// How long names and requests take, counted by endpoint.
pub struct EndpointFigures;

impl MigrationName for EndpointFigures {
    fn name(&self) -> &'static str {
        "m0007_endpoint_figures"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for EndpointFigures {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut name = Index::create();
        for column in ["day", "country", "origin", "host", "table_version", "kind", "bucket"] {
            name.col(column);
        }
        let figures = table("endpoint_figures")
            .col(big_integer("day"))
            .col(string("country"))
            .col(string("origin"))
            .col(string("host"))
            .col(big_integer("table_version"))
            .col(string("kind"))
            .col(big_integer("bucket"))
            .col(big_integer("n"))
            .primary_key(&mut name)
            .take();
        manager.create_table(figures).await
    }
}

fn table(name: &'static str) -> TableCreateStatement {
    let mut table = Table::create();
    table.table(name).if_not_exists();
    table
}

fn status() -> TableCreateStatement {
    table("device_status")
        .col(string("device").primary_key())
        .col(big_integer("activation"))
        .col(boolean("online"))
        .col(big_integer("since"))
        .col(big_integer("epoch"))
        .col(big_integer("seq"))
        .col(big_integer("birth_seq"))
        .col(big_integer("birth_at"))
        .col(big_integer("previous_birth_at"))
        .col(big_integer("state_epoch"))
        .col(big_integer("state_seq"))
        .col(text_null("state"))
        .col(string_null("state_sha256"))
        .col(big_integer("reported_at"))
        .col(big_integer("last_seen"))
        .col(string_null("version"))
        .col(string_null("nonce"))
        .col(string_null("boot_id"))
        .col(text_null("capabilities"))
        .col(big_integer_null("route_table"))
        .col(big_integer("config_revision"))
        .take()
}

fn streams() -> TableCreateStatement {
    table("device_streams")
        .col(string("device"))
        .col(big_integer("activation"))
        .col(string("stream"))
        .col(big_integer("up_to"))
        .col(big_integer_null("gap_start"))
        .col(big_integer_null("gap_seen"))
        .primary_key(Index::create().col("device").col("activation").col("stream"))
        .take()
}

fn events() -> TableCreateStatement {
    table("device_events")
        .col(big_pk_auto("position"))
        .col(string("device"))
        .col(big_integer("activation"))
        .col(string("stream"))
        .col(big_integer("seq"))
        .col(big_integer("epoch"))
        .col(big_integer("at"))
        .col(string("kind"))
        .col(text("data"))
        .col(big_integer("received_at"))
        .take()
}

fn metrics() -> TableCreateStatement {
    table("device_metrics")
        .col(string("device"))
        .col(big_integer("slot"))
        .col(big_integer("at"))
        .col(big_integer("received_at"))
        .col(text("numbers"))
        .primary_key(Index::create().col("device").col("slot"))
        .take()
}

fn desired() -> TableCreateStatement {
    table("device_desired")
        .col(string("device").primary_key())
        .col(big_integer("revision"))
        .col(string("content_sha256"))
        .col(big_integer_null("route_table"))
        .col(big_integer("signed_at"))
        .take()
}
