//! The running limits of one token: its rate, its lease of requests, and the way to cut what it runs.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use super::tokens::Tokens;

/// Why running exchanges are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutReason {
    /// The token was revoked.
    Revoked,
    /// Its project was switched off.
    ProjectInactive,
    /// The drain time is over.
    Shutdown,
}

/// One token's running limits. Made once, kept while the process runs.
pub struct TokenState {
    token_id: Box<str>,
    project_id: Box<str>,
    root: CancellationToken,
    cut: ArcSwap<Cut>,
    rate: ArcSwap<Option<Rate>>,
    /// Held while the rate is edited: what is left of the old limiter is found out by emptying it.
    debt: Mutex<Debt>,
    lease: Mutex<Lease>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

struct Cut {
    token: CancellationToken,
    reason: Mutex<CutReason>,
}

struct Rate {
    per_minute: u32,
    limiter: DefaultDirectRateLimiter,
}

/// Requests that were let through and that the rate now set is too low to remember.
#[derive(Default)]
struct Debt {
    requests: u32,
    /// A limiter forgets what is older than a minute, and so does this.
    until: Option<Instant>,
}

impl Debt {
    fn owed(&self, now: Instant) -> u32 {
        if self.until.is_some_and(|until| now < until) { self.requests } else { 0 }
    }
}

#[derive(Default)]
struct Lease {
    available: u32,
    /// Leased, and not to be used any more: the store gets it back, with the next lease at the latest.
    owed: u32,
    /// The store said that nothing is left; asked again only after a change.
    used_up: bool,
    /// Edits of the token so far. What was leased before the last one was leased under a limit that may be gone: it is
    /// owed, wherever it comes from.
    edits: u64,
}

/// The rate does not let this request through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooFast {
    /// Requests a minute.
    pub limit: u32,
    /// Until the next one passes, in milliseconds.
    pub retry_after_ms: u64,
}

/// Why there is no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPermit {
    /// `max_requests` is used up.
    UsedUp,
    /// The store did not answer.
    Unavailable,
}

impl TokenState {
    /// `root` falls when everything must end.
    pub fn new(token_id: &str, project_id: &str, root: CancellationToken) -> Self {
        let cut = Cut { token: root.child_token(), reason: Mutex::new(CutReason::Shutdown) };
        Self {
            token_id: token_id.into(),
            project_id: project_id.into(),
            root,
            cut: ArcSwap::from_pointee(cut),
            rate: ArcSwap::from_pointee(None),
            debt: Mutex::default(),
            lease: Mutex::default(),
            turn: Arc::default(),
        }
    }

    /// The token's public id.
    pub fn token_id(&self) -> &str {
        &self.token_id
    }

    /// Its project's id.
    pub fn project_id(&self) -> &str {
        &self.project_id
    }

    /// What an exchange watches while it runs.
    pub fn watch(&self) -> Watch {
        Watch(self.cut.load_full())
    }

    /// Cuts everything that runs with this token.
    pub fn cut(&self, reason: CutReason) {
        let cut = self.cut.load();
        *cut.reason.lock() = reason;
        cut.token.cancel();
    }

    /// Lets exchanges run again after a cut.
    pub fn revive(&self) {
        if self.cut.load().token.is_cancelled() && !self.root.is_cancelled() {
            let fresh = Cut { token: self.root.child_token(), reason: Mutex::new(CutReason::Shutdown) };
            self.cut.store(Arc::new(fresh));
        }
    }

    /// Sets the rate. Another rate starts with as many requests spent as the old one had, so that editing refills nothing,
    /// nor does editing to and fro.
    pub fn set_rate(&self, per_minute: Option<u32>) {
        let per_minute = per_minute.and_then(NonZeroU32::new);
        let mut debt = self.debt.lock();
        let old = self.rate.load();
        if old.as_ref().as_ref().map(|rate| rate.per_minute) == per_minute.map(NonZeroU32::get) {
            return;
        }
        let now = Instant::now();
        let spent = old.as_ref().as_ref().map_or(0, |old| old.per_minute.saturating_sub(left(&old.limiter)));
        let spent = spent.saturating_add(debt.owed(now));
        let new = per_minute.map(|per_minute| {
            let limiter = RateLimiter::direct(Quota::per_minute(per_minute).allow_burst(per_minute));
            spend(&limiter, spent.min(per_minute.get()));
            Rate { per_minute: per_minute.get(), limiter }
        });
        let requests = spent.saturating_sub(per_minute.map_or(0, NonZeroU32::get));
        *debt = Debt { requests, until: now.checked_add(MINUTE) };
        self.rate.store(Arc::new(new));
    }

    /// Counts a request against the rate.
    ///
    /// # Errors
    /// [`TooFast`] when the rate is used up for now.
    pub fn check_rate(&self) -> Result<(), TooFast> {
        let rate = self.rate.load();
        let Some(rate) = rate.as_ref() else { return Ok(()) };
        rate.limiter.check().map_err(|not_until| {
            let wait = not_until.wait_time_from(DefaultClock::default().now());
            TooFast {
                limit: rate.per_minute,
                retry_after_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1),
            }
        })
    }

    /// Takes one request of the quota, leasing more from the store where needed.
    ///
    /// # Errors
    /// [`NoPermit`] when nothing is left, or the store does not answer.
    pub async fn permit(self: &Arc<Self>, tokens: &Tokens) -> Result<Permit, NoPermit> {
        match self.take() {
            Some(answer) => answer,
            None => tokens.lease(self).await,
        }
    }

    /// Takes one request of the lease in memory. `None`: the store must be asked.
    pub fn take(self: &Arc<Self>) -> Option<Result<Permit, NoPermit>> {
        let mut lease = self.lease.lock();
        if lease.available > 0 {
            lease.available = lease.available.saturating_sub(1);
            return Some(Ok(Permit { state: Some(Arc::clone(self)), edits: lease.edits }));
        }
        lease.used_up.then_some(Err(NoPermit::UsedUp))
    }

    /// Waits for the turn to ask the store about this token's lease. One asks at a time, so that nobody is told that
    /// nothing is left while a lease is on its way back.
    pub async fn turn(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
    }

    /// The same, where nobody has it.
    pub fn try_turn(&self) -> Option<OwnedMutexGuard<()>> {
        Arc::clone(&self.turn).try_lock_owned().ok()
    }

    /// Takes the unused lease away, as an edit does: it is owed to the store from now on, and that nothing was left is
    /// forgotten. Tells whether anything is owed.
    pub fn surrender(&self) -> bool {
        let mut lease = self.lease.lock();
        let unused = std::mem::take(&mut lease.available);
        lease.owed = lease.owed.saturating_add(unused);
        lease.used_up = false;
        lease.edits = lease.edits.wrapping_add(1);
        lease.owed > 0
    }

    /// Takes what is owed, to give it back to the store: once, and by whoever has the turn. First the number of edits
    /// that [`Self::credit`] wants to hear again.
    pub fn settle(&self) -> (u64, u32) {
        let mut lease = self.lease.lock();
        (lease.edits, std::mem::take(&mut lease.owed))
    }

    /// Adds what the store has granted, by whoever has the turn. 0: nothing is left.
    pub fn credit(&self, edits: u64, granted: u32) {
        let mut lease = self.lease.lock();
        if lease.edits != edits {
            lease.owed = lease.owed.saturating_add(granted);
            return;
        }
        lease.available = lease.available.saturating_add(granted);
        lease.used_up = lease.available == 0;
    }
}

impl std::fmt::Debug for TokenState {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("TokenState").field("token_id", &self.token_id).finish_non_exhaustive()
    }
}

const MINUTE: Duration = Duration::from_secs(60);

/// Rates are at most a million a minute: steps of these powers of two add up to any of them, and no larger one is asked
/// for, because governor computes with the step before it compares.
const STEPS: u32 = 20;

/// How many more requests the limiter would let through. Spends them: for a limiter that is being replaced.
fn left(limiter: &DefaultDirectRateLimiter) -> u32 {
    (0..STEPS).rev().filter_map(|bit| NonZeroU32::new(1u32.wrapping_shl(bit))).fold(0, |sum: u32, step| {
        if matches!(limiter.check_n(step), Ok(Ok(()))) { sum.saturating_add(step.get()) } else { sum }
    })
}

/// Spends `count` requests, or as many as there are.
fn spend(limiter: &DefaultDirectRateLimiter, count: u32) {
    let mut rest = count;
    for bit in (0..STEPS).rev() {
        let step = 1u32.wrapping_shl(bit);
        if step <= rest
            && let Some(step) = NonZeroU32::new(step)
            && matches!(limiter.check_n(step), Ok(Ok(())))
        {
            rest = rest.saturating_sub(step.get());
        }
    }
}

/// One request of a quota. Dropped unused, it goes back to the lease.
#[derive(Debug)]
pub struct Permit {
    /// `None` once it is spent.
    state: Option<Arc<TokenState>>,
    /// The token's edits when it was taken.
    edits: u64,
}

impl Permit {
    /// The request's first byte goes to a provider now: it counts.
    pub fn spend(mut self) {
        self.state = None;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(state) = self.state.take() {
            let mut lease = state.lease.lock();
            let place = if lease.edits == self.edits { &mut lease.available } else { &mut lease.owed };
            *place = place.saturating_add(1);
            lease.used_up = false;
        }
    }
}

/// Tells an exchange that it must end.
#[derive(Clone)]
pub struct Watch(Arc<Cut>);

impl Watch {
    /// Waits for the cut. Cancel safe.
    pub async fn cut(&self) -> CutReason {
        self.0.token.cancelled().await;
        self.reason()
    }

    /// Whether it has come.
    pub fn is_cut(&self) -> bool {
        self.0.token.is_cancelled()
    }

    /// Why.
    pub fn reason(&self) -> CutReason {
        *self.0.reason.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> Arc<TokenState> {
        Arc::new(TokenState::new("t", "p", CancellationToken::new()))
    }

    #[test]
    fn a_rate_allows_the_whole_minutes_number_at_once_and_no_more() {
        let state = state();
        state.set_rate(Some(5));
        assert_eq!((0..8).filter(|_| state.check_rate().is_ok()).count(), 5);
        let TooFast { limit, retry_after_ms } = state.check_rate().unwrap_err();
        assert!(limit == 5 && (1..=12_000).contains(&retry_after_ms), "{retry_after_ms}");
        state.set_rate(None);
        assert!(state.check_rate().is_ok());
    }

    #[test]
    fn editing_a_rate_refills_nothing() {
        let state = state();
        state.set_rate(Some(10));
        (0..6).for_each(|_| state.check_rate().unwrap());
        state.set_rate(Some(10));
        state.set_rate(Some(8));
        assert_eq!((0..8).filter(|_| state.check_rate().is_ok()).count(), 2, "6 of 8 were spent before");
    }

    #[test]
    fn lowering_a_rate_and_raising_it_again_refills_nothing() {
        for low in [1, 4] {
            let state = state();
            state.set_rate(Some(10));
            (0..10).for_each(|_| state.check_rate().unwrap());
            state.set_rate(Some(low));
            assert!(state.check_rate().is_err(), "lowered to {low}");
            state.set_rate(Some(10));
            let passed = (0..10).filter(|_| state.check_rate().is_ok()).count();
            assert_eq!(passed, 0, "10 of 10 were spent before it was lowered to {low} and raised again");
        }
    }

    #[test]
    fn a_rate_taken_away_and_given_again_refills_nothing_within_its_minute() {
        let state = state();
        state.set_rate(Some(10));
        (0..10).for_each(|_| state.check_rate().unwrap());
        state.set_rate(None);
        state.set_rate(Some(10));
        assert!(state.check_rate().is_err());
        let debt = Debt { requests: 5, until: Some(Instant::now()) };
        assert_eq!((debt.owed(Instant::now()), Debt::default().owed(Instant::now())), (0, 0), "a minute later");
    }

    #[tokio::test]
    async fn a_cut_reaches_those_who_watch_and_not_those_after_a_revival() {
        let state = state();
        let watch = state.watch();
        state.cut(CutReason::Revoked);
        assert_eq!(watch.cut().await, CutReason::Revoked);
        assert!(state.watch().is_cut());
        state.revive();
        assert!(!state.watch().is_cut());
        assert!(watch.is_cut(), "what was cut stays cut");
    }

    /// What could be taken now, and what is owed.
    fn books(state: &TokenState) -> (u32, u32) {
        let lease = state.lease.lock();
        (lease.available, lease.owed)
    }

    #[test]
    fn an_unused_permit_goes_back() {
        let state = state();
        state.credit(0, 2);
        let one = state.take().unwrap().unwrap();
        state.take().unwrap().unwrap().spend();
        assert!(state.take().is_none());
        drop(one);
        assert_eq!(books(&state), (1, 0));
    }

    #[test]
    fn that_nothing_is_left_is_believed_until_something_comes_back_or_an_edit_comes() {
        for comes_back in [true, false] {
            let state = state();
            state.credit(0, 1);
            let permit = state.take().unwrap().unwrap();
            state.credit(0, 0);
            assert_eq!(state.take().unwrap().unwrap_err(), NoPermit::UsedUp);
            if comes_back {
                drop(permit);
                assert!(state.take().unwrap().is_ok());
            } else {
                assert!(!state.surrender(), "a permit that is out is owed to nobody yet");
                assert!(state.take().is_none(), "the store must be asked again");
                permit.spend();
            }
        }
    }

    #[test]
    fn what_was_leased_before_an_edit_is_owed_once_and_never_used_after_it() {
        let state = state();
        state.credit(0, 4);
        let [one, two, three] = [(); 3].map(|()| state.take().unwrap().unwrap());
        assert!(state.surrender());
        assert!(state.take().is_none(), "nothing is left to be taken");
        one.spend();
        drop(two);
        assert_eq!(books(&state), (0, 2), "the one that nobody took, and the one that came back");
        let (edits, owed) = state.settle();
        assert_eq!((owed, state.settle().1), (2, 0), "given back once");
        // An edit overtakes the next lease.
        assert!(!state.surrender());
        state.credit(edits, 5);
        assert!(state.take().is_none(), "leased under the limit that was there before");
        state.credit(edits, 0);
        assert!(state.take().is_none(), "nothing was left of the limit that was there before");
        assert_eq!(books(&state), (0, 5));
        state.credit(state.settle().0, 1);
        drop(three);
        assert_eq!(books(&state), (1, 1), "a permit of two edits ago");
    }

    #[tokio::test]
    async fn one_at_a_time_asks_the_store() {
        let state = state();
        let turn = state.turn().await;
        assert!(state.try_turn().is_none());
        drop(turn);
        assert!(state.try_turn().is_some());
    }
}
