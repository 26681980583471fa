//! Tokens in memory: who holds one, what it may do, and how long we may believe it.
//!
//! Two maps. [`Tokens::known`] is a cache of store rows and may forget. [`Tokens::states`] is the truth of running
//! limits (rate, lease, what to cut) and outlives the cache, so that evicting or editing a token never refills one.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use http::HeaderValue;
use llm_proxy_core::policy::Glob;
use llm_proxy_core::secret::Secret;
use llm_proxy_core::token::TokenDigest;
use llm_proxy_store::{Change, ChangeKind, Holder, Project, Store, StoreError};
use tokio::runtime::Handle;
use tokio::sync::Mutex;

use super::state::{CutReason, TokenState};

/// The most tokens kept in memory.
const MOST_KNOWN: u64 = 100_000;
/// The most unknown digests remembered, so that guessing costs no store read each; forgotten after ten seconds.
const MOST_UNKNOWN: u64 = 10_000;
/// The longest wait for the store.
const STORE_PATIENCE: Duration = Duration::from_secs(2);
/// How often a read is repeated that changes keep overtaking.
const MOST_READS: u32 = 10;

/// A token as the exchange needs it. Immutable: a change makes a new one.
#[derive(Debug)]
pub struct Known {
    /// The store's row: ids, activity, expiry, limits.
    pub holder: Holder,
    /// The token's model list. `None`: all models.
    pub allowed_models: Option<Vec<Glob>>,
    /// The project's provider keys, by API name.
    pub keys: Vec<(Box<str>, ProviderKey)>,
    /// Its running limits.
    pub state: Arc<TokenState>,
}

/// A provider's key in the forms it is sent in. `Debug` shows nothing of it.
pub struct ProviderKey {
    /// The key itself, for a header of its own.
    pub plain: HeaderValue,
    /// `Bearer …`.
    pub bearer: HeaderValue,
}

impl ProviderKey {
    /// The key, to be written into a list.
    pub fn secret(&self) -> Secret {
        Secret::new(self.plain.to_str().unwrap_or_default())
    }

    fn new(key: &Secret) -> Option<Self> {
        let header = |text: &str| {
            let mut value = HeaderValue::from_str(text).ok()?;
            value.set_sensitive(true);
            Some(value)
        };
        let bearer = zeroize_format(key);
        Some(Self { plain: header(key.expose())?, bearer: header(bearer.expose())? })
    }
}

fn zeroize_format(key: &Secret) -> Secret {
    Secret::new(format!("Bearer {}", key.expose()))
}

impl std::fmt::Debug for ProviderKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("[secret]")
    }
}

/// The store did not answer in time, and the token is not known here: 503, never 401.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unavailable;

/// All tokens of the process.
pub struct Tokens {
    store: Store,
    /// Where store reads run: the data plane's own runtime never waits for a database driver.
    control: Handle,
    cut: tokio_util::sync::CancellationToken,
    known: moka::sync::Cache<TokenDigest, Arc<Known>, foldhash::fast::RandomState>,
    unknown: moka::sync::Cache<TokenDigest, ()>,
    states: DashMap<Box<str>, Arc<TokenState>>,
    flights: DashMap<TokenDigest, Arc<Mutex<()>>>,
    /// Raised before anything is dropped from the caches; a read that saw another value is not kept.
    generation: parking_lot::Mutex<u64>,
}

impl Tokens {
    /// `cut` falls when everything must end.
    pub fn new(store: Store, control: Handle, cut: tokio_util::sync::CancellationToken) -> Self {
        Self {
            store,
            control,
            cut,
            // A digest is random as it is, and made with a key that no client knows: a fast hash will do.
            known: moka::sync::Cache::builder()
                .max_capacity(MOST_KNOWN)
                .build_with_hasher(foldhash::fast::RandomState::default()),
            unknown: moka::sync::Cache::builder()
                .max_capacity(MOST_UNKNOWN)
                .time_to_live(Duration::from_secs(10))
                .build(),
            states: DashMap::new(),
            flights: DashMap::new(),
            generation: parking_lot::Mutex::new(0),
        }
    }

    /// Finds a token, in memory or in the store. `Ok(None)`: no such token.
    ///
    /// # Errors
    /// [`Unavailable`] when the store is needed and does not answer within two seconds.
    pub async fn find(&self, digest: &TokenDigest) -> Result<Option<Arc<Known>>, Unavailable> {
        if let Some(known) = self.known.get(digest) {
            return Ok(Some(known));
        }
        if self.unknown.contains_key(digest) {
            return Ok(None);
        }
        // One read at a time for a token: a crowd with a new token costs one query.
        let flight = Arc::clone(&self.flights.entry(*digest).or_default());
        let found = {
            let _turn = flight.lock().await;
            match (self.known.get(digest), self.unknown.contains_key(digest)) {
                (Some(known), _) => Ok(Some(known)),
                (None, true) => Ok(None),
                (None, false) => self.read(digest).await,
            }
        };
        drop(flight);
        self.flights.remove_if(digest, |_, flight| Arc::strong_count(flight) <= 1);
        found
    }

    async fn read(&self, digest: &TokenDigest) -> Result<Option<Arc<Known>>, Unavailable> {
        for _ in 0..MOST_READS {
            let before = *self.generation.lock();
            let store = self.store.clone();
            let wanted = *digest;
            let reading = self.control.spawn(async move { store.holder(&wanted).await });
            let holder = match tokio::time::timeout(STORE_PATIENCE, reading).await {
                Ok(Ok(Ok(holder))) => holder,
                Ok(Ok(Err(error))) => {
                    tracing::warn!(%error, "the store could not look up a token");
                    return Err(Unavailable);
                }
                _ => {
                    tracing::warn!("the store took longer than {STORE_PATIENCE:?} to look up a token");
                    return Err(Unavailable);
                }
            };
            // Under the lock nothing can change: what is kept is from after every change that has been applied.
            let generation = self.generation.lock();
            if *generation == before {
                let found = holder.map(|holder| Arc::new(self.known_of(holder)));
                match &found {
                    Some(known) => self.known.insert(*digest, Arc::clone(known)),
                    None => self.unknown.insert(*digest, ()),
                }
                return Ok(found);
            }
        }
        Err(Unavailable)
    }

    fn known_of(&self, holder: Holder) -> Known {
        let state = Arc::clone(
            &self
                .states
                .entry(holder.token_id.as_str().into())
                .or_insert_with(|| Arc::new(TokenState::new(&holder.token_id, &holder.project_id, self.cut.clone()))),
        );
        state.set_rate(holder.requests_per_minute);
        if holder.token_active && holder.project_active {
            state.revive();
        }
        let keys = holder
            .provider_keys
            .iter()
            .filter_map(|(api, key)| Some((api.as_str().into(), ProviderKey::new(key)?)))
            .collect();
        let allowed_models =
            holder.allowed_models.as_ref().map(|models| models.iter().map(|model| Glob::new(model)).collect());
        Known { holder, allowed_models, keys, state }
    }

    /// Takes note of a change: forgets what may be stale, and cuts what is no longer allowed.
    pub async fn apply(&self, change: &Change) {
        match &change.kind {
            ChangeKind::Token { id, digest } => {
                self.forget(|| {
                    self.known.invalidate(digest);
                    self.unknown.invalidate(digest);
                });
                if let Some(state) = self.state(id) {
                    self.settle_state(&state).await;
                }
            }
            ChangeKind::Project { id } => {
                self.forget(|| self.known.invalidate_all());
                let states: Vec<_> = self
                    .states
                    .iter()
                    .filter(|entry| entry.value().project_id() == id)
                    .map(|entry| Arc::clone(entry.value()))
                    .collect();
                // Project by project first: a thousand tokens must not wait for each other to be cut.
                if let Ok(None | Some(Project { is_active: false, .. })) = self.store.project(id).await {
                    states.iter().for_each(|state| state.cut(CutReason::ProjectInactive));
                }
                for state in states {
                    self.settle_state(&state).await;
                }
            }
        }
    }

    /// Forgets everything and re-reads every token that runs something: after changes were missed.
    pub async fn apply_all(&self) {
        self.forget(|| {
            self.known.invalidate_all();
            self.unknown.invalidate_all();
        });
        let states: Vec<_> = self.states.iter().map(|entry| Arc::clone(entry.value())).collect();
        for state in states {
            self.settle_state(&state).await;
        }
    }

    /// Reads what a token may do now, cuts it where it may nothing, and gives its lease back so that an edited limit
    /// counts from the next request on.
    ///
    /// A store that does not answer is asked again until it does: nothing else would cut what was revoked.
    async fn settle_state(&self, state: &Arc<TokenState>) {
        while let Err(error) = self.try_settle_state(state).await {
            tracing::warn!(%error, "the store could not tell what changed; it is asked again");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.give_back(state).await;
    }

    async fn try_settle_state(&self, state: &TokenState) -> Result<(), StoreError> {
        match self.store.token(state.token_id()).await? {
            Some(token) if token.is_active => match self.store.project(&token.project_id).await? {
                Some(project) if project.is_active => state.set_rate(token.requests_per_minute),
                _ => state.cut(CutReason::ProjectInactive),
            },
            _ => state.cut(CutReason::Revoked),
        }
        Ok(())
    }

    /// Drops something from the caches, so that no read begun before can put it back.
    fn forget(&self, drop_from_caches: impl FnOnce()) {
        let mut generation = self.generation.lock();
        *generation = generation.wrapping_add(1);
        drop_from_caches();
    }

    /// Gives a token's unused lease back to the store.
    async fn give_back(&self, state: &TokenState) {
        let unused = state.surrender();
        if unused > 0
            && let Err(error) = self.store.return_lease(state.token_id(), unused).await
        {
            tracing::warn!(%error, unused, "an unused lease could not be given back: the token falls short by it");
        }
    }

    /// Gives back every unused lease. For the end of the process.
    pub async fn give_back_all(&self) {
        let states: Vec<_> = self.states.iter().map(|entry| Arc::clone(entry.value())).collect();
        for state in states {
            self.give_back(&state).await;
        }
    }

    fn state(&self, token_id: &str) -> Option<Arc<TokenState>> {
        self.states.get(token_id).map(|entry| Arc::clone(entry.value()))
    }

    /// Leases requests for a token from the store.
    ///
    /// # Errors
    /// [`Unavailable`] when the store does not answer within two seconds: a quota fails closed.
    pub async fn lease(&self, state: &Arc<TokenState>) -> Result<u32, Unavailable> {
        let store = self.store.clone();
        let state = Arc::clone(state);
        // Spawned, and credited there: what was granted arrives also when the client has left or nobody waits any more.
        let leasing = self.control.spawn(async move {
            let lease = store.take_lease(state.token_id()).await;
            if let Ok(lease) = &lease {
                state.credit(lease.granted);
            }
            lease
        });
        match tokio::time::timeout(STORE_PATIENCE, leasing).await {
            Ok(Ok(Ok(lease))) => Ok(lease.granted),
            Ok(Ok(Err(error))) => {
                tracing::warn!(%error, "the store could not lease requests");
                Err(Unavailable)
            }
            _ => Err(Unavailable),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::task::Poll;

    use llm_proxy_store::{NewProject, NewToken, RootKey, Token, TokenChange};
    use tempfile::TempDir;
    use tokio::runtime::{Builder, Runtime};
    use tokio_util::sync::CancellationToken;

    use super::super::state::NoPermit;
    use super::*;

    /// Requests of the token, in all and a minute. An eighth of them is the first lease.
    const MAX: u32 = 80;
    const RATE: u32 = 3;

    /// A store with one token, and the tokens in memory above it.
    struct Fixture {
        tokens: Tokens,
        store: Store,
        token: Token,
        digest: TokenDigest,
        _folder: TempDir,
    }

    impl Fixture {
        /// `control` reads the store.
        async fn new(control: Handle) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let url = format!("sqlite:{}", folder.path().join("store.db").display());
            let store = Store::open(&url, &RootKey::generate().unwrap()).await.unwrap();
            let project = NewProject { name: "one".to_owned(), is_active: true, provider_keys: Vec::new() };
            let project = store.create_project(project).await.unwrap();
            let token = NewToken {
                project_id: project.id,
                expires_at_us: i64::MAX,
                max_requests: Some(MAX.into()),
                requests_per_minute: Some(RATE),
                allowed_models: None,
            };
            let (token, secret) = store.create_token(token).await.unwrap();
            let digest = store.pepper().digest(&secret);
            let tokens = Tokens::new(store.clone(), control, CancellationToken::new());
            Self { tokens, store, token, digest, _folder: folder }
        }

        async fn known(&self) -> Arc<Known> {
            self.tokens.find(&self.digest).await.unwrap().unwrap()
        }

        /// What the feed says of the token.
        fn change(&self) -> Change {
            Change { seq: 1, kind: ChangeKind::Token { id: self.token.id.clone(), digest: self.digest } }
        }

        fn project_change(&self) -> Change {
            Change { seq: 1, kind: ChangeKind::Project { id: self.token.project_id.clone() } }
        }

        /// Switches the token, and follows the change.
        async fn switch(&self, is_active: bool) {
            let change = TokenChange { is_active: Some(is_active), ..TokenChange::default() };
            self.store.update_token(&self.token.id, change).await.unwrap().unwrap();
            self.tokens.apply(&self.change()).await;
        }
    }

    #[tokio::test]
    async fn forgetting_a_token_refills_neither_its_rate_nor_its_lease() {
        let fixture = Fixture::new(Handle::current()).await;
        let tokens = &fixture.tokens;
        let first = fixture.known().await;
        first.state.permit(tokens).await.unwrap().spend();
        (0..RATE).for_each(|_| first.state.check_rate().unwrap());
        for everything in [false, true] {
            if everything {
                tokens.known.invalidate_all();
            } else {
                tokens.known.invalidate(&fixture.digest);
            }
            assert!(!tokens.known.contains_key(&fixture.digest), "everything {everything}");
            let again = fixture.known().await;
            assert!(!Arc::ptr_eq(&again, &first), "everything {everything}: it is read again");
            assert!(Arc::ptr_eq(&again.state, &first.state), "everything {everything}: with the limits it had");
            assert!(again.state.check_rate().is_err(), "everything {everything}: the rate came back");
            again.state.permit(tokens).await.unwrap().spend();
        }
        assert_eq!(first.state.surrender(), MAX / 8 - 3, "all three are of the one lease");
    }

    #[tokio::test]
    async fn following_changes_refills_neither_the_rate_nor_the_quota() {
        let fixture = Fixture::new(Handle::current()).await;
        let tokens = &fixture.tokens;
        let first = fixture.known().await;
        (0..RATE).for_each(|_| first.state.check_rate().unwrap());
        let mut spent = 0;
        for way in ["the token", "its project", "anything"] {
            first.state.permit(tokens).await.unwrap().spend();
            spent += 1;
            match way {
                "the token" => tokens.apply(&fixture.change()).await,
                "its project" => tokens.apply(&fixture.project_change()).await,
                _ => tokens.apply_all().await,
            }
            assert!(!tokens.known.contains_key(&fixture.digest), "{way}");
            let again = fixture.known().await;
            assert!(Arc::ptr_eq(&again.state, &first.state), "{way}");
            assert!(again.state.check_rate().is_err(), "{way}: the rate came back");
        }
        loop {
            match first.state.permit(tokens).await {
                Ok(permit) => permit.spend(),
                Err(NoPermit::UsedUp) => break,
                Err(NoPermit::Unavailable) => panic!("the store is there"),
            }
            spent += 1;
        }
        assert_eq!(spent, MAX);
    }

    #[tokio::test]
    async fn a_forgotten_token_is_cut_all_the_same_and_runs_again_only_when_it_is_switched_on() {
        let fixture = Fixture::new(Handle::current()).await;
        let running = fixture.known().await.state.watch();
        fixture.tokens.known.invalidate(&fixture.digest);
        fixture.switch(false).await;
        assert_eq!(running.cut().await, CutReason::Revoked);
        let known = fixture.known().await;
        assert!(!known.holder.token_active && known.state.watch().is_cut(), "to look it up revives nothing");
        fixture.switch(true).await;
        assert!(!fixture.known().await.state.watch().is_cut());
        assert!(running.is_cut(), "what was cut stays cut");
    }

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    /// Lets the runtime go on until none of its tasks is left.
    fn run_out(control: &Runtime) {
        control.block_on(async {
            while control.metrics().num_alive_tasks() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }

    /// Goes on with a search until it waits for something that `control` has not done yet.
    fn poll<T>(main: &Runtime, search: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        main.block_on(async { futures::poll!(search) })
    }

    /// Goes on with a search to its end.
    fn found<T>(main: &Runtime, control: &Runtime, mut search: Pin<&mut impl Future<Output = T>>) -> T {
        loop {
            if let Poll::Ready(found) = poll(main, search.as_mut()) {
                return found;
            }
            run_out(control);
        }
    }

    #[test]
    fn a_read_begun_before_a_revocation_never_revives_the_token() {
        // The store is read in a runtime that goes on only when this test says so.
        let (main, control) = (runtime(), runtime());
        let fixture = main.block_on(Fixture::new(control.handle().clone()));
        let tokens = &fixture.tokens;
        let known = found(&main, &control, pin!(tokens.find(&fixture.digest))).unwrap().unwrap();
        let running = known.state.watch();

        tokens.known.invalidate(&fixture.digest);
        let mut search = pin!(tokens.find(&fixture.digest));
        assert!(poll(&main, search.as_mut()).is_pending());
        // The row of a live token has been read, and nobody has looked at it yet.
        run_out(&control);
        main.block_on(async {
            assert!(fixture.store.revoke_token(&fixture.token.id).await.unwrap());
            tokens.apply(&fixture.change()).await;
        });
        assert!(running.is_cut());

        let known = found(&main, &control, search).unwrap().unwrap();
        assert!(!known.holder.token_active, "what was read before the revocation was believed");
        assert!(known.state.watch().is_cut(), "and revived what it had cut");
        let kept = tokens.known.get(&fixture.digest).unwrap();
        assert!(!kept.holder.token_active, "and was kept");
    }
}
