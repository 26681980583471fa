//! The outbox: what administrators did, on its way to the journal.
//!
//! A change and the row that tells of it commit together, so that no crash leaves one without the other. The row stays
//! until somebody has brought it to the journal and says so ([`Store::clear_outbox`]). What stands in a row is not known
//! here: whoever makes the change brings a [`Store::audited`] store that can tell of it.

use std::sync::Arc;

use sqlx::sqlite::SqliteRow;
use sqlx::{Connection, Row, SqliteConnection};
use uuid::Uuid;

use crate::database::WRITE;
use crate::error::StoreError;
use crate::projects::Project;
use crate::store::{Store, to_its_end};
use crate::tokens::{Revoked, Token};

/// One event on its way to the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// The event's own id, UUIDv7: the same however often it is brought.
    pub id: Uuid,
    /// Microseconds since the epoch.
    pub time_us: i64,
    /// The event as the journal holds it. No secret may be in it.
    pub payload: Vec<u8>,
}

/// A change about to be committed.
#[derive(Debug, Clone, Copy)]
pub enum Mutation<'a> {
    /// A project was made or changed.
    Project {
        /// `None`: it was made.
        before: Option<&'a Project>,
        /// As it is from now on.
        after: &'a Project,
    },
    /// A token was made, changed or revoked.
    Token {
        /// `None`: it was made.
        before: Option<&'a Token>,
        /// As it is from now on.
        after: &'a Token,
    },
    /// The tokens of a project were revoked.
    TokensRevoked {
        /// The project's id.
        project_id: &'a str,
        /// How many.
        revoked: &'a Revoked,
    },
}

/// Tells of a change.
pub(crate) type Recorder = Arc<dyn Fn(&Mutation<'_>) -> AuditEntry + Send + Sync>;

impl Store {
    /// The same store; of each change that is made through this handle of it, `record` makes the entry that is committed
    /// with it. What changes nothing has none: a token revoked before, a PATCH that leaves all as it was.
    ///
    /// `record` is called while the database is locked: it does not wait.
    #[must_use]
    pub fn audited(&self, record: impl Fn(&Mutation<'_>) -> AuditEntry + Send + Sync + 'static) -> Self {
        self.with_recorder(Arc::new(record))
    }

    /// Adds an entry of something that is not a change in this store.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: it is not there.
    pub async fn add_to_outbox(&self, entry: AuditEntry) -> Result<(), StoreError> {
        let store = self.clone();
        to_its_end(async move {
            let mut connection = store.database().writer().await?;
            insert(&mut connection, &entry).await?;
            store.outbox_bell().notify_one();
            Ok(())
        })
        .await
    }

    /// The oldest entries, in the order in which their changes were committed, so many at most.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Corrupt`].
    pub async fn outbox(&self, most: u32) -> Result<Vec<AuditEntry>, StoreError> {
        let select = "SELECT id, time_us, payload FROM outbox ORDER BY seq LIMIT ?";
        let rows = sqlx::query(select).bind(most).fetch_all(self.database().readers()).await?;
        rows.iter().map(entry).collect()
    }

    /// Deletes entries that are safe elsewhere. Those that are not there are passed over.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: they may all be there yet.
    pub async fn clear_outbox(&self, ids: &[Uuid]) -> Result<(), StoreError> {
        let (store, ids) = (self.clone(), ids.to_vec());
        to_its_end(async move { clear(&store, &ids).await }).await
    }

    /// Returns when an entry was added through this store since the last time that it returned. For one waiter; entries
    /// of other processes are not told of. Cancel safe.
    pub async fn outbox_grew(&self) {
        self.outbox_bell().notified().await;
    }

    /// Puts what tells of this change into its transaction, if anything is to tell of it.
    pub(crate) async fn record(
        &self,
        connection: &mut SqliteConnection,
        mutation: Mutation<'_>,
    ) -> Result<(), StoreError> {
        let Some(entry) = self.recorder().map(|record| record(&mutation)) else { return Ok(()) };
        insert(connection, &entry).await
    }
}

async fn insert(connection: &mut SqliteConnection, entry: &AuditEntry) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO outbox (id, time_us, payload) VALUES (?, ?, ?)")
        .bind(entry.id.to_string())
        .bind(entry.time_us)
        .bind(entry.payload.as_slice())
        .execute(&mut *connection)
        .await?;
    Ok(())
}

async fn clear(store: &Store, ids: &[Uuid]) -> Result<(), StoreError> {
    let mut connection = store.database().writer().await?;
    let mut transaction = connection.begin_with(WRITE).await?;
    for id in ids {
        sqlx::query("DELETE FROM outbox WHERE id = ?").bind(id.to_string()).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(())
}

fn entry(row: &SqliteRow) -> Result<AuditEntry, StoreError> {
    let id = Uuid::parse_str(row.try_get("id")?)
        .map_err(|_| StoreError::Corrupt("the id of a row of the outbox is no UUID".to_owned()))?;
    Ok(AuditEntry { id, time_us: row.try_get("time_us")?, payload: row.try_get("payload")? })
}

#[cfg(test)]
mod tests {
    use llm_proxy_core::secret::Secret;

    use super::*;
    use crate::testing::Fixture;
    use crate::{ProjectChange, TokenChange};

    /// A store that tells of changes in the words of `Debug`.
    fn audited(fixture: &Fixture) -> Store {
        fixture.store.audited(|mutation| AuditEntry {
            id: Uuid::now_v7(),
            time_us: 7,
            payload: format!("{mutation:?}").into_bytes(),
        })
    }

    async fn texts(store: &Store) -> Vec<String> {
        let entries = store.outbox(100).await.unwrap();
        entries.into_iter().map(|entry| String::from_utf8(entry.payload).unwrap()).collect()
    }

    #[tokio::test]
    async fn each_change_leaves_one_entry_with_what_was_and_what_is() {
        let fixture = Fixture::new().await;
        let store = audited(&fixture);
        let project = store.create_project(Fixture::new_project("one")).await.unwrap();
        let mut expected = vec![format!("Project {{ before: None, after: {project:?} }}")];
        let change = ProjectChange { name: Some("uno".to_owned()), ..Default::default() };
        let renamed = store.update_project(&project.id, change).await.unwrap().unwrap();
        expected.push(format!("Project {{ before: Some({project:?}), after: {renamed:?} }}"));
        let (token, _) = store.create_token(Fixture::new_token(&project.id)).await.unwrap();
        expected.push(format!("Token {{ before: None, after: {token:?} }}"));
        let change = TokenChange { max_requests: Some(Some(3)), ..Default::default() };
        let limited = store.update_token(&token.id, change).await.unwrap().unwrap();
        expected.push(format!("Token {{ before: Some({token:?}), after: {limited:?} }}"));
        store.revoke_token(&token.id).await.unwrap();
        let revoked = Token { is_active: false, ..limited.clone() };
        expected.push(format!("Token {{ before: Some({limited:?}), after: {revoked:?} }}"));
        store.create_token(Fixture::new_token(&project.id)).await.unwrap();
        let all = store.revoke_project_tokens(&project.id).await.unwrap().unwrap();
        assert_eq!(all.revoked_count, 1);
        let mut found = texts(&store).await;
        let last = format!("TokensRevoked {{ project_id: {:?}, revoked: {all:?} }}", project.id);
        assert_eq!(found.pop(), Some(last));
        assert!(found.pop().unwrap().starts_with("Token { before: None"));
        assert_eq!(found, expected);
    }

    #[tokio::test]
    async fn what_is_refused_or_changes_nothing_leaves_none() {
        let fixture = Fixture::new().await;
        let store = audited(&fixture);
        // Not audited: whoever works behind the management API is not an administrator.
        let (project, _) = fixture.token().await;
        let token = fixture.store.create_token(Fixture::new_token(&project.id)).await.unwrap().0.id;
        fixture.store.revoke_project_tokens(&project.id).await.unwrap();

        assert!(store.create_project(Fixture::new_project("one")).await.is_err());
        assert!(store.create_token(Fixture::new_token("nobody")).await.is_err());
        assert!(store.update_project("nobody", ProjectChange::default()).await.unwrap().is_none());
        assert!(store.update_token("nobody", TokenChange::default()).await.unwrap().is_none());
        assert!(!store.revoke_token("nobody").await.unwrap());
        assert!(store.revoke_project_tokens("nobody").await.unwrap().is_none());
        let same = ProjectChange { name: Some("one".to_owned()), is_active: Some(true), ..Default::default() };
        assert!(store.update_project(&project.id, same).await.unwrap().is_some());
        let same = TokenChange { is_active: Some(false), max_requests: Some(None), ..Default::default() };
        assert!(store.update_token(&token, same).await.unwrap().is_some());
        assert!(store.revoke_token(&token).await.unwrap());
        assert_eq!(store.revoke_project_tokens(&project.id).await.unwrap().unwrap().revoked_count, 0);
        assert_eq!(texts(&store).await, Vec::<String>::new());

        // A key is a change, though it may look the same.
        let set_keys = vec![("openai".to_owned(), Secret::new("sk-live-0123456789"))];
        store.update_project(&project.id, ProjectChange { set_keys, ..Default::default() }).await.unwrap();
        assert_eq!(texts(&store).await.len(), 1);
    }

    #[tokio::test]
    async fn a_change_that_cannot_be_told_of_is_not_made() {
        let fixture = Fixture::new().await;
        let (project, secret) = fixture.token().await;
        let store = audited(&fixture);
        let seq = store.change_position().await.unwrap();
        let token = store.tokens(None, crate::Page { cursor: None, limit: 1 }).await.unwrap().data.remove(0);
        fixture.sql("DROP TABLE outbox").await;
        assert!(store.create_project(Fixture::new_project("two")).await.is_err());
        let change = ProjectChange { is_active: Some(false), ..Default::default() };
        assert!(store.update_project(&project.id, change).await.is_err());
        assert!(store.create_token(Fixture::new_token(&project.id)).await.is_err());
        let change = TokenChange { max_requests: Some(Some(1)), ..Default::default() };
        assert!(store.update_token(&token.id, change).await.is_err());
        assert!(store.revoke_token(&token.id).await.is_err());
        assert!(store.revoke_project_tokens(&project.id).await.is_err());

        assert_eq!(store.change_position().await.unwrap(), seq);
        let projects = store.projects(crate::Page { cursor: None, limit: 9 }).await.unwrap().data;
        assert_eq!(projects, [project]);
        assert_eq!(store.token(&token.id).await.unwrap().unwrap(), token);
        let holder = store.holder(&store.pepper().digest(&secret)).await.unwrap().unwrap();
        assert!(holder.token_active && holder.project_active);
    }

    #[tokio::test]
    async fn entries_stay_in_order_until_they_are_cleared() {
        let fixture = Fixture::new().await;
        let store = &fixture.store;
        // Ids that do not sort as they come: a clock was set back.
        let entries: Vec<_> = [3, 1, 2]
            .into_iter()
            .map(|number| AuditEntry { id: Uuid::from_u128(number), time_us: 9, payload: vec![0, 0xff] })
            .collect();
        for entry in &entries {
            store.add_to_outbox(entry.clone()).await.unwrap();
        }
        assert!(store.add_to_outbox(entries[0].clone()).await.is_err(), "an id is an event's own");
        assert_eq!(store.outbox(2).await.unwrap(), entries[..2]);
        store.clear_outbox(&[Uuid::from_u128(1), Uuid::from_u128(99)]).await.unwrap();
        assert_eq!(store.outbox(9).await.unwrap(), [entries[0].clone(), entries[2].clone()]);
        store.clear_outbox(&[Uuid::from_u128(2), Uuid::from_u128(3)]).await.unwrap();
        assert!(store.outbox(9).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn whoever_waits_for_entries_is_told_of_those_that_came_before() {
        let fixture = Fixture::new().await;
        let store = audited(&fixture);
        store.create_project(Fixture::new_project("one")).await.unwrap();
        fixture.store.outbox_grew().await;
        let waiting = tokio::time::timeout(std::time::Duration::ZERO, fixture.store.outbox_grew()).await;
        assert!(waiting.is_err(), "once");
        let ((), made) = tokio::join!(fixture.store.outbox_grew(), store.create_project(Fixture::new_project("two")));
        assert!(made.is_ok());
    }
}
