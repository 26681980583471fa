//! SQLite: how the file is made, checked and opened.
//!
//! One connection writes and a few read. SQLite has one writer at a time anyway; queueing for it here, in order, is
//! fairer and cheaper than polling its lock. WAL lets readers go on meanwhile. `synchronous = FULL`, because a lease
//! that a power cut undoes is a request over the limit.
//!
//! A connection goes back to its pool only if it has proven sound. One that a full disk left in a state that nothing
//! can be done in is closed, and whoever is next opens another: when the disk has room again, all is as before.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::sqlite::{Sqlite, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, SqliteConnection, SqlitePool};

use crate::error::StoreError;

/// Takes the write lock at the start, so that what a transaction has read is still true when it writes.
pub(crate) const WRITE: &str = "BEGIN IMMEDIATE";

/// How long a statement waits for the lock of another process, and a caller for a connection.
const PATIENCE: Duration = Duration::from_secs(5);
const READERS: u32 = 4;

/// The open database.
pub(crate) struct Database {
    path: PathBuf,
    writer: SqlitePool,
    readers: SqlitePool,
    /// For what may read long: nobody waits for it but who asked.
    scanner: SqlitePool,
}

impl Database {
    /// Opens or makes the file that the URL names and looks through it for damage.
    pub(crate) async fn open(url: &str) -> Result<Self, StoreError> {
        let options = connect_options(url)?;
        let path = options.get_filename().to_owned();
        make_private(&path)?;
        let writer = pool(1).connect_with(options.clone()).await.map_err(|error| in_file(&path, error.into()))?;
        // `query_only`, so that a write that strays here fails instead of fighting the writer for its lock.
        let reading = options.pragma("query_only", "ON");
        let readers = pool(READERS).connect_lazy_with(reading.clone());
        let scanner = pool(1).connect_lazy_with(reading);
        let database = Self { path, writer, readers, scanner };
        database.check().await?;
        Ok(database)
    }

    /// What goes wrong at the start, with the file that it went wrong with.
    pub(crate) fn at_start(&self, error: StoreError) -> StoreError {
        in_file(&self.path, error)
    }

    /// Waits for the only writing connection, at most [`PATIENCE`].
    pub(crate) async fn writer(&self) -> Result<PoolConnection<Sqlite>, StoreError> {
        Ok(self.writer.acquire().await?)
    }

    /// Waits for a reading connection, at most [`PATIENCE`].
    pub(crate) async fn reader(&self) -> Result<PoolConnection<Sqlite>, StoreError> {
        Ok(self.readers.acquire().await?)
    }

    /// For reads that are one statement.
    pub(crate) const fn readers(&self) -> &SqlitePool {
        &self.readers
    }

    /// For reads that may go through much of the database.
    pub(crate) const fn scanner(&self) -> &SqlitePool {
        &self.scanner
    }

    /// Readers first: the last connection to close folds the write-ahead log into the file.
    pub(crate) async fn close(&self) {
        self.scanner.close().await;
        self.readers.close().await;
        self.writer.close().await;
    }

    async fn check(&self) -> Result<(), StoreError> {
        let findings: Vec<String> = sqlx::query_scalar("PRAGMA quick_check(3)")
            .fetch_all(&mut *self.writer().await?)
            .await
            .map_err(|error| self.at_start(error.into()))?;
        if findings.iter().map(String::as_str).eq(["ok"]) {
            return Ok(());
        }
        Err(StoreError::Corrupt(format!(
            "quick_check of {} says: {}. Restore it from a backup",
            self.path.display(),
            findings.join("; ")
        )))
    }
}

/// Connections live as long as the store: opening one costs more than keeping it.
fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(PATIENCE)
        .max_lifetime(None::<Duration>)
        .idle_timeout(None::<Duration>)
        .test_before_acquire(false)
        .after_release(|connection, _| Box::pin(is_sound(connection)))
}

/// Whether a connection that comes back may be used again.
///
/// When the disk is full SQLite ends the transaction by itself. The ROLLBACK that the driver sends then fails, and the
/// driver counts the transaction as open for as long as the connection lives: each one after it would be refused.
/// Whatever else an error of the disk leaves behind: with a connection that cannot read, nobody is served.
async fn is_sound(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    // Answered behind a ROLLBACK that is on its way, and out of the file.
    let reads = sqlx::query("PRAGMA schema_version").execute(&mut *connection).await.is_ok();
    Ok(reads && !connection.is_in_transaction())
}

fn in_file(path: &Path, error: StoreError) -> StoreError {
    match error {
        StoreError::Unavailable(cause) => StoreError::Unavailable(format!("{}: {cause}", path.display())),
        StoreError::Corrupt(cause) => StoreError::Corrupt(format!("{}: {cause}", path.display())),
        error => error,
    }
}

/// Reads `sqlite:PATH`. Parameters that would weaken what is set here are refused. The URL is not repeated in errors:
/// those of other databases hold passwords.
fn connect_options(url: &str) -> Result<SqliteConnectOptions, StoreError> {
    let Some(rest) = url.strip_prefix("sqlite:") else {
        let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
        let found = if scheme.chars().all(|letter| letter.is_ascii_alphanumeric()) { scheme } else { "" };
        return Err(StoreError::Invalid(format!("the database URL begins with `{found}:`, expected sqlite:PATH")));
    };
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    let (path, parameters) = rest.split_once('?').map_or((rest, None), |(path, parameters)| (path, Some(parameters)));
    if path.is_empty() || path == ":memory:" {
        return Err(StoreError::Invalid("the database URL names no file, expected sqlite:PATH".to_owned()));
    }
    if !matches!(parameters, None | Some("mode=rwc" | "mode=rw")) {
        return Err(StoreError::Invalid(
            "the database URL has parameters, expected sqlite:PATH with none (or mode=rwc)".to_owned(),
        ));
    }
    let options = SqliteConnectOptions::from_str(url)
        .map_err(|error| StoreError::Invalid(format!("the database URL cannot be read: {error}")))?;
    Ok(options
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(PATIENCE)
        .foreign_keys(true))
}

/// Makes the file before SQLite would, which knows no mode. Its log files take over the mode of this one.
fn make_private(path: &Path) -> Result<(), StoreError> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(StoreError::Unavailable(format!("making {}: {error}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::testing::url;

    #[test]
    fn a_url_names_a_file_and_nothing_that_weakens_it() {
        for url in ["sqlite:a.db", "sqlite://a.db", "sqlite:///data/a.db", "sqlite:/data/a.db", "sqlite:a.db?mode=rwc"]
        {
            assert!(connect_options(url).is_ok(), "{url}");
        }
        for url in [
            "",
            "a.db",
            "sqlite:",
            "sqlite://",
            "sqlite::memory:",
            "sqlite:a.db?mode=memory",
            "sqlite:a.db?immutable=1",
            "postgres://someone:hunter2@host/db",
        ] {
            let error = connect_options(url).unwrap_err().to_string();
            assert!(error.contains("expected sqlite:PATH") && !error.contains("hunter2"), "{url}: {error}");
        }
    }

    #[tokio::test]
    async fn every_file_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(&url(&folder)).await.unwrap();
        sqlx::query("CREATE TABLE t (a INTEGER)").execute(&mut *database.writer().await.unwrap()).await.unwrap();
        let mut files = 0;
        for file in fs::read_dir(folder.path()).unwrap() {
            assert_eq!(file.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
            files += 1;
        }
        assert!(files >= 2, "the database and its log");
    }

    #[tokio::test]
    async fn readers_cannot_write() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(&url(&folder)).await.unwrap();
        assert!(sqlx::query("CREATE TABLE t (a INTEGER)").execute(database.readers()).await.is_err());
    }

    #[tokio::test]
    async fn the_settings_that_money_depends_on_are_on() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(&url(&folder)).await.unwrap();
        let mut writer = database.writer().await.unwrap();
        let journal: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut *writer).await.unwrap();
        let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&mut *writer).await.unwrap();
        let foreign_keys: i64 = sqlx::query_scalar("PRAGMA foreign_keys").fetch_one(&mut *writer).await.unwrap();
        assert_eq!((journal.as_str(), synchronous, foreign_keys), ("wal", 2, 1));
    }

    #[tokio::test]
    async fn a_damaged_file_is_found_at_the_start_and_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("store.db"), [b'x'; 8192]).unwrap();
        let error = Database::open(&url(&folder)).await.err().unwrap();
        assert!(matches!(&error, StoreError::Corrupt(cause) if cause.contains("store.db")), "{error}");
    }

    #[tokio::test]
    async fn a_connection_whose_transaction_ended_without_its_driver_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(&url(&folder)).await.unwrap();
        for (ends_by_itself, expected) in [(false, true), (true, false)] {
            let mut writer = database.writer().await.unwrap();
            let mut transaction = writer.begin_with(WRITE).await.unwrap();
            if ends_by_itself {
                // What SQLite does when the disk is full.
                sqlx::query("ROLLBACK").execute(&mut *transaction).await.unwrap();
            }
            drop(transaction);
            assert_eq!(is_sound(&mut writer).await.unwrap(), expected);
        }
        let mut writer = database.writer().await.unwrap();
        assert!(writer.begin_with(WRITE).await.is_ok(), "the pool has another one");
    }

    #[tokio::test]
    async fn a_missing_folder_is_unavailable() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}/none/store.db", folder.path().display());
        assert!(matches!(Database::open(&url).await, Err(StoreError::Unavailable(_))));
    }
}
