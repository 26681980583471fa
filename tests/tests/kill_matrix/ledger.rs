//! Three accounts of the same exchanges: the clients', the provider's, and that of the sinks. They have to agree.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::path::Path;

use llm_proxy_load::mock::RequestRecord;
use serde_json::Value;

use crate::clients::{Attempt, Seen, Wish};
use crate::receiver::{Digest, Kept, digest};

/// Most of what is wrong that a message lists.
const LISTED: usize = 10;

/// A line of `events.jsonl`.
pub struct Line {
    id: String,
    is_exchange: bool,
    /// What its client called it.
    name: Option<String>,
    outcome: String,
    status: Option<u64>,
    digest: Digest,
}

impl Line {
    /// All whole lines of a file; none of one that is not there.
    pub fn all_of(path: &Path) -> Vec<Self> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(Self::read).collect()
    }

    fn read(line: &str) -> Self {
        let record: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let text = |field: &str| record[field].as_str().map(str::to_owned);
        Self {
            id: text("id").unwrap_or_else(|| panic!("a line without an id: {line}")),
            is_exchange: record["type"] == "exchange",
            name: text("client_request_id"),
            outcome: text("outcome").unwrap_or_default(),
            status: record["status"].as_u64(),
            digest: digest(&record),
        }
    }
}

/// What clients and provider saw, over all rounds.
#[derive(Default)]
pub struct Ledger {
    attempts: HashMap<String, Attempt>,
    /// Exchanges that the provider saw, by the names that their clients gave them.
    reached: HashSet<String>,
    last_request: u64,
}

/// What it came to.
#[derive(Debug)]
#[allow(dead_code, reason = "it is printed")]
pub struct Books {
    /// Exchanges that clients saw end.
    ended: usize,
    /// Exchanges that they began and did not see end.
    cut: usize,
    /// Exchanges with a record.
    recorded: usize,
    /// Of these, those that were found begun and not ended.
    unknown: usize,
    /// Records that the receiver got once more.
    repeated: u64,
}

impl Ledger {
    /// Adds what clients have done.
    pub fn note_clients(&mut self, attempts: Vec<Attempt>) {
        for attempt in attempts {
            let before = self.attempts.insert(attempt.name.clone(), attempt);
            assert!(before.is_none(), "two exchanges with one name: {before:?}");
        }
    }

    /// Adds what the provider has seen since the last look.
    pub fn note_provider(&mut self, requests: &[RequestRecord]) {
        let seen = self.last_request;
        for request in requests.iter().filter(|request| request.id > seen) {
            assert_eq!(request.id, self.last_request + 1, "the provider has forgotten requests that nobody looked at");
            self.last_request = request.id;
            let name = request.header("x-request-id").expect("each request has a name");
            self.reached.insert(String::from_utf8(name.to_vec()).unwrap());
        }
    }

    /// Whether file and receiver have the same records, those of all exchanges that clients saw end among them.
    pub fn is_settled(&self, lines: &[Line], kept: &Kept) -> bool {
        self.ended().all(|(_, seen)| kept.records.contains_key(&seen.id))
            && lines.len() == kept.records.len()
            && lines.iter().all(|line| kept.records.contains_key(&line.id))
    }

    /// Compares everything with everything.
    ///
    /// # Panics
    /// When something was lost, made up, changed, or repeated more often than `most_repeats`.
    pub fn check(&self, lines: &[Line], kept: &Kept, most_repeats: u64) -> Books {
        let by_id: HashMap<&str, &Line> = lines.iter().map(|line| (line.id.as_str(), line)).collect();
        assert_eq!(by_id.len(), lines.len(), "the file has records twice");
        let unlike = self.ended().filter(|(_, seen)| !by_id.contains_key(seen.id.as_str()));
        nothing("exchanges that clients saw end, and the file does not have", unlike);

        // The two sinks have the same.
        let missing = lines.iter().filter(|line| !kept.records.contains_key(&line.id)).map(|line| &line.id);
        nothing("records that the receiver does not have", missing);
        let invented = kept.records.keys().filter(|id| !by_id.contains_key(id.as_str()));
        nothing("records that only the receiver has", invented);
        let differs = |line: &&Line| kept.records.get(&line.id).is_some_and(|taken| taken.digest != line.digest);
        nothing("records that the receiver has otherwise", lines.iter().filter(differs).map(|line| &line.id));
        nothing("calls that were wrong", kept.faults.iter());
        let repeated: u64 = kept.records.values().map(|taken| taken.times - 1).sum();
        assert!(repeated <= most_repeats, "{repeated} records came again, {most_repeats} may");

        // Each record is of an exchange that there was, and says what its client saw.
        let exchanges = || lines.iter().filter(|line| line.is_exchange);
        let named: HashMap<&str, &Line> = exchanges().filter_map(|line| Some((line.name.as_deref()?, line))).collect();
        let nameless = exchanges().filter(|line| line.name.is_none());
        nothing(
            "records without a name that are not of a crash",
            nameless.clone().filter(|line| line.outcome != "unknown").map(|line| (&line.id, &line.outcome)),
        );
        let unknown = nameless.count();
        assert_eq!(named.len() + unknown, exchanges().count(), "exchanges with two records");
        nothing(
            "records of exchanges that nobody asked for",
            named.keys().filter(|name| !self.attempts.contains_key(**name)),
        );
        let says = |attempt: &Attempt, seen: &Seen| {
            named.get(attempt.name.as_str()).map(|line| (line.id.as_str(), line.status))
                == Some((&*seen.id, Some(u64::from(seen.status))))
        };
        let unlike = self.ended().filter(|(attempt, seen)| !says(attempt, seen)).map(|(attempt, _)| attempt);
        nothing("answers that their record does not tell of", unlike);

        // What the provider saw and what is recorded of it: no exchange reaches it before its beginning is kept.
        let is_right = |name: &str, line: &Line| match self.attempts.get(name).map(|attempt| attempt.wish) {
            Some(Wish::Forbidden) => line.outcome == "refused" && !self.reached.contains(name),
            _ => line.outcome == "finished" && self.reached.contains(name),
        };
        let wrong = named.iter().filter(|(name, line)| !is_right(name, line));
        nothing("records with another outcome than their exchange", wrong.map(|(name, line)| (name, &line.outcome)));
        let untold = self.reached.iter().filter(|name| !named.contains_key(name.as_str())).count();
        let cut = self.attempts.keys().filter(|name| !named.contains_key(name.as_str())).count();
        assert!(
            untold <= unknown && unknown <= cut,
            "{unknown} records of a crash, for {cut} exchanges that it cut, {untold} of which had reached the provider"
        );

        let ended = self.ended().count();
        Books { ended, cut: self.attempts.len() - ended, recorded: exchanges().count(), unknown, repeated }
    }

    /// Exchanges that clients saw end.
    fn ended(&self) -> impl Iterator<Item = (&Attempt, &Seen)> {
        self.attempts.values().filter_map(|attempt| Some((attempt, attempt.seen.as_ref()?)))
    }
}

/// Fails if there is something.
fn nothing<T: Debug>(what: &str, found: impl Iterator<Item = T>) {
    let found: Vec<T> = found.collect();
    assert!(found.is_empty(), "{what}, {} of them: {:?}", found.len(), &found[..found.len().min(LISTED)]);
}
