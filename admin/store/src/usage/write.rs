//! Counting: a stretch of one journal, added once.
//!
//! Rows and the journal's cursor change in one transaction, and only if the cursor still stands where the stretch
//! begins. A crash before the commit leaves both as they were; after it, whoever comes with records that the cursor has
//! passed adds nothing and is told where to read on. So it does not matter how often the journal is read again, nor
//! whether a failed commit has happened after all.

use std::time::Duration;

use sqlx::{Connection, SqliteConnection};

use super::{HOUR_US, MOST_MODELS, OTHER_MODEL, Totals, UsageKey};
use crate::database::WRITE;
use crate::error::StoreError;
use crate::leases::{self, Count};
use crate::store::{Store, now_us, to_its_end};

/// What some records of one journal say, from one to another.
#[derive(Clone, Debug, Default)]
pub struct Stretch {
    /// Where the journal's cursor must stand: the last record counted before.
    pub after_seq: u64,
    /// Where it stands afterwards: the last record that is in here.
    pub up_to_seq: u64,
    /// Requests by token, for `request_count`.
    pub counts: Vec<Count>,
    /// Usage; the same key may come more than once.
    pub usage: Vec<(UsageKey, Totals)>,
}

impl Store {
    /// The last record of this journal that is counted; 0 when none is.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn counted_up_to(&self, journal_id: &str) -> Result<u64, StoreError> {
        let seq: Option<u64> =
            sqlx::query_scalar(SELECT_CURSOR).bind(journal_id).fetch_optional(self.database().readers()).await?;
        Ok(seq.unwrap_or(0))
    }

    /// Adds a stretch of this journal together with its cursor, and tells where that stands now. If it is not
    /// [`Stretch::up_to_seq`], nothing was added, because others were here: read on from there.
    ///
    /// Counts of tokens that do not exist are logged and dropped. The model of a row that would be one too many in its
    /// project's hour ([`MOST_MODELS`]) is [`OTHER_MODEL`].
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for numbers past 2^63 - 1 and for something to add without a record to have it from.
    /// After any other error all of it is added or nothing: the next call tells.
    pub async fn count(&self, journal_id: &str, stretch: Stretch) -> Result<u64, StoreError> {
        let (store, journal_id) = (self.clone(), journal_id.to_owned());
        to_its_end(async move { count(&store, &journal_id, &stretch).await }).await
    }

    /// Forgets the oldest hour of usage if it lies so far back. Tells whether there was one; ask again for the next.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: it is still there.
    pub async fn forget_usage(&self, older_than: Duration) -> Result<bool, StoreError> {
        let age_us = i64::try_from(older_than.as_micros()).unwrap_or(i64::MAX);
        let (store, before_us) = (self.clone(), now_us().saturating_sub(age_us));
        to_its_end(async move { forget(&store, before_us).await }).await
    }
}

const SELECT_CURSOR: &str = "SELECT seq FROM cursors WHERE journal_id = ?";

async fn count(store: &Store, journal_id: &str, stretch: &Stretch) -> Result<u64, StoreError> {
    let (after_seq, up_to_seq) = (leases::to_sql(stretch.after_seq)?, leases::to_sql(stretch.up_to_seq)?);
    let is_empty = stretch.counts.is_empty() && stretch.usage.is_empty();
    if up_to_seq <= after_seq && !is_empty {
        // The cursor would not show that this was added.
        return Err(StoreError::Invalid("something is to be counted, but no record".to_owned()));
    }
    let mut connection = store.database().writer().await?;
    let mut transaction = connection.begin_with(WRITE).await?;
    let kept: Option<i64> =
        sqlx::query_scalar(SELECT_CURSOR).bind(journal_id).fetch_optional(&mut *transaction).await?;
    if kept.unwrap_or(0) != after_seq {
        return u64::try_from(kept.unwrap_or(0))
            .map_err(|_| StoreError::Corrupt("the cursor of a journal is negative".to_owned()));
    }
    let statement = match kept {
        Some(_) => "UPDATE cursors SET seq = ? WHERE journal_id = ?",
        None => "INSERT INTO cursors (seq, journal_id) VALUES (?, ?)",
    };
    sqlx::query(statement).bind(up_to_seq).bind(journal_id).execute(&mut *transaction).await?;
    for count in &stretch.counts {
        leases::add_count(&mut transaction, count).await?;
    }
    for (key, totals) in &stretch.usage {
        add_usage(&mut transaction, key, totals).await?;
    }
    transaction.commit().await?;
    Ok(stretch.up_to_seq)
}

async fn add_usage(connection: &mut SqliteConnection, key: &UsageKey, totals: &Totals) -> Result<(), StoreError> {
    // A row that is there has passed the question below.
    if grow(connection, key, &key.model, totals).await? {
        return Ok(());
    }
    if has_room(connection, key).await? {
        return insert(connection, key, &key.model, totals).await;
    }
    if grow(connection, key, OTHER_MODEL, totals).await? {
        return Ok(());
    }
    insert(connection, key, OTHER_MODEL, totals).await
}

/// Whether the key's model may have a row of its own, which is then noted. The one that nobody knows always may.
async fn has_room(connection: &mut SqliteConnection, key: &UsageKey) -> Result<bool, StoreError> {
    if key.model.is_empty() || key.model == OTHER_MODEL {
        return Ok(true);
    }
    let select = "SELECT COUNT(*) FROM usage_models WHERE hour_us = ? AND project_id = ? AND model = ?";
    let known: i64 = sqlx::query_scalar(select)
        .bind(key.hour_us)
        .bind(key.project_id.as_str())
        .bind(key.model.as_str())
        .fetch_one(&mut *connection)
        .await?;
    if known > 0 {
        return Ok(true);
    }
    let select = "SELECT COUNT(*) FROM usage_models WHERE hour_us = ? AND project_id = ?";
    let models: i64 =
        sqlx::query_scalar(select).bind(key.hour_us).bind(key.project_id.as_str()).fetch_one(&mut *connection).await?;
    if models >= MOST_MODELS {
        return Ok(false);
    }
    sqlx::query("INSERT INTO usage_models (hour_us, project_id, model) VALUES (?, ?, ?)")
        .bind(key.hour_us)
        .bind(key.project_id.as_str())
        .bind(key.model.as_str())
        .execute(&mut *connection)
        .await?;
    Ok(true)
}

const SELECT_ROW: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM usage_hours WHERE hour_us = ? AND project_id = ? AND token_id = ? AND api = ? AND model = ?"
);
const UPDATE: &str = "UPDATE usage_hours SET \
    outcome_unknown = ?, outcome_finished = ?, outcome_refused = ?, outcome_client_gone = ?, \
    outcome_upstream_unreachable = ?, outcome_upstream_cut = ?, outcome_timeout = ?, outcome_revoked = ?, \
    outcome_over_budget = ?, outcome_shed = ?, usage_unknown = ?, usage_reported = ?, usage_estimated = ?, \
    input_reported = ?, input_estimated = ?, output_reported = ?, output_estimated = ?, \
    cache_read_input_reported = ?, cache_read_input_estimated = ?, cache_creation_input_reported = ?, \
    cache_creation_input_estimated = ?, reasoning_output_reported = ?, reasoning_output_estimated = ?, \
    audio_input_reported = ?, audio_input_estimated = ?, audio_output_reported = ?, audio_output_estimated = ?, \
    priced_requests = ?, cost_usd = ?, latency_histogram = ?, first_chunk_histogram = ? \
    WHERE hour_us = ? AND project_id = ? AND token_id = ? AND api = ? AND model = ?";
const INSERT: &str = concat!(
    "INSERT INTO usage_hours (",
    columns!(),
    ", hour_us, project_id, token_id, api, model) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, \
     ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
);

/// Adds to a row if it is there, and tells whether it is.
async fn grow(
    connection: &mut SqliteConnection,
    key: &UsageKey,
    model: &str,
    totals: &Totals,
) -> Result<bool, StoreError> {
    let row = sqlx::query(SELECT_ROW)
        .bind(key.hour_us)
        .bind(key.project_id.as_str())
        .bind(key.token_id.as_str())
        .bind(key.api.as_str())
        .bind(model)
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = row else { return Ok(false) };
    let mut sum = Totals::of_row(&row, 0)?;
    sum.merge(totals);
    put(connection, UPDATE, key, model, &sum).await?;
    Ok(true)
}

async fn insert(
    connection: &mut SqliteConnection,
    key: &UsageKey,
    model: &str,
    totals: &Totals,
) -> Result<(), StoreError> {
    put(connection, INSERT, key, model, totals).await
}

/// Runs a statement that takes the totals and then the key.
async fn put(
    connection: &mut SqliteConnection,
    statement: &'static str,
    key: &UsageKey,
    model: &str,
    totals: &Totals,
) -> Result<(), StoreError> {
    let mut query = sqlx::query(statement);
    for number in totals.numbers() {
        // No number may keep what stands behind it in the journal from being counted.
        query = query.bind(i64::try_from(number).unwrap_or(i64::MAX));
    }
    query
        .bind(totals.cost.to_string())
        .bind(totals.latency_us.to_string())
        .bind(totals.first_chunk_us.to_string())
        .bind(key.hour_us)
        .bind(key.project_id.as_str())
        .bind(key.token_id.as_str())
        .bind(key.api.as_str())
        .bind(model)
        .execute(&mut *connection)
        .await?;
    Ok(())
}

async fn forget(store: &Store, before_us: i64) -> Result<bool, StoreError> {
    let mut connection = store.database().writer().await?;
    let mut transaction = connection.begin_with(WRITE).await?;
    let oldest: Option<i64> =
        sqlx::query_scalar("SELECT MIN(hour_us) FROM usage_hours").fetch_one(&mut *transaction).await?;
    let Some(hour_us) = oldest.filter(|hour_us| hour_us.saturating_add(HOUR_US) <= before_us) else {
        return Ok(false);
    };
    for statement in ["DELETE FROM usage_hours WHERE hour_us = ?", "DELETE FROM usage_models WHERE hour_us = ?"] {
        sqlx::query(statement).bind(hour_us).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::tests::distinct;
    use super::super::{GroupBy, UsageGroup, UsageQuery};
    use super::*;
    use crate::page::Page;
    use crate::testing::{Fixture, root_key, url};

    fn key(hour: i64, token: &str, model: &str) -> UsageKey {
        UsageKey {
            hour_us: hour * HOUR_US,
            project_id: "p".to_owned(),
            token_id: token.to_owned(),
            api: "openai".to_owned(),
            model: model.to_owned(),
        }
    }

    fn stretch(after_seq: u64, up_to_seq: u64, usage: &[UsageKey]) -> Stretch {
        let usage = usage.iter().map(|key| (key.clone(), distinct())).collect();
        Stretch { after_seq, up_to_seq, counts: Vec::new(), usage }
    }

    /// Everything in the store, by model.
    async fn by_model(store: &Store) -> Vec<UsageGroup> {
        let group_by = GroupBy { model: true, ..GroupBy::default() };
        let query = UsageQuery { to_us: i64::MAX, group_by, ..UsageQuery::default() };
        store.usage(&query, &Page { cursor: None, limit: 1_000 }).await.unwrap().data
    }

    /// How often [`distinct`] was added, over all rows.
    async fn times(store: &Store) -> u64 {
        let requests: u64 = by_model(store).await.iter().map(|group| group.totals.requests()).sum();
        requests / distinct().requests()
    }

    #[tokio::test]
    async fn rows_grow_by_all_of_what_is_added() {
        let fixture = Fixture::new().await;
        let keys = [key(1, "t", "a"), key(1, "t", "a"), key(1, "t", "b")];
        fixture.store.count("journal", stretch(0, 1, &keys)).await.unwrap();
        fixture.store.count("journal", stretch(1, 2, &keys[..1])).await.unwrap();
        let mut expected = distinct();
        expected.merge(&distinct());
        expected.merge(&distinct());
        let groups = by_model(&fixture.store).await;
        let found: Vec<_> = groups.iter().map(|group| (group.key.model.as_deref().unwrap(), &group.totals)).collect();
        assert_eq!(found, [("a", &expected), ("b", &distinct())]);
    }

    #[tokio::test]
    async fn what_the_cursor_has_passed_is_not_added_again() {
        let fixture = Fixture::new().await;
        let keys = [key(1, "t", "a")];
        let replica = Store::open(&url(&fixture.folder), &root_key(1)).await.unwrap();
        for (store, journal, after_seq, up_to_seq, stands_at, added) in [
            (&fixture.store, "journal", 0, 5, 5, 1),
            // The same again, as after a commit whose answer was lost; a part of it; and more than it.
            (&fixture.store, "journal", 0, 5, 5, 1),
            (&replica, "journal", 0, 4, 5, 1),
            (&replica, "journal", 0, 9, 5, 1),
            (&replica, "journal", 6, 9, 5, 1),
            (&replica, "journal", 5, 9, 9, 2),
            (&fixture.store, "journal", 5, 9, 9, 2),
            (&fixture.store, "another", 0, 3, 3, 3),
            (&fixture.store, "a third", 4, 5, 0, 3),
        ] {
            let stretch = stretch(after_seq, up_to_seq, &keys);
            let stood = store.count(journal, stretch).await.unwrap();
            let case = format!("{journal} from {after_seq} to {up_to_seq}");
            assert_eq!((stood, times(&fixture.store).await), (stands_at, added), "{case}");
            assert_eq!(fixture.store.counted_up_to(journal).await.unwrap(), stands_at, "{case}");
        }
    }

    #[tokio::test]
    async fn a_cursor_goes_back_only_with_nothing_to_add() {
        let fixture = Fixture::new().await;
        let keys = [key(1, "t", "a")];
        fixture.store.count("journal", stretch(0, 9, &keys)).await.unwrap();
        for refused in [stretch(9, 9, &keys), stretch(9, 4, &keys), stretch(9, u64::MAX, &keys)] {
            let refused = fixture.store.count("journal", refused).await;
            assert!(matches!(refused, Err(StoreError::Invalid(_))));
        }
        assert_eq!(fixture.store.count("journal", stretch(9, 4, &[])).await.unwrap(), 4);
        assert_eq!(fixture.store.count("journal", stretch(4, 6, &keys)).await.unwrap(), 6);
        assert_eq!(times(&fixture.store).await, 2);
    }

    #[tokio::test]
    async fn a_model_too_many_is_counted_as_other_for_its_hour_and_project() {
        let fixture = Fixture::new().await;
        let most = usize::try_from(MOST_MODELS).unwrap();
        let mut keys: Vec<_> = (0..most + 5).map(|n| key(1, "t", &format!("m{n:03}"))).collect();
        // Known ones, unknown ones, other tokens', hours' and projects'.
        keys.extend([
            key(1, "u", "m000"),
            key(1, "t", "m204"),
            key(1, "u", "m204"),
            key(1, "t", ""),
            key(2, "t", "m204"),
        ]);
        keys.push(UsageKey { project_id: "q".to_owned(), ..key(1, "t", "m203") });
        fixture.store.count("journal", stretch(0, 1, &keys)).await.unwrap();
        let groups = by_model(&fixture.store).await;
        let one = distinct().requests();
        let found = |model: &str| {
            let group = groups.iter().find(|group| group.key.model.as_deref() == Some(model));
            group.map_or(0, |group| group.totals.requests() / one)
        };
        assert_eq!(groups.len(), most + 4, "with unknown, other, and two of elsewhere");
        for (model, expected) in [("m000", 2), ("m199", 1), ("m200", 0), ("m203", 1), ("m204", 1), ("", 1)] {
            assert_eq!(found(model), expected, "{model}");
        }
        assert_eq!(found(OTHER_MODEL), 7);
        assert_eq!(times(&fixture.store).await, keys.len() as u64, "nothing is lost by it");
    }

    #[tokio::test]
    async fn numbers_that_do_not_fit_stay_at_the_most_and_hold_nobody_back() {
        let fixture = Fixture::new().await;
        let mut totals = distinct();
        totals.outcomes[0] = u64::MAX;
        let usage = vec![(key(1, "t", "a"), totals.clone()), (key(1, "t", "a"), totals)];
        fixture.store.count("journal", Stretch { up_to_seq: 1, usage, ..Stretch::default() }).await.unwrap();
        let most = u64::try_from(i64::MAX).unwrap();
        let groups = by_model(&fixture.store).await;
        assert_eq!((groups[0].totals.outcomes[0], groups[0].totals.outcomes[1]), (most, 4));
    }

    #[tokio::test]
    async fn hours_are_forgotten_one_by_one_once_they_are_old() {
        let fixture = Fixture::new().await;
        let now_hour = now_us() / HOUR_US;
        let keys = [key(1, "t", "a"), key(2, "t", "a"), key(now_hour - 10, "t", "b"), key(now_hour, "t", "b")];
        fixture.store.count("journal", stretch(0, 1, &keys)).await.unwrap();
        let hours = |hours: u64| Duration::from_secs(hours * 3_600);
        for (older_than, was_one, left) in [
            (hours(11), true, 3),
            (hours(11), true, 2),
            // Its requests may be younger than that.
            (hours(11), false, 2),
            (hours(8), true, 1),
            (Duration::MAX, false, 1),
        ] {
            assert_eq!(fixture.store.forget_usage(older_than).await.unwrap(), was_one);
            assert_eq!(times(&fixture.store).await, left);
        }
        let select = "SELECT COUNT(*) FROM usage_models";
        let models: i64 = sqlx::query_scalar(select).fetch_one(fixture.store.database().readers()).await.unwrap();
        assert_eq!(models, 1);
    }
}
