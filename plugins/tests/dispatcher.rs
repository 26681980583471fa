//! The dispatcher as the server runs it, over sinks that do as they are told.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may be blunt"
)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Bench, PATIENCE, finished, stats, wait_for};
use futures::FutureExt;
use futures::future::BoxFuture;
use llm_proxy_plugins::dispatcher::{
    Backoff, Dispatcher, DispatcherError, Event, Fault, Filter, Health, Job, Limits, LockError, Match, Outcome, Policy,
    Sample, Sent, Sink, dead_letters, lowest_cursor, saved_cursors, send_all,
};
use llm_proxy_plugins::event::{EventType, Exchange, Message};
use llm_proxy_plugins::journal::{Feed, Follower, Journal, Kind, Options};
use parking_lot::Mutex;
use uuid::Uuid;

/// Decides what becomes of a call with these events. `None`: it never ends.
type Rule = dyn Fn(&[Uuid]) -> Option<Vec<Outcome>> + Send + Sync;

/// The bytes of the cursor, if there was one, and what the receiver had.
type Crash = (Option<Vec<u8>>, Vec<Uuid>);

/// A sink that follows a rule and keeps what it was told is delivered.
#[derive(Clone)]
struct Scripted {
    rule: Arc<Rule>,
    taken: Arc<Mutex<Vec<Uuid>>>,
}

impl Scripted {
    fn new(rule: impl Fn(&[Uuid]) -> Option<Vec<Outcome>> + Send + Sync + 'static) -> Self {
        Self { rule: Arc::new(rule), taken: Arc::default() }
    }

    /// Takes everything.
    fn willing() -> Self {
        Self::new(|ids| Some(vec![Outcome::Delivered; ids.len()]))
    }

    fn taken(&self) -> Vec<Uuid> {
        self.taken.lock().clone()
    }

    fn job(&self, name: &str) -> Job {
        Job { name: name.to_owned(), sink: Box::new(self.clone()), policy: policy() }
    }
}

impl Sink for Scripted {
    fn deliver<'a>(&'a self, batch: &'a [&'a Event]) -> BoxFuture<'a, Vec<Outcome>> {
        async move {
            let ids: Vec<_> = batch.iter().map(|event| event.id).collect();
            let Some(outcomes) = (self.rule)(&ids) else { return std::future::pending().await };
            let delivered = ids.iter().zip(&outcomes).filter(|(_, outcome)| **outcome == Outcome::Delivered);
            self.taken.lock().extend(delivered.map(|(id, _)| *id));
            outcomes
        }
        .boxed()
    }
}

fn policy() -> Policy {
    Policy {
        limits: Limits { events: 20, bytes: 1 << 20, age: Duration::from_millis(5) },
        backoff: Backoff { first: Duration::from_millis(5), longest: Duration::from_millis(20) },
        ..Policy::default()
    }
}

fn retry() -> Outcome {
    Outcome::Retry { after: None, fault: Fault::Sink, reason: "down".to_owned() }
}

fn set(ids: &[Uuid]) -> BTreeSet<Uuid> {
    ids.iter().copied().collect()
}

#[test]
fn a_slow_sink_holds_back_nobody() {
    let bench = Bench::new();
    let (stuck, willing) = (Scripted::new(|_| None), Scripted::willing());
    let dispatcher = bench.serve(vec![stuck.job("stuck"), willing.job("willing")]);
    let ids = bench.append(100);
    let books = dispatcher.books();
    common::wait_until(|| Some(()).filter(|()| books[1].stats(0).delivered == 100));
    assert_eq!(willing.taken(), ids);
    assert_eq!(books[0].stats(0).delivered, 0);
    // What may be deleted from the journal is what both have passed.
    assert!(books[0].cursor() <= 1);
    let began = Instant::now();
    let drained = dispatcher.drain(Duration::from_millis(200));
    assert!(drained[0].remaining > 0 && drained[1].remaining == 0, "{drained:?}");
    assert!(began.elapsed() < PATIENCE);
}

#[test]
fn a_crash_at_any_call_repeats_at_most_one_batch_and_loses_nothing() {
    let bench = Bench::new();
    let ids = bench.append(200);
    let cursor_path = bench.file("scripted.cursor");
    // What a crash would leave: the cursor on disk, and what the sink had taken by then.
    let crashes: Arc<Mutex<Vec<Crash>>> = Arc::default();
    let taken_so_far: Arc<Mutex<Vec<Uuid>>> = Arc::default();
    let calls = Arc::new(Mutex::new(0_u32));
    let sink = {
        let (crashes, cursor_path) = (Arc::clone(&crashes), cursor_path.clone());
        Scripted::new(move |ids| {
            let mut calls = calls.lock();
            *calls += 1;
            // Some calls fail as a whole, and in some only a few events get through.
            let outcomes: Vec<_> = ids
                .iter()
                .enumerate()
                .map(|(place, _)| match *calls % 5 {
                    0 => retry(),
                    1 if place % 3 != 0 => retry(),
                    _ => Outcome::Delivered,
                })
                .collect();
            let mut taken = taken_so_far.lock();
            taken.extend(
                ids.iter().zip(&outcomes).filter(|(_, outcome)| **outcome == Outcome::Delivered).map(|(id, _)| *id),
            );
            // The receiver has it, and the process dies before it hears so.
            crashes.lock().push((fs::read(&cursor_path).ok(), taken.clone()));
            Some(outcomes)
        })
    };
    assert_eq!(bench.serve(vec![sink.job("scripted")]).drain(PATIENCE)[0].remaining, 0);
    assert_eq!(set(&sink.taken()), set(&ids));

    let crashes = crashes.lock().clone();
    assert!(crashes.len() > 10);
    for (cursor, taken_before) in crashes {
        match cursor {
            Some(cursor) => fs::write(&cursor_path, cursor).unwrap(),
            None => fs::remove_file(&cursor_path).unwrap_or_default(),
        }
        let after = Scripted::willing();
        assert_eq!(bench.serve(vec![after.job("scripted")]).drain(PATIENCE)[0].remaining, 0);
        let (before, after) = (set(&taken_before), set(&after.taken()));
        assert_eq!(before.union(&after).count(), 200, "some events were lost");
        let repeated = before.intersection(&after).count();
        // A batch, and the one that may be read to judge another.
        assert!(repeated <= policy().limits.events + 1, "{repeated} events were repeated");
    }
}

#[test]
fn a_cursor_of_another_journal_says_nothing() {
    let bench = Bench::new();
    bench.append(10);
    assert_eq!(bench.serve(vec![Scripted::willing().job("scripted")]).drain(PATIENCE)[0].remaining, 0);
    let other = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(&other.path().join("journal"), Options::default()).unwrap();
    let id = Uuid::now_v7();
    journal.append_message(Kind::End, id, 0, &finished()).unwrap();
    let sink = Scripted::willing();
    let dispatcher = Dispatcher::start(vec![sink.job("scripted")], bench.dir.path(), &journal).unwrap();
    wait_for(&dispatcher, |stats| stats.delivered == 1);
    assert_eq!(sink.taken(), [id]);
}

#[test]
fn where_an_older_copy_of_the_journal_came_back_what_is_new_is_delivered() {
    let bench = Bench::new();
    let journal_dir = bench.dir.path().join("journal");
    let segment = journal_dir.join("00000000000000000001.seg");
    bench.append(5);
    let older = fs::read(&segment).unwrap();
    bench.append(50);
    assert_eq!(bench.serve(vec![Scripted::willing().job("scripted")]).drain(PATIENCE)[0].remaining, 0);
    let Bench { dir, journal } = bench;
    drop(journal);
    fs::write(&segment, older).unwrap();
    let (journal, _) = Journal::open(&journal_dir, Options::default()).unwrap();
    let bench = Bench { dir, journal };

    // The receiver is away until the next start. By then the numbers are not as high as they were once.
    let away = Scripted::new(|ids| Some(vec![retry(); ids.len()]));
    let dispatcher = bench.serve(vec![away.job("scripted")]);
    let ids = bench.append(30);
    wait_for(&dispatcher, |stats| stats.retried > 0);
    drop(dispatcher);
    let sink = Scripted::willing();
    assert_eq!(bench.serve(vec![sink.job("scripted")]).drain(PATIENCE)[0].remaining, 0);
    assert_eq!(sink.taken(), ids);
}

#[test]
fn a_dispatcher_in_another_process_delivers_the_same_and_either_goes_on_where_the_other_was() {
    let bench = Bench::new();
    let journal_dir = bench.dir.path().join("journal");
    let (mut expected, mut taken) = (Vec::new(), Vec::new());
    for run in 0..4 {
        expected.extend(bench.append(30));
        let feed = match run % 2 {
            0 => Feed::from(Follower::open(&journal_dir).unwrap()),
            _ => Feed::from(&bench.journal),
        };
        let sink = Scripted::willing();
        let dispatcher = Dispatcher::start(vec![sink.job("scripted")], bench.dir.path(), &feed).unwrap();
        expected.extend(bench.append(30));
        wait_for(&dispatcher, |stats| stats.delivered == 60);
        assert_eq!(dispatcher.drain(PATIENCE)[0].remaining, 0, "run {run}");
        taken.extend(sink.taken());
        // What the process that keeps the journal goes by.
        let cursor = bench.journal.position();
        let names = ["scripted".to_owned(), "new".to_owned()];
        let saved = saved_cursors(bench.dir.path(), bench.journal.id()).unwrap();
        assert_eq!(saved, [("scripted".to_owned(), cursor)]);
        assert_eq!(lowest_cursor(bench.dir.path(), bench.journal.id(), &names[..1]).unwrap(), Some(cursor));
        assert_eq!(lowest_cursor(bench.dir.path(), bench.journal.id(), &names).unwrap(), Some(0));
    }
    assert_eq!(taken, expected);
}

#[test]
fn actions_of_administrators_are_delivered_like_exchanges() {
    let bench = Bench::new();
    let sink = Scripted::willing();
    let mut ids = bench.append(1);
    let action = Uuid::now_v7();
    let exchange = Exchange { id: action.to_string(), r#type: EventType::Admin.into(), ..Exchange::default() };
    bench.journal.append_message(Kind::Admin, action, 1, &exchange).unwrap();
    ids.push(action);
    ids.extend(bench.append(1));
    assert_eq!(bench.serve(vec![sink.job("scripted")]).drain(PATIENCE)[0].remaining, 0);
    assert_eq!(sink.taken(), ids);
}

#[test]
fn records_that_left_the_journal_before_they_were_read_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 4_096, ..Options::default() };
    let (journal, _) = Journal::open(&dir.path().join("journal"), options).unwrap();
    let bench = Bench { dir, journal };
    let sink = Scripted::willing();
    bench.append(1);
    assert_eq!(bench.serve(vec![sink.job("scripted")]).drain(PATIENCE)[0].remaining, 0);
    bench.append(100);
    assert!(bench.journal.release(150).unwrap() > 1);
    let oldest = bench.journal.reader(0).next().unwrap().unwrap().seq;
    for feed in [Feed::from(&bench.journal), Feed::from(Follower::open(&bench.dir.path().join("journal")).unwrap())] {
        let cursor = fs::read(bench.file("scripted.cursor")).unwrap();
        let dispatcher = Dispatcher::start(vec![sink.job("scripted")], bench.dir.path(), feed).unwrap();
        let stats = wait_for(&dispatcher, |stats| stats.lag_records == 0);
        assert_eq!(stats.dropped, oldest - 3);
        drop(dispatcher);
        fs::write(bench.file("scripted.cursor"), cursor).unwrap();
    }
}

/// The events of a journal, as they are read for sending.
fn events(journal: &Journal) -> Vec<Event> {
    let mut reader = journal.reader(0);
    let mut events = Vec::new();
    while let Some(record) = reader.next().unwrap() {
        if record.kind == Kind::End {
            let exchange = Exchange::decode(record.payload.as_slice()).unwrap();
            let (seq, id, time_us) = (record.seq, record.event_id, record.time_us);
            events.push(Event { seq, id, time_us, exchange, payload: record.payload.into() });
        }
    }
    events
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn events_that_somebody_has_chosen_are_sent_by_the_sinks_own_rules() {
    let bench = Bench::new();
    let ids = bench.append(50);
    let other = bench.append_one(&Exchange { project_id: Some("other".to_owned()), ..finished() });
    let bad = [ids[7], ids[40]];
    let calls = Mutex::new(0_u32);
    let sink = Scripted::new(move |sent| {
        assert!(sent.len() <= 20);
        let mut calls = calls.lock();
        *calls += 1;
        if *calls % 3 == 1 {
            return Some(vec![retry(); sent.len()]);
        }
        let poison = || Outcome::Poison { reason: "never".to_owned() };
        Some(sent.iter().map(|id| if bad.contains(id) { poison() } else { Outcome::Delivered }).collect())
    });
    let mut job = sink.job("scripted");
    let project = Match { projects: vec!["other".to_owned()], ..Match::default() };
    job.policy.filter = Filter { except: Some(project), ..Filter::default() };
    let (mut arrived, mut dead, mut last) = (Vec::new(), Vec::new(), 0);
    // Twice, as where two ranges overlap.
    let twice = [events(&bench.journal), events(&bench.journal)].concat();
    let sent = block_on(send_all(&job, twice, |progress| {
        arrived.extend_from_slice(progress.arrived);
        dead.extend_from_slice(progress.dead);
        let so_far = progress.sent;
        assert_eq!(so_far.taken, so_far.delivered + so_far.dead + progress.waiting as u64);
        assert!(so_far.delivered + so_far.dead >= last);
        last = so_far.delivered + so_far.dead;
    }));
    assert!(sent.retried > 0 && !sink.taken().contains(&other));
    let expected = Sent { taken: 100, delivered: 96, dead: 4, left_out: 2, retried: sent.retried, ..Sent::default() };
    assert_eq!(sent, expected);
    let good: BTreeSet<_> = ids.iter().copied().filter(|id| !bad.contains(id)).collect();
    assert_eq!((arrived.len(), set(&arrived)), (96, good));
    assert_eq!(dead.iter().map(|dead| dead.event.id).collect::<BTreeSet<_>>(), set(&bad));
    // The cursor knows nothing of it.
    assert!(!bench.file("scripted.cursor").exists());

    // What is dead is put aside, read back, and taken out once it has arrived.
    dead_letters::put_aside(bench.dir.path(), "scripted", &Feed::from(&bench.journal), dead).unwrap();
    let path = dead_letters::path(bench.dir.path(), "scripted");
    let read: Vec<_> = dead_letters::read(&path).unwrap().map(|letter| letter.unwrap().event.unwrap()).collect();
    assert_eq!(read.len(), 4);
    let arrived = {
        let mut arrived = std::collections::HashSet::new();
        let job = Scripted::willing().job("scripted");
        block_on(send_all(&job, read, |progress| arrived.extend(progress.arrived.iter().copied())));
        arrived
    };
    assert_eq!(dead_letters::remove(&path, &arrived).unwrap(), 4);
    assert!(bench.dead("scripted").is_empty());
}

#[test]
fn sending_what_somebody_has_chosen_ends_when_nothing_gets_through() {
    let bench = Bench::new();
    bench.append(50);
    for fault in [Fault::Sink, Fault::Unclear] {
        let refusal = Outcome::Retry { after: None, fault, reason: "down".to_owned() };
        let sink = Scripted::new(move |ids| Some(vec![refusal.clone(); ids.len()]));
        let mut job = sink.job("scripted");
        job.policy.max_attempts = 6;
        let mut health = Vec::new();
        let sent = block_on(send_all(&job, events(&bench.journal), |progress| health.push(progress.health)));
        assert_eq!((sent.gave_up.as_deref(), sent.delivered, sent.dead), (Some("down"), 0, 0), "{fault:?}");
        assert_eq!((health.len(), health.last()), (6, Some(&Health::Down)));
    }
}

#[test]
fn a_second_dispatcher_is_told_who_serves_the_sink() {
    let bench = Bench::new();
    let first = bench.serve(vec![Scripted::willing().job("scripted")]);
    let jobs = vec![Scripted::willing().job("other"), Scripted::willing().job("scripted")];
    let Err(DispatcherError::Lock(LockError::Held { consumer, holder, .. })) =
        Dispatcher::start(jobs, bench.dir.path(), &bench.journal)
    else {
        panic!("a second one was let in");
    };
    assert_eq!((consumer.as_str(), holder), ("scripted", std::process::id().to_string()));
    drop(first);
    bench.serve(vec![Scripted::willing().job("scripted"), Scripted::willing().job("other")]);
}

#[test]
fn records_that_hold_no_event_are_put_aside_and_hold_back_nobody() {
    let bench = Bench::new();
    let mut ids = bench.append(5);
    let bad = Uuid::now_v7();
    // Field 2 of a message that is no number, and a text that is no UTF-8.
    for payload in [&b"\x12"[..], b"\x0a\x02\xff\xfe"] {
        bench.journal.append(Kind::End, bad, 0, payload).unwrap();
    }
    ids.extend(bench.append(5));
    let sink = Scripted::willing();
    let dispatcher = bench.serve(vec![sink.job("scripted")]);
    let stats = wait_for(&dispatcher, |stats| stats.delivered == 10);
    assert_eq!((stats.unreadable, stats.dead, stats.taken), (2, 0, 10));
    assert_eq!(dispatcher.drain(PATIENCE)[0].remaining, 0);
    assert_eq!(sink.taken(), ids);
    let dead = bench.dead("scripted");
    assert_eq!(dead.len(), 2);
    assert_eq!((&dead[1]["payload"], &dead[1]["record"]), (&"CgL//g==".into(), &serde_json::Value::Null));
    assert!(dead[0]["reason"].as_str().unwrap().starts_with("the record holds no event: "));
}

#[test]
fn a_sink_that_panics_is_asked_again() {
    let bench = Bench::new();
    let calls = Mutex::new(0_u32);
    let sink = Scripted::new(move |ids| {
        let call = {
            let mut calls = calls.lock();
            *calls += 1;
            *calls
        };
        assert!(call > 2, "this sink panics");
        Some(vec![Outcome::Delivered; ids.len()])
    });
    let ids = bench.append(10);
    let dispatcher = bench.serve(vec![sink.job("scripted")]);
    wait_for(&dispatcher, |stats| stats.delivered == 10);
    assert_eq!(set(&sink.taken()), set(&ids));
}

#[test]
fn an_outcome_that_is_missing_is_no_delivery() {
    let bench = Bench::new();
    let sink = Scripted::new(|_| Some(vec![Outcome::Delivered]));
    let ids = bench.append(30);
    let dispatcher = bench.serve(vec![sink.job("scripted")]);
    let stats = wait_for(&dispatcher, |stats| stats.delivered == 30);
    assert!(stats.retried > 0);
    assert_eq!((sink.taken().len(), set(&sink.taken())), (30, set(&ids)));
}

#[test]
fn a_sample_is_the_same_whenever_it_is_drawn() {
    let bench = Bench::new();
    let ids = bench.append(500);
    let sample = Sample::new(0.2).unwrap();
    let draw = |name: &str| {
        let sink = Scripted::willing();
        let mut job = sink.job(name);
        job.policy.filter = Filter { sample, ..Filter::default() };
        assert_eq!(bench.serve(vec![job]).drain(PATIENCE)[0].remaining, 0);
        sink.taken()
    };
    let expected: Vec<_> = ids.into_iter().filter(|id| sample.keeps(*id)).collect();
    assert!((50..150).contains(&expected.len()));
    assert_eq!((draw("one"), draw("two")), (expected.clone(), expected));
}

#[test]
fn a_batch_waits_for_more_until_it_is_old_enough() {
    let bench = Bench::new();
    let sizes: Arc<Mutex<Vec<usize>>> = Arc::default();
    let sink = {
        let sizes = Arc::clone(&sizes);
        Scripted::new(move |ids| {
            sizes.lock().push(ids.len());
            Some(vec![Outcome::Delivered; ids.len()])
        })
    };
    let mut job = sink.job("scripted");
    job.policy.limits = Limits { events: 10, bytes: 1 << 20, age: Duration::from_secs(3_600) };
    let dispatcher = bench.serve(vec![job]);
    bench.append(25);
    wait_for(&dispatcher, |stats| stats.delivered == 20 && stats.waiting == 5);
    assert_eq!(*sizes.lock(), [10, 10]);
    // The end of the process is old enough.
    assert_eq!(dispatcher.drain(PATIENCE)[0].remaining, 0);
    assert_eq!(*sizes.lock(), [10, 10, 5]);
}

#[test]
fn the_books_balance_whatever_becomes_of_the_events() {
    let bench = Bench::new();
    let calls = Mutex::new(0_usize);
    let sink = Scripted::new(move |ids| {
        let mut calls = calls.lock();
        *calls += 1;
        let fate = |place: usize| match (*calls * 7 + place) % 5 {
            0 => Outcome::Duplicate,
            1 => Outcome::Poison { reason: "never".to_owned() },
            2 => retry(),
            _ => Outcome::Delivered,
        };
        Some((0..ids.len()).map(fate).collect())
    });
    let dispatcher = bench.serve(vec![sink.job("scripted")]);
    for _ in 0..20 {
        bench.append(25);
        let now = stats(&dispatcher);
        assert!(now.delivered + now.duplicates + now.dead <= 500);
    }
    let end = wait_for(&dispatcher, |stats| stats.taken == 500 && stats.waiting == 0);
    assert_eq!(end.delivered + end.duplicates + end.dead, 500, "{end:?}");
    assert_eq!(end.delivered, sink.taken().len() as u64);
    assert_eq!((end.dropped, end.left_out, end.unreadable, end.own_errors), (0, 0, 0, 0));
    assert_eq!(dispatcher.drain(PATIENCE)[0].remaining, 0);
    assert_eq!(bench.dead("scripted").len() as u64, end.dead);
}

#[test]
fn while_its_files_cannot_be_written_nothing_is_sent_twice_and_it_goes_on_afterwards() {
    let bench = Bench::new();
    let sink = Scripted::willing();
    let dispatcher = bench.serve(vec![sink.job("scripted")]);
    bench.append(5);
    wait_for(&dispatcher, |stats| stats.delivered == 5 && stats.lag_records == 0);
    let cursor = dispatcher.books()[0].clone();
    common::wait_until(|| Some(()).filter(|()| cursor.cursor() == 10));
    // A folder where the next cursor is to be written.
    let next: PathBuf = bench.file("scripted.cursor.next");
    fs::create_dir(&next).unwrap();
    bench.append(5);
    let broken = wait_for(&dispatcher, |stats| stats.own_errors > 0 && stats.health == Health::Retrying);
    assert_eq!(broken.delivered, 10);
    bench.append(5);
    fs::remove_dir(&next).unwrap();
    wait_for(&dispatcher, |stats| stats.delivered == 15);
    assert_eq!(dispatcher.drain(PATIENCE)[0].remaining, 0);
    assert_eq!(sink.taken().len(), 15);
}

#[test]
fn files_are_private_and_lie_in_a_folder_of_their_own() {
    use std::os::unix::fs::PermissionsExt;

    let bench = Bench::new();
    let poison = Scripted::new(|ids| Some(vec![Outcome::Poison { reason: "never".to_owned() }; ids.len()]));
    bench.append(1);
    assert_eq!(bench.serve(vec![poison.job("scripted")]).drain(PATIENCE)[0].remaining, 0);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&bench.dir.path().join("sinks")), 0o700);
    for file in ["scripted.cursor", "scripted.lock", "scripted.dead.jsonl"] {
        assert_eq!(mode(&bench.file(file)), 0o600, "{file}");
    }
}
