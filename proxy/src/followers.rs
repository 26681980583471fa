//! What follows along: the change feed into the token cache.

use std::sync::Arc;
use std::time::Duration;

use llm_proxy_store::{Change, Store};
use tokio::sync::broadcast::Receiver as Changes;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;

use crate::plane::Gateway;
use crate::plane::tokens::Tokens;

/// How long the feed may be silent before it is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How long a change that stands in the feed may take to be announced.
const ON_ITS_WAY: Duration = Duration::from_millis(250);

/// How long after a failure the store is asked again for what only it can tell.
const AGAIN: Duration = Duration::from_millis(50);

/// Applies every change of the store to the tokens in memory, until the store is gone. `applied` tells up to which:
/// from then on nothing is admitted that a change forbids, and what ran is cut.
///
/// What changes leave to be done at the store is done beside them, and no change waits for it.
pub async fn follow_changes(gateway: Arc<Gateway>, changes: Changes<Change>, applied: watch::Sender<u64>) {
    tokio::select! {
        () = follow(&gateway.tokens, changes, &applied) => {}
        () = give_back(&gateway.tokens) => {}
    }
}

/// Gives leases back that edits have taken away, for ever.
async fn give_back(tokens: &Tokens) {
    loop {
        tokens.give_back_edited().await;
    }
}

async fn follow(tokens: &Tokens, mut changes: Changes<Change>, applied: &watch::Sender<u64>) {
    loop {
        let last = *applied.borrow();
        let change = tokio::select! {
            change = changes.recv() => change,
            // Whatever was not announced here (by another process, say) stands in the feed all the same.
            () = tokio::time::sleep(LOOK) => match tokens.is_behind(last).await {
                Ok(false) => continue,
                // It may just be on its way.
                Ok(true) => match tokio::time::timeout(ON_ITS_WAY, changes.recv()).await {
                    Ok(change) => change,
                    Err(_) => {
                        catch_up(tokens, applied).await;
                        continue;
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "the store could not tell its last change; it is asked again");
                    continue;
                }
            },
        };
        match change {
            Ok(change) => match change.seq.saturating_sub(last) {
                // Read from the feed before it was heard.
                0 => {}
                1 => {
                    tokens.apply(&change);
                    applied.send_replace(change.seq);
                }
                _ => catch_up(tokens, applied).await,
            },
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "changes came faster than they could be followed: they are read from the feed");
                catch_up(tokens, applied).await;
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// Applies what was missed, as the feed in the store has it. A store that does not answer is asked again until it does:
/// nothing else would cut what was revoked.
async fn catch_up(tokens: &Tokens, applied: &watch::Sender<u64>) {
    // Whatever it was: nobody is admitted any more by what was read before it.
    tokens.forget_all();
    loop {
        let last = *applied.borrow();
        match tokens.apply_after(last).await {
            Ok(Some(seq)) => {
                applied.send_replace(seq);
            }
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "the store could not tell what changed; it is asked again");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// Waits until the changes that the store has now are applied: for ever, where that cannot be known.
pub async fn until_applied(store: &Store, mut applied: watch::Receiver<u64>) {
    let position = loop {
        match store.change_position().await {
            Ok(position) => break position,
            Err(error) => {
                tracing::warn!(%error, "the store could not tell its last change; it is asked again");
                tokio::time::sleep(AGAIN).await;
            }
        }
    };
    if applied.wait_for(|applied| *applied >= position).await.is_err() {
        // Nobody follows any more.
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use llm_proxy_core::token::TokenDigest;
    use llm_proxy_store::{ChangeKind, ContentPolicy, NewProject, NewToken, RootKey};
    use tempfile::TempDir;
    use tokio::runtime::Handle;
    use tokio::sync::broadcast;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::plane::state::{TokenState, Watch};

    /// Long enough for whatever is going to happen.
    const PATIENCE: Duration = Duration::from_secs(10);
    /// Long enough to see that something does not.
    const MOMENT: Duration = Duration::from_millis(100);

    /// A store with one project, the tokens above it, and a feed that says what the test says.
    struct Fixture {
        store: Store,
        tokens: Tokens,
        project_id: String,
        _folder: TempDir,
    }

    impl Fixture {
        async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let url = format!("sqlite:{}", folder.path().join("store.db").display());
            let store = Store::open(&url, &RootKey::generate().unwrap()).await.unwrap();
            let project = NewProject {
                name: "one".to_owned(),
                is_active: true,
                provider_keys: Vec::new(),
                content: ContentPolicy::default(),
            };
            let project_id = store.create_project(project).await.unwrap().id;
            let tokens = Tokens::new(store.clone(), Handle::current(), CancellationToken::new());
            Self { store, tokens, project_id, _folder: folder }
        }

        /// A new token's id and digest, and what cuts its streams.
        async fn token(&self) -> (String, TokenDigest, Watch) {
            let token = NewToken {
                project_id: self.project_id.clone(),
                expires_at_us: i64::MAX,
                max_requests: Some(80),
                requests_per_minute: None,
                allowed_models: None,
            };
            let (token, secret) = self.store.create_token(token).await.unwrap();
            let digest = self.store.pepper().digest(&secret);
            let state = self.state(&digest).await;
            state.permit(&self.tokens).await.unwrap().spend();
            (token.id, digest, state.watch())
        }

        async fn state(&self, digest: &TokenDigest) -> Arc<TokenState> {
            Arc::clone(&self.tokens.find(digest).await.unwrap().unwrap().state)
        }

        async fn position(&self) -> u64 {
            self.store.change_position().await.unwrap()
        }

        /// Follows until `until` is over.
        async fn follow(
            &self,
            changes: Changes<Change>,
            applied: &watch::Sender<u64>,
            until: impl Future<Output = ()>,
        ) {
            tokio::select! {
                () = follow(&self.tokens, changes, applied) => panic!("the feed is open"),
                ended = tokio::time::timeout(PATIENCE, until) => ended.unwrap(),
            }
        }
    }

    async fn reaches(applied: &watch::Sender<u64>, seq: u64) {
        applied.subscribe().wait_for(|applied| *applied >= seq).await.unwrap();
    }

    #[tokio::test]
    async fn a_revocation_behind_many_changes_waits_for_no_store() {
        let fixture = Fixture::new().await;
        let (id, digest, running) = fixture.token().await;
        let (_, other, _) = fixture.token().await;
        let (sender, changes) = broadcast::channel(1_024);
        let (applied, _) = watch::channel(0);
        fixture.store.close().await;
        for seq in 1..=1_000 {
            let kind = match seq {
                1_000 => ChangeKind::Token { id: id.clone(), digest, is_active: false },
                _ if seq % 2 == 0 => ChangeKind::Project { id: fixture.project_id.clone(), is_active: true },
                _ => ChangeKind::Token { id: "other".to_owned(), digest: other, is_active: true },
            };
            sender.send(Change { seq, kind }).unwrap();
        }
        fixture.follow(changes, &applied, reaches(&applied, 1_000)).await;
        assert!(running.is_cut());
        assert!(fixture.tokens.find(&digest).await.is_err(), "what was read before it would be believed");
    }

    #[tokio::test]
    async fn what_was_missed_is_read_from_the_feed_and_applied() {
        for lags in [true, false] {
            let fixture = Fixture::new().await;
            let (id, digest, running) = fixture.token().await;
            let (_, _, other) = fixture.token().await;
            let (applied, _) = watch::channel(fixture.position().await);
            let (sender, changes) = broadcast::channel(1);
            let mut heard = fixture.store.subscribe();
            assert!(fixture.store.revoke_token(&id).await.unwrap());
            fixture.token().await;
            if lags {
                sender.send(heard.recv().await.unwrap()).unwrap();
            } else {
                drop(heard.recv().await);
            }
            sender.send(heard.recv().await.unwrap()).unwrap();
            let position = fixture.position().await;
            fixture.follow(changes, &applied, reaches(&applied, position)).await;
            assert!(running.is_cut() && !other.is_cut(), "lags {lags}");
            assert!(fixture.state(&digest).await.watch().is_cut(), "lags {lags}: looked up again");
        }
    }

    #[tokio::test]
    async fn a_change_is_applied_when_it_is_known_to_be_and_not_before() {
        let fixture = Fixture::new().await;
        let position = fixture.position().await;
        let within = |time, applied: &watch::Receiver<u64>| {
            tokio::time::timeout(time, until_applied(&fixture.store, applied.clone()))
        };
        let (applied, is_applied) = watch::channel(position - 1);
        assert!(within(MOMENT, &is_applied).await.is_err(), "not applied yet");
        applied.send_replace(position);
        assert!(within(PATIENCE, &is_applied).await.is_ok());
        let (_, nobody_follows) = watch::channel(position - 1);
        assert!(within(MOMENT, &nobody_follows).await.is_err(), "nobody will apply it");
        fixture.store.close().await;
        assert!(within(MOMENT, &is_applied).await.is_err(), "a store that does not tell");
    }
}
