//! The schema and its history, embedded in the binary: an ordered list of SQL files, each applied once.
//!
//! A file that was applied is never edited. Its checksum is kept, so that a database made by an edited or newer program is
//! refused at the start instead of misread later.

use ring::digest;
use sqlx::{Executor, SqliteConnection};

use crate::error::StoreError;
use crate::seal::hex;

/// Version and SQL, oldest first.
const MIGRATIONS: &[(i64, &str)] = &[
    (1, include_str!("../migrations/sqlite/0001_first.sql")),
    (2, include_str!("../migrations/sqlite/0002_usage.sql")),
    (3, include_str!("../migrations/sqlite/0003_content_and_outbox.sql")),
];

/// Brings the schema up to date. The caller holds the write transaction: all of it happens or none.
pub(crate) async fn apply(connection: &mut SqliteConnection, now_us: i64) -> Result<(), StoreError> {
    apply_up_to(connection, MIGRATIONS.len(), now_us).await
}

/// Applies those of the first `count` migrations that were not.
async fn apply_up_to(connection: &mut SqliteConnection, count: usize, now_us: i64) -> Result<(), StoreError> {
    let history = "CREATE TABLE IF NOT EXISTS schema_migrations \
        (version INTEGER NOT NULL PRIMARY KEY, checksum TEXT NOT NULL, applied_at_us INTEGER NOT NULL)";
    sqlx::query(history).execute(&mut *connection).await?;
    let applied: Vec<(i64, String)> =
        sqlx::query_as("SELECT version, checksum FROM schema_migrations ORDER BY version")
            .fetch_all(&mut *connection)
            .await?;
    check_history(&applied)?;
    for (version, sql) in MIGRATIONS.iter().take(count).skip(applied.len()) {
        (&mut *connection).execute(sqlx::raw_sql(*sql)).await?;
        sqlx::query("INSERT INTO schema_migrations (version, checksum, applied_at_us) VALUES (?, ?, ?)")
            .bind(*version)
            .bind(checksum(sql))
            .bind(now_us)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// What was applied must be the beginning of what this program knows.
fn check_history(applied: &[(i64, String)]) -> Result<(), StoreError> {
    if applied.len() > MIGRATIONS.len() {
        return Err(StoreError::Schema(format!(
            "it has {} migrations, this program knows {}. Start the newer program that made it",
            applied.len(),
            MIGRATIONS.len()
        )));
    }
    for ((version, sum), (known, sql)) in applied.iter().zip(MIGRATIONS) {
        if version != known || *sum != checksum(sql) {
            return Err(StoreError::Schema(format!(
                "its migration {version} is not the one this program knows. Start the program that made it"
            )));
        }
    }
    Ok(())
}

fn checksum(sql: &str) -> String {
    hex(digest::digest(&digest::SHA256, sql.as_bytes()).as_ref())
}

#[cfg(test)]
mod tests {
    use sqlx::Connection;

    use super::*;
    use crate::ContentPolicy;
    use crate::database::{Database, WRITE};
    use crate::testing::url;

    #[tokio::test]
    async fn a_project_from_before_there_was_a_choice_keeps_what_it_kept() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(&url(&folder)).await.unwrap();
        let mut connection = database.writer().await.unwrap();
        let mut transaction = connection.begin_with(WRITE).await.unwrap();
        apply_up_to(&mut transaction, 2, 1).await.unwrap();
        let insert =
            "INSERT INTO projects (id, name, is_active, created_at_us, updated_at_us) VALUES ('p', 'a', 1, 1, 1)";
        sqlx::query(insert).execute(&mut *transaction).await.unwrap();
        apply_up_to(&mut transaction, MIGRATIONS.len(), 2).await.unwrap();
        let row = sqlx::query("SELECT * FROM projects").fetch_one(&mut *transaction).await.unwrap();
        assert_eq!(ContentPolicy::of_row(&row).unwrap(), ContentPolicy::default());
    }

    #[test]
    fn a_foreign_history_is_refused() {
        let (version, sql) = MIGRATIONS[0];
        let good = vec![(version, checksum(sql))];
        assert!(check_history(&[]).is_ok());
        assert!(check_history(&good).is_ok());
        let mut newer = good.clone();
        newer.extend((0..MIGRATIONS.len()).map(|_| (99, String::new())));
        for foreign in [newer, vec![(version, checksum("other"))], vec![(7, checksum(sql))]] {
            assert!(matches!(check_history(&foreign), Err(StoreError::Schema(_))), "{foreign:?}");
        }
    }

    #[test]
    fn migrations_are_numbered_in_order() {
        assert!(MIGRATIONS.iter().map(|(version, _)| *version).eq((1..).take(MIGRATIONS.len())));
    }
}
