//! One bad event in a call that carries many.
//!
//! A receiver that refuses a call's content says nothing of which event it means. So the call is repeated in halves,
//! down to the one that is refused alone: the others are delivered, and it costs a few calls instead of a batch.

use futures::future::BoxFuture;

use super::verdict::Verdict;
use crate::dispatcher::{Event, Fault, Outcome};

/// What a call with several events came to.
pub(super) enum Posted {
    /// The same for all of them.
    All(Verdict),
    /// The receiver has spoken of each, in the order in which they were sent.
    Each(Vec<Outcome>),
}

/// A receiver of several events in one call.
pub(super) trait Post: Sync {
    /// One call.
    fn post<'a>(&'a self, events: &'a [&'a Event]) -> BoxFuture<'a, Posted>;
}

/// Delivers a batch in one call, and in smaller ones where the content is refused. After a failure that is the
/// receiver's the rest is not tried.
pub(super) async fn deliver<P: Post + ?Sized>(receiver: &P, batch: &[&Event]) -> Vec<Outcome> {
    let mut outcomes = Vec::with_capacity(batch.len());
    // What is still to be sent, the first part on top.
    let mut parts = vec![batch];
    let mut given_up = None;
    while let Some(part) = parts.pop() {
        if let Some(outcome) = &given_up {
            outcomes.extend(part.iter().map(|_| Outcome::clone(outcome)));
            continue;
        }
        match receiver.post(part).await {
            Posted::Each(each) => outcomes.extend(each),
            Posted::All(Verdict::Refused { .. }) if part.len() > 1 => {
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([second, first]);
            }
            Posted::All(verdict) => {
                let outcome = verdict.outcome();
                outcomes.extend(part.iter().map(|_| outcome.clone()));
                if matches!(outcome, Outcome::Retry { fault: Fault::Sink, .. }) {
                    given_up = Some(outcome);
                }
            }
        }
    }
    outcomes
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use parking_lot::Mutex;
    use uuid::Uuid;

    use super::*;
    use crate::event::Exchange;

    /// Refuses every call with one of these events in it, and is down from a given call on.
    struct Receiver {
        bad: Vec<u64>,
        down_from: usize,
        calls: Mutex<Vec<Vec<u64>>>,
    }

    impl Post for Receiver {
        fn post<'a>(&'a self, events: &'a [&'a Event]) -> BoxFuture<'a, Posted> {
            let seqs: Vec<_> = events.iter().map(|event| event.seq).collect();
            let mut calls = self.calls.lock();
            let verdict = if calls.len() >= self.down_from {
                Verdict::Again { after: None, fault: Fault::Sink, reason: "down".to_owned() }
            } else if seqs.iter().any(|seq| self.bad.contains(seq)) {
                Verdict::Refused { reason: "no".to_owned() }
            } else {
                Verdict::Taken
            };
            calls.push(seqs);
            async move { Posted::All(verdict) }.boxed()
        }
    }

    fn run(bad: &[u64], down_from: usize, events: u64) -> (String, usize) {
        let receiver = Receiver { bad: bad.to_vec(), down_from, calls: Mutex::default() };
        let event =
            |seq| Event { seq, id: Uuid::nil(), time_us: 0, exchange: Exchange::default(), payload: Box::default() };
        let events: Vec<_> = (0..events).map(event).collect();
        let batch: Vec<_> = events.iter().collect();
        let outcomes = deliver(&receiver, &batch).now_or_never().unwrap();
        let letter = |outcome: &Outcome| match outcome {
            Outcome::Delivered => 'D',
            Outcome::Duplicate => '2',
            Outcome::Retry { .. } => 'R',
            Outcome::Poison { .. } => 'P',
        };
        let calls = receiver.calls.lock().len();
        (outcomes.iter().map(letter).collect(), calls)
    }

    #[test]
    fn only_the_events_that_are_refused_alone_are_given_up() {
        for (bad, down_from, events, expected, calls) in [
            (&[][..], 99, 8, "DDDDDDDD", 1),
            (&[5], 99, 8, "DDDDDPDD", 7),
            (&[0, 7], 99, 8, "PDDDDDDP", 11),
            (&[0], 99, 1, "P", 1),
            (&[2], 99, 3, "DDP", 5),
            (&[], 0, 3, "RRR", 1),
            // The halves: 4 taken, then down.
            (&[5], 2, 8, "DDDDRRRR", 3),
            (&[], 99, 0, "", 1),
        ] {
            assert_eq!(run(bad, down_from, events), (expected.to_owned(), calls), "{bad:?} of {events}");
        }
    }
}
