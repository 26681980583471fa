//! The loop of one sink that is fed from Redis: read, send, acknowledge.
//!
//! Everything about sending is the dispatcher's: which events go together, when they are tried again, which one is
//! given up (`window`, `breaker`, `dead_letters`). Everything about Redis is the inbox's. Here the two meet, in the order
//! that makes it safe: outcomes come first, then the dead letters reach the disk, then Redis is told. A crash between
//! two of these repeats the batch at hand and loses nothing.

use std::collections::HashMap;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use time::UtcDateTime;
use uuid::Uuid;

use super::books::{Page, Pages};
use super::inbox::Inbox;
use super::stream::{Content, Entry, EntryId};
use crate::dispatcher::{
    Backoff, Body, Breaker, Choice, ConsumerLock, Dead, DeadLetters, Event, Fault, Job, LONGEST_ASKED, Letter, Outcome,
    Permit, Settled, Stop, Window, add,
};
use crate::event::{Exchange, Message};
use crate::sinks::redis::RedisFault;

/// The longest that nothing else is looked at: the order to stop, above all.
const BEAT: Duration = Duration::from_millis(250);
/// Most bytes of dead letters before they are written out.
const MOST_LETTER_BYTES: usize = 1 << 20;
/// Waits after Redis, or the disk, could not be had.
const OWN_BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(5) };

pub(super) struct Feed {
    job: Job,
    inbox: Inbox,
    window: Window,
    breaker: Breaker,
    letters: DeadLetters,
    /// The events in the window, by the numbers that they have there.
    held: HashMap<u64, Held>,
    last_number: u64,
    /// Not before this goes the next call out.
    next_call: Option<Instant>,
    /// Not before this Redis is asked again.
    next_try: Option<Instant>,
    own_failures: u32,
    page: Page,
    pages: Arc<Pages>,
    _lock: ConsumerLock,
}

/// An event in the window.
#[derive(Clone, Copy)]
struct Held {
    entry: EntryId,
    /// Its number in the journal of the host that it comes from.
    seq: u64,
}

/// What the loop does next.
enum Next {
    Call(Vec<usize>),
    Tend(Instant),
    End,
}

/// A step of our own that failed.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Redis(#[from] RedisFault),
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
}

impl Feed {
    pub fn new(job: Job, inbox: Inbox, letters: PathBuf, lock: ConsumerLock, pages: Arc<Pages>) -> Self {
        Self {
            inbox,
            window: Window::new(job.policy.limits, job.policy.max_attempts, 0),
            breaker: Breaker::default(),
            letters: DeadLetters::new(letters),
            held: HashMap::new(),
            last_number: 0,
            next_call: None,
            next_try: None,
            own_failures: 0,
            page: Page::default(),
            pages,
            job,
            _lock: lock,
        }
    }

    /// Delivers until it is stopped, then what was read already, until the deadline.
    pub async fn run(mut self, mut stop: Stop) {
        loop {
            let (now, deadline) = (Instant::now(), stop.deadline());
            self.fill(now);
            let next = self.next(now, deadline);
            self.note();
            let goes_on = match next {
                Next::End => false,
                Next::Call(places) => self.call(&places, &mut stop).await,
                Next::Tend(until) => tokio::select! {
                    () = self.tend(until, deadline.is_some()) => true,
                    () = stop.cut() => false,
                },
            };
            if !goes_on {
                break;
            }
        }
        self.note();
    }

    /// Moves what was read into the window.
    fn fill(&mut self, now: Instant) {
        while self.window.has_room() && self.letters.held_bytes() <= MOST_LETTER_BYTES {
            let Some(entry) = self.inbox.pop() else { return };
            self.take(entry, now);
        }
    }

    fn take(&mut self, entry: Entry, now: Instant) {
        let entry_id = entry.id;
        let (id, seq, time_us, payload) = match entry.content {
            Content::Event { id, seq, time_us, payload } => (id, seq, time_us, payload),
            Content::Gone => {
                add(&mut self.page.dropped, 1);
                return self.inbox.settle(entry_id);
            }
            Content::Foreign => {
                self.bury(Uuid::nil(), 0, format!("entry {entry_id} of the stream holds no event"), Vec::new());
                return self.inbox.settle(entry_id);
            }
        };
        match Exchange::decode(payload.as_slice()) {
            Ok(exchange) if !self.job.policy.filter.keeps(id, &exchange) => {
                add(&mut self.page.left_out, 1);
                self.inbox.settle(entry_id);
            }
            Ok(exchange) => {
                add(&mut self.page.taken, 1);
                // Numbers of several journals are in no order, which the window needs.
                self.last_number = self.last_number.saturating_add(1);
                self.held.insert(self.last_number, Held { entry: entry_id, seq });
                let event = Event { seq: self.last_number, id, time_us, exchange, payload: payload.into() };
                self.window.push(event, now);
            }
            Err(error) => {
                self.bury(id, seq, format!("entry {entry_id} of the stream holds no event: {error}"), payload);
                self.inbox.settle(entry_id);
            }
        }
    }

    /// Puts aside what is no event.
    fn bury(&mut self, id: Uuid, seq: u64, reason: String, payload: Vec<u8>) {
        let letter = Letter { seq, id, reason, attempts: 0, body: Body::Unreadable(payload.into()) };
        self.letters.add(letter, UtcDateTime::now());
    }

    fn next(&self, now: Instant, deadline: Option<Instant>) -> Next {
        let is_ending = deadline.is_some();
        let owes_nothing = !self.inbox.owes() && self.letters.held_bytes() == 0;
        let is_over = |until: Instant| deadline.is_some_and(|deadline| deadline <= until);
        let is_done = owes_nothing && !self.inbox.holds_more() && self.window.waiting() == 0;
        if is_over(now) || (is_ending && is_done) {
            return Next::End;
        }
        let beat = now.checked_add(BEAT).unwrap_or(now);
        // What is not due before the deadline goes out after the next start.
        let pause = |until: Instant| {
            if owes_nothing && is_over(until) { Next::End } else { Next::Tend(until.min(beat)) }
        };
        let most = match self.breaker.permit(now) {
            Permit::NotBefore(until) => return pause(until),
            Permit::Probe => 1,
            Permit::Batch => usize::MAX,
        };
        match self.window.choose(now, most, is_ending) {
            Choice::Empty => Next::Tend(beat),
            Choice::Wait(until) => pause(until),
            Choice::Send(places) => match self.next_call {
                Some(next_call) if next_call > now => pause(next_call),
                _ => Next::Call(places),
            },
        }
    }

    /// Talks with Redis until then, at the longest.
    async fn tend(&mut self, until: Instant, is_ending: bool) {
        if let Some(next_try) = self.next_try.filter(|next_try| *next_try > Instant::now()) {
            return tokio::time::sleep_until(until.min(next_try).into()).await;
        }
        let room = !is_ending && self.window.has_room();
        let tended = match self.flush_letters() {
            Ok(()) => self.inbox.tend(room, until).await.map_err(StepError::from),
            Err(error) => Err(error),
        };
        self.judge(tended);
    }

    /// Dead letters are on disk before Redis forgets their events.
    fn flush_letters(&mut self) -> Result<(), StepError> {
        let (events, unreadable) = self.letters.held();
        if events > 0 || unreadable > 0 {
            let path = self.letters.path().to_owned();
            let at = |source| StepError::Write { path: path.clone(), source };
            let turn = self.letters.take_turn().map_err(at)?;
            self.letters.write(&turn).map_err(at)?;
            add(&mut self.page.dead, events);
            add(&mut self.page.unreadable, unreadable);
        }
        Ok(())
    }

    fn judge(&mut self, outcome: Result<(), StepError>) {
        let Err(error) = outcome else {
            if self.own_failures > 0 {
                tracing::info!(sink = self.job.name, "A sink is fed from Redis again");
                self.page.last_error = None;
            }
            self.own_failures = 0;
            return;
        };
        self.own_failures = self.own_failures.saturating_add(1);
        add(&mut self.page.own_errors, 1);
        if self.own_failures == 1 {
            tracing::warn!(sink = self.job.name, %error, "A sink cannot be fed from Redis, which is tried again");
        }
        self.page.last_error = Some(error.to_string());
        let wait = OWN_BACKOFF.wait(self.own_failures, None, rand::random());
        self.next_try = Instant::now().checked_add(wait);
    }

    /// Sends the events at these places. False if the time to stop came first; what became of them, nobody knows then.
    async fn call(&mut self, places: &[usize], stop: &mut Stop) -> bool {
        self.next_call = Instant::now().checked_add(self.job.policy.pause);
        let (sink, events) = (&*self.job.sink, self.window.events(places));
        let numbers: Vec<u64> = events.iter().map(|event| event.seq).collect();
        let delivery = AssertUnwindSafe(async { sink.deliver(&events).await }).catch_unwind();
        let outcomes = tokio::select! {
            outcomes = delivery => outcomes,
            () = stop.cut() => return false,
            // It never ends.
            () = self.inbox.keep() => return false,
        };
        let outcomes = outcomes.unwrap_or_else(|_| {
            tracing::error!(sink = self.job.name, "A sink has panicked; its events are sent again");
            vec![Outcome::Retry { after: None, fault: Fault::Unclear, reason: "panic".to_owned() }; places.len()]
        });
        let answered = numbers.iter().zip(&outcomes).filter(|(_, outcome)| !matches!(outcome, Outcome::Retry { .. }));
        let mut done: Vec<u64> = answered.map(|(number, _)| *number).collect();
        let now = Instant::now();
        let settled = self.window.settle(places, outcomes, now, rand::random());
        done.extend(settled.dead.iter().map(|dead| dead.event.seq));
        self.book(settled, now);
        for number in done {
            // One that is dead is named twice.
            if let Some(held) = self.held.remove(&number) {
                self.inbox.settle(held.entry);
            }
        }
        self.note();
        tokio::select! {
            () = self.acknowledge() => true,
            () = stop.cut() => false,
        }
    }

    async fn acknowledge(&mut self) {
        if !self.inbox.owes() || self.next_try.is_some_and(|next_try| next_try > Instant::now()) {
            return;
        }
        let acknowledged = match self.flush_letters() {
            Ok(()) => self.inbox.acknowledge().await.map_err(StepError::from),
            Err(error) => Err(error),
        };
        self.judge(acknowledged);
    }

    /// Enters the outcome of a call in the books, and draws the consequences for the next one.
    fn book(&mut self, settled: Settled, now: Instant) {
        let sink = &*self.job.name;
        add(&mut self.page.delivered, settled.delivered);
        add(&mut self.page.duplicates, settled.duplicates);
        add(&mut self.page.retried, settled.retried);
        if let Some(first) = settled.dead.first() {
            let (events, path) = (settled.dead.len(), self.letters.path().display());
            tracing::warn!(sink, events, reason = first.reason, %path, "A sink will never take these events");
        }
        for Dead { mut event, attempts, reason } in settled.dead {
            event.seq = self.held.get(&event.seq).map_or(0, |held| held.seq);
            self.letters.add(Letter::of(Dead { event, attempts, reason }), UtcDateTime::now());
        }
        if settled.got_through {
            if self.breaker.failures() > 0 {
                tracing::info!(sink, "A sink takes events again");
            }
            self.breaker.succeeded();
        }
        if settled.blames_sink {
            let failures = self.breaker.failures().saturating_add(1);
            let wait = self.job.policy.backoff.wait(failures, settled.asked, rand::random());
            self.breaker.failed(now, wait);
            if failures == 1 {
                let reason = settled.reason.as_deref().unwrap_or_default();
                tracing::warn!(sink, reason, "A sink does not take events; they wait in Redis");
            }
        } else if let Some(asked) = settled.asked {
            self.breaker.pause(now, asked.min(LONGEST_ASKED));
        }
        self.page.last_error = settled.reason;
    }

    /// Shows the books as they are between two steps.
    fn note(&mut self) {
        let page = &mut self.page;
        page.waiting = (self.window.waiting() as u64).saturating_add(self.letters.held().0);
        page.lag = self.inbox.lag();
        page.unacknowledged = self.inbox.unacknowledged() as u64;
        page.oldest_us = self.window.oldest_us();
        page.is_failing = self.breaker.failures() > 0 || self.own_failures > 0;
        page.is_down = self.breaker.is_open();
        self.pages.show(page);
    }
}
