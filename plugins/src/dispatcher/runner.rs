//! The loop of one sink: read, send, note, one after the other.
//!
//! Each sink has a thread of its own with a runtime of its own, so that one that is slow, or a disk that is, holds back
//! nobody else; there, reading the journal and syncing files may block. Nothing here decides: what goes out is the
//! window's word, when it may is the breaker's.
//!
//! The order is what makes it safe. Outcomes come first, then the dead letters reach the disk, then the journal does up
//! to there, then the cursor moves, and then the books show it. A crash between two of these repeats the batch at hand
//! and loses nothing.

use std::io;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use time::UtcDateTime;
use tokio::sync::watch;

use super::backoff::Backoff;
use super::books::{Page, Pages, add};
use super::breaker::{Breaker, Permit};
use super::cursor::{self, Cursor};
use super::dead_letters::{self, Body, DeadLetters, Letter};
use super::lock::ConsumerLock;
use super::renew::renew;
use super::sink::{Event, Fault, Outcome, Sink};
use super::window::{Choice, Settled, Window};
use super::{DispatcherError, Job};
use crate::event::{Exchange, Message};
use crate::journal::{Feed, JournalError, Kind, Reader, RecordRef};

/// Between two looks at the journal.
const BEAT: Duration = Duration::from_millis(50);
/// Most records read between two looks at the order to stop.
const MOST_RECORDS: usize = 10_000;
/// Most bytes of dead letters before they are written out.
const MOST_LETTER_BYTES: usize = 1 << 20;
/// How often the cursor is saved where no delivery calls for it.
const SAVE_EVERY: Duration = Duration::from_secs(5);
/// Waits after a step of our own that failed: a disk that is full, a file that cannot be read.
const OWN_BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(5) };

/// The order to stop: when the loop is to have ended.
pub(crate) struct Stop(pub watch::Receiver<Option<Instant>>);

impl Stop {
    /// When to have ended, once that is ordered. Without anybody who could order it: now.
    pub fn deadline(&mut self) -> Option<Instant> {
        let deadline = *self.0.borrow_and_update();
        if self.0.has_changed().is_err() { Some(deadline.unwrap_or_else(Instant::now)) } else { deadline }
    }

    /// Waits until then, or until there is an order.
    pub async fn sleep_until(&mut self, until: Instant) {
        tokio::select! {
            () = tokio::time::sleep_until(until.into()) => {}
            _ = self.0.changed() => {}
        }
    }

    /// Waits until the deadline has passed.
    pub async fn cut(&mut self) {
        loop {
            match self.deadline() {
                Some(deadline) if deadline <= Instant::now() => return,
                Some(deadline) => self.sleep_until(deadline).await,
                None => {
                    let _ = self.0.changed().await;
                }
            }
        }
    }
}

pub(super) struct Runner {
    job: Job,
    feed: Feed,
    reader: Reader,
    /// [`Feed::erasures`] when the events in hand were read.
    erasures: u64,
    window: Window,
    breaker: Breaker,
    letters: DeadLetters,
    cursor_path: PathBuf,
    saved_seq: u64,
    saved_at: Instant,
    /// Events are settled that the saved cursor has not passed.
    is_unsaved: bool,
    /// The number of the next record, where it is known which one that must be.
    next_seq: Option<u64>,
    /// Not before this goes the next call out.
    next_call: Option<Instant>,
    own_failures: u32,
    page: Page,
    pages: Arc<Pages>,
    _lock: ConsumerLock,
}

/// What the loop does next.
enum Next {
    Call(Vec<usize>),
    Pause(Instant),
    End,
}

/// A step of our own that failed.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
}

impl Runner {
    /// Takes the sink's lock in `dir` and goes to its cursor.
    pub fn open(job: Job, dir: &Path, feed: &Feed, pages: Arc<Pages>) -> Result<Self, DispatcherError> {
        let lock = ConsumerLock::take(dir, &job.name)?;
        let cursor_path = cursor::path_in(dir, &job.name);
        let saved = Cursor::load(&cursor_path).map_err(DispatcherError::at("read", &cursor_path))?;
        let saved = saved.filter(|cursor| cursor.journal == feed.id());
        // A journal folder restored from an older copy may end before the cursor.
        let seq = saved.as_ref().map_or(0, |cursor| cursor.seq).min(feed.position());
        if saved.as_ref().is_some_and(|cursor| cursor.seq > seq) {
            // Else the next start would take for delivered what gets the numbers up to there now.
            let back = Cursor { journal: feed.id().to_owned(), seq };
            back.save(&cursor_path).map_err(DispatcherError::at("write", &cursor_path))?;
        }
        let page = Page { passed_seq: seq, saved_seq: seq, ..Page::default() };
        pages.show(&page);
        Ok(Self {
            // Before the first record is read.
            erasures: feed.erasures(),
            reader: feed.reader(seq),
            feed: feed.clone(),
            window: Window::new(job.policy.limits, job.policy.max_attempts, seq),
            breaker: Breaker::default(),
            letters: DeadLetters::new(dead_letters::path_in(dir, &job.name)),
            cursor_path,
            saved_seq: seq,
            saved_at: Instant::now(),
            is_unsaved: false,
            // Without a cursor the oldest record kept is the first one, whatever its number.
            next_seq: saved.map(|_| seq.saturating_add(1)),
            next_call: None,
            own_failures: 0,
            page,
            pages,
            job,
            _lock: lock,
        })
    }

    /// Delivers until it is stopped, then what is in the journal, until the deadline.
    pub async fn run(mut self, mut stop: Stop) {
        loop {
            let (now, deadline) = (Instant::now(), stop.deadline());
            let next = match self.prepare(now) {
                Ok(caught_up) => {
                    self.own_failures = 0;
                    self.next(now, deadline, caught_up)
                }
                Err(error) => self.after_own_failure(&error, now),
            };
            self.note();
            match next {
                Next::End => break,
                Next::Pause(until) if deadline.is_some_and(|deadline| deadline <= until) => break,
                Next::Pause(until) => stop.sleep_until(until).await,
                Next::Call(places) => {
                    if !self.call(&places, &mut stop).await {
                        break;
                    }
                }
            }
        }
        if let Err(error) = self.put_on_disk(true) {
            tracing::warn!(sink = self.job.name, %error, "The last events of a sink may be sent again at the next start");
        }
        self.note();
    }

    /// Brings to disk what was settled and reads on. True if the journal has no more now.
    fn prepare(&mut self, now: Instant) -> Result<bool, StepError> {
        self.put_on_disk(false)?;
        let caught_up = self.gather(now)?;
        self.heed_erasures()?;
        Ok(caught_up)
    }

    /// Where content was erased meanwhile, no event goes out with what it had before.
    fn heed_erasures(&mut self) -> Result<(), JournalError> {
        let erasures = self.feed.erasures();
        if erasures != self.erasures {
            // The reader may hold an old file open, and what it has read ahead.
            self.reader = self.feed.reader(self.reader.last_seq());
            self.window.change(|events| renew(&self.feed, events))?;
            self.erasures = erasures;
        }
        Ok(())
    }

    /// Dead letters, journal, cursor, in this order.
    fn put_on_disk(&mut self, is_last: bool) -> Result<(), StepError> {
        let write = |path: &Path| {
            let path = path.to_owned();
            move |source| StepError::Write { path, source }
        };
        let (events, unreadable) = self.letters.held();
        if events > 0 || unreadable > 0 {
            let path = self.letters.path().to_owned();
            let turn = self.letters.take_turn().map_err(write(&path))?;
            if self.feed.erasures() != self.erasures {
                renew(&self.feed, self.letters.events_mut())?;
            }
            self.letters.write(&turn).map_err(write(&path))?;
            add(&mut self.page.dead, events);
            add(&mut self.page.unreadable, unreadable);
        }
        let seq = self.window.passed();
        let is_due = self.is_unsaved || is_last || self.saved_at.elapsed() >= SAVE_EVERY;
        if seq == self.saved_seq || !is_due {
            return Ok(());
        }
        self.feed.sync_through(seq)?;
        let cursor = Cursor { journal: self.feed.id().to_owned(), seq };
        cursor.save(&self.cursor_path).map_err(write(&self.cursor_path))?;
        self.saved_seq = seq;
        self.saved_at = Instant::now();
        self.is_unsaved = false;
        Ok(())
    }

    /// Fills the window from the journal.
    fn gather(&mut self, now: Instant) -> Result<bool, JournalError> {
        for _ in 0..MOST_RECORDS {
            if !self.window.has_room() || self.letters.held_bytes() > MOST_LETTER_BYTES {
                return Ok(false);
            }
            let Some(record) = self.reader.next_ref()? else { return Ok(true) };
            let missing = self.next_seq.map_or(0, |next_seq| record.seq.saturating_sub(next_seq));
            if missing > 0 {
                add(&mut self.page.dropped, missing);
                let sink = &*self.job.name;
                tracing::warn!(sink, records = missing, "Records left the journal before a sink came to them");
            }
            self.next_seq = Some(record.seq.saturating_add(1));
            self.window.note_read(record.seq);
            if record.kind == Kind::Begin {
                continue;
            }
            match Exchange::decode(record.payload) {
                Ok(exchange) if !self.job.policy.filter.keeps(record.event_id, &exchange) => {
                    add(&mut self.page.left_out, 1);
                }
                Ok(exchange) => {
                    add(&mut self.page.taken, 1);
                    self.window.push(event_of(&record, exchange), now);
                }
                Err(error) => {
                    let letter = Letter {
                        seq: record.seq,
                        id: record.event_id,
                        reason: format!("the record holds no event: {error}"),
                        attempts: 0,
                        body: Body::Unreadable(record.payload.into()),
                    };
                    self.letters.add(letter, UtcDateTime::now());
                }
            }
        }
        Ok(false)
    }

    fn next(&self, now: Instant, deadline: Option<Instant>, caught_up: bool) -> Next {
        let is_ending = deadline.is_some();
        if deadline.is_some_and(|deadline| deadline <= now) || (is_ending && caught_up && self.window.waiting() == 0) {
            return Next::End;
        }
        // With room left, the journal may have more by then.
        let beat = if caught_up { now.checked_add(BEAT).unwrap_or(now) } else { now };
        let pause = |until: Instant| Next::Pause(if self.window.has_room() { until.min(beat) } else { until });
        let most = match self.breaker.permit(now) {
            Permit::NotBefore(until) if is_ending => return Next::Pause(until),
            Permit::NotBefore(until) => return pause(until),
            Permit::Probe => 1,
            Permit::Batch => usize::MAX,
        };
        match self.window.choose(now, most, is_ending) {
            Choice::Empty => pause(beat),
            Choice::Wait(until) => pause(until),
            Choice::Send(places) => match self.next_call {
                Some(next_call) if next_call > now => pause(next_call),
                _ => Next::Call(places),
            },
        }
    }

    /// Sends the events at these places. False if the time to stop came first; what became of them, nobody knows then.
    async fn call(&mut self, places: &[usize], stop: &mut Stop) -> bool {
        self.next_call = Instant::now().checked_add(self.job.policy.pause);
        let events = self.window.events(places);
        let outcomes = tokio::select! {
            outcomes = deliver(&self.job, &events) => outcomes,
            () = stop.cut() => return false,
        };
        let now = Instant::now();
        let settled = self.window.settle(places, outcomes, now, rand::random());
        self.book(settled, now);
        true
    }

    /// Enters the outcome of a call in the books, and draws the consequences for the next one.
    fn book(&mut self, settled: Settled, now: Instant) {
        let sink = &*self.job.name;
        add(&mut self.page.delivered, settled.delivered);
        add(&mut self.page.duplicates, settled.duplicates);
        add(&mut self.page.retried, settled.retried);
        self.is_unsaved |= settled.delivered > 0 || settled.duplicates > 0 || !settled.dead.is_empty();
        if let Some(first) = settled.dead.first() {
            let (events, path) = (settled.dead.len(), self.letters.path().display());
            tracing::warn!(sink, events, reason = first.reason, %path, "A sink will never take these events");
        }
        let failures_before = self.breaker.failures();
        self.breaker.heed(&settled, &self.job.policy.backoff, now, rand::random());
        match (failures_before, self.breaker.failures()) {
            (1.., 0) => tracing::info!(sink, "A sink takes events again"),
            (0, 1..) => {
                let reason = settled.reason.as_deref().unwrap_or_default();
                tracing::warn!(sink, reason, "A sink does not take events; they wait in the journal");
            }
            _ => {}
        }
        for dead in settled.dead {
            self.letters.add(Letter::of(dead), UtcDateTime::now());
        }
        self.page.last_error = settled.reason;
    }

    fn after_own_failure(&mut self, error: &StepError, now: Instant) -> Next {
        self.own_failures = self.own_failures.saturating_add(1);
        add(&mut self.page.own_errors, 1);
        if self.own_failures == 1 {
            tracing::error!(sink = self.job.name, %error, "A sink cannot go on, and tries again");
        }
        self.page.last_error = Some(error.to_string());
        let wait = OWN_BACKOFF.wait(self.own_failures, None, 1.0);
        Next::Pause(now.checked_add(wait).unwrap_or(now))
    }

    /// Shows the books as they are between two steps.
    fn note(&mut self) {
        let page = &mut self.page;
        page.waiting = (self.window.waiting() as u64).saturating_add(self.letters.held().0);
        page.passed_seq = self.window.passed();
        page.saved_seq = self.saved_seq;
        page.oldest_us = self.window.oldest_us().unwrap_or(0);
        page.is_failing = self.breaker.failures() > 0 || self.own_failures > 0;
        page.is_down = self.breaker.is_open();
        self.pages.show(page);
    }
}

/// Makes a call. A sink that panics has delivered nothing that anybody knows of.
pub(super) async fn deliver(job: &Job, events: &[&Event]) -> Vec<Outcome> {
    let sink: &dyn Sink = &*job.sink;
    let delivery = AssertUnwindSafe(async { sink.deliver(events).await }).catch_unwind();
    delivery.await.unwrap_or_else(|_| {
        tracing::error!(sink = job.name, "A sink has panicked; its events are sent again");
        vec![Outcome::Retry { after: None, fault: Fault::Unclear, reason: "panic".to_owned() }; events.len()]
    })
}

fn event_of(record: &RecordRef<'_>, exchange: Exchange) -> Event {
    Event { seq: record.seq, id: record.event_id, time_us: record.time_us, exchange, payload: record.payload.into() }
}
