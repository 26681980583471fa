//! Events that a sink will never take, in a file beside its cursor.
//!
//! A line of JSON for each: what a person needs to see why (`reason`, the record itself), and the message as the
//! journal had it, so that it can be sent again without loss. A line is on disk before the cursor passes its event; a
//! crash between the two can write it a second time, with the same id.
//!
//! The file has a lock of its own, held for a moment by whoever writes it: the sink's loop that appends, a person who
//! sends letters again and takes those out that arrived, an erasure. So none of them needs the others to be stopped.
//! Whoever appends opens the file anew each time, since it may have been replaced.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use time::UtcDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::FOLDER;
use super::cursor::sync_folder_of;
use super::renew::renew;
use super::sink::Event;
use super::window::Dead;
use crate::erasure::{Edit, copied, remove_copy, rewrite_lines};
use crate::event::{Exchange, Message};
use crate::journal::{Feed, JournalError, Rewritten};

/// How the names of these files end.
pub(crate) const SUFFIX: &str = ".dead.jsonl";

/// The dead letters of a sink. There is no such file as long as it has none.
pub fn path(data_dir: &Path, sink: &str) -> PathBuf {
    path_in(&data_dir.join(FOLDER), sink)
}

pub(super) fn path_in(dir: &Path, sink: &str) -> PathBuf {
    dir.join(format!("{sink}{SUFFIX}"))
}

/// The dead letters of all sinks with files in `dir`.
pub(crate) fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.ends_with(SUFFIX)) {
            found.push(entry.path());
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// A dead letter, as it is read back.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// The number of its record in the journal that it came from.
    pub seq: u64,
    /// Its id.
    pub id: Uuid,
    /// When it was given up: RFC 3339.
    pub given_up_at: String,
    /// How often it was sent.
    pub attempts: u32,
    /// Why it was given up, for people.
    pub reason: String,
    /// What can be sent again; `None` where the record held no event.
    pub event: Option<Event>,
}

/// The letters of a file, in the order in which they were given up.
pub struct Letters {
    file: Option<BufReader<File>>,
    line: Vec<u8>,
}

/// Reads the dead letters at `path`, one at a time; none where there is no such file. Letters that come meanwhile are
/// read too.
///
/// # Errors
/// That of opening the file. A line that is no letter is an error of the iterator, [`io::ErrorKind::InvalidData`], after
/// which it goes on.
pub fn read(path: &Path) -> io::Result<Letters> {
    let file = match File::open(path) {
        Ok(file) => Some(BufReader::with_capacity(256 << 10, file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    Ok(Letters { file, line: Vec::new() })
}

impl Iterator for Letters {
    type Item = io::Result<DeadLetter>;

    fn next(&mut self) -> Option<Self::Item> {
        self.line.clear();
        if let Err(error) = self.file.as_mut()?.read_until(b'\n', &mut self.line) {
            self.file = None;
            return Some(Err(error));
        }
        let Some(line) = self.line.strip_suffix(b"\n") else {
            // The end, or half a line that is being written.
            self.file = None;
            return None;
        };
        Some(parse(line).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a line is no dead letter")))
    }
}

#[derive(Deserialize)]
struct Line {
    id: Uuid,
    seq: u64,
    #[serde(default)]
    time_us: i64,
    given_up_at: Option<String>,
    attempts: u32,
    reason: String,
    payload: String,
    record: Option<serde::de::IgnoredAny>,
}

fn parse(line: &[u8]) -> Option<DeadLetter> {
    let line: Line = serde_json::from_slice(line).ok()?;
    let event = match line.record {
        Some(_) => {
            let payload = STANDARD.decode(line.payload).ok()?;
            let exchange = Exchange::decode(payload.as_slice()).ok()?;
            let payload = payload.into();
            Some(Event { seq: line.seq, id: line.id, time_us: line.time_us, exchange, payload })
        }
        None => None,
    };
    Some(DeadLetter {
        seq: line.seq,
        id: line.id,
        given_up_at: line.given_up_at.unwrap_or_default(),
        attempts: line.attempts,
        reason: line.reason,
        event,
    })
}

/// Takes the letters with these ids out of the file at `path`, and returns how many there were. The sink may be served
/// meanwhile. On return it is on disk; a crash leaves the file as it was or as it should be.
///
/// # Errors
/// The file is as it was.
pub fn remove(path: &Path, ids: &HashSet<Uuid>) -> io::Result<u64> {
    #[derive(Deserialize)]
    struct IdOnly {
        id: Uuid,
    }
    let is_among = |line: &[u8]| serde_json::from_slice::<IdOnly>(line).is_ok_and(|line| ids.contains(&line.id));
    Ok(rewrite(path, &|line| if is_among(line) { Edit::Remove } else { Edit::Keep })?.records)
}

/// Changes the file at `path`, where there is one. A file without a letter goes.
pub(crate) fn rewrite(path: &Path, edit: &dyn Fn(&[u8]) -> Edit) -> io::Result<Rewritten> {
    if !path.try_exists()? {
        return Ok(Rewritten::default());
    }
    let _turn = take_turn(path)?;
    match rewrite_lines(path, edit) {
        Ok(rewritten) => {
            if rewritten.files > 0 && fs::metadata(path)?.len() == 0 {
                fs::remove_file(path)?;
                sync_folder_of(path)?;
            }
            Ok(rewritten)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Rewritten::default()),
        Err(error) => Err(error),
    }
}

/// Removes the copies in `dir` that a crash left in the middle of rewriting. Whoever is in the middle of it now, is waited
/// for: it may be another process.
pub(crate) fn sweep(dir: &Path) -> io::Result<()> {
    for path in copied(dir, &|copied| copied.ends_with(SUFFIX))? {
        let _turn = take_turn(&path)?;
        remove_copy(&path)?;
    }
    Ok(())
}

/// Puts events aside that `sink` will never take, as its loop does: for who sends without a cursor.
///
/// # Errors
/// Some of them may not be in the file.
pub fn put_aside(data_dir: &Path, sink: &str, feed: &Feed, dead: Vec<Dead>) -> Result<(), PutAsideError> {
    let dir = data_dir.join(FOLDER);
    DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    let mut letters = DeadLetters::new(path_in(&dir, sink));
    for dead in dead {
        letters.add(Letter::of(dead), UtcDateTime::now());
    }
    let turn = letters.take_turn()?;
    // Nobody knows how long ago they were read.
    renew(feed, letters.events_mut())?;
    Ok(letters.write(&turn)?)
}

/// Why events were not put aside.
#[derive(Debug, thiserror::Error)]
pub enum PutAsideError {
    /// The file could not be written.
    #[error("cannot write the dead letters: {0}")]
    Write(#[from] io::Error),
    /// The journal, which is asked what is still to be kept, could not be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// The right to change a file of dead letters, while this lives.
pub(crate) struct Turn {
    _file: File,
}

fn take_turn(path: &Path) -> io::Result<Turn> {
    let lock = path.with_extension("lock");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(lock)?;
    file.lock()?;
    Ok(Turn { _file: file })
}

/// One event that is given up.
#[derive(Clone, Debug)]
pub(crate) struct Letter {
    /// Its record in the journal.
    pub seq: u64,
    /// Its id.
    pub id: Uuid,
    /// Why, for people.
    pub reason: String,
    /// How often it was sent.
    pub attempts: u32,
    /// What it is about.
    pub body: Body,
}

/// What a letter is about.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    /// An event.
    Event(Box<Event>),
    /// The payload of a record that is no event.
    Unreadable(Box<[u8]>),
}

impl Letter {
    /// The letter of an event that is given up.
    pub fn of(dead: Dead) -> Self {
        let Dead { event, attempts, reason } = dead;
        Self { seq: event.seq, id: event.id, reason, attempts, body: Body::Event(Box::new(event)) }
    }

    fn payload(&self) -> &[u8] {
        match &self.body {
            Body::Event(event) => &event.payload,
            Body::Unreadable(payload) => payload,
        }
    }
}

/// Letters on their way to the file.
pub(crate) struct DeadLetters {
    path: PathBuf,
    /// Not yet known to be on disk.
    held: Vec<(Letter, UtcDateTime)>,
    held_bytes: usize,
}

impl DeadLetters {
    /// Letters for the file at `path`, which is made with the first of them.
    pub fn new(path: PathBuf) -> Self {
        Self { path, held: Vec::new(), held_bytes: 0 }
    }

    /// The file, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of letters that are not on disk yet.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// How many letters that are not on disk yet are events, and how many are not.
    pub fn held(&self) -> (u64, u64) {
        let events = self.held.iter().filter(|(letter, _)| matches!(letter.body, Body::Event(_))).count();
        (events as u64, self.held.len().saturating_sub(events) as u64)
    }

    /// Adds a letter. It is in memory until [`Self::write`]. `now` is when it was given up.
    pub fn add(&mut self, letter: Letter, now: UtcDateTime) {
        self.held_bytes = self.held_bytes.saturating_add(letter.payload().len());
        self.held.push((letter, now));
    }

    /// The right to write. What an erasure has done before is known from here on, and what it does afterwards is done
    /// to the file with these letters in it.
    pub fn take_turn(&self) -> io::Result<Turn> {
        take_turn(&self.path)
    }

    /// The events among the letters that are not on disk yet.
    pub fn events_mut(&mut self) -> impl Iterator<Item = &mut Event> {
        self.held.iter_mut().filter_map(|(letter, _)| match &mut letter.body {
            Body::Event(event) => Some(&mut **event),
            Body::Unreadable(_) => None,
        })
    }

    /// Brings all letters to disk. After an error they are still here, and it can be tried again.
    pub fn write(&mut self, _turn: &Turn) -> io::Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let mut lines = Vec::new();
        for (letter, given_up_at) in &self.held {
            append_line(letter, *given_up_at, &mut lines);
        }
        let mut file = open(&self.path)?;
        let before = file.metadata()?.len();
        if let Err(error) = file.write_all(&lines).and_then(|()| file.sync_data()) {
            // Half a line would spoil the next one. Where even this fails, opening it again cuts it.
            let _ = file.set_len(before);
            return Err(error);
        }
        self.held.clear();
        self.held_bytes = 0;
        Ok(())
    }
}

fn append_line(letter: &Letter, given_up_at: UtcDateTime, lines: &mut Vec<u8>) {
    let quoted = |text: &str| serde_json::to_string(text).unwrap_or_else(|_| "null".to_owned());
    let given_up_at = given_up_at.format(&Rfc3339).map_or_else(|_| "null".to_owned(), |text| quoted(&text));
    let time_us = match &letter.body {
        Body::Event(event) => event.time_us,
        Body::Unreadable(_) => 0,
    };
    let head = format!(
        r#"{{"id":"{}","seq":{},"time_us":{time_us},"given_up_at":{given_up_at},"attempts":{},"reason":{},"payload":"{}","record":"#,
        letter.id,
        letter.seq,
        letter.attempts,
        quoted(&letter.reason),
        STANDARD.encode(letter.payload()),
    );
    lines.extend_from_slice(head.as_bytes());
    match &letter.body {
        Body::Event(event) => event.append_json(lines),
        Body::Unreadable(_) => lines.extend_from_slice(b"null"),
    }
    lines.extend_from_slice(b"}\n");
}

/// Opens the file for appending, after the end of its last whole line.
fn open(path: &Path) -> io::Result<File> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    let length = file.metadata()?.len();
    let mut end = length;
    let mut piece = [0_u8; 4_096];
    while end > 0 {
        let start = end.saturating_sub(piece.len() as u64);
        let held = usize::try_from(end.saturating_sub(start)).unwrap_or(piece.len());
        let held = piece.get_mut(..held).unwrap_or_default();
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(held)?;
        if let Some(at) = held.iter().rposition(|byte| *byte == b'\n') {
            end = start.saturating_add(at as u64).saturating_add(1);
            break;
        }
        end = start;
    }
    if end < length {
        file.set_len(end)?;
    }
    sync_folder_of(path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn event(seq: u64) -> Event {
        let id = Uuid::from_u128(seq.into());
        let exchange = Exchange { id: id.to_string(), ..Exchange::default() };
        let payload = exchange.encode_to_vec().into();
        Event { seq, id, time_us: 5, exchange, payload }
    }

    fn letter(seq: u64) -> Letter {
        Letter::of(Dead { event: event(seq), attempts: 2, reason: "HTTP 400: \"no\"\nreally".to_owned() })
    }

    fn unreadable(seq: u64) -> Letter {
        let body = Body::Unreadable(b"\xff".as_slice().into());
        Letter { seq, id: Uuid::from_u128(seq.into()), reason: "no event".to_owned(), attempts: 0, body }
    }

    fn flush(letters: &mut DeadLetters) -> io::Result<()> {
        let turn = letters.take_turn()?;
        letters.write(&turn)
    }

    fn write(path: &Path, letter: Letter) {
        let mut letters = DeadLetters::new(path.to_owned());
        letters.add(letter, UtcDateTime::UNIX_EPOCH);
        flush(&mut letters).unwrap();
    }

    fn seqs(path: &Path) -> Vec<u64> {
        read(path).unwrap().map(|letter| letter.unwrap().seq).collect()
    }

    #[test]
    fn a_letter_says_why_and_holds_the_message_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("webhook.dead.jsonl");
        let mut letters = DeadLetters::new(path.clone());
        flush(&mut letters).unwrap();
        assert!(!path.exists());
        letters.add(letter(7), UtcDateTime::UNIX_EPOCH);
        letters.add(unreadable(8), UtcDateTime::UNIX_EPOCH);
        assert_eq!(letters.held(), (1, 1));
        flush(&mut letters).unwrap();
        assert_eq!((letters.held(), letters.held_bytes()), ((0, 0), 0));
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let event = event(7);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["id"], event.id.to_string());
        assert_eq!((&lines[0]["seq"], &lines[0]["time_us"]), (&7.into(), &5.into()));
        assert_eq!(lines[0]["attempts"], 2);
        assert_eq!(lines[0]["reason"], "HTTP 400: \"no\"\nreally");
        assert_eq!(lines[0]["given_up_at"], "1970-01-01T00:00:00Z");
        assert_eq!(lines[0]["record"]["id"], event.id.to_string());
        let payload = STANDARD.decode(lines[0]["payload"].as_str().unwrap()).unwrap();
        assert_eq!(payload, event.payload.to_vec());
        assert_eq!((&lines[1]["record"], &lines[1]["payload"]), (&serde_json::Value::Null, &"/w==".into()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn letters_are_read_back_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("webhook.dead.jsonl");
        assert!(read(&path).unwrap().next().is_none());
        write(&path, letter(7));
        write(&path, unreadable(8));
        let read_back: Vec<_> = read(&path).unwrap().map(Result::unwrap).collect();
        let expected = DeadLetter {
            seq: 7,
            id: Uuid::from_u128(7),
            given_up_at: "1970-01-01T00:00:00Z".to_owned(),
            attempts: 2,
            reason: "HTTP 400: \"no\"\nreally".to_owned(),
            event: Some(event(7)),
        };
        assert_eq!(read_back[0], expected);
        assert_eq!((read_back[1].seq, &read_back[1].event), (8, &None));
        // A line that is no letter is told and hides nothing; half a line is none yet.
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"nonsense\n").unwrap();
        write(&path, letter(9));
        file.write_all(b"{\"id\":").unwrap();
        let kinds: Vec<_> = read(&path).unwrap().map(|letter| letter.map(|letter| letter.seq).ok()).collect();
        assert_eq!(kinds, [Some(7), Some(8), None, Some(9)]);
    }

    #[test]
    fn letters_that_arrived_after_all_are_taken_out_while_others_are_added() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("webhook.dead.jsonl");
        assert_eq!(remove(&path, &HashSet::from([Uuid::from_u128(1)])).unwrap(), 0);
        let mut letters = DeadLetters::new(path.clone());
        (1..=4).for_each(|seq| letters.add(letter(seq), UtcDateTime::UNIX_EPOCH));
        flush(&mut letters).unwrap();
        let line = fs::read_to_string(&path).unwrap().lines().nth(1).unwrap().to_owned();
        assert_eq!(remove(&path, &HashSet::from([1, 3, 9].map(Uuid::from_u128))).unwrap(), 2);
        // Who appends has not been told that the file is another one.
        letters.add(letter(5), UtcDateTime::UNIX_EPOCH);
        flush(&mut letters).unwrap();
        assert_eq!(seqs(&path), [2, 4, 5]);
        assert!(fs::read_to_string(&path).unwrap().starts_with(&line));
        assert_eq!(remove(&path, &HashSet::from([2, 4, 5].map(Uuid::from_u128))).unwrap(), 3);
        assert!(!path.exists());
    }

    #[test]
    fn a_torn_line_is_cut_before_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        for torn in ["", "{\"id\":\"", &"x".repeat(10_000)] {
            let path = dir.path().join("webhook.dead.jsonl");
            write(&path, letter(1));
            OpenOptions::new().append(true).open(&path).unwrap().write_all(torn.as_bytes()).unwrap();
            write(&path, letter(2));
            assert_eq!(seqs(&path), [1, 2]);
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn what_could_not_be_written_is_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("not-there").join("webhook.dead.jsonl");
        let mut letters = DeadLetters::new(path.clone());
        letters.add(letter(1), UtcDateTime::UNIX_EPOCH);
        assert!(flush(&mut letters).is_err());
        fs::create_dir(dir.path().join("not-there")).unwrap();
        letters.add(letter(2), UtcDateTime::UNIX_EPOCH);
        flush(&mut letters).unwrap();
        assert_eq!(seqs(&path), [1, 2]);
    }
}
