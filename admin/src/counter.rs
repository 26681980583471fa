//! Counting what the journal tells: requests of each token, and what they used.
//!
//! A `begin` record is one first byte sent to a provider, and counts for `request_count`. An `end` record says what
//! became of a request, and counts for usage. One reader goes through both, since reading is most of the work, and one
//! transaction of the store takes what it gathered together with the journal's cursor (`admin/store/src/usage`). So a
//! crash at any moment, and a journal that is read again, miss nothing and count nothing twice.
//!
//! It reads the local journal only: what comes to sinks and buses may come twice.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use llm_proxy_core::usd::Usd;
use llm_proxy_plugins::event::{BeginKey, EndKey, EventType, Outcome, Source};
use llm_proxy_plugins::journal::{Journal, Kind, Reader};
use llm_proxy_store::{Count, HOUR_US, OTHER_MODEL, Store, StoreError, Stretch, Totals, UsageKey};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::seldom::Seldom;

/// How often counts go to the store without being asked for.
const EVERY: Duration = Duration::from_secs(1);
/// The most records between two looks at the store.
const MOST_RECORDS: usize = 10_000;
/// The most rows of the store that one transaction changes: some tens of milliseconds, in which no lease can be taken
/// and no token revoked.
const MOST_ROWS: usize = 300;
/// How long the last counting may take while the process ends.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long usage is kept: a year, and what it is compared with.
const KEPT: Duration = Duration::from_secs(400 * 24 * 3_600);
/// How often old usage is looked for, and the most hours of it that are forgotten then: a clock that is wrong for a
/// while must not cost a year.
const FORGET_EVERY: Duration = Duration::from_secs(3_600);
const MOST_FORGOTTEN: usize = 24;
/// The longest name of a model that is counted by itself, in bytes.
const LONGEST_MODEL: usize = 128;
/// The last moment that can be told, of the year 9999, in microseconds since the epoch.
const LAST_MOMENT_US: i64 = 253_402_300_799_999_999;

/// Why counting could not begin.
#[derive(Debug, thiserror::Error)]
pub enum CounterError {
    /// The store does not tell how far it has come.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system gave no thread.
    #[error("no thread can be had for counting: {0}")]
    Thread(#[from] io::Error),
}

/// Counts requests and their usage from the journal into the store, on a thread of its own, as both block.
pub struct UsageCounter {
    asks: SyncSender<Ask>,
    cursor: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

/// What the counter is asked for.
enum Ask {
    /// To catch up, and to say when it has.
    CatchUp(oneshot::Sender<()>),
    /// To catch up a last time, and to end.
    Stop,
}

impl UsageCounter {
    /// Starts to count where the store's cursor for this journal stands. Blocks for that: not to be called by a task.
    ///
    /// # Errors
    /// [`CounterError`].
    pub fn start(journal: &Journal, store: Store, control: Handle) -> Result<Self, CounterError> {
        let counting = Counting::new(journal, store, control)?;
        let cursor = Arc::clone(&counting.cursor);
        let (asks, asked) = sync_channel(64);
        let thread = std::thread::Builder::new().name("usage-counter".into()).spawn(move || counting.run(&asked))?;
        Ok(Self { asks, cursor, thread })
    }

    /// The last record that needs not be read again.
    pub fn cursor(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.cursor)
    }

    /// A way to ask for counts that are current.
    pub fn asker(&self) -> Asker {
        Asker(self.asks.clone())
    }

    /// Stores what is left and stops. Blocks.
    pub fn stop(self) {
        let Self { asks, thread, .. } = self;
        // Others hold on to the channel: its end would not come.
        let _ = asks.send(Ask::Stop);
        if thread.join().is_err() {
            tracing::error!("The usage counter has panicked; what it did not count is in the journal");
        }
    }
}

/// Asks the counter to catch up.
#[derive(Clone)]
pub struct Asker(SyncSender<Ask>);

impl Asker {
    /// Returns when everything in the journal at the time of the call is counted in the store, or cannot be.
    pub async fn catch_up(&self) {
        let (done, counted) = oneshot::channel();
        if self.0.try_send(Ask::CatchUp(done)).is_ok() {
            let _ = counted.await;
        }
    }
}

struct Counting {
    journal: Journal,
    reader: Reader,
    store: Store,
    control: Handle,
    /// Where the store's cursor stands.
    stored_seq: u64,
    gathered: Gathered,
    cursor: Arc<AtomicU64>,
    forgets_at: Instant,
    /// Attempts in vain: without a journal that is synced, and at the store. Each is made every second.
    unsynced: Seldom,
    unstored: Seldom,
}

/// What became of what was gathered.
#[derive(Debug, PartialEq, Eq)]
enum Stored {
    /// The store has it.
    All,
    /// The store had moved on without us, so it is read again from there.
    ReadAgain,
    /// The store cannot take it now.
    Nothing,
}

impl Counting {
    fn new(journal: &Journal, store: Store, control: Handle) -> Result<Self, StoreError> {
        let mut stored_seq = control.block_on(store.counted_up_to(journal.id()))?;
        let last_seq = journal.position();
        if stored_seq > last_seq {
            // A journal folder restored from an older copy. Its next records are new ones, whatever their numbers.
            tracing::warn!(
                stored_seq,
                last_seq,
                "the journal ends before what was counted of it: counting goes on at its end"
            );
            let back = Stretch { after_seq: stored_seq, up_to_seq: last_seq, ..Stretch::default() };
            stored_seq = control.block_on(store.count(journal.id(), back))?;
        }
        Ok(Self {
            reader: journal.reader(stored_seq),
            journal: journal.clone(),
            store,
            control,
            stored_seq,
            gathered: Gathered::default(),
            cursor: Arc::new(AtomicU64::new(stored_seq)),
            forgets_at: Instant::now(),
            unsynced: Seldom::default(),
            unstored: Seldom::default(),
        })
    }

    fn run(mut self, asked: &Receiver<Ask>) {
        loop {
            let first = asked.recv_timeout(EVERY);
            let mut is_over = matches!(first, Err(RecvTimeoutError::Disconnected));
            let mut waiting = Vec::new();
            // Whoever else has asked by now is told at once, too.
            for ask in first.into_iter().chain(asked.try_iter()) {
                match ask {
                    Ask::CatchUp(done) => waiting.push(done),
                    Ask::Stop => is_over = true,
                }
            }
            self.catch_up(is_over.then(|| Instant::now().checked_add(LAST_WORDS)).flatten());
            for done in waiting {
                let _ = done.send(());
            }
            if is_over {
                return;
            }
            self.forget();
        }
    }

    /// Counts what is in the journal; what is left at the deadline is counted by the next start.
    fn catch_up(&mut self, deadline: Option<Instant>) {
        while deadline.is_none_or(|deadline| Instant::now() < deadline) {
            let is_full = self.gather();
            match self.store() {
                Stored::All if !is_full => return,
                Stored::All | Stored::ReadAgain => {}
                Stored::Nothing => return,
            }
        }
    }

    /// Reads on until there is no more, or enough for one transaction: then true.
    fn gather(&mut self) -> bool {
        for _ in 0..MOST_RECORDS {
            if self.gathered.rows >= MOST_ROWS {
                return true;
            }
            match self.reader.next_ref() {
                Ok(Some(record)) => match record.kind {
                    Kind::Begin => {
                        if let Some(begin) = BeginKey::read(record.payload) {
                            self.gathered.begin(&begin);
                        }
                    }
                    Kind::End => match EndKey::read(record.payload) {
                        Some(end) => self.gathered.end(&end, record.time_us),
                        None => {
                            tracing::warn!(seq = record.seq, "A record of the journal cannot be read to count usage")
                        }
                    },
                    // What administrators do uses nothing.
                    Kind::Admin => {}
                },
                Ok(None) => return false,
                Err(error) => {
                    tracing::error!(%error, "The journal cannot be read to count usage");
                    return false;
                }
            }
        }
        true
    }

    /// Brings to the store what was gathered. What it does not take is kept for the next time.
    fn store(&mut self) -> Stored {
        let up_to_seq = self.reader.last_seq();
        if self.gathered.by_token.is_empty() {
            // Nothing to store: the place alone is worth no transaction, but these records need not be kept for us.
            self.cursor.fetch_max(up_to_seq, Ordering::AcqRel);
            return Stored::All;
        }
        // A power cut must not take records that the store's cursor has passed: their numbers would be given again.
        if let Err(error) = self.journal.sync_through(up_to_seq) {
            if let Some(times) = self.unsynced.due(Instant::now()) {
                tracing::warn!(%error, times, "Usage is not counted while the journal cannot be synced; it will be");
            }
            return Stored::Nothing;
        }
        let stretch = self.gathered.stretch(self.stored_seq, up_to_seq);
        match self.control.block_on(self.store.count(self.journal.id(), stretch)) {
            Ok(seq) => {
                self.gathered = Gathered::default();
                self.stored_seq = seq;
                if seq == up_to_seq {
                    self.cursor.fetch_max(seq, Ordering::AcqRel);
                    return Stored::All;
                }
                tracing::warn!(seq, "Usage was counted up to here already: counting goes on from there");
                self.reader = self.journal.reader(seq.min(self.journal.position()));
                Stored::ReadAgain
            }
            Err(error) => {
                if let Some(times) = self.unstored.due(Instant::now()) {
                    tracing::warn!(%error, times, "Usage could not be stored; it will be");
                }
                Stored::Nothing
            }
        }
    }

    fn forget(&mut self) {
        let now = Instant::now();
        if now < self.forgets_at {
            return;
        }
        self.forgets_at = now.checked_add(FORGET_EVERY).unwrap_or(now);
        for _ in 0..MOST_FORGOTTEN {
            match self.control.block_on(self.store.forget_usage(KEPT)) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(%error, "Old usage could not be forgotten; it will be");
                    return;
                }
            }
        }
    }
}

/// What is on its way to the store.
#[derive(Default)]
struct Gathered {
    /// By token, which nearly always is one that has been seen; under an empty name what has none.
    by_token: HashMap<String, OfToken>,
    /// Rows of the store that this will change.
    rows: usize,
}

#[derive(Default)]
struct OfToken {
    requests: u64,
    last_used_at_us: i64,
    /// Hardly ever more than a few: searched from end to end.
    usage: Vec<(UsageKey, Totals)>,
}

impl Gathered {
    fn begin(&mut self, begin: &BeginKey<'_>) {
        self.note(begin.token_id, |token| {
            token.requests = token.requests.saturating_add(1);
            token.last_used_at_us = token.last_used_at_us.max(begin.received_us);
            0
        });
    }

    fn end(&mut self, end: &EndKey<'_>, time_us: i64) {
        if end.r#type == EventType::Exchange {
            let hour_us = hour_of(end.received_us.unwrap_or(time_us));
            self.note(end.token_id, |token| token.end(hour_us, end));
        }
    }

    /// Notes something of a token, which tells how many rows it needs for that.
    fn note(&mut self, token_id: &str, note: impl FnOnce(&mut OfToken) -> usize) {
        let rows = match self.by_token.get_mut(token_id) {
            Some(token) => note(token),
            None => {
                let mut token = OfToken::default();
                let rows = note(&mut token);
                self.by_token.insert(token_id.to_owned(), token);
                rows.saturating_add(1)
            }
        };
        self.rows = self.rows.saturating_add(rows);
    }

    fn stretch(&self, after_seq: u64, up_to_seq: u64) -> Stretch {
        let used = self.by_token.iter().filter(|(_, token)| token.requests > 0);
        let counts = used.map(|(token_id, token)| Count {
            token_id: token_id.clone(),
            requests: token.requests,
            last_used_at_us: token.last_used_at_us,
        });
        let usage = self.by_token.values().flat_map(|token| token.usage.iter().cloned());
        Stretch { after_seq, up_to_seq, counts: counts.collect(), usage: usage.collect() }
    }
}

impl OfToken {
    fn end(&mut self, hour_us: i64, end: &EndKey<'_>) -> usize {
        let model = model_of(end);
        let is_it = |key: &UsageKey| {
            key.hour_us == hour_us && key.model == model && key.api == end.api && key.project_id == end.project_id
        };
        if let Some((_, totals)) = self.usage.iter_mut().find(|(key, _)| is_it(key)) {
            add(totals, end);
            return 0;
        }
        let key = UsageKey {
            hour_us,
            project_id: end.project_id.to_owned(),
            token_id: end.token_id.to_owned(),
            api: end.api.to_owned(),
            model: model.to_owned(),
        };
        let mut totals = Totals::default();
        add(&mut totals, end);
        self.usage.push((key, totals));
        1
    }
}

/// The beginning of the hour that a moment lies in.
fn hour_of(moment_us: i64) -> i64 {
    let moment_us = moment_us.clamp(0, LAST_MOMENT_US);
    moment_us.saturating_sub(moment_us.checked_rem(HOUR_US).unwrap_or(0))
}

/// The model that the answer names, since that is what costs; else the one that was asked for. Empty where neither is
/// known.
fn model_of<'a>(end: &EndKey<'a>) -> &'a str {
    if end.project_id.is_empty() {
        // Nobody's: whoever reaches the listener can make it up.
        return "";
    }
    let name = if end.model.is_empty() { end.model_requested } else { end.model };
    if name.len() > LONGEST_MODEL || name.chars().any(char::is_control) { OTHER_MODEL } else { name }
}

/// Adds one record.
fn add(totals: &mut Totals, end: &EndKey<'_>) {
    bump(&mut totals.outcomes, end.outcome.into(), end.count);
    bump(&mut totals.sources, end.source.into(), end.count);
    for (sum, told) in totals.tokens.iter_mut().zip(end.tokens) {
        match told {
            Some((tokens, Source::Reported)) => sum.reported = sum.reported.saturating_add(tokens),
            Some((tokens, Source::Estimated | Source::Unknown)) => {
                sum.estimated = sum.estimated.saturating_add(tokens);
            }
            None => {}
        }
    }
    if let Ok(cost) = end.cost_usd.parse::<Usd>() {
        totals.priced_requests = totals.priced_requests.saturating_add(1);
        totals.cost.add(cost);
    }
    // An error comes fast and a WebSocket (101) ends when people are done with it: neither says how long answers take.
    if (200..400).contains(&end.status) {
        if let (Outcome::Finished, Some(latency_us)) = (end.outcome, end.last_byte_us.or(end.first_byte_us)) {
            totals.latency_us.record(latency_us);
        }
        if let (true, Some(first_chunk_us)) = (end.stream, end.first_chunk_us) {
            totals.first_chunk_us.record(first_chunk_us);
        }
    }
}

/// Adds to the count that a code of the schema stands for.
fn bump(counts: &mut [u64], code: i32, by: u64) {
    if let Some(count) = usize::try_from(code).ok().and_then(|place| counts.get_mut(place)) {
        *count = count.saturating_add(by);
    }
}

#[cfg(test)]
mod tests {
    use llm_proxy_plugins::event::{Begin, Cost, Exchange, Message, Times, Usage};
    use llm_proxy_plugins::journal::Options;
    use llm_proxy_store::{
        ContentPolicy, GroupBy, NewProject, NewToken, Page, Period, RootKey, TokenSum, UsageGroup, UsageQuery,
    };
    use tempfile::TempDir;
    use tokio::runtime::Runtime;
    use uuid::Uuid;

    use super::*;

    /// 2026-11-21, 10:20 UTC.
    const MOMENT_US: i64 = 1_795_256_400_000_000;

    struct Bench {
        runtime: Runtime,
        url: String,
        root_key: RootKey,
        store: Store,
        journal: Journal,
        token: String,
        _dir: TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let runtime = Runtime::new().unwrap();
            let url = format!("sqlite:{}", dir.path().join("store.db").display());
            let root_key = RootKey::generate().unwrap();
            let store = runtime.block_on(Store::open(&url, &root_key)).unwrap();
            let token = runtime.block_on(async {
                let new = NewProject {
                    name: "one".to_owned(),
                    is_active: true,
                    content: ContentPolicy::default(),
                    provider_keys: Vec::new(),
                };
                let new = NewToken {
                    project_id: store.create_project(new).await.unwrap().id,
                    expires_at_us: MOMENT_US,
                    max_requests: None,
                    requests_per_minute: None,
                    allowed_models: None,
                };
                store.create_token(new).await.unwrap().0.id
            });
            let (journal, _) = Journal::open(&dir.path().join("journal"), Options::default()).unwrap();
            Self { runtime, url, root_key, store, journal, token, _dir: dir }
        }

        fn counting(&self) -> Counting {
            Counting::new(&self.journal, self.store.clone(), self.runtime.handle().clone()).unwrap()
        }

        /// Both records of an exchange of the token.
        fn append(&self, number: u128) {
            let id = Uuid::from_u128(number);
            let begin = Begin { token_id: self.token.clone(), received_us: 7, ..Begin::default() };
            self.journal.append_message(Kind::Begin, id, MOMENT_US, &begin).unwrap();
            self.journal.append_message(Kind::End, id, MOMENT_US, &self.exchange()).unwrap();
        }

        fn exchange(&self) -> Exchange {
            Exchange {
                project_id: Some("p".to_owned()),
                token_id: Some(self.token.clone()),
                model: Some("m".to_owned()),
                outcome: Outcome::Finished.into(),
                count: 1,
                ..Exchange::default()
            }
        }

        fn usage(&self, group_by: GroupBy) -> Vec<UsageGroup> {
            let query = UsageQuery { to_us: i64::MAX, group_by, ..UsageQuery::default() };
            self.runtime.block_on(self.store.usage(&query, &Page { cursor: None, limit: 1_000 })).unwrap().data
        }

        /// Exchanges by the usage, and requests by the token.
        fn counted(&self) -> (u64, u64) {
            let token = self.runtime.block_on(self.store.token(&self.token)).unwrap().unwrap();
            (self.usage(GroupBy::default())[0].totals.requests(), token.request_count)
        }
    }

    fn totals_of(exchange: &Exchange) -> Totals {
        let mut totals = Totals::default();
        add(&mut totals, &EndKey::read(&exchange.encode_to_vec()).unwrap());
        totals
    }

    #[test]
    fn a_record_is_counted_with_all_that_it_says() {
        let sources = [("input_tokens".to_owned(), i32::from(Source::Reported))];
        let exchange = Exchange {
            stream: Some(true),
            status: Some(200),
            outcome: Outcome::Finished.into(),
            usage: Some(Usage {
                source: Source::Estimated.into(),
                sources: sources.into(),
                input_tokens: Some(10),
                output_tokens: Some(20),
                audio_output_tokens: Some(0),
                ..Usage::default()
            }),
            cost: Some(Cost { usd: Some("0.0000135".to_owned()), prices: None }),
            times: Some(Times {
                first_byte_us: Some(11),
                first_chunk_us: Some(12),
                last_byte_us: Some(13),
                ..Times::default()
            }),
            count: 1,
            ..Exchange::default()
        };
        let mut expected = Totals { priced_requests: 1, ..Totals::default() };
        expected.outcomes[1] = 1;
        expected.sources[2] = 1;
        expected.tokens[0] = TokenSum { reported: 10, estimated: 0 };
        expected.tokens[1] = TokenSum { reported: 0, estimated: 20 };
        expected.cost = "0.0000135".parse().unwrap();
        expected.latency_us.record(13);
        expected.first_chunk_us.record(12);
        assert_eq!(totals_of(&exchange), expected);

        let refused = Exchange { outcome: Outcome::Refused.into(), count: 91, ..Exchange::default() };
        let mut expected = Totals::default();
        expected.outcomes[2] = 91;
        expected.sources[0] = 91;
        assert_eq!(totals_of(&refused), expected, "a sampled refusal stands for all of them");
    }

    #[test]
    fn only_answers_say_how_long_answers_take() {
        let times =
            Times { first_byte_us: Some(1), first_chunk_us: Some(2), last_byte_us: Some(3), ..Times::default() };
        let without_body = Times { first_chunk_us: None, last_byte_us: None, ..times };
        for (outcome, status, stream, times, latency, first_chunk) in [
            (Outcome::Finished, Some(200), Some(false), times, "3:1", ""),
            (Outcome::Finished, Some(200), Some(true), times, "3:1", "2:1"),
            (Outcome::Finished, Some(204), None, without_body, "1:1", ""),
            (Outcome::Finished, Some(429), Some(true), times, "", ""),
            (Outcome::Finished, Some(101), Some(true), times, "", ""),
            (Outcome::ClientGone, Some(200), Some(true), times, "", "2:1"),
            (Outcome::UpstreamCut, None, None, times, "", ""),
        ] {
            let exchange =
                Exchange { outcome: outcome.into(), status, stream, times: Some(times), ..Exchange::default() };
            let totals = totals_of(&exchange);
            let told = (totals.latency_us.to_string(), totals.first_chunk_us.to_string());
            assert_eq!(told, (latency.to_owned(), first_chunk.to_owned()), "{outcome} {status:?} {stream:?}");
        }
    }

    #[test]
    fn every_outcome_and_every_source_has_its_own_place() {
        for (place, outcome) in Outcome::ALL.into_iter().enumerate() {
            let exchange = Exchange { outcome: outcome.into(), ..Exchange::default() };
            assert_eq!(totals_of(&exchange).outcomes.iter().position(|count| *count == 1), Some(place), "{outcome}");
        }
        for (place, source) in [Source::Unknown, Source::Reported, Source::Estimated].into_iter().enumerate() {
            let usage = Some(Usage { source: source.into(), ..Usage::default() });
            let exchange = Exchange { usage, ..Exchange::default() };
            assert_eq!(totals_of(&exchange).sources.iter().position(|count| *count == 1), Some(place), "{source:?}");
        }
    }

    #[test]
    fn the_model_is_the_answered_one_unless_its_name_is_made_up() {
        let longest = "x".repeat(LONGEST_MODEL);
        let too_long = "x".repeat(LONGEST_MODEL + 1);
        for (project_id, requested, answered, expected) in [
            ("p", "gpt-4o-mini", "gpt-4o-mini-2024-07-18", "gpt-4o-mini-2024-07-18"),
            ("p", "gpt-4o-mini", "", "gpt-4o-mini"),
            ("p", "", "", ""),
            ("p", &longest, "", &longest),
            ("p", &too_long, "", OTHER_MODEL),
            ("p", "", "a\u{0}b", OTHER_MODEL),
            ("", "made-up", "", ""),
        ] {
            let end = EndKey { project_id, model_requested: requested, model: answered, ..EndKey::default() };
            assert_eq!(model_of(&end), expected, "{requested:?} {answered:?}");
        }
    }

    #[test]
    fn an_hour_begins_when_it_is_full() {
        for (moment_us, expected) in [
            (0, 0),
            (HOUR_US - 1, 0),
            (HOUR_US, HOUR_US),
            (MOMENT_US, 1_795_255_200_000_000),
            (-1, 0),
            (i64::MAX, 253_402_297_200_000_000),
        ] {
            assert_eq!(hour_of(moment_us), expected, "{moment_us}");
        }
    }

    #[test]
    fn counts_follow_the_journal_and_the_hour_is_that_of_the_request() {
        let bench = Bench::new();
        bench.append(1);
        let times = Some(Times { received_us: Some(MOMENT_US - 2 * HOUR_US), ..Times::default() });
        let earlier = Exchange { times, ..bench.exchange() };
        bench.journal.append_message(Kind::End, Uuid::from_u128(2), MOMENT_US, &earlier).unwrap();
        bench.journal.append(Kind::End, Uuid::from_u128(3), MOMENT_US, &[0xff; 9]).unwrap();
        let mut counting = bench.counting();
        counting.catch_up(None);
        assert_eq!(bench.counted(), (2, 1));
        assert_eq!(counting.cursor.load(Ordering::Acquire), bench.journal.position());
        let by_hour = GroupBy { period: Some(Period::Hour), ..GroupBy::default() };
        let hours: Vec<_> = bench.usage(by_hour).iter().map(|group| group.key.period_us.unwrap()).collect();
        assert_eq!(hours, [hour_of(MOMENT_US) - 2 * HOUR_US, hour_of(MOMENT_US)]);
    }

    #[test]
    fn what_administrators_do_is_no_request() {
        let bench = Bench::new();
        bench.append(1);
        let action = Exchange { r#type: EventType::Admin.into(), ..bench.exchange() };
        for (number, kind) in [(2, Kind::Admin), (3, Kind::End)] {
            bench.journal.append_message(kind, Uuid::from_u128(number), MOMENT_US, &action).unwrap();
        }
        let mut counting = bench.counting();
        counting.catch_up(None);
        assert_eq!(bench.counted(), (1, 1));
        assert_eq!(counting.cursor.load(Ordering::Acquire), bench.journal.position());
    }

    #[test]
    fn wherever_it_dies_and_whoever_counts_beside_it_everything_is_counted_once() {
        let bench = Bench::new();
        let mut countings = [bench.counting(), bench.counting()];
        let (mut appended, mut dice) = (0_u64, 0x2545_F491_4F6C_DD1D_u64);
        for _ in 0..300 {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let counting = &mut countings[usize::from(dice >> 63 == 1)];
            match (dice >> 33) & 7 {
                0..3 => {
                    appended += 1;
                    bench.append(appended.into());
                }
                3..5 => {
                    counting.gather();
                }
                5..7 => assert_ne!(counting.store(), Stored::Nothing),
                // Dies with what it has gathered.
                _ => *counting = bench.counting(),
            }
            let (by_usage, by_token) = bench.counted();
            assert!(by_usage <= appended && by_token <= appended);
        }
        countings.iter_mut().for_each(|counting| counting.catch_up(None));
        assert_eq!(bench.counted(), (appended, appended));
    }

    #[test]
    fn what_the_store_cannot_take_waits_in_bounded_memory_and_is_counted_by_the_next_start() {
        let mut bench = Bench::new();
        let mut counting = bench.counting();
        for number in 0..2 * MOST_ROWS as u128 {
            let exchange = Exchange { model: Some(format!("m{number}")), ..bench.exchange() };
            bench.journal.append_message(Kind::End, Uuid::from_u128(number), MOMENT_US, &exchange).unwrap();
        }
        bench.runtime.block_on(bench.store.close());
        for _ in 0..3 {
            assert!(counting.gather());
            assert_eq!((counting.store(), counting.gathered.rows), (Stored::Nothing, MOST_ROWS));
        }
        assert_eq!(counting.cursor.load(Ordering::Acquire), 0, "and the journal keeps it");
        bench.store = bench.runtime.block_on(Store::open(&bench.url, &bench.root_key)).unwrap();
        bench.counting().catch_up(None);
        assert_eq!(bench.counted(), (2 * MOST_ROWS as u64, 0));
    }

    #[test]
    fn a_journal_that_ends_before_its_cursor_is_counted_from_its_end() {
        let bench = Bench::new();
        bench.append(1);
        let ahead = Stretch { up_to_seq: 100, ..Stretch::default() };
        bench.runtime.block_on(bench.store.count(bench.journal.id(), ahead)).unwrap();
        let mut counting = bench.counting();
        bench.append(2);
        counting.catch_up(None);
        assert_eq!(bench.counted(), (1, 1));
        assert_eq!(bench.runtime.block_on(bench.store.counted_up_to(bench.journal.id())).unwrap(), 4);
    }

    #[test]
    fn whoever_asks_reads_what_was_there_when_it_asked_and_the_end_leaves_nothing_behind() {
        let bench = Bench::new();
        let counter = UsageCounter::start(&bench.journal, bench.store.clone(), bench.runtime.handle().clone()).unwrap();
        for number in 1..4 {
            bench.append(number.into());
            bench.runtime.block_on(counter.asker().catch_up());
            assert_eq!(bench.counted(), (number, number));
        }
        assert_eq!(counter.cursor().load(Ordering::Acquire), bench.journal.position());
        bench.append(4);
        counter.stop();
        assert_eq!(bench.counted(), (4, 4));
    }
}
