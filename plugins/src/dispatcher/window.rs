//! The events between a sink's cursor and the last record read: which of them go out next, and what their outcomes
//! change.
//!
//! The window has room for one batch. What is delivered in it while an older event still waits would be sent again
//! after a crash, so its size is the promise: at most one batch is repeated (and one event more, where that was read to
//! judge another). Everything here is decided from arguments, time and dice included.
//!
//! A receiver that breaks at one event looks like one that is broken. What tells them apart is what happens to others:
//! * After a second call that got nothing through, its events go in groups half as large, down to one. So good events
//!   get past a bad one within a few calls. The first repetition is the same call: a receiver that has taken it, and
//!   whose answer was lost, can recognise it.
//! * An event is given up when it has failed alone a number of times *after* others got through, and nothing else has
//!   failed since. While nothing gets through, nothing is ever given up, however long that lasts.
//! * Where every event that waits has failed alone, one more is read, to see whether it gets through. Only when that
//!   does not tell either (more than a batch of bad events in a row looks like an outage) are failures counted
//!   without it, and then the breaker spaces them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::backoff::Backoff;
use super::sink::{Event, Fault, Outcome};

/// Waits between attempts at an event that others get past. Short, because it holds the cursor back.
const SUSPECT_BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), longest: Duration::from_millis(250) };

/// How much is sent at once, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most events in a batch; above zero.
    pub events: usize,
    /// Most bytes of events in a batch, as they stand in the journal; above zero. A larger event goes alone.
    pub bytes: usize,
    /// The longest that an event waits for others to fill its batch.
    pub age: Duration,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Send the events at these places.
    Send(Vec<usize>),
    /// Nothing is due before this.
    Wait(Instant),
    /// No event waits.
    Empty,
}

/// What the outcomes of a call came to.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Settled {
    pub delivered: u64,
    pub duplicates: u64,
    pub retried: u64,
    pub dead: Vec<Dead>,
    /// The receiver took a decision on at least one event, so it is up.
    pub got_through: bool,
    /// Nothing got through, and not by the fault of an event that others get past.
    pub blames_sink: bool,
    /// The longest wait that was asked for.
    pub asked: Option<Duration>,
    /// Why the first of the events that are to be sent again was not taken.
    pub reason: Option<String>,
}

/// An event that is given up.
#[derive(Clone, Debug, PartialEq)]
pub struct Dead {
    /// The event.
    pub event: Event,
    /// How often it was sent.
    pub attempts: u32,
    /// Why, for people.
    pub reason: String,
}

pub(crate) struct Window {
    limits: Limits,
    max_attempts: u32,
    /// In the order of the journal. The first one always waits; settled ones behind it keep their places.
    entries: VecDeque<Entry>,
    waiting: usize,
    waiting_bytes: usize,
    /// The last record read, event or not.
    read_seq: u64,
    /// Most events in the next call.
    share: usize,
    /// Calls that got something through.
    successes: u64,
    failing: Failing,
}

/// What has failed since something got through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failing {
    Nothing,
    /// The event with this number, alone.
    One(u64),
    /// More than one event: the sink is in doubt.
    Several,
}

struct Entry {
    seq: u64,
    /// `None` once it is settled.
    event: Option<Event>,
    taken_at: Instant,
    attempts: u32,
    /// Attempts that failed alone after others had got through.
    strikes: u32,
    /// [`Window::successes`] before the first failure.
    successes_before: Option<u64>,
    /// It has failed alone, or among others that got through.
    alone: bool,
    /// Most events in a call that has this one in it.
    group: usize,
    not_before: Option<Instant>,
}

impl Entry {
    fn waits(&self) -> bool {
        self.event.is_some()
    }

    /// Whether others have got through where this one did not.
    fn is_suspect(&self, successes: u64) -> bool {
        self.successes_before.is_some_and(|before| successes > before)
    }

    /// Lower goes first: what is new, what has failed in company, what has failed alone; of these what failed least.
    fn rank(&self) -> (bool, u32) {
        (self.alone, self.attempts)
    }
}

impl Window {
    /// An empty window after record `seq`.
    pub fn new(limits: Limits, max_attempts: u32, seq: u64) -> Self {
        Self {
            limits,
            max_attempts,
            entries: VecDeque::new(),
            waiting: 0,
            waiting_bytes: 0,
            read_seq: seq,
            share: limits.events.max(1),
            successes: 0,
            failing: Failing::Nothing,
        }
    }

    /// Whether another event may be read: the batch is not full, or one more would show whether the sink is up.
    pub fn has_room(&self) -> bool {
        let has_place = self.entries.len() < self.limits.events && self.waiting_bytes < self.limits.bytes;
        has_place || (self.entries.len() <= self.limits.events && self.needs_proof())
    }

    /// Whether only events wait that have failed alone, and nothing says that they are to blame.
    fn needs_proof(&self) -> bool {
        let waiting = || self.entries.iter().filter(|entry| entry.waits());
        let is_in_doubt = self.failing == Failing::Several;
        self.waiting > 0
            && waiting().all(|entry| entry.alone)
            && waiting().any(|entry| is_in_doubt || !entry.is_suspect(self.successes))
    }

    /// Adds the next event of the journal.
    pub fn push(&mut self, event: Event, now: Instant) {
        self.push_as(event.seq, event, now);
    }

    /// Adds an event under another number than it has in the journal, larger than those before it.
    pub fn push_as(&mut self, seq: u64, event: Event, now: Instant) {
        self.waiting = self.waiting.saturating_add(1);
        self.waiting_bytes = self.waiting_bytes.saturating_add(event.payload.len());
        self.note_read(seq);
        self.entries.push_back(Entry {
            seq,
            event: Some(event),
            taken_at: now,
            attempts: 0,
            strikes: 0,
            successes_before: None,
            alone: false,
            group: usize::MAX,
            not_before: None,
        });
    }

    /// Records up to `seq` have been read; those that were no event for this sink need nothing.
    pub fn note_read(&mut self, seq: u64) {
        self.read_seq = self.read_seq.max(seq);
    }

    /// The last record up to which nothing waits: where the cursor may stand.
    pub fn passed(&self) -> u64 {
        self.entries.front().map_or(self.read_seq, |first| first.seq.saturating_sub(1))
    }

    /// Events that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// When the oldest event that waits was written, in microseconds since the Unix epoch.
    pub fn oldest_us(&self) -> Option<i64> {
        self.entries.front().and_then(|first| first.event.as_ref()).map(|event| event.time_us)
    }

    /// Chooses the next call. `most` is how many events it may have; with `flush` no event waits for others.
    pub fn choose(&self, now: Instant, most: usize, flush: bool) -> Choice {
        let fills_until = if flush { None } else { self.fills_until(now) };
        let judged = self.judged();
        // While one event is being judged, others that have failed alone would only blur the picture.
        let is_held = |entry: &Entry| entry.alone && judged.is_some_and(|judged| judged != entry.seq);
        let due = |entry: &Entry| if entry.attempts > 0 { entry.not_before } else { fills_until };
        let is_ready = |entry: &&Entry| entry.waits() && !is_held(entry) && due(entry).is_none_or(|due| due <= now);
        let Some(rank) = self.entries.iter().filter(is_ready).map(Entry::rank).min() else {
            let waiting = self.entries.iter().filter(|entry| entry.waits() && !is_held(entry));
            return waiting.filter_map(due).min().map_or(Choice::Empty, Choice::Wait);
        };
        let mut most = self.share.min(most).max(1);
        let mut chosen = Vec::with_capacity(most.min(self.waiting));
        let mut bytes: usize = 0;
        for (place, entry) in self.entries.iter().enumerate() {
            if !is_ready(&entry) || entry.rank() != rank {
                continue;
            }
            most = most.min(entry.group);
            bytes = bytes.saturating_add(entry.event.as_ref().map_or(0, |event| event.payload.len()));
            if chosen.len() >= most || (bytes > self.limits.bytes && !chosen.is_empty()) {
                break;
            }
            chosen.push(place);
        }
        Choice::Send(chosen)
    }

    /// The event that is being judged: it alone fails while others get through.
    fn judged(&self) -> Option<u64> {
        let Failing::One(seq) = self.failing else { return None };
        let entry = self.entries.iter().find(|entry| entry.seq == seq)?;
        (entry.waits() && entry.is_suspect(self.successes)).then_some(seq)
    }

    /// Until when events that have not been sent yet wait for more of them; `None`: no longer.
    fn fills_until(&self, now: Instant) -> Option<Instant> {
        if self.waiting >= self.limits.events || !self.has_room() {
            return None;
        }
        let oldest = self.entries.iter().find(|entry| entry.waits() && entry.attempts == 0)?;
        oldest.taken_at.checked_add(self.limits.age).filter(|due| *due > now)
    }

    /// The events at these places.
    pub fn events(&self, places: &[usize]) -> Vec<&Event> {
        places.iter().filter_map(|place| self.entries.get(*place)?.event.as_ref()).collect()
    }

    /// Lets `change` do something with the events that wait.
    pub fn change<T>(&mut self, change: impl FnOnce(&mut dyn Iterator<Item = &mut Event>) -> T) -> T {
        let changed = change(&mut self.entries.iter_mut().filter_map(|entry| entry.event.as_mut()));
        let waiting = self.entries.iter().filter_map(|entry| entry.event.as_ref());
        self.waiting_bytes = waiting.fold(0, |bytes, event| bytes.saturating_add(event.payload.len()));
        changed
    }

    /// Takes the outcomes of a call with the events at `places`. Outcomes that are missing are failures. `dice` is a
    /// number between 0 and 1.
    pub fn settle(&mut self, places: &[usize], outcomes: Vec<Outcome>, now: Instant, dice: f64) -> Settled {
        let has_failed = |place: &usize| self.entries.get(*place).is_some_and(|entry| entry.attempts > 0);
        let call = Call {
            events: places.len(),
            is_repeated: places.iter().all(has_failed),
            got_through: outcomes.iter().any(|outcome| !matches!(outcome, Outcome::Retry { .. })),
            // With one event more than a batch, and that one failed too, there is no further proof to be had.
            is_last_word: self.entries.len() > self.limits.events,
            now,
            dice,
        };
        self.note_call(&call, places);
        let mut settled = Settled { got_through: call.got_through, ..Settled::default() };
        let mut outcomes = outcomes.into_iter();
        for place in places {
            let outcome = outcomes.next().unwrap_or_else(|| Outcome::Retry {
                after: None,
                fault: Fault::Unclear,
                reason: "the sink said nothing of it".to_owned(),
            });
            self.settle_one(*place, outcome, &call, &mut settled);
        }
        if settled.got_through {
            self.share = self.share.saturating_mul(2).min(self.limits.events.max(1));
        } else if settled.blames_sink && call.is_repeated {
            self.share = (call.events / 2).max(1);
        }
        while self.entries.front().is_some_and(|first| !first.waits()) {
            self.entries.pop_front();
        }
        settled
    }

    fn note_call(&mut self, call: &Call, places: &[usize]) {
        let alone = match places {
            [place] => self.entries.get(*place).map(|entry| entry.seq),
            _ => None,
        };
        self.failing = match (call.got_through, alone, self.failing) {
            (true, _, _) => Failing::Nothing,
            (false, Some(seq), Failing::Nothing) => Failing::One(seq),
            (false, Some(seq), Failing::One(failing)) if seq == failing => Failing::One(seq),
            _ => Failing::Several,
        };
        if call.got_through {
            self.successes = self.successes.saturating_add(1);
        }
    }

    fn settle_one(&mut self, place: usize, outcome: Outcome, call: &Call, settled: &mut Settled) {
        let (successes, failing, max_attempts) = (self.successes, self.failing, self.max_attempts);
        let Some(entry) = self.entries.get_mut(place).filter(|entry| entry.waits()) else { return };
        entry.attempts = entry.attempts.saturating_add(1);
        let given_up = match outcome {
            Outcome::Delivered => {
                settled.delivered = settled.delivered.saturating_add(1);
                None
            }
            Outcome::Duplicate => {
                settled.duplicates = settled.duplicates.saturating_add(1);
                None
            }
            Outcome::Poison { reason } => Some(reason),
            Outcome::Retry { after, fault, reason } => {
                let blame = entry.fail(fault, call, successes, failing);
                if entry.strikes < max_attempts {
                    settled.retried = settled.retried.saturating_add(1);
                    settled.asked = settled.asked.max(after);
                    settled.blames_sink |= blame == Blame::Sink;
                    settled.reason.get_or_insert(reason);
                    return;
                }
                Some(format!("failed {} times alone while others got through: {reason}", entry.strikes))
            }
        };
        let attempts = entry.attempts;
        let Some(event) = entry.event.take() else { return };
        self.waiting = self.waiting.saturating_sub(1);
        self.waiting_bytes = self.waiting_bytes.saturating_sub(event.payload.len());
        settled.dead.extend(given_up.map(|reason| Dead { event, attempts, reason }));
    }
}

/// What there is to know of a call beside the outcomes.
struct Call {
    events: usize,
    /// All of its events have failed before.
    is_repeated: bool,
    got_through: bool,
    is_last_word: bool,
    now: Instant,
    dice: f64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Blame {
    Event,
    Sink,
}

impl Entry {
    /// Notes a failure, and says whom it speaks against.
    fn fail(&mut self, fault: Fault, call: &Call, successes: u64, failing: Failing) -> Blame {
        // Others that got through in the same call count as having done so where this one did not.
        self.successes_before.get_or_insert(successes.saturating_sub(u64::from(call.got_through)));
        let is_only_one = failing == Failing::One(self.seq);
        let is_alone = call.got_through || (call.events == 1 && (is_only_one || call.is_last_word));
        let is_strike = fault == Fault::Unclear && is_alone && self.is_suspect(successes);
        self.strikes = self.strikes.saturating_add(u32::from(is_strike));
        if call.events == 1 || (call.got_through && fault == Fault::Unclear) {
            (self.alone, self.group) = (true, 1);
        } else if !call.got_through && call.is_repeated {
            self.group = (call.events / 2).max(1);
        }
        let is_the_events = call.got_through || (is_strike && is_only_one);
        // Where the sink is to blame, the breaker says when to go on.
        self.not_before = if is_the_events {
            call.now.checked_add(SUSPECT_BACKOFF.wait(self.attempts, None, call.dice))
        } else {
            None
        };
        if is_the_events { Blame::Event } else { Blame::Sink }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::event::Exchange;

    const LIMITS: Limits = Limits { events: 4, bytes: 1_000, age: Duration::from_secs(1) };
    const ATTEMPTS: u32 = 3;

    fn event(seq: u64, bytes: usize) -> Event {
        let id = Uuid::from_u128(seq.into());
        Event { seq, id, time_us: 0, exchange: Exchange::default(), payload: vec![0; bytes].into() }
    }

    fn window(seqs: impl IntoIterator<Item = u64>, now: Instant) -> Window {
        let mut window = Window::new(LIMITS, ATTEMPTS, 0);
        for seq in seqs {
            window.push(event(seq, 10), now);
        }
        window
    }

    fn retry(fault: Fault) -> Outcome {
        Outcome::Retry { after: None, fault, reason: "no".to_owned() }
    }

    fn seqs(window: &Window, choice: &Choice) -> Vec<u64> {
        match choice {
            Choice::Send(places) => window.events(places).iter().map(|event| event.seq).collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn a_batch_is_due_when_it_is_full_or_old_or_flushed() {
        let now = Instant::now();
        let due = now + LIMITS.age;
        assert_eq!(window([], now).choose(now, 9, true), Choice::Empty);
        let part = window([2, 4], now);
        assert_eq!(part.choose(now, 9, false), Choice::Wait(due));
        assert_eq!(part.choose(due, 9, false), Choice::Send(vec![0, 1]));
        assert_eq!(part.choose(now, 9, true), Choice::Send(vec![0, 1]));
        assert_eq!(part.choose(now, 1, true), Choice::Send(vec![0]));
        let full = window([2, 4, 6, 8], now);
        assert!(!full.has_room());
        assert_eq!(full.choose(now, 9, false), Choice::Send(vec![0, 1, 2, 3]));
    }

    #[test]
    fn bytes_bound_a_batch_and_a_larger_event_goes_alone() {
        let now = Instant::now();
        let mut window = Window::new(LIMITS, ATTEMPTS, 0);
        for (seq, bytes) in [(1, 400), (2, 500), (3, 5_000)] {
            assert!(window.has_room());
            window.push(event(seq, bytes), now);
        }
        assert!(!window.has_room());
        for expected in [vec![1, 2], vec![3]] {
            let choice = window.choose(now, 9, false);
            assert_eq!(seqs(&window, &choice), expected);
            let Choice::Send(places) = choice else { panic!("nothing to send") };
            window.settle(&places, vec![Outcome::Delivered; places.len()], now, 0.0);
        }
        assert_eq!((window.waiting(), window.passed()), (0, 3));
    }

    #[test]
    fn events_that_became_smaller_make_room() {
        let now = Instant::now();
        let mut window = Window::new(LIMITS, ATTEMPTS, 0);
        (1..=2).for_each(|seq| window.push(event(seq, 500), now));
        assert!(!window.has_room());
        window.change(|events| events.for_each(|event| event.payload = Box::default()));
        assert!(window.has_room());
        window.settle(&[0, 1], vec![Outcome::Delivered; 2], now, 0.0);
        (3..=4).for_each(|seq| window.push(event(seq, 499), now));
        assert!(window.has_room());
    }

    #[test]
    fn the_cursor_stands_before_the_oldest_event_that_waits() {
        let now = Instant::now();
        let mut window = window([2, 4, 6], now);
        window.note_read(9);
        assert_eq!(window.passed(), 1);
        let outcomes = vec![Outcome::Delivered, retry(Fault::Sink), Outcome::Duplicate];
        let settled = window.settle(&[0, 1, 2], outcomes, now, 0.0);
        assert_eq!((settled.delivered, settled.duplicates, settled.retried), (1, 1, 1));
        assert_eq!((window.passed(), window.waiting()), (3, 1));
        window.settle(&[0], vec![Outcome::Poison { reason: "never".to_owned() }], now, 0.0);
        assert_eq!((window.passed(), window.waiting()), (9, 0));
    }

    #[test]
    fn an_outcome_that_is_missing_is_a_failure() {
        let now = Instant::now();
        let mut window = window([1, 2], now);
        let settled = window.settle(&[0, 1], vec![Outcome::Delivered], now, 0.0);
        assert_eq!((settled.delivered, settled.retried, window.passed()), (1, 1, 1));
    }

    #[test]
    fn while_nothing_gets_through_nothing_is_given_up_and_calls_shrink_to_one() {
        let mut now = Instant::now();
        let mut window = window([1, 2, 3, 4], now);
        let mut sizes = Vec::new();
        for _ in 0..500 {
            now += Duration::from_secs(60);
            let Choice::Send(places) = window.choose(now, 9, true) else { panic!("nothing to send") };
            sizes.push(places.len());
            let settled = window.settle(&places, vec![retry(Fault::Unclear); places.len()], now, 0.0);
            assert!(settled.blames_sink && settled.dead.is_empty());
        }
        assert_eq!(sizes[..7], [4, 4, 2, 1, 1, 1, 1]);
        assert_eq!((window.waiting(), window.passed()), (4, 0));
        // And back up, once the receiver is there again. What failed alone goes alone.
        let mut sizes = Vec::new();
        for seq in 5..30 {
            let Choice::Send(places) = window.choose(now, 9, true) else { break };
            sizes.push(places.len());
            window.settle(&places, vec![Outcome::Delivered; places.len()], now, 0.0);
            if seq >= 8 {
                window.push(event(seq, 10), now);
                window.push(event(100 + seq, 10), now);
            }
        }
        assert_eq!(sizes[..6], [1, 1, 1, 1, 2, 2]);
    }

    /// Runs calls of at most `LIMITS.events` events, of 60 in all, against a receiver that breaks at the `bad` ones.
    /// Returns the calls made and the dead.
    fn run_against(bad: &[u64], fault: Fault, calls: usize) -> (Vec<Vec<u64>>, Vec<u64>) {
        let mut now = Instant::now();
        let mut window = Window::new(LIMITS, ATTEMPTS, 0);
        let (mut made, mut dead, mut next) = (Vec::new(), Vec::new(), 1);
        for _ in 0..calls {
            while window.has_room() && next <= 60 {
                window.push(event(next, 10), now);
                next += 1;
            }
            match window.choose(now, 9, true) {
                Choice::Send(places) => {
                    let sent: Vec<_> = window.events(&places).iter().map(|event| event.seq).collect();
                    let breaks = sent.iter().any(|seq| bad.contains(seq));
                    let outcome = if breaks { retry(fault) } else { Outcome::Delivered };
                    let settled = window.settle(&places, vec![outcome; places.len()], now, 0.5);
                    dead.extend(settled.dead.iter().map(|dead| dead.event.seq));
                    made.push(sent);
                }
                Choice::Wait(until) => now = until,
                Choice::Empty => break,
            }
        }
        (made, dead)
    }

    fn delivered(made: &[Vec<u64>], bad: &[u64]) -> Vec<u64> {
        let mut delivered: Vec<_> =
            made.iter().filter(|sent| !sent.iter().any(|seq| bad.contains(seq))).flatten().copied().collect();
        delivered.sort_unstable();
        delivered
    }

    #[test]
    fn events_that_break_the_receiver_are_given_up_and_the_others_get_past_them() {
        for bad in [&[1][..], &[2], &[30], &[60], &[1, 2], &[30, 31], &[10, 12, 30], &[20, 21, 22], &[7, 8, 9, 10]] {
            let (made, mut dead) = run_against(bad, Fault::Unclear, 2_000);
            dead.sort_unstable();
            assert_eq!(dead, bad, "{made:?}");
            let good: Vec<_> = (1..=60).filter(|seq| !bad.contains(seq)).collect();
            assert_eq!(delivered(&made, bad), good, "{bad:?}: {made:?}");
        }
    }

    #[test]
    fn an_event_that_nobody_follows_is_kept_until_one_shows_that_the_sink_is_up() {
        let now = Instant::now();
        let mut window = window([1], now);
        for _ in 0..100 {
            assert_eq!(window.choose(now, 9, true), Choice::Send(vec![0]));
            let settled = window.settle(&[0], vec![retry(Fault::Unclear)], now, 0.0);
            assert!(settled.blames_sink && settled.dead.is_empty());
        }
        window.push(event(2, 10), now);
        assert_eq!(window.choose(now, 9, true), Choice::Send(vec![1]));
        window.settle(&[1], vec![Outcome::Delivered], now, 0.0);
        for strikes in 1..=ATTEMPTS {
            assert_eq!(window.choose(now, 9, true), Choice::Send(vec![0]));
            let settled = window.settle(&[0], vec![retry(Fault::Unclear)], now, 0.0);
            assert_eq!((settled.blames_sink, settled.dead.len()), (false, usize::from(strikes == ATTEMPTS)));
        }
        assert_eq!((window.waiting(), window.passed()), (0, 2));
    }

    #[test]
    fn a_fault_that_is_not_the_events_never_costs_it() {
        let (_, dead) = run_against(&[3], Fault::Sink, 2_000);
        assert!(dead.is_empty());
    }

    #[test]
    fn a_sink_that_comes_back_for_one_call_and_goes_again_costs_no_event() {
        let now = Instant::now();
        let mut window = Window::new(Limits { events: 100, bytes: 10_000, ..LIMITS }, 10, 0);
        (1..=100).for_each(|seq| window.push(event(seq, 10), now));
        for call in 0..200 {
            let Choice::Send(places) = window.choose(now, 9, true) else { panic!("nothing to send") };
            let outcome = if call == 3 { Outcome::Delivered } else { retry(Fault::Unclear) };
            let settled = window.settle(&places, vec![outcome; places.len()], now, 0.0);
            assert!(settled.dead.is_empty(), "call {call}");
            while window.has_room() {
                let next = window.read_seq + 1;
                window.push(event(next, 10), now);
            }
        }
    }

    #[test]
    fn an_event_that_fails_among_others_waits_and_the_others_do_not() {
        let mut now = Instant::now();
        let mut window = window([1, 2], now);
        for strikes in 1..ATTEMPTS {
            let Choice::Send(places) = window.choose(now, 9, true) else { panic!("nothing to send") };
            let failing = window.events(&places).iter().map(|event| event.seq == 1).collect::<Vec<_>>();
            let outcomes = failing.iter().map(|fails| if *fails { retry(Fault::Unclear) } else { Outcome::Delivered });
            let settled = window.settle(&places, outcomes.collect(), now, 1.0);
            assert_eq!((settled.retried, settled.blames_sink, settled.dead.len()), (1, false, 0), "strike {strikes}");
            let Choice::Wait(until) = window.choose(now, 9, true) else { panic!("not waiting") };
            assert!(until <= now + Duration::from_millis(250));
            window.push(event(10 + u64::from(strikes), 10), now);
            let choice = window.choose(now, 9, true);
            assert_eq!(seqs(&window, &choice), [10 + u64::from(strikes)]);
            let Choice::Send(places) = choice else { panic!("nothing to send") };
            window.settle(&places, vec![Outcome::Delivered], now, 1.0);
            now = until;
        }
        let Choice::Send(places) = window.choose(now, 9, true) else { panic!("nothing to send") };
        let settled = window.settle(&places, vec![retry(Fault::Unclear)], now, 1.0);
        assert_eq!(settled.dead.len(), 1);
        assert_eq!(settled.dead[0].reason, "failed 3 times alone while others got through: no");
    }

    proptest! {
        #[test]
        fn no_event_is_lost_doubled_or_overtaken_by_the_cursor(
            fates in prop::collection::vec(prop::collection::vec(0..5_u8, 1..5), 1..60),
            dice in 0.0..1.0_f64,
        ) {
            let mut now = Instant::now();
            let mut window = Window::new(LIMITS, ATTEMPTS, 0);
            let (mut next, mut ended) = (1_u64, Vec::new());
            for fates in fates {
                while window.has_room() {
                    window.push(event(next, 100), now);
                    next += 1;
                }
                now += Duration::from_millis(300);
                let Choice::Send(places) = window.choose(now, 9, false) else { continue };
                let sent: Vec<_> = window.events(&places).iter().map(|event| event.seq).collect();
                prop_assert_eq!(sent.len(), places.len());
                let outcomes: Vec<_> = fates
                    .iter()
                    .map(|fate| match fate {
                        0 => Outcome::Delivered,
                        1 => Outcome::Duplicate,
                        2 => Outcome::Poison { reason: String::new() },
                        3 => retry(Fault::Sink),
                        _ => retry(Fault::Unclear),
                    })
                    .take(sent.len())
                    .collect();
                for (seq, outcome) in sent.iter().zip(&outcomes) {
                    if matches!(outcome, Outcome::Delivered | Outcome::Duplicate) {
                        ended.push(*seq);
                    }
                }
                let settled = window.settle(&places, outcomes, now, dice);
                ended.extend(settled.dead.iter().map(|dead| dead.event.seq));
                let unique: std::collections::BTreeSet<_> = ended.iter().copied().collect();
                prop_assert_eq!(unique.len(), ended.len());
                prop_assert_eq!(ended.len() + window.waiting(), usize::try_from(next - 1).unwrap());
                // Everything up to the cursor has ended, and of what lies behind it at most a batch has.
                prop_assert!((1..=window.passed()).all(|seq| unique.contains(&seq)));
                let behind = unique.iter().filter(|seq| **seq > window.passed()).count();
                prop_assert!(behind <= LIMITS.events, "{} events would be repeated", behind);
            }
        }
    }
}
