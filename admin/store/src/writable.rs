//! Whether the database can be written, for those who ask whether the process is ready.
//!
//! Only a write tells: a full disk is read as ever, and even commits what changes nothing. It costs a sync, and anybody
//! may ask. So one write is tried a second at most, and who asks in between hears what the last one found.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::Connection;

use crate::database::WRITE;
use crate::error::StoreError;
use crate::store::{Store, to_its_end};

/// How long after its beginning a try counts.
const COUNTS_FOR: Duration = Duration::from_secs(1);

/// What the last try found. Before there was one, the store counts as writable: it has just been opened.
#[derive(Debug, Default)]
pub(crate) struct LastTry(Mutex<Found>);

#[derive(Debug, Default)]
struct Found {
    begun: Option<Instant>,
    failure: Option<StoreError>,
}

impl LastTry {
    /// What was found lately. `None`: the caller is to try, and nobody else within this second.
    fn found(&self, now: Instant) -> Option<Result<(), StoreError>> {
        let mut found = self.lock();
        if found.begun.is_none_or(|begun| now.saturating_duration_since(begun) >= COUNTS_FOR) {
            found.begun = Some(now);
            return None;
        }
        Some(found.failure.clone().map_or(Ok(()), Err))
    }

    fn keep(&self, result: &Result<(), StoreError>) {
        self.lock().failure = result.as_ref().err().cloned();
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Whether the database can be written, as of the last second at most. Changes nothing in it.
    ///
    /// # Errors
    /// The reason why not.
    pub async fn try_write(&self) -> Result<(), StoreError> {
        if let Some(found) = self.last_try().found(Instant::now()) {
            return found;
        }
        let store = self.clone();
        // To its end: who asks has less patience than a locked database, and the next one is to hear what was found.
        to_its_end(async move {
            let result = write(&store).await;
            store.last_try().keep(&result);
            result
        })
        .await
    }
}

/// Up and down again, because SQLite does not write a row that stays as it is.
const THERE_AND_BACK: [&str; 2] =
    ["UPDATE change_counter SET seq = seq + 1 WHERE id = 1", "UPDATE change_counter SET seq = seq - 1 WHERE id = 1"];

async fn write(store: &Store) -> Result<(), StoreError> {
    let mut connection = store.database().writer().await?;
    let mut transaction = connection.begin_with(WRITE).await?;
    for statement in THERE_AND_BACK {
        sqlx::query(statement).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fixture;

    #[tokio::test]
    async fn a_try_is_a_write_that_changes_nothing() {
        let fixture = Fixture::new().await;
        fixture.project("one").await;
        let log_bytes = || std::fs::metadata(fixture.folder.path().join("store.db-wal")).unwrap().len();
        let before = log_bytes();
        write(&fixture.store).await.unwrap();
        assert!(log_bytes() > before, "nothing was written");
        assert_eq!(fixture.store.change_position().await.unwrap(), 1);
        assert_eq!(fixture.store.changes_after(0).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_database_that_can_only_be_read_is_found_out() {
        let fixture = Fixture::new().await;
        fixture.sql("PRAGMA query_only = ON").await;
        assert!(matches!(fixture.store.try_write().await, Err(StoreError::Unavailable(_))));
        assert!(fixture.store.try_write().await.is_err(), "what was found counts for a second");
        assert!(fixture.store.ping().await.is_ok());
        fixture.sql("PRAGMA query_only = OFF").await;
        assert!(write(&fixture.store).await.is_ok());
    }

    #[test]
    fn one_try_a_second_serves_all_who_ask() {
        let last = LastTry::default();
        let start = Instant::now();
        let at = |millis| last.found(start + Duration::from_millis(millis));
        assert!(at(0).is_none());
        assert!(matches!(at(1), Some(Ok(()))), "the first try is on its way");
        last.keep(&Err(StoreError::Unavailable("full".to_owned())));
        assert!(matches!(at(999), Some(Err(StoreError::Unavailable(_)))));
        assert!(at(1_000).is_none());
        assert!(matches!(at(1_001), Some(Err(_))), "until the next one has found something else");
        last.keep(&Ok(()));
        assert!(matches!(at(1_002), Some(Ok(()))));
    }
}
