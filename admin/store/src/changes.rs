//! The change feed: what every data plane must hear of, in one order, with no gaps.
//!
//! The number comes from a counter row that the mutation's own transaction locks until it commits. A follower that has
//! seen 7 can therefore trust that no smaller number appears later, which a plain sequence does not give.
//! Leases and counts are not in the feed: nobody's decision changes with them.

use llm_proxy_core::token::TokenDigest;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection, SqlitePool};

use crate::error::StoreError;

/// How many changes one [`Store::changes_after`](crate::Store::changes_after) returns at most.
pub(crate) const BATCH: i64 = 1_000;

/// Kinds as they stand in the table.
const TOKEN: &str = "token";
const TOKEN_REVOKED: &str = "token_revoked";
const TOKENS_REVOKED: &str = "tokens_revoked";
const PROJECT: &str = "project";
const PROJECT_INACTIVE: &str = "project_inactive";

/// One committed mutation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its place in the feed, from 1, without gaps.
    pub seq: u64,
    /// What to drop from caches, and what to cut.
    pub kind: ChangeKind,
}

/// What a mutation touched, and whether it may run any more: enough for a follower to forget and to cut at once,
/// without a look at the store. Everything else is read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeKind {
    /// This token was made, edited or revoked.
    Token {
        /// Its public id.
        id: String,
        /// The key under which caches hold it, also as unknown.
        digest: TokenDigest,
        /// False: it is revoked.
        is_active: bool,
    },
    /// This project or its provider keys were made or edited: every token of it must be read again.
    Project {
        /// Its id.
        id: String,
        /// False: its tokens are not served.
        is_active: bool,
    },
    /// Every token of this project was revoked.
    TokensRevoked {
        /// The project's id.
        project_id: String,
    },
}

/// Writes the change into the transaction of its mutation. The counter row is locked from here to the commit.
pub(crate) async fn record(
    connection: &mut SqliteConnection,
    kind: ChangeKind,
    now_us: i64,
) -> Result<Change, StoreError> {
    sqlx::query("UPDATE change_counter SET seq = seq + 1 WHERE id = 1").execute(&mut *connection).await?;
    let seq: i64 =
        sqlx::query_scalar("SELECT seq FROM change_counter WHERE id = 1").fetch_one(&mut *connection).await?;
    let (name, id, digest) = match &kind {
        ChangeKind::Token { id, digest, is_active } => {
            (if *is_active { TOKEN } else { TOKEN_REVOKED }, id, Some(digest.as_bytes().to_vec()))
        }
        ChangeKind::Project { id, is_active } => (if *is_active { PROJECT } else { PROJECT_INACTIVE }, id, None),
        ChangeKind::TokensRevoked { project_id } => (TOKENS_REVOKED, project_id, None),
    };
    sqlx::query("INSERT INTO changes (seq, kind, subject_id, digest, at_us) VALUES (?, ?, ?, ?, ?)")
        .bind(seq)
        .bind(name)
        .bind(id.as_str())
        .bind(digest)
        .bind(now_us)
        .execute(&mut *connection)
        .await?;
    let seq = u64::try_from(seq).map_err(|_| StoreError::Corrupt("the change counter is negative".to_owned()))?;
    Ok(Change { seq, kind })
}

pub(crate) async fn position(readers: &SqlitePool) -> Result<u64, StoreError> {
    Ok(sqlx::query_scalar("SELECT seq FROM change_counter WHERE id = 1").fetch_one(readers).await?)
}

pub(crate) async fn after(readers: &SqlitePool, seq: u64) -> Result<Vec<Change>, StoreError> {
    // Past what SQL can number there is nothing.
    let seq = i64::try_from(seq).unwrap_or(i64::MAX);
    let select = "SELECT seq, kind, subject_id, digest FROM changes WHERE seq > ? ORDER BY seq LIMIT ?";
    let rows = sqlx::query(select).bind(seq).bind(BATCH).fetch_all(readers).await?;
    rows.iter().map(change).collect()
}

fn change(row: &SqliteRow) -> Result<Change, StoreError> {
    let id: String = row.try_get("subject_id")?;
    let kind: String = row.try_get("kind")?;
    let kind = match kind.as_str() {
        TOKEN | TOKEN_REVOKED => ChangeKind::Token { id, digest: digest(row)?, is_active: kind == TOKEN },
        PROJECT | PROJECT_INACTIVE => ChangeKind::Project { id, is_active: kind == PROJECT },
        TOKENS_REVOKED => ChangeKind::TokensRevoked { project_id: id },
        _ => return Err(StoreError::Corrupt("changes has a row of an unknown kind".to_owned())),
    };
    Ok(Change { seq: row.try_get("seq")?, kind })
}

/// The column `digest` of this row.
pub(crate) fn digest(row: &SqliteRow) -> Result<TokenDigest, StoreError> {
    let octets: Vec<u8> = row.try_get("digest")?;
    let octets = <[u8; 32]>::try_from(octets)
        .map_err(|_| StoreError::Corrupt("a token digest has a wrong length".to_owned()))?;
    Ok(TokenDigest::from_bytes(octets))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fixture;
    use crate::{ProjectChange, TokenChange};

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn parallel_writers_leave_no_gap_and_are_heard_in_order() {
        let fixture = Fixture::new().await;
        let project = fixture.project("one").await;
        let mut heard = fixture.store.subscribe();
        let writers: Vec<_> = (0..40)
            .map(|_| {
                let (store, new) = (fixture.store.clone(), Fixture::new_token(&project.id));
                tokio::spawn(async move { store.create_token(new).await })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap().unwrap();
        }
        let feed = fixture.store.changes_after(0).await.unwrap();
        assert!(feed.iter().map(|change| change.seq).eq(1..=41));
        assert_eq!(feed[0].kind, ChangeKind::Project { id: project.id, is_active: true });
        for expected in &feed[1..] {
            assert_eq!(&heard.recv().await.unwrap(), expected);
        }
        assert_eq!(fixture.store.changes_after(40).await.unwrap(), feed[40..]);
        assert!(fixture.store.changes_after(u64::MAX).await.unwrap().is_empty());
        assert_eq!(fixture.store.change_position().await.unwrap(), 41);
    }

    #[tokio::test]
    async fn the_feed_says_what_may_not_run_any_more() {
        let fixture = Fixture::new().await;
        let store = &fixture.store;
        let mut heard = store.subscribe();
        let project = fixture.project("one").await.id;
        let (token, secret) = store.create_token(Fixture::new_token(&project)).await.unwrap();
        let (id, digest) = (token.id, store.pepper().digest(&secret));
        for is_active in [None, Some(false), None, Some(true)] {
            store.update_token(&id, TokenChange { is_active, ..Default::default() }).await.unwrap();
        }
        store.revoke_token(&id).await.unwrap();
        for is_active in [Some(false), None, Some(true)] {
            store.update_project(&project, ProjectChange { is_active, ..Default::default() }).await.unwrap();
        }
        store.update_token(&id, TokenChange { is_active: Some(true), ..Default::default() }).await.unwrap();
        store.revoke_project_tokens(&project).await.unwrap();

        let of_token = |is_active| ChangeKind::Token { id: id.clone(), digest, is_active };
        let of_project = |is_active| ChangeKind::Project { id: project.clone(), is_active };
        let mut expected = vec![of_project(true)];
        expected.extend([true, true, false, false, true, false].map(of_token));
        expected.extend([false, false, true].map(of_project));
        expected.extend([of_token(true), ChangeKind::TokensRevoked { project_id: project.clone() }]);
        let feed = store.changes_after(0).await.unwrap();
        assert!(feed.iter().map(|change| &change.kind).eq(&expected), "{feed:?}");
        for change in &feed {
            assert_eq!(&heard.recv().await.unwrap(), change, "heard as it is in the feed");
        }
    }

    #[tokio::test]
    async fn a_refused_mutation_is_not_in_the_feed() {
        let fixture = Fixture::new().await;
        fixture.project("one").await;
        assert!(fixture.store.create_project(Fixture::new_project("one")).await.is_err());
        assert_eq!(fixture.store.changes_after(0).await.unwrap().len(), 1);
        fixture.project("two").await;
        assert_eq!(fixture.store.change_position().await.unwrap(), 2, "its number is given to the next one");
    }
}
