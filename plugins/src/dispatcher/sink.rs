//! The seam between the dispatcher and where records go: what a sink is given, and what it may answer.
//!
//! A sink knows one protocol and nothing else. It sends a batch and says of every event what became of it; when to
//! send, what to send again, what to give up and how far the cursor may move is decided outside of it, once for all.
//! `deliver` is a future, because a sink that takes one call per event has many of them under way at once, and because
//! a wait for an answer has to end when the process does. The loop that awaits it has a thread of its own, where
//! reading the journal and syncing files may block.

use std::time::Duration;

use futures::future::BoxFuture;
use uuid::Uuid;

use crate::event::{self, Exchange};

/// One event of the journal, as sinks receive it.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its place in the journal.
    pub seq: u64,
    /// Equal over every delivery: what a receiver recognises a duplicate by.
    pub id: Uuid,
    /// When it was written, in microseconds since the Unix epoch.
    pub time_us: i64,
    /// What it says.
    pub exchange: Exchange,
    /// The message as the journal has it, with fields that this version does not know.
    pub payload: Box<[u8]>,
}

impl Event {
    /// The event as one JSON object without a line break, the form of `events.jsonl`.
    pub fn append_json(&self, json: &mut Vec<u8>) {
        event::append_json_line(&self.exchange, json);
    }
}

/// What became of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver has acknowledged it.
    Delivered,
    /// The receiver has it from an earlier time: as good as delivered.
    Duplicate,
    /// Not delivered, or nobody knows. It will be sent again.
    Retry {
        /// How long the receiver wants to be left alone.
        after: Option<Duration>,
        /// What the failure says of the event.
        fault: Fault,
        /// For people. No secrets.
        reason: String,
    },
    /// The receiver will never take it. It goes to the dead letters, and the queue moves on.
    Poison {
        /// For people. No secrets.
        reason: String,
    },
}

/// Whom a failure may be blamed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Certainly not the event: nobody reached, no time, no permission. However often this happens, it costs no event.
    Sink,
    /// Perhaps the event: a receiver that breaks at one event answers just as one that is broken. When others get
    /// through and this one never does, it is given up.
    Unclear,
}

/// A place that events go to.
pub trait Sink: Send + Sync + 'static {
    /// Sends the events, oldest first, and says what became of each, in the same order. An answer missing at the end
    /// of the list is taken as [`Outcome::Retry`].
    ///
    /// The future ends within a bounded time, whatever the receiver does. It may be dropped at any await, at the end
    /// of the process; the events are then sent again at the next start, with the same ids.
    fn deliver<'a>(&'a self, batch: &'a [&'a Event]) -> BoxFuture<'a, Vec<Outcome>>;
}
