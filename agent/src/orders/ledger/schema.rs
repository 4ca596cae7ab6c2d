//! The ledger's tables. Migrations are append-only and indexed by `user_version`: today's code opens every ledger
//! ever released.

use rusqlite::Connection;

/// One step each; never edit a step that was released.
const MIGRATIONS: &[&str] = &[
    // 1: orders, what operators did to them, and facts about the ledger itself.
    "CREATE TABLE meta(k TEXT PRIMARY KEY, v TEXT NOT NULL) STRICT;
     CREATE TABLE orders(
       seq INTEGER PRIMARY KEY AUTOINCREMENT,
       id TEXT NOT NULL,
       key TEXT NOT NULL,
       conflict_with INTEGER,            -- seq of the order that had the key first
       order_no TEXT NOT NULL,
       sha256 BLOB NOT NULL,
       udl TEXT NOT NULL,                -- the country that routes it
       user TEXT,
       kind TEXT NOT NULL,
       depends_on TEXT,
       body BLOB,                        -- NULL once retention has let it go
       bytes INTEGER NOT NULL,
       accepted_at INTEGER NOT NULL,     -- milliseconds
       state INTEGER NOT NULL,           -- see State
       why TEXT,                         -- why held or quarantined: a stable word
       detail TEXT,                      -- the words that go with it, or the last error
       origin TEXT,                      -- bound to it until it has answered
       attempts INTEGER NOT NULL DEFAULT 0,
       first_sent_at INTEGER,
       sent_at INTEGER,
       closed_at INTEGER                 -- settled, quarantined or discarded
     ) STRICT;
     CREATE UNIQUE INDEX orders_id ON orders(id);
     CREATE UNIQUE INDEX orders_key ON orders(key) WHERE conflict_with IS NULL;
     CREATE INDEX orders_conflict ON orders(key) WHERE conflict_with IS NOT NULL;
     CREATE INDEX orders_no ON orders(order_no, seq);
     CREATE INDEX orders_state ON orders(state, seq);
     CREATE INDEX orders_due ON orders(origin, udl, seq) WHERE state = 0;
     CREATE INDEX orders_waiting ON orders(depends_on) WHERE state = 1 AND depends_on IS NOT NULL;
     CREATE INDEX orders_old ON orders(closed_at) WHERE state = 2;
     CREATE TABLE audit(
       at INTEGER NOT NULL, seq INTEGER NOT NULL, what TEXT NOT NULL, who TEXT NOT NULL, reason TEXT NOT NULL
     ) STRICT;
     CREATE INDEX audit_seq ON audit(seq);",
    // 2: which key sealed a body, salvage of a damaged ledger, and fewer pages to write per order: an order number
    // that is the key is found by the key, and settled orders are in no index of states.
    "ALTER TABLE orders ADD COLUMN sealed INTEGER;   -- id of the key; NULL when the body is plain
     DROP INDEX orders_state;
     DROP INDEX orders_no;
     CREATE INDEX orders_open ON orders(state, seq) WHERE state NOT IN (0, 2);
     CREATE INDEX orders_no ON orders(order_no, seq) WHERE order_no <> key;
     DROP INDEX orders_old;
     CREATE INDEX orders_history ON orders(closed_at, bytes) WHERE state = 2 AND body IS NOT NULL;
     CREATE INDEX orders_remembered ON orders(closed_at) WHERE state = 2 AND body IS NULL;
     CREATE TABLE salvage(
       file TEXT PRIMARY KEY,            -- of a damaged ledger, in this directory
       stage INTEGER NOT NULL DEFAULT 0, -- 0: orders, 1: what hangs on them, 2: done
       page INTEGER NOT NULL DEFAULT 0,  -- everything up to here is done
       came INTEGER NOT NULL DEFAULT 0, merged INTEGER NOT NULL DEFAULT 0,
       unreadable_pages INTEGER NOT NULL DEFAULT 0,
       highest INTEGER NOT NULL DEFAULT 0, -- place that the old ledger had come to
       told TEXT                         -- how it ended, in words; NULL before
     ) STRICT;
     CREATE TABLE salvaged(              -- while it lasts: where the orders of the old ledger went
       file TEXT NOT NULL, old_seq INTEGER NOT NULL, seq INTEGER NOT NULL, conflict_with INTEGER,
       PRIMARY KEY(file, old_seq)
     ) STRICT, WITHOUT ROWID;",
    // 3: what an origin has not yet confirmed, for reconciliation. The marks are made by triggers, so that no way of
    // settling an order, not even salvage from a damaged ledger, can forget them. A bucket is 256 places.
    "CREATE TABLE reconcile_marks(
       origin TEXT NOT NULL,
       bucket INTEGER NOT NULL,
       generation INTEGER NOT NULL DEFAULT 0,  -- grows with each change, so that a late match clears no newer one
       confirmed INTEGER NOT NULL DEFAULT 0,   -- the origin has all of ours; it only has more than we do
       resent INTEGER NOT NULL DEFAULT 0,      -- orders sent again since the last match
       lost INTEGER NOT NULL DEFAULT 0,        -- orders it lacks that cannot be sent again
       strange INTEGER NOT NULL DEFAULT 0,     -- orders it has that this ledger lacks
       PRIMARY KEY(origin, bucket)
     ) STRICT, WITHOUT ROWID;
     CREATE TABLE reconcile_origins(
       origin TEXT PRIMARY KEY,
       supported INTEGER NOT NULL,
       at INTEGER NOT NULL,                    -- milliseconds, as below
       matched_at INTEGER,
       full_at INTEGER,
       ranges INTEGER NOT NULL, orders INTEGER NOT NULL, resent INTEGER NOT NULL
     ) STRICT, WITHOUT ROWID;
     INSERT INTO reconcile_marks(origin, bucket)
       SELECT DISTINCT origin, seq / 256 FROM orders WHERE state = 2 AND origin IS NOT NULL;
     CREATE TRIGGER orders_settled AFTER UPDATE OF state ON orders
       WHEN NEW.state = 2 AND NEW.origin IS NOT NULL
     BEGIN
       INSERT INTO reconcile_marks(origin, bucket) VALUES(NEW.origin, NEW.seq / 256)
         ON CONFLICT(origin, bucket) DO UPDATE SET generation = generation + 1, confirmed = 0;
     END;
     CREATE TRIGGER orders_salvaged AFTER INSERT ON orders
       WHEN NEW.state = 2 AND NEW.origin IS NOT NULL AND NEW.body IS NOT NULL
     BEGIN
       INSERT INTO reconcile_marks(origin, bucket) VALUES(NEW.origin, NEW.seq / 256)
         ON CONFLICT(origin, bucket) DO UPDATE SET generation = generation + 1, confirmed = 0;
     END;",
];

/// Brings a ledger to the newest form.
///
/// # Errors
/// When a step fails, or the ledger was written by a newer agent.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), MigrationError> {
    let version: usize = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let newer = || MigrationError::Newer { found: version, known: MIGRATIONS.len() };
    let missing = MIGRATIONS.get(version..).ok_or_else(newer)?;
    for (index, step) in missing.iter().enumerate() {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", version + index + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

/// Why a ledger could not be brought to the newest form.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// Written by a later release.
    #[error("the ledger has schema {found}, this release knows {known}: start the newer release again")]
    Newer {
        /// The ledger's.
        found: usize,
        /// This release's.
        known: usize,
    },
    /// SQLite refused.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}
