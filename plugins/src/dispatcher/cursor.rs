//! How far a sink has come, in a file of its own.
//!
//! One line of text: version, journal id, sequence number, checksum. It is replaced whole by a rename, so that a crash
//! leaves the old one or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A place in a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    /// [`crate::journal::Journal::id`]: in another journal the numbers mean something else.
    pub journal: String,
    /// The last record that needs nothing more.
    pub seq: u64,
}

impl Cursor {
    /// The saved cursor; `None` if there is none, or none that can be believed.
    pub fn load(path: &Path) -> io::Result<Option<Self>> {
        match fs::read(path) {
            Ok(bytes) => Ok(Self::parse(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (sealed, crc) = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?.rsplit_once(' ')?;
        if crc.len() != 8 || u32::from_str_radix(crc, 16).ok()? != crc32c::crc32c(sealed.as_bytes()) {
            return None;
        }
        let mut fields = sealed.split(' ');
        let ("v1", journal, seq) = (fields.next()?, fields.next()?, fields.next()?.parse().ok()?) else { return None };
        Some(Self { journal: journal.to_owned(), seq })
    }

    fn to_line(&self) -> String {
        let sealed = format!("v1 {} {}", self.journal, self.seq);
        let crc = crc32c::crc32c(sealed.as_bytes());
        format!("{sealed} {crc:08x}\n")
    }

    /// Replaces the saved cursor; on return it is on disk.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let next = path.with_extension("cursor.next");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
        file.write_all(self.to_line().as_bytes())?;
        file.sync_data()?;
        fs::rename(&next, path)?;
        sync_folder_of(path)
    }
}

/// Makes the names in the folder of `path` as durable as the files.
pub(super) fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_saved_and_only_as_saved() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("webhook.cursor");
        assert_eq!(Cursor::load(&path).unwrap(), None);
        for seq in [12, 13, u64::MAX] {
            let cursor = Cursor { journal: "an-id".to_owned(), seq };
            cursor.save(&path).unwrap();
            assert_eq!(Cursor::load(&path).unwrap(), Some(cursor));
        }
        let line = fs::read(&path).unwrap();
        for at in 0..line.len() {
            let mut damaged = line.clone();
            damaged[at] ^= 1;
            assert_eq!(Cursor::parse(&damaged), None, "byte {at}");
            assert_eq!(Cursor::parse(&line[..at]), None, "cut at {at}");
        }
    }
}
