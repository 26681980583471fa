//! Tokens in memory: who holds one, what it may do, and how long we may believe it.
//!
//! Two maps. [`Tokens::known`] is a cache of store rows and may forget. [`Tokens::states`] is the truth of running
//! limits (rate, lease, what to cut) and outlives the cache, so that evicting or editing a token never refills one.
//!
//! A change is applied in memory alone, from what it says itself ([`Tokens::apply`]): a revocation waits for no store,
//! neither for its own sake nor for that of the changes before it. What it leaves to be done there, leases to be given
//! back, is done behind it ([`Tokens::give_back_edited`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use http::HeaderValue;
use llm_proxy_core::policy::Glob;
use llm_proxy_core::secret::Secret;
use llm_proxy_core::token::TokenDigest;
use llm_proxy_store::{Change, ChangeKind, Holder, Store, StoreError};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Notify, OwnedMutexGuard};
use tokio::time::timeout;

use super::state::{CutReason, NoPermit, Permit, TokenState};

/// The most tokens kept in memory.
const MOST_KNOWN: u64 = 100_000;
/// The most unknown digests remembered, so that guessing costs no store read each; forgotten after ten seconds.
const MOST_UNKNOWN: u64 = 10_000;
/// The longest wait for the store.
const STORE_PATIENCE: Duration = Duration::from_secs(2);
/// How often a read is repeated that changes keep overtaking.
const MOST_READS: u32 = 10;
/// The most leases given back in one transaction: who else wants to write waits for one at most.
const MOST_GIVEN_BACK: usize = 100;

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
    /// The same by project, so that cutting one costs what it has.
    projects: DashMap<Box<str>, Vec<Arc<TokenState>>>,
    flights: DashMap<TokenDigest, Arc<Flight>>,
    /// Raised when everything is forgotten. Held while anything is dropped from the caches or put into them.
    generation: parking_lot::Mutex<u64>,
    /// How often anything was forgotten: [`Tokens::edition`].
    edition: AtomicU64,
    /// Those with leases that edits took away: no more than edits were made since the last were given back.
    edited: parking_lot::Mutex<Vec<Arc<TokenState>>>,
    is_edited: Notify,
}

/// Reads of one digest: one at a time.
#[derive(Default)]
struct Flight {
    turn: Mutex<()>,
    /// The token has changed since the read began: what it brings is not kept. Written with `generation` held.
    is_overtaken: AtomicBool,
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
            projects: DashMap::new(),
            flights: DashMap::new(),
            generation: parking_lot::Mutex::new(0),
            edition: AtomicU64::new(0),
            edited: parking_lot::Mutex::default(),
            is_edited: Notify::new(),
        }
    }

    /// A number that has changed whenever a token may have. What was found after it was read is still what would be
    /// found while it is the same, and asking for it costs a hundredth of looking again.
    pub fn edition(&self) -> u64 {
        self.edition.load(Ordering::Acquire)
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
            let _turn = flight.turn.lock().await;
            match (self.known.get(digest), self.unknown.contains_key(digest)) {
                (Some(known), _) => Ok(Some(known)),
                (None, true) => Ok(None),
                (None, false) => self.read(digest, &flight).await,
            }
        };
        drop(flight);
        self.flights.remove_if(digest, |_, flight| Arc::strong_count(flight) <= 1);
        found
    }

    async fn read(&self, digest: &TokenDigest, flight: &Flight) -> Result<Option<Arc<Known>>, Unavailable> {
        for _ in 0..MOST_READS {
            let before = {
                let generation = self.generation.lock();
                flight.is_overtaken.store(false, Ordering::Relaxed);
                *generation
            };
            let store = self.store.clone();
            let wanted = *digest;
            let reading = self.control.spawn(async move { store.holder(&wanted).await });
            let holder = match timeout(STORE_PATIENCE, reading).await {
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
            if *generation == before && !flight.is_overtaken.load(Ordering::Relaxed) {
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
        let state = Arc::clone(&self.states.entry(holder.token_id.as_str().into()).or_insert_with(|| {
            let state = Arc::new(TokenState::new(&holder.token_id, &holder.project_id, self.cut.clone()));
            self.projects.entry(holder.project_id.as_str().into()).or_default().push(Arc::clone(&state));
            state
        }));
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

    /// Takes note of a change, in memory and at once: forgets what may be stale, cuts what is no longer allowed, and
    /// takes an edited token's lease away, so that another limit counts from the next request on.
    ///
    /// In this order: what is read once a token is forgotten is at least as new as the change, so nothing older revives
    /// what is cut then. And one change after another: a row read meanwhile may be of a later change that allows the
    /// token again. It stands beside a cut that it should have undone, until that change forgets it once more.
    pub fn apply(&self, change: &Change) {
        match &change.kind {
            ChangeKind::Token { id, digest, is_active } => {
                self.forget(digest);
                let Some(state) = self.states.get(id.as_str()).map(|entry| Arc::clone(entry.value())) else { return };
                if !is_active {
                    state.cut(CutReason::Revoked);
                }
                if state.surrender() {
                    self.edited.lock().push(state);
                    self.is_edited.notify_one();
                }
            }
            // The limits are the tokens' own: their leases stay good, and a new name costs no writes.
            ChangeKind::Project { id, is_active } => {
                self.forget_all();
                if !is_active {
                    self.cut_project(id, CutReason::ProjectInactive);
                }
            }
            ChangeKind::TokensRevoked { project_id } => {
                self.forget_all();
                self.cut_project(project_id, CutReason::Revoked);
            }
        }
    }

    /// Reads the changes after this one from the store, a thousand at most, and applies them. Tells the last of them.
    ///
    /// # Errors
    /// When the store does not tell: nothing was applied.
    pub async fn apply_after(&self, seq: u64) -> Result<Option<u64>, StoreError> {
        let changes = self.store.changes_after(seq).await?;
        changes.iter().for_each(|change| self.apply(change));
        Ok(changes.last().map(|change| change.seq))
    }

    /// Whether the store has changes behind this one.
    ///
    /// # Errors
    /// When the store does not tell.
    pub async fn is_behind(&self, seq: u64) -> Result<bool, StoreError> {
        Ok(self.store.change_position().await? > seq)
    }

    /// Drops everything from the caches, so that no read begun before can put anything back.
    pub fn forget_all(&self) {
        let mut generation = self.generation.lock();
        *generation = generation.wrapping_add(1);
        self.known.invalidate_all();
        self.unknown.invalidate_all();
        // Afterwards: whoever found something older has read the number before.
        self.edition.fetch_add(1, Ordering::AcqRel);
    }

    /// The same for one token. Reads of others go on, however fast changes come.
    fn forget(&self, digest: &TokenDigest) {
        let _nothing_is_kept_meanwhile = self.generation.lock();
        if let Some(flight) = self.flights.get(digest) {
            flight.is_overtaken.store(true, Ordering::Relaxed);
        }
        self.known.invalidate(digest);
        self.unknown.invalidate(digest);
        self.edition.fetch_add(1, Ordering::AcqRel);
    }

    fn cut_project(&self, project_id: &str, reason: CutReason) {
        // A copy: whoever brings another token into the project must not wait for the cuts.
        let states = self.projects.get(project_id).map(|entry| entry.value().clone()).unwrap_or_default();
        states.iter().for_each(|state| state.cut(reason));
    }

    /// Waits until edits have taken leases away, and gives these back to the store. Cancel safe: what was taken from
    /// the books reaches the store.
    pub async fn give_back_edited(&self) {
        self.is_edited.notified().await;
        let edited = std::mem::take(&mut *self.edited.lock());
        self.give_back(&edited).await;
    }

    /// Gives back every unused lease. For the end of the process.
    pub async fn give_back_all(&self) {
        let states: Vec<_> = self.states.iter().map(|entry| Arc::clone(entry.value())).collect();
        for state in &states {
            state.surrender();
        }
        self.give_back(&states).await;
    }

    /// Gives back what these owe, many in one transaction.
    async fn give_back(&self, states: &[Arc<TokenState>]) {
        let mut busy = Vec::new();
        for states in states.chunks(MOST_GIVEN_BACK) {
            let (mut unused, mut turns) = (Vec::new(), Vec::new());
            for state in states {
                match state.try_turn() {
                    Some(turn) => {
                        unused.extend(owed(state));
                        turns.push(turn);
                    }
                    None => busy.push(state),
                }
            }
            self.return_leases(&unused).await;
        }
        for state in busy {
            // Alone: who waits for a turn and holds others could wait for ever.
            let _turn = state.turn().await;
            let unused: Vec<_> = owed(state).into_iter().collect();
            self.return_leases(&unused).await;
        }
    }

    async fn return_leases(&self, unused: &[(String, u32)]) {
        if !unused.is_empty()
            && let Err(error) = self.store.return_leases(unused).await
        {
            let tokens = unused.len();
            tracing::warn!(%error, tokens, "unused leases could not be given back: their tokens fall short by them");
        }
    }

    /// Leases requests for a token from the store, and takes one of them.
    ///
    /// # Errors
    /// [`NoPermit`]: nothing is left, or the store does not answer within two seconds, since a quota fails closed.
    pub async fn lease(&self, state: &Arc<TokenState>) -> Result<Permit, NoPermit> {
        let leasing = async {
            let turn = state.turn().await;
            // Whoever had the turn before may have leased enough for all who waited.
            if let Some(answer) = state.take() {
                return answer;
            }
            // Spawned with its turn: what was granted is in the books before the next one asks, also when the client
            // has left or nobody waits any more.
            let leasing = self.control.spawn(lease(self.store.clone(), Arc::clone(state), turn));
            leasing.await.unwrap_or(Err(NoPermit::Unavailable))
        };
        timeout(STORE_PATIENCE, leasing).await.unwrap_or(Err(NoPermit::Unavailable))
    }
}

/// What a token owes the store, for whoever has its turn.
fn owed(state: &TokenState) -> Option<(String, u32)> {
    let (_, unused) = state.settle();
    (unused > 0).then(|| (state.token_id().to_owned(), unused))
}

/// Asks the store until there is a permit, or nothing left. What edits took away goes back in the same transaction: it
/// is part of what can be leased.
async fn lease(store: Store, state: Arc<TokenState>, _turn: OwnedMutexGuard<()>) -> Result<Permit, NoPermit> {
    loop {
        if let Some(answer) = state.take() {
            return answer;
        }
        let (edits, unused) = state.settle();
        match store.renew_lease(state.token_id(), unused).await {
            Ok(lease) => state.credit(edits, lease.granted),
            Err(error) => {
                tracing::warn!(%error, unused, "the store could not lease requests, and what was unused may be lost");
                return Err(NoPermit::Unavailable);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::task::Poll;

    use llm_proxy_store::{ContentPolicy, NewProject, NewToken, ProjectChange, RootKey, Token, TokenChange};
    use tempfile::TempDir;
    use tokio::runtime::{Builder, Runtime};
    use tokio_util::sync::CancellationToken;

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
            let project = NewProject {
                name: "one".to_owned(),
                is_active: true,
                provider_keys: Vec::new(),
                content: ContentPolicy::default(),
            };
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
        fn change(&self, is_active: bool) -> Change {
            Change { seq: 1, kind: ChangeKind::Token { id: self.token.id.clone(), digest: self.digest, is_active } }
        }

        fn project_change(&self, is_active: bool) -> Change {
            Change { seq: 1, kind: ChangeKind::Project { id: self.token.project_id.clone(), is_active } }
        }

        /// Switches the token, and follows the change.
        async fn switch(&self, is_active: bool) {
            let change = TokenChange { is_active: Some(is_active), ..TokenChange::default() };
            self.store.update_token(&self.token.id, change).await.unwrap().unwrap();
            self.tokens.apply(&self.change(is_active));
        }

        /// Sets the limit, and follows the change.
        async fn limit(&self, max_requests: u64) {
            let change = TokenChange { max_requests: Some(Some(max_requests)), ..TokenChange::default() };
            self.store.update_token(&self.token.id, change).await.unwrap().unwrap();
            self.tokens.apply(&self.change(true));
        }

        /// Spends what is left, and counts it.
        async fn spend_all(&self, state: &Arc<TokenState>) -> u32 {
            let mut spent = 0;
            loop {
                match state.permit(&self.tokens).await {
                    Ok(permit) => permit.spend(),
                    Err(NoPermit::UsedUp) => return spent,
                    Err(NoPermit::Unavailable) => panic!("the store is there"),
                }
                spent += 1;
            }
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
        assert!(first.state.surrender());
        assert_eq!(first.state.settle().1, MAX / 8 - 3, "all three are of the one lease");
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
                "the token" => tokens.apply(&fixture.change(true)),
                "its project" => tokens.apply(&fixture.project_change(true)),
                _ => assert_eq!(tokens.apply_after(0).await.unwrap(), Some(2), "both are made"),
            }
            assert!(!tokens.known.contains_key(&fixture.digest), "{way}");
            let again = fixture.known().await;
            assert!(Arc::ptr_eq(&again.state, &first.state), "{way}");
            assert!(again.state.check_rate().is_err(), "{way}: the rate came back");
        }
        spent += fixture.spend_all(&first.state).await;
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

    #[tokio::test]
    async fn an_edit_gives_its_lease_back_behind_itself_and_a_renamed_project_writes_nothing() {
        let fixture = Fixture::new(Handle::current()).await;
        let tokens = &fixture.tokens;
        let state = Arc::clone(&fixture.known().await.state);
        state.permit(tokens).await.unwrap().spend();
        let rename = ProjectChange { name: Some("two".to_owned()), ..ProjectChange::default() };
        fixture.store.update_project(&fixture.token.project_id, rename).await.unwrap().unwrap();
        tokens.apply(&fixture.project_change(true));
        assert_eq!(state.settle().1, 0, "the lease stays good");
        tokens.apply(&fixture.change(true));
        tokens.give_back_edited().await;
        assert_eq!(state.settle().1, 0, "nothing is owed any more");
        let remaining = u64::from(MAX) - 1;
        let lease = fixture.store.renew_lease(&fixture.token.id, 0).await.unwrap();
        assert_eq!(lease.remaining_after + u64::from(lease.granted), remaining, "all but the one that is spent");
    }

    #[tokio::test]
    async fn an_edited_limit_counts_from_the_next_request_on_with_nothing_given_back_yet() {
        let fixture = Fixture::new(Handle::current()).await;
        let state = Arc::clone(&fixture.known().await.state);
        // All ten of the lease are granted, and one is spent.
        state.permit(&fixture.tokens).await.unwrap().spend();
        let out = state.permit(&fixture.tokens).await.unwrap();
        for (limit, left) in [(3, 1), (3, 0), (8, 5), (2, 0), (9, 1)] {
            fixture.limit(limit).await;
            assert_eq!(fixture.spend_all(&state).await, left, "{limit}");
        }
        drop(out);
        assert_eq!(fixture.spend_all(&state).await, 1, "a permit of a limit long gone comes back as one request");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn edits_among_requests_neither_lose_one_nor_make_one() {
        let fixture = Arc::new(Fixture::new(Handle::current()).await);
        let state = Arc::clone(&fixture.known().await.state);
        let giving = Arc::clone(&fixture);
        let giving = tokio::spawn(async move {
            loop {
                giving.tokens.give_back_edited().await;
            }
        });
        let clients: Vec<_> = (0..8)
            .map(|client| {
                let (fixture, state) = (Arc::clone(&fixture), Arc::clone(&state));
                tokio::spawn(async move {
                    let mut spent = 0;
                    for request in 0..12 {
                        if request % 3 == client % 3 {
                            fixture.tokens.apply(&fixture.change(true));
                        }
                        match state.permit(&fixture.tokens).await {
                            Ok(permit) if request % 4 == 0 => drop(permit),
                            Ok(permit) => {
                                permit.spend();
                                spent += 1;
                            }
                            Err(no) => assert_eq!(no, NoPermit::UsedUp),
                        }
                    }
                    spent
                })
            })
            .collect();
        let mut spent = 0;
        for client in clients {
            spent += client.await.unwrap();
        }
        assert_eq!(spent + fixture.spend_all(&state).await, MAX);
        giving.abort();
    }

    #[tokio::test]
    async fn the_end_gives_every_unused_lease_back() {
        let fixture = Fixture::new(Handle::current()).await;
        let state = Arc::clone(&fixture.known().await.state);
        state.permit(&fixture.tokens).await.unwrap().spend();
        let turn = state.turn().await;
        tokio::join!(fixture.tokens.give_back_all(), async {
            // Somebody asks the store meanwhile: it is waited for.
            tokio::task::yield_now().await;
            drop(turn);
        });
        let lease = fixture.store.renew_lease(&fixture.token.id, 0).await.unwrap();
        assert_eq!(lease.remaining_after + u64::from(lease.granted), u64::from(MAX) - 1);
    }

    /// A row of a token that no store has, and the key under which it is kept.
    fn row(project_id: &str, token: usize) -> (TokenDigest, Holder) {
        let mut octets = [0; 32];
        octets[..8].copy_from_slice(&token.to_be_bytes());
        let holder = Holder {
            token_id: format!("{project_id}-{token}"),
            project_id: project_id.to_owned(),
            token_active: true,
            project_active: true,
            expires_at_us: i64::MAX,
            max_requests: None,
            requests_per_minute: None,
            allowed_models: None,
            provider_keys: Vec::new(),
            content: ContentPolicy::default(),
        };
        (TokenDigest::from_bytes(octets), holder)
    }

    #[tokio::test]
    async fn revoking_thousands_cuts_them_all_and_nobody_else_before_anything_else_is_done() {
        const MANY: usize = 5_000;
        let project_id = "many".to_owned();
        for (kind, reason) in [
            (ChangeKind::TokensRevoked { project_id: project_id.clone() }, CutReason::Revoked),
            (ChangeKind::Project { id: project_id, is_active: false }, CutReason::ProjectInactive),
        ] {
            let fixture = Fixture::new(Handle::current()).await;
            let tokens = &fixture.tokens;
            // What follows is in memory: a store that is gone delays nothing.
            let other = fixture.known().await.state.watch();
            fixture.store.close().await;
            let watches: Vec<_> = (0..MANY)
                .map(|token| {
                    let (digest, holder) = row("many", token);
                    let known = Arc::new(tokens.known_of(holder));
                    tokens.known.insert(digest, Arc::clone(&known));
                    known.state.watch()
                })
                .collect();
            tokens.apply(&Change { seq: 1, kind });
            assert!(watches.iter().all(|watch| watch.is_cut() && watch.reason() == reason));
            assert!((0..MANY).all(|token| !tokens.known.contains_key(&row("many", token).0)));
            assert!(!other.is_cut());
            tokens.apply(&fixture.change(false));
            assert!(other.is_cut());
        }
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
        });
        tokens.apply(&fixture.change(false));
        assert!(running.is_cut());

        let known = found(&main, &control, search).unwrap().unwrap();
        assert!(!known.holder.token_active, "what was read before the revocation was believed");
        assert!(known.state.watch().is_cut(), "and revived what it had cut");
        let kept = tokens.known.get(&fixture.digest).unwrap();
        assert!(!kept.holder.token_active, "and was kept");
    }

    #[test]
    fn changes_of_other_tokens_overtake_no_read() {
        let (main, control) = (runtime(), runtime());
        let fixture = main.block_on(Fixture::new(control.handle().clone()));
        let tokens = &fixture.tokens;
        let mut search = pin!(tokens.find(&fixture.digest));
        assert!(poll(&main, search.as_mut()).is_pending());
        run_out(&control);
        let (digest, holder) = row("other", 1);
        let kind = ChangeKind::Token { id: holder.token_id, digest, is_active: true };
        tokens.apply(&Change { seq: 1, kind });
        assert!(poll(&main, search.as_mut()).is_ready(), "it was read again for nothing");
    }
}
