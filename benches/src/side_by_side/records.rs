//! The proof that the proxy measured was the product: every exchange left its line in `events.jsonl`. Waiting for the
//! lines also makes sure that work put off until after the answer is measured with the exchanges that caused it.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const LIMIT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The books of one running proxy.
pub struct Records {
    path: PathBuf,
    read_bytes: Cell<u64>,
    lines: Cell<u64>,
    expected: Cell<u64>,
}

impl Records {
    /// `written` lines are there or on their way already.
    pub fn new(path: PathBuf, written: u64) -> Self {
        Self { path, read_bytes: Cell::new(0), lines: Cell::new(0), expected: Cell::new(written) }
    }

    /// That many further exchanges came to their end.
    pub fn expect(&self, exchanges: u64) {
        self.expected.set(self.expected.get().saturating_add(exchanges));
    }

    /// How many lines there should be.
    pub fn expected(&self) -> u64 {
        self.expected.get()
    }

    /// How many lines there are.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn found(&self) -> io::Result<u64> {
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
            opened => opened?,
        };
        file.seek(SeekFrom::Start(self.read_bytes.get()))?;
        let mut reader = BufReader::with_capacity(256 * 1024, file);
        loop {
            let bytes = reader.fill_buf()?;
            let length = bytes.len();
            if length == 0 {
                return Ok(self.lines.get());
            }
            let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
            self.lines.set(self.lines.get().saturating_add(lines as u64));
            self.read_bytes.set(self.read_bytes.get().saturating_add(length as u64));
            reader.consume(length);
        }
    }

    /// Waits until no line is missing.
    ///
    /// # Errors
    /// When one is still missing after a minute.
    pub async fn complete(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            let (found, expected) = (self.found()?, self.expected());
            if found >= expected {
                return Ok(());
            }
            if began.elapsed() > LIMIT {
                bail!("{} has {found} lines after {expected} exchanges", self.path.display());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn whole_lines_are_counted_however_they_grow() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        assert_eq!(Records::new(path.clone(), 0).found().unwrap(), 0);
        let mut file = File::create(&path).unwrap();
        file.write_all(b"{}\n").unwrap();
        let records = Records::new(path, 1);
        assert_eq!(records.expected(), 1);
        for (piece, expected) in [("{\"a\":", 1), ("1}\n{}\n", 3), ("", 3)] {
            file.write_all(piece.as_bytes()).unwrap();
            assert_eq!(records.found().unwrap(), expected);
        }
    }
}
