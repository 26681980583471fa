//! Erasing captured content: what goes, what stays, and that nobody who reads meanwhile notices more than that.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may be blunt"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Bench, PATIENCE, finished, stats, wait_for, wait_until};
use futures::FutureExt;
use futures::future::BoxFuture;
use llm_proxy_plugins::dispatcher::{
    Backoff, Dispatcher, Event, Fault, Job, Limits, Outcome, Policy, Sink, dead_letters,
};
use llm_proxy_plugins::erasure::{Erased, ErasureError, Which, erase, sweep};
use llm_proxy_plugins::event::{Body, CapturePolicy, Content, Exchange, Message};
use llm_proxy_plugins::journal::{Feed, Follower, Journal, Kind, Options, Reader, Record};
use llm_proxy_plugins::sinks::file::{Compression, FileSettings, FileSink};
use parking_lot::Mutex;
use serde_json::Value;
use uuid::Uuid;

/// A data directory whose journal has many small segments.
fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    Bench { dir, journal }
}

fn open(data_dir: &Path) -> Journal {
    Journal::open(&data_dir.join("journal"), Options { segment_bytes: 4 << 10, ..Options::default() }).unwrap().0
}

/// What nobody is to find any more, in bodies of this project.
fn secret(project: &str) -> String {
    format!("the secret of {project}")
}

fn captured(project: &str) -> Exchange {
    let json = format!(r#"{{"messages":[{{"role":"user","content":"{}"}}]}}"#, secret(project));
    let request = Body { bytes: 99, json: Some(json.into_bytes()), ..Body::default() };
    let response = Body { bytes: 77, text: Some(secret(project)), ..Body::default() };
    let content = Content { policy: CapturePolicy::Full.into(), request: Some(request), response: Some(response) };
    Exchange { project_id: Some(project.to_owned()), content: Some(content), ..finished() }
}

/// Appends exchanges with content of two projects, in turn, and returns the ids of the first one's and the second's.
fn append(bench: &Bench, pairs: usize) -> (Vec<Uuid>, Vec<Uuid>) {
    (0..pairs).map(|_| (bench.append_one(&captured("blue")), bench.append_one(&captured("red")))).unzip()
}

fn of_blue() -> Which {
    Which { project: Some("blue".to_owned()), ..Which::default() }
}

fn erase_from(bench: &Bench, which: &Which) -> Erased {
    erase(bench.dir.path(), &bench.journal, which, None).unwrap()
}

fn rest(reader: &mut Reader) -> Vec<Record> {
    let mut records = Vec::new();
    while let Some(record) = reader.next().unwrap() {
        records.push(record);
    }
    records
}

/// The record as it is to be once its content is gone.
fn without_content(mut record: Record) -> Record {
    let exchange = Exchange { content: None, ..Exchange::decode(record.payload.as_slice()).unwrap() };
    record.payload = exchange.encode_to_vec();
    record
}

/// All files below a folder, unpacked, with their paths.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
            continue;
        }
        // Some are compressed meanwhile, and gone then.
        let Ok(mut file) = File::open(&path) else { continue };
        let mut bytes = Vec::new();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("gz") => flate2::read::MultiGzDecoder::new(file).read_to_end(&mut bytes).unwrap(),
            Some("zst") => zstd::stream::read::Decoder::new(file).unwrap().read_to_end(&mut bytes).unwrap(),
            _ => file.read_to_end(&mut bytes).unwrap(),
        };
        found.insert(path, bytes);
    }
    found
}

/// In which files a project's secret can still be read.
fn found_in(dir: &Path, project: &str) -> Vec<PathBuf> {
    let secret = secret(project).into_bytes();
    let holds = |bytes: &[u8]| bytes.windows(secret.len()).any(|window| window == secret);
    files(dir).into_iter().filter(|(_, bytes)| holds(bytes)).map(|(path, _)| path).collect()
}

fn nowhere() -> Vec<PathBuf> {
    Vec::new()
}

/// The lines of all files of events, by the id of the event.
fn lines(dir: &Path) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    let is_ours = |path: &Path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        // Copies that were being made when the sink ended are none.
        name.starts_with("events") && name.contains(".jsonl") && !name.ends_with(".tmp")
    };
    for (path, bytes) in files(dir).into_iter().filter(|(path, _)| path.parent() == Some(dir) && is_ours(path)) {
        for line in String::from_utf8(bytes).unwrap().lines() {
            let id = serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
            assert_eq!(lines.insert(id, line.to_owned()), None, "an event stands twice, again in {}", path.display());
        }
    }
    lines
}

#[test]
fn the_content_of_a_project_goes_and_every_other_byte_of_the_journal_stays() {
    let bench = bench();
    let (blue, _) = append(&bench, 50);
    let before = rest(&mut bench.journal.reader(0));
    assert!(bench.journal.stats().segments > 5);
    assert!(!found_in(bench.dir.path(), "blue").is_empty());

    let erased = erase_from(&bench, &of_blue());
    assert_eq!(erased.records, 50);
    assert!(erased.files > 5 && erased.bytes > 50 * secret("blue").len() as u64 * 2, "{erased:?}");
    assert_eq!(found_in(bench.dir.path(), "blue"), nowhere());
    let blue: BTreeSet<_> = blue.into_iter().collect();
    let is_erased = |record: &Record| record.kind == Kind::End && blue.contains(&record.event_id);
    let expected: Vec<_> =
        before.into_iter().map(|record| if is_erased(&record) { without_content(record) } else { record }).collect();
    assert_eq!(rest(&mut bench.journal.reader(0)), expected);
    // And again there is nothing to do.
    assert_eq!(erase_from(&bench, &of_blue()), Erased::default());

    let last_seq = bench.journal.position();
    let Bench { dir, journal } = bench;
    drop(journal);
    let (journal, recovered) = Journal::open(&dir.path().join("journal"), Options::default()).unwrap();
    assert_eq!((recovered.bad_records, recovered.torn_bytes, recovered.last_seq), (0, 0, last_seq));
    assert_eq!(rest(&mut journal.reader(0)), expected);
}

#[test]
fn content_goes_by_its_age_and_by_its_event() {
    let bench = bench();
    let began = |age: Duration| {
        let ms = u64::try_from(common::now_us()).unwrap() / 1_000 - u64::try_from(age.as_millis()).unwrap();
        uuid::Builder::from_unix_timestamp_millis(ms, &[3; 10]).into_uuid()
    };
    let days = |days: u64| Duration::from_secs(days * 86_400);
    let append_as = |id: Uuid| {
        let exchange = Exchange { id: id.to_string(), ..captured("blue") };
        bench.journal.append_message(Kind::End, id, common::now_us(), &exchange).unwrap();
    };
    let ids = [days(40), days(31), days(29), days(1)].map(began);
    ids.iter().for_each(|id| append_as(*id));
    let kept = || {
        let has_content = |record: &Record| Exchange::decode(record.payload.as_slice()).unwrap().content.is_some();
        let records = rest(&mut bench.journal.reader(0));
        records.iter().filter(|record| has_content(record)).map(|record| record.event_id).collect::<Vec<_>>()
    };
    let month = Which { before_us: Some(common::now_us() - 30 * 86_400 * 1_000_000), ..Which::default() };
    let of_red = Which { project: Some("red".to_owned()), ..month.clone() };
    assert_eq!((erase_from(&bench, &of_red).records, kept()), (0, ids.to_vec()));
    assert_eq!((erase_from(&bench, &month).records, kept()), (2, ids[2..].to_vec()));
    let one = Which { events: vec![ids[3], Uuid::now_v7()], ..Which::default() };
    assert_eq!((erase_from(&bench, &one).records, kept()), (1, vec![ids[2]]));
    let nothing = erase(bench.dir.path(), &bench.journal, &Which::default(), None);
    assert!(matches!(nothing, Err(ErasureError::NoCondition)));
    assert_eq!(kept(), [ids[2]]);
}

#[test]
fn consumers_in_the_middle_of_the_journal_go_on_where_they_are() {
    let bench = bench();
    append(&bench, 50);
    let follower = Follower::open(&bench.dir.path().join("journal")).unwrap();
    let last_seq = bench.journal.position();
    let feeds = [Feed::from(&bench.journal), Feed::from(&follower)];
    // Some have the segment open, at its beginning or further on, and some will open what has taken its place.
    let mut readers: Vec<_> = feeds.iter().flat_map(|feed| [0, 1, 5, 60, 150].map(|seq| feed.reader(seq))).collect();
    for reader in readers.iter_mut().step_by(2) {
        reader.next().unwrap().unwrap();
    }
    erase_from(&bench, &of_blue());
    for mut reader in readers {
        let after = reader.last_seq();
        let seqs: Vec<_> = rest(&mut reader).iter().map(|record| record.seq).collect();
        assert_eq!(seqs, (after + 1..=last_seq).collect::<Vec<_>>());
        assert_eq!((reader.skipped(), reader.missed()), (0, 0));
    }
    append(&bench, 1);
    assert_eq!(follower.position(), bench.journal.position());
    assert_eq!(rest(&mut follower.reader(last_seq)), rest(&mut bench.journal.reader(last_seq)));
}

#[test]
fn a_segment_that_was_damaged_keeps_its_good_records_and_not_the_rest() {
    let bench = bench();
    append(&bench, 30);
    let Bench { dir, journal } = bench;
    drop(journal);
    let first = dir.path().join("journal").join("00000000000000000001.seg");
    let mut bytes = fs::read(&first).unwrap();
    // In the middle of the first body: nobody can say any more whose record that was.
    let secret = secret("blue").into_bytes();
    let at = bytes.windows(secret.len()).position(|window| window == secret).unwrap();
    bytes[at] ^= 1;
    fs::write(&first, bytes).unwrap();
    let (journal, recovered) = Journal::open(&dir.path().join("journal"), Options::default()).unwrap();
    assert_eq!(recovered.bad_records, 1);
    let bench = Bench { dir, journal };
    let seqs = || rest(&mut bench.journal.reader(0)).iter().map(|record| record.seq).collect::<Vec<_>>();
    let before = seqs();
    // The end of the first exchange is lost, so it is found unended.
    assert_eq!(erase_from(&bench, &of_blue()).records, 29);
    assert_eq!(seqs(), before);
    assert_eq!(found_in(bench.dir.path(), "blue"), nowhere());
    let holds_rest = |bytes: &Vec<u8>| bytes.windows(secret.len() - 1).any(|window| window == &secret[1..]);
    assert!(!files(bench.dir.path()).values().any(holds_rest));
}

#[test]
fn the_segment_being_written_is_ended_only_for_what_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(&dir.path().join("journal"), Options::default()).unwrap();
    let bench = Bench { dir, journal };
    append(&bench, 3);
    let segments = || bench.journal.stats().segments;
    let of_green = Which { project: Some("green".to_owned()), ..Which::default() };
    for _ in 0..3 {
        assert_eq!((erase_from(&bench, &of_green).records, segments()), (0, 1));
    }
    assert_eq!((erase_from(&bench, &of_blue()).records, segments()), (3, 2));
    assert_eq!(found_in(bench.dir.path(), "blue"), nowhere());
    // Into the new one: it is ended as well, and once.
    append(&bench, 1);
    for (records, expected) in [(1, 3), (0, 3)] {
        assert_eq!((erase_from(&bench, &of_blue()).records, segments()), (records, expected));
        assert_eq!(found_in(bench.dir.path(), "blue"), nowhere());
    }
    assert_eq!(rest(&mut bench.journal.reader(0)).len(), 16);
}

#[test]
fn files_of_events_lose_the_content_in_their_own_compression() {
    for compress in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let bench = bench();
        let settings = FileSettings { rotate_bytes: Some(20_000), compress, ..FileSettings::default() };
        let sink = FileSink::start(&settings, bench.dir.path(), &bench.journal).unwrap();
        for _ in 0..4 {
            append(&bench, 20);
            wait_until(|| Some(()).filter(|()| sink.books().stats().pending == 0));
        }
        let suffix = match compress {
            Compression::None => ".jsonl",
            Compression::Gzip => ".jsonl.gz",
            Compression::Zstd => ".jsonl.zst",
        };
        // Until nothing is compressed any more.
        let is_quiet = || {
            let paths: Vec<_> = files(bench.dir.path()).into_keys().collect();
            let names: Vec<_> = paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
            let is_moved = |name: &&&str| name.starts_with("events-");
            let has_moved = names.iter().filter(is_moved).count() >= 2;
            let is_done = names.iter().filter(is_moved).all(|name| name.ends_with(suffix));
            Some(()).filter(|()| has_moved && is_done)
        };
        wait_until(is_quiet);
        let before = lines(bench.dir.path());
        assert_eq!(before.len(), 160);

        let handle = sink.handle();
        let erased = erase(bench.dir.path(), &bench.journal, &of_blue(), Some(&handle)).unwrap();
        // Once in the journal, and once in a file.
        assert_eq!(erased.records, 160, "{compress:?}");
        assert_eq!(found_in(bench.dir.path(), "blue"), nowhere(), "{compress:?}");
        wait_until(is_quiet);
        let after = lines(bench.dir.path());
        assert_eq!(after.len(), 160);
        for (id, line) in &before {
            if line.contains(&secret("red")) {
                assert_eq!(after[id], *line);
                continue;
            }
            let (mut expected, found): (Value, Value) =
                (serde_json::from_str(line).unwrap(), serde_json::from_str(&after[id]).unwrap());
            assert!(expected["content"].is_object());
            expected["content"] = Value::Null;
            assert_eq!(found, expected);
        }

        // The sink goes on, and knows what it has written.
        append(&bench, 5);
        assert_eq!(sink.drain(PATIENCE).remaining, 0);
        let sink = FileSink::start(&settings, bench.dir.path(), &bench.journal).unwrap();
        append(&bench, 5);
        assert_eq!(sink.drain(PATIENCE).remaining, 0);
        assert_eq!(lines(bench.dir.path()).len(), 180);
    }
}

#[test]
fn a_file_of_events_with_nothing_to_erase_stays() {
    let bench = bench();
    let settings = FileSettings { rotate_bytes: Some(1 << 30), keep: Some(1), ..FileSettings::default() };
    let sink = FileSink::start(&settings, bench.dir.path(), &bench.journal).unwrap();
    append(&bench, 5);
    let of_green = Which { project: Some("green".to_owned()), ..Which::default() };
    for _ in 0..3 {
        erase(bench.dir.path(), &bench.journal, &of_green, Some(&sink.handle())).unwrap();
        append(&bench, 5);
    }
    assert_eq!(sink.drain(PATIENCE).remaining, 0);
    let events = fs::read_to_string(bench.dir.path().join("events.jsonl")).unwrap();
    assert_eq!((events.lines().count(), lines(bench.dir.path()).len()), (40, 40));
}

#[test]
fn files_that_others_have_moved_away_are_found_too() {
    let bench = bench();
    let sink = FileSink::start(&FileSettings::default(), bench.dir.path(), &bench.journal).unwrap();
    append(&bench, 5);
    wait_until(|| Some(()).filter(|()| sink.books().stats().pending == 0));
    fs::rename(bench.dir.path().join("events.jsonl"), bench.dir.path().join("events.jsonl.1")).unwrap();
    append(&bench, 5);
    wait_until(|| Some(()).filter(|()| sink.books().stats().pending == 0));
    erase(bench.dir.path(), &bench.journal, &of_blue(), Some(&sink.handle())).unwrap();
    assert_eq!(found_in(bench.dir.path(), "blue"), nowhere());
    assert_eq!(lines(bench.dir.path()).len(), 20);
}

#[test]
fn a_file_sink_that_has_ended_is_told_and_the_rest_is_erased_all_the_same() {
    let bench = bench();
    let sink = FileSink::start(&FileSettings::default(), bench.dir.path(), &bench.journal).unwrap();
    append(&bench, 5);
    let handle = sink.handle();
    sink.drain(PATIENCE);
    let failed = erase(bench.dir.path(), &bench.journal, &of_blue(), Some(&handle));
    assert!(matches!(failed, Err(ErasureError::File(_))), "{failed:?}");
    assert_eq!(found_in(bench.dir.path(), "blue"), [bench.dir.path().join("events.jsonl")]);
}

/// A sink that keeps what it is told to deliver, refuses for ever, or is away.
#[derive(Clone)]
struct Scripted {
    fate: Arc<dyn Fn() -> Outcome + Send + Sync>,
    taken: Arc<Mutex<Vec<Event>>>,
}

impl Scripted {
    fn new(fate: impl Fn() -> Outcome + Send + Sync + 'static) -> Self {
        Self { fate: Arc::new(fate), taken: Arc::default() }
    }

    fn job(&self) -> Job {
        let policy = Policy {
            limits: Limits { events: 20, bytes: 1 << 20, age: Duration::from_millis(5) },
            backoff: Backoff { first: Duration::from_millis(5), longest: Duration::from_millis(20) },
            ..Policy::default()
        };
        Job { name: "scripted".to_owned(), sink: Box::new(self.clone()), policy }
    }
}

impl Sink for Scripted {
    fn deliver<'a>(&'a self, batch: &'a [&'a Event]) -> BoxFuture<'a, Vec<Outcome>> {
        async move {
            let outcomes: Vec<_> = batch.iter().map(|_| (self.fate)()).collect();
            let delivered = batch.iter().zip(&outcomes).filter(|(_, outcome)| **outcome == Outcome::Delivered);
            self.taken.lock().extend(delivered.map(|(event, _)| (*event).clone()));
            outcomes
        }
        .boxed()
    }
}

#[test]
fn what_waits_for_a_sink_that_is_away_is_delivered_without_its_content() {
    // By this process and by another one, which is told by nobody.
    for is_foreign in [false, true] {
        let bench = bench();
        let is_away = Arc::new(AtomicBool::new(true));
        let sink = {
            let is_away = Arc::clone(&is_away);
            Scripted::new(move || match is_away.load(Ordering::SeqCst) {
                true => Outcome::Retry { after: None, fault: Fault::Sink, reason: "away".to_owned() },
                false => Outcome::Delivered,
            })
        };
        let feed = match is_foreign {
            true => Feed::from(Follower::open(&bench.dir.path().join("journal")).unwrap()),
            false => Feed::from(&bench.journal),
        };
        let dispatcher = Dispatcher::start(vec![sink.job()], bench.dir.path(), feed).unwrap();
        let (blue, red) = append(&bench, 30);
        let red: BTreeSet<_> = red.into_iter().collect();
        // A batch of them is in memory, with its content.
        wait_for(&dispatcher, |stats| stats.waiting >= 20 && stats.retried > 0);
        erase_from(&bench, &of_blue());
        // The call that was under way has ended.
        let retried = stats(&dispatcher).retried;
        wait_for(&dispatcher, |stats| stats.retried > retried);
        is_away.store(false, Ordering::SeqCst);
        let stats = wait_for(&dispatcher, |stats| stats.delivered == 60);
        assert_eq!((stats.dropped, stats.dead), (0, 0));
        let taken = sink.taken.lock();
        let has_content = |event: &&Event| {
            let payload = Exchange::decode(&*event.payload).unwrap();
            assert_eq!(event.exchange.content.is_some(), payload.content.is_some());
            event.exchange.content.is_some()
        };
        let with: BTreeSet<_> = taken.iter().filter(has_content).map(|event| event.id).collect();
        assert_eq!(with, red, "foreign: {is_foreign}");
        let all: BTreeSet<_> = taken.iter().map(|event| event.id).collect();
        assert!(blue.iter().all(|id| all.contains(id)));
    }
}

#[test]
fn dead_letters_lose_the_content_and_stay_letters_that_can_be_sent_again() {
    let bench = bench();
    let poison = Scripted::new(|| Outcome::Poison { reason: "never".to_owned() });
    let dispatcher = bench.serve(vec![poison.job()]);
    append(&bench, 10);
    wait_for(&dispatcher, |stats| stats.dead == 20);
    let path = dead_letters::path(bench.dir.path(), "scripted");
    let before = fs::read_to_string(&path).unwrap();
    // The sink is served meanwhile.
    let erased = erase_from(&bench, &of_blue());
    assert_eq!(erased.records, 20);
    append(&bench, 5);
    wait_for(&dispatcher, |stats| stats.dead == 30);
    let after = fs::read_to_string(&path).unwrap();
    for (before, after) in before.lines().zip(after.lines()) {
        assert_eq!(before == after, before.contains(&secret("red")));
    }
    let letters: Vec<_> = dead_letters::read(&path).unwrap().map(Result::unwrap).collect();
    assert_eq!(letters.len(), 30);
    for letter in &letters[..20] {
        let exchange = &letter.event.as_ref().unwrap().exchange;
        let is_red = exchange.project_id.as_deref() == Some("red");
        assert_eq!((exchange.content.is_some(), letter.reason.as_str()), (is_red, "never"));
    }
    assert!(letters[20..].iter().all(|letter| letter.event.as_ref().unwrap().exchange.content.is_some()));
}

#[test]
fn no_sink_stands_in_the_way_whatever_its_name() {
    let bench = bench();
    let job = Job { name: "erasure".to_owned(), ..Scripted::new(|| Outcome::Delivered).job() };
    let _dispatcher = bench.serve(vec![job]);
    append(&bench, 5);
    let (done, erased) = std::sync::mpsc::channel();
    let (dir, journal) = (bench.dir.path().to_owned(), bench.journal.clone());
    std::thread::spawn(move || done.send(erase(&dir, &journal, &of_blue(), None).unwrap()));
    assert_eq!(erased.recv_timeout(PATIENCE).unwrap().records, 5);
}

#[test]
fn a_segment_that_cannot_be_read_keeps_no_other_one_as_it_is() {
    let bench = bench();
    append(&bench, 50);
    let dir = bench.dir.path();
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "seg");
    let segments: Vec<_> = files(&dir.join("journal")).into_keys().filter(is_segment).collect();
    let (second, aside) = (&segments[1], dir.join("aside"));
    fs::rename(second, &aside).unwrap();
    fs::create_dir(second).unwrap();
    let failed = erase(dir, &bench.journal, &of_blue(), None);
    assert!(matches!(failed, Err(ErasureError::Journal(_))), "{failed:?}");
    fs::remove_dir(second).unwrap();
    fs::rename(&aside, second).unwrap();
    assert_eq!(found_in(dir, "blue"), std::slice::from_ref(second));
    assert!(erase_from(&bench, &of_blue()).records > 0);
    assert_eq!(found_in(dir, "blue"), nowhere());
}

#[test]
fn a_start_leaves_the_copy_alone_that_another_process_is_making() {
    let bench = bench();
    let (dir, sinks) = (bench.dir.path(), bench.dir.path().join("sinks"));
    fs::create_dir_all(&sinks).unwrap();
    let copy = sinks.join("hook.dead.jsonl.erase");
    fs::write(&copy, "half of it").unwrap();
    let turn = File::create(sinks.join("hook.dead.lock")).unwrap();
    turn.lock().unwrap();
    std::thread::scope(|scope| {
        let sweeping = scope.spawn(|| sweep(dir, &dir.join("journal"), None));
        // Longer than it takes to remove a file.
        std::thread::sleep(Duration::from_millis(100));
        assert!(copy.exists());
        drop(turn);
        sweeping.join().unwrap().unwrap();
    });
    assert!(!copy.exists());
}

#[test]
fn what_a_crash_left_half_done_is_removed_and_done_again() {
    let bench = bench();
    append(&bench, 20);
    let (dir, sinks) = (bench.dir.path(), bench.dir.path().join("sinks"));
    fs::create_dir_all(&sinks).unwrap();
    let journal_dir = dir.join("journal");
    let copy = journal_dir.join("00000000000000000001.seg.erase");
    let left = [copy.clone(), dir.join("events-20261121T162233Z.jsonl.gz.erase"), sinks.join("hook.dead.jsonl.erase")];
    let leave = || left.iter().for_each(|path| fs::write(path, secret("blue")).unwrap());
    leave();
    let names = || files(dir).into_keys().collect::<Vec<_>>();
    // Neither a start nor a reader takes it for anything.
    assert_eq!(rest(&mut bench.journal.reader(0)).len(), 80);
    assert_eq!(rest(&mut Follower::open(&journal_dir).unwrap().reader(0)).len(), 80);
    sweep(dir, &journal_dir, Some(&dir.join("events.jsonl"))).unwrap();
    assert!(names().iter().all(|path| !left.contains(path)));
    // And without a start in between.
    fs::write(&copy, secret("blue")).unwrap();
    assert_eq!(erase_from(&bench, &of_blue()).records, 20);
    assert_eq!(found_in(dir, "blue"), nowhere());
    assert!(!names().contains(&copy));
}
