//! The store as a whole: opening, closing, and telling the process what changed.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use llm_proxy_core::token::Pepper;
use sqlx::Connection;
use tokio::sync::{Notify, broadcast};

use crate::changes::{self, Change};
use crate::database::{Database, WRITE};
use crate::error::StoreError;
use crate::migrations;
use crate::outbox::Recorder;
use crate::root_key::RootKey;
use crate::seal::SealingKey;
use crate::secrets::{self, Secrets};
use crate::writable::LastTry;

/// Changes that a slow subscriber may be behind before it must read [`Store::changes_after`] instead.
const FEED_CAPACITY: usize = 1_024;

/// The open store. Clones share it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    /// What tells of the changes that are made through this handle ([`Store::audited`]).
    recorder: Option<Recorder>,
}

struct Inner {
    database: Database,
    secrets: Secrets,
    feed: broadcast::Sender<Change>,
    outbox_bell: Notify,
    last_try: LastTry,
}

impl Store {
    /// Opens the database at `sqlite:PATH`, or makes it (mode 0600), looks through it for damage, and brings its schema
    /// up to date. Several processes may have it open. A root key that is new is written to its file if the database is
    /// new too, and only then.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for another URL or a missing root key, [`StoreError::Corrupt`], [`StoreError::Schema`],
    /// [`StoreError::WrongRootKey`], [`StoreError::Unavailable`]: each is a reason not to start, and its text says what
    /// to do.
    pub async fn open(url: &str, root_key: &RootKey) -> Result<Self, StoreError> {
        let database = Database::open(url).await?;
        let secrets = prepare(&database, root_key).await.map_err(|error| database.at_start(error))?;
        let (feed, _) = broadcast::channel(FEED_CAPACITY);
        let inner = Inner { database, secrets, feed, outbox_bell: Notify::new(), last_try: LastTry::default() };
        Ok(Self { inner: Arc::new(inner), recorder: None })
    }

    /// The key of token digests.
    pub fn pepper(&self) -> Pepper {
        self.inner.secrets.pepper.clone()
    }

    /// Waits for running statements and closes the file. Later calls give [`StoreError::Unavailable`].
    pub async fn close(&self) {
        self.inner.database.close().await;
    }

    /// Whether the database can be read right now. [`Store::try_write`] tells whether it can be written.
    ///
    /// # Errors
    /// The reason why not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.change_position().await.map(|_| ())
    }

    /// Changes made through this store from now on, in feed order, each sent right after its commit.
    ///
    /// A receiver that lagged reads [`Store::changes_after`] from the last number it has seen. Changes made by other
    /// processes come by that way only.
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.inner.feed.subscribe()
    }

    /// The number of the newest change: where a follower with an empty cache begins.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn change_position(&self) -> Result<u64, StoreError> {
        changes::position(self.inner.database.readers()).await
    }

    /// The changes after this number, oldest first, at most 1,000: ask again until there are none.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Corrupt`].
    pub async fn changes_after(&self, seq: u64) -> Result<Vec<Change>, StoreError> {
        changes::after(self.inner.database.readers(), seq).await
    }

    pub(crate) fn database(&self) -> &Database {
        &self.inner.database
    }

    pub(crate) fn key_encryption_key(&self) -> &SealingKey {
        &self.inner.secrets.key_encryption_key
    }

    pub(crate) fn last_try(&self) -> &LastTry {
        &self.inner.last_try
    }

    pub(crate) fn with_recorder(&self, recorder: Recorder) -> Self {
        Self { inner: Arc::clone(&self.inner), recorder: Some(recorder) }
    }

    pub(crate) fn recorder(&self) -> Option<&Recorder> {
        self.recorder.as_ref()
    }

    /// Rings when the outbox has grown.
    pub(crate) fn outbox_bell(&self) -> &Notify {
        &self.inner.outbox_bell
    }

    /// Tells subscribers of a committed change, and whoever carries what tells of it. Called while the writer connection
    /// is still held, so that they hear changes in the order of their numbers.
    pub(crate) fn announce(&self, change: Change) {
        if self.recorder.is_some() {
            self.inner.outbox_bell.notify_one();
        }
        // An error means that nobody listens.
        let _ = self.inner.feed.send(change);
    }
}

/// Brings the schema up to date and opens the secrets: all of it, or nothing has happened.
async fn prepare(database: &Database, root_key: &RootKey) -> Result<Secrets, StoreError> {
    let now_us = now_us();
    let mut connection = database.writer().await?;
    let mut transaction = connection.begin_with(WRITE).await?;
    migrations::apply(&mut transaction, now_us).await?;
    let secrets = secrets::open_or_make(&mut transaction, root_key, now_us).await?;
    transaction.commit().await?;
    Ok(secrets)
}

/// Runs a mutation to its end even if the caller goes away meanwhile. A client that hangs up on the management API
/// must not leave a committed revocation unannounced.
pub(crate) async fn to_its_end<T: Send + 'static>(
    mutation: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::spawn(mutation).await {
        Ok(done) => done,
        Err(_) => Err(StoreError::Unavailable("the task that writes was stopped".to_owned())),
    }
}

/// The store's only look at a clock. A clock before 1970 is taken as 1970.
pub(crate) fn now_us() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fixture, root_key, url};

    #[tokio::test]
    async fn everything_is_there_after_reopening() {
        let fixture = Fixture::new().await;
        let (project, secret) = fixture.token().await;
        let digest = fixture.store.pepper().digest(&secret);
        let before = fixture.store.holder(&digest).await.unwrap().unwrap();
        let lease = fixture.store.renew_lease(&before.token_id, 0).await.unwrap();
        fixture.store.close().await;

        let reopened = Store::open(&url(&fixture.folder), &root_key(1)).await.unwrap();
        assert_eq!(reopened.pepper().digest(&secret), digest);
        assert_eq!(reopened.project(&project.id).await.unwrap().unwrap(), project);
        let after = reopened.holder(&digest).await.unwrap().unwrap();
        assert_eq!((after.token_id, after.provider_keys), (before.token_id.clone(), before.provider_keys));
        assert!(reopened.renew_lease(&before.token_id, 0).await.unwrap().remaining_after <= lease.remaining_after);
        assert_eq!(reopened.changes_after(0).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn what_was_committed_is_there_without_closing() {
        let fixture = Fixture::new().await;
        let project = fixture.project("one").await;
        let replica = Store::open(&url(&fixture.folder), &root_key(1)).await.unwrap();
        assert_eq!(replica.project(&project.id).await.unwrap().unwrap(), project);
        assert_eq!(replica.changes_after(0).await.unwrap(), fixture.store.changes_after(0).await.unwrap());
    }

    #[tokio::test]
    async fn a_closed_store_is_unavailable() {
        let fixture = Fixture::new().await;
        assert!(fixture.store.ping().await.is_ok());
        fixture.store.close().await;
        assert!(matches!(fixture.store.ping().await, Err(StoreError::Unavailable(_))));
        let refused = fixture.store.renew_lease("any", 0).await;
        assert!(matches!(refused.err(), Some(StoreError::Unavailable(_))));
    }

    #[tokio::test]
    async fn a_database_that_was_full_is_written_again_when_it_has_room() {
        let fixture = Fixture::new().await;
        let project = fixture.project("one").await;
        let (token, _) = fixture.store.create_token(Fixture::new_token(&project.id)).await.unwrap();
        // Ends a transaction as a full disk does. The limit is the connection's, and goes with it.
        fixture.sql("PRAGMA max_page_count = 1").await;
        let mut refused = None;
        for _ in 0..1_000 {
            refused = fixture.store.create_token(Fixture::new_token(&project.id)).await.err();
            if refused.is_some() {
                break;
            }
        }
        assert!(matches!(&refused, Some(StoreError::Unavailable(cause)) if cause.contains("full")), "{refused:?}");

        let seq = fixture.store.change_position().await.unwrap();
        assert!(fixture.store.renew_lease(&token.id, 0).await.unwrap().granted > 0);
        assert!(fixture.store.revoke_token(&token.id).await.unwrap());
        assert!(fixture.store.create_token(Fixture::new_token(&project.id)).await.is_ok());
        assert_eq!(fixture.store.change_position().await.unwrap(), seq + 2, "what was refused took no number");
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_leaves_no_unannounced_change() {
        let fixture = Fixture::new().await;
        let mut heard = fixture.store.subscribe();
        let call = fixture.store.create_project(Fixture::new_project("one"));
        // Polled once, then dropped.
        let gone = tokio::time::timeout(std::time::Duration::ZERO, call).await;
        let committed_or_begun = gone.is_ok() || heard.recv().await.is_ok();
        assert!(committed_or_begun);
        assert_eq!(fixture.store.changes_after(0).await.unwrap().len(), 1);
    }
}
