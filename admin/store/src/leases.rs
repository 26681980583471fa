//! Exact request quotas, and the counts behind them.
//!
//! `granted` is what leases took, `request_count` what the journal says was used. A replica serves requests from its
//! lease without asking again. `granted <= max_requests` is checked by the database in the statement that raises it, so
//! no number of replicas and no crash admits one request too many; a crash loses what was leased and not used.

use llm_proxy_core::limits::lease_size;
use sqlx::{Connection, SqliteConnection};
use tracing::warn;

use crate::database::WRITE;
use crate::error::StoreError;
use crate::store::{Store, to_its_end};

/// Requests that the caller may now serve without asking again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// 0 means used up.
    pub granted: u32,
    /// What is left for further leases; `u64::MAX` for a token without a limit.
    pub remaining_after: u64,
}

/// Requests of one token to add to its count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// Public id of the token.
    pub token_id: String,
    /// Requests whose first byte went to a provider.
    pub requests: u64,
    /// The latest of them, microseconds since the epoch.
    pub last_used_at_us: i64,
}

impl Store {
    /// Takes a lease of a token: [`lease_size`] of what remains, once `unused` requests of earlier leases have been given
    /// back. Both happen or neither does. Whether the token is live is not asked here.
    ///
    /// A token without a limit gets leases too, and they count: a limit set later starts from what was granted.
    ///
    /// Not cancel safe: a caller that goes away while waiting may leave a granted lease unused, as a crash does. Take
    /// leases in a task of their own.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] without such a token. After any error nothing may be served, and `unused` may have been
    /// given back; if the commit itself failed, the lease may be lost, never granted twice.
    pub async fn renew_lease(&self, token_id: &str, unused: u32) -> Result<Lease, StoreError> {
        let (store, token_id) = (self.clone(), token_id.to_owned());
        to_its_end(async move { renew(&store, &token_id, unused).await }).await
    }

    /// Gives back what was leased and will not be used, by token, in one transaction. Tokens that do not exist are
    /// passed over.
    ///
    /// Give a lease back once: after an error it may have been given back, so do not repeat the call.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn return_leases(&self, unused: &[(String, u32)]) -> Result<(), StoreError> {
        let (store, unused) = (self.clone(), unused.to_vec());
        to_its_end(async move { give_back_all(&store, &unused).await }).await
    }
}

async fn renew(store: &Store, token_id: &str, unused: u32) -> Result<Lease, StoreError> {
    let mut connection = store.database().writer().await?;
    let mut transaction = connection.begin_with(WRITE).await?;
    if unused > 0 {
        give_back(&mut transaction, token_id, unused).await?;
    }
    let kept: Option<(Option<u64>, u64)> = sqlx::query_as("SELECT max_requests, granted FROM tokens WHERE id = ?")
        .bind(token_id)
        .fetch_optional(&mut *transaction)
        .await?;
    let (max_requests, granted) = kept.ok_or(StoreError::NotFound { what: "the token" })?;
    let remaining = max_requests.map_or(u64::MAX, |max_requests| max_requests.saturating_sub(granted));
    let wanted = lease_size(remaining);
    let granted = if wanted > 0 && grant(&mut transaction, token_id, wanted).await? { wanted } else { 0 };
    transaction.commit().await?;
    let remaining_after = max_requests.map_or(u64::MAX, |_| remaining.saturating_sub(u64::from(granted)));
    Ok(Lease { granted, remaining_after })
}

/// Whether so many requests more are within the limit; then they are granted.
async fn grant(connection: &mut SqliteConnection, token_id: &str, wanted: u32) -> Result<bool, StoreError> {
    // The condition repeats what was read under the same lock: the statement alone already keeps the promise.
    let update = "UPDATE tokens SET granted = granted + ? \
        WHERE id = ? AND (max_requests IS NULL OR granted + ? <= max_requests)";
    let updated = sqlx::query(update).bind(wanted).bind(token_id).bind(wanted).execute(connection).await?;
    Ok(updated.rows_affected() > 0)
}

async fn give_back_all(store: &Store, unused: &[(String, u32)]) -> Result<(), StoreError> {
    let mut connection = store.database().writer().await?;
    let mut transaction = connection.begin_with(WRITE).await?;
    for (token_id, unused) in unused {
        give_back(&mut transaction, token_id, *unused).await?;
    }
    transaction.commit().await?;
    Ok(())
}

async fn give_back(connection: &mut SqliteConnection, token_id: &str, unused: u32) -> Result<(), StoreError> {
    // Never below what was used: a count that arrived first has already said that those requests were made.
    let update = "UPDATE tokens SET granted = CASE WHEN granted - ? < request_count THEN request_count \
        ELSE granted - ? END WHERE id = ?";
    sqlx::query(update).bind(unused).bind(unused).bind(token_id).execute(connection).await?;
    Ok(())
}

/// Adds one token's requests. Those of a token that does not exist are logged and dropped.
pub(crate) async fn add_count(connection: &mut SqliteConnection, count: &Count) -> Result<(), StoreError> {
    // Requests of a token without a limit were not leased. Raising `granted` to the count makes them weigh when a limit
    // is set later. `granted` comes first: some databases let later assignments see earlier ones.
    let update = "UPDATE tokens SET \
        granted = CASE WHEN granted < request_count + ? THEN request_count + ? ELSE granted END, \
        request_count = request_count + ?, \
        last_used_at_us = CASE WHEN last_used_at_us IS NULL OR last_used_at_us < ? THEN ? ELSE last_used_at_us END \
        WHERE id = ?";
    let requests = to_sql(count.requests)?;
    let updated = sqlx::query(update)
        .bind(requests)
        .bind(requests)
        .bind(requests)
        .bind(count.last_used_at_us)
        .bind(count.last_used_at_us)
        .bind(count.token_id.as_str())
        .execute(&mut *connection)
        .await?;
    if updated.rows_affected() == 0 {
        warn!(token_id = %count.token_id, requests = count.requests, "Dropped the count of a token that does not exist");
    }
    Ok(())
}

/// The number as SQL holds it.
pub(crate) fn to_sql(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::Invalid(format!("{number} is above {}", i64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fixture, root_key, url};
    use crate::{NewToken, Stretch, TokenChange};

    async fn limited(fixture: &Fixture, max_requests: Option<u64>) -> String {
        let project = fixture.project("one").await;
        let new = NewToken { max_requests, ..Fixture::new_token(&project.id) };
        fixture.store.create_token(new).await.unwrap().0.id
    }

    async fn lease_all(store: &Store, id: &str) -> u64 {
        let mut sum = 0;
        loop {
            match store.renew_lease(id, 0).await.unwrap().granted {
                0 => return sum,
                granted => sum += u64::from(granted),
            }
        }
    }

    fn count(id: &str, requests: u64, last_used_at_us: i64) -> Count {
        Count { token_id: id.to_owned(), requests, last_used_at_us }
    }

    fn stretch(after_seq: u64, up_to_seq: u64, counts: &[Count]) -> Stretch {
        Stretch { after_seq, up_to_seq, counts: counts.to_vec(), ..Stretch::default() }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn parallel_tasks_and_stores_lease_the_limit_exactly() {
        let fixture = Fixture::new().await;
        let id = limited(&fixture, Some(1_000)).await;
        let replica = Store::open(&url(&fixture.folder), &root_key(1)).await.unwrap();
        let tasks: Vec<_> = (0..200)
            .map(|task| {
                let store = if task % 2 == 0 { fixture.store.clone() } else { replica.clone() };
                let id = id.clone();
                tokio::spawn(async move { lease_all(&store, &id).await })
            })
            .collect();
        let mut sum = 0;
        for task in tasks {
            sum += task.await.unwrap();
        }
        assert_eq!(sum, 1_000);
    }

    #[tokio::test]
    async fn a_lease_tells_what_remains() {
        let fixture = Fixture::new().await;
        let id = limited(&fixture, Some(80)).await;
        for (granted, remaining_after) in [(10, 70), (8, 62), (7, 55)] {
            assert_eq!(fixture.store.renew_lease(&id, 0).await.unwrap(), Lease { granted, remaining_after });
        }
        assert!(matches!(fixture.store.renew_lease("nobody", 0).await.err(), Some(StoreError::NotFound { .. })));
    }

    #[tokio::test]
    async fn what_comes_back_can_be_leased_again_but_never_what_was_used() {
        let fixture = Fixture::new().await;
        let id = limited(&fixture, Some(16)).await;
        assert_eq!(lease_all(&fixture.store, &id).await, 16);
        fixture.store.return_leases(&[(id.clone(), 4)]).await.unwrap();
        assert_eq!(lease_all(&fixture.store, &id).await, 4);
        fixture.store.count("journal", stretch(0, 1, &[count(&id, 15, 1)])).await.unwrap();
        fixture.store.return_leases(&[("nobody".to_owned(), 1), (id.clone(), 16)]).await.unwrap();
        assert_eq!(lease_all(&fixture.store, &id).await, 1);
    }

    #[tokio::test]
    async fn what_comes_back_with_the_next_lease_is_part_of_it_also_when_nothing_is_left_for_one() {
        let fixture = Fixture::new().await;
        let id = limited(&fixture, Some(16)).await;
        assert_eq!(lease_all(&fixture.store, &id).await, 16);
        assert_eq!(fixture.store.renew_lease(&id, 9).await.unwrap(), Lease { granted: 1, remaining_after: 8 });
        let change = TokenChange { max_requests: Some(Some(5)), ..Default::default() };
        fixture.store.update_token(&id, change).await.unwrap();
        // 8 are granted. What comes back is given back, though the limit is below what is granted then.
        assert_eq!(fixture.store.renew_lease(&id, 1).await.unwrap(), Lease { granted: 0, remaining_after: 0 });
        assert_eq!(fixture.store.renew_lease(&id, 4).await.unwrap(), Lease { granted: 1, remaining_after: 1 });
        assert!(matches!(fixture.store.renew_lease("nobody", 1).await.err(), Some(StoreError::NotFound { .. })));
    }

    #[tokio::test]
    async fn changing_the_limit_keeps_what_was_granted() {
        let fixture = Fixture::new().await;
        let id = limited(&fixture, Some(10)).await;
        assert_eq!(lease_all(&fixture.store, &id).await, 10);
        for (max_requests, expected) in [(5, 0), (12, 2), (0, 0), (20, 8)] {
            let change = TokenChange { max_requests: Some(Some(max_requests)), ..Default::default() };
            fixture.store.update_token(&id, change).await.unwrap();
            assert_eq!(lease_all(&fixture.store, &id).await, expected, "limit {max_requests}");
        }
    }

    #[tokio::test]
    async fn a_limit_set_late_counts_what_was_used_before_it() {
        let fixture = Fixture::new().await;
        let id = limited(&fixture, None).await;
        assert_eq!(fixture.store.renew_lease(&id, 0).await.unwrap(), Lease { granted: 64, remaining_after: u64::MAX });
        fixture.store.count("journal", stretch(0, 1, &[count(&id, 90, 1)])).await.unwrap();
        let change = TokenChange { max_requests: Some(Some(100)), ..Default::default() };
        fixture.store.update_token(&id, change).await.unwrap();
        assert_eq!(lease_all(&fixture.store, &id).await, 10);
    }

    #[tokio::test]
    async fn the_same_records_count_once() {
        let fixture = Fixture::new().await;
        let id = limited(&fixture, None).await;
        assert_eq!(fixture.store.counted_up_to("journal").await.unwrap(), 0);
        for (journal, after_seq, up_to_seq, requests, last_used_at_us, expected) in [
            ("journal", 0, 5, 3, 100, (3, 100)),
            ("journal", 0, 5, 3, 100, (3, 100)),
            ("journal", 0, 4, 9, 900, (3, 100)),
            ("journal", 5, 9, 2, 50, (5, 100)),
            ("another", 0, 1, 1, 200, (6, 200)),
        ] {
            let counts = [count(&id, requests, last_used_at_us), count("nobody", 1, 1)];
            fixture.store.count(journal, stretch(after_seq, up_to_seq, &counts)).await.unwrap();
            let token = fixture.store.token(&id).await.unwrap().unwrap();
            assert_eq!((token.request_count, token.last_used_at_us.unwrap()), expected, "{journal} {up_to_seq}");
        }
        assert_eq!(fixture.store.counted_up_to("journal").await.unwrap(), 9);
        assert_eq!(fixture.store.counted_up_to("another").await.unwrap(), 1);
        let refused = fixture.store.count("journal", stretch(9, u64::MAX, &[])).await;
        assert!(matches!(refused.err(), Some(StoreError::Invalid(_))));
    }
}
