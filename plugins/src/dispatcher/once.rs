//! Sending events that somebody has chosen, past the cursor: a range of time again, or letters that were dead.
//!
//! The sink's own rules hold: its filter, its batches, its waits, its breaker, and what makes an event a dead one. What
//! differs is the end. The dispatcher waits for a receiver for ever, since the journal keeps what it has not taken; here
//! somebody waits for an answer, so that a number of calls in a row that get nothing through are the end of it.

use std::time::Instant;

use uuid::Uuid;

use super::breaker::{Breaker, Permit};
use super::runner::deliver;
use super::sink::{Event, Outcome};
use super::window::{Choice, Dead, Window};
use super::{Health, Job};

/// What became of events that were sent by hand. Where it was not given up, `taken = delivered + duplicates + dead`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Events that the sink is meant to get.
    pub taken: u64,
    /// Events that the receiver acknowledged.
    pub delivered: u64,
    /// Events that the receiver had already.
    pub duplicates: u64,
    /// Events that the receiver will never take.
    pub dead: u64,
    /// Attempts at an event that failed and were made again.
    pub retried: u64,
    /// Events that the sink's filter or sample leaves out.
    pub left_out: u64,
    /// Why the rest was not sent: the last of [`super::Policy::max_attempts`] calls in a row that got nothing through.
    pub gave_up: Option<String>,
}

/// How far it has come, after each call.
#[derive(Debug)]
pub struct Progress<'a> {
    /// What became of all events so far.
    pub sent: &'a Sent,
    /// Events at hand that are not settled.
    pub waiting: usize,
    /// Events that this call has brought to the receiver, or that the receiver told it had.
    pub arrived: &'a [Uuid],
    /// Events that this call has shown to be dead. They are put aside nowhere: that is for the caller to do.
    pub dead: &'a [Dead],
    /// How the sink fares.
    pub health: Health,
    /// Why an event of this call was not taken, if one was not.
    pub reason: Option<&'a str>,
}

/// Sends these events to a sink, each until it is delivered or dead, and tells after every call how far that has come.
/// Needs a runtime with time and IO.
///
/// Cancel safe in that nothing is lost: events that `on_progress` has not named as arrived may or may not have.
pub async fn send_all(
    job: &Job,
    events: impl IntoIterator<Item = Event>,
    mut on_progress: impl FnMut(Progress<'_>),
) -> Sent {
    let policy = &job.policy;
    let mut events = events.into_iter().fuse();
    let mut window = Window::new(policy.limits, policy.max_attempts, 0);
    let mut breaker = Breaker::default();
    let mut sent = Sent::default();
    let mut next_call: Option<Instant> = None;
    loop {
        let is_last = fill(&mut window, &mut events, job, &mut sent);
        let now = Instant::now();
        let most = match breaker.permit(now) {
            Permit::NotBefore(until) => {
                tokio::time::sleep_until(until.into()).await;
                continue;
            }
            Permit::Probe => 1,
            Permit::Batch => usize::MAX,
        };
        // Nothing waits for others: they are all there.
        let places = match window.choose(now, most, true) {
            Choice::Empty if is_last => return sent,
            Choice::Empty => continue,
            Choice::Wait(until) => {
                tokio::time::sleep_until(until.into()).await;
                continue;
            }
            Choice::Send(places) => places,
        };
        if let Some(next_call) = next_call {
            tokio::time::sleep_until(next_call.into()).await;
        }
        next_call = Instant::now().checked_add(policy.pause);
        let (outcomes, arrived) = {
            let batch = window.events(&places);
            let outcomes = deliver(job, &batch).await;
            let has_arrived = |outcome: &Outcome| matches!(outcome, Outcome::Delivered | Outcome::Duplicate);
            let arrived = batch.iter().zip(&outcomes).filter(|(_, outcome)| has_arrived(outcome));
            let arrived: Vec<_> = arrived.map(|(event, _)| event.id).collect();
            (outcomes, arrived)
        };
        let now = Instant::now();
        let settled = window.settle(&places, outcomes, now, rand::random());
        sent.delivered = sent.delivered.saturating_add(settled.delivered);
        sent.duplicates = sent.duplicates.saturating_add(settled.duplicates);
        sent.retried = sent.retried.saturating_add(settled.retried);
        sent.dead = sent.dead.saturating_add(settled.dead.len() as u64);
        breaker.heed(&settled, &policy.backoff, now, rand::random());
        on_progress(Progress {
            sent: &sent,
            waiting: window.waiting(),
            arrived: &arrived,
            dead: &settled.dead,
            health: match breaker.failures() {
                0 => Health::Delivering,
                _ if breaker.is_open() => Health::Down,
                _ => Health::Retrying,
            },
            reason: settled.reason.as_deref(),
        });
        if breaker.failures() >= policy.max_attempts {
            sent.gave_up = Some(settled.reason.unwrap_or_default());
            return sent;
        }
    }
}

/// Fills the window. True if there are no more events.
fn fill(window: &mut Window, events: &mut impl Iterator<Item = Event>, job: &Job, sent: &mut Sent) -> bool {
    while window.has_room() {
        let Some(event) = events.next() else { return true };
        if job.policy.filter.keeps(event.id, &event.exchange) {
            sent.taken = sent.taken.saturating_add(1);
            // Numbers of their own: the same event may be among them twice, and from more than one journal.
            window.push_as(sent.taken, event, Instant::now());
        } else {
            sent.left_out = sent.left_out.saturating_add(1);
        }
    }
    false
}
