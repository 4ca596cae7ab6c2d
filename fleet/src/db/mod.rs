//! Storage: one code base over SQLite and PostgreSQL.
//!
//! Promises: what [`Write::commit`] has returned from is on disk (SQLite in WAL mode with `synchronous = FULL`);
//! any number of servers may share one PostgreSQL; today's code opens every database ever released (migrations are
//! append-only).
//!
//! SQLite has one writer. Writers queue here, in order and in memory, instead of colliding in the database file; they
//! begin `IMMEDIATE`, so that no transaction fails half-way for having read first. Readers are never held up.
//!
//! Absent on purpose: a repository layer. Flows use the entities directly, inside a [`Write`] or through
//! [`Database::read`].

pub mod entity;
mod migrations;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sea_orm::sqlx::postgres::PgConnectOptions;
use sea_orm::sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
use sea_orm::{
    ConnectOptions, ConnectionTrait as _, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr,
    SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait as _,
};
use sea_orm_migration::MigratorTrait as _;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// How long a writer waits for its turn or for a connection before the request fails.
const WAIT: Duration = Duration::from_secs(10);

/// The name of the lock under which PostgreSQL's schema is changed ("samovar" on a telephone's keys).
const MIGRATION_LOCK: i64 = 7_266_827;

/// The oldest SQLite that is known not to lose a WAL reset race.
const OLDEST_SQLITE: (u32, u32, u32) = (3, 51, 3);

/// Storage could not be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The URL names neither SQLite nor PostgreSQL.
    #[error("the database URL must begin with sqlite:// or postgres://")]
    UnknownKind,
    /// The SQLite file or its folder cannot be made.
    #[error("{path} cannot be made", path = path.display())]
    Folder {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Nobody answers where PostgreSQL should be.
    #[error("the database at {place} does not answer")]
    Unreachable {
        /// Host and port.
        place: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// No connection.
    #[error("the database cannot be opened")]
    Connect(#[source] DbErr),
    /// The SQLite inside this program is older than what is safe.
    #[error("SQLite {found} is too old: 3.51.3 or newer is needed")]
    OldSqlite {
        /// The version found.
        found: String,
    },
    /// The schema could not be brought up to date.
    #[error("the database schema cannot be brought up to date")]
    Migrate(#[source] DbErr),
    /// A writer waited too long for its turn.
    #[error("the database is busy: no turn to write within {} s", WAIT.as_secs())]
    Busy,
    /// A transaction could not begin.
    #[error("a transaction cannot be begun")]
    Begin(#[source] DbErr),
    /// A transaction could not be committed.
    #[error("a transaction cannot be committed")]
    Commit(#[source] DbErr),
    /// A statement failed.
    #[error("a database statement failed")]
    Statement(#[from] DbErr),
}

/// An open database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Database {
    connection: DatabaseConnection,
    /// SQLite only: the turn to write.
    turn: Option<Arc<Mutex<()>>>,
}

/// A transaction that may write. Dropped without [`Write::commit`], it leaves no trace.
#[derive(Debug)]
pub struct Write {
    transaction: DatabaseTransaction,
    _turn: Option<OwnedMutexGuard<()>>,
}

impl Database {
    /// Opens the database of `url` and brings its schema up to date.
    ///
    /// # Errors
    /// [`DatabaseError`] says which step failed.
    pub async fn open(url: &str) -> Result<Self, DatabaseError> {
        let database = if let Some(path) = url.strip_prefix("sqlite://") {
            Self::open_sqlite(Path::new(path.split('?').next().unwrap_or(path)), url).await?
        } else if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            Self::open_postgres(url).await?
        } else {
            return Err(DatabaseError::UnknownKind);
        };
        database.migrate().await?;
        Ok(database)
    }

    /// Several servers may start at once on one PostgreSQL: they take turns. SQLite's directory has one server.
    async fn migrate(&self) -> Result<(), DatabaseError> {
        let turn = if self.turn.is_none() {
            let turn = self.connection.begin().await.map_err(DatabaseError::Begin)?;
            let lock = format!("SELECT pg_advisory_xact_lock({MIGRATION_LOCK})");
            turn.execute_unprepared(&lock).await.map_err(DatabaseError::Migrate)?;
            Some(turn)
        } else {
            None
        };
        migrations::Migrator::up(&self.connection, None).await.map_err(DatabaseError::Migrate)?;
        match turn {
            Some(turn) => turn.commit().await.map_err(DatabaseError::Commit),
            None => Ok(()),
        }
    }

    async fn open_sqlite(path: &Path, url: &str) -> Result<Self, DatabaseError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|source| DatabaseError::Folder { path: folder.to_owned(), source })?;
        }
        create_private(path).map_err(|source| DatabaseError::Folder { path: path.to_owned(), source })?;
        let mut options = ConnectOptions::new(url);
        options.max_connections(6).connect_timeout(WAIT).acquire_timeout(WAIT).sqlx_logging(false);
        options.map_sqlx_sqlite_opts(|sqlite| {
            sqlite
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .busy_timeout(WAIT)
                .foreign_keys(true)
        });
        let connection = sea_orm::Database::connect(options).await.map_err(DatabaseError::Connect)?;
        let database = Self { connection, turn: Some(Arc::new(Mutex::new(()))) };
        database.refuse_old_sqlite().await?;
        Ok(database)
    }

    async fn open_postgres(url: &str) -> Result<Self, DatabaseError> {
        let mut options = ConnectOptions::new(url);
        // The pool would try for its whole patience and then not say where.
        let server: PgConnectOptions = url.parse().map_err(|error| {
            DatabaseError::Connect(DbErr::Conn(sea_orm::RuntimeErr::SqlxError(Arc::new(error))))
        })?;
        answers(server.get_host(), server.get_port()).await?;
        options.max_connections(16).connect_timeout(WAIT).acquire_timeout(WAIT).sqlx_logging(false);
        let connection = sea_orm::Database::connect(options).await.map_err(DatabaseError::Connect)?;
        Ok(Self { connection, turn: None })
    }

    async fn refuse_old_sqlite(&self) -> Result<(), DatabaseError> {
        let asked = Statement::from_string(DbBackend::Sqlite, "SELECT sqlite_version() AS version");
        let row = self.connection.query_one_raw(asked).await?;
        let found: String = row.map(|row| row.try_get("", "version")).transpose()?.unwrap_or_default();
        if version(&found) < OLDEST_SQLITE {
            return Err(DatabaseError::OldSqlite { found });
        }
        Ok(())
    }

    /// For reading outside a transaction.
    #[must_use]
    pub fn read(&self) -> &DatabaseConnection {
        &self.connection
    }

    /// Begins a transaction that may write, when it is this writer's turn.
    ///
    /// # Errors
    /// [`DatabaseError::Busy`] after ten seconds, [`DatabaseError::Begin`] when the database refuses.
    pub async fn write(&self) -> Result<Write, DatabaseError> {
        let turn = match &self.turn {
            None => None,
            Some(turn) => Some(
                tokio::time::timeout(WAIT, Arc::clone(turn).lock_owned())
                    .await
                    .map_err(|_| DatabaseError::Busy)?,
            ),
        };
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..Default::default()
        };
        let transaction = self.connection.begin_with_options(options).await.map_err(DatabaseError::Begin)?;
        Ok(Write { transaction, _turn: turn })
    }

    /// Whether the database answers and takes writes (readiness).
    ///
    /// # Errors
    /// When it does not.
    pub async fn check(&self) -> Result<(), DatabaseError> {
        let write = self.write().await?;
        write.rollback().await
    }

    /// Closes the connections; SQLite folds its journal into the file.
    pub async fn close(self) {
        if let Err(error) = self.connection.close().await {
            tracing::warn!(%error, "the database was not closed cleanly");
        }
    }
}

async fn answers(host: &str, port: u16) -> Result<(), DatabaseError> {
    // A path is a socket on this machine.
    if host.starts_with('/') {
        return Ok(());
    }
    let connecting = tokio::time::timeout(WAIT, tokio::net::TcpStream::connect((host, port)));
    let answered = connecting.await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
    let place = || format!("{host}:{port}");
    answered.map(drop).map_err(|source| DatabaseError::Unreachable { place: place(), source })
}

impl Write {
    /// Makes everything written durable.
    ///
    /// # Errors
    /// [`DatabaseError::Commit`]: nothing was kept, or (when the connection broke) nobody knows.
    pub async fn commit(self) -> Result<(), DatabaseError> {
        self.transaction.commit().await.map_err(DatabaseError::Commit)
    }

    /// Forgets everything written.
    ///
    /// # Errors
    /// When the connection broke; nothing was kept then either.
    pub async fn rollback(self) -> Result<(), DatabaseError> {
        self.transaction.rollback().await.map_err(DatabaseError::Statement)
    }
}

impl std::ops::Deref for Write {
    type Target = DatabaseTransaction;

    fn deref(&self) -> &DatabaseTransaction {
        &self.transaction
    }
}

/// The file holds the fleet's keys: it is its owner's alone from the first byte on. SQLite gives its journal files the
/// mode of the file.
fn create_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).map(drop)
}

fn version(text: &str) -> (u32, u32, u32) {
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    (next(), next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number_not_by_text() {
        assert!(version("3.51.10") > OLDEST_SQLITE);
        assert!(version("3.9.9") < OLDEST_SQLITE);
        assert_eq!(version("3.51.3"), OLDEST_SQLITE);
    }

    #[tokio::test]
    async fn a_dropped_write_leaves_no_trace_and_gives_its_turn_back() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&format!("sqlite://{}/fleet.db", dir.path().display())).await.unwrap();
        let write = database.write().await.unwrap();
        write
            .execute_unprepared(
                "INSERT INTO stores (id, country, name, created_at) VALUES ('US-1', 'US', 'x', 1)",
            )
            .await
            .unwrap();
        drop(write);
        database.check().await.unwrap();
        let rows = database
            .read()
            .query_all_raw(Statement::from_string(DbBackend::Sqlite, "SELECT id FROM stores"))
            .await;
        assert!(rows.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_database_of_another_kind_is_refused() {
        assert!(matches!(Database::open("mysql://x").await, Err(DatabaseError::UnknownKind)));
    }
}
