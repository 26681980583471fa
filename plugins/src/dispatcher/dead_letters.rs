//! Events that a sink will never take, in a file beside its cursor.
//!
//! A line of JSON for each: what a person needs to see why (`reason`, the record itself), and the message as the
//! journal had it, so that it can be sent again without loss. A line is on disk before the cursor passes its event; a
//! crash between the two can write it a second time, with the same id.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use time::UtcDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::cursor::sync_folder_of;
use super::sink::Event;

/// One event that is given up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Letter<'a> {
    /// Its record in the journal.
    pub seq: u64,
    /// Its id.
    pub id: Uuid,
    /// Why, for people.
    pub reason: &'a str,
    /// How often it was sent.
    pub attempts: u32,
    /// `None` where the payload is no event.
    pub event: Option<&'a Event>,
    /// The message as the journal has it.
    pub payload: &'a [u8],
}

/// Lines of letters on their way to the file.
pub(super) struct DeadLetters {
    path: PathBuf,
    /// Opened with the first letter: a sink without any has no such file.
    file: Option<File>,
    /// Lines not yet known to be on disk.
    lines: Vec<u8>,
}

impl DeadLetters {
    /// Letters for the file at `path`, which is made with the first of them.
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None, lines: Vec::new() }
    }

    /// The file, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of letters that are not on disk yet.
    pub fn held_bytes(&self) -> usize {
        self.lines.len()
    }

    /// Adds a letter. It is in memory until [`Self::flush`]. `now` is when it was given up.
    pub fn add(&mut self, letter: &Letter<'_>, now: UtcDateTime) {
        let quoted = |text: &str| serde_json::to_string(text).unwrap_or_else(|_| "null".to_owned());
        let given_up_at = now.format(&Rfc3339).map_or_else(|_| "null".to_owned(), |text| quoted(&text));
        let head = format!(
            r#"{{"id":"{}","seq":{},"given_up_at":{given_up_at},"attempts":{},"reason":{},"payload":"{}","record":"#,
            letter.id,
            letter.seq,
            letter.attempts,
            quoted(letter.reason),
            STANDARD.encode(letter.payload),
        );
        self.lines.extend_from_slice(head.as_bytes());
        match letter.event {
            Some(event) => event.append_json(&mut self.lines),
            None => self.lines.extend_from_slice(b"null"),
        }
        self.lines.extend_from_slice(b"}\n");
    }

    /// Brings all letters to disk. After an error they are still here, and it can be tried again.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.lines.is_empty() {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(open(&self.path)?),
        };
        let before = file.metadata()?.len();
        if let Err(error) = file.write_all(&self.lines).and_then(|()| file.sync_data()) {
            // Half a line would spoil the next one. Where even this fails, opening it again cuts it.
            let _ = file.set_len(before);
            self.file = None;
            return Err(error);
        }
        self.lines.clear();
        Ok(())
    }
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
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::event::{Exchange, Message};

    fn event(seq: u64) -> Event {
        let id = Uuid::from_u128(seq.into());
        let exchange = Exchange { id: id.to_string(), ..Exchange::default() };
        let payload = exchange.encode_to_vec().into();
        Event { seq, id, time_us: 0, exchange, payload }
    }

    fn letter(event: &Event) -> Letter<'_> {
        let reason = "HTTP 400: \"no\"\nreally";
        Letter { seq: event.seq, id: event.id, reason, attempts: 2, event: Some(event), payload: &event.payload }
    }

    fn seqs(path: &Path) -> Vec<u64> {
        let line = |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["seq"].as_u64().unwrap();
        fs::read_to_string(path).unwrap().lines().map(line).collect()
    }

    #[test]
    fn a_letter_says_why_and_holds_the_message_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("webhook.dead.jsonl");
        let mut letters = DeadLetters::new(path.clone());
        letters.flush().unwrap();
        assert!(!path.exists());
        let event = event(7);
        letters.add(&letter(&event), UtcDateTime::UNIX_EPOCH);
        let no_event = Letter { event: None, payload: b"\xff", attempts: 0, reason: "no event", ..letter(&event) };
        letters.add(&no_event, UtcDateTime::UNIX_EPOCH);
        letters.flush().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["id"], event.id.to_string());
        assert_eq!(lines[0]["seq"], 7);
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
    fn a_torn_line_is_cut_before_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        for torn in ["", "{\"id\":\"", &"x".repeat(10_000)] {
            let path = dir.path().join("webhook.dead.jsonl");
            let mut letters = DeadLetters::new(path.clone());
            letters.add(&letter(&event(1)), UtcDateTime::UNIX_EPOCH);
            letters.flush().unwrap();
            drop(letters);
            OpenOptions::new().append(true).open(&path).unwrap().write_all(torn.as_bytes()).unwrap();
            let mut letters = DeadLetters::new(path.clone());
            letters.add(&letter(&event(2)), UtcDateTime::UNIX_EPOCH);
            letters.flush().unwrap();
            assert_eq!(seqs(&path), [1, 2]);
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn what_could_not_be_written_is_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("not-there").join("webhook.dead.jsonl");
        let mut letters = DeadLetters::new(path.clone());
        letters.add(&letter(&event(1)), UtcDateTime::UNIX_EPOCH);
        assert!(letters.flush().is_err());
        fs::create_dir(dir.path().join("not-there")).unwrap();
        letters.add(&letter(&event(2)), UtcDateTime::UNIX_EPOCH);
        letters.flush().unwrap();
        assert_eq!(seqs(&path), [1, 2]);
    }
}
